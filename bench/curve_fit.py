"""A score that rises with training, and where it would cross an aim.

The share of right pictures is taken for a logistic function of the logarithm of the scenes seen,
fitted by maximum likelihood (binomial regression). It knows nothing of what a model can learn at
most, nor of a learning rate that falls at the end: far from the points it is a guess, and says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FURTHEST = 4.0  # times the scenes seen: further on, a crossing has no support
STEPS = 50  # of Newton's, at most
DRAWS = 4000  # of the curve, for the interval of a crossing


@dataclass(frozen=True)
class Score:
    """`hits` right pictures of `count`, painted after `images` scenes."""

    images: int
    hits: int
    count: int


@dataclass(frozen=True)
class Curve:
    """share = 1 / (1 + exp(-(start + slope * log10(images)))).

    Attributes:
        covariance: (2, 2), of start and slope; widened where the points lie off the curve.
        dispersion: how much farther off they lie than chance would have it; 1: as chance does.
    """

    start: float
    slope: float
    covariance: np.ndarray
    dispersion: float

    def share(self, images: float) -> float:
        return float(_logistic(self.start + self.slope * math.log10(images)))

    def crossing(self, aim: float) -> tuple[float, float, float]:
        """Scenes at which the share is `aim`, and the 95 % interval; inf where it never is."""
        logit = math.log(aim / (1 - aim))
        random = np.random.default_rng(0)
        drawn = random.multivariate_normal((self.start, self.slope), self.covariance, DRAWS)
        rising = np.maximum(drawn[:, 1], 1e-9)
        powers = np.where(drawn[:, 1] > 0, (logit - drawn[:, 0]) / rising, np.inf)
        low, high = np.quantile(powers, (0.025, 0.975), method="nearest")
        middle = (logit - self.start) / self.slope if self.slope > 0 else math.inf
        return _scenes(middle), _scenes(low), _scenes(high)


def fit(scores: Sequence[Score]) -> Curve | None:
    """The curve through the scores; None where they do not decide one.

    It takes three different numbers of scenes, since through two some curve always goes, and at two
    of them a share that is neither 0 nor 1: around one alone the curve could be as steep as a step
    (Albert & Anderson 1984, Biometrika 71:1).
    """
    partly = {score.images for score in scores if 0 < score.hits < score.count}
    if len({score.images for score in scores}) < 3 or len(partly) < 2:
        return None
    x = np.array([[1.0, math.log10(score.images)] for score in scores])
    hits, count = (np.array([getattr(s, key) for s in scores]) for key in ("hits", "count"))
    # From the line through the logits, which half a hit keeps finite, Newton's steps go straight.
    logits = np.log((hits + 0.5) / (count - hits + 0.5))
    weights = np.linalg.lstsq(x, logits, rcond=None)[0]
    steps_left = STEPS
    while True:
        share = _logistic(x @ weights)
        variance = np.maximum(count * share * (1 - share), 1e-12)  # far out a share rounds to 1
        information = x.T @ (x * variance[:, None])
        change = np.linalg.solve(information, x.T @ (hits - count * share))
        weights = weights + change
        steps_left -= 1
        if np.abs(change).max() < 1e-9 or not steps_left:
            break
    off = (hits - count * share) ** 2 / variance  # Pearson's chi-square
    dispersion = max(1.0, float(off.sum()) / (len(scores) - 2))
    covariance = np.linalg.inv(information) * dispersion
    return Curve(float(weights[0]), float(weights[1]), covariance, dispersion)


def verdict(scores: Sequence[Score], aim: float) -> str:
    """Where the curve through the scores crosses `aim`, in words, and what that rests on."""
    curve = fit(scores)
    if curve is None:
        return "no curve: it takes three models of the run, two of them neither all right nor wrong"
    if curve.slope < 1.96 * math.sqrt(curve.covariance[1, 1]):
        return "no support for a crossing: the scores do not surely rise with the scenes seen"
    last = max(score.images for score in scores)
    middle, low, high = curve.crossing(aim)
    where = f"{scenes(middle)} scenes (95 % interval {scenes(low)} to {scenes(high)})"
    if middle <= last:
        text = f"crosses {100 * aim:g} % at {where}, within what was seen"
    elif middle <= FURTHEST * last:
        text = (
            f"would cross {100 * aim:g} % at {where}, {middle / last:.1f} times what was seen, if "
            "it goes on as it went"
        )
    else:
        text = (
            f"no support for a crossing: the curve reaches {100 * aim:g} % only at {where}, more "
            f"than {FURTHEST:g} times what was seen"
        )
    if curve.dispersion > 4:
        text += "; the scores lie far off the curve"
    return text


def scenes(count: float) -> str:
    """1234567 -> "1.2 million"; rounded, since no crossing is known better than that."""
    if math.isinf(count):
        return "no number of"
    if count < 999_500:
        return f"{float(f'{count:.2g}'):,.0f}"
    if count > 1e12:
        return "over a trillion"
    return f"{float(f'{count / 1e6:.2g}'):,g} million"


def _logistic(x: float | np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), which overflows nowhere."""
    return (1 + np.tanh(np.asarray(x) / 2)) / 2


def _scenes(power: float) -> float:
    return 10**power if power < 300 else math.inf
