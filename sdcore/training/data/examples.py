"""Examples: the captions, latents, masks and sizes of a micro-batch, by its number.

Shapes: B samples, C channels, h w latent grid, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from sdcore.size import SizeConditioning
from sdcore.training.data.buckets import Fit
from sdcore.training.data.cache import LatentCache
from sdcore.training.data.captions import caption_of, full_caption
from sdcore.training.data.order import Order, Sample
from sdcore.training.data.pictures import mask_pixels, pixels
from sdcore.training.data.scan import Progress
from sdcore.training.data.scanned import Scan, Scanned
from sdcore.training.state import generator


@dataclass(frozen=True)
class ExampleBatch:
    """A micro-batch, ready for the model; one of `latents` and `pixels` is None.

    captions: as the model reads them.
    latents: (B, C, h, w), what the cache's `encode` gave.
    pixels:  (B, 3, H, W) in [-1, 1].
    masks:   (B, 1, h, w) in [0, 1], how much of the loss counts; None where no picture has one.
    weights: (B,) of each sample's loss.
    sizes:   what SDXL reads about each picture's size.
    names:   of the pictures, for messages.
    """

    captions: tuple[str, ...]
    latents: Tensor | None
    pixels: Tensor | None
    masks: Tensor | None
    weights: Tensor
    sizes: tuple[SizeConditioning, ...]
    names: tuple[str, ...]

    def to(self, device: torch.device) -> ExampleBatch:
        """The same with its tensors on a device."""
        names = ("latents", "pixels", "masks", "weights")
        there = {name: getattr(self, name) for name in names}
        return replace(self, **{n: t.to(device) for n, t in there.items() if t is not None})

    @property
    def time_ids(self) -> Tensor:
        """What SDXL's UNet reads about sizes: (B, 6)."""
        numbers = [size.numbers for size in self.sizes]
        return torch.tensor(numbers, dtype=torch.float32, device=self.weights.device)


class Examples:
    """The micro-batches of a run: each a function of (seed, number), whoever makes it and when.

    Args:
        scan: what the order was made of.
        seed: of the draws: captions, cuts, flips.
        latents: None gives pixels; so does a random crop, whose latents are never the same.
        workers: threads that prepare the batches that are likely to be next.
    """

    def __init__(
        self,
        scan: Scan,
        order: Order,
        seed: int,
        latents: LatentCache | None = None,
        workers: int = 0,
    ) -> None:
        self.scan, self.order, self.seed = scan, order, seed
        random = any(picture.item.look.crop == "random" for picture in scan.pictures)
        self.cache = None if random else latents
        self._masked = any(p.item.mask or p.item.look.alpha_mask for p in scan.pictures)
        self._pool = ThreadPoolExecutor(workers) if workers else None
        self._ahead = 2 * workers
        self._started: dict[int, Future[ExampleBatch]] = {}
        self._last: int | None = None

    def fill(self, progress: Progress | None = None, part: int = 0, parts: int = 1) -> None:
        """Have the latents of all pictures in the cache; as `LatentCache.fill`."""
        if self.cache is not None:
            self.cache.fill([*self.scan.pictures, *self.scan.held_out], progress, part, parts)

    def batch(self, number: int) -> ExampleBatch:
        """The micro-batch of this number. FileError where a picture of it cannot be read."""
        if self._pool is None:
            return self._make(number)
        stride = number - self._last if self._last is not None and number > self._last else 1
        self._last = number
        wanted = range(number, number + stride * (self._ahead + 1), stride)
        for other in [n for n in self._started if n not in wanted]:
            self._started.pop(other).cancel()
        for each in wanted:
            if each not in self._started:
                self._started[each] = self._pool.submit(self._make, each)
        return self._started.pop(number).result()

    def held_out(self) -> list[ExampleBatch]:
        """The pictures kept for validation, one in each batch; nothing about them is drawn."""
        batches: list[ExampleBatch] = []
        for index, picture in enumerate(self.scan.held_out):
            sample = Sample(index, 0, 0, index)
            text = full_caption(picture.item)
            batches.append(self._assemble([(picture, sample, picture.fit, False, text)]))
        return batches

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _make(self, number: int) -> ExampleBatch:
        rows: list[_Row] = []
        for sample in self.order.batch(number).samples:
            picture = self.scan.pictures[sample.index]
            fit, flip = self._cut(picture, sample)
            options = picture.item.options
            text = caption_of(picture.item, options, self.seed, sample.epoch, sample.number)
            rows.append((picture, sample, fit, flip, text))
        return self._assemble(rows)

    def _cut(self, picture: Scanned, sample: Sample) -> tuple[Fit, bool]:
        """Where a picture is cut for a sample, and whether it is flipped."""
        look, fit = picture.item.look, picture.fit
        if look.crop == "random":
            draw = generator(self.seed, "crop", sample.epoch, sample.number)
            across, down = map(float, torch.rand(2, generator=draw))
            fit = fit.moved(across, down)
        draw = generator(self.seed, "flip", sample.epoch, sample.number)
        return fit, look.flip and torch.rand((), generator=draw).item() < 0.5

    def _assemble(self, rows: Sequence[_Row]) -> ExampleBatch:
        latents = images = masks = None
        if self.cache is not None:
            latents = torch.stack([self.cache.latents(p, fit, flip) for p, _, fit, flip, _ in rows])
        else:
            images = torch.stack([pixels(p, fit, flip) for p, _, fit, flip, _ in rows])
        if self._masked:
            whole = torch.stack([mask_pixels(p, fit, flip) for p, _, fit, flip, _ in rows])
            masks = F.avg_pool2d(whole, self.scan.factor)  #  (B, 1, H, W) -> (B, 1, h, w)
        prior = self.scan.settings.prior
        weight = prior.weight if prior is not None else 1.0
        return ExampleBatch(
            captions=tuple(text for *_, text in rows),
            latents=latents,
            pixels=images,
            masks=masks,
            weights=torch.tensor([weight if p.item.prior else 1.0 for p, *_ in rows]),
            sizes=tuple(_size(p, fit, flip) for p, _, fit, flip, _ in rows),
            names=tuple(p.item.name for p, *_ in rows),
        )


_Row = tuple[Scanned, Sample, Fit, bool, str]


def _size(picture: Scanned, fit: Fit, flip: bool) -> SizeConditioning:
    """What SDXL reads: of a flipped picture, where the cut lies in the flipped one."""
    x, y = fit.crop
    left = fit.resized.width - fit.bucket.width - x if flip else x
    return SizeConditioning(
        original=picture.size.height_width, crop=(y, left), target=fit.bucket.height_width
    )
