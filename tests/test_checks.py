"""Numbers from outside: what counts as one, its bounds, and what is said where it does not fit."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from sdcore.checks import as_finite, as_int, check_int
from sdcore.errors import UsageError

NO_NUMBER = (True, np.bool_(True), "3", None, [3], 3 + 0j, torch.tensor(3))


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_whole_numbers_of_any_kind_become_an_int(value):
    assert type(as_int(value)) is int and as_int(value, 3, 3) == 3
    assert as_int(value, 4) is None and as_int(value, 0, 2) is None


@pytest.mark.parametrize("value", [*NO_NUMBER, 3.0, np.float32(3), Fraction(3)])
def test_what_is_no_whole_number(value):
    assert as_int(value) is None


@pytest.mark.parametrize("value", [3, 3.0, np.float32(3), np.int64(3), Fraction(3)])
def test_finite_numbers_of_any_kind(value):
    assert type(as_finite(value)) in (int, float, np.float64) and as_finite(value, 3, 3) == 3
    assert as_finite(value, 3.5) is None and as_finite(value, most=2.5) is None


def test_an_int_stays_an_int():
    assert type(as_finite(3)) is int


@pytest.mark.parametrize(
    "value", [*NO_NUMBER, math.nan, math.inf, -math.inf, np.float32("nan"), 10**400]
)
def test_what_is_no_finite_number(value):
    assert as_finite(value) is None


def test_a_number_that_does_not_fit_is_named_with_its_bounds():
    assert check_int("The seed", np.int64(3), 0, 5, hint="Leave it out.") == 3
    with pytest.raises(UsageError) as error:
        check_int("The seed", 3.0, 0, 5, hint="Leave it out.")
    assert error.value.what == "The seed is 3.0."
    assert error.value.why == "It must be a whole number from 0 to 5."
    with pytest.raises(UsageError, match="that is 0 or more"):
        check_int("The seed", -1, 0, hint="Leave it out.")
