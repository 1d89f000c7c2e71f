"""What a job asks for beside the model: LoRAs, learned words, regions, a second pass.

A name in a job is a name to look for among files that the user pointed to, never a path.
"""

from __future__ import annotations

from dataclasses import dataclass

from sdcore.checks import as_finite, has_type
from sdcore.errors import UsageError
from sdcore.files.limits import LORA_WEIGHT
from sdcore.size import Box, Size, check_box


@dataclass(frozen=True)
class LoraSettings:
    """A LoRA.

    Attributes:
        name: the file's name without folder and suffix.
        unet, text: how much of it, in the UNet and in the text encoders.
        hash: SHA-256 of the file's tensors, see `sdcore.files.hashes`; "" is not known.
        blocks: block weights, see `sdcore.adapters.lora_blocks`; "" is all blocks alike.

    Raises:
        UsageError: a weight is no number, or so large that nothing is left of the model.
    """

    name: str
    unet: float
    text: float
    hash: str = ""
    blocks: str = ""

    def __post_init__(self) -> None:
        for weight in (self.unet, self.text):
            if as_finite(weight, -LORA_WEIGHT, LORA_WEIGHT) is None:
                raise UsageError(
                    f"The weight of the LoRA {self.name!r:.80} is {weight!r:.40}.",
                    f"It must be a number from -{LORA_WEIGHT} to {LORA_WEIGHT}.",
                    "Use 1 for a LoRA as it was trained.",
                )


@dataclass(frozen=True)
class EmbeddingSettings:
    """A textual inversion: its file's name without suffix, SHA-256 of the file."""

    name: str
    hash: str = ""


@dataclass(frozen=True)
class RegionSettings:
    """A part of the picture and what is to be there, see `sdcore.Regions`.

    Attributes:
        prompt: of the region alone.
        box: left, top, right, bottom as parts of the picture, 0 to 1.
        negative_prompt: what to keep away from there; "" is the job's.

    Raises:
        UsageError: it has no prompt, or a box that is empty or outside.
    """

    prompt: str
    box: Box
    negative_prompt: str = ""

    def __post_init__(self) -> None:
        texts = self.prompt, self.negative_prompt
        if not all(has_type(text, str) for text in texts) or not self.prompt.strip():
            why = "Nothing says what is to be there."
            raise UsageError("A region has no prompt.", why, "Give it one, or leave it out.")
        object.__setattr__(self, "box", check_box(self.box, f"the region {self.prompt!r:.80}"))


@dataclass(frozen=True)
class HiresSettings:
    """A second pass at a higher resolution; the job's own size is that of the first pass.

    `steps` None is as many as in the first pass; `upscale` is `pixels` (the decoded picture by
    Lanczos, which keeps its edges) or `latents` (bilinear, which leaves it soft, so that the second
    pass draws more anew: the web UI's "Latent").
    """

    width: int
    height: int
    strength: float
    steps: int | None = None
    upscale: str = "pixels"

    @property
    def size(self) -> Size:
        """Of the second pass."""
        return Size(self.width, self.height)
