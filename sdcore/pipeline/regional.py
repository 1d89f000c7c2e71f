"""The regions of jobs, as the control of their run."""

from __future__ import annotations

from collections.abc import Sequence

from sdcore.control.chain import chain
from sdcore.control.regions import Region, Regions
from sdcore.control.run_control import RunControl
from sdcore.job.job import Job


def with_regions(control: RunControl | None, jobs: Sequence[Job]) -> RunControl | None:
    """A control with the regions of jobs behind it, which are the same in all of them.

    Raises:
        UsageError: regions that overlap.
    """
    first = jobs[0]
    if not first.regions:
        return control
    regions = Regions(
        first.prompt,
        [Region(of.prompt, of.box, negative_prompt=of.negative_prompt) for of in first.regions],
        negative_prompt=first.negative_prompt or "",
        prompts=[job.prompt for job in jobs],
    )
    return regions if control is None else chain(control, regions)
