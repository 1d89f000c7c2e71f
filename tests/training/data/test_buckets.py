"""Buckets: bounds for all pictures, and what a picture becomes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdcore.errors import UsageError
from sdcore.size import Size
from sdcore.training.data.buckets import bucket_unit, fit, make_buckets, make_rungs
from tests.training.data.making import settings_of


@given(st.integers(64, 2048), st.sampled_from([4, 8]))
def test_buckets_are_of_one_area_and_paintable(resolution: int, factor: int) -> None:
    unit = bucket_unit(resolution, factor)
    for size in make_buckets(resolution, factor):
        assert size.area <= resolution**2
        assert size.width % unit == size.height % unit == 0 and unit % 8 == 0
        assert max(size.width_height) <= 4 * min(size.width_height) + 4 * unit
        assert Size(size.height, size.width) in make_buckets(resolution, factor)


@pytest.mark.parametrize(
    ("resolution", "factor", "unit"), [(512, 8, 64), (1024, 8, 64), (256, 8, 32), (64, 8, 8)]
)
def test_sides_are_multiples_of_what_the_model_takes(
    resolution: int, factor: int, unit: int
) -> None:
    assert bucket_unit(resolution, factor) == unit
    assert Size(resolution, resolution) in make_buckets(resolution, factor)


@given(
    st.integers(8, 5000),
    st.integers(8, 5000),
    st.sampled_from([64, 256, 512, 1024]),
    st.booleans(),
    st.floats(1, 4),
)
def test_a_picture_covers_its_bucket_and_is_not_enlarged_too_far(
    width: int, height: int, resolution: int, buckets: bool, most: float
) -> None:
    settings = settings_of("x", buckets=buckets, most_enlarged=most)
    size = Size(width, height)
    found = fit(size, settings, make_rungs(settings, resolution, 8))
    if found is None:
        assert min(width, height) * most < resolution
        return
    assert found.resized.width >= found.bucket.width and found.resized.height >= found.bucket.height
    exact = found.resized.width == found.bucket.width or found.resized.height == found.bucket.height
    assert exact, "no more is cut off than has to be"
    scale = max(found.bucket.width / width, found.bucket.height / height)
    assert scale <= most
    assert abs(found.resized.width - scale * width) <= 1
    assert abs(found.resized.height - scale * height) <= 1
    for share in (0.0, 0.5, 0.999999):
        x, y = found.moved(share, share).crop
        assert 0 <= x <= found.resized.width - found.bucket.width
        assert 0 <= y <= found.resized.height - found.bucket.height


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((512, 512), (512, 512)),
        ((4000, 3000), (576, 448)),
        ((1000, 1500), (384, 640)),
        ((400, 400), (512, 512)),
        ((300, 300), (384, 384)),
        ((180, 180), (256, 256)),
        ((160, 160), None),
    ],
)
def test_what_pictures_become(size: tuple[int, int], bucket: tuple[int, int] | None) -> None:
    settings = settings_of("x")
    found = fit(Size(*size), settings, make_rungs(settings, 512, 8))
    assert (found.bucket.width_height if found else None) == bucket


def test_a_resolution_below_one_unit_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 16"):
        make_buckets(8, 16)
