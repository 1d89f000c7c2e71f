"""Attend-and-excite: move the latents until no chosen word is ignored.

    loss = max over words of (1 - the largest value of the word's map)
    latents <- latents - strength · loss · |latents| · g / |g|,    g = ∂ loss / ∂ latents

Chefer et al. 2023 (arXiv:2301.13826), on word heatmaps that come from fused attention and are
differentiable. There a move is 20 g, which suits one model; here its length is a part of that of
the latents, so that a setting means the same for every model and scheduler. Memory grows by the
backward pass of one call of the UNet.

Shapes: B images, C channels, h w grid, G columns (see words.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from sdcore.control.heatmaps import WordHeatmaps
from sdcore.control.run_control import Predict, Run, RunControl, Sites, check_window, inside
from sdcore.diffusion.steps import Step
from sdcore.text.tokenizer import Tokens
from sdcore.text.words import FIRST_WORD, as_readings, find_words, prompts_with
from sdcore.torch_state import with_own_torch_state

_SHARPEN = 100.0  # the paper's factor before the softmax over words
_SMOOTH = ((0.0113, 0.0838, 0.0113), (0.0838, 0.6193, 0.0838), (0.0113, 0.0838, 0.0113))  # σ = 0.5


@dataclass(frozen=True)
class ExciteSettings:
    """How hard words are pushed; steps and targets are the paper's.

    Attributes:
        steps: when, as parts of the run.
        strength: how far one move goes where a word is not read at all, as a part of the latents.
        targets: part of the run -> the largest value that every word's map must reach there, for
            which as many moves are made as it takes, up to `most_moves`.
        sites: the layers whose maps count, as `lambda site: site.level == 2`, the paper's 16x16 for
            Stable Diffusion 1 at 512x512; None is all.
    """

    steps: tuple[float, float] = (0, 0.5)
    strength: float = 0.1
    targets: Mapping[float, float] = field(default_factory=lambda: {0: 0.05, 0.2: 0.5, 0.4: 0.8})
    most_moves: int = 20
    sites: Sites | None = None


class AttendAndExcite(RunControl):
    """Sees to it that every one of some words is read somewhere on the picture.

        tokens = pipe.tokenizer(prompt)
        pipe(prompt, control=AttendAndExcite(tokens, ["cat", "frog"]))

    Args:
        tokens: of the prompts of the run; for SDXL those of both tokenizers.
        words: which words; in a batch, each prompt's own of them.

    Raises:
        UsageError: a word is in none of the prompts.
    """

    @with_own_torch_state
    def __init__(
        self,
        tokens: Tokens | Sequence[Tokens],
        words: Sequence[str],
        settings: ExciteSettings | None = None,
    ) -> None:
        self.readings = as_readings(tokens)
        self.settings = settings or ExciteSettings()
        check_window(*self.settings.steps, of="attend-and-excite")
        self._heatmaps = WordHeatmaps(self.readings, sites=self.settings.sites, differentiable=True)
        self._smooth = torch.tensor(_SMOOTH)
        spans = self.readings[0].spans
        self.columns: list[list[list[int]]] = [[] for _ in spans]  # prompt, word -> columns
        for word in words:
            for prompt in prompts_with(self.readings[0], range(len(spans)), word):
                places = find_words(spans[prompt], word)
                self.columns[prompt].append([FIRST_WORD + i for place in places for i in place])

    def begin(self, run: Run) -> None:
        self._heatmaps.begin(run)
        self._smooth = self._smooth.to(run.device)

    def before_step(self, step: Step, latents: Tensor, predict: Predict) -> Tensor:
        if not inside(step, self.settings.steps):
            return latents
        target = self._target(step)
        moves = 1 if target is None else self.settings.most_moves
        for _ in range(moves):
            peaks, gradient = self._look(step, latents, predict)
            if target is not None and bool((peaks >= target).all()):
                break
            length = _length(latents) / _length(gradient).clamp(min=1e-12)
            missing = (1 - peaks).clamp(min=0)[:, None, None, None]
            latents = latents - self.settings.strength * missing * length * gradient
        return latents

    def _target(self, step: Step) -> float | None:
        """What maps must reach before this step; None before most steps."""
        before = (step.index - 1) / step.count
        due = [t for part, t in self.settings.targets.items() if before < part <= step.progress]
        return max(due) if due else None

    def _look(self, step: Step, latents: Tensor, predict: Predict) -> tuple[Tensor, Tensor]:
        """Each image's least peak (B,), and the gradient of the loss (B, C, h, w)."""
        with torch.enable_grad():
            x = latents.detach().requires_grad_()
            predict(x, self._heatmaps.at(step))
            peaks = torch.stack([self._least_peak(i) for i in range(len(x))])
            (gradient,) = torch.autograd.grad((1 - peaks).clamp(min=0).sum(), x)
        self._heatmaps.clear()  # and with it the graph
        return peaks.detach(), gradient

    def _least_peak(self, image: int) -> Tensor:
        """The largest value of the map of the word that is read least: ()."""
        maps = self._heatmaps.maps(image=image)[FIRST_WORD:]  #    (words, h, w)
        prompt = image * len(self.columns) // self._heatmaps.images
        used = len(self.readings[0].spans[prompt])
        maps = (_SHARPEN * maps[:used]).softmax(dim=0)  # which word is read most, place by place
        smooth = (self._smooth / self._smooth.sum())[None, None]
        peaks: list[Tensor] = []
        for columns in self.columns[prompt]:
            one = maps[[column - FIRST_WORD for column in columns]].sum(dim=0)
            padded = F.pad(one[None, None], (1, 1, 1, 1), mode="replicate")
            peaks.append(F.conv2d(padded, smooth).amax())
        return torch.stack(peaks).min() if peaks else maps.sum() * 0 + 1


def _length(latents: Tensor) -> Tensor:
    """Root mean square of each image's latents: (B, 1, 1, 1)."""
    return latents.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
