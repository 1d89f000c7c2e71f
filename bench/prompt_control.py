"""How well does the prompt control the picture? Paint fixed prompts, read the pictures, compare.

    python -m bench.prompt_control                      the embedded model
    python -m bench.prompt_control --model folder       another model of the same drawings
    python -m bench.prompt_control --data configs/train/emoji_data.yaml --prompts 2430
                                                        each of 1944 drawings about once

Needs the drawings (`python -m train.emoji.data.drawings`). Prints a markdown table with a row
for the model, one for each part of its prompts (seen in training or held out; by language, and
where an object has another than its usual name), and, by the same judge and the same prompts: real
drawings composed as the prompt asks (ceiling), the same through the model's autoencoder, and the
model's pictures held against shuffled prompts (floor). A second table has the prompts that
newcomers typed (`bench/prompts/`), by kind, and the same of real drawings as its ceiling. Every
share has its 95 % interval (Wilson 1927), every difference between two rows too (Newcombe 1998).
Writes `prompt_control.json`, which `bench.model_card` makes a card of, and the contact sheet
`pictures.png` into the --out folder.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from bench.command import DATA, load_model, main, make_parser, plain
from bench.shares import Tally, percent, points
from bench.verdict import MEASURES, score
from sdcore.errors import UsageError
from sdcore.files.atomic import json_writer, replace_files

if TYPE_CHECKING:  # torch and the drawings are imported when something is painted
    from PIL.Image import Image

    from bench.judge import Judge, Reading
    from bench.prompts import Prompt
    from train.emoji.data.settings import DataSettings

Painter = Callable[[Sequence[Any]], list["Image"]]  # prompts have a `text`
MODEL, SEEN, HELD_OUT = "model", "model, seen in training", "model, held out"
ENGLISH, CHINESE = "model, English", "model, Chinese"
DIFFERENCES = {  # row -> what it is the difference of
    "held out minus seen, points": (HELD_OUT, SEEN),
    "Chinese minus English, points": (CHINESE, ENGLISH),
}
SHEET = 300  # pictures on the contact sheet


def shuffled(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Each prompt's place taken by another of its kind (one object or two): what chance gives."""
    import numpy as np

    result = list(prompts)
    for two in (False, True):
        group = [i for i, prompt in enumerate(prompts) if bool(prompt.relation) == two]
        group = np.random.default_rng(0).permutation(np.array(group, int))
        for i, other in zip(group, np.roll(group, 1), strict=True):
            result[i] = prompts[other]
    return result


def measure(
    painters: dict[str, Painter], prompts: Sequence[Prompt], judge: Judge
) -> tuple[dict[str, dict[str, Tally]], dict[str, tuple[list[Image], list[Reading]]]]:
    """Rows of the table, and for each painter its pictures and what the judge read in them.

    The first painter is the one that is measured: its prompts are also taken in parts, and
    shuffled for the floor.
    """
    rows, painted = {}, {}
    for name, painter in painters.items():
        images = painter(prompts)
        painted[name] = images, judge.read(images)
    readings = next(iter(painted.values()))[1]
    for label, chosen in parts(prompts).items():
        part = [prompts[i] for i in chosen], [readings[i] for i in chosen]
        rows[label] = score(*part, judge.side)
    for name in list(painted)[1:]:
        rows[name] = score(prompts, painted[name][1], judge.side)
    rows["floor: shuffled prompts"] = score(shuffled(prompts), readings, judge.side)
    return rows, painted


def parts(prompts: Sequence[Prompt]) -> dict[str, list[int]]:
    """Row of the table -> the prompts in it; rows that would be empty or all of them are left out.

    The first is all prompts.
    """
    tests: dict[str, Callable[[Prompt], bool]] = {
        SEEN: lambda prompt: not prompt.held_out,
        HELD_OUT: lambda prompt: prompt.held_out,
        ENGLISH: lambda prompt: prompt.language == "English",
        CHINESE: lambda prompt: prompt.language == "Chinese",
        "model, another name": lambda prompt: prompt.another_name,
    }
    chosen = {label: [i for i, p in enumerate(prompts) if test(p)] for label, test in tests.items()}
    some = {label: rows for label, rows in chosen.items() if 0 < len(rows) < len(prompts)}
    return {MODEL: list(range(len(prompts))), **some}


def table(rows: dict[str, dict[str, Tally]]) -> str:
    """Markdown: percent, 95 % interval and number of prompts for every row and measure.

    Below them the `DIFFERENCES` of rows that are there.
    """
    lines = ["| pictures | " + " | ".join(MEASURES) + " |", "|---" * (len(MEASURES) + 1) + "|"]
    for name, tallies in rows.items():
        lines.append(f"| {name} | " + " | ".join(percent(tallies[m]) for m in MEASURES) + " |")
    for name, (a, b) in DIFFERENCES.items():
        if a in rows and b in rows:
            cells = [points(rows[a][m], rows[b][m]) for m in MEASURES]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def confusions(
    prompts: Sequence[Prompt], readings: Sequence[Reading]
) -> list[tuple[str, str, int]]:
    """(asked, seen, times) for the wrong concepts of one-object prompts, most frequent first."""
    pairs = Counter(
        (prompt.concepts[0], reading.concept)
        for prompt, reading in zip(prompts, readings, strict=True)
        if not prompt.relation and reading.concept != prompt.concepts[0]
    )
    return [(asked, seen, times) for (asked, seen), times in pairs.most_common()]


