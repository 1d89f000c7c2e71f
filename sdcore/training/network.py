"""The networks of a model as one module: from captions, noisy latents and times to an answer.

Shapes: B images, C channels, h w latent grid, T text tokens, D text width, Dp pooled width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sdcore.attention import Control
from sdcore.checkpoint.kind import ModelKind
from sdcore.checkpoint.model import Model
from sdcore.errors import NonFiniteError, warning_filter
from sdcore.text.recurrent_encoder import TextEncoder
from sdcore.training.data.cache import TextCache
from sdcore.unet.unet import AddedConditions, UNet

_KEPT = 4096  # captions whose states are in memory


class Text(NamedTuple):
    """What a UNet reads of captions: states (B, T, D), and pooled (B, Dp) or None."""

    states: Tensor
    pooled: Tensor | None


class Network(nn.Module):
    """A model's UNet and text encoders; parameters are called as in diffusers' folders.

    Args:
        model: its networks are used, not copied.
    """

    unet: UNet

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.unet = model.unet
        self.kind: ModelKind = model.kind
        for name in self.kind.text_encoders:
            self.add_module(name, model.part(name))

    @property
    def text_encoders(self) -> list[TextEncoder]:
        """Those that there are, in the order in which their states are joined."""
        encoders = (getattr(self, name) for name in self.kind.text_encoders)
        return [encoder for encoder in encoders if isinstance(encoder, TextEncoder)]

    @property
    def trains_text(self) -> bool:
        """Whether a text encoder changes, so that what it says must be computed at each step."""
        return any(p.requires_grad for encoder in self.text_encoders for p in encoder.parameters())

    def forward(
        self,
        latents: Tensor,
        times: Tensor | int,
        text: Text | Sequence[Tensor],
        time_ids: Tensor | None = None,
        control: Control | None = None,
    ) -> Tensor:
        """The UNet's answer (B, C, h, w).

        Args:
            text: what the UNet reads, or ids (B, T) for each text encoder, which then read.
            time_ids: (B, 6), SDXL's sizes.
        """
        read = text if isinstance(text, Text) else self.read(text)
        added = None
        if read.pooled is not None:
            assert time_ids is not None, "SDXL reads sizes"
            added = AddedConditions(read.pooled, time_ids)
        return self.unet(latents, times, read.states, control, added=added)

    def read(self, ids: Sequence[Tensor]) -> Text:
        """What the UNet reads of ids (B, T) for each text encoder."""
        read = [encoder(each) for encoder, each in zip(self.text_encoders, ids, strict=True)]
        states = [
            one.hidden_states[-2] if self.kind.penultimate else one.last_hidden_state
            for one in read
        ]
        pooled = read[-1].pooled if self.kind.pooled_text else None
        return Text(torch.cat(states, dim=-1), pooled)


class CaptionReader:
    """Captions to what `Network` takes: ids, or states where no text encoder is trained.

    States of the newest captions stay in memory, those of all in a cache on disk. Each caption is
    read alone, so that no other one changes its bits. One that is longer than a text encoder reads
    is cut; the scan of the data has said so.

    Args:
        model: the tokenizers.
        network: the text encoders.
        cache: of their states.
    """

    def __init__(self, model: Model, network: Network, cache: TextCache | None = None) -> None:
        self.tokenizers = [tokenizer for tokenizer, _ in model.readers]
        self.network, self.keeps, self.cache = network, not network.trains_text, cache
        self._known: dict[str, Text] = {}

    def __call__(self, captions: Sequence[str], device: torch.device) -> Text | list[Tensor]:
        if not self.keeps:
            return self.ids(captions, device)
        for caption in captions:
            if caption not in self._known:
                self._known[caption] = self._read(caption, device)
        rows = [self._known[caption] for caption in captions]
        while len(self._known) > _KEPT:
            del self._known[next(iter(self._known))]
        pooled = [row.pooled for row in rows if row.pooled is not None]
        return Text(torch.cat([row.states for row in rows]), torch.cat(pooled) if pooled else None)

    def _read(self, caption: str, device: torch.device) -> Text:
        """What the UNet reads of one caption, out of the cache or computed."""
        ids = self.ids([caption], device)

        def make() -> dict[str, Tensor]:
            with torch.no_grad():
                read = self.network.read(ids)
            if not torch.isfinite(read.states).all():
                raise NonFiniteError(
                    "The text encoder gave NaN or infinity.",
                    f"It happened for the caption {caption!r:.80}.",
                    "Use run.precision=no, or check the model's file.",
                )
            return {name: tensor for name, tensor in read._asdict().items() if tensor is not None}

        rows: list[list[int]] = [each[0].tolist() for each in ids]  # pyright: ignore[reportUnknownMemberType]
        made = make() if self.cache is None else self.cache.states(rows, make)
        kept = {name: tensor.to(device) for name, tensor in made.items()}
        return Text(kept["states"], kept.get("pooled"))

    def ids(self, captions: Sequence[str], device: torch.device) -> list[Tensor]:
        """Token ids (B, T) for each text encoder."""
        with warning_filter("ignore"):
            return [tokenizer(list(captions)).ids.to(device) for tokenizer in self.tokenizers]
