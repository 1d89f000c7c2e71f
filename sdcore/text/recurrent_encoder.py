"""Text encoders of RNN or LSTM cells, with the interface of the CLIP text encoder.

The same UNet can be taught with either, and the two compared.

Shapes: B batch, T text tokens, D width of the text, S width of the state.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sdcore.checks import as_finite, as_int, has_type
from sdcore.files.component import Component
from sdcore.files.jsonfile import read_json
from sdcore.recurrence import CELLS, Recurrence
from sdcore.text.config import LAYERS_LIMIT, SIZE_LIMIT, CLIPTextConfig, bad_setting
from sdcore.text.encoder import (
    CLIPTextEncoder,
    TextEncoding,
    check_clip_skip,
    check_ids,
    end_of_text,
)


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
        if not has_type(self.cell, str) or self.cell not in CELLS:
            raise bad_setting("cell", self.cell, f"There are {', '.join(CELLS)}.")
        for name, value in asdict(self).items():
            if name not in ("cell", "layer_norm_eps"):
                least = 0 if name == "eos_token_id" else 1
                most = LAYERS_LIMIT if name == "num_hidden_layers" else SIZE_LIMIT
                number = as_int(value, least, most)
                if number is None:
                    why = f"It must be a whole number from {least} to {most}."
                    raise bad_setting(name, value, why)
                object.__setattr__(self, name, number)
        if self.eos_token_id >= self.vocab_size:
            why = f"It is outside the vocabulary of {self.vocab_size} tokens."
            raise bad_setting("eos_token_id", self.eos_token_id, why)
        eps = self.layer_norm_eps
        if as_finite(eps) is None or not 0 < eps < 1:
            raise bad_setting("layer_norm_eps", eps, "It must be a number between 0 and 1.")

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
            raise bad_setting(name, settings[name], "A recurrent text encoder has no such setting.")
        for name in sorted(known - settings.keys() - {"layer_norm_eps"}):
            raise bad_setting(name, None, "It is missing.")
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


class RecurrentTextEmbeddings(nn.Module):
    """Token embedding: ids (B, T) -> (B, T, D). No positions are added: the order is in reading."""

    def __init__(self, config: RecurrentTextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        return self.token_embedding(ids)


class RecurrentTextModel(nn.Module):
    """Embeddings, layers and final LayerNorm, named as in CLIP's encoder."""

    def __init__(self, config: RecurrentTextConfig) -> None:
        super().__init__()
        self.embeddings = RecurrentTextEmbeddings(config)
        self.layers = nn.ModuleList(
            RecurrentTextLayer(config) for _ in range(config.num_hidden_layers)
        )
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class RecurrentTextEncoder(Component):
    """A text encoder of RNN or LSTM cells: ids (B, T) -> TextEncoding, as CLIPTextEncoder gives.

    Each token knows itself and those before it, as under CLIP's causal mask, but through a state
    that is carried along.
    """

    Config = RecurrentTextConfig
    WEIGHTS_NAME: ClassVar[str] = "model"
    PUBLISHED_CLASSES = (ARCHITECTURE,)

    config: RecurrentTextConfig

    def __init__(self, config: RecurrentTextConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = RecurrentTextModel(config)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> TextEncoding:
        """Encode token ids (B, T); `mask` (B, T) is 0 at padding, which no token reads.

        Raises:
            UsageError: as CLIPTextEncoder.
        """
        vocabulary = self.text_model.embeddings.token_embedding.num_embeddings
        check_ids(ids, mask, vocabulary, self.config.max_position_embeddings)
        states = [self.text_model.embeddings(ids)]  #                     (B, T, D)
        for layer in self.text_model.layers:
            states.append(layer(states[-1], mask))
        last = self.text_model.final_layer_norm(states[-1])
        rows = torch.arange(ids.shape[0], device=ids.device)
        # learned words have ids behind the vocabulary, and are never the end of the text
        words = ids.where(ids < self.config.vocab_size, 0)
        pooled = last[rows, end_of_text(words, self.config.eos_token_id)]  # (B, D)
        return TextEncoding(last, tuple(states), pooled)

    def skip(self, encoding: TextEncoding, clip_skip: int) -> Tensor:
        """The text (B, T, D) with the last `clip_skip` layers left out, as CLIPTextEncoder.skip."""
        check_clip_skip(clip_skip, self.config.num_hidden_layers)
        return self.text_model.final_layer_norm(encoding.hidden_states[-(clip_skip + 1)])


TextEncoder = CLIPTextEncoder | RecurrentTextEncoder


def load_text_encoder(folder: str | Path, **where: Any) -> TextEncoder:
    """The text encoder of a folder, of whichever kind its config names; `where`: device, dtype.

    Raises:
        FileError: the folder holds neither, or a damaged one.
    """
    path = Path(folder) / "config.json"
    recurrent = read_json(path).get("architectures") == [ARCHITECTURE]
    kind = RecurrentTextEncoder if recurrent else CLIPTextEncoder
    return kind.from_pretrained(folder, **where)
