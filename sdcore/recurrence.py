"""Recurrence: a state carried along the words, one word after the other; RNN and LSTM cells.

What came before attention.py. Shapes: B batch, T text tokens, D width of the text, S width of the
state, G gates. A state is (1, B, S) in an RNN: h; (2, B, S) in an LSTM: h and c.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sdcore.attention_inputs import as_real, describe_tensor
from sdcore.checks import check_choice, check_int
from sdcore.errors import UsageError


class RNNCell(nn.Module):
    """The simple recurrent network (Elman 1990).

        h_t = tanh(W x_t + b + U h_{t-1})

    W x_t + b needs no state: it is computed for all words at once, and comes in as `x`.
    """

    KEPT = 1  # h
    GATES = 1

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.from_input = nn.Linear(width, size)  #             W, b
        self.from_state = nn.Linear(size, size, bias=False)  #  U

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """x (B, S), state (1, B, S) to the next state."""
        return torch.tanh(x + self.from_state(state[0]))[None]


class LSTMCell(nn.Module):
    """Long short-term memory (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000).

        i = σ(W_i x_t + b_i + U_i h_{t-1})        what to write down
        f = σ(W_f x_t + b_f + U_f h_{t-1})        what to keep
        g = tanh(W_g x_t + b_g + U_g h_{t-1})     what there is to write
        o = σ(W_o x_t + b_o + U_o h_{t-1})        what to show
        c_t = f ⊙ c_{t-1} + i ⊙ g                 no matrix on the way from c_{t-1} to c_t:
        h_t = o ⊙ tanh(c_t)                       gradients reach further back than in an RNN

    The four W x_t + b come in as `x`, side by side.
    """

    KEPT = 2  # h, c
    GATES = 4

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.from_input = nn.Linear(width, 4 * size)  #             W, b of i, f, g, o
        self.from_state = nn.Linear(size, 4 * size, bias=False)  #  U of i, f, g, o

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """x (B, 4 S), state (2, B, S) to the next state."""
        shown, kept = state
        i, f, g, o = (x + self.from_state(shown)).chunk(4, dim=-1)
        kept = f.sigmoid() * kept + i.sigmoid() * g.tanh()
        return torch.stack([o.sigmoid() * kept.tanh(), kept])


Cell = RNNCell | LSTMCell
CELLS: dict[str, type[RNNCell] | type[LSTMCell]] = {"rnn": RNNCell, "lstm": LSTMCell}


def make_cell(kind: str, width: int, size: int) -> Cell:
    """A cell of `CELLS` with its first weights.

    U is orthogonal, gate by gate, so that what is carried along neither fades nor grows at first
    (Saxe et al. 2014, arXiv:1312.6120); an LSTM begins by keeping what it has, b_f = 1
    (Jozefowicz et al. 2015, PMLR 37).

    Raises:
        UsageError: an unknown kind, or a size below 1.
    """
    check_choice("The cell of a recurrence", kind, CELLS)
    for name, value in (("width", width), ("size", size)):
        check_int(f"The {name} of a recurrence", value, 1, hint="Use 1 or more.")
    cell = CELLS[kind](width, size)
    for gate in cell.from_state.weight.data.chunk(cell.GATES):
        nn.init.orthogonal_(gate)
    for gate in cell.from_input.weight.data.chunk(cell.GATES):
        nn.init.xavier_uniform_(gate)
    nn.init.zeros_(cell.from_input.bias)
    if isinstance(cell, LSTMCell):
        nn.init.ones_(cell.from_input.bias.data[size : 2 * size])
    return cell


class Recurrence(nn.Module):
    """A cell carried along a text: x (B, T, D) to every h (B, T, S) and the last state.

    The loop is the point: step t cannot begin before step t - 1 has ended.
    """

    def __init__(self, kind: str, width: int, size: int) -> None:
        super().__init__()
        self.cell, self.size = make_cell(kind, width, size), size

    def forward(
        self, x: Tensor, real: Tensor | None = None, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Read a text.

        Args:
            real: (B, T), False at padding, which leaves the state as it was.
            state: to begin with; zeros where there is none.

        Raises:
            UsageError: the shapes do not belong together.
        """
        kept = (self.cell.KEPT, x.shape[0], self.size)
        if x.dim() != 3 or (state is not None and state.shape != kept):
            raise UsageError(
                "This text cannot be read from this state.",
                f"The text is {describe_tensor(x)}, the state is {describe_tensor(state)}.",
                f"Give a text (B, T, D), and a state ({self.cell.KEPT}, B, {self.size}).",
            )
        now = x.new_zeros(kept) if state is None else state
        real = None if real is None else as_real(real, x)
        shown: list[Tensor] = []
        for t, inputs in enumerate(self.cell.from_input(x).unbind(dim=1)):  # (B, G S) each
            after = self.cell(inputs, now)
            now = after if real is None else torch.where(real[:, t, None], after, now)
            shown.append(now[0])
        whole = torch.stack(shown, dim=1) if shown else x.new_zeros(x.shape[0], 0, self.size)
        return whole, now
