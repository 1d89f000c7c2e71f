"""Recurrent networks: a state carried along the words, one word after the other.

RNN and LSTM cells, and text encoders made of them with the interface of the CLIP text encoder, so
that the same UNet can be taught with either and the two compared.

Shapes: B batch, T text tokens, D width of the text, S width of the state, G gates. A state is
(1, B, S) in an RNN: h; (2, B, S) in an LSTM: h and c.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sdcore.attention import as_real
from sdcore.checks import as_finite, as_int
from sdcore.errors import UsageError
from sdcore.files.component import Component
from sdcore.files.jsonfile import read_json
from sdcore.text.config import CLIPTextConfig
from sdcore.text.encoder import (
    CLIPTextEncoder,
    TextEncoding,
    check_clip_skip,
    check_ids,
    end_of_text,
)

# --- cells: one step ---------------------------------------------------------------------------


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
    """
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
        """
        now = x.new_zeros(self.cell.KEPT, len(x), self.size) if state is None else state
        real = None if real is None else as_real(real)
        shown: list[Tensor] = []
        for t, inputs in enumerate(self.cell.from_input(x).unbind(dim=1)):  # (B, G S) each
            after = self.cell(inputs, now)
            now = after if real is None else torch.where(real[:, t, None], after, now)
            shown.append(now[0])
        whole = torch.stack(shown, dim=1) if shown else x.new_zeros(len(x), 0, self.size)
        return whole, now


# --- text encoders -----------------------------------------------------------------------------


@dataclass(frozen=True)
class RecurrentTextConfig:
    """Sizes of a recurrent text encoder; shared ones are called as in `CLIPTextConfig`.

    Attributes:
        cell: a key of `CELLS`.
        hidden_size: D, the width of the text.
        state_size: S, the width of the state inside each layer.
        max_position_embeddings: the longest text that is read; no weight depends on it.

    Raises:
        UsageError: an unknown cell, or a size that cannot be.
    """

    cell: str
    vocab_size: int
    hidden_size: int
    state_size: int
    num_hidden_layers: int
    max_position_embeddings: int
    eos_token_id: int
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.cell not in CELLS:
            raise _bad_setting("cell", self.cell, f"There are {', '.join(CELLS)}.")
        for name, value in asdict(self).items():
            if name not in ("cell", "layer_norm_eps") and as_int(value, 0) is None:
                raise _bad_setting(name, value, "It must be a whole number.")
        for name in ("vocab_size", "hidden_size", "state_size", "num_hidden_layers"):
            if not 1 <= getattr(self, name) <= 1 << 24:
                raise _bad_setting(name, getattr(self, name), f"It must be from 1 to {1 << 24}.")
        if self.eos_token_id >= self.vocab_size:
            why = f"It is outside the vocabulary of {self.vocab_size} tokens."
            raise _bad_setting("eos_token_id", self.eos_token_id, why)
        eps = self.layer_norm_eps
        if as_finite(eps) is None or not 0 < eps < 1:
            raise _bad_setting("layer_norm_eps", eps, "It must be a number between 0 and 1.")

    @classmethod
    def matching(cls, clip: CLIPTextConfig, cell: str) -> RecurrentTextConfig:
        """As many layers, of the same width, each of as many weights as one of `clip`'s.

        What is free is the width of the state: the whole number that brings a layer nearest.
        """
        width, inner = clip.hidden_size, clip.intermediate_size
        wanted = 4 * (width + 1) * width + (2 * width + 1) * inner + width  # attention, MLP
        gates = CELLS[cell].GATES if cell in CELLS else 1  # an unknown one is refused below

        def weights(size: int) -> int:  # the cell, and the way back to the text's width
            return gates * (width + size + 1) * size + (size + 1) * width

        return cls(
            cell=cell,
            vocab_size=clip.vocab_size,
            hidden_size=width,
            state_size=min(range(1, 4 * (width + inner)), key=lambda s: abs(weights(s) - wanted)),
            num_hidden_layers=clip.num_hidden_layers,
            max_position_embeddings=clip.max_position_embeddings,
            eos_token_id=clip.eos_token_id,
            layer_norm_eps=clip.layer_norm_eps,
        )

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> RecurrentTextConfig:
        """Read what `to_dict` gives; every setting we do not have, or that is missing, is named."""
        settings = {k: v for k, v in settings.items() if k not in ("architectures", "model_type")}
        known = {field.name for field in fields(cls)}
        for name in settings.keys() - known:
            raise _bad_setting(
                name, settings[name], "A recurrent text encoder has no such setting."
            )
        for name in sorted(known - settings.keys() - {"layer_norm_eps"}):
            raise _bad_setting(name, None, "It is missing.")
        return cls(**settings)

    def to_dict(self) -> dict[str, Any]:
        return {
            "architectures": [ARCHITECTURE],
            "model_type": "recurrent_text_model",
            **asdict(self),
        }


ARCHITECTURE = "RecurrentTextModel"  # no class of transformers has this name


class RecurrentTextLayer(nn.Module):
    """CLIPTextLayer with a recurrence in place of attention and MLP: x (B, T, D) to (B, T, D).

    Norm before and sum after are those of the Transformer layer, so that deep stacks learn as well
    here (sums between LSTM layers: Wu et al. 2016, arXiv:1609.08144), and what is compared is how
    words learn of one another.
    """

    def __init__(self, config: RecurrentTextConfig) -> None:
        super().__init__()
        width, size = config.hidden_size, config.state_size
        self.layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.recurrence = Recurrence(config.cell, width, size)
        self.out_proj = nn.Linear(size, width)
        # What a layer adds is small at first, and smaller in a deep stack, as in CLIP's training.
        nn.init.normal_(self.out_proj.weight, std=(size * 2 * config.num_hidden_layers) ** -0.5)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        shown, _ = self.recurrence(self.layer_norm(x), real)  # (B, T, S)
        return x + self.out_proj(shown)


class RecurrentTextEncoder(Component):
    """A text encoder of RNN or LSTM cells: ids (B, T) -> TextEncoding, as CLIPTextEncoder gives.

    Each token knows itself and those before it, as under CLIP's causal mask, but through a state
    that is carried along. No positions are added: the order is in the reading.
    """

    Config = RecurrentTextConfig
    WEIGHTS_NAME: ClassVar[str] = "model"
    PUBLISHED_CLASSES = (ARCHITECTURE,)

    def __init__(self, config: RecurrentTextConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            RecurrentTextLayer(config) for _ in range(config.num_hidden_layers)
        )
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> TextEncoding:
        """Encode token ids (B, T); `mask` (B, T) is 0 at padding, which no token reads.

        Raises:
            UsageError: as CLIPTextEncoder.
        """
        check_ids(ids, mask, self.config.vocab_size, self.config.max_position_embeddings)
        states = [self.token_embedding(ids)]  #                           (B, T, D)
        for layer in self.layers:
            states.append(layer(states[-1], mask))
        last = self.final_layer_norm(states[-1])
        rows = torch.arange(len(ids), device=ids.device)
        pooled = last[rows, end_of_text(ids, self.config.eos_token_id)]  # (B, D)
        return TextEncoding(last, tuple(states), pooled)

    def skip(self, encoding: TextEncoding, clip_skip: int) -> Tensor:
        """The text (B, T, D) with the last `clip_skip` layers left out, as CLIPTextEncoder.skip."""
        check_clip_skip(clip_skip, self.config.num_hidden_layers)
        return self.final_layer_norm(encoding.hidden_states[-(clip_skip + 1)])


def load_text_encoder(folder: str | Path, **where: Any) -> CLIPTextEncoder | RecurrentTextEncoder:
    """The text encoder of a folder, of whichever kind its config names; `where`: device, dtype.

    Raises:
        FileError: the folder holds neither, or a damaged one.
    """
    path = Path(folder) / "config.json"
    recurrent = read_json(path).get("architectures") == [ARCHITECTURE]
    kind = RecurrentTextEncoder if recurrent else CLIPTextEncoder
    return kind.from_pretrained(folder, **where)


def _bad_setting(name: str, value: object, why: str) -> UsageError:
    return UsageError(
        f"The text encoder's setting {name} = {value!r:.80} cannot be used.",
        why,
        "Correct the setting.",
    )
