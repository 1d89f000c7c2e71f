"""What the text encoder's network is worth: a UNet taught with a Transformer, an LSTM and an RNN.

    python -m bench.text_encoders

Reads the three runs that configs/train/text_encoder_comparison.yaml describes, of one budget. It
paints prompts of three lengths (one word; a sentence; two objects and how they stand to each other)
and has the judge read the pictures, with 95 % intervals (Wilson 1927); the floor is the same
pictures held against shuffled prompts. And it asks, for each kind of word, how much worse the UNet
removes noise when that word is wrong: what the text tells the UNet, long before pictures show it.
`order` swaps the names of two objects: the same words in another order.

How long the encoders take: bench/text_encoder_speed.py.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.command import main, make_parser
from sdcore.errors import FileError, UsageError
from sdcore.files.atomic import json_writer, replace_file

if TYPE_CHECKING:  # torch is imported when something is read or timed
    from torch import Tensor

    from bench.judge import Judge
    from bench.prompts import Prompt
    from bench.shares import Tally
    from sdcore.pipeline.text_to_image import TextToImage
    from sdcore.training.objective import Objective
    from train.emoji.data.layout import Scene
    from train.emoji.data.settings import DataSettings

NETWORKS = ("transformer", "lstm", "rnn")
ASKED = {  # caption length -> what is judged of it
    "one word": ("concept",),
    "sentence": ("concept", "style", "background", "place"),
    "relation": ("both objects", "relation", "background"),
}
TIMES = (980, 900, 700)  # of the diffusion, at which a wrong word is asked for


def open_model(folder: Path, device: str) -> TextToImage:
    """The exported model of a run, whichever text encoder it has."""
    from sdcore import TextToImage

    if not (folder / "text_encoder" / "config.json").is_file():
        hint = "train the three runs first, see configs/train/text_encoder_comparison.yaml"
        raise FileError(f"no model in {folder}", "the run has not ended, or is elsewhere", hint)
    return TextToImage.from_pretrained(folder, device=device)


def prompts_by_length(data: DataSettings, count: int, seed: int) -> dict[str, list[Prompt]]:
    """`count` prompts of each length; all three name the concepts evenly."""
    from bench.prompts import Prompt, compose

    found: dict[str, list[Prompt]] = {name: [] for name in ASKED}
    for i in range(count):
        concept = list(data.concepts)[i % len(data.concepts)]
        found["one word"].append(Prompt(concept, (concept,), "", "", "", "", "", False))
    for prompt in compose(data, 12 * count, seed):
        if prompt.relation:
            found["relation"].append(prompt)
        elif prompt.size == "small" and prompt.place:
            found["sentence"].append(prompt)
    return {name: prompts[:count] for name, prompts in found.items()}


def control_table(
    pipe: TextToImage, prompts: dict[str, list[Prompt]], judge: Judge, batch: int, steps: int | None
) -> dict[str, dict[str, dict[str, Tally]]]:
    """length -> {"model", "floor"} -> measure -> (hits, prompts)."""
    from bench.prompt_control import model_painter, shuffled
    from bench.verdict import score

    paint = model_painter(pipe, batch, 0, {"steps": steps})
    result = {}
    for length, asked in prompts.items():
        readings = judge.read(paint(asked))
        rows = {
            "model": score(asked, readings, judge.side),
            "floor": score(shuffled(asked), readings, judge.side),
        }
        result[length] = {
            name: {measure: row[measure] for measure in ASKED[length]} for name, row in rows.items()
        }
    return result


def wrong_words(data: DataSettings, scenes: Sequence[Scene]) -> dict[str, list[tuple[int, str]]]:
    """Kind of word -> (scene, its caption with one word of that kind wrong); and `right` for all.

    Captions say everything, always in the same way.
    """
    from train.emoji.data.captions import PLACE_WORDS
    from train.emoji.data.layout import PLACES, RELATIONS

    def following(item: str, items: Sequence[str]) -> str:
        return items[(items.index(item) + 1) % len(items)]

    def caption(scene: Scene) -> str:
        first = scene.objects[0]
        end = f"in {first.style} style on a {scene.background} background"
        if scene.relation:
            return f"a {first.concept} {scene.relation} a {scene.objects[1].concept} {end}"
        size = f"{first.size} " if first.size else ""
        return f"a {size}{first.concept} {PLACE_WORDS[first.place][0]} {end}"

    opposite = {"big": "small", "": "big", "small": "big"}
    turned = {"to the left of": "to the right of", "above": "below"}
    turned |= {there: here for here, there in turned.items()}
    assert set(turned) == set(RELATIONS)
    concepts, backgrounds = list(data.concepts), list(data.backgrounds)
    found: dict[str, list[tuple[int, str]]] = {"right": []}
    for i, scene in enumerate(scenes):
        first, *others = scene.objects
        changed = {
            "right": scene,
            "background": replace(scene, background=following(scene.background, backgrounds)),
            "style": replace(
                scene,
                objects=(replace(first, style=following(first.style, list(data.styles))), *others),
            ),
        }
        if others:
            changed["relation"] = replace(scene, relation=turned[scene.relation])
            changed["order"] = replace(scene, objects=(others[0], first))
        else:
            other = replace(first, concept=following(first.concept, concepts))
            changed["concept"] = replace(scene, objects=(other,))
            changed["size"] = replace(scene, objects=(replace(first, size=opposite[first.size]),))
            other = replace(first, place=following(first.place, PLACES))
            changed["place"] = replace(scene, objects=(other,))
        for kind, other_scene in changed.items():
            found.setdefault(kind, []).append((i, caption(other_scene)))
    return found


def wrong_word_losses(
    pipe: TextToImage, data: DataSettings, count: int, batch: int
) -> dict[str, tuple[float, float, int]]:
    """Kind of word -> loss with it wrong less right: mean, half of its 95 % interval, scenes.

    In thousandths of the v-prediction loss, the mean of `TIMES`; the same noise for right and
    wrong. The scenes are of a series that training did not draw from.
    """
    import torch

    from sdcore.training.objective import Objective, draw_noise
    from train.emoji.data.scenes import Scenes
    from train.emoji.pretrain_unet import SCHEDULER

    source = Scenes(data)
    scenes = [source.scene(7, i) for i in range(count)]
    captions = wrong_words(data, scenes)
    device = pipe.device
    with torch.no_grad():
        side = pipe.autoencoder.config.side
        parts = [source.images(scenes[i : i + batch], side) for i in range(0, count, batch)]
        latents = torch.cat([pipe.autoencoder.encode(part.to(device)) for part in parts])
        noise = draw_noise(latents.shape, 7, 0).to(device)
        objective = Objective(SCHEDULER | {"prediction_type": "v_prediction"}, device=device)
        losses = {
            kind: {
                i: loss
                for start in range(0, len(rows), batch)
                for i, loss in _losses(pipe, rows[start : start + batch], latents, noise, objective)
            }
            for kind, rows in captions.items()
        }
    right = losses.pop("right")
    result = {}
    for kind, wrong in losses.items():
        gaps = [1000 * (loss - right[i]) for i, loss in wrong.items()]
        half = 1.96 * statistics.stdev(gaps) / math.sqrt(len(gaps))
        result[kind] = (statistics.mean(gaps), half, len(gaps))
    return result


def _losses(
    pipe: TextToImage,
    rows: list[tuple[int, str]],
    latents: Tensor,
    noise: Tensor,
    objective: Objective,
) -> list[tuple[int, float]]:
    """The loss of each (scene, caption), the mean of `TIMES`."""
    import torch

    index = torch.tensor([i for i, _ in rows], device=latents.device)
    assert pipe.tokenizer is not None and pipe.text_encoder is not None
    ids = pipe.tokenizer([caption for _, caption in rows]).ids.to(latents.device)
    text = pipe.text_encoder(ids).last_hidden_state
    total = torch.zeros(len(rows), device=latents.device)
    for at in TIMES:
        noised = objective.add_noise(latents[index], noise[index], at)
        total += objective.errors(pipe.unet(noised.latents, at, text), noised) / len(TIMES)
    return list(zip(index.tolist(), total.tolist(), strict=True))


def run(arguments: argparse.Namespace) -> None:
    from bench.judge import Judge
    from sdcore.training.settings import load_settings
    from train.emoji.data.drawings import load
    from train.emoji.pretrain_unet import UNetSettings

    if arguments.prompts < 12 or arguments.scenes < 20 or arguments.batch_size < 1:
        raise UsageError(
            f"{arguments.prompts} prompts and {arguments.scenes} scenes are too few",
            "a share needs 12 prompts and a loss 20 scenes, taken 1 or more at a time",
            "--prompts 120 --scenes 256",
        )
    runs = Path(arguments.runs)
    # All are opened first, since the pictures of the first would take an hour.
    names, device = arguments.networks, arguments.device
    pipes = {name: open_model(runs / name / "model", device) for name in names}
    result: dict[str, dict[str, Any]] = {}
    for name, pipe in pipes.items():
        settings = load_settings(UNetSettings, runs / name / "resolved.yaml").with_data()
        assert not isinstance(settings.data, str)
        assert pipe.text_encoder is not None
        judge = Judge(load(settings.data), settings.data.backgrounds, settings.data.image_size)
        prompts = prompts_by_length(settings.data, arguments.prompts, seed=0)
        batch = arguments.batch_size
        result[name] = {
            "weights": sum(p.numel() for p in pipe.text_encoder.parameters()),
            "wrong words": wrong_word_losses(pipe, settings.data, arguments.scenes, batch),
            "control": control_table(pipe, prompts, judge, batch, arguments.steps),
        }
        path = arguments.out / "text_encoders.json"
        replace_file(path, json_writer(result, indent=1))
    print(tables(result))


def tables(result: dict[str, dict[str, Any]]) -> str:
    """The two tables: percent (95 % interval), and thousandths of loss (± half of it)."""
    from bench.shares import wilson

    columns = [(length, measure) for length, asked in ASKED.items() for measure in asked]
    heads = [f"{length}: {measure}" for length, measure in columns]
    lines = [f"| text encoder (weights) | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name, found in result.items():
        for row in ("model", "floor"):
            cells = []
            for length, measure in columns:
                hits, count = found["control"][length][row][measure]
                low, high = wilson(hits, count)
                share = f"{100 * hits / count:.0f}" if count else "-"  # no picture had both objects
                cells.append(f"{share} ({100 * low:.0f}-{100 * high:.0f})")
            label = f"{name} ({found['weights']})" if row == "model" else f"{name}, floor"
            lines.append(f"| {label} | {' | '.join(cells)} |")
    kinds = sorted({kind for found in result.values() for kind in found["wrong words"]})
    lines += ["", f"| loss, wrong less right, x 1000 | {' | '.join(kinds)} |"]
    lines.append("|---" * (len(kinds) + 1) + "|")
    for name, found in result.items():
        cells = ["{:.1f} ± {:.1f}".format(*found["wrong words"][kind][:2]) for kind in kinds]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        __doc__,
        prompts=120,
        scenes=256,
        steps=None,
        batch_size=24,
        device="cpu",
        out="runs/text_encoders",
    )
    add = parser.add_argument
    add("--runs", default="runs/text_encoders", help="folder of the runs (default: %(default)s)")
    add("--networks", nargs="+", default=NETWORKS, help="which runs (default: all three)")
    return parser


if __name__ == "__main__":
    main(_parser(), run)
