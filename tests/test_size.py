"""Sizes: written, checked and rounded."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sdcore.errors import UsageError
from sdcore.size import Size, check_side


@pytest.mark.parametrize(
    ("text", "size"),
    [("768x512", Size(768, 512)), ("768X512", Size(768, 512)), ("64", Size(64, 64))],
)
def test_a_size_is_written_with_the_width_first(text, size) -> None:
    assert Size.parse(text) == size


@pytest.mark.parametrize("text", ["", "768x", "x512", "768*512", "7.5x3", "-8x8", "8x8x8", "٣x٣"])
def test_what_is_no_size_is_refused_with_the_flag_it_stood_behind(text) -> None:
    with pytest.raises(UsageError) as error:
        Size.parse(text, flag="--size")
    assert error.value.what == f"--size {text} cannot be used." and "--size 512" in error.value.hint
    with pytest.raises(UsageError, match="The size "):
        Size.parse(text)


def test_each_order_is_named() -> None:
    size = Size(768, 512)
    assert Image.new("L", size.width_height).size == (768, 512)
    assert np.asarray(Image.new("L", size.width_height)).shape == size.height_width
    assert size.latent_grid(8) == (64, 96) and size.area == 768 * 512
    assert Size.parse(str(size)) == size


def test_only_multiples_of_the_unit_can_be_painted() -> None:
    assert Size(np.int64(64), 8).paintable() == Size(64, 8)  # type: ignore[arg-type]
    assert type(Size(np.int64(64), 8).paintable().width) is int  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="width is 63 pixels") as error:
        Size(63, 64).paintable()
    assert error.value.hint == "Use 64."
    with pytest.raises(UsageError, match="height is 24 pixels"):
        Size(32, 24).paintable(unit=16)


@pytest.mark.parametrize("side", [0, -8, True, "64", 64.0, None])
def test_what_is_no_side_is_refused(side) -> None:
    with pytest.raises(UsageError, match="multiple of 8"):
        check_side(side, "width")


def test_rounding_down_leaves_at_least_one_unit() -> None:
    assert Size(71, 5).rounded_down() == Size(64, 8)
    assert Size(71, 5).rounded_down(16) == Size(64, 16)
