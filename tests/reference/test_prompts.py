"""Text for the UNet against diffusers (plain), and weights against their rules on transformers'
own text encoders."""

from __future__ import annotations

import math
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdcore import TextToImage
from sdcore.prompt.text import Steps
from sdcore.sampling.conditioning import PromptPlan, plan_prompts
from sdcore.sampling.sizes import choose_sizes
from sdcore.size import Size

TEXTS = st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from(["a", "(red:1.3)", "[x]", "fox,", "é🦊", "BREAK", "++", "\\("])).map(
        " ".join
    ),
)
TOLERANCE: dict[str, Any] = {"atol": 2e-6, "rtol": 1e-5}


@cache
def both(folder: Path) -> tuple[Any, TextToImage]:
    cls = StableDiffusionXLPipeline if (folder / "text_encoder_2").is_dir() else None
    theirs = (cls or StableDiffusionPipeline).from_pretrained(folder)
    ours = TextToImage.from_pretrained(folder)
    # A fresh LayerNorm gives every token the mean 0, which no mean can be restored to.
    generator = torch.Generator().manual_seed(5)
    bias = 0.5 + torch.randn(theirs.text_encoder.config.hidden_size, generator=generator)
    for name, parameter in (
        *theirs.text_encoder.named_parameters(),
        *ours.text_encoder.named_parameters(),
    ):
        if name.endswith("final_layer_norm.bias"):
            parameter.data.copy_(bias)
    return theirs, ours


