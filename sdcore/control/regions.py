"""Regions: a prompt of its own for each part of the picture.

    out = Σ mask_r · attend(q, k_r, v_r),    Σ mask_r = 1 at every place

The texts of the regions reach the layers as one long text: `prompt` joins them with BREAK, which in
the web UI's dialect begins a new chunk of tokens, each encoded on its own. The control cuts k and v
into the chunks of each region and lets every place of the picture read the text of its own.

Shapes: B rows, H heads, N image tokens, T text tokens of all regions, d head width, R regions and
one for the rest of the picture, h w token grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sdcore.attention import Attend, Control, Site
from sdcore.control.run_control import Run, RunControl, not_begun
from sdcore.errors import UsageError
from sdcore.prompt.text import BREAK
from sdcore.size import Box, check_box
from sdcore.text.tokenizer import Tokens
from sdcore.torch_state import with_own_torch_state

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdcore.diffusion.steps import Step

_FINE = 4  # masks are softened on a grid this many times as fine as the latents
_OVERLAP = 1.02  # two regions that only touch share cells of the grid, whose parts sum to 1


@dataclass(frozen=True)
class Region:
    """A part of the picture and what is to be there.

    Attributes:
        prompt: of the region alone.
        box: left, top, right, bottom as parts of the picture, 0 to 1.
        mask: in place of a box: a grey PIL image, or a tensor (H, W) from 0 to 1, of the picture's
            shape; white belongs to the region.
        negative_prompt: what to keep away from there; "" is the general one.
    """

    prompt: str
    box: Box | None = None
    mask: Image | Tensor | None = None
    negative_prompt: str = ""

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            why = "Nothing says what is to be there."
            raise UsageError("A region has no prompt.", why, "Give it one, or leave it out.")
        if (self.box is None) == (self.mask is None):
            raise UsageError(
                f"The region {self.prompt!r:.80} has {'no' if self.box is None else 'two'} places.",
                "Its place is a box or a mask.",
                "Give it one of them.",
            )
        if self.box is not None:
            check_box(self.box, f"the region {self.prompt!r:.80}")

    def raster(self, h: int, w: int) -> Tensor:
        """How much of each cell of a grid belongs to the region: (h, w), 0 to 1."""
        if self.box is not None:
            left, top, right, bottom = self.box
            return _covered(top, bottom, h)[:, None] * _covered(left, right, w)[None]
        mask = _mask_values(self.mask)
        return F.adaptive_avg_pool2d(mask[None, None], (h, w))[0, 0]


class Regions(RunControl):
    """Lets each part of the picture read its own prompt.

        regions = Regions("a meadow", [Region("a fox", box=(0, 0, 0.5, 1))])
        pipe(regions.prompt, dialect="a1111", control=regions)

    Args:
        prompt: of the rest of the picture, and by `base` of all of it.
        soft: width over which a region fades into the next, as a part of the picture.
        base: 0 to 1, how much the regions read `prompt` in place of their own.
        negative_prompt: the general one; what is in `Region.negative_prompt` comes in its place.
        prompts: of the rest of the picture in each row of a batch, where they differ; `prompt` is
            the first of them.

    Raises:
        UsageError: no region, an empty one, two that overlap, a wrong number.
    """

    @with_own_torch_state
    def __init__(
        self,
        prompt: str,
        regions: Sequence[Region],
        *,
        soft: float = 0.1,
        base: float = 0.2,
        negative_prompt: str = "",
        prompts: Sequence[str] = (),
    ) -> None:
        if not regions:
            why = "Without one this is an ordinary run."
            raise UsageError("There is no region.", why, "Give at least one.")
        for name, value, most in (("soft", soft, 0.5), ("base", base, 1.0)):
            if not 0 <= value <= most:
                raise UsageError(f"{name} is {value!r}.", f"It is 0 to {most:g}.", "Use 0.1.")
        self.texts = [prompt, *(region.prompt for region in regions)]
        self._rows = [[each, *self.texts[1:]] for each in prompts or (prompt,)]
        self.regions, self.soft, self.base = tuple(regions), soft, base
        self._negatives = [negative_prompt, *(r.negative_prompt for r in regions)]
        self._slices: list[slice] = []
        self._fine: Tensor | None = None  # (R, h, w), without the rest of the picture
        self._masks: dict[tuple[int, int], Tensor] = {}
        self._dtype = torch.float32  # of what the run attends with
        self._negative: _NegativeRegions | None = None
        if any(self._negatives[1:]):
            own = [text or negative_prompt for text in self._negatives[1:]]
            self._negative = _NegativeRegions(self, len(own) + 1)
            self._negatives = [negative_prompt, *own]
        # boxes are compared before anything is loaded; masks need the picture's size
        _check_apart(self.regions, torch.stack([r.raster(64, 64) for r in self.regions]))

    @property
    def prompt(self) -> str:
        """What to paint: the prompts of the picture and of each region."""
        return BREAK.join(self.texts)

    @property
    def negative_prompt(self) -> str:
        """What to keep away from: the general one, and one for each region if any has its own."""
        return self._negatives[0] if self._negative is None else BREAK.join(self._negatives)

    @property
    def negative(self) -> RunControl | None:
        return self._negative

    def begin(self, run: Run) -> None:
        self._slices = _slices_of_rows(run, self._rows)
        h, w = run.grid
        for region in self.regions:
            _check_shape(region, h, w)
        fine = torch.stack([region.raster(h * _FINE, w * _FINE) for region in self.regions])
        _check_apart(self.regions, fine)
        fine = _soften(fine, self.soft * min(h, w) * _FINE)
        self._fine, self._dtype = fine.to(run.device), run.dtype
        self._masks.clear()

    def at(self, step: Step) -> Control:
        return _ReadsRegions(self, self._slices)

    def masks(self, grid: tuple[int, int]) -> Tensor:
        """How much each place reads each text: (1 + R, h, w), the rest first; sums to 1.

        Raises:
            UsageError: no run has begun, and the masks may be drawings of any size.
        """
        if self._fine is None:
            raise not_begun(self)
        if grid not in self._masks:
            own = F.adaptive_avg_pool2d(self._fine, grid) * (1 - self.base)
            masks = torch.cat([1 - own.sum(dim=0, keepdim=True), own])
            self._masks[grid] = masks.to(self._dtype)
        return self._masks[grid]


class _NegativeRegions(RunControl):
    """The same places, for the rows of the negative prompt."""

    def __init__(self, regions: Regions, texts: int) -> None:
        self.regions, self.texts = regions, texts
        self._slices: list[slice] = []

    def begin(self, run: Run) -> None:
        self._slices = _equal_slices(run.text_tokens, self.texts)

    def at(self, step: Step) -> Control:
        return _ReadsRegions(self.regions, self._slices)


@dataclass(frozen=True)
class _ReadsRegions:
    """Each place reads the text of its region; `slices` of T are the texts."""

    regions: Regions
    slices: Sequence[slice]

    def __call__(
        self, site: Site, grid: tuple[int, int], q: Tensor, k: Tensor, v: Tensor, attend: Attend
    ) -> Tensor:
        if site.kind == "self":
            return attend(q, k, v)
        out = torch.zeros((), dtype=v.dtype, device=v.device)
        masks = self.regions.masks(grid).to(q)
        for text, mask in zip(self.slices, masks, strict=True):
            text_mask = attend.mask
            if text_mask is not None and text_mask.shape[-1] > 1:
                text_mask = text_mask[..., text]
            read = attend(q, k[:, :, text], v[:, :, text], mask=text_mask)
            out = out + mask.flatten()[:, None] * read  #  (N, 1) * (B, H, N, d)
        return out


def _slices_of_rows(run: Run, rows: Sequence[Sequence[str]]) -> list[slice]:
    """Which of the T tokens are whose, which is the same in all rows of a batch."""
    found = [_text_slices(run, texts, row) for row, texts in enumerate(rows)]
    if any(slices != found[0] for slices in found):
        raise UsageError(
            "The prompts are of different lengths.",
            "What is painted at once with regions has them at the same places of the text.",
            "Paint them one after the other.",
        )
    return found[0]


def _text_slices(run: Run, texts: Sequence[str], row: int) -> list[slice]:
    """Which of the T tokens of a row are whose: the chunks from each text's first word on."""
    if run.tokens is None:
        return _equal_slices(run.text_tokens, len(texts))
    chunk = _chunk_length(run.tokens)
    starts, letters = [0], 0
    for text in texts[:-1]:
        letters += len(text) + len(BREAK)
        first = [s.positions for s in run.tokens.spans[row] if s.start >= letters and s.positions]
        starts.append(first[0][0] // chunk * chunk if first else starts[-1])
    if len(set(starts)) < len(texts) or run.tokens.ids.shape[1] != run.text_tokens:
        raise UsageError(
            "The prompt is not divided into the texts of the regions.",
            f"{len(texts)} texts begin at the tokens {starts} of {run.text_tokens}.",
            "Paint `regions.prompt` in a dialect that knows BREAK, such as a1111.",
        )
    ends = [*starts[1:], run.text_tokens]
    return [slice(start, end) for start, end in zip(starts, ends, strict=True)]


def _equal_slices(length: int, texts: int) -> list[slice]:
    if length % texts:
        raise UsageError(
            f"The text of {length} tokens cannot be divided into those of {texts} regions.",
            "Each of them must be one chunk of tokens.",
            "Shorten the prompts of the regions; paint `regions.prompt`.",
        )
    one = length // texts
    return [slice(i * one, (i + 1) * one) for i in range(texts)]


def _chunk_length(tokens: Tokens) -> int:
    """How many tokens the text encoder reads together: from one start token to the next."""
    starts = (tokens.ids[0] == tokens.ids[0, 0]).nonzero().flatten()
    return int(starts[1]) if len(starts) > 1 else tokens.ids.shape[1]


def _check_shape(region: Region, h: int, w: int) -> None:
    """UsageError unless a region's mask has the shape of a picture whose latents are (h, w)."""
    if region.box is not None:
        return
    height, width = _mask_values(region.mask).shape
    if height * w != width * h or height < h:
        raise UsageError(
            f"The mask of the region {region.prompt!r:.80} is {width}x{height}.",
            f"The latents of the picture are {w}x{h}, of another shape or finer.",
            "Make it as wide and as high as the picture.",
        )


def _check_apart(regions: Sequence[Region], rasters: Tensor) -> None:
    """UsageError if a region is empty or two overlap; rasters (R, h, w)."""
    for region, raster in zip(regions, rasters, strict=True):
        if raster.max() <= 0:
            why = "No part of the picture belongs to it."
            raise UsageError(f"The region {region.prompt!r:.80} is empty.", why, "Make it larger.")
    for i, one in enumerate(rasters):
        for j in range(i + 1, len(rasters)):
            if (one + rasters[j]).max() > _OVERLAP:
                both = float(torch.minimum(one, rasters[j]).mean())
                raise UsageError(
                    f"The regions {regions[i].prompt!r:.60} and {regions[j].prompt!r:.60} overlap.",
                    f"{both:.1%} of the picture belongs to both.",
                    "Let them touch at most; `soft` makes them fade into one another.",
                )


def _covered(start: float, end: float, cells: int) -> Tensor:
    """How much of each of some equal cells of 0..1 lies between start and end."""
    edges = torch.linspace(0, 1, cells + 1, dtype=torch.float64)
    inside = edges[1:].clamp(max=end) - edges[:-1].clamp(min=start)
    return (inside.clamp(min=0) * cells).clamp(max=1).float()


def _mask_values(mask: Image | Tensor | None) -> Tensor:
    """A mask as (H, W) float32, 0 to 1."""
    if isinstance(mask, Tensor):
        if mask.ndim != 2 or not 0 <= float(mask.min()) <= float(mask.max()) <= 1:
            what = f"A region's mask is a tensor of shape {tuple(mask.shape)}."
            raise UsageError(what, "It must be (H, W), from 0 to 1.", "Or pass a grey image.")
        return mask.detach().float().cpu()
    assert mask is not None
    return torch.as_tensor(np.array(mask.convert("L"), dtype=np.float32) / 255)


def _soften(rasters: Tensor, width: float) -> Tensor:
    """Regions that fade over a width in cells: two moving averages, so without corners."""
    size = round(width / 2) * 2 + 1
    for _ in range(2 if size > 1 else 0):
        padded = F.pad(rasters[None], (size // 2,) * 4, mode="replicate")
        rasters = F.avg_pool2d(padded, size, stride=1)[0]
    return rasters
