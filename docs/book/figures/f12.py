"""Page 12: the map of the UNet, and what is painted when cross-attention is cut."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from docs.book.book import PROMPTS, SEED, SEEDS, Measured, model, term
from docs.book.drawing import FAINT, Svg
from sdcore import CrossAttention, UNet, UNetConfig

STEPS, VISIBLE = 8, 3.0  # mean difference of a picture's values, of 255


def name_of(site) -> str:
    return f"{site.place}.{site.level}.{site.index}"


@cache
def sites() -> dict[str, tuple[int, int]]:
    """The blocks that read the text, in running order, and their grids."""
    found: dict[str, tuple[int, int]] = {}

    def look(site, grid, q, k, v, attend):
        if site.kind == "cross":
            found[name_of(site)] = grid
        return attend(q, k, v)

    width = model().unet.config.cross_attention_dim
    model().unet(torch.zeros(1, 4, 16, 16), 500, torch.zeros(1, 4, width), look)
    return found


@cache
def without(prompt: str, cut: tuple[str, ...], seeds: tuple[int, ...]) -> list:
    """Pictures with the cross-attention of some blocks answering zeros."""

    def control(site, grid, q, k, v, attend):
        out = attend(q, k, v)
        return torch.zeros_like(out) if site.kind == "cross" and name_of(site) in cut else out

    seeds_list = list(seeds)
    return model()([prompt] * len(seeds), seed=seeds_list, steps=STEPS, control=control).images


def change(prompt: str, cut: tuple[str, ...], seeds: tuple[int, ...] = (SEED,)) -> float:
    """How far pictures move on average, of 255: the largest of the seeds."""
    pairs = zip(without(prompt, (), seeds), without(prompt, cut, seeds), strict=True)
    return max(float(np.abs(np.asarray(a, float) - np.asarray(b, float)).mean()) for a, b in pairs)


def measure(language: str) -> Measured:
    prompt = PROMPTS[language][0][0]
    moved = {name: change(prompt, (name,)) for name in sites()}
    harmless = tuple(name for name, by in moved.items() if by < 1)
    worst = max(moved, key=lambda name: moved[name])
    every = [each for each, _, _ in PROMPTS[language]]
    holds = [
        change(each, harmless, SEEDS) < VISIBLE and change(each, (worst,), SEEDS) > 4 * VISIBLE
        for each in every
    ]
    unet = model().unet
    with torch.device("meta"):
        large = UNet(UNetConfig(cross_attention_dim=768))
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    reading = sum(block.attentions is not None for block in blocks)
    return Measured(
        _drawn(language, prompt, moved),
        {
            "worst": f"`{worst}`",
            "worst_by": f"{moved[worst]:.0f}",
            "harmless_count": str(len(harmless)),
            "count": str(len(moved)),
            "limit": f"{VISIBLE:g}",
            "grid": " x ".join(str(n) for n in sites()[worst]),
            "cross": str(_cross(unet)),
            "weights": f"{_weights(unet):.0f}",
            "sd_cross": str(_cross(large)),
            "sd_weights": f"{_weights(large):.0f}",
        },
        {
            "12.most": reading > len(blocks) / 2,
            "12.cut": all(holds) and worst.startswith("up"),
            "12.sizes": _cross(unet) == len(moved) and _cross(large) == 16,
        },
    )


def _cross(unet: torch.nn.Module) -> int:
    return sum(isinstance(layer, CrossAttention) for layer in unet.modules())


def _weights(unet: torch.nn.Module) -> float:
    return sum(parameter.numel() for parameter in unet.parameters()) / 1e6


def _drawn(language: str, prompt: str, moved: dict[str, float]) -> Svg:
    def word(name: str, **values: object) -> str:
        return term(f"figure.{name}", language, **values)

    sheet, wide, high = Svg(900, 410), 92, 40
    levels = len(model().unet.levels)
    ways = [("down", n) for n in range(levels)] + [("mid", levels)]
    ways += [("up", n) for n in reversed(range(levels))]
    placed: dict[tuple[str, int], tuple[float, float]] = {}
    for number, (place, level) in enumerate(ways):
        x, y = 30 + 122 * number, 20 + 48 * level
        inside = [name for name in sites() if name.startswith(f"{place}.{min(level, levels - 1)}")]
        side = 16 >> min(level, levels - 1)
        sheet.box(x, y, wide, high, "#fde3c8" if inside else "#eef0f2", round_by=5)
        sheet.text(x + wide / 2, y + 13, f"{word(place)} {side} x {side}", "middle", 13, bold=True)
        said = word("reads_text", n=len(inside)) if inside else word("no_text")
        sheet.text(x + wide / 2, y + 29, said, "middle", 11, FAINT)
        placed[place, level] = (x, y)
        if number:
            before = placed[ways[number - 1]]
            sheet.arrow(before[0] + wide, before[1] + high / 2, x - 2, y + high / 2)
    for level in range(levels):
        (x, y), (to_x, _) = placed["down", level], placed["up", level]
        sheet.line((x + wide, y + 8), (to_x, y + 8), color="#c3c8cd")
        sheet.text((x + wide + to_x) / 2, y + 1, word("kept"), "middle", 11, FAINT)
    cuts = [((), word("uncut"), None)] + [((n,), n, by) for n, by in moved.items()]
    cuts.append((tuple(moved), word("all_cut"), change(prompt, tuple(moved))))
    sheet.text(12, 236, word("cut_title"), size=14, bold=True)
    for number, (cut, name, by) in enumerate(cuts):
        x = 12 + 98 * number
        sheet.picture(without(prompt, cut, (SEED,))[0], x, 272, 90)
        sheet.text(x + 45, 260, name, "middle", 12)
        if by is not None:
            sheet.text(x + 45, 376, word("changed_by", by=f"{by:.1f}"), "middle", 11, FAINT)
    return sheet
