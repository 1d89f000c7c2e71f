"""Runs with fewer operations, beside the same written out with hooks on a plain run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import torch
from torch import Tensor

from sdcore import Job, PromptEdit, Reweight, TextToImage, WordHeatmaps
from sdcore.attention import Site, _LayerAttend, reference
from sdcore.diffusion.shortcuts import OUTER, Shortcuts
from sdcore.errors import UsageError
from sdcore.job.record import ImageSettings, job_from_dict, job_to_dict
from sdcore.sampling.calls import _CoarseKeys
from tests.painting import paint

# times 801, 601, 401, 201, 1 of 1000
HOW = {"seed": 1, "steps": 5, "scheduler": "ddim", "guidance_scale": 6.0}
GUIDED_TWICE = {"guidance_interval": (0.0, 0.5)}


@pytest.fixture(scope="module")
def sd(sd_folder) -> TextToImage:
    return TextToImage.from_pretrained(sd_folder)


@contextmanager
def deep_layers_at(pipe: TextToImage, whole: set[int]) -> Iterator[None]:
    """At other steps the outer layers of the way up begin with what was there at the last of these.

    A step is one call of the UNet. The tiny model has two layers on its last level.
    """
    first, kept, step = pipe.unet.up_blocks[-1].resnets[-OUTER], [], -1

    def begin(*_) -> None:
        nonlocal step
        step += 1

    def replace(_, inputs) -> tuple[Tensor, ...]:
        x, *others = inputs  # what the layers within gave, and a map of the way down
        if step in whole:
            kept[:] = [x[:, :-32].clone()]
        return (torch.cat([kept[0], x[:, -32:]], dim=1), *others)

    with ExitStack() as stack:
        stack.callback(pipe.unet.register_forward_pre_hook(begin).remove)
        stack.callback(first.register_forward_pre_hook(replace).remove)
        yield


@contextmanager
def texts_read_until(pipe: TextToImage, steps: int) -> Iterator[None]:
    """After so many calls layers that read the text give what they gave last, the mean of rows."""
    step, last = -1, {}

    def begin(*_) -> None:
        nonlocal step
        step += 1

    def freeze(layer, _, out) -> Tensor:
        if step < steps:
            last[layer] = torch.stack(out.chunk(2)).mean(0)
            return out
        return last[layer]

    with ExitStack() as stack:
        stack.callback(pipe.unet.register_forward_pre_hook(begin).remove)
        for name, layer in pipe.unet.named_modules():
            if name.endswith("attn2"):
                stack.callback(layer.register_forward_hook(freeze).remove)
        yield


def test_without_shortcuts_it_is_the_plain_run(sd) -> None:
    plain = paint(sd, "a cat", **HOW).latents
    assert torch.equal(paint(sd, "a cat", **HOW, deepcache=1, tgate=None).latents, plain)
    assert torch.equal(paint(sd, "a cat", **HOW, tgate=5).latents, plain)
    assert not torch.equal(paint(sd, "a cat", **HOW, deepcache=2).latents, plain)
    assert not torch.equal(paint(sd, "a cat", **HOW, tgate=4).latents, plain)


@pytest.mark.parametrize("every", [2, 3, 100])
def test_deepcache_keeps_what_the_deep_layers_gave(sd, every) -> None:
    found = paint(sd, ["a cat", "a fox"], **HOW, deepcache=every).latents
    with deep_layers_at(sd, set(range(0, 5, every))):
        expected = paint(sd, ["a cat", "a fox"], **HOW).latents
    torch.testing.assert_close(found, expected)
    assert (found - paint(sd, ["a cat", "a fox"], **HOW).latents).abs().max() > 0.01


def test_a_step_with_other_rows_or_another_text_runs_whole(sd) -> None:
    found = paint(sd, "a cat", **HOW, **GUIDED_TWICE, deepcache=4).latents
    with deep_layers_at(sd, {0, 2, 4}):  # from the third step on there is no guidance
        expected = paint(sd, "a cat", **HOW, **GUIDED_TWICE).latents
    torch.testing.assert_close(found, expected)
    change = {"dialect": "a1111"}
    found = paint(sd, "a [cat:dog:0.5]", **HOW, **change, deepcache=5).latents
    with deep_layers_at(sd, {0, 3}):  # the web UI changes it after the step that it names
        expected = paint(sd, "a [cat:dog:0.5]", **HOW, **change).latents
    torch.testing.assert_close(found, expected)


def test_controls_act_with_deepcache_where_layers_run(sd) -> None:
    prompts = ["a cat on the tree", "a dog on the tree"]

    def controls():
        yield prompts[:1], Reweight(sd.tokenizer(prompts[0]), {"cat": 3.0})
        yield prompts, PromptEdit(sd.tokenizer(prompts))

    for (texts, ours), (_, theirs) in zip(controls(), controls(), strict=True):
        found = paint(sd, texts, **HOW, control=ours, deepcache=2).latents
        with deep_layers_at(sd, {0, 2, 4}):
            expected = paint(sd, texts, **HOW, control=theirs).latents
        torch.testing.assert_close(found, expected)
        assert not torch.equal(found, paint(sd, texts, **HOW, deepcache=2).latents)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_tgate_keeps_what_was_read(sd, steps) -> None:
    found = paint(sd, ["a cat", "a fox"], **HOW, tgate=steps).latents
    guided = (0.0, 0.3 + 0.2 * (steps - 1))  # as many steps
    with texts_read_until(sd, steps):
        expected = paint(sd, ["a cat", "a fox"], **HOW, guidance_interval=guided).latents
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@contextmanager
def keys_of_every(pipe: TextToImage, step: int, grid: tuple[int, int]) -> Iterator[None]:
    """Layers of the finest grid make keys and values of every `step`-th place alone."""

    def some(_, __, out: Tensor) -> Tensor:  # (R, N, D)
        return out.unflatten(1, grid)[:, ::step, ::step].flatten(1, 2)

    with ExitStack() as stack:
        finest = (pipe.unet.down_blocks[0], pipe.unet.up_blocks[-1])
        for name, layer in (pair for block in finest for pair in block.named_modules()):
            if name.endswith(("attn1.to_k", "attn1.to_v")):
                stack.callback(layer.register_forward_hook(some).remove)
        yield


@pytest.mark.parametrize("step", [2, 3, 100])
def test_coarse_keys_are_those_of_every_second_place(sd, step) -> None:
    size = {"width": 48, "height": 80}
    factor = sd.autoencoder.factor
    found = paint(sd, ["a cat", "a fox"], **HOW, **size, coarse_keys=step).latents
    plain = paint(sd, ["a cat", "a fox"], **HOW, **size).latents
    with keys_of_every(sd, step, (80 // factor, 48 // factor)):
        expected = paint(sd, ["a cat", "a fox"], **HOW, **size).latents
    torch.testing.assert_close(found, expected)
    assert not torch.equal(found, plain)


def test_coarse_keys_beside_the_other_shortcuts_and_controls(sd) -> None:
    how = {**HOW, "coarse_keys": 2}
    maps, plain = (WordHeatmaps(sd.tokenizer("a cat")) for _ in range(2))
    found = paint(sd, "a cat", **how, control=maps, tgate=3, deepcache=2).latents
    assert torch.equal(paint(sd, "a cat", **how, tgate=3, deepcache=2).latents, found)
    paint(sd, "a cat", **HOW, control=plain, tgate=3, deepcache=2)
    assert maps.of("cat").shape == plain.of("cat").shape
    assert not torch.equal(maps.of("cat"), plain.of("cat"))


def test_a_mask_keeps_all_keys() -> None:
    q = torch.randn(1, 2, 16, 8)
    mask = torch.rand(1, 1, 1, 16) > 0.3

    def masked(site, grid, q, k, v, attend) -> Tensor:
        return attend(q, k, v, mask=mask)

    site = Site("down", 0)
    own = _LayerAttend(reference, None)
    assert torch.equal(
        _CoarseKeys(2, 0, masked)(site, (4, 4), q, q, q, own), reference(q, q, q, mask=mask)
    )
    some = q.unflatten(2, (4, 4))[:, :, ::2, ::2].flatten(2, 3)
    assert torch.equal(
        _CoarseKeys(2, 0, None)(site, (4, 4), q, q, q, own), reference(q, some, some)
    )


def test_both_shortcuts_at_once(sd) -> None:
    found = paint(sd, "a cat", **HOW, tgate=2, deepcache=3).latents
    with texts_read_until(sd, 2), deep_layers_at(sd, {0, 1, 2, 3}):
        # the second step runs whole, for all layers to be noted; the third has other rows
        expected = paint(sd, "a cat", **HOW, guidance_interval=(0.0, 0.5)).latents
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_heatmaps_are_of_the_steps_in_which_the_text_is_read(sd) -> None:
    of_all, of_some = (WordHeatmaps(sd.tokenizer("a cat"), windows=5) for _ in range(2))
    paint(sd, "a cat", **HOW, control=of_all)
    paint(sd, "a cat", **HOW, control=of_some, tgate=2)
    assert torch.equal(of_some.of("cat"), of_all.of("cat", steps=(0, 0.4)))
    assert {window for window, _, _ in of_some.recorded} == {0, 1}


def test_what_tgate_cannot_be_used_with_is_refused(sd) -> None:
    reweight = Reweight(sd.tokenizer("a cat"), {"cat": 3.0})
    for prompt, settings, why in (
        ("a cat AND a dog", {"dialect": "a1111"}, "AND"),
        ("a cat", {"scheduler": "ddim cfg++"}, "CFG"),
        ("a cat", {"control": reweight}, "control Reweight"),
    ):
        with pytest.raises(UsageError, match="tgate=2 cannot be used") as error:
            paint(sd, prompt, **{**HOW, "tgate": 2, **settings})
        assert why in error.value.why


def test_they_are_recorded_and_read_again(sd) -> None:
    job = Job("a cat", seed=1, steps=3, deepcache=2, tgate=2, coarse_keys=2)
    assert job_from_dict(job_to_dict(job)) == job and job.shortcuts == Shortcuts(2, 2, 2)
    result = sd.paint(job)
    assert ImageSettings.from_json(result.settings[0].to_json()) == result.settings[0]
    assert torch.equal(sd.paint(result.settings[0].job).latents, result.latents)
    plain = sd.paint(Job("a cat", seed=1, steps=1)).settings[0].to_json()
    assert not [name for name in ("deepcache", "tgate", "coarse_keys") if name in plain]


@pytest.mark.parametrize(
    "wrong",
    [{"deepcache": 0}, {"deepcache": 1.5}, {"deepcache": True}, {"tgate": 0}, {"coarse_keys": 0}],
)
def test_numbers_out_of_range_are_refused(wrong) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Job("a cat", **wrong)
