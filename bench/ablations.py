"""What is each part good for? Take it away, paint again, and look.

    python -m bench.ablations --out docs/ablations --page docs/ablations.md    remakes that page
    python -m bench.ablations --model folder --prompts 0 --prompt "a red fox" fox red

Taken away from the network, for the rows of the prompt and of the negative prompt: cross-attention
on one grid or on all, every head but one. From the text: the text encoder's positions; for the rows
of the prompt alone: the key or the value of a word, or the values of all words, or of the tokens
that follow the last word. How: bench/taken_away.py.

Writes `network.png` and `text.png`, a row for each of some fixed prompts, and `ablations.json` into
the --out folder. Prints a markdown table of what the judge still finds as the prompt asked, with
95 % intervals (Wilson 1927), and puts it into --page; half of its prompts have two objects. It
needs the drawings (`python -m train.emoji.data.drawings`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.command import DATA, load_model, main, make_parser, plain
from bench.pages import around, fill
from bench.prompt_control import shuffled, table
from bench.prompts import Prompt, compose
from bench.shares import Tally
from bench.taken_away import Ablation, Case, of_the_network, of_the_text
from bench.verdict import score
from sdcore.errors import UsageError
from sdcore.files.atomic import json_writer, replace_file

if TYPE_CHECKING:
    from PIL.Image import Image

    from bench.judge import Judge
    from train.emoji.data.settings import DataSettings

PLACE = "<!-- table:", "<!-- end of table -->"  # of the table on the page

CASES = (
    Case("a big fox in flat style on a light blue background", "fox", "light blue"),
    Case("a car on the left in flat style on a yellow background", "car", "yellow"),
    Case("a small snowman at the top in flat style on a pink background", "snowman", "pink"),
    Case("a fox to the left of a cat in flat style on a gray background", "fox", "gray"),
)


def paint(
    ablation: Ablation, cases: Sequence[Case], seed: int, batch: int, choices: dict[str, Any]
) -> list[Image]:
    """Case i with seed + i; `choices` are further arguments of `TextToImage`."""
    images, pipe = [], ablation.pipe
    for start in range(0, len(cases), batch):
        part = cases[start : start + batch]
        texts = [case.text for case in part]
        control = ablation.control(pipe.readers[0][0](texts), part)
        images += pipe(texts, seed=seed + start, control=control, **choices).images
    return images


def choose_prompts(settings: DataSettings, count: int, seed: int) -> list[Prompt]:
    """Prompts of the measurement, half of them with two objects where the settings have such."""
    prompts = [prompt for prompt in compose(settings, 10 * count, seed) if _can_be_blanked(prompt)]
    two = [prompt for prompt in prompts if prompt.relation][: count // 2]
    return two + [prompt for prompt in prompts if not prompt.relation][: count - len(two)]


def _can_be_blanked(prompt: Prompt) -> bool:
    """Whether object and colour stand in the text by these names, and the colour only once."""
    named = prompt.language == "English" and not prompt.another_name
    return named and prompt.background not in " ".join(prompt.concepts).split()


def measure(
    ablations: Sequence[Ablation], prompts: Sequence[Prompt], judge: Judge, **how: Any
) -> dict[str, dict[str, Tally]]:
    """What the judge finds as asked under each ablation; last, the first one's floor."""
    cases = [Case(prompt.text, prompt.concepts[0], prompt.background) for prompt in prompts]
    rows, floor = {}, {}
    for ablation in ablations:
        readings = judge.read(paint(ablation, cases, **how))
        rows[ablation.name] = score(prompts, readings, judge.side)
        floor = floor or score(shuffled(prompts), readings, judge.side)
        print(ablation.name, rows[ablation.name], flush=True)
    return rows | {"floor: shuffled prompts": floor}


def describe(prompts: Sequence[Prompt], steps: int) -> str:
    """What the figures are of, in a line."""
    two, how = sum(bool(p.relation) for p in prompts), f"`--prompts {len(prompts)} --steps {steps}`"
    return f"{len(prompts)} prompts, {two} of them with two objects, {steps} steps each ({how}):"


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        __doc__,
        model=None,
        data=DATA,
        prompts=60,
        seed=0,
        steps=10,
        guidance_scale=None,
        batch_size=20,
        device="cpu",
        out="runs/ablations",
    )
    add = parser.add_argument
    text = "paint this in place of the fixed prompts, and blank these of its words; may be repeated"
    add("--prompt", nargs=3, action="append", metavar=("TEXT", "NOUN", "COLOUR"), help=text)
    add("--page", type=Path, metavar="FILE", help="put the table into this page (default: none)")
    return parser


def run(arguments: argparse.Namespace) -> None:
    from bench.judge import Judge
    from sdcore.image.grid import labelled_grid
    from sdcore.training.settings import load_settings
    from train.emoji.data.drawings import load
    from train.emoji.data.settings import DataSettings

    if arguments.prompts < 0 or arguments.batch_size < 1:
        what = f"{arguments.prompts} prompts, {arguments.batch_size} at a time, cannot be painted"
        raise UsageError(what, "they count prompts and pictures", "--prompts 60 --batch-size 20")
    if arguments.page and not arguments.prompts:
        raise UsageError("--page has nothing to hold", "--prompts 0 makes no table", "leave it out")
    if arguments.page:
        around(arguments.page, *PLACE)  # refused now, not when all is painted
    pipe = load_model(arguments.model, arguments.device)
    scale = arguments.guidance_scale
    guided = (pipe.defaults.guidance_scale if scale is None else scale) > 1
    choices = {"steps": arguments.steps, "guidance_scale": scale}
    how: dict[str, Any] = {
        "seed": arguments.seed,
        "batch": arguments.batch_size,
        "choices": choices,
    }
    cases = [Case(*given) for given in arguments.prompt or ()] or CASES
    whole = Ablation("nothing removed", pipe)
    groups = {"network": of_the_network(pipe, guided), "text": of_the_text(pipe)}
    start = time.perf_counter()
    for name, group in groups.items():
        columns = [paint(ablation, cases, **how) for ablation in (whole, *group)]
        rows = list(zip(*columns, strict=True))
        names = ["nothing removed", *(ablation.name for ablation in group)]
        sheet = labelled_grid(rows, names, [case.text for case in cases], side=128)
        save = partial(sheet.save, optimize=True)
        replace_file(arguments.out / f"{name}.png", save)
    if arguments.prompts:
        settings = load_settings(DataSettings, arguments.data)
        judge = Judge(load(settings), settings.backgrounds, settings.image_size)
        prompts = choose_prompts(settings, arguments.prompts, arguments.seed)
        figures = measure([whole, *groups["network"], *groups["text"]], prompts, judge, **how)
        result = {
            "settings": plain(arguments),
            "prompts": [p.text for p in prompts],
            "rows": figures,
        }
        replace_file(arguments.out / "ablations.json", json_writer(result, indent=1))
        text = f"{describe(prompts, arguments.steps)}\n\n{table(figures)}"
        print(text)
        if arguments.page:
            fill(arguments.page, *PLACE, text)
    print(f"{time.perf_counter() - start:.0f} s; pictures and figures: {arguments.out}")


if __name__ == "__main__":
    main(_parser(), run)
