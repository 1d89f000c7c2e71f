"""Page 12: the map of the UNet, and what is painted when cross-attention is cut."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from PIL.Image import Image

from docs.book.book import PROMPTS, SEED, STEPS, Measured, every_run, many, model, plain, term
from docs.book.drawing import FAINT, Svg
from sdcore import CrossAttention, UNet, UNetConfig

Cut = tuple[str, ...]  # names of blocks
VISIBLE = 3.0  # mean difference of a picture's values, of 255


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


def without(prompts: Sequence[str], seeds: Sequence[int], cuts: Sequence[Cut]) -> list[Image]:
    """Pictures, in each of which the cross-attention of some blocks answers zeros."""

    def control(site, grid, q, k, v, attend):
        out = attend(q, k, v)
        if site.kind != "cross":
            return out
        kept = torch.tensor([name_of(site) not in cut for cut in cuts])
        return out * kept[:, None, None, None]

    return model()(prompts, seed=seeds, steps=STEPS, control=control).images


def change(before: Image, after: Image) -> float:
    """How far a picture moved on average, of 255."""
    return float(np.abs(np.asarray(before, float) - np.asarray(after, float)).mean())


@cache
def cut_one_by_one(prompt: str) -> dict[Cut, Image]:
    """The pictures of a prompt by what is cut: nothing, each block, and all blocks."""
    names = tuple(sites())
    cuts: list[Cut] = [(), *((name,) for name in names), names]
    pictures = without([prompt] * len(cuts), [SEED] * len(cuts), cuts)
    return dict(zip(cuts, pictures, strict=True))


def changes(language: str, cut: Cut) -> list[float]:
    """How far each of `every_run` moves without some blocks."""
    after = without(*every_run(language), [cut] * len(every_run(language)[0]))
    return [change(*pair) for pair in zip(plain(language).images, after, strict=True)]


def measure(language: str) -> Measured:
    prompt = PROMPTS[language][0][0]
    pictures = cut_one_by_one(prompt)
    moved = {name: change(pictures[()], pictures[name,]) for name in sites()}
    harmless = tuple(name for name, by in moved.items() if by < 1)
    worst = max(moved, key=lambda name: moved[name])
    unet = model().unet
    reading = [count > 0 for _, _, count in blocks(unet, 16)]
    return Measured(
        _drawn(language, pictures, moved),
        {
            "worst": f"`{worst}`",
            "worst_by": f"{moved[worst]:.0f}",
            "harmless_count": str(len(harmless)),
            "count": str(len(moved)),
            "limit": f"{VISIBLE:g}",
            "grid": " x ".join(str(n) for n in sites()[worst]),
            "cross": str(_cross(unet)),
            "weights": _weights(unet, language),
            "sd_cross": str(_cross(large())),
            "sd_weights": _weights(large(), language),
        },
        {
            "12.most": sum(reading) > len(reading) / 2,
            "12.cut": _changes_more(changes(language, (worst,)), changes(language, harmless))
            and worst.startswith("up"),
            "12.sizes": _cross(unet) == len(moved) and _cross(large()) == 16,
        },
    )


def _changes_more(much: list[float], little: list[float]) -> bool:
    """Whether each picture changes more in the first way, and most of them hardly in the second."""
    half = len(much) // 2
    clear = sorted(little)[half] < VISIBLE and sorted(much)[half] > 4 * VISIBLE
    return clear and all(a > b for a, b in zip(much, little, strict=True))


def _cross(unet: torch.nn.Module) -> int:
    return sum(isinstance(layer, CrossAttention) for layer in unet.modules())


def _weights(unet: torch.nn.Module, language: str) -> str:
    return many(sum(parameter.numel() for parameter in unet.parameters()), language)


@cache
def large() -> UNet:
    """Stable Diffusion 1.5's UNet, without its weights."""
    with torch.device("meta"):
        return UNet(UNetConfig(cross_attention_dim=768))


def blocks(unet: UNet, side: int) -> list[tuple[str, int, int]]:
    """The way through a UNet: (down, mid or up; its grid's side; how often it reads the text)."""
    sides = [side >> level for level in range(len(unet.down_blocks))]
    ways = [("down", each, block) for each, block in zip(sides, unet.down_blocks, strict=True)]
    ways.append(("mid", sides[-1], unet.mid_block))
    ways += [("up", each, block) for each, block in zip(sides[::-1], unet.up_blocks, strict=True)]
    return [(place, each, len(block.attentions or ())) for place, each, block in ways]


def map_of(sheet: Svg, x: float, unet: UNet, side: int, title: str, language: str) -> None:
    """A UNet's blocks as a way down and up, 50 wide each; those that read the text in colour."""
    sheet.text(x, 14, title, size=14, bold=True)
    way, wide, high = blocks(unet, side), 50, 34
    levels = len(way) // 2
    places = []
    for number, (place, grid, count) in enumerate(way):
        level = levels - abs(number - levels)
        at, y = x + 54 * number, 44 + 48 * level
        sheet.box(at, y, wide, high, "#fde3c8" if count else "#eef0f2", round_by=5)
        sheet.text(at + wide / 2, y + 11, f"{grid} x {grid}", "middle", 11, bold=True)
        name = term(f"figure.{place}", language)
        said = f"{name} · {count}" if count else name
        sheet.text(at + wide / 2, y + 25, said, "middle", 10, FAINT)
        if places:
            was, was_y = places[-1]
            if y > was_y:
                sheet.arrow(was + wide / 2, was_y + high, at, y + high / 2)
            else:
                sheet.arrow(was + wide, was_y + high / 2, at + wide / 2, y + high)
        places.append((at, y))
    for level in range(levels):
        (left, y), (right, _) = places[level], places[-1 - level]
        sheet.line((left + wide, y + 8), (right, y + 8), color="#c3c8cd")
        if level == 0:
            sheet.text(
                (left + wide + right) / 2, y, term("figure.kept", language), "middle", 11, FAINT
            )


def _drawn(language: str, pictures: dict[Cut, Image], moved: dict[str, float]) -> Svg:
    def word(name: str, **values: object) -> str:
        return term(f"figure.{name}", language, **values)

    sheet = Svg(900, 470)
    map_of(
        sheet, 12, model().unet, 16, word("map_here", n=_weights(model().unet, language)), language
    )
    map_of(sheet, 408, large(), 64, word("map_large", n=_weights(large(), language)), language)
    sheet.text(12, 296, word("cut_title"), size=14, bold=True)
    named = [word("uncut"), *moved, word("all_cut")]
    for number, (name, (cut, picture)) in enumerate(zip(named, pictures.items(), strict=True)):
        x = 12 + 98 * number
        sheet.picture(picture, x, 332, 90)
        sheet.text(x + 45, 320, name, "middle", 12)
        if cut:
            by = change(pictures[()], picture)
            sheet.text(x + 45, 436, word("changed_by", by=f"{by:.1f}"), "middle", 11, FAINT)
    return sheet
