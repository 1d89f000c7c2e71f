"""Several controls in one run: one behind the other, or each at its steps, layers or prompts.

In `chain(a, b)` what a calls `attend` is b, and what b calls `attend` is the layer's backend. The
first control sees the layer's own q, k, v and gives the final answer; the values that it asks with
reach the later ones already changed. All controls here are linear in v and take values of any
width, so each sees or changes what the later ones make of attention. The order that composes:

    chain(heatmaps, reweighting, edit, regions)

Heatmaps first: they measure what all the others do. Whatever speaks of the words of the prompt
that is painted comes before the edit, behind which k and the values are those of the source. The
regions last: they cut k and v into the texts of the regions, the others see one long text.

What a control is: run_control.py. Shapes: B images, C channels, h w latent grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from sdcore.attention import Attend, Control, Site, call_control
from sdcore.control.run_control import (
    ControlLike,
    Predict,
    Run,
    RunControl,
    Sites,
    Window,
    as_run_control,
    check_window,
    inside,
)
from sdcore.errors import UsageError

if TYPE_CHECKING:
    from sdcore.diffusion.steps import Step


def chain(*controls: ControlLike) -> RunControl:
    """Several controls as one; see the top of this file for their order."""
    return Chain(controls)


def during(control: ControlLike, start: float, end: float) -> RunControl:
    """A control for a part of the run: 0 is its first step (pure noise), 1 its end.

    Raises:
        UsageError: unless 0 <= start < end <= 1.
    """
    check_window(start, end, "a control")
    return Chain([control], window=(start, end))


def at_sites(control: ControlLike, chosen: Sites) -> RunControl:
    """A control at some attention layers only, such as `lambda site: site.level >= 1`."""
    return Chain([control], sites=chosen)


def parts(*controls: ControlLike | None) -> RunControl:
    """One control for each prompt of an AND, in their order."""
    return _Parts(controls)


class Chain(RunControl):
    """Hands everything on to one or several controls, of which each one's `attend` is the next.

    Args:
        window: the part of the run in which it does.
        sites: the layers at which it does; None is all.
    """

    def __init__(
        self,
        controls: Iterable[ControlLike],
        *,
        window: Window = (0, 1),
        sites: Sites | None = None,
    ) -> None:
        self.controls = tuple(as_run_control(control) for control in controls)
        self.window, self.sites = window, sites

    def _of(self, controls: Iterable[ControlLike | None]) -> Chain | None:
        """Other controls in the same part of the run and at the same layers."""
        present = [control for control in controls if control is not None]
        return Chain(present, window=self.window, sites=self.sites) if present else None

    @property
    def watches(self) -> bool:
        return all(control.watches for control in self.controls)

    @property
    def negative(self) -> RunControl | None:
        return self._of(control.negative for control in self.controls)

    def part(self, number: int) -> RunControl | None:
        of_part = [control.part(number) for control in self.controls]
        same = all(a is b for a, b in zip(of_part, self.controls, strict=True))
        return self if same else self._of(of_part)

    def begin(self, run: Run) -> None:
        if self.sites is not None and not any(self.sites(site) for site in run.sites):
            raise UsageError(
                "A control is asked for at no attention layer.",
                f"None of the {len(run.sites)} layers of this UNet is chosen.",
                f"They are: {', '.join(sorted({str(site) for site in run.sites}))}.",
            )
        for control in self.controls:
            control.begin(run)

    def at(self, step: Step) -> Control | None:
        if not inside(step, self.window):
            return None
        return join((control.at(step) for control in self.controls), self.sites)

    def before_step(self, step: Step, latents: Tensor, predict: Predict) -> Tensor:
        for control in self.controls if inside(step, self.window) else ():
            latents = control.before_step(step, latents, predict)
        return latents

    def on_guess(self, step: Step, guess: Callable[[], Tensor]) -> None:
        for control in self.controls if inside(step, self.window) else ():
            control.on_guess(step, guess)

    def after_step(self, step: Step, latents: Tensor) -> Tensor:
        for control in self.controls if inside(step, self.window) else ():
            latents = control.after_step(step, latents)
        return latents


class _Parts(Chain):
    """The controls of the prompts of an AND; they take part in the run one after the other."""

    def __init__(self, controls: Iterable[ControlLike | None]) -> None:
        self.by_part = [None if c is None else as_run_control(c) for c in controls]
        super().__init__(control for control in self.by_part if control is not None)

    def begin(self, run: Run) -> None:
        if len(self.by_part) > len(run.parts):
            raise UsageError(
                f"There are controls for {len(self.by_part)} prompts.",
                f"The prompt joins {len(run.parts)} by AND.",
                "Give one for each of them, in a dialect that knows AND.",
            )
        for number, control in enumerate(self.by_part):
            if control is not None:
                control.begin(run.of_part(number))

    def at(self, step: Step) -> Control | None:
        first = self.part(0)
        return None if first is None else first.at(step)

    def part(self, number: int) -> RunControl | None:
        return self.by_part[number] if number < len(self.by_part) else None


def join(controls: Iterable[Control | None], sites: Sites | None = None) -> Control | None:
    """The controls of one step as one, at some layers or all; None where there is none."""
    present = tuple(control for control in controls if control is not None)
    if not present or (len(present) == 1 and sites is None):
        return present[0] if present else None
    return _Joined(present, sites)


@dataclass(frozen=True)
class _Joined:
    """Controls of which each one's `attend` is the next, at some layers."""

    controls: tuple[Control, ...]
    sites: Sites | None

    def __call__(
        self, site: Site, grid: tuple[int, int], q: Tensor, k: Tensor, v: Tensor, attend: Attend
    ) -> Tensor:
        if self.sites is None or self.sites(site):
            for control in reversed(self.controls):
                attend = _Link(control, site, grid, attend)
        return attend(q, k, v)


@dataclass(frozen=True)
class _Link:
    """A control together with what it calls `attend`: an `Attend` for the control before it."""

    control: Control
    site: Site
    grid: tuple[int, int]
    inner: Attend

    @property
    def mask(self) -> Tensor | None:
        return self.inner.mask

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, **other: Tensor | None) -> Tensor:
        inner = _Masked(self.inner, **other) if other else self.inner
        return call_control(self.control, self.site, self.grid, q, k, v, inner)


@dataclass(frozen=True)
class _Masked:
    """An `Attend` with another mask than the layer's."""

    attend: Attend
    mask: Tensor | None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, **other: Tensor | None) -> Tensor:
        return self.attend(q, k, v, **{"mask": self.mask, **other})
