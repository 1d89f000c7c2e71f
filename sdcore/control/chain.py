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
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from sdcore.attention import Attend, Control, Site
from sdcore.control.run_control import (
    Predict,
    Run,
    RunControl,
    as_run_control,
    check_window,
    inside,
)
from sdcore.errors import UsageError

if TYPE_CHECKING:
    from sdcore.diffusion.steps import Step


def chain(*controls: Control) -> RunControl:
    """Several controls as one; see the top of this file for their order."""
    return Chain(controls)


def during(control: Control, start: float, end: float) -> RunControl:
    """A control for a part of the run: 0 is its first step (pure noise), 1 its end.

    Raises:
        UsageError: unless 0 <= start < end <= 1.
    """
    check_window(start, end, "a control")
    return _During(control, start, end)


def at_sites(control: Control, chosen: Callable[[Site], bool]) -> RunControl:
    """A control at some attention layers only, such as `lambda site: site.level >= 1`."""
    return _AtSites(control, chosen)


def parts(*controls: Control | None) -> RunControl:
    """One control for each prompt of an AND, in their order."""
    return _Parts(controls)


class Chain(RunControl):
    """Controls of which each one's `attend` is the next."""

    def __init__(self, controls: Iterable[Control]) -> None:
        self.controls = tuple(as_run_control(control) for control in controls)

    @property
    def negative(self) -> Control | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return _chained(control.negative for control in self.controls)

    def begin(self, run: Run) -> None:
        for control in self.controls:
            control.begin(run)

    def at(self, step: Step) -> Control | None:
        return _chained(control.at(step) for control in self.controls)

    def part(self, number: int) -> Control | None:
        return _chained(control.part(number) for control in self.controls)

    def before_step(self, step: Step, latents: Tensor, predict: Predict) -> Tensor:
        for control in self.controls:
            latents = control.before_step(step, latents, predict)
        return latents

    def on_guess(self, step: Step, guess: Callable[[], Tensor]) -> None:
        for control in self.controls:
            control.on_guess(step, guess)

    def after_step(self, step: Step, latents: Tensor) -> Tensor:
        for control in self.controls:
            latents = control.after_step(step, latents)
        return latents

    def __call__(
        self, site: Site, grid: tuple[int, int], q: Tensor, k: Tensor, v: Tensor, attend: Attend
    ) -> Tensor:
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
        inner = _Masked(self.inner, other["mask"]) if "mask" in other else self.inner
        return self.control(self.site, self.grid, q, k, v, inner)


@dataclass(frozen=True)
class _Masked:
    """An `Attend` with another mask than the layer's."""

    attend: Attend
    mask: Tensor | None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, **other: Tensor | None) -> Tensor:
        return self.attend(q, k, v, **{"mask": self.mask, **other})


def _chained(controls: Iterable[Control | None]) -> Control | None:
    left = [control for control in controls if control is not None]
    return left[0] if len(left) == 1 else Chain(left) if left else None


class _Wrapper(RunControl):
    """Hands everything on to one control; subclasses narrow down where or when."""

    def __init__(self, control: Control) -> None:
        self.control = as_run_control(control)

    @property
    def negative(self) -> Control | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.control.negative

    def begin(self, run: Run) -> None:
        self.control.begin(run)

    def at(self, step: Step) -> Control | None:
        return self.control.at(step)

    def part(self, number: int) -> Control | None:
        return self.control.part(number)

    def before_step(self, step: Step, latents: Tensor, predict: Predict) -> Tensor:
        return self.control.before_step(step, latents, predict)

    def on_guess(self, step: Step, guess: Callable[[], Tensor]) -> None:
        self.control.on_guess(step, guess)

    def after_step(self, step: Step, latents: Tensor) -> Tensor:
        return self.control.after_step(step, latents)

    def __call__(
        self, site: Site, grid: tuple[int, int], q: Tensor, k: Tensor, v: Tensor, attend: Attend
    ) -> Tensor:
        return self.control(site, grid, q, k, v, attend)


class _During(_Wrapper):
    def __init__(self, control: Control, start: float, end: float) -> None:
        super().__init__(control)
        self.window = (start, end)

    def at(self, step: Step) -> Control | None:
        return self.control.at(step) if inside(step, self.window) else None

    def before_step(self, step: Step, latents: Tensor, predict: Predict) -> Tensor:
        if not inside(step, self.window):
            return latents
        return self.control.before_step(step, latents, predict)

    def on_guess(self, step: Step, guess: Callable[[], Tensor]) -> None:
        if inside(step, self.window):
            self.control.on_guess(step, guess)

    def after_step(self, step: Step, latents: Tensor) -> Tensor:
        return self.control.after_step(step, latents) if inside(step, self.window) else latents


class _AtSites(_Wrapper):
    def __init__(self, control: Control, chosen: Callable[[Site], bool]) -> None:
        super().__init__(control)
        self.chosen = chosen

    @property
    def negative(self) -> Control | None:
        return self._narrowed(self.control.negative)

    def begin(self, run: Run) -> None:
        if not any(self.chosen(site) for site in run.sites):
            raise UsageError(
                "A control is asked for at no attention layer.",
                f"None of the {len(run.sites)} layers of this UNet is chosen.",
                f"They are: {', '.join(sorted({str(site) for site in run.sites}))}.",
            )
        super().begin(run)

    def at(self, step: Step) -> Control | None:
        return self._narrowed(self.control.at(step))

    def part(self, number: int) -> Control | None:
        return self._narrowed(self.control.part(number))

    def _narrowed(self, control: Control | None) -> Control | None:
        return None if control is None else _AtSites(control, self.chosen)

    def __call__(
        self, site: Site, grid: tuple[int, int], q: Tensor, k: Tensor, v: Tensor, attend: Attend
    ) -> Tensor:
        if not self.chosen(site):
            return attend(q, k, v)
        return self.control(site, grid, q, k, v, attend)


class _Parts(Chain):
    """The controls of the prompts of an AND; they take part in the run one after the other."""

    def __init__(self, controls: Iterable[Control | None]) -> None:
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
                tokens = run.tokens if number == 0 else None
                control.begin(replace(run, text_tokens=run.parts[number], tokens=tokens))

    def at(self, step: Step) -> Control | None:
        return _Parts(None if c is None else c.at(step) for c in self.by_part)

    def part(self, number: int) -> Control | None:
        return self.by_part[number] if number < len(self.by_part) else None

    def __call__(
        self, site: Site, grid: tuple[int, int], q: Tensor, k: Tensor, v: Tensor, attend: Attend
    ) -> Tensor:
        return attend(q, k, v)  # rows of no part: guidance asks for `part` first
