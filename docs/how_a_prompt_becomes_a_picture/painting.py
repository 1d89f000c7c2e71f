"""Pictures and figures of pages 8 to 10: steps, guidance, heatmaps, steering.

Shapes: B images, C channels, h w latent grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from docs.how_a_prompt_becomes_a_picture.drawing import Sheet, hot
from docs.how_a_prompt_becomes_a_picture.guide import Guide, percent
from docs.how_a_prompt_becomes_a_picture.reading import PROMPT
from sdcore import (
    EditSettings,
    Job,
    Moment,
    PromptEdit,
    TextToImage,
    WordHeatmaps,
    read_tokens,
    to_images,
)

SEED, FEW = 3, 12  # steps of the runs beside the main one
SCALES = (1.0, 2.0, 4.0, 7.0)
WORDS = ("fox", "cat", "blue")
WINDOWS = 5


@dataclass(frozen=True)
class Painted:
    """The run that pages 5 to 9 look at.

    latents: after each step, (1, C, h, w); heatmaps: of every step.
    """

    picture: Image.Image
    latents: list[Tensor]
    heatmaps: WordHeatmaps
    times: list[float]
    scale: float


def paint(pipe: TextToImage) -> Painted:
    latents: list[Tensor] = []
    times: list[float] = []

    heatmaps = WordHeatmaps(pipe.tokenizer(PROMPT), windows=pipe.defaults.steps)
    for happened in pipe.painting(Job(PROMPT, seed=SEED), heatmaps):
        if isinstance(happened, Moment):
            latents.append(happened.latents.clone())
            times.append(happened.step.time)
        else:
            scale = happened.jobs[0].guidance_scale
            return Painted(happened.images[0], latents, heatmaps, times, scale or 0.0)
    raise AssertionError("a painting ends with its result")


# --- page 8 ------------------------------------------------------------------------------------


def steps_and_guidance(guide: Guide, pipe: TextToImage, run: Painted) -> None:
    count = len(run.latents)
    shown = sorted({0, count // 8, count // 4, count // 2, count - 1})
    seen = [to_images(pipe.autoencoder.decode(run.latents[i]))[0] for i in shown]
    runs = [pipe(PROMPT, seed=SEED, steps=FEW, guidance_scale=scale) for scale in SCALES]
    empty = pipe("", seed=SEED, steps=FEW, guidance_scale=1.0)
    guided = [empty.images[0], *(each.images[0] for each in runs)]
    names = [f"after step {i + 1}" for i in shown]
    scales = ["empty prompt", *(f"scale {scale:g}" for scale in SCALES)]
    guide.picture("08_steps_and_guidance.png", _rows([seen, guided], [names, scales]))
    guide.figure("steps", str(count))
    guide.figure("few_steps", str(FEW))
    guide.figure("usual_scale", f"{run.scale:g}")
    apart = [float((each.latents - runs[0].latents).square().mean().sqrt()) for each in runs]
    spread = float(runs[0].latents.std())
    guide.figure("scale_2_moves", percent(apart[1] / spread))
    guide.figure("scale_7_moves", percent(apart[3] / spread))
    guide.claim("8: the larger the scale, the further the picture moves", apart == sorted(apart))


def _rows(pictures: Sequence[Sequence[Image.Image]], names: Sequence[Sequence[str]]) -> Image.Image:
    side, gap, line = 152, 8, 24
    sheet = Sheet(len(pictures[0]) * (side + gap) + gap, len(pictures) * (side + line + gap))
    for row, (images, titles) in enumerate(zip(pictures, names, strict=True)):
        y = row * (side + line + gap) + line
        for column, (image, title) in enumerate(zip(images, titles, strict=True)):
            x = gap + column * (side + gap)
            sheet.text(x, y - line / 2, title, size=16)
            sheet.paste(image, x, y, side)
    return sheet.image


# --- page 9 ------------------------------------------------------------------------------------


def fine(site) -> bool:
    """The finest grid on which the embedded model reads the text, on the way up."""
    return site.place == "up" and site.level == 1


def heatmaps(guide: Guide, run: Painted) -> None:
    maps, side, gap, left, top = run.heatmaps, 112, 8, 118, 26
    sheet = Sheet(left + (WINDOWS + 1) * (side + gap), top + len(WORDS) * (side + gap))
    names = [f"{100 * i // WINDOWS} to {100 * (i + 1) // WINDOWS} %" for i in range(WINDOWS)]
    for column, name in enumerate([*names, "all steps"]):
        sheet.text(left + column * (side + gap), top / 2, name, size=15)
    for row, word in enumerate(WORDS):
        y = top + row * (side + gap)
        sheet.text(left - 8, y + side / 2, word, "rm", 17)
        series = [_window(run, word, i / WINDOWS, (i + 1) / WINDOWS) for i in range(WINDOWS)]
        low, high = float(min(s.min() for s in series)), float(max(s.max() for s in series))
        sheet.text(left - 8, y + side / 2 + 22, f"{100 * low:.0f} to {100 * high:.0f} %", "rm", 13)
        for column, series_map in enumerate(series):
            cell = side // series_map.shape[1]
            sheet.cells(hot(series_map, low, high), left + column * (side + gap), y, cell)
        over = maps.overlay(run.picture.resize((256, 256)), word, sites=fine)
        sheet.paste(over, left + WINDOWS * (side + gap), y, side)
    guide.picture("09_heatmaps.png", sheet.image)
    whole = maps.maps(sites=fine)  # (columns, h, w)
    guide.claim("9: the maps add up to one everywhere", bool((whole.sum(0) - 1).abs().max() < 1e-4))
    for word, half in (("fox", "left"), ("cat", "right")):
        each = maps.of(word, sites=fine)
        middle = each.shape[1] // 2
        here = each[:, :middle] if half == "left" else each[:, middle:]
        guide.figure(f"{word}_share", percent(float(each.mean())))
        guide.figure(f"{word}_half", percent(float(here.sum() / each.sum())))
    ends = maps.of("<|endoftext|>", sites=fine)
    guide.figure("end_share", percent(float(ends.mean())))
    guide.figure("grid", " x ".join(str(n) for n in ends.shape))
    early, late = _window(run, "fox", 0, 1 / WINDOWS), _window(run, "fox", 1 - 1 / WINDOWS, 1)
    alike = torch.corrcoef(torch.stack([early.flatten(), late.flatten()]))[0, 1]
    guide.claim("9: the first steps' map of the fox is like the last steps'", bool(alike > 0.5))
    blue = maps.of("blue", sites=fine)
    guide.figure("blue_most", percent(float(blue.max())))
    guide.claim("9: blue is hardly read", bool(blue.max() < 0.05))
    guide.claim("9: the fox gets a small share", bool(maps.of("fox", sites=fine).mean() < 0.2))
    guide.claim("9: the fox is read most in the left half", _side(maps, "fox") < 0.5)
    guide.claim("9: the cat is read most in the right half", _side(maps, "cat") > 0.5)


def _window(run: Painted, word: str, start: float, end: float) -> Tensor:
    return run.heatmaps.of(word, steps=(start, end), sites=fine)


def _side(maps: WordHeatmaps, word: str) -> float:
    """Where a word is read, from 0 at the left to 1 at the right: its map's centre."""
    each = maps.of(word, sites=fine)
    across = (torch.arange(each.shape[1]) + 0.5) / each.shape[1]
    return float((each.sum(dim=0) * across).sum() / each.sum())


# --- page 10 -----------------------------------------------------------------------------------


def steering(guide: Guide, pipe: TextToImage) -> None:
    swapped = _edited(pipe, PROMPT.replace("fox", "penguin"), cross=0.5, layout=0.3)
    colored = _edited(pipe, PROMPT.replace("light blue", "dark green"), cross=0.5, layout=0.3)
    moved = _edited(pipe, PROMPT.replace("left", "right"), cross=0.05, layout=None)
    pictures = [swapped[0], swapped[1], colored[1], moved[1]]
    names = ["the prompt", "penguin", "dark green", "to the right of"]
    guide.picture("10_steering.png", _rows([pictures], [names]))


def _edited(
    pipe: TextToImage, changed: str, *, cross: float, layout: float | None
) -> list[Image.Image]:
    """The prompt, and the changed one that reads where it was read."""
    prompts = [PROMPT, changed]
    tokens = read_tokens(prompts, pipe.tokenizer)
    edit = PromptEdit(tokens, EditSettings(cross=(0, cross), layout=layout and (0, layout)))
    return pipe(prompts, seed=[SEED, SEED], steps=FEW, control=edit).images
