"""Masks as people draw them, what counts of them, and the size at which a picture is painted."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sdcore.image.canvas import fitted_mask, make_canvases, size_to_paint
from sdcore.image.pictures import to_mask
from sdcore.size import Size

BOX = (16, 16, 32, 24)


def layer(ground: tuple[int, ...], stroke: tuple[int, ...], mode: str = "RGBA") -> Image.Image:
    image = Image.new(mode, (64, 64), ground)
    ImageDraw.Draw(image).rectangle((16, 16, 31, 23), fill=stroke)
    return image


@pytest.mark.parametrize(
    ("ground", "stroke"),
    [
        ((0, 0, 0, 0), (0, 0, 0, 255)),  # black on an empty layer
        ((255, 255, 255, 0), (0, 0, 0, 255)),  # which some programs keep white
        ((0, 0, 0, 0), (255, 255, 255, 255)),
        ((0, 0, 0, 0), (200, 30, 30, 255)),
        ((0, 0, 0, 255), (255, 255, 255, 255)),  # no layer at all
        ((0, 0, 0, 255), (255, 255, 255, 254)),
    ],
)
def test_what_is_drawn_is_repainted(ground: tuple[int, ...], stroke: tuple[int, ...]) -> None:
    mask = to_mask(layer(ground, stroke))
    expected = np.zeros((64, 64), dtype=bool)
    expected[16:24, 16:32] = True
    assert ((np.asarray(mask) >= 128) == expected).all()


def test_soft_strokes_keep_their_softness() -> None:
    soft = to_mask(layer((0, 0, 0, 0), (0, 0, 0, 100)))
    assert soft.getextrema() == (0, 100)
    assert to_mask(layer((0, 0), (0, 255), "LA")).getextrema() == (0, 255)


def test_light_and_dark_on_a_layer_are_white_and_black() -> None:
    image = layer((0, 0, 0, 0), (255, 255, 255, 255))
    ImageDraw.Draw(image).rectangle((40, 40, 50, 50), fill=(0, 0, 0, 255))
    assert to_mask(image).getbbox() == BOX


@pytest.mark.parametrize("size", [(64, 64), (256, 256)])
def test_one_pixel_of_a_mask_is_repainted(size: tuple[int, int]) -> None:
    """The corner of a cell, its middle and its end; also where the picture is made smaller."""
    scale = size[0] // 64
    for place in ((8, 8), (12, 13), (15, 15)):
        mask = Image.new("L", size)
        mask.putpixel((place[0] * scale, place[1] * scale), 255)
        how = {"width": 64, "height": 64}
        (canvas,) = make_canvases([Image.new("RGB", size)], [mask], **how)
        cells = canvas.mask_cells((8, 8))
        assert cells.sum() == 1 and cells[0, 1, 1] == 1
        (theirs,) = make_canvases([Image.new("RGB", size)], [mask], cells="corner", **how)
        assert theirs.mask_cells((8, 8)).sum() == (place == (8, 8) and scale == 1)


@pytest.mark.parametrize("size", [(16, 16), (128, 128), (640, 64), (48, 200)])
def test_a_mask_of_another_size_is_fitted_to_the_picture_and_it_is_said(
    size: tuple[int, int],
) -> None:
    """Its left half stays the left half; no stroke is lost, however thin."""
    mask = Image.new("L", size)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    with pytest.warns(UserWarning, match="the mask is .*: the mask is resized to the picture"):
        fitted = fitted_mask(Image.new("RGB", (64, 64)), mask)
    assert fitted.size == (64, 64)
    white = np.asarray(fitted) >= 128
    assert white[:, :31].all() and not white[:, 33:].any()
    thin = Image.new("L", size)
    thin.putpixel((size[0] // 2, size[1] // 2), 255)
    with pytest.warns(UserWarning, match="resized"):
        assert np.asarray(fitted_mask(Image.new("RGB", (64, 64)), thin)).max() >= 128


def test_a_part_of_the_picture_is_masked_where_it_lies() -> None:
    mask = layer((0,), (255,), "L")
    canvases = [
        make_canvases(
            [Image.new("RGB", (64, 64))], [mask], width=64, height=32, only_masked=8, cells=cells
        )[0]
        for cells in ("touched", "corner")
    ]
    ours, theirs = (canvas.mask_pixels() for canvas in canvases)
    assert ours.shape == (1, 32, 64)
    assert 0 < theirs.sum() <= ours.sum() <= 1.3 * theirs.sum()
    assert (ours >= theirs).float().mean() > 0.97


@pytest.mark.parametrize(
    ("picture", "model", "painted"),
    [
        (Size(2048, 1536), Size(64, 64), Size(72, 56)),
        (Size(2048, 1536), Size(512, 512), Size(592, 440)),
        (Size(30, 40), Size(512, 512), Size(440, 592)),
        (Size(1024, 1024), Size(512, 512), Size(1024, 1024)),
        (Size(513, 300), Size(512, 512), Size(512, 296)),
    ],
)
def test_a_picture_far_from_the_models_size_is_fitted_and_it_is_said(
    picture: Size, model: Size, painted: Size, recwarn: pytest.WarningsRecorder
) -> None:
    assert size_to_paint(picture, model) == painted
    said = [str(warning.message) for warning in recwarn]
    assert len(said) == (painted.area / picture.area > 1.1 or painted.area / picture.area < 0.9)
    assert all(f"painted at {painted}" in text for text in said)
