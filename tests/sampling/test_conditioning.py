"""What the UNet reads at each step: schedules, parts, lengths, negatives, sizes; and warnings."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from sdcore import TextToImage
from sdcore.diffusion.steps import Step
from sdcore.errors import NonFiniteError, UsageError
from sdcore.prompt.text import Steps
from sdcore.sampling.conditioning import PromptPlan, plan_prompts
from sdcore.sampling.sizes import choose_sizes
from sdcore.size import Size, SizeConditioning

LONG = "a cat, " * 40  # two chunks; 80 tokens


@pytest.fixture(scope="module")
def sd(sd_folder: Path) -> TextToImage:
    return TextToImage.from_pretrained(sd_folder)


@pytest.fixture(scope="module")
def xl(sdxl_folder: Path) -> TextToImage:
    return TextToImage.from_pretrained(sdxl_folder)


@pytest.fixture(scope="module")
def refiner(refiner_folder: Path) -> TextToImage:
    return TextToImage.from_pretrained(refiner_folder)


def plan(
    pipe: TextToImage,
    *prompts: str,
    negatives: list[str | None] | None = None,
    scale: float = 5.0,
    steps: int = 4,
    steps_before: int = 0,
    dialect: str = "a1111",
    **how: Any,
) -> PromptPlan:
    negatives = negatives or [None] * len(prompts)
    kind = pipe.kind
    how = {"size": choose_sizes(kind, Size(64, 64))[0], "guided": scale > 1, **how}
    run = Steps(steps, steps_before)
    with torch.no_grad():
        return plan_prompts(pipe.readers, kind, prompts, negatives, run, dialect=dialect, **how)


def text_at(planned: PromptPlan, index: int, part: int = 0) -> torch.Tensor:
    return planned.at(Step(index, len(planned.steps), 0.0)).parts[part].conditioning.text


def test_without_schedules_every_step_reads_the_same_object(sd) -> None:
    planned = plan(sd, "a cat", "a (dog:1.2)")
    assert len(planned.steps) == 4 and len({id(step) for step in planned.steps}) == 1
    assert planned.tokens.ids.shape == (2, 77) and planned.tokens.weights[1, 2] == pytest.approx(
        1.2
    )


def test_a_schedule_changes_the_text_of_its_image_only(sd) -> None:
    planned = plan(sd, "a [cat:dog:0.5]", "a fox")
    cat, dog, fox = (text_at(plan(sd, text), 0)[0] for text in ("a cat", "a dog", "a fox"))
    # [a:b:2] of 4 steps: the web UI asks with steps from 0, so three steps read a
    expected = [cat, cat, cat, dog]
    for index, text in enumerate(expected):
        assert torch.equal(text_at(planned, index), torch.stack([text, fox]))
    assert planned.steps[0] is planned.steps[2] and planned.steps[2] is not planned.steps[3]
    words = [span.word for span in planned.tokens.spans[0]]
    assert words == ["a", "cat"]


def test_the_negative_prompt_may_change_too(sd) -> None:
    planned = plan(sd, "a cat", negatives=["[bad:drawing:1] AND"])
    texts = [step.unconditional.text for step in planned.steps]
    assert torch.equal(texts[0], texts[1]) and not torch.equal(texts[1], texts[2])
    assert len(planned.steps[0].parts) == 1


def test_each_text_is_encoded_once(sd, monkeypatch) -> None:
    seen: Counter[tuple[int, ...]] = Counter()
    forward = sd.text_encoder.forward

    def counting(ids, mask=None):
        seen[tuple(ids.flatten().tolist())] += 1
        return forward(ids, mask)

    monkeypatch.setattr(sd.text_encoder, "forward", counting)
    plan(sd, "a [cat|dog]", "a cat", "a dog", negatives=["a cat"] * 3, steps=9)
    assert len(seen) == 2 and set(seen.values()) == {1}


def test_parts_of_an_and(sd) -> None:
    planned = plan(sd, "a cat AND a dog :0.5", "a fox").steps[0]
    first, second = planned.parts
    assert first.weight == 1 and second.weight.flatten().tolist() == [0.5, 0]
    assert torch.equal(second.conditioning.text[0], text_at(plan(sd, "a dog"), 0)[0])
    both = plan(sd, "a cat AND a dog :0.5", "a fox AND a tree :0.5").steps[0]
    assert both.parts[1].weight == 0.5


def test_parts_need_the_negative_prompt_even_without_guidance(sd) -> None:
    assert plan(sd, "a cat", scale=1.0).steps[0].unconditional is None
    for prompt in ("a cat AND a dog", "a cat :0.5"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert plan(sd, prompt, scale=1.0).steps[0].unconditional is not None
    with pytest.warns(UserWarning, match="no effect"):
        plan(sd, "a cat", negatives=["bad"], scale=1.0)


@pytest.mark.parametrize("dialect", ["a1111", "comfy"])
def test_each_text_keeps_its_length(sd, dialect) -> None:
    planned = plan(sd, LONG, negatives=["bad"], dialect=dialect).steps[0]
    assert planned.parts[0].conditioning.text.shape[1] == 154
    assert planned.unconditional.text.shape[1] == 77


@pytest.mark.parametrize(("positive", "negative"), [(LONG, "bad"), ("a cat", LONG)])
def test_compel_fills_the_shorter_one_up_with_empty_prompts(sd, positive, negative) -> None:
    planned = plan(sd, positive, negatives=[negative], dialect="compel")
    texts = planned.steps[0].parts[0].conditioning.text, planned.steps[0].unconditional.text
    assert [text.shape[1] for text in texts] == [154, 154] and planned.tokens.ids.shape == (1, 154)
    short = texts[0 if positive == "a cat" else 1]
    assert torch.equal(short[0, 77:], text_at(plan(sd, ""), 0)[0])


@pytest.mark.parametrize("family", ["sd", "xl"])
def test_an_image_does_not_depend_on_the_length_of_other_prompts(request, family) -> None:
    pipe = request.getfixturevalue(family)
    how = {"dialect": "a1111", "steps": 3, "guidance_scale": 4.0}
    batch = pipe([LONG, "a dog"], seed=1, **how)
    alone = pipe("a dog", seed=2, **how)
    torch.testing.assert_close(batch.latents[1], alone.latents[0], atol=5e-5, rtol=1e-4)
    other = pipe("a cat", seed=2, **how)
    assert (other.latents - alone.latents).abs().max() > 1e-2


def test_weights_change_the_picture_and_are_written_down(sd) -> None:
    how = {"seed": 1, "steps": 3, "guidance_scale": 4.0}
    plain = sd("a cat", **how)
    weighed = sd("a (cat:1.6)", dialect="comfy", **how)
    assert (plain.latents - weighed.latents).abs().max() > 1e-3
    assert weighed.settings[0].job.dialect == "comfy" and plain.settings[0].job.dialect == "plain"


def test_clip_skip_holds_for_the_negative_prompt_except_in_plain(sd) -> None:
    for dialect in ("plain", "comfy"):
        planned = plan(sd, "a cat", negatives=["a cat"], dialect=dialect, clip_skip=1).steps[0]
        same = torch.equal(planned.parts[0].conditioning.text, planned.unconditional.text)
        assert same == (dialect == "comfy")


@pytest.mark.parametrize("clip_skip", [-1, 9, "1", True])
@pytest.mark.parametrize("family", ["sd", "xl"])
def test_an_impossible_clip_skip_is_refused(request, family, clip_skip) -> None:
    pipe = request.getfixturevalue(family)
    with pytest.raises(UsageError, match="clip_skip"):
        plan(pipe, "a cat", clip_skip=clip_skip)


def test_sdxl_reads_sizes_and_has_zeros_for_no_prompt(xl) -> None:
    size = SizeConditioning((60, 50), (1, 2), (64, 48))
    other = SizeConditioning((30, 20), (0, 0), (64, 48))
    planned = plan(xl, "a cat", "a dog", size=size, zeros_for_no_prompt=True).steps[0]
    assert planned.parts[0].conditioning.added.time_ids.tolist() == [[60, 50, 1, 2, 64, 48]] * 2
    assert (
        not planned.unconditional.text.any() and not planned.unconditional.added.pooled_text.any()
    )
    planned = plan(xl, "a", negatives=["b"], size=size, negative_size=other).steps[0]
    assert planned.unconditional.added.time_ids.tolist() == [[30, 20, 0, 0, 64, 48]]
    assert planned.unconditional.text.any()


def test_the_refiner_reads_with_the_second_encoder_alone(xl, refiner) -> None:
    both, second = (
        plan(pipe, "a (cat:1.2)", dialect="comfy", scale=1).steps[0].parts[0].conditioning
        for pipe in (xl, refiner)
    )
    assert torch.equal(both.text[..., 32:], second.text)
    assert torch.equal(both.added.pooled_text, second.added.pooled_text)
    assert second.added.time_ids.tolist() == [[64, 64, 0, 0, 6]]


def test_the_kind_says_where_sdxl_is_read_and_a_size_must_be_given(xl, sd) -> None:
    texts = xl.readers, xl.kind, ["a cat"], [None], Steps(1)
    with pytest.raises(UsageError, match="size of the picture is not given"):
        plan_prompts(*texts)
    with pytest.raises(UsageError, match="aesthetic score"):
        plan_prompts(*texts, size=SizeConditioning((8, 8), (0, 0), (8, 8), aesthetic=6.0))
    with pytest.raises(UsageError, match="reads nothing about sizes"):
        plan_prompts(sd.readers, sd.kind, *texts[2:], size=SizeConditioning.of(Size(8, 8)))


def test_sizes_that_are_not_given_are_those_of_a_whole_picture(sd, xl, refiner) -> None:
    painted = Size(48, 64)
    assert choose_sizes(sd.kind, painted) == (None, None)
    full = SizeConditioning((64, 48), (0, 0), (64, 48))
    assert choose_sizes(xl.kind, painted) == (full, full)
    size, negative = choose_sizes(refiner.kind, painted)
    assert size.numbers == (64, 48, 0, 0, 6.0) and negative.numbers == (64, 48, 0, 0, 2.5)
    cropped = SizeConditioning((99, 98), (3, 4), (64, 48), aesthetic=3.0)
    size, negative = choose_sizes(refiner.kind, painted, cropped)
    assert size == cropped and negative.numbers == (99, 98, 0, 0, 2.5)


def test_one_warning_for_each_prompt(sd) -> None:
    with pytest.warns(UserWarning) as caught:
        plan(sd, LONG, LONG, dialect="plain")
    assert len([w for w in caught if "was cut" in str(w.message)]) == 1
    with pytest.warns(UserWarning, match=r"\(red:1.3\).*weight 1.3"):
        plan(sd, "a (red:1.3) cat", dialect="plain")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan(sd, "a (red:1.3) [cat:dog:0.5] BREAK AND (fox)")


def test_weights_that_leave_no_finite_number_are_named(sd) -> None:
    with pytest.raises(NonFiniteError, match="weights in a prompt"):
        plan(sd, "a (cat:1" + "0" * 60 + ")", dialect="comfy")


def test_a_second_pass_knows_the_steps_before_it(sd) -> None:
    planned = plan(sd, "a [cat:dog:0.5]", steps_before=4)
    assert torch.equal(text_at(planned, 0)[0], text_at(plan(sd, "a dog"), 0)[0])
