"""What computes convolutions: by name, by view, and by a measurement that is remembered."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdcore import convolution
from sdcore.convolution import (
    Convolution,
    convolution_of,
    unavailable,
    use_convolution,
    with_convolution,
)
from sdcore.errors import UsageError
from sdcore.job.job import Job
from sdcore.unet.config import UNetConfig
from sdcore.unet.unet import UNet
from tests.tiny import make_unet

MISSING = unavailable("winograd")
needs_kernel = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


def step(unet: torch.nn.Module, width: int) -> Tensor:
    torch.manual_seed(0)
    with torch.inference_mode():
        return unet(torch.randn(2, 4, 16, 16), 500, torch.randn(2, 7, width))


@needs_kernel
def test_a_unet_is_the_same_to_rounding_and_a_view_leaves_it_its_own() -> None:
    unet = UNet(UNetConfig.from_dict(dict(make_unet().config))).eval()
    width = unet.levels[-1].text_width
    expected = step(unet, width)
    other = with_convolution(unet, "winograd")
    found = step(other, width)
    assert not torch.equal(found, expected)  # it ran
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (convolution_of(unet), convolution_of(other)) == ("torch", "winograd")
    assert torch.equal(step(unet, width), expected)
    choice = use_convolution(unet, "winograd")
    assert choice.layers == sum(isinstance(m, Convolution) for m in unet.modules()) > 5
    assert torch.equal(step(unet, width), found)
    assert not any("backend" in key for key in unet.state_dict())


@needs_kernel
def test_gradients_small_maps_and_other_types_are_torchs() -> None:
    layer, x = Convolution(3, 4, 3, padding=1), torch.randn(1, 3, 8, 8)
    expected = layer(x)
    use_convolution(layer, "winograd")
    assert torch.equal(layer(x), expected)  # a gradient is asked
    (gradient,) = torch.autograd.grad(layer(x).sum(), layer.weight)
    assert gradient.isfinite().all()
    with torch.no_grad():
        for odd in (
            Convolution(3, 4, 3, padding=1, stride=2),
            Convolution(3, 4, 3),
            Convolution(3, 4, 3, padding=1, dilation=2),
            Convolution(3, 4, 3, padding=1, padding_mode="circular"),
        ):
            use_convolution(odd, "winograd")
            assert torch.equal(odd(x), nn.Conv2d.forward(odd, x))
        small = x[:, :, :7]
        assert torch.equal(layer(small), F.conv2d(small, layer.weight, layer.bias, padding=1))
        assert layer.double()(x.double()).dtype == torch.float64


def test_auto_takes_what_is_faster_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "library", lambda: type("Built", (), {"name": "here"}))
    for gain, chosen in ((1.5, "winograd"), (1.01, "torch")):
        monkeypatch.setattr(convolution, "remembered", Mock(return_value=gain))
        choice = use_convolution(Convolution(3, 4, 3, padding=1), "auto")
        assert choice.backend == chosen and f"{gain:.2f} x as fast as torch's" in choice.why
        assert choice.kernel == ("sdcore.kernels here" if chosen == "winograd" else "torch")
        assert "float64" in use_convolution(Convolution(3, 4, 3, padding=1).double(), "auto").why
    monkeypatch.setattr(convolution, "library", lambda: None)
    choice = use_convolution(Convolution(3, 4, 3, padding=1), "auto")
    assert choice.backend == "torch" and "no native kernels" in choice.why
    with pytest.raises(UsageError, match="No native kernels were built"):
        use_convolution(Convolution(3, 4, 3, padding=1), "winograd")


def test_a_name_that_is_none_is_refused() -> None:
    for name in ("fft", "", 3):
        with pytest.raises(UsageError, match="torch, winograd, auto"):
            Job("a fox", convolution=name)  # pyright: ignore[reportArgumentType]
