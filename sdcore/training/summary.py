"""What is said of a fine-tuning before its first step, and after its last one."""

from __future__ import annotations

import shlex
from pathlib import Path

from sdcore.training.estimate import Estimate, estimate_step
from sdcore.training.methods import TYPES
from sdcore.training.prepared import Prepared


def summary(ready: Prepared) -> str:
    """Data, choices, what is trained, and what it is about to cost."""
    run = ready.settings.run
    processes = ready.processes.count
    together = run.batch_size * run.accumulate * processes
    epochs = run.steps * run.accumulate * processes / ready.order.per_epoch
    once = ready.order.per_epoch / (run.accumulate * processes)
    each = (
        ""
        if together == run.batch_size
        else (f" ({run.batch_size} at once x {run.accumulate} batches x {processes} processes)")
    )
    steps = (
        f"steps      {run.steps}, each of {together} pictures{each}; all pictures are seen in "
        f"{once:.3g} steps, so {epochs:.3g} times"
    )
    trains = f"trains     {ready.method.what}: {ready.method.numbers:,} numbers"
    cost = _cost(ready)
    seconds = cost.seconds * run.steps * run.accumulate
    about = (
        f"about      {cost.memory / 1e9:.1f} GB of memory, "
        f"{cost.checkpoint * (run.keep + 1) / 1e9:.2g} GB of disk, {_duration(seconds)} on "
        f"{ready.processes.device.type}"
    )
    tokenizer = ready.method.pipe.readers[0][0]
    chosen = [f"chosen     {line}" for line in ready.chosen]
    lines = [ready.scan.summary(tokenizer), steps, trains, *chosen, about]
    return "\n".join([*lines, f"folder     {run.folder}"])


def _cost(ready: Prepared) -> Estimate:
    run, scanned = ready.settings.run, ready.scan.pictures
    largest = max((picture.fit.bucket for picture in scanned), key=lambda size: size.area)
    return estimate_step(
        ready.method.network,
        largest,
        ready.scan.factor,
        run.batch_size,
        dtype=TYPES[run.precision],
        averaged=bool(run.ema_decay),
        device=ready.processes.device,
    )


def command_to_paint(ready: Prepared, path: Path) -> str:
    """The command that paints with what was written."""
    settings = ready.settings
    quoted = _quoted(str(path))
    model = "" if settings.model == "embedded" else f" --model {_quoted(settings.model)}"
    known = [*ready.settings.validation.prompts, *ready.captions(), ready.word, "a picture"]
    prompt = _quoted(next(filter(None, known)))
    if settings.method == "full":
        return f"sdcore paint {prompt} --model {quoted}"
    kind = "--embedding" if settings.method == "textual_inversion" else "--lora"
    return f"sdcore paint {prompt}{model} {kind} {quoted}"


def _quoted(text: str) -> str:
    """A text for a shell; in double quotes where they are enough, which every shell reads."""
    quoted = shlex.quote(text)
    return quoted if quoted == text or set(text) & set('"\\$`!%') else f'"{text}"'


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"
