"""Inpainting: what the mask keeps is kept to the bit; what it gives is painted; parts put back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sdcore import TextToImage, UNet, UNetConfig
from sdcore.errors import UsageError
from sdcore.image.canvas import make_canvases, masked_box
from sdcore.size import Size
from tests.painting import paint

FAST = {"steps": 2, "guidance_scale": 1.0, "seed": 1}


@pytest.fixture(scope="module")
def pipe(sd_folder: Path) -> TextToImage:
    return TextToImage.from_pretrained(sd_folder)


@pytest.fixture(scope="module")
def inpainting(sd_folder: Path) -> TextToImage:
    """A model whose UNet reads 9 channels."""
    pipe = TextToImage.from_pretrained(sd_folder)
    torch.manual_seed(4)
    config = {**pipe.unet.config.to_dict(), "in_channels": 9}
    pipe.unet = UNet(UNetConfig.from_dict(config)).eval()
    return pipe


@pytest.fixture(scope="module")
def embedded() -> TextToImage:
    return TextToImage.embedded()


def clouds(size: tuple[int, int], seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


@st.composite
def masks(draw) -> Image.Image:
    """Rectangles of any grey on black, on pictures of any size, with something to repaint."""
    width, height = draw(st.integers(8, 90)), draw(st.integers(8, 90))
    mask = Image.new("L", (width, height))
    for number in reversed(range(draw(st.integers(1, 4)))):  # the white one comes last
        left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        right, bottom = draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))
        grey = 255 if number == 0 else draw(st.integers(0, 255))
        mask.paste(grey, (left, top, right, bottom))
    return mask


@settings(max_examples=60, deadline=None)
@given(
    mask=masks(),
    only_masked=st.none() | st.integers(0, 40),
    strength=st.sampled_from([0.5, 1.0]),
    reads_mask=st.booleans(),
    seed=st.integers(0, 5),
)
def test_what_the_mask_keeps_is_kept_to_the_bit(
    pipe, inpainting, mask, only_masked, strength, reads_mask, seed
) -> None:
    model = inpainting if reads_mask else pipe
    picture = clouds(mask.size, seed)
    size = {} if only_masked is None else {"width": 48, "height": 32}
    try:
        painted = paint(
            model, "a cat", image=picture, mask=mask, only_masked=only_masked, strength=strength,
            **size, **FAST,
        ).images[0]  # fmt: skip
    except UsageError as error:
        assert "too small" in error.what
        return
    assert painted.size == picture.size
    kept = np.asarray(mask) == 0
    assert (levels(painted)[kept] == levels(picture)[kept]).all()


@pytest.mark.parametrize("model", ["pipe", "inpainting"])
def test_what_the_mask_gives_is_painted(request, model) -> None:
    pipe = request.getfixturevalue(model)
    picture, mask = clouds((64, 64)), Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 64, 48))
    first = pipe("a cat", image=picture, mask=mask, **FAST)
    other = pipe("a cat", image=picture, mask=mask, **{**FAST, "seed": 2})
    repainted = np.asarray(mask) > 0
    assert (levels(first.images[0])[repainted] != levels(picture)[repainted]).mean() > 0.9
    assert (levels(first.images[0]) != levels(other.images[0]))[repainted].mean() > 0.9
    source = first.settings[0].source
    assert source is not None and source.mask is not None and source.strength == 1.0


def test_a_grey_mask_mixes_the_two(pipe) -> None:
    picture, hard = clouds((64, 64)), Image.new("L", (64, 64), 255)
    soft = hard.copy()
    soft.paste(153, (0, 0, 32, 64))  # 60 %, so that the model paints there too
    painted = levels(pipe("a cat", image=picture, mask=hard, **FAST).images[0])
    mixed = levels(pipe("a cat", image=picture, mask=soft, **FAST).images[0])
    expected = painted.copy()
    expected[:, :32] = np.round(0.6 * painted[:, :32] + 0.4 * levels(picture)[:, :32])
    assert np.abs(mixed - expected).max() <= 1


def test_pictures_of_a_batch_have_masks_of_their_own(pipe) -> None:
    pictures = [clouds((64, 48), 1), clouds((64, 48), 2)]
    marks = [Image.new("L", (64, 48)) for _ in pictures]
    marks[0].paste(255, (0, 0, 32, 48))
    marks[1].paste(255, (32, 0, 64, 48))
    both = pipe(["a cat", "a dog"], image=pictures, mask=marks, **FAST).images
    for i, (picture, mask) in enumerate(zip(pictures, marks, strict=True)):
        kept = np.asarray(mask) == 0
        assert (levels(both[i])[kept] == levels(picture)[kept]).all()
        prompt = ["a cat", "a dog"][i]
        alone = pipe(prompt, image=picture, mask=mask, **{**FAST, "seed": 1 + i}).images[0]
        assert np.abs(levels(alone) - levels(both[i])).max() <= 1


def test_an_inpainting_model_needs_a_mask(inpainting, pipe) -> None:
    picture = clouds((64, 64))
    for given_ in ({}, {"image": picture, "strength": 0.5}):
        with pytest.raises(UsageError, match="reads 9 channels") as error:
            inpainting("a cat", **given_, **FAST)
        assert "mask" in error.value.hint
    white = Image.new("L", (64, 64), 255)
    assert inpainting("a cat", image=picture, mask=white, **FAST).images[0].size == (64, 64)
    config = {**pipe.unet.config.to_dict(), "in_channels": 8}
    other = TextToImage(
        pipe.tokenizer,
        pipe.text_encoder,
        UNet(UNetConfig.from_dict(config)),
        pipe.autoencoder,
        pipe.scheduler,
    )
    with pytest.raises(UsageError, match="reads 8 channels"):
        other("a cat", image=picture, mask=white, **FAST)


def test_the_part_around_a_mask_is_padded_and_grown_to_the_aspect_ratio() -> None:
    mask = Image.new("L", (200, 100))
    mask.paste(1, (90, 40, 110, 50))  # all that is not black counts
    assert masked_box(mask, Size(64, 64), 0) == (90, 35, 110, 55)
    assert masked_box(mask, Size(64, 64), 10) == (80, 25, 120, 65)
    assert masked_box(mask, Size(128, 64), 10) == (70, 30, 130, 60)
    mask.paste(255, (180, 90, 200, 100))
    left, top, right, bottom = masked_box(mask, Size(64, 64), 0)
    assert (right, bottom) == (200, 100) and bottom - top == 100 and right - left == 110


@settings(max_examples=100, deadline=None)
@given(
    mask=masks(), padding=st.integers(0, 50), width=st.integers(8, 99), height=st.integers(8, 99)
)
def test_the_part_holds_the_whole_mask_and_lies_in_the_picture(
    mask, padding, width, height
) -> None:
    left, top, right, bottom = masked_box(mask, Size(width, height), padding)
    assert 0 <= left < right <= mask.width and 0 <= top < bottom <= mask.height
    box = mask.getbbox()
    assert box is not None
    assert left <= box[0] and top <= box[1] and box[2] <= right and box[3] <= bottom


def test_only_the_part_around_the_mask_is_painted_at_the_models_size(pipe) -> None:
    picture, mask = clouds((200, 120)), Image.new("L", (200, 120))
    mask.paste(255, (150, 20, 170, 40))
    (canvas,) = make_canvases([picture], [mask], model_size=pipe.native_size, only_masked=6)
    assert canvas.size == Size(64, 64) and canvas.box == (144, 14, 176, 46)
    assert canvas.pixels().shape == (3, 64, 64)
    assert canvas.mask_pixels().mean() == pytest.approx((20 / 32) ** 2, abs=0.02)
    result = paint(pipe, "a cat", image=picture, mask=mask, only_masked=6, **FAST)
    assert result.images[0].size == (200, 120) and result.latents.shape == (1, 4, 8, 8)
    tiny_mask = Image.new("L", (200, 120))
    tiny_mask.paste(255, (101, 51, 104, 54))
    with pytest.raises(UsageError, match="too small") as error:
        paint(pipe, "a cat", image=picture, mask=tiny_mask, mask_cells="corner", **FAST)
    assert "only_masked" in error.value.hint
    painted = pipe("a cat", image=picture, mask=tiny_mask, **FAST).images[0]
    assert (levels(painted) != levels(picture)).any(axis=2).sum() == 9
    paint(pipe, "a cat", image=picture, mask=tiny_mask, only_masked=6, **FAST)


def test_half_a_fox_is_repainted(embedded) -> None:
    """As a user does it: keep the left half of a fox, ask for blue on the right."""
    fox = embedded("a fox on a white background", seed=3, steps=12).images[0]
    mask = Image.new("L", (64, 64))
    mask.paste(255, (32, 0, 64, 64))
    how = {"image": fox, "mask": mask, "seed": 3, "steps": 12}
    painted = levels(embedded("a fox on a light blue background", **how).images[0])
    assert (painted[:, :32] == levels(fox)[:, :32]).all()
    corner = np.median(painted[:6, 44:].reshape(-1, 3), axis=0)
    assert corner[2] > corner[0] + 20, "light blue, where the picture was white"
