"""One text encoder of a model with its tokenizer: chunks to states, each chunk once.

Shapes: n chunks, L positions of a chunk, D text width.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdcore.checks import as_int
from sdcore.errors import NonFiniteError, UsageError

if TYPE_CHECKING:
    from sdcore.text.encoder import TextEncoding
    from sdcore.text.recurrent_encoder import TextEncoder
    from sdcore.text.tokenizer import Tokenizer


class Encoder:
    """A tokenizer and its text encoder, for the prompts of one run.

    Args:
        penultimate: the text is read at the layer before the last, without the LayerNorm that
            follows the last; else at the last.
        pooled: the UNet reads this encoder's pooled text too.
        clip_skip: how many layers before that one are left out, counted as in diffusers.
        name: for errors.

    Raises:
        UsageError: there are not so many layers to leave out.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        text_encoder: TextEncoder,
        *,
        penultimate: bool = False,
        pooled: bool = False,
        clip_skip: int = 0,
        name: str = "text encoder",
    ) -> None:
        self.tokenizer, self.text_encoder = tokenizer, text_encoder
        self.penultimate, self.pooled, self.name = penultimate, pooled, name
        self.clip_skip = self._checked(clip_skip)
        self.empty = torch.tensor(tokenizer.row([]), device="cpu")  #    (L)
        self._known: dict[tuple[bytes, bytes | None], TextEncoding] = {}

    def encode(self, ids: Tensor, mask: Tensor | None = None) -> TextEncoding:
        """What the text encoder gives for chunks.

        Args:
            ids: (n, L).
            mask: (n, L), False where no token is read.

        Raises:
            NonFiniteError: NaN or infinity appeared.
        """
        key = ids.numpy().tobytes(), None if mask is None else mask.numpy().tobytes()
        if key not in self._known:
            device = next(self.text_encoder.parameters()).device
            there = None if mask is None else mask.to(device)
            encoding = self.text_encoder(ids.to(device), there)
            self._check_finite(encoding.last_hidden_state, ids)
            self._known[key] = encoding
        return self._known[key]

    def states(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """What the UNet reads of chunks (n, L), see `encode`: (n, L, D)."""
        encoding = self.encode(ids, mask)
        if self.penultimate:
            return encoding.hidden_states[-(self.clip_skip + 2)]
        if self.clip_skip == 0:
            return encoding.last_hidden_state
        return self.text_encoder.skip(encoding, self.clip_skip)

    def empty_states(self) -> Tensor:
        """What the UNet reads of the empty prompt: (1, L, D)."""
        return self.states(self.empty[None])

    def with_clip_skip(self, clip_skip: int) -> Encoder:
        """The same encoder, read at another layer; what one has encoded both know."""
        other = copy.copy(self)
        other.clip_skip = self._checked(clip_skip)
        return other

    def _checked(self, clip_skip: int) -> int:
        most = self.text_encoder.config.num_hidden_layers - self.penultimate
        if as_int(clip_skip, 0, most) is None:
            raise UsageError(
                f"clip_skip={clip_skip!r} cannot be used.",
                f"The {self.name} has layers for 0 to {most}.",
                "Use 0 for none; 1 is usual."
                if not self.penultimate
                else "Use 0 for none, which is the penultimate layer in SDXL.",
            )
        return clip_skip

    def _check_finite(self, states: Tensor, ids: Tensor) -> None:
        for row, finite in zip(ids, torch.isfinite(states).flatten(1).all(dim=1), strict=True):
            if not finite:
                raise NonFiniteError(
                    f"The {self.name} gave NaN or infinity.",
                    f"It happened for {self.tokenizer.decode(row)!r} in {states.dtype}.",
                    "Load the model in float32 or bfloat16; else its file is damaged.",
                )
