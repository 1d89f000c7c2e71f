"""The measure of heatmaps against the truth: maps that are right, wrong and blind score as such."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

from bench.heatmap_truth import (
    WINDOWS,
    Case,
    baselines,
    by_block_and_step,
    object_mask,
    overlaps,
    plot,
    points_at,
    tally,
)
from sdcore.attention import Site, sdpa
from sdcore.control.heatmaps import WordHeatmaps
from sdcore.diffusion.steps import Step
from sdcore.text.tokenizer import Span, Tokens
from tests.control.runs import make_run

SITE = Site("up", 0, kind="cross", name="up_blocks.0.attentions.0.transformer_blocks.0.attn2")
LEFT, RIGHT = (4, 20, 28, 44), (36, 20, 60, 44)  # boxes: left, top, right, bottom


@pytest.fixture
def picture() -> Image.Image:
    image = Image.new("RGB", (64, 64), (165, 215, 245))
    image.paste((200, 40, 40), LEFT)
    image.paste((60, 160, 60), RIGHT)
    return image


def heatmaps(last_window_only: bool = False) -> WordHeatmaps:
    """Maps as a UNet would record them: "fox" is read on the left, "cat" on the right."""
    spans = (Span("fox", 0, 3, range(1, 2)), Span("cat", 4, 7, range(2, 3)))
    tokens = Tokens(torch.tensor([[9, 1, 2, 8]]), torch.ones(1, 4), (spans,), ("",))
    recorded = WordHeatmaps(tokens, windows=WINDOWS)
    recorded.begin(make_run(1, 4, sites=(SITE,)))
    columns = torch.arange(8).repeat(8)
    for window in range(WINDOWS):
        q = torch.zeros(1, 1, 64, 8)
        if window == WINDOWS - 1 or not last_window_only:
            q[0, 0, :, 0] = torch.where((columns > 0) & (columns < 3), 9.0, 0.0)
            q[0, 0, :, 1] = torch.where((columns > 4) & (columns < 7), 9.0, 0.0)
        q[0, 0, :24] = q[0, 0, 40:] = 0  # only the middle rows read
        k = torch.zeros(1, 1, 4, 8)
        k[0, 0, 1, 0] = k[0, 0, 2, 1] = 1.0
        control = recorded.at(Step(window, WINDOWS, 900.0 - window))
        assert control is not None
        control(SITE, (8, 8), q, k, torch.zeros_like(k), sdpa)
    return recorded


def cases(picture: Image.Image, maps: WordHeatmaps) -> list[Case]:
    return [
        Case(picture, 0, maps, word, other, object_mask(picture, half))
        for word, other, half in (
            ("fox", "cat", (0, 0, 32, 64)),
            ("cat", "fox", (32, 0, 64, 64)),
        )
    ]


def test_the_object_is_what_differs_from_the_background_in_its_half(picture: Image.Image) -> None:
    mask = object_mask(picture, (0, 0, 32, 64))
    expected = torch.zeros(64, 64, dtype=torch.bool)
    expected[20:44, 4:28] = True
    assert torch.equal(mask, expected)


def test_the_rim_of_a_picture_shows_no_object(picture: Image.Image) -> None:
    spoilt = picture.copy()
    spoilt.putpixel((0, 0), (0, 0, 0))
    spoilt.putpixel((30, 63), (0, 0, 0))
    half = (0, 0, 32, 64)
    assert torch.equal(object_mask(spoilt, half), object_mask(picture, half))


def test_pointing_and_overlap_of_right_and_wrong_maps(picture: Image.Image) -> None:
    mask = object_mask(picture, (0, 0, 32, 64))
    assert points_at(mask.float(), mask) and not points_at((~mask).float(), mask)
    assert overlaps(mask.float(), mask).max() == 1
    assert overlaps((~mask).float(), mask).max() < 0.2
    flat = overlaps(torch.ones(64, 64), mask)
    assert torch.allclose(flat, mask.float().mean().expand(len(flat)))


def test_words_read_on_their_objects_score_and_the_other_s_word_does_not(
    picture: Image.Image,
) -> None:
    both = cases(picture, heatmaps())
    result = tally(both)
    assert result["pointing"] == (2, 2) and result["iou"] > 0.4
    floor = baselines(both)
    assert floor["the other's word"]["pointing"] == (0, 2)
    assert floor["centre"]["pointing"] == (0, 2)
    hits, count = floor["chance"]["pointing"]
    assert count == 2 and hits / count == pytest.approx(24 * 24 / 64**2)
    swapped = [replace(case, word=case.other, other=case.word) for case in both]
    assert tally(swapped)["pointing"] == (0, 2)


def test_each_window_is_read_alone(picture: Image.Image) -> None:
    rows = by_block_and_step(cases(picture, heatmaps(last_window_only=True)))
    assert set(rows) == {"up 0.0", "all"}
    assert rows["all"][-1] == 1.0 and max(rows["all"][:-1]) < 1.0


def test_the_plot_has_a_cell_for_every_figure() -> None:
    columns = [str(i) for i in range(WINDOWS)]
    image = plot({"one": (columns, {"all": [0.0, 0.25, 0.5, 0.75, 1.0]})})
    colors = {color for _, color in image.getcolors(1 << 20)}
    assert {(255, 255, 255), (50, 140, 210)} <= colors
