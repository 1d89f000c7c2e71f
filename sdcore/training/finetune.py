"""Fine-tuning: one loop for every method, on people's own pictures.

settings ─► model, method, data (prepare.py) ─► the loop below ─► files that load elsewhere
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from sdcore.training.export import Export, output_name
from sdcore.training.finetune_settings import FinetuneSettings
from sdcore.training.header import header
from sdcore.training.methods import rates
from sdcore.training.network import CaptionReader
from sdcore.training.objective import Objective
from sdcore.training.prepare import prepare
from sdcore.training.prepared import Prepared
from sdcore.training.report import write_report
from sdcore.training.run import Run
from sdcore.training.state import generator
from sdcore.training.validation import Validation


def finetune(settings: FinetuneSettings) -> list[Path]:
    """Train, and write what was trained; the paths of the files.

    Raises:
        Interrupted: it was asked to stop; the same call goes on.
        UsageError, FileError: settings, model, data or disk that cannot be used.
        NonFiniteError: a loss or gradient is not finite.
    """
    return train(prepare(settings))


def train(ready: Prepared) -> list[Path]:
    """The loop."""
    settings, network, examples = ready.settings, ready.method.network, ready.examples
    run = Run(settings, settings.run, network, rates=rates(settings), parallel=True)
    try:
        device, seed = run.device, settings.run.seed
        objective = Objective(ready.scheduler, settings.noise, device=device)
        read = CaptionReader(ready.method.pipe, network, ready.texts)
        validation = ready.validation(run, objective, read)
        ready.record(run)
        processes, mine = run.processes.count, run.processes.index
        together = processes * settings.run.accumulate

        if run.step == 0:
            _look(validation, run, 0)
        elif validation.hopeless:
            run.finish("it got no better before")
        network.train()
        for step in run.steps():
            numbers = range(step * together, (step + 1) * together)
            pictures = sum(len(ready.order.batch(number).samples) for number in numbers)
            loss, names = torch.zeros((), device=device), list[str]()
            for number in numbers[mine::processes]:
                batch = examples.batch(number).to(device)
                names += batch.names
                with run.joining(last=number + processes > numbers[-1]), _draws(seed, number):
                    latents = ready.latents(batch)
                    noised = objective.draw(latents, seed, number)
                    seen = ready.seen(batch, noised.latents, seed, number)
                    with run.autocast():
                        text = read(batch.captions, device)
                        answer = run.network(seen, noised.times, text, batch.time_ids)
                    errors = objective.weighted_errors(answer, noised, batch.masks)
                    # The mean over all pictures of the step, whoever sees them: processes average
                    # gradients, so each counts as many times.
                    part = (errors * batch.weights).sum() / pictures
                    run.backward(part * processes, batch.names)
                loss += part.detach()
            norm = run.update(names=names)
            run.log(loss=run.processes.total(loss), grad_norm=norm)
            due = (step + 1) % settings.run.sample_every == 0 or step + 1 == settings.run.steps
            if due and _look(validation, run, step + 1):
                run.finish(f"no better in the last {settings.validation.patience} looks")
        return _export(ready, run)
    finally:
        run.close()
        ready.examples.close()
        if run.is_main:
            write_report(run.folder, running=False)


def _look(validation: Validation, run: Run, step: int) -> bool:
    with run.pause():
        stop = validation.look(step)
        if run.is_main:
            write_report(run.folder, running=True)
    return stop


def _export(ready: Prepared, run: Run) -> list[Path]:
    settings = ready.settings
    name = output_name(settings)
    export = Export(ready.method, settings, name, header(ready, run))
    paths: list[Path] = []
    with run.averaged():
        if run.is_main:
            paths += export.write()
    if run.has_best:
        with run.best():
            if run.is_main:
                paths += replace(export, name=f"{name}-best").write()
    return paths


@contextmanager
def _draws(seed: int, number: int) -> Generator[None]:
    """Context whose random draws, those of dropout, are a function of (seed, number)."""
    with torch.random.fork_rng():  # pyright: ignore[reportUnknownMemberType]
        draw = generator(seed, "dropout", number, 0).initial_seed()
        torch.manual_seed(draw)  # pyright: ignore[reportUnknownMemberType]
        yield
