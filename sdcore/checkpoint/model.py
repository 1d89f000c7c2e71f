"""A model: its parts together, each of them a plain attribute that may be replaced."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from weakref import WeakSet

import torch

from sdcore.attention_choice import backend_of, with_attention
from sdcore.checkpoint.defaults import ModelDefaults
from sdcore.checkpoint.kind import ModelKind, decide_kind
from sdcore.checkpoint.parts import NETWORKS, PARTS, TEXT_ENCODERS
from sdcore.convolution import convolution_of, with_convolution
from sdcore.diffusion.presets import preset_of_notes
from sdcore.files.component import Component
from sdcore.image.autoencoder import Autoencoder
from sdcore.text.recurrent_encoder import TextEncoder
from sdcore.text.tokenizer import Tokenizer
from sdcore.unet.unet import UNet

Reader = tuple[Tokenizer, TextEncoder]


@dataclass(frozen=True)
class LoraOnModel:
    """A LoRA that is part of a model, see `sdcore.apply_loras`.

    Attributes:
        name: the file's, without its suffix.
        hash: SHA-256 of the file's tensors, see `sdcore.files.hashes`.
        unet, text: how much of it is used, in the UNet and in the text encoders.
        merged: it is in the weights, not computed beside them.
        unused: the file's keys that nothing in the model corresponds to.
        blocks: block weights, see `sdcore.adapters.lora_blocks`.
    """

    path: Path
    name: str
    hash: str
    unet: float
    text: float
    merged: bool
    unused: tuple[str, ...]
    blocks: str = ""


@dataclass(frozen=True)
class EmbeddingOnModel:
    """A textual inversion that is part of a model, see `sdcore.apply_embeddings`.

    Attributes:
        name: the file's, without its suffix.
        hash: SHA-256 of the file.
        word: what a prompt says for it.
        bundled: it lies in the file of a LoRA that is part of the model.
    """

    path: Path
    name: str
    hash: str
    word: str
    bundled: bool = False


class Model:
    """The parts of Stable Diffusion 1.x, 2.x, XL, or the embedded model.

    `tokenizer_2` and `text_encoder_2` are None except in SDXL; its refiner has these alone.

    Attributes:
        loras, embeddings: what has been applied to it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        text_encoder: TextEncoder | None,
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
        self.loras: tuple[LoraOnModel, ...] = ()
        self.embeddings: tuple[EmbeddingOnModel, ...] = ()
        self._sharing = _Sharing()

    @classmethod
    def of(cls, model: Model) -> Self:
        """The same parts as a `cls`."""
        made = cls.__new__(cls)
        made.__dict__.update(vars(model))
        made._sharing.models |= {model, made}
        return made

    def replace(self, **parts: Any) -> Self:
        """A model with other parts, by their names; it shares all that is not named.

        Neither model notices what is done with the other: `to` moves no weights that both have.
        """
        made = copy.copy(self)
        made.__dict__.update(parts)
        made._sharing.models |= {self, made}
        return made

    @property
    def attention(self) -> str:
        """The backend of its UNet, a name in `sdcore.BACKENDS`."""
        return backend_of(self.unet)

    def with_attention(self, name: str) -> Self:
        """A model whose UNet attends by another backend; see `sdcore.use_attention` for the names.

        Raises:
            UsageError: the name is unknown, or the backend cannot run here.
        """
        return self.replace(unet=with_attention(self.unet, name))

    @property
    def convolution(self) -> str:
        """What computes its UNet's convolutions, a name in `sdcore.convolution.CONVOLUTIONS`."""
        return convolution_of(self.unet)

    def with_convolution(self, name: str) -> Self:
        """A model whose UNet and autoencoder convolve by another backend.

        Args:
            name: torch, winograd or auto, see `sdcore.use_convolution`.

        Raises:
            UsageError: the name is unknown, or the backend cannot run here.
        """
        unet = with_convolution(self.unet, name)
        return self.replace(unet=unet, autoencoder=with_convolution(self.autoencoder, name))

    def with_preset(self, name: str) -> Self:
        """A model that is run as a few-step one where a call does not say.

        Args:
            name: turbo, lightning, hyper, lcm or tcd, see `sdcore.diffusion.presets`.

        Raises:
            UsageError: there is no such preset.
        """
        told = self.unet.config.time_cond_proj_dim is not None
        return self.replace(defaults=self.defaults.with_preset(name, told=told))

    def with_preset_of(self, notes: Mapping[str, str]) -> Self:
        """A model with the preset that a weight file's notes name; itself where they name none."""
        name = preset_of_notes(notes)
        return self if name is None else self.with_preset(name)

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
        """Move or convert every network in place, as `torch.nn.Module.to` does.

        Weights that another model has as well (see `replace`) stay where they are, and this model
        gets networks of its own.
        """
        if self._sharing.models - {self}:
            own = copy.deepcopy(
                {PARTS[name].attribute: each for name, each in self.networks.items()}
            )
            self.__dict__.update(own)
            self._sharing.models.discard(self)
            self._sharing = _Sharing()
        for network in self.networks.values():
            network.to(*args, **kwargs)
        return self


class _Sharing:
    """The models that are made of the same weights, as long as somebody has them; none is alone."""

    def __init__(self) -> None:
        self.models: WeakSet[Model] = WeakSet()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Sharing:
        return _Sharing()  # a deep copy has weights of its own
