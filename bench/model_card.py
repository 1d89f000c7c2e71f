"""The figures of a model card, from what `bench.prompt_control` wrote.

    python -m bench.model_card runs/prompt_control/prompt_control.json          print them
    python -m bench.model_card prompt_control.json card.md other.md             and write them there

A card's figures stand between the lines `<!-- figures -->` and `<!-- end of figures -->`; what is
between them is replaced. They are the main table, that of newcomers' own words where these were
asked, figures by style, and the twenty concepts that the model paints worst. How sure a concept's
figure is depends on how often it was asked for: `--prompts 2430` asks for each of 324 about six
times.

With `--run FOLDER ...`, the folders of the training runs that led to the model, they end with time
and energy: hours by the runs' own rates, energy by watts that are assumed, not measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.command import main, make_parser
from bench.pages import fill
from bench.prompt_control import table
from bench.shares import Tally, percent, wilson
from bench.verdict import score
from sdcore.errors import FileError

if TYPE_CHECKING:
    from bench.judge import Reading
    from bench.prompts import Prompt

BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
WORST = 20
Pairs = Sequence[tuple["Prompt", "Reading"]]


@dataclass(frozen=True)
class Effort:
    """What training took.

    Attributes:
        hours: of all runs together; images: scenes seen in them.
        cores: that were busy; watts: of one of them with its share of the machine, assumed.
    """

    hours: float
    images: int
    cores: int
    watts: float

    @property
    def kilowatt_hours(self) -> float:
        return self.hours * self.cores * self.watts / 1000

    def __str__(self) -> str:
        return (
            f"Training took about {self.hours:.1f} hours on {self.cores} cores, for "
            f"{self.images:,} scenes in all. Energy was not measured: at an assumed "
            f"{self.watts:g} W a core, its share of the machine included, it is about "
            f"{self.kilowatt_hours:.2g} kWh."
        )


def training_time(run: Path) -> tuple[float, int]:
    """Hours and scenes of a training run, from the rates in its `metrics.jsonl`.

    A rate is the mean since the run was last started, so the hours are an estimate; steps that were
    done twice because a run was stopped count once.
    """
    from sdcore.training.settings import read_yaml

    path = run / "metrics.jsonl"
    if not path.is_file():
        raise FileError(f"{path} not found", "no training run wrote into this folder", "see --run")
    batch = read_yaml(run / "resolved.yaml")["run"]["batch_size"]
    seconds, done = 0.0, 0
    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line)
        new = max(row["step"] + 1 - done, 0)
        seconds += new * batch / row["images_per_second"]
        done += new
    return seconds / 3600, done * batch


def read_result(path: Path) -> tuple[dict[str, Any], Pairs]:
    """What `bench.prompt_control` wrote, and its prompts with what was read in their pictures."""
    from bench.judge import Reading
    from bench.prompts import Prompt

    if not path.is_file():
        raise FileError(f"{path} not found", "nothing was measured yet", "make bench")
    try:
        result = json.loads(path.read_text("utf-8"))
        pairs = []
        for record in result["pictures"]:
            read = record.pop("read")
            for row, key in (
                (record, "concepts"),
                (record, "names"),
                (read, "center"),
                (read, "things"),
            ):
                if key in row:  # else Prompt or Reading says what is missing
                    row[key] = tuple(row[key])
            pairs.append((Prompt(**record), Reading(**read)))
        if not (result["rows"] and result["settings"] and pairs):
            raise ValueError("it holds no rows, no settings or no pictures")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileError(
            f"{path} holds no result of bench.prompt_control",
            f"{type(error).__name__}: {error}",
            "make it again: make bench",
        ) from error
    return result, pairs


def figures(result: dict[str, Any], pairs: Pairs, effort: Effort | None = None) -> str:
    """The markdown between the markers."""
    asked = result["settings"]
    parts = [
        f"Percent with the 95 % interval; {len(pairs)} prompts (seed {asked['seed']}), "
        f"{asked['steps']} steps of {asked['scheduler'] or 'its scheduler'}, guidance "
        f"{asked['guidance_scale']:g}. Remade by `python -m bench.prompt_control --data "
        f"{asked['data']} --prompts {len(pairs)}`, then `python -m bench.model_card`.",
        table(result["rows"]),
        "*Relation* is the share of those pictures that show both objects.",
        *own_words(result.get("own_words") or {}),
        "By style, with the style that was seen most often instead:",
        by_style(pairs),
        worst_concepts(pairs),
    ]
    return "\n\n".join([*parts, str(effort)] if effort else parts)


def own_words(found: dict[str, dict[str, dict[str, Tally]]]) -> list[str]:
    """Markdown: newcomers' prompts by kind, and the same of real drawings; none: nothing."""
    if not found:
        return []
    from bench.own_prompts import KINDS, own_table

    rows = {**found["model"], **{f"ceiling: {k}": found["ceiling"][k] for k in KINDS.values()}}
    said = "Prompts as newcomers type them (`bench/prompts/`), by what they ask for:"
    return [said, own_table(rows)]


