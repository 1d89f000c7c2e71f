"""Page 11: a map as grid and strip, one place's self-attention, and what tells places apart."""

from __future__ import annotations

import copy
from functools import cache

import torch
from torch import Tensor, nn

from docs.book.book import PROMPTS, Measured, model, run, term, text_of
from docs.book.drawing import Svg, colored, colored_map, hot
from sdcore.unet.blocks import Conditions

PLACE, TIME, SITE = (4, 1), 400, "down.1.0.0 self"
PROBED, TRAINED = 48, 32  # noises, and those that the probe learns from


def measure(language: str) -> Measured:
    prompt = PROMPTS[language][0][0]
    unet, latents = model().unet, run(prompt).latents[6]
    given = Conditions(unet.embed_time(TIME, latents, None), text_of(prompt), None, None)
    x, _ = unet.down_blocks[0](unet.conv_in(latents), given)
    before = unet.down_blocks[1].resnets[0](x, given.time)[0]  # (C, h, w)
    height, width = before.shape[1:]
    token = PLACE[0] * width + PLACE[1]
    row = reads(latents, token, prompt).unflatten(0, (height, width))
    near = row.clone()
    near[max(PLACE[0] - 1, 0) : PLACE[0] + 2, max(PLACE[1] - 1, 0) : PLACE[1] + 2] = 0
    zero, circular = probes()
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
    seen = run(prompt).latents
    beyond = [
        1 - float(_square(each, place, prompt, height, width))
        for each in (seen[3], seen[6], seen[9])
        for place in (PLACE, (2, 5), (6, 3))
    ]
    return Measured(
        sheet,
        {
            "token": str(token),
            "beyond": f"{100 * float(near.sum()):.0f}",
            "zero": f"{max(zero.values()):.2f}",
            "circular": f"{max(circular.values()) + 0.0:.2f}",
        },
        {
            "11.beyond": min(beyond) > 0.2,
            "11.padding": max(zero.values()) > 0.6 and max(circular.values()) < 0.1,
        },
    )


def _square(
    latents: Tensor, place: tuple[int, int], prompt: str, height: int, width: int
) -> Tensor:
    """What a place gives to itself and its neighbours."""
    row = reads(latents, place[0] * width + place[1], prompt)
    around = row.unflatten(0, (height, width))
    return around[max(place[0] - 1, 0) : place[0] + 2, max(place[1] - 1, 0) : place[1] + 2].sum()


def reads(latents: Tensor, token: int, prompt: str) -> Tensor:
    """What a place reads of the others at SITE (N,), mean over heads."""
    seen: list[Tensor] = []

    def look(site, grid, q, k, v, attend):
        if str(site) == SITE:
            identity = torch.eye(k.shape[2]).expand(*k.shape[:2], -1, -1)
            seen.append(attend(q[:, :, token, None], k, identity).mean(1)[0, 0])
        return attend(q, k, v)

    model().unet(latents, TIME, text_of(prompt), look)
    return seen[0]


@cache
def probes() -> tuple[dict[str, float], dict[str, float]]:
    """R² of row and column in the queries of each site: zeros at the border, and no border."""
    wrapped = copy.deepcopy(model().unet)
    for layer in wrapped.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1):
            layer.padding_mode = "circular"
    return _probe(model().unet), _probe(wrapped)


def _probe(unet: nn.Module) -> dict[str, float]:
    queries: dict[str, Tensor] = {}

    def look(site, grid, q, k, v, attend):
        if site.kind == "self":
            queries[str(site)] = q.transpose(1, 2).flatten(2).double()  # (B, N, D)
        return attend(q, k, v)

    noise = torch.randn(PROBED, 4, 16, 16, generator=torch.Generator().manual_seed(0))
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
