"""Experiments on the embedded model's recipe: one change at a time, each to its schedule's end.

    python -m bench.experiments run                 all that are not long, in the order of the file
    python -m bench.experiments run rate-double     these
    python -m bench.experiments table

configs/train/experiments.yaml says what the base is and what each experiment changes. Every one is
scored on the same prompts and scenes; its row goes to results.jsonl in the --out folder. A run that
was stopped goes on where it was when the line is repeated; one that has its row is not run again.
One core is enough: every run takes `run.threads` of the base.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from bench.command import make_parser
from bench.shares import wilson
from bench.validation import MEASURES, WRONG, Validation
from sdcore.errors import FileError, SdcoreError, UsageError, exit_on_error
from sdcore.files.atomic import append_line, replace_file, text_writer
from sdcore.training.settings import Settings, load_settings
from train.emoji.data.settings import DataSettings
from train.emoji.pretrain_autoencoder import AutoencoderSettings
from train.emoji.pretrain_unet import UNetSettings

RESULTS = "results.jsonl"
BASE = "base"
Row = dict[str, Any]


class Experiment(Settings):
    """What one experiment changes; all else is the base's."""

    why: str  # what it may tell
    unet: dict[str, Any] = {}  # key.path -> value, of train.emoji.pretrain_unet
    first: dict[str, Any] = {}  # beyond these, of a run before it, with whose weights it begins
    autoencoder: dict[str, Any] | None = (
        None  # a new one first: of train.emoji.pretrain_autoencoder
    )
    guidance_scale: float | None = None  # paint so with the base's model; nothing is trained

    @property
    def long(self) -> bool:
        return self.autoencoder is not None


class Experiments(Settings):
    prompts: int = 96  # judged pictures of each experiment
    scenes: int = 128  # on which losses are taken
    unet: dict[str, Any]  # the base: settings of train.emoji.pretrain_unet
    autoencoder: dict[str, Any]  # those of train.emoji.pretrain_autoencoder, for experiments on it
    experiments: dict[str, Experiment]  # the most promising first; the base comes before them


def run(settings: Experiments, names: list[str], out: Path) -> None:
    """Train and score each experiment, one after the other."""
    chosen = names or [name for name, one in settings.experiments.items() if not one.long]
    for name in chosen:
        if name != BASE and name not in settings.experiments:
            known = ", ".join([BASE, *settings.experiments])
            raise UsageError(f"no experiment {name!r}", f"there are: {known}", "name one of them")
    _check(settings, out)
    done = {row["name"]: row for row in read_rows(out)}
    for name in dict.fromkeys([BASE, *chosen]):  # all others are compared with the base
        if name not in done:
            row = {"name": name, "settings": _said(settings, name), **_one(settings, name, out)}
            append_line(out / RESULTS, json.dumps(row))
            print(table(read_rows(out)), flush=True)


def _check(settings: Experiments, out: Path) -> None:
    """Before hours are spent: settings that do not fit, or that differ from those of rows."""
    for row in read_rows(out):
        name = row["name"]
        if name in (BASE, *settings.experiments) and row["settings"] != _said(settings, name):
            why = f"{out / RESULTS} has its row, from other settings"
            raise UsageError(f"{name!r} was run already", why, "use another --out")
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "autoencoder.yaml", settings.autoencoder)
    _write(out / "unet.yaml", settings.unet)
    for one in (Experiment(why=""), *settings.experiments.values()):
        load_settings(AutoencoderSettings, out / "autoencoder.yaml", _set(one.autoencoder or {}))
        for changes in (one.unet, one.unet | one.first):
            load_settings(UNetSettings, out / "unet.yaml", _set(changes))
        if one.guidance_scale is not None and (one.unet or one.first or one.autoencoder):
            why = "with guidance_scale the base's model is painted with"
            raise UsageError("an experiment changes two things", why, "make two of it")


def _said(settings: Experiments, name: str) -> Row:
    """The settings that decide an experiment's row, with which it is compared."""
    one = settings.experiments.get(name, Experiment(why=""))
    return {
        "prompts": settings.prompts,
        "scenes": settings.scenes,
        "base": settings.unet,
        "unet": one.unet,
        "first": one.first,
        "guidance_scale": one.guidance_scale,
        "autoencoder": None if one.autoencoder is None else settings.autoencoder | one.autoencoder,
    }


def _one(settings: Experiments, name: str, out: Path) -> Row:
    one, started = settings.experiments.get(name, Experiment(why="")), time.monotonic()
    folder, changes = out / name, dict(one.unet)
    if one.autoencoder is not None:
        _train("autoencoder", out, folder / "autoencoder", one.autoencoder)
        changes["autoencoder"] = str(folder / "autoencoder" / "vae")
    if one.first:
        _train("unet", out, folder / "first", changes | one.first)
        model = folder / "first" / "model"
        changes |= {"start_from": str(model / "unet"), "text_encoder": str(model)}
    if one.guidance_scale is None:
        _train("unet", out, folder, changes)
    model = (out / BASE if one.guidance_scale is not None else folder) / "model"
    runs = [model.parent, *([folder / "first"] if one.first else [])]
    resolved = [load_settings(UNetSettings, run / "resolved.yaml").run for run in runs]
    minutes = (time.monotonic() - started) / 60  # of this process: a resumed run's rest
    torch.set_num_threads(max(1, resolved[0].threads))
    data = load_settings(UNetSettings, out / "unet.yaml").with_data().data
    assert isinstance(data, DataSettings)
    validation = Validation(data, settings.prompts, settings.scenes)
    row = {
        "asked": validation.digest,
        "losses": validation.losses(model),
        "verdicts": validation.verdicts(model, one.guidance_scale),
        "images": sum(r.steps * r.batch_size for r in resolved),
        "minutes": round(minutes, 1),
    }
    for run in runs:  # three times the model's size
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
    return row


