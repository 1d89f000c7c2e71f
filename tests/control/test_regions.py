"""Regions: each place reads its own text; masks of every kind; what cannot be is refused."""

from __future__ import annotations

import pytest
import torch
from PIL import Image, ImageDraw

from sdcore import TextToImage
from sdcore.attention import BACKENDS, Site
from sdcore.attention_choice import unavailable
from sdcore.control.regions import Region, Regions
from sdcore.control.run_control import attention_sites
from sdcore.errors import UsageError
from tests.control.runs import STEP, make_run
from tests.explicit_map import make_attend, region_map
from tests.painting import paint

HERE = [name for name in BACKENDS if unavailable(name) is None]
CROSS = Site("down", 1, kind="cross", name="a.transformer_blocks.0.attn2")
LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)


def two(**kwargs):
    return Regions("grass", [Region("a fox", box=LEFT), Region("a cat", box=RIGHT)], **kwargs)


def begun(regions, grid=(8, 8), tokens=12):
    regions.begin(make_run(1, tokens, grid=grid))
    return regions


@pytest.fixture(scope="module")
def sd(sd_folder):
    return TextToImage.from_pretrained(sd_folder)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype, close", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("grid", [(3, 5), (8, 4)])
@pytest.mark.parametrize("masked", [False, True])
def test_regions_are_those_of_the_explicit_map(backend, dtype, close, grid, masked):
    regions = begun(two(soft=0.2, base=0.3), grid=(9, 7))
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 3, grid[0] * grid[1], 8, generator=generator, dtype=torch.float64).to(dtype)
    k, v = (torch.randn(2, 3, 12, 8, generator=generator).to(q) for _ in range(2))
    mask = torch.rand(2, 1, 1, 12, generator=generator) > 0.3 if masked else None
    out = regions.at(STEP)(CROSS, grid, q, k, v, make_attend(backend, mask))
    slices = [slice(0, 4), slice(4, 8), slice(8, 12)]
    p = region_map(q.double(), k.double(), regions.masks(grid), slices, mask)
    torch.testing.assert_close(out.double(), p @ v.double(), rtol=close, atol=close)


@pytest.mark.parametrize("grid", [(8, 8), (5, 3), (1, 1), (16, 7)])
def test_every_place_reads_one_text_in_all(grid):
    masks = begun(two(soft=0.15, base=0.25)).masks(grid)
    torch.testing.assert_close(masks.sum(dim=0), torch.ones(grid))
    assert (masks >= -1e-6).all() and masks[0].min() >= 0.25 - 1e-6


def test_sharp_halves_are_halves():
    masks = begun(two(soft=0, base=0)).masks((2, 4))
    assert masks[1].tolist() == [[1, 1, 0, 0]] * 2 and masks[2].tolist() == [[0, 0, 1, 1]] * 2
    assert not masks[0].any()
    narrow = Regions("x", [Region("y", box=(0, 0, 0.375, 0.5))], soft=0, base=0)
    assert begun(narrow, tokens=8).masks((2, 4))[1].tolist() == [[1, 0.5, 0, 0], [0, 0, 0, 0]]


def test_soft_edges_fade():
    sharp, soft = (begun(two(soft=s, base=0)).masks((8, 8))[1] for s in (0, 0.3))
    assert set(sharp.flatten().tolist()) == {0.0, 1.0}
    assert (soft[:, 1:] <= soft[:, :-1] + 1e-6).all() and 0.2 < soft[4, 4] < 0.8


def test_a_drawn_mask_is_a_region():
    drawn = Image.new("L", (64, 64))
    ImageDraw.Draw(drawn).rectangle((0, 0, 31, 63), fill=255)
    by_mask = Regions("grass", [Region("a fox", mask=drawn)], soft=0, base=0)
    by_box = Regions("grass", [Region("a fox", box=LEFT)], soft=0, base=0)
    by_tensor = Regions("grass", [Region("a fox", mask=torch.eye(64))], soft=0, base=0)
    a, b, c = (begun(r, tokens=8).masks((8, 8)) for r in (by_mask, by_box, by_tensor))
    torch.testing.assert_close(a, b)
    assert (c[1].diagonal() > 0).all() and c[1][0, 5] == 0


def test_a_region_is_what_its_text_alone_would_be(sd):
    """A region over the whole picture is an ordinary run of its prompt, exactly."""
    texts = [sd.text_encoder(sd.tokenizer(t).ids).last_hidden_state for t in ("grass", "a fox")]
    x = torch.randn(1, 4, 9, 5, generator=torch.Generator().manual_seed(0))
    regions = Regions("grass", [Region("a fox", box=(0, 0, 1, 1))], soft=0, base=0)
    regions.begin(make_run(1, 154, grid=(9, 5), sites=attention_sites(sd.unet)))
    with torch.no_grad():
        seen = sd.unet(x, 500, torch.cat(texts, dim=1), regions.at(STEP))
        alone = sd.unet(x, 500, texts[1])
    torch.testing.assert_close(seen, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["sd_folder", "sdxl_folder"])
