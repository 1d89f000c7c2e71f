"""What takes minutes to learn: two tasks at three budgets, with three seeds each.

    python -m docs.book train     writes trained.json, from which pages 4 and 9 are made

Recall: name every word of a text of LENGTH words, after its end. Pairs: PAIRS keys with values are
read, then one of the keys: name its value. No network is told anything else.

Shapes: B batch, T words, D width, V words to choose from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from docs.book.book import HERE
from sdcore import Recurrence, SelfAttention

TRAINED = HERE / "trained.json"
BUDGETS, SEEDS, BATCH, RATE = (500, 2000, 8000), (0, 1, 2), 64, 3e-3
WORDS, LENGTH, STATE = 16, 12, 24
PAIRS, WIDTH, LSTM_STATE = 12, 48, 76


class Recall(nn.Module):
    """Words (B, T) to a guess of each (B, T, V), from an LSTM's last state."""

    def __init__(self) -> None:
        super().__init__()
        self.read = _lstm(WORDS, STATE)
        self.guess = nn.Linear(STATE, LENGTH * WORDS)

    def forward(self, words: Tensor) -> Tensor:
        states, _ = self.read(F.one_hot(words, WORDS).float())
        return self.guess(states[:, -1]).unflatten(1, (LENGTH, WORDS))


class Pairs(nn.Module):
    """Keys and values (B, T) and one key (B,) to a guess of its value (B, V)."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.keys, self.values = nn.Embedding(WORDS, WIDTH), nn.Embedding(WORDS + 1, WIDTH)
        if kind == "lstm":
            self.lstm = _lstm(WIDTH, LSTM_STATE)
            self.guess = nn.Linear(LSTM_STATE, WORDS)
        else:
            self.layers = nn.ModuleList(_Block() for _ in range(2))
            self.guess = nn.Linear(WIDTH, WORDS)

    def forward(self, keys: Tensor, values: Tensor, asked: Tensor) -> Tensor:
        question = torch.full_like(asked, WORDS)  # the mark of a question stands for its value
        keys, values = (
            torch.cat([keys, asked[:, None]], 1),
            torch.cat([values, question[:, None]], 1),
        )
        x = self.keys(keys) + self.values(values)  # (B, T + 1, D)
        if hasattr(self, "lstm"):
            return self.guess(self.lstm(x)[0][:, -1])
        for layer in self.layers:
            x = layer(x)
        return self.guess(x[:, -1])


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = SelfAttention(WIDTH, heads=4)
        self.inner, self.outer = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.outer(self.inner(self.norm2(x)).relu())


def _lstm(width: int, size: int) -> nn.LSTM:
    """torch's LSTM, which is fast, with our first weights: page 4 shows that they are the same."""
    cell, lstm = Recurrence("lstm", width, size).cell, nn.LSTM(width, size, batch_first=True)
    lstm.weight_ih_l0.data = cell.from_input.weight.data
    lstm.weight_hh_l0.data = cell.from_state.weight.data
    lstm.bias_ih_l0.data, lstm.bias_hh_l0.data = cell.from_input.bias.data, torch.zeros(4 * size)
    return lstm


def _recall(count: int) -> tuple[tuple[Tensor, ...], Tensor]:
    words = torch.randint(WORDS, (count, LENGTH))
    return (words,), words


def _pairs(count: int) -> tuple[tuple[Tensor, ...], Tensor]:
    keys = torch.rand(count, WORDS).argsort(1)[:, :PAIRS]  # no key twice
    values, which = torch.randint(WORDS, (count, PAIRS)), torch.randint(PAIRS, (count, 1))
    return (keys, values, keys.gather(1, which)[:, 0]), values.gather(1, which)[:, 0]


def _learned(network: nn.Module, draw: Callable) -> Iterator[Tensor]:
    """Right answers (2000, ...) after each budget of one training run."""
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    for step in range(1, max(BUDGETS) + 1):
        inputs, answer = draw(BATCH)
        loss = F.cross_entropy(network(*inputs).flatten(0, -2), answer.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in BUDGETS:
            with torch.no_grad():
                inputs, answer = draw(2000)
                yield (network(*inputs).argmax(-1) == answer).float()


def train() -> None:
    """Train every network with every seed; minutes on one core."""
    torch.set_num_threads(1)
    recall, pairs = [], {"lstm": [], "transformer": []}
    for seed in SEEDS:
        torch.manual_seed(seed)
        recall.append([_rounded(right.mean(0)) for right in _learned(Recall(), _recall)])
        for kind, scores in pairs.items():
            torch.manual_seed(seed)
            scores.append([_rounded(right.mean()) for right in _learned(Pairs(kind), _pairs)])
        print(seed, recall[-1], {kind: scores[-1] for kind, scores in pairs.items()}, flush=True)
    weights = {kind: sum(p.numel() for p in Pairs(kind).parameters()) for kind in pairs}
    found = {"budgets": BUDGETS, "recall": recall, "pairs": pairs, "weights": weights}
    TRAINED.write_text(json.dumps(found) + "\n", "utf-8")


def trained() -> dict:
    return json.loads(TRAINED.read_text("utf-8"))


def _rounded(share: Tensor):
    return [round(x, 3) for x in share.tolist()] if share.ndim else round(float(share), 3)
