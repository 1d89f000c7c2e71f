"""Is the heatmap true? Each object word's map against where that object really is.

    python -m bench.heatmap_truth

Two-object scenes know where each object stands. Generated ones: the model paints the fixed prompts
of `bench.prompts`; those whose objects the judge finds, each in its own half, are used, and what
differs from the background in that half is the object. Real ones: drawings composed by the scenes,
noised to some times and looked at by the UNet; what differs from the background is the object.

Pointing: the maximum of the word's map lies on the object (Zhang et al. 2018, arXiv:1608.00507).
IoU: of the object and the places above a threshold, the one threshold that is best for all maps.
Chance points anywhere; `centre` points at the middle of the picture; `the other's word` reads
the map of the other object.

Writes `heatmap_truth.json`, the plot `heatmap_truth.png` (pointing by block and by step) and a
contact sheet into the --out folder.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.command import DATA, load_model, main, make_parser, plain
from sdcore.files.atomic import json_writer, replace_files

if TYPE_CHECKING:  # torch is imported when something is measured
    from PIL.Image import Image
    from torch import Tensor

    from sdcore.control.heatmaps import WordHeatmaps

    # (heatmaps, image, word, window or None, site name or None) -> map (side, side)
    Read = Callable[[WordHeatmaps, int, str, int | None, str | None], Tensor]

WINDOWS = 5  # parts of the run that are read separately
TIMES = (900, 700, 500, 300, 100)  # to which real scenes are noised; a window each
LEVELS = 50  # thresholds tried for the IoU, shares of the map's maximum
EDGE = 1 / 32  # of a picture's side: its rim shows no object
DIFFERENT = 30.0  # levels (of 255) by which a pixel of an object differs from the background


@dataclass(frozen=True)
class Case:
    """One object of one picture: its word, its pixels, the other object's word."""

    picture: Image
    image: int  # which of the heatmaps' images
    heatmaps: WordHeatmaps
    word: str
    other: str
    mask: Tensor  # (side, side) bool


