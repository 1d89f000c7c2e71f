"""Which model a command works with, and how it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcore.app.command import tell

if TYPE_CHECKING:
    from sdcore.pipeline.text_to_image import TextToImage

PRECISIONS = ("auto", "fp32", "fp16", "bf16")
# As a picture's record names it.
PRECISION_OF_TYPE = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class ModelChoice:
    """A model and where it runs; `name` None is the embedded model.

    Attributes:
        variant, revision, offline, prediction_type, allow_extra: see `TextToImage.from_pretrained`.
        vae, text_encoders, unet: files and folders for parts from elsewhere.
        hash_model: note the hash of its weights in pictures; the embedded model's always is.
        device: auto, cpu, cuda or mps.
        precision: of the weights: auto, fp32, fp16 or bf16.
        preset: for models of few steps, see `sdcore.diffusion.presets`.
        attention: the backend of its UNet, see `sdcore.use_attention`.
        convolution: that of its UNet and autoencoder, see `sdcore.use_convolution`.
    """

    name: str | None = None
    variant: str | None = None
    revision: str | None = None
    offline: bool = False
    prediction_type: str | None = None
    vae: Path | None = None
    text_encoders: tuple[Path, ...] = ()
    unet: Path | None = None
    allow_extra: bool = False
    hash_model: bool = False
    device: str = "auto"
    precision: str | None = None
    preset: str | None = None
    attention: str | None = None
    convolution: str | None = None

    def load(self) -> TextToImage:
        """The model on its device, with what computes it chosen, which is printed."""
        import torch

        from sdcore.attention_choice import use_attention
        from sdcore.convolution import use_convolution
        from sdcore.pipeline.text_to_image import EMBEDDED, TextToImage

        device = _best_device() if self.device == "auto" else self.device
        precision = self.precision or "auto"
        if precision == "auto":
            precision = _best_precision(device, small=self.name is None)
        dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
        where: dict[str, Any] = {"dtype": dtype, "device": device}
        if self.name is not None:
            where |= {"variant": self.variant, "revision": self.revision, "offline": self.offline}
            where |= {"prediction_type": self.prediction_type, "allow_extra": self.allow_extra}
            where |= {"vae": self.vae, "unet": self.unet}
            where["text_encoder"] = list(self.text_encoders)
        pipe = TextToImage.from_pretrained(EMBEDDED if self.name is None else self.name, **where)
        if self.preset is not None:
            pipe = pipe.with_preset(self.preset)
        attention = use_attention(pipe.unet, self.attention or "auto")
        tell(f"attention: {attention.kernel} ({attention.why})")
        convolution = use_convolution(pipe.unet, self.convolution or "auto")
        use_convolution(pipe.autoencoder, self.convolution or "auto")  # which may have another type
        tell(f"convolution: {convolution.kernel} ({convolution.why})")
        return pipe

    def model_hash(self) -> str | None:
        """Of the embedded model, which is small; of others where asked for: it reads them whole."""
        from sdcore.files.hashes import weights_hash
        from sdcore.pipeline.text_to_image import EMBEDDED

        if self.name is None:
            return weights_hash(EMBEDDED)
        path = Path(self.name).expanduser()
        return weights_hash(path, self.variant) if self.hash_model else None


def _best_precision(device: str, *, small: bool) -> str:
    """fp16 on GPUs; bf16 on CPUs that multiply it well ahead of fp32, but for a small model."""
    from sdcore.machine import bfloat16_gain

    if device != "cpu" or small:
        return "fp32" if device in ("cpu", "mps") else "fp16"
    if (gain := bfloat16_gain()) < 1.4:
        return "fp32"
    tell(f"precision: bf16 (this processor multiplies it {gain:.1f} x as fast as fp32)")
    return "bf16"


def _best_device() -> str:
    """cuda where there is one, then Apple's mps, else cpu."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
