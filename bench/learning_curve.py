"""Score against scenes seen: the models along a training run, read by the judge.

    python -m bench.learning_curve runs/emoji/unet
    python -m bench.learning_curve runs/emoji/unet_a runs/emoji/unet_b --measure style --aim 0.85

Paints the same few prompts with the averaged weights of every checkpoint that a run has kept
(`run.keep` says how many), counts what is right (bench/prompt_control.py), and fits a curve that
says where the score would cross the aim, or why it cannot be said (bench/curve_fit.py). What was
scored is kept in `learning_curve.json` in the --out folder and not painted again, so that the
command can be given now and then while a run goes on and throws old checkpoints away. Draws
`learning_curve.svg`: scenes on a logarithmic axis, 95 % intervals (Wilson 1927), the curve as a
line, dashed beyond the scenes seen.

A run that starts from another one's weights goes on from its scenes if that run is given too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.command import main, make_parser
from bench.curve_fit import Score, verdict
from bench.shares import Tally, percent
from bench.verdict import MEASURES
from sdcore.errors import FileError, UsageError
from sdcore.files.atomic import json_writer, replace_file

if TYPE_CHECKING:
    from bench.judge import Judge
    from bench.prompts import Prompt
    from sdcore import TextToImage
    from train.emoji.pretrain_unet import UNetSettings

KEPT = ("prompts", "seed", "steps")  # settings on which a score depends


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, the earliest first."""
    found = sorted((run / "checkpoints").glob("step-*"))
    if not found or not (run / "resolved.yaml").is_file():
        raise FileError(
            f"{run} holds no training run of a UNet",
            "it has no resolved.yaml, or no checkpoint",
            "give the folder that train.emoji.pretrain_unet writes: its run.folder",
        )
    return found


def open_checkpoint(run: Path, settings: UNetSettings, checkpoint: Path) -> TextToImage:
    """The model that the run would export at this checkpoint: its averaged weights, if it has any.

    The other parts come from the run's exported model or, while there is none, from what the run
    was given.
    """
    import torch

    from bench.text_encoders import open_model
    from sdcore import Autoencoder, TextToImage, Tokenizer
    from sdcore.checkpoint.defaults import ModelDefaults
    from sdcore.diffusion.schedulers import make_scheduler
    from sdcore.training.state import load_checkpoint
    from train.emoji.pretrain_unet import SAMPLING, Network, build, scheduler_config

    if (run / "model").is_dir():
        pipe = open_model(run / "model", "cpu")
        assert pipe.text_encoder is not None
        network = Network(pipe.unet, pipe.text_encoder)
    else:
        autoencoder = Autoencoder.from_pretrained(settings.autoencoder)
        tokenizer = Tokenizer.from_pretrained(Path(settings.text_encoder) / "tokenizer")
        network = build(settings, autoencoder).eval()
        scheduler = make_scheduler("ddim", scheduler_config(settings))
        text_encoder: Any = network.text_encoder
        parts = tokenizer, text_encoder, network.unet, autoencoder
        pipe = TextToImage(*parts, scheduler, defaults=ModelDefaults(**SAMPLING))
    tensors = load_checkpoint(checkpoint)[1]
    weights = tensors.get("average", tensors["model"])
    ours = dict(network.named_parameters())
    unknown = sorted(ours.keys() - weights.keys())
    if unknown or any(ours[name].shape != weights[name].shape for name in ours):
        raise FileError(
            f"{checkpoint} does not fit its run",
            f"it lacks {unknown[0]}" if unknown else "a weight has another shape",
            "give the folder of the run that wrote it",
        )
    with torch.no_grad():
        for name, parameter in ours.items():
            parameter.copy_(weights[name])
    return pipe


def score_run(
    run: Path, prompts: Sequence[Prompt], judge: Judge, known: dict[str, Any], steps: int | None
) -> None:
    """Add to `known` (checkpoint's name -> measure -> tally) what is not in it yet."""
    from bench.prompt_control import model_painter
    from bench.verdict import score
    from sdcore.training.settings import load_settings
    from train.emoji.pretrain_unet import UNetSettings

    settings = load_settings(UNetSettings, run / "resolved.yaml").with_data()
    for checkpoint in checkpoints(run):
        if checkpoint.name not in known:
            pipe = open_checkpoint(run, settings, checkpoint)
            images = model_painter(pipe, 20, 0, {"steps": steps})(prompts)
            known[checkpoint.name] = score(prompts, judge.read(images), judge.side)


