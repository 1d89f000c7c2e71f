"""What takes minutes to learn: two tasks at three budgets, with three seeds each.

    python -m docs.book train     writes trained.json, from which pages 4 and 9 are made

Recall: name every word of a text of LENGTH words, after its end. Pairs: PAIRS keys with values are
read, then one of the keys: name its value. No network is told anything else.

trained.json is read only while this code, with these settings, begins each training with the same
losses as when it was written; a slow test trains again up to the first budget.

Shapes: B batch, T words, D width, V words to choose from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache

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

    @torch.no_grad()
    def watched(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """The forget gates and the states c after each word, both (B, T, STATE)."""
        gates, states = [], []
        hidden = cell = torch.zeros(len(words), STATE)
        for word in F.one_hot(words, WORDS).float().unbind(1):
            from_word = word @ self.read.weight_ih_l0.T + self.read.bias_ih_l0
            from_state = hidden @ self.read.weight_hh_l0.T + self.read.bias_hh_l0
            enter, forget, new, out = (from_word + from_state).chunk(4, 1)
            cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
            hidden = out.sigmoid() * cell.tanh()
            gates.append(forget.sigmoid())
            states.append(cell)
        return torch.stack(gates, 1), torch.stack(states, 1)


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


# What is trained: its network, and what draws a batch of inputs and answers.
TASKS: dict[str, tuple[Callable[[], nn.Module], Callable]] = {
    "recall": (Recall, _recall),
    "lstm": (lambda: Pairs("lstm"), _pairs),
    "transformer": (lambda: Pairs("transformer"), _pairs),
}


def _steps(network: nn.Module, draw: Callable, count: int) -> Iterator[float]:
    """Train for `count` steps; the loss of each."""
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    for _ in range(count):
        inputs, answer = draw(BATCH)
        loss = F.cross_entropy(network(*inputs).flatten(0, -2), answer.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


def _begun(name: str, seed: int) -> tuple[nn.Module, Callable]:
    torch.manual_seed(seed)
    make, draw = TASKS[name]
    return make(), draw


def learned(name: str, seed: int, budgets: Sequence[int] = BUDGETS) -> Iterator[dict]:
    """After each budget of one training run: the right answers, and of "recall" its gates."""
    network, draw = _begun(name, seed)
    for step, _ in enumerate(_steps(network, draw, max(budgets)), 1):
        if step in budgets:
            with torch.no_grad():
                inputs, answer = draw(2000)
                right = (network(*inputs).argmax(-1) == answer).float()
            found: dict = {"right": _rounded(right.mean(0))}
            if isinstance(network, Recall):
                gates, states = network.watched(inputs[0])
                found["survives"] = _rounded(gates[:, 1:].prod(1).mean(0).sort(descending=True)[0])
                found["gates"], found["states"] = _rounded(gates[0]), _rounded(states[0])
            yield found


def beginnings() -> dict[str, list[float]]:
    """The first losses of each task with each seed: what tells this code from other code."""
    with torch.enable_grad(), torch.random.fork_rng():
        return {
            f"{name} {seed}": list(_steps(*_begun(name, seed), 3))
            for name in TASKS
            for seed in SEEDS
        }


def train() -> None:
    """Train every network with every seed; minutes on one core."""
    torch.set_num_threads(1)
    found: dict = {"beginnings": beginnings(), "budgets": BUDGETS}
    for name, (make, _) in TASKS.items():
        found[name] = [list(learned(name, seed)) for seed in SEEDS]
        found[f"{name} weights"] = sum(p.numel() for p in make().parameters())
        print(name, [[at["right"] for at in each] for each in found[name]], flush=True)
    for each in found["recall"]:  # a figure shows one text, of one network
        for at in each[:-1]:
            del at["gates"], at["states"]
    for each in found["recall"][1:]:
        del each[-1]["gates"], each[-1]["states"]
    TRAINED.write_text(json.dumps(found) + "\n", "utf-8")


@cache
def trained() -> dict:
    """What `train` found.

    Raises:
        ValueError: it was found by other code, or with other settings.
    """
    found = json.loads(TRAINED.read_text("utf-8"))
    now, then = beginnings(), found["beginnings"]
    same = now.keys() == then.keys() and all(
        math.isclose(a, b, rel_tol=1e-3)
        for name, losses in now.items()
        for a, b in zip(losses, then[name], strict=True)
    )
    if not same or tuple(found["budgets"]) != BUDGETS:
        raise ValueError("trained.json is of other code: run `python -m docs.book train`")
    return found


def _rounded(values: Tensor):
    """Three places."""
    if values.ndim == 0:
        return round(float(values), 3)
    return [_rounded(each) for each in values]
