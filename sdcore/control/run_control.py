"""A control that takes part in a run: what it is told, what it may change, and when.

A control is called in place of attention, `control(site, grid, q, k, v, attend) -> out`, and calls
`attend` as often as it likes. It is an argument of the run and of every layer; nothing is attached
to the model, so nothing is left on it, whatever happens. A plain function is enough; what wants to
know of the run's steps and latents is a `RunControl`.

Shapes: B images, N image tokens, T text tokens, C channels, h w latent grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from sdcore.attention import Attend, AttentionLayer, Control, Site
from sdcore.errors import UsageError

if TYPE_CHECKING:
    from sdcore.diffusion.steps import Step
    from sdcore.text.tokenizer import Tokens

Predict = Callable[[Tensor, Control | None], Tensor]


@dataclass(frozen=True)
class Run:
    """What a control may check before the first step.

    rows:        B, images painted together.
    text_tokens: T of the rows that the control will see.
    parts:       T of each prompt of an AND; without one, of the prompt.
    grid:        (h, w) of the latents.
    sites:       of every attention layer of the UNet.
    tokens:      the prompts as the first text encoder reads them; None for the negative prompts.
    """

    rows: int
    text_tokens: int
    parts: tuple[int, ...]
    grid: tuple[int, int]
    sites: tuple[Site, ...]
    tokens: Tokens | None = None


class RunControl:
    """A control that takes part in a run; what a subclass does not define does nothing.

    `negative` is the control for the rows of the negative prompt.
    """

    negative: Control | None = None

    def begin(self, run: Run) -> None:
        """Called before the first step: raises UsageError where the run does not fit."""

    def at(self, step: Step) -> Control | None:
        """The control for one step."""
        return self

    def part(self, number: int) -> Control | None:
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

    def __call__(
        self, site: Site, grid: tuple[int, int], q: Tensor, k: Tensor, v: Tensor, attend: Attend
    ) -> Tensor:
        return attend(q, k, v)


def attention_sites(model: nn.Module) -> tuple[Site, ...]:
    """Where a model attends and can be controlled, in the order of its modules."""
    layers = (module for module in model.modules() if isinstance(module, AttentionLayer))
    return tuple(layer.site for layer in layers if layer.site is not None)


def as_run_control(control: Control) -> RunControl:
    """A plain function, or an object with some of the methods, as a `RunControl`."""
    return control if isinstance(control, RunControl) else _Plain(control)


def inside(step: Step, window: tuple[float, float]) -> bool:
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


class _Plain(RunControl):
    """What is no RunControl, with the methods that it has."""

    def __init__(self, control: Control) -> None:
        self.control = control
        self.negative = getattr(control, "negative", None)

    def at(self, step: Step) -> Control | None:
        return self.control.at(step) if hasattr(self.control, "at") else self.control  # pyright: ignore

    def part(self, number: int) -> Control | None:
        return self.control.part(number) if hasattr(self.control, "part") else self.control  # pyright: ignore

    def __call__(
        self, site: Site, grid: tuple[int, int], q: Tensor, k: Tensor, v: Tensor, attend: Attend
    ) -> Tensor:
        return self.control(site, grid, q, k, v, attend)


class _Nothing(RunControl):
    """No control at all."""

    def at(self, step: Step) -> Control | None:
        return None


NOTHING = _Nothing()
