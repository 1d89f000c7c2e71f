"""Page 11: a map as grid and strip, one place's self-attention, and what tells places apart."""

from __future__ import annotations

import copy
from functools import cache

import torch
from torch import Tensor, nn

from docs.book.book import (
    PROMPTS,
    STEPS,
    Measured,
    every_run,
    model,
    run,
    runs,
    term,
    text_of,
)
from docs.book.drawing import Svg, colored, colored_map, hot
from sdcore.unet.blocks import Conditions

PLACE, TIME, MIDDLE, SITE = (4, 1), 400, 4, "down.1.0.0 self"
PROBED, TRAINED, NOISES = 18, 12, 3  # noises, those that the probe learns from, how often


def measure(language: str) -> Measured:
    prompt = PROMPTS[language][0][0]
    unet, latents = model().unet, run(language).latents[MIDDLE]
    given = Conditions(unet.embed_time(TIME, latents, None), text_of(prompt), None, None)
    x = unet.conv_in(latents)
    for layer in range(len(unet.down_blocks[0])):
        x = unet.down_blocks[0](x, layer, given)
    before = unet.down_blocks[1].resnets[0](x, given.time)[0]  # (C, h, w)
    height, width = before.shape[1:]
    token = PLACE[0] * width + PLACE[1]
    table = reads(latents, [prompt])
    row = table[0, token].unflatten(0, (height, width))
    zero, circular = probes(0)
    sheet, side = Svg(860, 320), 180

    def panel(x: float, name: str, colors: Tensor) -> None:
        sheet.text(x, 16, term(f"figure.{name}", language), size=14, bold=True)
        sheet.cells(colors, x, 32, side)
        cell = side / width
        sheet.box(x + cell * PLACE[1], 32 + cell * PLACE[0], cell, cell, stroke="#000", wide=2)

    panel(12, "as_grid", colored_map(before))
    panel(222, "reads_places", hot(row, 0.0, float(row.max())))
    sheet.text(12, 238, term("figure.as_strip", language, n=height * width), size=14, bold=True)
    small = 832 / (height * width)
    sheet.cells(colored(before.flatten(1).T)[None], 12, 254, 832)
    sheet.box(12 + small * token, 254, small, small, stroke="#000", wide=2)
    sheet.text(440, 16, term("figure.knows_place", language), size=14, bold=True)
    for number, (name, found) in enumerate((("zeros", zero), ("wraps", circular))):
        y = 60 + 62 * number
        sheet.text(440, y - 14, term(f"figure.{name}", language), size=13)
        value = max(found.values())
        sheet.box(440, y, max(300 * value, 1.5), 18, "#104e8b", "none")
        sheet.text(446 + 300 * max(value, 0), y + 9, f"R² {value:.2f}", size=13)
    return Measured(
        sheet,
        {
            "token": str(token),
            "beyond": f"{100 * float(_beyond(table, (height, width))[0, token]):.0f}",
            "zero": f"{max(zero.values()):.2f}",
            "circular": f"{max(circular.values()) + 0.0:.2f}",
        },
        {
            "11.beyond": _reads_far(language, (height, width)),
            "11.padding": all(_tells_places(*probes(seed)) for seed in range(NOISES)),
        },
    )


def _reads_far(language: str, grid: tuple[int, int]) -> bool:
    """Whether in every run, early, midway and late, the mean place gives a third to others."""
    prompts, _ = every_run(language)
    for index in (1, MIDDLE, STEPS - 1):
        latents = torch.cat([each.latents[index] for _, _, each in runs(language)])
        if float(_beyond(reads(latents, prompts), grid).mean(1).min()) < 1 / 3:
            return False
    return True


def _tells_places(zero: dict[str, float], circular: dict[str, float]) -> bool:
    return max(zero.values()) > 0.6 and max(circular.values()) < 0.1


def _beyond(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """What each place gives to places that are not its neighbours (B, N), of a table (B, N, N)."""
    rows, columns = (x.flatten() for x in torch.meshgrid(*map(torch.arange, grid), indexing="ij"))
    far = ((rows[:, None] - rows).abs() > 1) | ((columns[:, None] - columns).abs() > 1)
    return (table * far).sum(2)


def reads(latents: Tensor, prompts: list[str]) -> Tensor:
    """What each place reads of the others at SITE (B, N, N), mean over heads."""
    seen: list[Tensor] = []

    def look(site, grid, q, k, v, attend):
        if str(site) == SITE:
            identity = torch.eye(k.shape[2]).expand(*k.shape[:2], -1, -1)
            seen.append(attend(q, k, identity).mean(1))
        return attend(q, k, v)

    text = torch.cat([text_of(prompt) for prompt in prompts])
    model().unet(latents, TIME, text, look)
    return seen[0]


@cache
def probes(seed: int) -> tuple[dict[str, float], dict[str, float]]:
    """R² of row and column in the queries of each site: zeros at the border, and no border."""
    wrapped = copy.deepcopy(model().unet)
    for layer in wrapped.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1):
            layer.padding_mode = "circular"
    return _probe(model().unet, seed), _probe(wrapped, seed)


def _probe(unet: nn.Module, seed: int) -> dict[str, float]:
    queries: dict[str, Tensor] = {}

    def look(site, grid, q, k, v, attend):
        if site.kind == "self":
            queries[str(site)] = q.transpose(1, 2).flatten(2).double()  # (B, N, D)
        return attend(q, k, v)

    noise = torch.randn(PROBED, 4, 16, 16, generator=torch.Generator().manual_seed(seed))
    unet(noise, 999, text_of("").expand(PROBED, -1, -1), look)
    return {site: _r_squared(each) for site, each in queries.items()}


def _r_squared(q: Tensor) -> float:
    """Of a ridge regression from queries to (row, column), on noises that it did not learn from."""
    count, width = q.shape[1], int(q.shape[1] ** 0.5)
    where = torch.stack([torch.arange(count) // width, torch.arange(count) % width], 1).double()
    where = where - where.mean(0)
    known, new = q[:TRAINED].flatten(0, 1), q[TRAINED:].flatten(0, 1)
    middle = known.mean(0)
    known, new = known - middle, new - middle
    ridge = 1e-3 * len(known) * torch.eye(known.shape[1]).double()
    weights = torch.linalg.solve(known.T @ known + ridge, known.T @ where.repeat(TRAINED, 1))
    wanted = where.repeat(PROBED - TRAINED, 1)
    return float(1 - (new @ weights - wanted).square().sum() / wanted.square().sum())
