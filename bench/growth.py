"""How time and memory grow: with resolution, pictures at once, length of the prompt, LoRAs.

    python -m bench.growth                      about five minutes on two cores; plots in docs/speed
    python -m bench.growth --width 320          the UNet of Stable Diffusion 1.5 itself

One call of a UNet of Stable Diffusion's shape with random weights, at a quarter of its width (and
so at a sixteenth of its multiplications) unless --width says otherwise, with heads as wide as its
own. Beside the seconds stand the operations that torch counts in the same call: lines that run side
by side mean that nothing but the work grows. Memory is what the process has at most during a call,
above what it had before, for every backend of attention that can run here; Linux alone tells it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.command import main, make_parser
from sdcore.files.atomic import replace_file, text_writer

if TYPE_CHECKING:
    from sdcore import UNet

SIDES = (256, 384, 512, 768, 1024, 1536)  # pixels
BATCHES = (1, 2, 4, 8, 16)
TOKENS = (77, 154, 231, 308)
LORAS = (0, 1, 2, 4, 8)
SMALL = 256  # pixels, for all but resolution
RANK = 16
BACKENDS = ("sdpa", "native", "chunked")
Line = Sequence[tuple[float, float]]


def parser() -> argparse.ArgumentParser:
    made = make_parser(__doc__, threads=0, out=Path("docs/speed"))
    made.add_argument(
        "--width", type=int, default=80, metavar="N", help="320 is SD 1.5 (default: 80)"
    )
    made.add_argument("--largest", type=int, default=1536, metavar="PIXELS", help="default: 1536")
    return made


def run(arguments: argparse.Namespace) -> None:
    import torch

    from sdcore.attention_choice import unavailable, with_attention

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    unet = make_unet(arguments.width)
    best = with_attention(unet, "auto")
    sides = [side for side in SIDES if side <= arguments.largest]
    found: dict[str, dict[str, Line]] = {
        "resolution": _cost(sides, lambda side: measure(best, side=side)),
        "pictures at once": _cost(BATCHES, lambda count: measure(best, rows=count)),
        "tokens of the prompt": _cost(TOKENS, lambda count: measure(best, tokens=count)),
        "LoRAs": _cost(LORAS, lambda count: measure(with_loras(best, count))),
    }
    memory: dict[str, Line] = {}
    for backend in BACKENDS:
        if unavailable(backend) is None:
            model = with_attention(unet, backend)
            memory[backend] = [(side * side / 64, peak(model, side)) for side in sides]
    for name, lines in found.items():
        file = f"growth_{name.replace(' ', '_').lower()}.svg"
        draw(arguments.out / file, lines, f"A call of the UNet, by {name}", name, "x the first")
    title = "Memory of a call, by image tokens of the finest grid"
    draw(arguments.out / "growth_memory.svg", memory, title, "image tokens", "MiB")
    print(json.dumps(found | {"memory, MiB": memory}, indent=1))
    for name, line in memory.items():
        print(f"{name}: memory grows as tokens^{slope(line):.2f} from the second size on")


def make_unet(width: int) -> UNet:
    """Stable Diffusion 1.5's UNet at another width, its heads as wide as there."""
    import torch

    from bench.parity import SD15
    from sdcore import UNet

    torch.manual_seed(0)
    channels = [width, 2 * width, 4 * width, 4 * width]
    settings = {**SD15, "block_out_channels": channels, "sample_size": 64}
    settings |= {"attention_head_dim": max(width // 40, 1), "norm_num_groups": width // 10}
    return UNet(UNet.Config.from_dict(settings)).eval()


def with_loras(unet: UNet, count: int) -> UNet:
    """The UNet with LoRAs of rank 16 beside the weights of all its attention layers."""
    import torch
    from torch import nn

    from sdcore.adapters.lora_layer import AdaptedLayer
    from sdcore.adapters.lora_math import LowRank
    from sdcore.views import view

    replaced: dict[str, nn.Module] = {}
    for name, layer in unet.named_modules():
        if ".attn" in name and isinstance(layer, nn.Linear) and count:
            down = torch.randn(RANK, layer.in_features)
            up = torch.randn(layer.out_features, RANK)
            changes = [LowRank({"down": down, "up": up}, 1.0) for _ in range(count)]
            replaced[name] = AdaptedLayer(layer, [(change, 0.01) for change in changes])
    return view(unet, replaced) if replaced else unet


def measure(
    unet: UNet, *, side: int = SMALL, rows: int = 1, tokens: int = 77
) -> tuple[float, float]:
    """Seconds of a call, and its operations."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    given = (
        torch.randn(rows, 4, side // 8, side // 8),
        torch.tensor(500),
        torch.randn(rows, tokens, 768),
    )
    with FlopCounterMode(display=False) as counter:
        unet(*given)  # which warms up
    best = math.inf
    for _ in range(1 if side > 1024 else 2):
        began = time.perf_counter()
        unet(*given)
        best = min(best, time.perf_counter() - began)
    return best, counter.get_total_flops()


def _cost(values: Sequence[int], call: Any) -> dict[str, Line]:
    """Seconds and operations at some values, as multiples of those at the first."""
    found = [(value, *call(value)) for value in values]
    _, seconds, operations = found[0]
    return {
        "seconds": [(value, own / seconds) for value, own, _ in found],
        "operations": [(value, own / operations) for value, _, own in found],
    }


def peak(unet: UNet, side: int) -> float:
    """MiB that the process has at most in a call, above what it had before."""
    import torch

    from sdcore.machine import return_freed_memory

    return_freed_memory()  # else a call could do with what earlier ones left
    given = torch.randn(1, 4, side // 8, side // 8), torch.tensor(500), torch.randn(1, 77, 768)
    Path("/proc/self/clear_refs").write_text("5")  # begins to count anew
    before = _status("VmRSS")
    unet(*given)
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def slope(line: Line) -> float:
    """The power of x by which y grows, from the second point to the last."""
    (x, y), (last_x, last_y) = line[1], line[-1]
    return math.log(last_y / y) / math.log(last_x / x)


# --- the plots -----------------------------------------------------------------------------------

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 620, 340, 62, 120, 44, 50  # pixels


def draw(path: Path, lines: Mapping[str, Line], title: str, x_label: str, y_label: str) -> None:
    """Write an SVG of lines over two logarithmic axes; an x of 0 stands at the left edge."""
    from train.chart import COLORS

    points = [point for line in lines.values() for point in line]
    xs = sorted({x for x, _ in points})
    low, high = min(y for _, y in points), max(y for _, y in points)
    high = max(high, 1.2 * low)
    first, last = math.log(xs[0] or 0.5), math.log(xs[-1])

    def across(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log(x or 0.5) - first) / (last - first)

    def up(y: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - math.log(y / low) / math.log(high / low))

    def text(x: float, y: float, said: str, anchor: str = "middle", color: str = "#222") -> str:
        return (
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">'
            f"{escape(said)}</text>"
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        text(LEFT, 24, f"{title} ({y_label})", "start"),
        text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, x_label),
        f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" stroke="#222" fill="none"/>',
        *(text(across(x), HEIGHT - BOTTOM + 18, f"{x:g}") for x in xs),
    ]
    for step in range(5):
        y = low * (high / low) ** (step / 4)
        parts.append(text(LEFT - 8, up(y) + 4, f"{y:.3g}", "end"))
    for number, (name, line) in enumerate(lines.items()):
        color, dash = COLORS[number], "" if number == 0 else f"{6 - number} 3"
        route = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in line)
        parts.append(
            f'<polyline points="{route}" stroke="{color}" stroke-width="2" fill="none" '
            f'stroke-dasharray="{dash}"/>'
        )
        parts += [
            f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="3" fill="{color}"/>' for x, y in line
        ]
        parts.append(text(WIDTH - RIGHT + 10, TOP + 18 * number + 10, name, "start", color))
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text_writer("\n".join([*parts, "</svg>"]) + "\n"))


if __name__ == "__main__":
    main(parser(), run)