def _train(recipe: str, out: Path, folder: Path, changes: dict[str, Any]) -> None:
    """Train in a process of its own, which goes on from its last checkpoint if there is one."""
    command = [sys.executable, "-m", f"train.pretrain_{recipe}"]
    command += ["--config", str(out / f"{recipe}.yaml")]
    code = subprocess.run([*command, *_set(changes | {"run.folder": str(folder)})]).returncode
    if code:
        why = f"train.pretrain_{recipe} ended with exit code {code}; it says why above"
        raise SdcoreError(f"{folder.name} was not trained", why, "repeat the line to go on with it")


def _set(changes: dict[str, Any]) -> list[str]:
    """As a recipe's command line takes them; JSON is YAML."""
    return [f"{key}={json.dumps(value)}" for key, value in changes.items()]


def _write(path: Path, values: dict[str, Any]) -> None:
    replace_file(path, text_writer(yaml.safe_dump(values, sort_keys=False)))


def read_rows(out: Path) -> list[Row]:
    """The rows of an --out folder, in the order in which they were run."""
    path = out / RESULTS
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]


def table(rows: list[Row]) -> str:
    """Markdown, the best first: score with its 95 % interval, and how far from the base.

    The score of a picture is the share of what its prompt asks that it got right, the table's the
    mean of all pictures. Differences are taken prompt by prompt, so they are known better than the
    scores themselves. Losses: right captions; then what one wrong word of each kind adds, x 1000.
    """
    base = next((row for row in rows if row["name"] == BASE), None)
    heads = ["experiment", "change", "score", "minus base", *MEASURES, "loss"]
    heads += [f"wrong {kind}" for kind in WRONG] + ["images", "minutes"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in sorted(rows, key=lambda row: -statistics.mean(_scores(row))):
        gap = ["-"]
        if base and row is not base and row["asked"] == base["asked"]:
            pairs = zip(_scores(row), _scores(base), strict=True)
            gap = [_interval([a - b for a, b in pairs], "+")]
        losses = row["losses"]
        wrong = [losses.get(f"wrong {kind}") for kind in WRONG]
        cells = [row["name"], _change(row["settings"]), _interval(_scores(row)), *gap]
        cells += [_share(row, measure) for measure in MEASURES]
        cells += [f"{losses['right']:.4f}"]
        cells += ["-" if value is None else f"{1000 * value:.2f}" for value in wrong]
        cells += [f"{row['images']:,}", f"{row['minutes']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _scores(row: Row) -> list[float]:
    """Percent of each prompt that its picture got right."""
    return [100 * statistics.mean(verdict.values()) for verdict in row["verdicts"]]


def _interval(values: list[float], sign: str = "") -> str:
    half = 1.96 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):{sign}.1f} ± {half:.1f}"


def _share(row: Row, measure: str) -> str:
    """Percent with Wilson's interval, of the prompts that ask for it."""
    asked = [verdict[measure] for verdict in row["verdicts"] if measure in verdict]
    if not asked:
        return "-"
    low, high = wilson(sum(asked), len(asked))
    return f"{100 * sum(asked) / len(asked):.0f} ({100 * low:.0f}-{100 * high:.0f})"


def _change(said: Row) -> str:
    parts = [f"first {key} {value}" for key, value in said["first"].items()]
    parts += [f"{key} {value}" for key, value in said["unet"].items()]
    if said["guidance_scale"] is not None:
        parts.append(f"guidance {said['guidance_scale']:g} at sampling")
    if said["autoencoder"] is not None:
        shown = {k: v for k, v in said["autoencoder"].items() if k not in ("run", "data")}
        parts += [f"autoencoder {key} {value}" for key, value in shown.items()]
    return ", ".join(parts) or "none"


def main() -> None:
    parser = make_parser(__doc__, out="runs/experiments")
    add = parser.add_argument
    add("what", choices=("run", "table"))
    add("names", nargs="*", metavar="EXPERIMENT", help="(default: all that are not long)")
    config = "configs/train/experiments.yaml"
    add("--config", default=config, metavar="FILE", help="(default: %(default)s)")
    arguments = parser.parse_intermixed_args()
    with exit_on_error():
        if arguments.what == "run":
            run(load_settings(Experiments, arguments.config), arguments.names, arguments.out)
            return
        if not (rows := read_rows(arguments.out)):
            why = "no experiment has ended"
            raise FileError(f"{arguments.out / RESULTS} has no rows", why, "run some first")
        print(table(rows))


if __name__ == "__main__":
    main()
