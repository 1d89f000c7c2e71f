"""A model: its parts together, each of them a plain attribute that may be replaced."""

from __future__ import annotations

from typing import Any, Self

import torch

from sdcore.checkpoint.defaults import ModelDefaults
from sdcore.checkpoint.kind import ModelKind, decide_kind
from sdcore.checkpoint.parts import NETWORKS, PARTS, TEXT_ENCODERS
from sdcore.files.component import Component
from sdcore.image.autoencoder import Autoencoder
from sdcore.text.encoder import CLIPTextEncoder
from sdcore.text.tokenizer import Tokenizer
from sdcore.unet.unet import UNet

Reader = tuple[Tokenizer, CLIPTextEncoder]


class Model:
    """The parts of Stable Diffusion 1.x, 2.x, XL, or the embedded model.

    `tokenizer_2` and `text_encoder_2` are None except in SDXL; its refiner has these alone.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        text_encoder: CLIPTextEncoder | None,
        unet: UNet,
        autoencoder: Autoencoder,
        scheduler: Any,
        *,
        second_reader: Reader | None = None,
        defaults: ModelDefaults | None = None,
    ) -> None:
        self.tokenizer, self.text_encoder = tokenizer, text_encoder
        self.tokenizer_2, self.text_encoder_2 = second_reader or (None, None)
        self.unet, self.autoencoder, self.scheduler = unet, autoencoder, scheduler
        self.defaults = defaults or ModelDefaults()

    @classmethod
    def of(cls, model: Model) -> Self:
        """The same parts as a `cls`."""
        made = cls.__new__(cls)
        made.__dict__.update(vars(model))
        return made

    @property
    def readers(self) -> list[Reader]:
        """The tokenizers and text encoders that there are."""
        pairs = (self.tokenizer, self.text_encoder), (self.tokenizer_2, self.text_encoder_2)
        return [(tokenizer, encoder) for tokenizer, encoder in pairs if tokenizer and encoder]

    @property
    def kind(self) -> ModelKind:
        """What kind of model these parts make. UsageError where they do not belong together."""
        encoders = {name: self.part(name) for name in TEXT_ENCODERS}
        text = {name: encoder.config for name, encoder in encoders.items() if encoder is not None}
        return decide_kind(self.unet.config, text, self.autoencoder.latent_channels)

    def part(self, name: str) -> Any:
        """The part that diffusers' folders call so, see `PARTS`; None where there is none."""
        return getattr(self, PARTS[name].attribute)

    @property
    def networks(self) -> dict[str, Component]:
        """The networks that there are, by their names in `PARTS`."""
        found = {name: self.part(name) for name in NETWORKS}
        return {name: network for name, network in found.items() if network is not None}

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.unet.parameters()).dtype

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or convert every network in place, as `torch.nn.Module.to` does."""
        for network in self.networks.values():
            network.to(*args, **kwargs)
        return self
