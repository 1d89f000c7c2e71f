"""Word heatmaps: where on the picture each word of the prompt is read.

    P = softmax(q kᵀ / √d);    the map of a word = Σ over its tokens j of P[:, j]

P is never computed. Attention with other values gives its columns, `attend(q, k, marks)`, where
marks (T, G) hold a 1 where a token belongs to a word, so one more fused call of the same shape per
layer is the whole cost. What is kept is a sum over heads, layers and steps, on each layer's own
grid. Start token, words, end token and padding share out the whole attention: their maps sum to 1.

The maps are those of Tang et al. 2023 (DAAM, arXiv:2210.04885), from fused kernels.

Shapes: B images, P prompts, H heads, N image tokens, T text tokens, G columns (see words.py),
d head width, h w token grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from sdcore.attention import Attend, Control, Site
from sdcore.checks import as_int
from sdcore.control.run_control import Run, RunControl, Sites, check_rows, check_window
from sdcore.errors import UsageError
from sdcore.image.overlay import lay_over
from sdcore.text.tokenizer import Span, Tokens
from sdcore.text.words import FIRST_WORD, SPECIAL, as_readings, column_marks, find_words
from sdcore.torch_state import with_own_torch_state

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdcore.diffusion.steps import Step


@dataclass(frozen=True)
class WordShare:
    """How much of the attention one word gets.

    span:    the word; its `positions` are empty or short where the prompt was cut.
    share:   of all attention, 0 to 1, mean over picture, layers, heads and steps.
    peak:    the largest value of its map.
    ignored: no place of the picture reads it more than an even share of all tokens.
    cut:     not all of it reached the model.
    """

    span: Span
    share: float
    peak: float
    ignored: bool
    cut: bool


@dataclass
class _Sum:
    """Maps (B, G, h, w) added up, and how many."""

    total: Tensor
    count: int


class WordHeatmaps(RunControl):
    """Records where each word is read; changes nothing.

        heatmaps = WordHeatmaps(pipe.tokenizer(prompt))
        pipe(prompt, control=heatmaps)
        heatmaps.of("fox")                                       # (h, w)

    Args:
        tokens: of the prompts of the run; a list of two for SDXL, one of each tokenizer.
        windows: into how many parts of equal length the run is divided, to be read separately; as
            many as steps for a map of every step.
        sites: which layers are recorded; None is every cross-attention.
        negative: heatmaps of the negative prompt's tokens.
        differentiable: keep the graph, for a loss on the maps; otherwise nothing is kept of it.
    """

    @with_own_torch_state
    def __init__(
        self,
        tokens: Tokens | Sequence[Tokens],
        *,
        windows: int = 1,
        sites: Sites | None = None,
        negative: WordHeatmaps | None = None,
        differentiable: bool = False,
    ) -> None:
        if as_int(windows, 1) is None:
            why = "It counts the parts of the run that are kept apart."
            raise UsageError(
                f"The number of windows is {windows!r}.", why, "Use a whole number from 1 up."
            )
        readings = as_readings(tokens)
        self.marks = column_marks(readings)  #               (P, T, G)
        self.tokens = readings[0]
        self.windows, self.sites = windows, sites
        self.differentiable = differentiable
        self._negative = negative
        self._run_marks = self.marks  # where and in the type in which the run attends
        self._sums: dict[tuple[int, Site], _Sum] = {}

    @property
    def watches(self) -> bool:
        return True

    @property
    def negative(self) -> WordHeatmaps | None:
        return self._negative

    # --- recording -----------------------------------------------------------------------------

    def begin(self, run: Run) -> None:
        prompts, length, _ = self.marks.shape
        check_rows(run, prompts, length)
        self._run_marks = self.marks.to(run.device, run.dtype)
        self.clear()

    def clear(self) -> None:
        """Forget what was recorded."""
        self._sums.clear()

    def at(self, step: Step) -> Control:
        return _Recorder(self, step.index * self.windows // step.count)

    def record(
        self,
        window: int,
        site: Site,
        grid: tuple[int, int],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attend: Attend,
    ) -> None:
        """Add one layer's maps to the sums of a window."""
        if site.kind != "cross" or (self.sites is not None and not self.sites(site)):
            return
        with torch.set_grad_enabled(self.differentiable and torch.is_grad_enabled()):
            columns = marked_attention(q, k, self._run_marks, v.shape[-1], attend)  # (B, N, G)
            maps = columns.transpose(1, 2).reshape(len(q), -1, *grid)  #             (B, G, h, w)
            key = (window, _transformer(site))
            if key in self._sums:
                entry = self._sums[key]
                # A graph must not lose what it was built from; a plain sum grows in place.
                entry.total = entry.total + maps if maps.requires_grad else entry.total.add_(maps)
                entry.count += 1
            else:
                self._sums[key] = _Sum(maps.contiguous(), 1)

    # --- reading -------------------------------------------------------------------------------

    @property
    def images(self) -> int:
        """B of the run."""
        self._check_recorded()
        return len(next(iter(self._sums.values())).total)

    @property
    def recorded(self) -> tuple[tuple[int, Site, tuple[int, int]], ...]:
        """Window, spatial Transformer (`block` is 0) and token grid of every map there is."""
        return tuple(
            (window, site, (known.total.shape[2], known.total.shape[3]))
            for (window, site), known in self._sums.items()
        )

    def spans(self, image: int = 0) -> tuple[Span, ...]:
        """The words of an image's prompt."""
        return self.tokens.spans[self._prompt(image)]

    def of(
        self,
        word: str | int,
        *,
        image: int = 0,
        steps: tuple[float, float] = (0, 1),
        sites: Sites | None = None,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """The map of a word: (h, w) float32, the share of attention that each place gives it.

        Args:
            word: as it stands in the prompt, or several in a row; where they stand more than once,
                the sum. A number is the place among `spans`. "<|startoftext|>" and
                "<|endoftext|>" (with the padding) have maps as well.
            image: which picture of the run.
            steps: part of the run, 0 to 1; windows that begin in it are read.
            sites: which spatial Transformers, such as `lambda site: site.place == "up"`.
            size: (h, w); None is the finest grid that was recorded.

        Raises:
            UsageError: the word is not in the prompt or was cut off, or nothing was recorded.
        """
        maps = self.maps(image=image, steps=steps, sites=sites, size=size)
        return maps[self._columns(word, image)].sum(dim=0)

    def maps(
        self,
        *,
        image: int = 0,
        steps: tuple[float, float] = (0, 1),
        sites: Sites | None = None,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """All maps of an image: (G, h, w), start, end, then the words; see `of`."""
        chosen = self._chosen(image, steps, sites)
        if size is None:
            size = max(((s.total.shape[2], s.total.shape[3]) for s in chosen), key=lambda g: g[0])
        # Every layer and step counts the same, whatever its grid.
        summed = sum(_resize(known.total[image], size) for known in chosen)
        assert isinstance(summed, Tensor)
        return summed / sum(known.count for known in chosen)

    def share(
        self,
        *,
        image: int = 0,
        steps: tuple[float, float] = (0, 1),
        sites: Sites | None = None,
    ) -> tuple[WordShare, ...]:
        """Each word's share of the attention, in the order of the prompt."""
        chosen = self._chosen(image, steps, sites)
        count = sum(known.count for known in chosen)
        shares = sum(known.total[image].mean(dim=(1, 2)) for known in chosen) / count  # (G,)
        peaks = self.maps(image=image, steps=steps, sites=sites).amax(dim=(1, 2))
        assert isinstance(shares, Tensor)
        length, prompt = self.marks.shape[1], self._prompt(image)
        words, cut = self.tokens.spans[prompt], self.tokens.cut[prompt].rstrip()
        cut_from = words[-1].end - len(cut) if words else 0
        reached = self.marks[prompt].sum(dim=0)  # tokens of each column
        return tuple(
            WordShare(
                span,
                float(shares[column]),
                float(peaks[column]),
                ignored=float(peaks[column]) <= float(reached[column]) / length,
                cut=span.end > cut_from,
            )
            for column, span in enumerate(words, start=FIRST_WORD)
        )

    def overlay(
        self,
        picture: Image,
        word: str | int,
        *,
        image: int = 0,
        steps: tuple[float, float] = (0, 1),
        sites: Sites | None = None,
    ) -> Image:
        """A picture with a word's map laid over it; see `of`."""
        size = (picture.height, picture.width)
        heat = self.of(word, image=image, steps=steps, sites=sites, size=size)
        return lay_over(picture, heat)

    def _columns(self, word: str | int, image: int) -> list[int]:
        spans = self.spans(image)
        if word in SPECIAL:
            return [SPECIAL.index(word)]
        if isinstance(word, int):
            if not 0 <= word < len(spans):
                why = f"The prompt has {len(spans)} words, counted from 0."
                raise UsageError(f"There is no word {word}.", why, "Use a smaller number.")
            found = [word]
        else:
            found = [i for place in find_words(spans, word) for i in place]
        reached = self.marks[self._prompt(image)].sum(dim=0)
        columns = sorted({FIRST_WORD + i for i in found})
        if not reached[columns].any():
            raise UsageError(
                f"The word {word!r} has no map: it did not reach the model.",
                f"The prompt was cut: {self.tokens.cut[self._prompt(image)]!r:.200}.",
                "Shorten the prompt, or move the word to its front.",
            )
        return columns

    def _prompt(self, image: int) -> int:
        """Which prompt an image is of: a run paints each one the same number of times."""
        prompts = len(self.tokens.spans)
        images = self.images if self._sums else prompts
        if not -images <= image < images:
            why = f"The run painted {images}, counted from 0."
            raise UsageError(f"There is no image {image}.", why, "Use a smaller number.")
        return (image % images) * prompts // images

    def _chosen(self, image: int, steps: tuple[float, float], sites: Sites | None) -> list[_Sum]:
        self._check_recorded()
        self._prompt(image)
        check_window(*steps, of="the heatmaps")
        chosen = [
            known
            for (window, site), known in self._sums.items()
            if steps[0] <= window / self.windows < steps[1] and (sites is None or sites(site))
        ]
        if not chosen:
            raise UsageError(
                "No heatmap was recorded for these steps and layers.",
                f"There are {self.windows} windows of steps and the layers "
                f"{', '.join(sorted({f'{s.place}.{s.level}.{s.index}' for _, s in self._sums}))}.",
                "Record more windows, or choose wider.",
            )
        return chosen

    def _check_recorded(self) -> None:
        if not self._sums:
            raise UsageError(
                "The heatmaps are empty.",
                "No run has recorded into them.",
                "Pass them as control: pipe(prompt, control=heatmaps).",
            )


@dataclass(frozen=True)
class _Recorder:
    """The heatmaps in one window of steps."""

    heatmaps: WordHeatmaps
    window: int

    def __call__(
        self, site: Site, grid: tuple[int, int], q: Tensor, k: Tensor, v: Tensor, attend: Attend
    ) -> Tensor:
        self.heatmaps.record(self.window, site, grid, q, k, v, attend)
        return attend(q, k, v)


def marked_attention(q: Tensor, k: Tensor, marks: Tensor, width: int, attend: Attend) -> Tensor:
    """Columns of the attention map, summed as marked, mean over heads: (B, N, G) float32.

    Args:
        marks: (P, T, G); B is a multiple of P, and the images of one prompt follow one another.
        width: of the values in one call. That of the layer's own keeps every fused kernel
            possible: torch's CPU kernel, and flash on CUDA, want q, k and v of one width.
    """
    batch, heads, columns = q.shape[0], q.shape[1], marks.shape[-1]
    marks = marks.to(q)  # of a run's heatmaps they already are
    marks = marks.repeat_interleave(batch // len(marks), dim=0)
    marks = F.pad(marks, (0, -columns % width))  #         (B, T, G) -> (B, T, whole widths)
    maps: list[Tensor] = []
    for values in torch.split(marks, width, dim=-1):
        one = attend(q, k, values[:, None].expand(-1, heads, -1, -1))  # (B, H, N, d)
        needed = min(width, columns - width * len(maps))
        maps.append(one[..., :needed].mean(dim=1, dtype=torch.float32))
    return torch.cat(maps, dim=-1) if len(maps) > 1 else maps[0]


def _transformer(site: Site) -> Site:
    """The spatial Transformer that a layer belongs to; its blocks share their sums."""
    name = site.name.partition(".transformer_blocks")[0]
    return replace(site, block=0, name=name)


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(G, h, w) to another grid, bilinear; averaged where the grid gets coarser."""
    if tuple(maps.shape[1:]) == size:
        return maps
    antialias = maps.shape[1] > size[0] or maps.shape[2] > size[1]
    return F.interpolate(
        maps[None], size, mode="bilinear", align_corners=False, antialias=antialias
    )[0]