def object_mask(picture: Image, box: tuple[int, int, int, int]) -> Tensor:
    """(side, side) bool: what differs from the background in a box (left, top, right, bottom)."""
    import numpy as np
    import torch

    pixels = torch.from_numpy(np.asarray(picture.convert("RGB"), np.float32))  # (H, W, 3)
    border = torch.cat([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    mask = (pixels - border.median(0).values).square().sum(-1).sqrt() > DIFFERENT
    left, top, right, bottom = box
    edge = max(1, round(EDGE * picture.width))  # where a decoder may err, and no object reaches
    inside = torch.zeros_like(mask)
    inside[top:bottom, left:right] = mask[top:bottom, left:right]
    inside[:edge], inside[-edge:], inside[:, :edge], inside[:, -edge:] = (False,) * 4
    return inside


def points_at(heat: Tensor, mask: Tensor) -> bool:
    """Whether the maximum of a map lies on the object."""
    return bool(mask.flatten()[heat.flatten().argmax()])


def overlaps(heat: Tensor, mask: Tensor) -> Tensor:
    """IoU of the object and {map > threshold} for `LEVELS` thresholds: (LEVELS,)."""
    import torch

    levels = torch.arange(LEVELS) / LEVELS
    above = heat / heat.max() > levels[:, None, None]
    return (above & mask).sum((1, 2)) / (above | mask).sum((1, 2))


def read(case: Case, word: str, window: int | None = None, site: str | None = None) -> Tensor:
    """A word's map at the picture's resolution, of all steps and layers or of some."""
    steps = (0.0, 1.0)
    if window is not None:
        steps = ((window - 0.5) / WINDOWS if window else 0.0, (window + 0.5) / WINDOWS)
    chosen = None if site is None else lambda found: name_of(found) == site
    size = (case.mask.shape[0], case.mask.shape[1])
    return case.heatmaps.of(word, image=case.image, steps=steps, sites=chosen, size=size)


def name_of(site: Any) -> str:
    return f"{site.place} {site.level}.{site.index}"


def tally(cases: Sequence[Case], window: int | None = None, site: str | None = None) -> dict:
    """Pointing (hits, count) and the best IoU of all cases' maps."""
    import torch

    maps = [read(case, case.word, window, site) for case in cases]
    hits = sum(points_at(heat, case.mask) for heat, case in zip(maps, cases, strict=True))
    curves = [overlaps(heat, case.mask) for heat, case in zip(maps, cases, strict=True)]
    iou = torch.stack(curves).mean(0)
    return {"pointing": (hits, len(cases)), "iou": float(iou.max())}


def baselines(cases: Sequence[Case]) -> dict[str, dict]:
    import torch

    area = sum(float(case.mask.float().mean()) for case in cases)
    centre = sum(bool(case.mask[len(case.mask) // 2, len(case.mask) // 2]) for case in cases)
    others = [read(case, case.other) for case in cases]
    wrong = sum(points_at(heat, case.mask) for heat, case in zip(others, cases, strict=True))
    whole = torch.stack([case.mask.float().mean() for case in cases]).mean()
    return {
        "chance": {"pointing": (area, len(cases)), "iou": float(whole)},
        "centre": {"pointing": (centre, len(cases)), "iou": None},
        "the other's word": {"pointing": (wrong, len(cases)), "iou": None},
    }


def generated_cases(pipe: Any, settings: Any, count: int, seed: int, explicit: bool) -> list[Case]:
    """Two-object prompts that came out as asked, painted with their heatmaps."""
    from bench.judge import HALVES, Judge
    from bench.prompts import compose
    from bench.verdict import verdict
    from train.emoji.data.drawings import load

    judge = Judge(load(settings), settings.backgrounds, settings.image_size)
    prompts = [p for p in compose(settings, 5 * count, seed) if p.relation][:count]
    cases = []
    for start in range(0, len(prompts), 20):
        batch = prompts[start : start + 20]
        texts = [prompt.text for prompt in batch]
        heatmaps = recorder(explicit)(pipe.tokenizer(texts), windows=WINDOWS)
        images = pipe(texts, seed=seed + start, control=heatmaps).images
        for i, (prompt, image, reading) in enumerate(
            zip(batch, images, judge.read(images), strict=True)
        ):
            if not verdict(prompt, reading)["relation"]:
                continue
            first = {"to the left of": "left", "to the right of": "right", "above": "top"}
            here = first.get(prompt.relation, "bottom")
            there = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}[here]
            for word, other, half in zip(
                prompt.names, prompt.names[::-1], (here, there), strict=True
            ):
                row, column, rows, columns = HALVES[half]
                height, width = image.height // rows, image.width // columns
                box = (column * width, row * height, (column + 1) * width, (row + 1) * height)
                cases.append(Case(image, i, heatmaps, word, other, object_mask(image, box)))
    print(f"{len(cases) // 2} of {len(prompts)} generated scenes show both objects as asked")
    return cases


def real_cases(pipe: Any, settings: Any, count: int, seed: int) -> list[Case]:
    """Real two-object scenes, each looked at by the UNet with noise of `TIMES`."""
    from PIL import Image

    from sdcore.pipeline.image_heatmaps import heatmaps_of_image
    from train.emoji.data.scenes import Scenes

    scenes, cases = Scenes(settings.model_copy(update={"two_objects_share": 1.0})), []
    scale = pipe.autoencoder.config.side // settings.image_size
    for index in range(count):
        scene = scenes.scene(seed + 1000, index)
        picture = Image.fromarray(scenes.picture(scene, scale * settings.image_size))
        heatmaps = heatmaps_of_image(pipe, picture, scene.caption, TIMES, seed=index)
        for drawn, word, other in zip(scene.objects, scene.names, scene.names[::-1], strict=True):
            x, y, side = (scale * value for value in drawn.box)
            mask = object_mask(picture, (x, y, x + side, y + side))
            cases.append(Case(picture, 0, heatmaps, word, other, mask))
    return cases


def recorder(explicit: bool) -> type[WordHeatmaps]:
    """The heatmaps from fused kernels, or from the explicit softmax of every layer."""
    from sdcore.attention import reference
    from sdcore.control.heatmaps import WordHeatmaps

    class Explicit(WordHeatmaps):
        def record(self, window, site, grid, q, k, v, attend) -> None:
            explicit: Any = reference
            super().record(window, site, grid, q, k, v, explicit)

    return Explicit if explicit else WordHeatmaps


def by_block_and_step(cases: Sequence[Case]) -> dict[str, list[float]]:
    """Pointing for each spatial Transformer, and all of them, in each part of the run."""
    names = list(dict.fromkeys(name_of(site) for _, site, _ in cases[0].heatmaps.recorded))
    rows = {}
    for name in [*names, None]:
        results = [tally(cases, window, name)["pointing"] for window in range(WINDOWS)]
        rows[name or "all"] = [hits / total for hits, total in results]
    return rows


def plot(tables: dict[str, tuple[list[str], dict[str, list[float]]]]) -> Image:
    """Pointing as shades and figures, a block for each table: name -> (column titles, rows)."""
    from PIL import Image, ImageDraw, ImageFont

    cell, left, line = (74, 30), 96, 26
    tallest = max(len(rows) for _, rows in tables.values())
    width = left + WINDOWS * cell[0] + 20
    picture = Image.new("RGB", (width * len(tables), 3 * line + tallest * cell[1] + 12), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=14)
    for i, (title, (columns, rows)) in enumerate(tables.items()):
        x0 = i * width
        draw.text((x0 + 8, 6), title, "black", ImageFont.load_default(size=16))
        for c, name in enumerate(columns):
            draw.text((x0 + left + c * cell[0] + 8, line + 8), name, "black", font)
        for r, (name, values) in enumerate(rows.items()):
            y = 2 * line + 4 + r * cell[1]
            draw.text((x0 + 8, y + 6), name, "black", font)
            for c, value in enumerate(values):
                x = x0 + left + c * cell[0]
                shade = (int(255 - 205 * value), int(255 - 115 * value), int(255 - 45 * value))
                draw.rectangle((x, y, x + cell[0] - 3, y + cell[1] - 3), shade)
                text = f"{100 * value:.0f} %"
                draw.text((x + 18, y + 5), text, "white" if value > 0.6 else "black", font)
    return picture


def contact_sheet(cases: Sequence[Case], count: int = 24) -> Image:
    """Pictures, each followed by the maps of its two objects laid over it."""
    from PIL import Image

    from sdcore.image.overlay import lay_over

    side, chosen = 128, cases[: 2 * count]
    sheet = Image.new("RGB", (side * 12, side * -(-len(chosen) // 8)), "white")
    for i in range(0, len(chosen), 2):
        x, y = i // 2 % 4 * 3 * side, i // 2 // 4 * side
        picture = chosen[i].picture.resize((side, side), Image.Resampling.LANCZOS)
        tiles = [picture]
        for case in chosen[i : i + 2]:
            heat = case.heatmaps.of(case.word, image=case.image, size=(side, side))
            tiles.append(lay_over(picture, heat))
        for j, tile in enumerate(tiles):
            sheet.paste(tile, (x + j * side, y))
    return sheet


def run(arguments: argparse.Namespace) -> None:
    from bench.shares import wilson
    from sdcore.training.settings import load_settings
    from train.emoji.data.settings import DataSettings

    settings = load_settings(DataSettings, arguments.data)
    pipe = load_model(arguments.model)
    start = time.perf_counter()
    painted = generated_cases(pipe, settings, arguments.scenes, arguments.seed, explicit=False)
    explicit = generated_cases(pipe, settings, arguments.scenes, arguments.seed, explicit=True)
    real = real_cases(pipe, settings, arguments.scenes, arguments.seed)
    rows = {
        "generated scenes": tally(painted),
        "generated, explicit softmax": tally(explicit),
        **{f"generated, {name}": row for name, row in baselines(painted).items()},
        "real scenes, noised": tally(real),
        **{f"real, {name}": row for name, row in baselines(real).items()},
    }
    print("| maps | points at its object | IoU at the best threshold |\n|---|---|---|")
    for name, row in rows.items():
        hits, total = row["pointing"]
        low, high = wilson(hits, total)
        iou = "-" if row["iou"] is None else f"{row['iou']:.2f}"
        share = f"{100 * hits / total:.1f} ({100 * low:.0f}-{100 * high:.0f}, n {total})"
        print(f"| {name} | {share} | {iou} |")
    parts = [f"{100 * w // WINDOWS}-{100 * (w + 1) // WINDOWS} %" for w in range(WINDOWS)]
    tables = {
        "generated, by part of the run": (parts, by_block_and_step(painted)),
        "real, by time of the noise": ([str(t) for t in TIMES], by_block_and_step(real)),
    }
    folder = arguments.out
    result = {"settings": plain(arguments), "rows": rows, "by block and step": tables}
    files = {
        "heatmap_truth.json": json_writer(result, indent=1),
        "heatmap_truth.png": plot(tables).save,
        "heatmaps.png": contact_sheet(painted).save,
    }
    replace_files(folder, files)
    print(f"{time.perf_counter() - start:.0f} s; plot and pictures: {folder}")


if __name__ == "__main__":
    shared = {"model": None, "data": DATA, "scenes": 100, "seed": 0, "out": "runs/heatmap_truth"}
    main(make_parser(__doc__, **shared), run)