def plan(ours: TextToImage, prompt: str, negative: str | None = "", **how: Any) -> PromptPlan:
    kind, steps = ours.kind, Steps(how.pop("steps", 1))
    size, _ = choose_sizes(kind, Size(64, 64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return plan_prompts(ours.readers, kind, [prompt], [negative], steps, size=size, **how)


def text_of(ours: TextToImage, prompt: str, dialect: str, **how: Any) -> Tensor:
    return plan(ours, prompt, dialect=dialect, **how).steps[-1].parts[0].conditioning.text[0]


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(prompt=TEXTS, negative=TEXTS, clip_skip=st.sampled_from([None, 1]))
@pytest.mark.parametrize("family", ["sd_folder", "sdxl_folder"])
def test_plain_is_what_diffusers_encodes(request, family, prompt, negative, clip_skip) -> None:
    if family == "sd_folder":
        clip_skip = None  # diffusers 0.42 looks for a layer that transformers 5 renamed
    theirs, ours = both(request.getfixturevalue(family))
    planned = plan(ours, prompt, negative, clip_skip=clip_skip or 0).steps[0]
    arguments = {"do_classifier_free_guidance": True, "clip_skip": clip_skip}
    encoded = theirs.encode_prompt(
        prompt, device="cpu", num_images_per_prompt=1, negative_prompt=negative, **arguments
    )
    positive = planned.parts[0].conditioning
    torch.testing.assert_close(positive.text, encoded[0], **TOLERANCE)
    torch.testing.assert_close(planned.unconditional.text, encoded[1], **TOLERANCE)
    if family == "sdxl_folder":
        torch.testing.assert_close(positive.added.pooled_text, encoded[2], **TOLERANCE)
        torch.testing.assert_close(planned.unconditional.added.pooled_text, encoded[3], **TOLERANCE)


def states(theirs: Any, words: list[str], mask: list[int] | None = None) -> Tensor:
    """transformers' last state of one chunk of these words, (77, D); mask: positions to hide."""
    tokenizer = theirs.tokenizer
    ids = tokenizer(" ".join(words), padding="max_length", return_tensors="pt").input_ids
    given = torch.ones_like(ids)
    given[:, mask or []] = 0
    with torch.no_grad():
        return theirs.text_encoder(ids, attention_mask=given).last_hidden_state[0]


def weights(values: dict[int, float]) -> Tensor:
    row = torch.ones(77, 1)
    for position, value in values.items():
        row[position] = value
    return row


def test_the_web_ui_multiplies_and_restores_the_mean(sd_folder) -> None:
    theirs, ours = both(sd_folder)
    z = states(theirs, ["a", "red", "fox"])
    weighed = z * weights({2: 1.3, 3: 1 / 1.1})
    prompt = "a (red:1.3) [fox]"
    torch.testing.assert_close(text_of(ours, prompt, "a1111-nonorm"), weighed, **TOLERANCE)
    restored = weighed * (z.mean() / weighed.mean())
    torch.testing.assert_close(text_of(ours, prompt, "a1111"), restored, **TOLERANCE)


def test_the_web_ui_restores_each_chunk_and_all_texts_of_a_schedule_together(sd_folder) -> None:
    theirs, ours = both(sd_folder)
    first, second = states(theirs, ["a", "cat"]), states(theirs, ["the", "dog"])
    weighed = first * weights({2: 1.5})
    two = torch.cat([weighed * (first.mean() / weighed.mean()), second])
    read = text_of(ours, "a (cat:1.5) BREAK the dog", "a1111")
    torch.testing.assert_close(read, two, **TOLERANCE)
    one, other = states(theirs, ["a", "cat"]), states(theirs, ["a", "dog"])
    heavy = other * weights({2: 1.5})
    mean = (one.mean() + other.mean()) / (one.mean() + heavy.mean())
    expected = torch.cat([one * mean, heavy * mean])
    steps = plan(ours, "a [cat:(dog:1.5):0.5]", dialect="a1111", steps=4).steps
    read = torch.cat([steps[i].parts[0].conditioning.text[0] for i in (0, 3)])
    torch.testing.assert_close(read, expected, **TOLERANCE)


def test_comfyui_moves_away_from_the_empty_prompt(sd_folder) -> None:
    theirs, ours = both(sd_folder)
    z, e = states(theirs, ["a", "red", "fox"]), states(theirs, [])
    expected = e + weights({2: 1.3, 3: 0.5}) * (z - e)
    read = text_of(ours, "a (red:1.3) (fox:0.5)", "comfy")
    torch.testing.assert_close(read, expected, **TOLERANCE)


def test_compel_masks_what_weighs_less(sd_folder) -> None:
    theirs, ours = both(sd_folder)
    e, words = states(theirs, []), ["a", "red", "fox", "the", "dog"]
    w = weights({2: 1.21, 3: 0.5, 5: 0.9})
    mixed = [e + w * (states(theirs, words, mask) - e) for mask in ([], [3], [5])]
    shares = [1.0, math.tan(0.5 * math.pi / 2), math.tan(0.1 * math.pi / 2)]
    expected = sum(share * z for share, z in zip(shares, mixed, strict=True)) / sum(shares)
    read = text_of(ours, "a red++ (fox)0.5 the dog-", "compel")
    torch.testing.assert_close(read, expected, **TOLERANCE)


def test_compel_joins_and_blends(sd_folder) -> None:
    theirs, ours = both(sd_folder)
    one, two, e = (states(theirs, words) for words in (["a", "cat"], ["the", "dog"], []))
    read = text_of(ours, '("a cat", "the dog").and(1, 0.5)', "compel")
    torch.testing.assert_close(read, torch.cat([one, e + 0.5 * (two - e)]), **TOLERANCE)
    read = text_of(ours, '("a cat", "the dog").blend(3, 1)', "compel")
    torch.testing.assert_close(read, 0.75 * one + 0.25 * two, **TOLERANCE)


# compel 2.5.1's CompelForSD and CompelForSDXL gave the same tensors to 5e-7 on such models; what
# they encode is repeated here on transformers alone.
@pytest.mark.parametrize("dialect", ["a1111", "a1111-nonorm", "comfy", "compel"])
def test_without_marks_every_dialect_reads_the_same(sdxl_folder, dialect) -> None:
    _, ours = both(sdxl_folder)
    mine, plain = (
        plan(ours, "a red fox", dialect=name).steps[0].parts[0].conditioning
        for name in (dialect, "plain")
    )
    assert torch.equal(mine.text, plain.text)
    assert torch.equal(mine.added.pooled_text, plain.added.pooled_text)


@pytest.mark.parametrize(("dialect", "skip"), [("comfy", 1), ("a1111", 2)])
def test_both_encoders_of_sdxl_are_weighed_and_skipped(sdxl_folder, dialect, skip) -> None:
    theirs, ours = both(sdxl_folder)
    columns = []
    for tokenizer, encoder in (
        (theirs.tokenizer, theirs.text_encoder),
        (theirs.tokenizer_2, theirs.text_encoder_2),
    ):
        found = []
        for text in ("a red fox", ""):
            ids = tokenizer(text, padding="max_length", return_tensors="pt").input_ids
            with torch.no_grad():
                out = encoder(ids, output_hidden_states=True)
            found.append(out.hidden_states[-(skip + 2)][0])
        z, e = found
        w = weights({2: 1.4})
        weighed = e + w * (z - e) if dialect == "comfy" else z * w
        columns.append(weighed * (z.mean() / weighed.mean() if dialect == "a1111" else 1))
    planned = plan(ours, "a (red:1.4) fox", dialect=dialect, clip_skip=skip).steps[0]
    read = planned.parts[0].conditioning
    torch.testing.assert_close(read.text[0], torch.cat(columns, dim=-1), **TOLERANCE)
    plain = plan(ours, "a red fox").steps[0].parts[0].conditioning
    torch.testing.assert_close(read.added.pooled_text, plain.added.pooled_text, **TOLERANCE)
