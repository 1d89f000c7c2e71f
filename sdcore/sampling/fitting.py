"""Which shortcuts a run can take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdcore.control.run_control import ControlLike, RunControl
from sdcore.errors import UsageError
from sdcore.sampling.guidance import is_one_prompt

if TYPE_CHECKING:
    from sdcore.diffusion.guidance import Guidance
    from sdcore.diffusion.shortcuts import Shortcuts
    from sdcore.sampling.conditioning import PromptPlan


def check_shortcuts(
    shortcuts: Shortcuts, plan: PromptPlan, guidance: Guidance, control: ControlLike | None
) -> None:
    """Refuse, with a UsageError, what a run cannot spare.

    With `deepcache` a control acts in the layers that run; with `tgate` there would be no text for
    it to act on, so only one that watches is taken.
    """
    if shortcuts.tgate is None:
        return
    what = f"The shortcut tgate={shortcuts.tgate} cannot be used here."
    leave = "Leave out tgate; deepcache can be used."
    if not all(is_one_prompt(step.parts) for step in plan.steps):
        raise UsageError(what, "The prompt joins several by AND, and they would become one.", leave)
    if guidance.plus:
        raise UsageError(what, "CFG++ needs the prediction without the prompt at each step.", leave)
    if control is not None and not (isinstance(control, RunControl) and control.watches):
        name = type(control).__name__
        why = f"The control {name} would have no text to act on when it is no longer read."
        raise UsageError(what, why, leave)
