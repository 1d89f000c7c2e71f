"""One run of a diffusers pipeline, as trace.py follows it: its control, its steps, its rows.

Shapes: B images, R rows of a call of the UNet: B of the negative prompts, then B of the prompts; T
text tokens, h w latent grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sdcore.attention import Control, Site
from sdcore.control.chain import Chain
from sdcore.control.run_control import ControlLike, Run, RunControl, as_run_control
from sdcore.diffusion.steps import Step
from sdcore.errors import UsageError
from sdcore.sampling.begin import ReadyControl, begin_control
from sdcore.text.tokenizer import Tokens

_HOOKS = ("before_step", "on_guess")


@dataclass
class TracedRun:
    """One run of the pipeline.

    Attributes:
        rows: B.
        length: T.
        guided: the UNet is called with the negative prompts before the prompts.
        taken: calls of the UNet so far.
        step: the one that is being taken.
        controls: of each group of B rows of it.
    """

    control: ControlLike | None
    rows: int
    length: int
    guided: bool
    tokens: Tokens | None
    ready: ReadyControl | None = None
    taken: int = 0
    step: Step | None = None
    latents: tuple[int, int] = (0, 0)
    controls: tuple[Control | None, ...] = ()

    def begin(self, latents: Tensor, sites: tuple[Site, ...], dtype: torch.dtype) -> None:
        assert self.control is not None
        grid = (latents.shape[2], latents.shape[3])
        run = Run(
            rows=self.rows,
            text_tokens=self.length,
            parts=(self.length,),
            grid=grid,
            sites=sites,
            device=latents.device,
            dtype=dtype,
            tokens=self.tokens,
        )
        self.ready = begin_control(self.control, run, self.length if self.guided else None)
        self.latents = grid

    def check(self, latents: Tensor, text: Tensor) -> None:
        groups, rest = divmod(len(latents), self.rows)
        if rest or groups < 1 + self.guided or text.shape[1] != self.length:
            raise UsageError(
                f"The UNet is called with {len(latents)} rows of {text.shape[1]} text tokens.",
                f"{self.rows} prompts of {self.length} tokens were encoded"
                + (", and as many negative ones." if self.guided else "."),
                "Use a pipeline that hands all of them to its UNet in one call.",
            )

    def next_step(self, count: int, time: float, latents: Tensor) -> None:
        assert self.ready is not None
        self.step = Step(min(self.taken, count - 1), count, time)
        self.taken += 1
        found = self.ready.at(self.step)
        groups = len(latents) // self.rows
        first = [found.negative] if self.guided else []
        mine = [*first, found.of_part(0)]
        self.controls = (*mine, *[None] * (groups - len(mine)))

    def grid_at(self, site: Site) -> tuple[int, int]:
        """The token grid of a layer: each level has half of the one above, rounded up."""
        h, w = (-(-side // 2**site.level) for side in self.latents)
        return h, w


def check_hooks(control: ControlLike | None) -> None:
    """Refuse what wants to run the UNet itself, which belongs to the pipeline here."""
    for member in _members(control):
        for hook in _HOOKS:
            if getattr(type(member), hook) is not getattr(RunControl, hook):
                raise UsageError(
                    f"{type(member).__name__} cannot steer a pipeline of diffusers.",
                    f"It has {hook}, and the pipeline does not let anybody in there.",
                    "Paint with sdcore.TextToImage.from_pretrained, which reads the same model.",
                )


def _members(control: ControlLike | None) -> Iterator[RunControl]:
    if control is None:
        return
    ready = as_run_control(control)
    if isinstance(ready, Chain):
        for each in ready.controls:
            yield from _members(each)
    else:
        yield ready
