"""A control that takes part in a run: what it learns of the run, what it may change, and when.

Two things steer a picture. A `Control` (attention.py) is called in place of attention,
`control(site, grid, q, k, v, attend) -> out`, and calls `attend` as often as it likes. A
`RunControl` belongs to a run: it gives the control of each step, and may change the latents. Both
are arguments; nothing is attached to the model, so nothing is left on it, whatever happens. A plain
function is enough: a run uses it at every step.

Shapes: B images, N image tokens, T text tokens, C channels, h w latent grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sdcore.attention import AttentionLayer, Control, Site, control_refusal, is_control
from sdcore.errors import UsageError

if TYPE_CHECKING:
    from sdcore.diffusion.steps import Step
    from sdcore.text.tokenizer import Tokens

Predict = Callable[[Tensor, Control | None], Tensor]
Sites = Callable[[Site], bool]
Window = tuple[float, float]


@dataclass(frozen=True)
class Run:
    """What a control learns of a run before the first step.

    rows:        B, images painted together.
    text_tokens: T of the rows that the control will see.
    parts:       T of each prompt of an AND; without one, of the prompt.
    grid:        (h, w) of the latents.
    sites:       of every attention layer of the UNet.
    device:      of the UNet; a control moves its tensors there once, when the run begins.
    dtype:       of the UNet, so of the q, k and v that the control will see.
    tokens:      the prompts as the first text encoder reads them; None for the negative prompts.
    """

    rows: int
    text_tokens: int
    parts: tuple[int, ...]
    grid: tuple[int, int]
    sites: tuple[Site, ...]
    device: torch.device
    dtype: torch.dtype
    tokens: Tokens | None = None

    def of_part(self, number: int) -> Run:
        """The run as the control of one prompt of an AND sees it; tokens are of the first alone."""
        tokens = self.tokens if number == 0 else None
        return replace(self, text_tokens=self.parts[number], tokens=tokens)

    def of_negative(self, text_tokens: int) -> Run:
        """The run as the control of the negative prompt sees it."""
        return replace(self, text_tokens=text_tokens, parts=(text_tokens,), tokens=None)


class RunControl:
    """A control that takes part in a run; what a subclass does not define does nothing.

    A run has it to itself: what it records belongs to the run that began last.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if any("__call__" in vars(base) for base in cls.__mro__):
            raise UsageError(
                f"{cls.__qualname__} is a RunControl with __call__.",
                "A run asks it for the control of each step and never calls it itself.",
                "Let at(step) give what the layers call, such as a method of the class.",
            )

    @property
    def watches(self) -> bool:
        """Whether it only looks: the picture is the same without it, so no record names it."""
        return False

    @property
    def negative(self) -> ControlLike | None:
        """The control for the rows of the negative prompt."""
        return None

    def begin(self, run: Run) -> None:
        """Called before the first step: raises UsageError where the run does not fit."""

    def at(self, step: Step) -> Control | None:
        """What the attention layers call in one step."""
        return None

    def part(self, number: int) -> ControlLike | None:
        """The control for one prompt of an AND. The words that a control knows are of the first."""
        return self if number == 0 else None

    def before_step(self, step: Step, latents: Tensor, predict: Predict) -> Tensor:
        """The latents (B, C, h, w) that the step is to begin from.

        `predict(latents, control)` runs the UNet on them at the step's time, conditional rows only.
        """
        return latents

    def on_guess(self, step: Step, guess: Callable[[], Tensor]) -> None:
        """`guess()` is the clean latents (B, C, h, w) that the model expects at this step.

        It is worked out when it is called, and right until this method returns.
        """

    def after_step(self, step: Step, latents: Tensor) -> Tensor:
        """The latents (B, C, h, w) that the step is to end with."""
        return latents


ControlLike = Control | RunControl
"""What a run takes as its control."""


def as_run_control(control: ControlLike) -> RunControl:
    """A control as a `RunControl`: a plain one at every step, for every prompt of an AND.

    Raises:
        UsageError: it is neither a `Control` nor a `RunControl`, or half of one.
    """
    if isinstance(control, RunControl):
        return control
    if not is_control(control):
        raise control_refusal(control, by_run=True)
    return _AtEveryStep(control)


class _AtEveryStep(RunControl):
    """A plain control, for every prompt of an AND."""

    def __init__(self, control: Control) -> None:
        self.control = control

    def at(self, step: Step) -> Control:
        return self.control

    def part(self, number: int) -> RunControl:
        return self


def attention_sites(model: nn.Module) -> tuple[Site, ...]:
    """Where a model attends and can be controlled, in the order of its modules."""
    layers = (module for module in model.modules() if isinstance(module, AttentionLayer))
    return tuple(layer.site for layer in layers if layer.site is not None)


def inside(step: Step, window: Window) -> bool:
    """Whether a step begins within (start, end), as parts of the run."""
    return window[0] <= step.progress < window[1]


def check_window(start: float, end: float, of: str) -> None:
    """UsageError unless 0 <= start < end <= 1."""
    if not 0 <= start < end <= 1:
        raise UsageError(
            f"The steps of {of} are from {start!r} to {end!r}.",
            "They are parts of the run: 0 is its first step, 1 its end, start before end.",
            "Use (0, 0.5) for the first half, (0, 1) for all steps.",
        )


def check_rows(run: Run, prompts: int, length: int) -> None:
    """UsageError unless a run can be of these prompts, each painted the same number of times."""
    if run.rows % prompts or run.text_tokens != length:
        raise UsageError(
            f"The control is for {prompts} prompts with {length} tokens.",
            f"The run has {run.rows} images, whose text has {run.text_tokens} tokens.",
            "Make it from the tokens of exactly the prompts that are painted.",
        )


def not_begun(control: RunControl) -> UsageError:
    """For a control that knows nothing before its run has begun."""
    return UsageError(
        f"{type(control).__name__} has not begun a run.",
        "It learns from the run what it needs to know of the prompts and the picture.",
        "Paint with it, pipe(..., control=control), or call its begin(run) first.",
    )
