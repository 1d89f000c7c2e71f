"""RNN, LSTM and Transformer side by side: accuracy against length, and time, at one budget.

    python -m train.sequence_task --config configs/train/sequence_reverse.yaml
    python -m train.sequence_task --config configs/train/sequence_parity.yaml

Every network has about as many weights, sees the same examples in the same order and gets as many
steps; what differs is the learning rate, tried out on a seed that is not among those counted.
`reverse`: a string of letters is written backwards. `parity`: is the number of ones in a string of
zeros and ones even or odd? An answer counts when every word of it, the end mark included, is right.
Writes `<task>.json` and `<task>.svg` into the folder of the settings; a run that was stopped goes
on with the trainings that are left.
"""

from __future__ import annotations

import json
import statistics
import time
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdcore.attention_choice import use_attention
from sdcore.errors import UsageError
from sdcore.files.atomic import json_writer, replace_file
from sdcore.sequence.decoding import greedy
from sdcore.sequence.recurrent_translator import RecurrentTranslator, RecurrentTranslatorConfig
from sdcore.sequence.transformer import Transformer, TransformerConfig
from sdcore.training.command import main
from sdcore.training.settings import Settings
from sdcore.training.state import generator
from train.chart import Point, line_chart

FIRST, LAST = 0, 1  # ids that begin and end a text; the words of a task follow
MODELS = ("rnn", "lstm", "rnn + attention", "lstm + attention", "transformer")
Model = Transformer | RecurrentTranslator


class SequenceSettings(Settings):
    task: Literal["reverse", "parity"]
    learning_rates: dict[str, float]  # of each model that is compared, see MODELS
    seeds: list[int] = [1, 2, 3]
    weights: int = 60_000  # of each network, as near as its width allows
    steps: int = 1500
    batch_size: int = 64
    warmup_share: float = 0.1  # of the steps, over which the rate rises; then it falls to zero
    longest_trained: int = 8  # lengths from 1 on come equally often, one to a batch
    test_lengths: list[int]
    test_examples: int = 200  # of each length
    speed_lengths: list[int] = []  # at which steps and decoding are timed
    folder: str = "docs/recurrent_and_transformer"


def words_of(task: str) -> int:
    """How many ids there are: the two marks and eight letters, or the two marks, 0 and 1."""
    return {"reverse": 10, "parity": 4}[task]


