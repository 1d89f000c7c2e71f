"""Prompt-to-prompt: change words of a prompt and keep the picture (Hertz et al. 2022,
arXiv:2208.01626), without an attention map and on any backend.

The source prompt and its edits are painted side by side from one noise. Where an edit shares words
with the source, it attends as the source does:

    P_source M a c v + P_own (1 - a) c v = attend(q_s, k_s, M a c v) + attend(q, k, (1 - a) c v)

M moves attention from the source's tokens to the edit's, a is 1 for tokens that are known from the
source (at this step), c re-weights words. The method's own re-weighting, replacement and refinement
are the cases a = 1, M = 1; a = 1; and c = 1.

Shapes: B rows = (1 + E) n: n pictures of the source, then n of each of E edits; H heads, N image
tokens, T text tokens, d head width, C channels, h w latent grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from sdcore.attention import Attend, Control, Site
from sdcore.control.alignment import align_tokens
from sdcore.control.chain import join
from sdcore.control.heatmaps import WordHeatmaps
from sdcore.control.reweight import word_scales
from sdcore.control.run_control import (
    Run,
    RunControl,
    Sites,
    Window,
    check_rows,
    check_window,
    inside,
)
from sdcore.errors import UsageError
from sdcore.text.tokenizer import Tokens
from sdcore.text.words import as_readings, prompts_with, word_positions
from sdcore.torch_state import with_own_torch_state

if TYPE_CHECKING:
    from sdcore.diffusion.steps import Step


@dataclass(frozen=True)
class EditSettings:
    """How strongly an edit holds on to its source.

    Attributes:
        cross: the steps in which known words attend as in the source; parts of the run.
        words: other steps for some words of the edits.
        layout: the steps in which image tokens attend to one another as in the source.
        layout_sites: where they do; the finest grid decides texture more than layout.
        scales: words of the edits that are to count more or less, as in `sdcore.control.reweight`.
        blend: words, of the source or an edit, whose places alone may change; () lets all change.
        blend_sites: the layers whose maps tell those places; None is all.
        blend_from: when places begin to be kept apart, a part of the run.
        blend_threshold: how far a word's map must be at a place, from 0, its least, to 1, its most.
    """

    cross: Window = (0, 0.8)
    words: Mapping[str, Window] = field(default_factory=dict[str, Window])
    layout: Window | None = (0, 0.4)
    layout_sites: Sites = lambda site: site.level >= 1
    scales: Mapping[str, float] = field(default_factory=dict[str, float])
    blend: Sequence[str] = ()
    blend_sites: Sites | None = None
    blend_from: float = 0.2
    blend_threshold: float = 0.3


class PromptEdit(RunControl):
    """Edits of a prompt that keep its picture.

        prompts = ["a fox on grass", "a cat on grass"]
        edit = PromptEdit(pipe.tokenizer(prompts))
        pipe(prompts, seed=[7, 7], control=edit)  # both from one noise

    Args:
        tokens: of the source prompt and then its edits; for SDXL those of both tokenizers.

    Raises:
        UsageError: prompts that have nothing in common, a word that is not there.
    """

    @with_own_torch_state
    def __init__(
        self, tokens: Tokens | Sequence[Tokens], settings: EditSettings | None = None
    ) -> None:
        readings = as_readings(tokens)
        self.settings = settings = settings or EditSettings()
        self.prompts, self.length = readings[0].ids.shape
        if self.prompts < 2:
            raise UsageError(
                "There is one prompt.",
                "An edit needs the source prompt and at least one changed prompt.",
                "Pass the tokens of both: pipe.tokenizer([source, edited]).",
            )
        check_window(*settings.cross, of="the known words")
        if settings.layout is not None:
            check_window(*settings.layout, of="the layout")
        edits = range(1, self.prompts)
        self.moves = [  # for each reading: (E, T, T) M, and (E, T) which tokens are known
            [torch.stack(x) for x in zip(*(align_tokens(r, 0, e) for e in edits), strict=True)]
            for r in readings
        ]
        self.windows = [_windows(r, edits, settings) for r in readings]  # position -> steps
        self.scales = word_scales(readings, edits, settings.scales)  # (E, T)
        self.places = _Places(readings, settings) if settings.blend else None
        self._place = torch.device("cpu"), torch.float32  # where and in what type a run attends

    def begin(self, run: Run) -> None:
        check_rows(run, self.prompts, self.length)
        self._place = run.device, run.dtype
        if self.places is not None:
            self.places.heatmaps.begin(run)

    def at(self, step: Step) -> Control:
        edit = self.edit_at(step)
        if self.places is None:
            return edit
        joined = join([self.places.heatmaps.at(step), edit])
        assert joined is not None
        return joined

    def after_step(self, step: Step, latents: Tensor) -> Tensor:
        if self.places is None or step.progress < self.settings.blend_from:
            return latents
        return self.places.blend(latents)

    def edit_at(self, step: Step) -> EditAtStep:
        """The edit in one step: which tokens attend as in the source, and which on their own."""
        moved = torch.zeros(len(self.scales), self.length, self.length)
        own = torch.zeros(len(self.scales), self.length)
        for (matrix, known), windows in zip(self.moves, self.windows, strict=True):
            active = [[inside(step, window) for window in row] for row in windows]
            a = known * torch.tensor(active, dtype=torch.float32)  # (E, T)
            moved += matrix * a[:, None, :] / len(self.moves)
            own += (1 - a) / len(self.moves)
        moved, own = moved * self.scales[:, None, :], own * self.scales
        layout = self.settings.layout is not None and inside(step, self.settings.layout)
        return EditAtStep(
            self.prompts,
            moved.to(*self._place),
            own.to(*self._place),
            any_moved=bool(moved.any()),
            any_own=bool(own.any()),
            layout=self.settings.layout_sites if layout else None,
        )


@dataclass(frozen=True)
class EditAtStep:
    """An edit in one step, as the layers call it.

    Attributes:
        prompts: 1 + E.
        moved: (E, T, T) = M a c, how known tokens attend as in the source.
        own: (E, T) = (1 - a) c, how much tokens attend on their own.
        any_moved, any_own: whether there is anything but zeros in them.
        layout: the layers at which image tokens attend as in the source; None is none.
    """

    prompts: int
    moved: Tensor
    own: Tensor
    any_moved: bool
    any_own: bool
    layout: Sites | None

    def __call__(
        self, site: Site, grid: tuple[int, int], q: Tensor, k: Tensor, v: Tensor, attend: Attend
    ) -> Tensor:
        if site.kind == "cross":
            return self._read(q, k, v, attend)
        if self.layout is not None and self.layout(site):
            return self._as_source(q, k, v, attend)
        return attend(q, k, v)

    def _as_source(self, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        """Values of all rows, read with the attention of the source: P_source v."""
        count, mask = len(q) // self.prompts, attend.mask
        q_source, k_source = (x[:count].repeat(self.prompts, 1, 1, 1) for x in (q, k))
        if mask is not None and _of_each_row(mask):
            mask = mask[:count].repeat(self.prompts, 1, 1, 1)
        return attend(q_source, k_source, v, mask=mask)

    def _read(self, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        count, mask = len(q) // self.prompts, attend.mask
        moved, own = (
            x.to(v).repeat_interleave(count, dim=0)[:, None] for x in (self.moved, self.own)
        )  #                                                       (E n, 1, T, T), (E n, 1, T)
        source, edits = v[:count], v[count:]
        if not self.any_moved:
            return attend(q, k, torch.cat([source, own[..., None] * edits]))
        out = self._as_source(q, k, torch.cat([source, moved @ edits]), attend)
        if self.any_own:
            if mask is not None and _of_each_row(mask):
                mask = mask[count:]
            added = attend(q[count:], k[count:], own[..., None] * edits, mask=mask)
            out = torch.cat([out[:count], out[count:] + added])
        return out


def _of_each_row(mask: Tensor) -> bool:
    """Whether an attention mask differs by row of the batch: (B, ..., T), and not (1, ..., T)."""
    return mask.ndim == 4 and len(mask) > 1


class _Places:
    """Where an edit may differ from its source: where the words in question are read."""

    def __init__(self, readings: Sequence[Tokens], settings: EditSettings) -> None:
        self.heatmaps = WordHeatmaps(readings, sites=settings.blend_sites)
        self.threshold = settings.blend_threshold
        self.prompts = len(readings[0].spans)
        found = {w: prompts_with(readings[0], range(self.prompts), w) for w in settings.blend}
        self.words = [[w for w in found if p in found[w]] for p in range(self.prompts)]

    def blend(self, latents: Tensor) -> Tensor:
        """The source's latents, with those of the edits where either one reads the words."""
        reads = torch.stack([self._reads(row, latents) for row in range(len(latents))])
        reads = reads.reshape(self.prompts, -1, *reads.shape[1:])  #   (1 + E, n, h, w)
        rows = latents.reshape(self.prompts, -1, *latents.shape[1:])  #  (1 + E, n, C, h, w)
        changes = (reads[:1] | reads)[:, :, None]  #               (1 + E, n, 1, h, w)
        return torch.where(changes, rows, rows[:1]).flatten(0, 1)

    def _reads(self, row: int, latents: Tensor) -> Tensor:
        """Where a row of the latents reads one of its words: (h, w), True or False."""
        grid = (latents.shape[2], latents.shape[3])
        found = torch.zeros(grid, dtype=torch.bool, device=latents.device)
        for word in self.words[row * self.prompts // len(latents)]:
            heat = self.heatmaps.of(word, image=row)
            # an object is larger than the place where its word is read most
            heat = F.max_pool2d(heat[None], 3, stride=1, padding=1)
            heat = F.interpolate(heat[None], grid, mode="bilinear", align_corners=False)[0, 0]
            least, most = heat.min(), heat.max()
            found = found | (heat > least + self.threshold * (most - least))
        return found


def _windows(tokens: Tokens, edits: Sequence[int], settings: EditSettings) -> list[list[Window]]:
    """For each edit and position, the steps in which it attends as in the source."""
    rows = [[settings.cross] * tokens.ids.shape[1] for _ in edits]
    for word, window in settings.words.items():
        check_window(*window, of=f"the word {word!r}")
        for edit in prompts_with(tokens, edits, word):
            for position in word_positions(tokens, edit, word):
                rows[edit - 1][position] = window
    return rows
