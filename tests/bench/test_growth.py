"""How growth is told and drawn."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
import torch

from bench.growth import draw, make_unet, measure, slope, with_loras


def test_a_slope_is_the_power_of_a_line() -> None:
    square = [(x, 3.0 * x**2) for x in (1.0, 2.0, 5.0)]
    assert slope(square) == pytest.approx(2)


def test_a_plot_has_a_line_for_each_name(tmp_path) -> None:
    lines = {
        "seconds": [(0, 1.0), (1, 2.0), (2, 4.0)],
        "operations": [(0, 1.0), (1, 1.5), (2, 3.0)],
    }
    draw(tmp_path / "plot.svg", lines, "cost", "LoRAs", "x the first")
    text = (tmp_path / "plot.svg").read_text()
    ElementTree.fromstring(text)
    assert text.count("<polyline") == 2 and all(name in text for name in lines)


def test_loras_add_their_operations() -> None:
    with torch.no_grad():
        unet = make_unet(80)
        costs = [measure(with_loras(unet, count), side=64)[1] for count in (0, 1, 2)]
    assert costs[0] < costs[1] and costs[2] - costs[1] == pytest.approx(costs[1] - costs[0])