def model_painter(pipe: Any, batch_size: int, seed: int, choices: dict[str, Any]) -> Painter:
    """Paints prompt i with seed + i; `choices` are further arguments of `TextToImage`."""

    def paint(prompts: Sequence[Prompt]) -> list[Image]:
        from tqdm import tqdm

        images: list[Image] = []
        for start in tqdm(range(0, len(prompts), batch_size), desc="painting", disable=None):
            texts = [prompt.text for prompt in prompts[start : start + batch_size]]
            images += pipe(texts, seed=seed + start, **choices).images
        return images

    return paint


def through_autoencoder(painter: Painter, autoencoder: Any, batch_size: int) -> Painter:
    """The painter's pictures, encoded and decoded: as sharp as the model's pictures can be."""

    def paint(prompts: Sequence[Prompt]) -> list[Image]:
        import numpy as np
        import torch

        from sdcore.image.pictures import to_images

        device = next(autoencoder.parameters()).device
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in painter(prompts)]))
        pixels = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1  # (B, 3, H, W)
        images: list[Image] = []
        with torch.no_grad():
            for part in pixels.split(batch_size):
                images += to_images(autoencoder.decode(autoencoder.encode(part.to(device))))
        return images

    return paint


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        __doc__,
        model=None,
        lora=None,
        data=DATA,
        prompts=600,
        seed=0,
        steps=None,
        guidance_scale=None,
        scheduler=None,
        batch_size=25,
        device="cpu",
        out="runs/prompt_control",
    )
    parser.add_argument(
        "--own",
        type=int,
        default=1000,
        metavar="N",
        help="newcomers' prompts of each kind, at most; 0: none (default: all)",
    )
    return parser


def run(arguments: argparse.Namespace) -> None:
    from bench.contact_sheet import contact_sheet
    from bench.judge import Judge
    from bench.prompts import PerfectPainter, compose
    from sdcore.training.settings import load_settings
    from train.emoji.data.drawings import load
    from train.emoji.data.settings import DataSettings

    if arguments.prompts < 20 or arguments.batch_size < 1:
        raise UsageError(
            f"{arguments.prompts} prompts, {arguments.batch_size} at a time, are too few",
            "a share needs at least 20 prompts, painted 1 or more at a time",
            "--prompts 600",
        )
    settings = load_settings(DataSettings, arguments.data)
    judge = Judge(load(settings), settings.backgrounds, settings.image_size)
    prompts = compose(settings, arguments.prompts, arguments.seed)
    pipe = load_model(arguments.model, arguments.device, arguments.lora)
    batch = arguments.batch_size
    choices = {key: getattr(arguments, key) for key in ("steps", "guidance_scale", "scheduler")}
    real = PerfectPainter(settings, arguments.seed, side=pipe.autoencoder.config.side)
    painters: dict[str, Painter] = {
        MODEL: model_painter(pipe, batch, arguments.seed, choices),
        "ceiling: real drawings": real,
        "ceiling: through the autoencoder": through_autoencoder(real, pipe.autoencoder, batch),
    }
    start = time.perf_counter()
    rows, painted = measure(painters, prompts, judge)
    print(table(rows))
    own = _own_words(settings, judge, painters[MODEL], arguments.seed, arguments.own)
    images, readings = painted[MODEL]
    wrong = confusions(prompts, readings)
    most = "; ".join(f"{asked}, {seen}, {times}" for asked, seen, times in wrong[:12])
    print(f"\nmost confused (asked, seen, times): {most or 'none'}")
    folder = arguments.out
    records = [asdict(p) | {"read": asdict(r)} for p, r in zip(prompts, readings, strict=True)]
    sampling = {k: getattr(pipe.defaults, k) if v is None else v for k, v in choices.items()}
    result: dict[str, Any] = {
        "settings": plain(arguments) | sampling,
        "rows": rows,
        "confusions": wrong,
        "own_words": own,
    }
    result["pictures"] = records
    sheet = contact_sheet(prompts[:SHEET], images[:SHEET], readings[:SHEET])
    files = {"prompt_control.json": json_writer(result, indent=1), "pictures.png": sheet.save}
    replace_files(folder, files)
    print(f"{time.perf_counter() - start:.0f} s; pictures and figures: {folder}")


def _own_words(
    settings: DataSettings, judge: Judge, paint: Painter, seed: int, most: int
) -> dict[str, dict[str, dict[str, Tally]]]:
    """The rows of the second table, which is printed: the model's and real drawings'.

    Empty where none of its prompts can be asked.
    """
    from bench.own_prompts import measure_own, own_table, perfect, read_asked, some_of

    asked = some_of(read_asked(settings), most)
    if not asked:
        return {}
    model, _ = measure_own(settings, judge, paint, asked)
    ceiling, _ = measure_own(settings, judge, perfect(settings, seed), asked)
    print(f"\nnewcomers' own words\n\n{own_table(model)}")
    print(f"\nthe same, real drawings\n\n{own_table(ceiling)}")
    return {"model": model, "ceiling": ceiling}


if __name__ == "__main__":
    main(_parser(), run)
