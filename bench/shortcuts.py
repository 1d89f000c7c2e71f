"""What do runs with fewer operations gain, and what do they lose?

    python -m bench.shortcuts                          every way, by the embedded model
    python -m bench.shortcuts --only plain "deepcache 2"
    python -m bench.shortcuts --prompts 600 --every 1  the whole table of prompt control

Time is that of a batch of pictures, the ways taking turns; what counts is the median of the ratios
of turns to the plain run. PSNR and SSIM (Wang et al. 2004) are those of pictures to the plain run's
of the same prompts and seeds. Prompt control is that of `bench.prompt_control`, on every n-th of
its prompts with the same seed for all ways: "right" is the share of all that was asked for, "lost"
and "gained" are how many of it the plain run had right and this one not, and the other way round.
Needs the drawings (`python -m train.emoji.data.drawings`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.command import DATA, load_model, main, make_parser
from bench.shares import percent

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

PLAIN = "plain"
WAYS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "deepcache 2": {"deepcache": 2},
    "deepcache 3": {"deepcache": 3},
    "deepcache 5": {"deepcache": 5},
    "tgate 10": {"tgate": 10},
    "tgate 15": {"tgate": 15},
    "coarse keys 2": {"coarse_keys": 2},
    "guidance 0-0.5": {"guidance_interval": (0.0, 0.5)},
    "guidance 0.2-0.8": {"guidance_interval": (0.2, 0.8)},
    "guidance 0-0.5, deepcache 2": {"guidance_interval": (0.0, 0.5), "deepcache": 2},
    "16 steps": {"steps": 16},
    "12 steps": {"steps": 12},
    "8 steps": {"steps": 8},
    "12 steps, guidance 0-0.5": {"steps": 12, "guidance_interval": (0.0, 0.5)},
    "12 steps, deepcache 2": {"steps": 12, "deepcache": 2},
    "12 steps, deepcache 3": {"steps": 12, "deepcache": 3},
    "8 steps, deepcache 2": {"steps": 8, "deepcache": 2},
    "16 steps, guidance 0-0.5": {"steps": 16, "guidance_interval": (0.0, 0.5)},
    "10 steps": {"steps": 10},
}
ALIKE = 24  # pictures of which PSNR and SSIM are taken


def parser() -> argparse.ArgumentParser:
    made = make_parser(
        __doc__, model=None, data=DATA, prompts=600, seed=0, batch_size=8, rounds=5, threads=0
    )
    made.add_argument("--only", nargs="+", choices=tuple(WAYS), default=list(WAYS))
    text = "of the prompts, each n-th is asked (default: 4)"
    made.add_argument("--every", type=int, metavar="N", default=4, help=text)
    made.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="for the times")
    made.add_argument("--json", type=Path, metavar="FILE", help="where the results are written")
    return made


def run(arguments: argparse.Namespace) -> None:
    import torch

    from bench.prompts import compose
    from sdcore.training.settings import load_settings
    from train.emoji.data.settings import DataSettings

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    ways = {name: WAYS[name] for name in dict.fromkeys([PLAIN, *arguments.only])}
    settings = load_settings(DataSettings, arguments.data)
    prompts = compose(settings, arguments.prompts, arguments.seed)[:: arguments.every]
    pipe = load_model(arguments.model)
    results: dict[str, dict[str, Any]] = {name: {} for name in ways}
    ratios(pipe, [prompt.text for prompt in prompts], ways, arguments, results)
    control(pipe, settings, prompts, ways, arguments, results)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


def ratios(
    pipe: Any,
    texts: Sequence[str],
    ways: dict[str, dict[str, Any]],
    arguments: argparse.Namespace,
    results: dict[str, dict[str, Any]],
) -> None:
    """The time of each way by that of the plain run, in turns."""
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    batch = texts[: arguments.batch_size]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    pipe(batch, seed=0, steps=2, progress=False)
    for _ in range(arguments.rounds):
        for name, settings in ways.items():
            began = clock()
            pipe(batch, seed=0, progress=False, **settings)
            seconds[name].append(clock() - began)
    for name, times in seconds.items():
        pairs = zip(seconds[PLAIN], times, strict=True)
        results[name]["times as fast"] = statistics.median(plain / own for plain, own in pairs)
        results[name]["seconds"] = statistics.median(times) / len(batch)


def control(
    pipe: Any,
    settings: Any,
    prompts: Sequence[Any],
    ways: dict[str, dict[str, Any]],
    arguments: argparse.Namespace,
    results: dict[str, dict[str, Any]],
) -> None:
    """What the pictures of each way got right, and how near they are to those of the plain run."""
    import numpy as np

    from bench.judge import Judge
    from bench.prompt_control import model_painter
    from bench.verdict import score, verdict
    from train.emoji.data.drawings import load

    judge = Judge(load(settings), settings.backgrounds, settings.image_size)
    of_plain: tuple[list[Image], list[dict[str, bool]]] | None = None
    for name, choices in ways.items():
        paint = model_painter(pipe, arguments.batch_size, arguments.seed, choices)
        images = paint(prompts)
        readings = judge.read(images)
        right = [verdict(*pair, judge.side) for pair in zip(prompts, readings, strict=True)]
        of_plain = of_plain or (images, right)
        both = [
            (before[what], now[what])
            for before, now in zip(of_plain[1], right, strict=True)
            for what in now
        ]
        pairs = [
            (np.asarray(one, np.float64), np.asarray(other, np.float64))
            for one, other in zip(of_plain[0][:ALIKE], images, strict=False)
        ]
        results[name] |= {
            "right": (sum(now for _, now in both), len(both)),
            "lost": sum(before and not now for before, now in both),
            "gained": sum(now and not before for before, now in both),
            "control": score(prompts, readings, judge.side),
        }
        if name != PLAIN:
            results[name]["psnr"] = statistics.mean(psnr(*pair) for pair in pairs)
            results[name]["ssim"] = statistics.mean(ssim(*pair) for pair in pairs)
        print(row(name, results), flush=True)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Decibels between two pictures (H, W, 3) of 8 bits; 99 for equal ones."""
    import numpy as np

    error = float(np.square(one - other).mean())
    return 99.0 if error == 0 else float(10 * np.log10(255**2 / error))


