"""Ways to paint with fewer operations, each with a loss: nothing of them is on unless asked for."""

from __future__ import annotations

from dataclasses import dataclass

from sdcore.checks import check_int
from sdcore.diffusion.steps import Step

OUTER = 2  # layers of each way of the UNet that run at every step: the first branch of DeepCache


@dataclass(frozen=True)
class Shortcuts:
    """What a run spares. The plain run is `Shortcuts()`.

    Attributes:
        deepcache: the UNet runs whole at every so many steps; at those between, its deep layers are
            taken to give what they gave last (Ma et al. 2023, DeepCache, arXiv 2312.00858). 1 is
            every step.
        tgate: the text is read at so many steps; at those after it each layer gets what it read
            last, the mean of prompt and negative prompt, and there is no more guidance (Zhang et
            al. 2024, T-GATE, arXiv 2404.02747). None is every step.
        coarse_keys: in self-attention on the finest grid a place reads every so many places across
            and down, and not all (Smith et al. 2024, ToDo, arXiv 2402.13573, which spares more than
            merging like tokens: Bolya and Hoffman 2023, arXiv 2303.17604). 1 is all places.

    Raises:
        UsageError: a number out of range.
    """

    deepcache: int = 1
    tgate: int | None = None
    coarse_keys: int = 1

    def __post_init__(self) -> None:
        hint = "Use 1 for every step, 2 or 3 to spare much of the time."
        number = check_int("The shortcut deepcache", self.deepcache, 1, 1000, hint=hint)
        object.__setattr__(self, "deepcache", number)
        hint = "Use 1 for all places, 2 for every second one."
        number = check_int("The shortcut coarse_keys", self.coarse_keys, 1, 1000, hint=hint)
        object.__setattr__(self, "coarse_keys", number)
        if self.tgate is not None:
            hint = "Use None for every step, about half of the steps to spare time."
            object.__setattr__(
                self, "tgate", check_int("The shortcut tgate", self.tgate, 1, hint=hint)
            )

    def gated(self, step: Step) -> bool:
        """Whether the text is no longer read."""
        return self.tgate is not None and step.index >= self.tgate

    def reads_last(self, step: Step) -> bool:
        """Whether what is read is kept for the steps after it."""
        return self.tgate is not None and step.index == self.tgate - 1

    def whole_since(self, step: Step) -> int:
        """The index of the last step, this one included, that runs the UNet whole."""
        last = step.index - step.index % self.deepcache
        if self.tgate is not None and step.index >= self.tgate - 1:
            return max(last, self.tgate - 1)
        return last