def examples(task: str, count: int, length: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sources (B, T) and answers (B, N), whose last word is the end mark."""
    source = torch.randint(2, words_of(task), (count, length), generator=draw)
    odd = (source - 2).sum(dim=1, keepdim=True) % 2
    answer = source.flip(1) if task == "reverse" else odd + 2
    return source, F.pad(answer, (0, 1), value=LAST)


def build(name: str, words: int, width: int) -> Model:
    """A network of `MODELS`, fresh."""
    if name == "transformer":
        model = Transformer(TransformerConfig(words, words, width, heads=4, layers=2))
        use_attention(model, "auto")
        return model
    cell, *attention = name.split(" + ")
    config = RecurrentTranslatorConfig(words, words, width, cell, attention=bool(attention))
    return RecurrentTranslator(config)


def count_weights(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def matching_width(name: str, words: int, weights: int) -> int:
    """The multiple of 4 (the Transformer's heads) whose network comes nearest to `weights`."""

    def size(width: int) -> int:
        with torch.device("meta"):
            return count_weights(build(name, words, width))

    widths = range(4, 1024, 4)
    above = min(bisect_left(widths, weights, key=size), len(widths) - 1)
    return min(widths[max(above - 1, 0) : above + 1], key=lambda w: abs(size(w) - weights))


def train_one(settings: SequenceSettings, name: str, seed: int, width: int) -> dict:
    """Train one network; accuracy at each length, the last losses and the time of a step."""
    torch.manual_seed(seed)
    model = build(name, words_of(settings.task), width).train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=settings.learning_rates[name],
        total_steps=settings.steps,
        pct_start=settings.warmup_share,
        cycle_momentum=False,
    )
    losses = []
    began = time.process_time()
    for step in range(settings.steps):
        draw = generator(seed, settings.task, step, 0)  # the same for every network
        length = int(torch.randint(1, settings.longest_trained + 1, (), generator=draw))
        source, answer = examples(settings.task, settings.batch_size, length, draw)
        losses.append(training_step(model, source, answer))
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    seconds = time.process_time() - began
    return {
        "model": name,
        "seed": seed,
        "loss": statistics.mean(losses[-100:]),
        "step_ms": 1000 * seconds / settings.steps,
        "accuracy": {str(n): accuracy(settings, model, n) for n in settings.test_lengths},
    }


def training_step(model: Model, source: Tensor, answer: Tensor) -> float:
    """Teacher forcing: each word is predicted from the right words before it."""
    before = F.pad(answer[:, :-1], (1, 0), value=FIRST)
    loss = F.cross_entropy(model(source, before).transpose(1, 2), answer)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    return loss.item()


@torch.no_grad()
def accuracy(settings: SequenceSettings, model: Model, length: int) -> float:
    """Share of unseen strings whose whole answer is right, written greedily."""
    draw = generator(0, f"test {settings.task}", length, 0)
    source, answer = examples(settings.task, settings.test_examples, length, draw)
    model.eval()
    words = greedy(model, source, first=FIRST, last=LAST, most=answer.shape[1])
    words = F.pad(words, (0, answer.shape[1] - words.shape[1]), value=LAST)
    return (words == answer).all(dim=1).float().mean().item()


def measure_speed(settings: SequenceSettings, widths: dict[str, int], rounds: int = 5) -> list:
    """Milliseconds of one processor: a training step, and writing one string; medians.

    The networks take turns, so that what slows the machine down for a while slows all of them.
    """
    words = words_of(settings.task)
    models = {name: build(name, words, width) for name, width in widths.items()}
    times: dict[tuple[str, int, str], list[float]] = {}
    for turn in range(rounds + 1):  # the first one warms up
        for length in settings.speed_lengths:
            source, answer = examples(
                "reverse", settings.batch_size, length, generator(0, "", 0, 0)
            )
            source, answer = (ids.clamp(max=words - 1) for ids in (source, answer))
            for name, model in models.items():
                # Without an end mark all write equally many words.
                work: dict[str, Callable[[], object]] = {
                    "step": lambda m=model, s=source, a=answer: training_step(m, s, a),
                    "write": lambda m=model, s=source[:1], n=length: greedy(
                        m, s, first=FIRST, last=None, most=n
                    ),
                }
                for kind, run in work.items():
                    began = time.process_time()
                    run()
                    if turn:
                        spent = 1000 * (time.process_time() - began)
                        times.setdefault((name, length, kind), []).append(spent)
    return [
        {"model": name, "length": length, "what": what, "ms": statistics.median(spent)}
        for (name, length, what), spent in times.items()
    ]


def train(settings: SequenceSettings) -> None:
    unknown = [name for name in settings.learning_rates if name not in MODELS]
    if unknown:
        raise UsageError(f"learning_rates: {unknown[0]!r}", "no such model", f"use {MODELS}")
    torch.set_num_threads(1)
    folder = Path(settings.folder)
    path = folder / f"{settings.task}.json"
    result = _resume(path, settings)
    words = words_of(settings.task)
    widths = {n: matching_width(n, words, settings.weights) for n in settings.learning_rates}
    result["networks"] = {
        name: {"width": width, "weights": count_weights(build(name, words, width))}
        for name, width in widths.items()
    }
    for seed in settings.seeds:
        for name, width in widths.items():
            if not any((run["model"], run["seed"]) == (name, seed) for run in result["runs"]):
                run = train_one(settings, name, seed, width)
                result["runs"].append(run)
                replace_file(path, json_writer(result, indent=1))
                print(json.dumps(run), flush=True)
    if settings.speed_lengths and not result["speed"]:
        result["speed"] = measure_speed(settings, widths)
        replace_file(path, json_writer(result, indent=1))
    chart(settings, result, path.with_suffix(".svg"))
    print(table(settings, result))


def _resume(path: Path, settings: SequenceSettings) -> dict:
    """What a run of the same settings has already found, or nothing yet."""
    fresh = {"settings": settings.model_dump(mode="json"), "networks": {}, "runs": [], "speed": []}
    if not path.is_file():
        return fresh
    found = json.loads(path.read_text("utf-8"))
    if found["settings"] != fresh["settings"]:
        raise UsageError(
            f"{path} holds results of other settings", "they cannot be mixed", "move it away"
        )
    return found


def shares(result: dict, name: str, length: int) -> list[float]:
    """Accuracy of each seed, in percent."""
    return [100 * r["accuracy"][str(length)] for r in result["runs"] if r["model"] == name]


def chart(settings: SequenceSettings, result: dict, path: Path) -> None:
    """Mean accuracy of the seeds against length; the bars reach from the worst to the best."""
    lines = {
        name: [
            Point(n, statistics.mean(found), min(found), max(found))
            for n in settings.test_lengths
            for found in [shares(result, name, n)]
        ]
        for name in settings.learning_rates
    }
    trained = [n for n in settings.test_lengths if n <= settings.longest_trained]
    titles = {"reverse": "A string written backwards", "parity": "Even or odd number of ones"}
    line_chart(
        path,
        lines,
        title=f"{titles[settings.task]}: whole answer right, {len(settings.seeds)} seeds",
        x_label="length of the string",
        y_label="percent right",
        y_ticks=[0, 20, 40, 60, 80, 100],
        marked=(min(trained), max(trained), "lengths seen in training"),
    )


def table(settings: SequenceSettings, result: dict) -> str:
    """Markdown: percent right at each length, mean ± standard deviation over the seeds; times."""
    lengths = [
        n for n in settings.test_lengths if shares(result, next(iter(result["networks"])), n)
    ]
    lines = [f"| network (weights) | {' | '.join(map(str, lengths))} | ms per step |"]
    lines.append("|---" * (len(lengths) + 2) + "|")
    for name, size in result["networks"].items():
        cells = [_mean(shares(result, name, n)) for n in lengths]
        steps = [run["step_ms"] for run in result["runs"] if run["model"] == name]
        cells.append(f"{statistics.median(steps):.1f}")
        lines.append(f"| {name} ({size['weights']}) | {' | '.join(cells)} |")
    for what in ("step", "write"):
        rows = {name: _times(result, name, what) for name in result["networks"]}
        if any(rows.values()):
            lines += ["", f"| {what}, ms | {' | '.join(map(str, settings.speed_lengths))} |"]
            lines.append("|---" * (len(settings.speed_lengths) + 1) + "|")
            lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    return "\n".join(lines)


def _mean(values: list[float]) -> str:
    return f"{statistics.mean(values):.0f} ± {statistics.stdev(values) if values[1:] else 0:.0f}"


def _times(result: dict, name: str, what: str) -> list[str]:
    return [
        f"{row['ms']:.1f}" for row in result["speed"] if (row["model"], row["what"]) == (name, what)
    ]


if __name__ == "__main__":
    main(train, SequenceSettings, "configs/train/sequence_reverse.yaml", __doc__)
