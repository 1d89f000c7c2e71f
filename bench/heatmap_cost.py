"""What word heatmaps and prompt editing cost: time and peak memory beside the plain run.

    python -m bench.heatmap_cost                              SD 1.5 at 512x512, CPU, bfloat16
    python -m bench.heatmap_cost sdxl --device cuda --dtype float16
    python -m bench.heatmap_cost sd15 --latents 32 --clock cpu
    python -m bench.heatmap_cost sdxl --few --threads 2        where one call takes minutes

One step of a guided run, so a call of the UNet on the rows of the negative prompt and the prompt,
random weights. Ways: `plain`; `heatmaps` of a prompt of twelve words; `columns`, a map for each of
the 77 tokens; `side`, the words' maps from a softmax written out head by head beside the fused
call; `softmax`, the usual way (DAAM), where cross-attention forms its whole map, and maps are
resized to the latent grid at every layer; `two prompts` and their `edit`.

Times are medians, and ratios to `plain` (`edit`: to `two prompts`) in the same round, median and
range, ways in turn in one process; peak memory is of one process for each way. `--clock cpu` counts
processor time, which other work on the machine disturbs less, of all threads together. `--few` is
three rounds of plain, heatmaps, softmax, two prompts and edit, without the calls that warm up: with
those for the peaks 28 calls' worth of `plain`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.command import make_parser
from bench.parity import SD15, SDXL
from sdcore.attention import Control
from sdcore.attention_choice import use_attention
from sdcore.control.heatmaps import WordHeatmaps, marked_attention
from sdcore.control.prompt_edit import EditSettings, PromptEdit
from sdcore.diffusion.steps import Step
from sdcore.sampling.calls import Conditioning, RunCall
from sdcore.sampling.guidance import (
    Guidance,
    Part,
    StepConditioning,
    StepControls,
    guided_prediction,
)
from sdcore.text.tokenizer import Span, Tokens
from sdcore.unet.unet import AddedConditions, UNet, UNetConfig

LAYOUTS: dict[str, tuple[dict[str, Any], int]] = {"sd15": (SD15, 64), "sdxl": (SDXL, 128)}
TOKENS, WORDS = 77, 12
WAYS = ("plain", "heatmaps", "columns", "side", "softmax", "two prompts", "edit")
FEW = ("plain", "heatmaps", "softmax", "two prompts", "edit")
STEP = Step(0, 10, 500.0)
Way = Callable[[], Any]


def make_tokens(prompts: int) -> Tokens:
    """Prompts of twelve words of one token each."""
    ids = torch.full((prompts, TOKENS), 49407)
    ids[:, 0] = 49406
    ids[:, 1 : WORDS + 1] = torch.arange(WORDS)
    spans = tuple(Span(f"word{i}", 7 * i, 7 * i + 6, range(i + 1, i + 2)) for i in range(WORDS))
    return Tokens(ids, torch.ones(ids.shape), (spans,) * prompts, ("",) * prompts)


def make_unet(layout: dict, device: str, dtype: torch.dtype) -> UNet:
    """A UNet of random weights, made without the minutes that initialising takes."""
    with torch.device("meta"):
        unet = UNet(UNetConfig.from_dict(layout))
    unet = unet.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    some = (torch.randn(1 << 16) * 0.02).to(device, dtype)
    for parameter in unet.parameters():
        flat = parameter.data.view(-1)
        for start in range(0, flat.numel(), some.numel()):
            piece = flat[start : start + some.numel()]
            piece.copy_(some[: piece.numel()])
    return unet


class Softmax:
    """DAAM's way: the whole map of every cross-attention, resized to the latent grid, summed."""

    def __init__(self, grid: tuple[int, int]) -> None:
        self.grid, self.total = grid, torch.zeros(())

    def __call__(self, site, grid, q, k, v, attend) -> Tensor:
        if site.kind == "self":
            return attend(q, k, v)
        weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1)
        maps = weights.float().mean(dim=1).transpose(1, 2).unflatten(2, grid)  # (B, T, h, w)
        self.total = self.total + F.interpolate(maps, self.grid, mode="bicubic")
        return weights @ v


class Side:
    """The words' maps from a softmax beside the fused call, one head at a time."""

    def __init__(self, marks: Tensor) -> None:
        self.marks, self.sums = marks, {}

    def __call__(self, site, grid, q, k, v, attend) -> Tensor:
        if site.kind == "cross":
            self.marks = self.marks.to(q.device)
            maps = torch.zeros(len(q), q.shape[2], self.marks.shape[-1], device=q.device)
            keys = (k * k.shape[-1] ** -0.5).transpose(-2, -1)
            for head in range(q.shape[1]):
                maps += (q[:, head] @ keys[:, head]).float().softmax(dim=-1) @ self.marks
            place = (site.place, site.level, site.index)
            self.sums[place] = self.sums.get(place, 0) + maps / q.shape[1]
        return attend(q, k, v)


class Columns:
    """A map of every token, from identity values through the fused kernel."""

    def __init__(self) -> None:
        self.sums: dict = {}

    def __call__(self, site, grid, q, k, v, attend) -> Tensor:
        if site.kind == "cross":
            identity = torch.eye(TOKENS, device=q.device)[None]
            maps = marked_attention(q, k, identity, v.shape[-1], attend)
            place = (site.place, site.level, site.index)
            self.sums[place] = self.sums.get(place, 0) + maps
        return attend(q, k, v)