def ssim(one: np.ndarray, other: np.ndarray) -> float:
    """Structural similarity of two pictures (H, W, 3) of 8 bits, mean over places and channels.

    Wang et al. 2004: Gaussian windows of 11 x 11 with a deviation of 1.5 pixels.
    """
    import torch
    import torch.nn.functional as F

    bell = torch.exp(-((torch.arange(11.0, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    window = torch.outer(bell, bell)[None, None] / bell.sum() ** 2
    x, y = (torch.as_tensor(p).permute(2, 0, 1)[:, None] for p in (one, other))

    def mean(of: torch.Tensor) -> torch.Tensor:
        return F.conv2d(of, window)

    mx, my = mean(x), mean(y)
    vx, vy, together = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    found = (2 * mx * my + c1) * (2 * together + c2)
    return float((found / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean())


def row(name: str, results: dict[str, dict[str, Any]]) -> str:
    """A line of a Markdown table; before the plain run's, its head."""
    found, plain = results[name], results[PLAIN]
    (hits, count), (plain_hits, _) = found["right"], plain["right"]
    cells = {
        "run": name,
        "times as fast": f"{found['times as fast']:.2f}",
        "PSNR": f"{found['psnr']:.1f}" if "psnr" in found else "",
        "SSIM": f"{found['ssim']:.3f}" if "ssim" in found else "",
        "right, percent": percent((hits, count)),
        "points": f"{100 * (hits - plain_hits) / count:+.1f}",
        "lost / gained": f"{found['lost']} / {found['gained']}",
    }
    cells |= {what: f"{100 * h / max(n, 1):.1f}" for what, (h, n) in found["control"].items()}
    line = f"| {' | '.join(cells.values())} |"
    if name != PLAIN:
        return line
    return f"| {' | '.join(cells)} |\n{'|---' * len(cells)}|\n{line}"


if __name__ == "__main__":
    main(parser(), run)
