"""Encoder and decoder before the Transformer: recurrent, without and with attention.

First one state carried the whole source over to the decoder (Sutskever et al. 2014,
arXiv:1409.3215). Then the decoder was allowed to look back at every word of the source, weighted
anew for each word it writes (Bahdanau et al. 2015, arXiv:1409.0473): attention, with recurrence
around it. The Transformer kept the attention and dropped the recurrence.

Shapes: B batch, T source tokens, N target words, D width, V target words known. A state is
(1, B, D) in an RNN, (2, B, D) in an LSTM; see recurrence.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sdcore.attention_inputs import as_real
from sdcore.checks import check_choice, check_int, has_type, shown
from sdcore.errors import UsageError
from sdcore.recurrence import CELLS, Recurrence
from sdcore.text.config import SIZE_LIMIT
from sdcore.text.encoder import check_vocabulary, check_words


@dataclass(frozen=True)
class RecurrentTranslatorConfig:
    """Sizes of a recurrent encoder-decoder of one layer each; `cell` is `rnn` or `lstm`.

    Raises:
        UsageError: another cell, or a size below 1.
    """

    source_words: int
    target_words: int
    width: int = 128
    cell: str = "lstm"
    attention: bool = False

    def __post_init__(self) -> None:
        check_choice("The setting cell", self.cell, CELLS)
        for name in ("source_words", "target_words", "width"):
            value = getattr(self, name)
            number = check_int(f"The setting {name}", value, 1, SIZE_LIMIT, hint="Use 1 or more.")
            object.__setattr__(self, name, number)
        if not has_type(self.attention, bool):
            raise UsageError(
                f"The setting attention is {shown(self.attention)}.",
                "It says whether the decoder looks back at the source.",
                "Use True or False.",
            )


class AdditiveAttention(nn.Module):
    """Bahdanau's attention: how well a word of the source fits what is to be written next.

    e_j = vᵀ tanh(W s + U h_j)        s (B, D) the decoder's state, h (B, T, D) the source
    context = Σ_j softmax(e)_j h_j    (B, D)
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        check_int("The width of an additive attention", width, 1, hint="Use 1 or more.")
        self.from_state = nn.Linear(width, width)  #              W
        self.from_source = nn.Linear(width, width, bias=False)  # U
        self.score = nn.Linear(width, 1, bias=False)  #           v

    def forward(self, state: Tensor, source: Tensor, keys: Tensor, real: Tensor | None) -> Tensor:
        """`keys` are U h, the same for every word; `real` (B, T) is False at padding.

        Where a whole source is padding, the context is zeros.
        """
        scores = self.score(torch.tanh(self.from_state(state)[:, None] + keys))[..., 0]  # (B, T)
        if real is None:
            weights = scores.softmax(dim=-1)
        else:
            real = as_real(real, source)
            # the smallest number, not -inf: a row with no True must not become 0/0
            weights = scores.masked_fill(~real, torch.finfo(scores.dtype).min).softmax(dim=-1)
            weights = weights.masked_fill(~real, 0)
        return torch.einsum("bt,btd->bd", weights, source)


@dataclass(frozen=True)
class RecurrentState:
    """What the decoder keeps: its state and, to look back at, source and keys (B, T, D)."""

    state: Tensor
    source: Tensor
    keys: Tensor | None
    real: Tensor | None  # (B, T)

    def pick(self, rows: Tensor) -> RecurrentState:
        """The state of some rows of the batch, in their order; a row may come more than once."""
        return RecurrentState(
            self.state[:, rows],
            self.source[rows],
            None if self.keys is None else self.keys[rows],
            None if self.real is None else self.real[rows],
        )


class RecurrentTranslator(nn.Module):
    """A recurrent encoder-decoder, with the methods of `Transformer`."""

    def __init__(self, config: RecurrentTranslatorConfig) -> None:
        super().__init__()
        self.config = c = config
        self.source_words = nn.Embedding(c.source_words, c.width)
        self.target_words = nn.Embedding(c.target_words, c.width)
        self.encoder = Recurrence(c.cell, c.width, c.width)
        self.attention = AdditiveAttention(c.width) if c.attention else None
        read = 2 * c.width if c.attention else c.width  # the last word, and what is looked at
        self.decoder = Recurrence(c.cell, read, c.width)
        self.to_words = nn.Linear(read, c.target_words)

    def start(self, source: Tensor, real: Tensor | None = None) -> RecurrentState:
        """Read a source (B, T): the decoder begins with the encoder's last state."""
        check_vocabulary(source, self.config.source_words)
        shown, state = self.encoder(self.source_words(source), real)  # (B, T, D)
        keys = None if self.attention is None else self.attention.from_source(shown)
        return RecurrentState(state, shown, keys, real)

    def step(self, words: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """Words (B, N) that follow those of the state to logits (B, N, V) of what comes next."""
        check_words(words, self.config.target_words, len(state.source))
        x = self.target_words(words)
        if self.attention is None:
            shown, after = self.decoder(x, state=state.state)
            return self.to_words(shown), replace(state, state=after)
        outputs: list[Tensor] = []
        for word in x.unbind(dim=1):  # what is looked at depends on the state: word by word
            assert state.keys is not None
            context = self.attention(state.state[0], state.source, state.keys, state.real)
            seen = torch.cat([word, context], dim=-1)[:, None]
            shown, after = self.decoder(seen, state=state.state)
            state = replace(state, state=after)
            outputs.append(torch.cat([shown[:, 0], context], dim=-1))
        if not outputs:
            return self.to_words(x.new_zeros(len(x), 0, 2 * self.config.width)), state
        return self.to_words(torch.stack(outputs, dim=1)), state

    def forward(self, source: Tensor, target: Tensor, real: Tensor | None = None) -> Tensor:
        """source (B, T) and target (B, N) ids to logits (B, N, V)."""
        return self.step(target, self.start(source, real))[0]