class Bench:
    """One UNet, its conditioning, and the ways to call it."""

    def __init__(self, options: argparse.Namespace) -> None:
        layout, grid = LAYOUTS[options.layout]
        grid = options.latents or grid
        self.device, dtype = options.device, getattr(torch, options.dtype)
        self.unet, self.grid = make_unet(layout, options.device, dtype), (grid, grid)
        use_attention(self.unet, options.attention)
        if options.channels_last:
            self.unet.to(memory_format=torch.channels_last)  # pyright: ignore
        self.layout, self.dtype, self.call = layout, dtype, RunCall(self.unet)

    def conditioning(self, rows: int) -> tuple[Tensor, StepConditioning]:
        generator = torch.Generator().manual_seed(rows)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(self.device, self.dtype)

        def condition() -> Conditioning:
            added = None
            if "addition_embed_type" in self.layout:
                numbers = torch.full((rows, 6), 1024.0, device=self.device)
                added = AddedConditions(draw(rows, 1280), numbers)
            return Conditioning(draw(rows, TOKENS, self.layout["cross_attention_dim"]), added)

        return draw(rows, 4, *self.grid), StepConditioning((Part(condition()),), condition())

    def way(self, name: str) -> Way:
        rows = 2 if name in ("two prompts", "edit") else 1
        latents, conditioning = self.conditioning(rows)
        time_ = torch.tensor(500.0, device=self.device)
        edit = PromptEdit(make_tokens(2), EditSettings(words={"word3": (0.5, 1)}))

        def control() -> Control | None:
            heatmaps = WordHeatmaps(make_tokens(1))
            kinds: dict[str, Callable[[], Control]] = {
                "heatmaps": lambda: heatmaps.at(STEP),
                "columns": Columns,
                "side": lambda: Side(heatmaps.marks),
                "softmax": lambda: Softmax(self.grid),
                "edit": lambda: edit.at(STEP),
            }
            return kinds[name]() if name in kinds else None

        def call() -> None:
            controls = StepControls((control(),))
            guided_prediction(self.call, latents, time_, conditioning, Guidance(7.5), controls)

        return call


def timed(call: Way, options: argparse.Namespace) -> float:
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    cuda = options.device.startswith("cuda")
    if cuda:
        torch.cuda.synchronize()
    start = clock()
    call()
    if cuda:
        torch.cuda.synchronize()
    return clock() - start


def peak(options: argparse.Namespace) -> None:
    """One call of one way in this process; prints its peak memory in MiB as JSON."""
    bench = Bench(options)
    call = bench.way(options.way)
    if options.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    call()
    if options.device.startswith("cuda"):
        mib = torch.cuda.max_memory_allocated() / 2**20
    else:
        mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(json.dumps({"peak": mib}))


def peaks(ways: Sequence[str]) -> dict[str, float]:
    """Peak memory of each way, each in a process of its own."""
    found = {}
    for way in ways:
        command = [sys.executable, "-m", "bench.heatmap_cost", *sys.argv[1:], "--way", way]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{way}: {done.stderr}")
        found[way] = json.loads(done.stdout.splitlines()[-1])["peak"]
    return found


def describe(options: argparse.Namespace, bench: Bench) -> str:
    """What was measured, in a line."""
    height, width = bench.grid
    how = "processor time" if options.clock == "cpu" else "wall clock"
    where = f"{options.dtype}, {options.attention}, {options.device}, threads: {options.threads}"
    rounds = f"medians of {options.rounds} rounds, {how}"
    return f"{options.layout}, {8 * width} x {8 * height} pixels, {where}; {rounds}\n"


def report(times: dict[str, list[float]], memory: dict[str, float]) -> None:
    print("| way | seconds | time | peak MiB | memory |\n|---|---|---|---|---|")
    for way, taken in times.items():
        base = "two prompts" if way == "edit" else "plain"
        row = [way, f"{median(taken):.3f}", "", "", ""]
        if base in times:
            ratios = [t / b for t, b in zip(taken, times[base], strict=True)]
            row[2] = f"{median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})"
        if way in memory:
            row[3] = f"{memory[way]:.0f}"
            row[4] = f"{memory[way] / memory[base]:.3f}" if base in memory else ""
        print(f"| {' | '.join(row)} |")


@torch.no_grad()
def main() -> None:
    parser = make_parser(__doc__, latents=None, device="cpu", rounds=None, threads=1)
    parser.add_argument("layout", nargs="?", choices=LAYOUTS, default="sd15")
    parser.add_argument("--dtype", default="bfloat16", help="of the weights (bfloat16)")
    parser.add_argument("--attention", default="sdpa", help="the backend (sdpa)")
    parser.add_argument("--channels-last", action="store_true", help="memory format of the UNet")
    parser.add_argument(
        "--few", action="store_true", help="where one call takes minutes: see above"
    )
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--ways", nargs="+", choices=WAYS, help="(all; few: see above)")
    parser.add_argument("--no-memory", action="store_true", help="times alone")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.rounds = options.rounds or (3 if options.few else 5)
    options.ways = options.ways or list(FEW if options.few else WAYS)
    torch.set_num_threads(options.threads)
    if options.way:
        peak(options)
        return
    memory = {} if options.no_memory else peaks(options.ways)
    bench = Bench(options)
    calls = {way: bench.way(way) for way in options.ways}
    for call in () if options.few else calls.values():
        call()
    times: dict[str, list[float]] = {way: [] for way in calls}
    for done in range(options.rounds):
        for way, call in calls.items():
            times[way].append(timed(call, options))
            print(f"round {done + 1}, {way}: {times[way][-1]:.3f} s", file=sys.stderr, flush=True)
    print(describe(options, bench))
    report(times, memory)


if __name__ == "__main__":
    main()