@pytest.mark.parametrize("text", ["a fox", "a red fox, on the big tree, " * 12])
def test_a_run_divides_its_prompt_into_the_texts_of_the_regions(request, family, text):
    """The same text everywhere, in one chunk or two, is an ordinary run of it."""
    pipe = TextToImage.from_pretrained(request.getfixturevalue(family))
    halves = [Region(text, box=LEFT), Region(text, box=RIGHT)]
    regions = Regions(text, halves, soft=0.1, base=0.3)
    kwargs = {"steps": 2, "seed": 1, "dialect": "a1111", "width": 40}
    seen = pipe(regions.prompt, control=regions, **kwargs).latents
    alone = pipe(text, **kwargs).latents
    torch.testing.assert_close(seen, alone, rtol=1e-4, atol=1e-4)
    other = Regions(text, [Region("a blue cat", box=LEFT), Region(text, box=RIGHT)])
    assert not torch.allclose(pipe(other.prompt, control=other, **kwargs).latents, alone, atol=1e-3)


def test_negative_prompts_of_regions_in_a_run(sd):
    where = {"box": (0, 0, 1, 1), "negative_prompt": "bad"}
    regions = Regions("grass", [Region("a fox", **where)], soft=0, base=0)
    kwargs = {"steps": 2, "seed": 1, "dialect": "a1111"}
    seen = sd(regions.prompt, negative_prompt=regions.negative_prompt, control=regions, **kwargs)
    alone = sd("a fox", negative_prompt="bad", **kwargs)
    torch.testing.assert_close(seen.latents, alone.latents, rtol=1e-4, atol=1e-4)


def test_the_negative_rows_have_their_own_texts():
    regions = Regions(
        "grass",
        [Region("a fox", box=LEFT, negative_prompt="bad"), Region("a cat", box=RIGHT)],
        negative_prompt="drawing",
        soft=0,
        base=0,
    )
    assert regions.prompt == "grass BREAK a fox BREAK a cat"
    assert regions.negative_prompt == "drawing BREAK bad BREAK drawing"
    begun(regions)
    regions.negative.begin(make_run(1, 6))
    q, k, v = (torch.randn(1, 2, n, 8, dtype=torch.float64) for n in (8, 6, 6))
    out = regions.negative.at(STEP)(CROSS, (2, 4), q, k, v, make_attend("reference"))
    slices = [slice(0, 2), slice(2, 4), slice(4, 6)]
    torch.testing.assert_close(out, region_map(q, k, regions.masks((2, 4)), slices) @ v)
    plain = Regions("grass", [Region("a fox", box=LEFT)], negative_prompt="bad")
    assert plain.negative is None and plain.negative_prompt == "bad"


@pytest.mark.parametrize(
    "region, message",
    [
        ({"prompt": " ", "box": LEFT}, "no prompt"),
        ({"prompt": "a"}, "has no places"),
        ({"prompt": "a", "box": LEFT, "mask": torch.ones(4, 4)}, "has two places"),
        ({"prompt": "a", "box": (0.5, 0, 0.5, 1)}, "empty or outside"),
        ({"prompt": "a", "box": (0, 0, 1.5, 1)}, "empty or outside"),
        ({"prompt": "a", "box": (0, 0, 1)}, "empty or outside"),
        ({"prompt": "a", "mask": torch.zeros(8, 8)}, "is empty"),
        ({"prompt": "a", "mask": torch.full((8, 8), 2.0)}, "from 0 to 1"),
        ({"prompt": "a", "mask": torch.ones(1, 8, 8)}, "must be"),
    ],
)
def test_regions_that_cannot_be_are_refused(region, message):
    with pytest.raises(UsageError, match=message):
        Regions("grass", [Region(**region)])


def test_overlapping_regions_are_refused_by_name():
    with pytest.raises(UsageError, match=r"'a fox' and 'a cat' overlap") as error:
        Regions("x", [Region("a fox", box=(0, 0, 0.6, 1)), Region("a cat", box=RIGHT)])
    assert "10.0%" in error.value.why
    with pytest.raises(UsageError, match="overlap"):
        Regions("x", [Region("a fox", mask=torch.ones(8, 8)), Region("a cat", box=RIGHT)])
    Regions("x", [Region("a fox", box=(0, 0, 0.333, 1)), Region("a cat", box=(0.333, 0, 1, 1))])


def test_a_mask_of_another_shape_than_the_picture_is_refused():
    regions = Regions("grass", [Region("a fox", mask=torch.ones(64, 32))])
    begun(regions, grid=(8, 4), tokens=8)
    for grid in ((8, 8), (128, 64)):
        with pytest.raises(UsageError, match="is 32x64"):
            begun(regions, grid=grid, tokens=8)


def test_numbers_out_of_range_and_undivided_texts_are_refused(sd):
    for kwargs in ({"soft": 0.6}, {"soft": -0.1}, {"base": 1.1}):
        with pytest.raises(UsageError):
            two(**kwargs)
    with pytest.raises(UsageError, match="no region"):
        Regions("grass", [])
    steps = []
    with pytest.raises(UsageError, match="not divided"):
        paint(sd, two().prompt, steps=1, control=two(), on_step=lambda s, x: steps.append(s))
    assert not steps
    with pytest.raises(UsageError, match="cannot be divided"):
        begun(two(), tokens=13)
