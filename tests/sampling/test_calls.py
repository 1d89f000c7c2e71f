"""The UNet as a run calls it: each text is read once, with the numbers of reading it each time."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from sdcore import TextToImage
from sdcore.sampling.calls import Conditioning, RunCall
from tests.painting import paint

TIME = torch.tensor(300.0)


@pytest.fixture(scope="module")
def sd(sd_folder) -> TextToImage:
    return TextToImage.from_pretrained(sd_folder)


def texts(count: int) -> list[Conditioning]:
    random = torch.Generator().manual_seed(0)
    return [Conditioning(torch.randn(2, 77, 32, generator=random)) for _ in range(count)]


def readings(pipe: TextToImage, prompt: str, **how) -> set[int]:
    """How often each layer reads a text in a run."""
    found: Counter[str] = Counter()
    layers = {n: m for n, m in pipe.unet.named_modules() if n.endswith("attn2.to_k")}
    hooks = [
        layer.register_forward_hook(lambda *_, name=name: found.update([name]))
        for name, layer in layers.items()
    ]
    try:
        paint(pipe, prompt, **{"seed": 1, "scheduler": "ddim", **how})
    finally:
        for hook in hooks:
            hook.remove()
    assert found.keys() == layers.keys()
    return set(found.values())


def test_a_known_text_gives_the_same_bits(sd) -> None:
    latents, (negative, positive) = torch.randn(2, 4, 8, 8), texts(2)
    rows, text = torch.cat([latents] * 2), torch.cat([negative.text, positive.text])
    call = RunCall(sd.unet)
    for time in (TIME, TIME / 2):
        found = call(latents, time, [negative, positive], None, None)
        assert torch.equal(found, sd.unet(rows, time, text))


def test_texts_are_told_apart(sd) -> None:
    latents, known = torch.randn(2, 4, 8, 8), texts(3)
    call = RunCall(sd.unet)
    for which in (0, 1, 2, 0, 1, 2):
        found = call(latents, TIME, [known[which]], None, None)
        assert torch.equal(found, sd.unet(latents, TIME, known[which].text))


def test_each_text_is_read_once_in_a_run(sd) -> None:
    assert readings(sd, "a cat", steps=4, guidance_scale=5.0) == {1}
    assert readings(sd, "a cat", steps=4, guidance_scale=5.0, guidance_interval=(0.3, 1.0)) == {2}
    assert readings(sd, "a [cat:dog:0.5]", steps=6, guidance_scale=5.0, dialect="a1111") == {2}


def test_gradients_of_latents_pass_through_a_known_text(sd) -> None:
    latents, (text,) = torch.randn(2, 4, 8, 8), texts(1)
    call = RunCall(sd.unet)
    for _ in range(2):  # the second time it is known
        ours, theirs = latents.clone().requires_grad_(), latents.clone().requires_grad_()
        with torch.enable_grad():
            call(ours, TIME, [text], None, None).square().sum().backward()
            sd.unet(theirs, TIME, text.text).square().sum().backward()
        assert ours.grad is not None and torch.equal(ours.grad, theirs.grad)