def scenes_before(run: Path, runs: Sequence[Path]) -> tuple[int, str]:
    """Scenes that a run's first weights had seen, and the folder they came from ("": random)."""
    from sdcore.training.settings import read_yaml

    given = read_yaml(run / "resolved.yaml")["start_from"]
    for other in runs:
        if given and other != run and other.resolve() in Path(given).resolve().parents:
            loop = read_yaml(other / "resolved.yaml")["run"]
            return scenes_before(other, runs)[0] + loop["steps"] * loop["batch_size"], given
    return 0, given


def scores(run: Path, runs: Sequence[Path], known: dict[str, Any], measure: str) -> list[Score]:
    """The run's scores by the scenes seen; those of which nothing was asked are left out."""
    from sdcore.training.settings import read_yaml

    batch = read_yaml(run / "resolved.yaml")["run"]["batch_size"]
    before = scenes_before(run, runs)[0]
    found = []
    for name in sorted(known):
        hits, count = known[name][measure]
        if count:
            found.append(Score(before + int(name.removeprefix("step-")) * batch, hits, count))
    return found


def report(lines: dict[str, list[Score]], measure: str, aim: float) -> str:
    """Markdown: every score, and what the curve of each run says."""
    text = [f"| run | scenes seen | {measure}, percent |", "|---|---|---|"]
    for name, found in lines.items():
        for score in found:
            share = percent((score.hits, score.count))
            text.append(f"| {name} | {score.images:,} | {share} |")
    return "\n".join([*text, "", *(f"{name}: {verdict(f, aim)}" for name, f in lines.items())])


def read_known(path: Path, settings: dict[str, Any]) -> dict[str, dict[str, dict[str, Tally]]]:
    """Scores of earlier calls: run -> checkpoint -> measure -> tally."""
    if not path.is_file():
        return {}
    kept = json.loads(path.read_text("utf-8"))
    if kept["settings"] != settings:
        raise UsageError(
            f"{path} was scored with {kept['settings']}, not {settings}",
            "scores of other prompts or steps cannot stand on one curve",
            "give the same settings, or another --out folder",
        )
    return kept["runs"]


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, prompts=150, seed=0, steps=None, out="runs/learning_curve")
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="folder of a training run")
    add("--measure", choices=MEASURES, default="concept", help="(default: %(default)s)")
    add("--aim", type=float, default=0.85, help="share to be reached (default: %(default)s)")
    return parser


def run(arguments: argparse.Namespace) -> None:
    from bench.curve_chart import draw
    from bench.judge import Judge
    from bench.prompts import compose
    from sdcore.training.settings import load_settings
    from train.emoji.data.drawings import load
    from train.emoji.pretrain_unet import UNetSettings

    if not 0 < arguments.aim < 1 or arguments.prompts < 20:
        raise UsageError(
            f"an aim of {arguments.aim:g} and {arguments.prompts} prompts",
            "an aim is a share between 0 and 1, and a score needs at least 20 prompts",
            "--aim 0.85 --prompts 150",
        )
    path = arguments.out / "learning_curve.json"
    settings = {key: getattr(arguments, key) for key in KEPT}
    known = read_known(path, settings)
    for folder in arguments.runs:
        scored = known.setdefault(str(folder), {})
        if all(checkpoint.name in scored for checkpoint in checkpoints(folder)):
            continue
        data = load_settings(UNetSettings, folder / "resolved.yaml").with_data().data
        assert not isinstance(data, str)
        judge = Judge(load(data), data.backgrounds, data.image_size)
        prompts = compose(data, arguments.prompts, arguments.seed)
        score_run(folder, prompts, judge, scored, arguments.steps)
        replace_file(path, json_writer({"settings": settings, "runs": known}, indent=1))
    lines = {
        str(folder): scores(folder, arguments.runs, known[str(folder)], arguments.measure)
        for folder in arguments.runs
    }
    if not any(lines.values()):
        raise UsageError(
            f"there is no score of {arguments.measure!r}",
            "no prompt asks for it, or, for 'relation', no picture shows both objects",
            "choose another --measure, or more --prompts with another --out",
        )
    print(report(lines, arguments.measure, arguments.aim))
    for folder in arguments.runs:
        before, start = scenes_before(folder, arguments.runs)
        if start and not before:
            print(f"{folder}: what its first weights ({start}) had seen is not counted")
    draw(arguments.out / "learning_curve.svg", lines, arguments.measure, arguments.aim)
    print(f"drawn: {arguments.out / 'learning_curve.svg'}")


if __name__ == "__main__":
    main(_parser(), run)
