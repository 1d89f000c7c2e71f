"""Page 14: heatmaps over the steps, and three ways to steer."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import torch
from PIL.Image import Image

from docs.book.book import (
    PROMPTS,
    SEED,
    SEEDS,
    STEPS,
    Measured,
    every_run,
    fine,
    model,
    plain,
    run,
    runs,
    term,
)
from docs.book.drawing import FAINT, Svg, hot
from sdcore import EditSettings, PromptEdit, read_tokens

Images = list[Image]
WINDOWS = 4
EXCHANGED = {"en": ("fox", "penguin"), "zh": ("狐狸", "企鹅")}


def mirrored(site, grid, q, k, v, attend):
    """Each place asks as its mirror image does."""
    if site.kind == "cross":
        q = q.unflatten(2, grid).flip(3).flatten(2, 3)
    return attend(q, k, v)


def unread(positions):
    """A control under which no place reads these tokens."""

    def control(site, grid, q, k, v, attend):
        if site.kind != "cross":
            return attend(q, k, v)
        seen = torch.ones(q.shape[2], k.shape[2]).bool()
        seen[:, list(positions)] = False
        return attend(q, k, v, mask=seen)

    return control


def change_sides(before: Images, after: Images, turned: Images) -> bool:
    """Whether all are nearer to the pictures of the prompt turned round than to what they were."""
    arrays = ([np.asarray(image, float) for image in each] for each in (after, turned, before))
    return all(
        np.abs(one - other).mean() < np.abs(one - old).mean()
        for one, other, old in zip(*arrays, strict=True)
    )


@cache
def turned(language: str) -> Images:
    """`every_run`, with its prompts turned round."""
    prompts, seeds = every_run(language)
    return model()([turned_round(each) for each in prompts], seed=seeds, steps=STEPS).images


def steered(language: str, control) -> Images:
    """`every_run` under a control."""
    prompts, seeds = every_run(language)
    return model()(prompts, seed=seeds, steps=STEPS, control=control).images


def turned_round(prompt: str) -> str:
    """The prompt with its two things exchanged."""
    return re.sub(r"(.*)( to the left of |在)(.*?)(的左边)?$", r"\3\2\1\4", prompt)


def measure(language: str) -> Measured:
    prompt, left, right = PROMPTS[language][0]
    shown, every = run(language), runs(language)
    under_mirror = steered(language, mirrored)
    heat = shown.of(left, sites=fine)
    sides, early = [], []
    for one, other, each in every:
        sides.append(_centre(each.of(one, sites=fine)) < 0.45)
        sides.append(_centre(each.of(other, sites=fine)) > 0.55)
        windows = [
            each.of(one, sites=fine, steps=part).flatten() for part in ((0, 0.25), (0.75, 1))
        ]
        early.append(float(torch.corrcoef(torch.stack(windows))[0, 1]) > 0.5)
    seen = torch.cat([each.latents[-1] for _, _, each in every])
    return Measured(
        _drawn(language, prompt, left, right, under_mirror[SEEDS.index(SEED)]),
        {
            "left": left,
            "right": right,
            "count": str(len(every)),
            "share": f"{100 * float(heat.mean()):.0f}",
        },
        {
            "14.same": torch.equal(plain(language).latents, seen),
            "14.sides": all(sides),
            "14.early": all(early),
            "14.share": all(float(e.of(one, sites=fine).mean()) < 0.1 for one, _, e in every),
            "14.mirror": change_sides(plain(language).images, under_mirror, turned(language)),
        },
    )


def _centre(heat) -> float:
    """From 0 at the left to 1 at the right."""
    across = (torch.arange(heat.shape[1]) + 0.5) / heat.shape[1]
    return float((heat.sum(0) * across).sum() / heat.sum())


def _drawn(language: str, prompt: str, left: str, right: str, mirror: Image) -> Svg:
    pipe, shown, side, at = model(), run(language), 120, 96
    sheet = Svg(at + (WINDOWS + 1) * (side + 10) + 6, 470)
    for row, word in enumerate((left, right)):
        y = 30 + row * (side + 10)
        sheet.text(at - 10, y + side / 2, word, "end", 16, bold=True)
        parts = [(i / WINDOWS, (i + 1) / WINDOWS) for i in range(WINDOWS)]
        series = [shown.of(word, sites=fine, steps=part) for part in parts]
        low, high = (float(f(torch.stack(series))) for f in (torch.amin, torch.amax))
        for column, each in enumerate(series):
            x = at + column * (side + 10)
            sheet.cells(hot(each, low, high), x, y, side)
            if row == 0:
                name = term("figure.quarter", language, n=column + 1)
                sheet.text(x + side / 2, 14, name, "middle", 13, FAINT)
        over = shown.heatmaps.overlay(
            shown.picture.resize((128, 128)), word, image=shown.image, sites=fine
        )
        sheet.picture(over, at + WINDOWS * (side + 10), y, side)
    old, new = EXCHANGED[language]
    prompts = [prompt, prompt.replace(old, new)]
    settings = EditSettings(cross=(0, 0.5), layout=(0, 0.3))
    edit = PromptEdit(read_tokens(prompts, pipe.tokenizer), settings)
    before, exchanged = pipe(prompts, seed=[SEED, SEED], steps=STEPS, control=edit).images
    cat = pipe.tokenizer(prompt).spans[0][shown.words.index(right)].positions
    pictures = {
        "as_it_is": before,
        "exchanged": exchanged,
        "mirrored": mirror,
        "unread": pipe(prompt, seed=SEED, steps=STEPS, control=unread(cat)).images[0],
    }
    for column, (name, picture) in enumerate(pictures.items()):
        x = at + column * (side + 10)
        said = term(f"figure.{name}", language, old=old, new=new, word=right)
        sheet.text(x + side / 2, 314, said, "middle", 12, FAINT)
        sheet.picture(picture, x, 328, side)
    return sheet
