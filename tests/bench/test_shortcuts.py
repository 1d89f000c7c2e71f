"""The measures of likeness, by their formulas, and the ways that are compared."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bench.shortcuts import WAYS, psnr, ssim
from sdcore import Job

PICTURE = np.random.default_rng(0).integers(0, 256, (24, 32, 3)).astype(np.float64)


def test_equal_pictures_are_alike() -> None:
    assert psnr(PICTURE, PICTURE) == 99
    assert ssim(PICTURE, PICTURE) == pytest.approx(1)


def test_an_even_error_is_its_decibels() -> None:
    assert psnr(PICTURE, PICTURE + 16) == pytest.approx(20 * math.log10(255 / 16))


def test_structure_of_plain_pictures_is_that_of_their_brightness() -> None:
    one, other, c1 = 50.0, 200.0, (0.01 * 255) ** 2
    found = ssim(np.full((16, 16, 3), one), np.full((16, 16, 3), other))
    assert found == pytest.approx((2 * one * other + c1) / (one**2 + other**2 + c1))
    assert ssim(PICTURE, PICTURE[::-1].copy()) < 0.2


def test_every_way_is_a_job() -> None:
    jobs = {Job("a fox", **settings) for settings in WAYS.values()}
    assert len(jobs) == len(WAYS)