def by_style(pairs: Pairs) -> str:
    """Markdown: what the pictures of each style show."""
    measures = ("concept", "style", "both objects")
    lines = [f"| style | {' | '.join(measures)} | taken for |", "|---" * 5 + "|"]
    for style in sorted({prompt.style for prompt, _ in pairs}):
        chosen = [pair for pair in pairs if pair[0].style == style]
        tallies = score([prompt for prompt, _ in chosen], [reading for _, reading in chosen])
        cells = [percent(tallies[measure], digits=0) for measure in measures]
        seen = Counter(r.style for p, r in chosen if not p.relation and r.style != style)
        lines.append(f"| {style} | {' | '.join(cells)} | {_most(seen, 1)} |")
    return "\n".join(lines)


def concepts(pairs: Pairs) -> dict[str, tuple[Tally, Counter[str]]]:
    """Concept -> (right, asked) in scenes with one object, and what was seen instead."""
    found: dict[str, tuple[Tally, Counter[str]]] = {}
    for prompt, reading in pairs:
        if not prompt.relation:
            name = prompt.concepts[0]
            (right, asked), wrong = found.get(name, ((0, 0), Counter()))
            if reading.concept != name:
                wrong[reading.concept] += 1
            found[name] = (right + (reading.concept == name), asked + 1), wrong
    return found


def worst_concepts(pairs: Pairs, count: int = WORST) -> str:
    """Markdown: the concepts of which it is surest that they are seldom right."""
    found = concepts(pairs)
    times = sorted(asked for (_, asked), _ in found.values())
    usual = int(statistics.median(times))
    order = sorted(found, key=lambda name: (wilson(*found[name][0])[1], name))
    failed = [name for name in order if found[name][1]]
    lines = [
        f"{len(found) - len(failed)} of {len(found)} concepts were right in every picture. Each "
        f"was asked for {times[0]} to {times[-1]} times, so that one concept's figure is rough: "
        f"{usual} right of {usual} can be {100 * wilson(usual, usual)[0]:.0f} %. The "
        f"{min(count, len(failed))} worst, by the upper end of the interval:",
        "",
        "| concept | asked | right | taken for |",
        "|---|---|---|---|",
    ]
    for name in failed[:count]:
        (right, asked), wrong = found[name]
        lines.append(f"| {name} | {asked} | {right} | {_most(wrong, 3)} |")
    return "\n".join(lines)


def _most(seen: Counter[str], count: int) -> str:
    named = (f"{name} {times}" for name, times in seen.most_common(count))
    return ", ".join(named) or "-"


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("result", type=Path, help="prompt_control.json of the model")
    add("pages", nargs="*", type=Path, help="markdown files whose figures are replaced")
    add("--run", nargs="+", type=Path, default=[], help="folders of the training runs")
    add("--cores", type=int, default=2, help="busy in them (default: %(default)s)")
    add("--watts", type=float, default=10.0, help="of a core, assumed (default: %(default)s)")
    return parser


def run(arguments: argparse.Namespace) -> None:
    effort = None
    if arguments.run:
        hours, images = zip(*map(training_time, arguments.run), strict=True)
        effort = Effort(sum(hours), sum(images), arguments.cores, arguments.watts)
    text = figures(*read_result(arguments.result), effort)
    print(text)
    for page in arguments.pages:
        fill(page, BEGIN, END, text)


if __name__ == "__main__":
    main(_parser(), run)
