"""diffusers' schedulers over the noise levels of a schedule, in place of their own."""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar, cast

import numpy as np
import torch

from sdcore.diffusion.levels import SCHEDULES, Levels, Trained
from sdcore.diffusion.methods import METHODS, TIMES, Method
from sdcore.errors import UsageError


class Named:
    """What a scheduler class gets besides its own: the canonical name of a sampler."""

    sampler: ClassVar[str]


class GivenLevels(Named):
    """What a scheduler class gets besides its own: the levels of a schedule.

    `given_levels_class` puts it before a class of diffusers, whose formulas stay as they are: it
    reads the levels where that class computes those of Karras et al.
    """

    method: ClassVar[Method]
    schedule: ClassVar[str]
    sdxl: ClassVar[bool]

    def set_timesteps(self, num_inference_steps: int, device: Any = None, *whole: Any) -> None:
        """The levels of a run of so many steps; some schedules visit one more or fewer."""
        if whole:  # DPM2 asks for all training steps when it is made, which takes it a second
            num_inference_steps = 2
        this, parent = cast(Any, self), cast(Any, super())
        trained = Trained.of(this.alphas_cumprod, self.sdxl)
        levels = given_levels(self.method, self.schedule, trained, num_inference_steps)
        if self.method.takes == TIMES:
            parent.set_timesteps(1, device=device)
            times = dict.fromkeys(np.rint(trained.times(levels)).astype(np.int64).tolist())
            this.timesteps = torch.tensor(list(times), device=device)
            this.num_inference_steps = len(times)
            return
        self._levels, last = levels, 0.0
        if self.method.ends_trained:
            self._levels, last = levels[:-1], levels[-1]
        parent.set_timesteps(len(self._levels), device=device)
        if "use_karras_sigmas" not in this.config:  # Euler ancestral has no levels but its own
            this.sigmas = torch.tensor([*levels, 0.0])
            this.timesteps = torch.tensor(_times(levels, trained), device=device).float()
        if last:
            this.sigmas[-1] = last

    def _convert_to_karras(self, in_sigmas: Any, num_inference_steps: Any = None) -> np.ndarray:
        del in_sigmas, num_inference_steps
        return np.array(self._levels)

    def save_pretrained(self, *_: Any, **__: Any) -> None:
        """Not possible: refused, so that no file says other levels."""
        raise UsageError(
            f"Scheduler {self.sampler!r} cannot be saved.",
            "A scheduler_config.json has no name for these noise levels.",
            "Save the method alone, and name the sampler in the model's sampling.json.",
        )


def given_levels(method: Method, schedule: str, trained: Trained, steps: int) -> Levels:
    """The levels that a method visits in a run of so many steps of a schedule."""
    formula = SCHEDULES[schedule]
    if method.ends_trained:
        return formula(trained, steps + 1)
    if method.skips_last and steps > 1:
        levels = formula(trained, steps + 1)
        return levels[:-1]
    return formula(trained, steps)


def _times(levels: Levels, trained: Trained) -> np.ndarray:
    """The times of levels as diffusers' other classes have them."""
    to_time = METHODS["euler"].load_class()._sigma_to_t
    return np.array([to_time(None, np.array(sigma), np.log(trained.sigmas)) for sigma in levels])


@cache
def named_class(name: str, method: str) -> Any:
    """The scheduler class of a method under a name that says how the steps are spread."""
    cls = METHODS[method].load_class()
    return type(cls.__name__, (Named, cls), {"sampler": name})


@cache
def given_levels_class(name: str, method: str, schedule: str, sdxl: bool) -> Any:
    """The scheduler class of a method over the levels of a schedule.

    Args:
        name: of the sampler.
    """
    cls = METHODS[method].load_class(over_times=True)
    own = {"method": METHODS[method], "sampler": name, "schedule": schedule, "sdxl": sdxl}
    return type(cls.__name__, (GivenLevels, cls), own)
