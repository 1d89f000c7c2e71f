"""What kind of model this is, decided in one place from the settings of its parts.

SD 1.x, 2.x    one text encoder, read at its last layer
SDXL           two text encoders, read at the layer before their last, and the second one's
               pooled text; the UNet reads six numbers about the picture's size
its refiner    the second text encoder alone; five numbers, the last an aesthetic score
inpainting     any of these whose UNet also reads a mask and the masked picture
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sdcore.errors import UsageError
from sdcore.text.config import CLIPTextConfig
from sdcore.unet.config import UNetConfig

# Width of the text that a UNet reads -> what people call such models.
FAMILIES = {768: "SD 1.x", 1024: "SD 2.x", 1280: "the SDXL refiner", 2048: "SDXL"}
_BASE_NUMBERS, _REFINER_NUMBERS = 6, 5


@dataclass(frozen=True)
class ModelKind:
    """What distinguishes the models that can be run.

    Attributes:
        text_encoders: those that there are, by their names in `PARTS`, in the order in which their
            states are joined.
        penultimate: the text is read at the layer before the last, without the LayerNorm that
            follows the last (Podell et al. 2023, arXiv:2307.01952); else at the last, with it.
        pooled_text: the UNet reads the last text encoder's pooled text.
        size_numbers: how many numbers about the picture's size the UNet reads: 0, SDXL's 6, or its
            refiner's 5.
        text_width: of the states that the UNet reads.
        channels: that the UNet reads.
        latent_channels: of the autoencoder.
    """

    text_encoders: tuple[str, ...]
    penultimate: bool
    pooled_text: bool
    size_numbers: int
    text_width: int
    channels: int
    latent_channels: int

    @property
    def refiner(self) -> bool:
        """Whether it refines what another model began: its UNet reads an aesthetic score."""
        return self.size_numbers == _REFINER_NUMBERS

    @property
    def reads_mask(self) -> bool:
        """Whether the UNet reads a mask and the masked picture's latents besides the latents."""
        return self.channels == 2 * self.latent_channels + 1

    @property
    def family(self) -> str:
        """What people call it, for messages."""
        several = len(self.text_encoders) > 1
        unknown = f"a model with {'two text encoders' if several else 'a text encoder'}"
        return FAMILIES.get(self.text_width, unknown)

    @property
    def pipeline_class(self) -> str:
        """diffusers' pipeline for such a model, which decides what opens its folder there."""
        if self.refiner:
            return "StableDiffusionXLImg2ImgPipeline"
        return f"StableDiffusion{'XL' * self.pooled_text}{'Inpaint' * self.reads_mask}Pipeline"


def decide_kind(
    unet: UNetConfig, text_encoders: Mapping[str, CLIPTextConfig], latent_channels: int
) -> ModelKind:
    """The kind of a model with these settings.

    Args:
        text_encoders: by their names in `PARTS`.

    Raises:
        UsageError: the UNet reads pooled text, and no text encoder gives any that fits.
    """
    pooled_text = unet.addition_embed_type is not None
    return ModelKind(
        text_encoders=tuple(text_encoders),
        penultimate=pooled_text,
        pooled_text=pooled_text,
        size_numbers=_size_numbers(unet, text_encoders) if pooled_text else 0,
        text_width=unet.levels()[-1].text_width,
        channels=unet.in_channels,
        latent_channels=latent_channels,
    )


def _size_numbers(unet: UNetConfig, text_encoders: Mapping[str, CLIPTextConfig]) -> int:
    """Each number becomes `addition_time_embed_dim` waves, which follow the pooled text."""
    length, waves = unet.projection_class_embeddings_input_dim, unet.addition_time_embed_dim
    assert length is not None and waves is not None, "UNetConfig has checked this"
    last = list(text_encoders.values())[-1] if text_encoders else None
    pooled = last.projection_dim if last is not None and last.with_projection else 0
    for numbers in (_BASE_NUMBERS, _REFINER_NUMBERS):
        if pooled and length == pooled + numbers * waves:
            return numbers
    raise UsageError(
        "The UNet and the text encoders do not belong together.",
        f"Besides the text the UNet reads {length} numbers: the pooled text, which has {pooled}, "
        f"and {waves} for each of {_BASE_NUMBERS} or {_REFINER_NUMBERS} numbers about the size.",
        "Use the text encoders that the UNet was trained with.",
    )
