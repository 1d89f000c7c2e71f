"""Prompt editing: which tokens correspond, that edits equal the explicit map, what they keep."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdcore import TextToImage, use_attention
from sdcore.attention import BACKENDS, Site
from sdcore.attention_choice import unavailable
from sdcore.control.alignment import align_tokens
from sdcore.control.attend_and_excite import AttendAndExcite, ExciteSettings
from sdcore.control.chain import chain
from sdcore.control.heatmaps import WordHeatmaps
from sdcore.control.prompt_edit import EditSettings, PromptEdit
from sdcore.control.reweight import Reweight
from sdcore.control.run_control import RunControl
from sdcore.diffusion.steps import Step
from sdcore.errors import UsageError
from sdcore.text.tokenizer import Tokenizer
from tests import tiny
from tests.control.runs import STEP
from tests.explicit_map import attention_map, edited_map, injected_map, make_attend

HERE = [name for name in BACKENDS if unavailable(name) is None]
CROSS = Site("down", 1, kind="cross", name="a.transformer_blocks.0.attn2")
SELF = Site("down", 1, kind="self", name="a.transformer_blocks.0.attn1")
WORDS = st.lists(st.sampled_from(tiny.WORDS), min_size=1, max_size=6)
TOKENIZER = Tokenizer.from_vocab(*tiny.vocabulary(), max_length=16)


@pytest.fixture(scope="module")
def sd(sd_folder):
    return TextToImage.from_pretrained(sd_folder)


def aligned(source, edited):
    return align_tokens(TOKENIZER([source, edited]), 0, 1)


# --- alignment ---------------------------------------------------------------------------------


def test_equal_prompts_correspond_token_by_token():
    move, known = aligned("a red fox", "a red fox")
    assert torch.equal(move, torch.eye(16)) and known.all()


def test_a_swapped_word_takes_over_the_attention_of_the_old_one():
    move, known = aligned("a red fox on grass", "a red cat on grass")
    assert torch.equal(move, torch.eye(16)) and known.all()


def test_an_added_word_has_nothing_to_correspond_to():
    move, known = aligned("a fox on grass", "a red fox on grass")
    assert known.tolist() == [1, 1, 0] + [1] * 13
    assert move[2].nonzero().flatten().tolist() == [3]  # fox moves one to the right
    assert move[:, 2].sum() == 0


def test_words_of_different_length_share_the_attention():
    tokens = TOKENIZER(["a fox on the tree", "a foxxy on the tree"])
    move, known = align_tokens(tokens, 0, 1)
    new = list(tokens.spans[1][1].positions)
    assert len(new) > 1 and known.all()
    torch.testing.assert_close(move[2, new], torch.full((len(new),), 1 / len(new)))
    back, _ = align_tokens(tokens, 1, 0)
    torch.testing.assert_close(back[new, 2], torch.ones(len(new)))  # all of theirs


@given(WORDS, WORDS, WORDS)
@settings(max_examples=60, deadline=None)
def test_no_attention_is_lost_or_made(before, middle, after):
    """Whatever two prompts share: a source token hands on all of its attention, or was deleted."""
    long = Tokenizer.from_vocab(*tiny.vocabulary(), max_length=24)  # nothing is cut
    tokens = long([" ".join([*before, *after[:2]]), " ".join([*before, *middle])])
    move, known = align_tokens(tokens, 0, 1)
    given_on = move.sum(dim=1)
    assert ((given_on - 1).abs() < 1e-6).logical_or(given_on == 0).all()
    assert (move.sum(dim=0)[known == 0] == 0).all()
    specials = [0, *range(tokens.spans[0][-1].positions.stop, 24)]
    assert (given_on[specials] > 0.99).all()  # start, end and padding always hand on


def test_of_unequal_numbers_of_words_the_last_correspond():
    move, known = aligned("a fox on grass", "a red cat on grass")
    assert known.tolist() == [1, 1, 0] + [1] * 13 and move[2, 3] == 1
    move, known = aligned("a red cat on grass", "a fox on grass")
    assert known.all() and move[3, 2] == 1 and move[2].sum() == 0  # "red" was deleted


def test_prompts_with_nothing_in_common_cannot_be_aligned():
    with pytest.raises(UsageError, match="cannot be aligned"):
        PromptEdit(TOKENIZER(["a red fox", "small tree"]))
    PromptEdit(TOKENIZER(["fox", "cat"]))  # word for word
    with pytest.raises(UsageError, match="one prompt"):
        PromptEdit(TOKENIZER("a fox"))


# --- the edit ----------------------------------------------------------------------------------


def test_each_token_attends_as_in_the_source_for_its_steps_alone():
    tokens = TOKENIZER(["a fox on grass", "a red cat on grass"])
    edit = PromptEdit(tokens, EditSettings(cross=(0, 0.5), words={"cat": (0, 0.2)}, layout=None))
    own = {step: edit.at(Step(step, 10, 0)).own[0] for step in (0, 3, 7)}
    red, cat, on = 2, 3, 4
    assert [own[0][p].item() for p in (red, cat, on)] == [1, 0, 0]
    assert [own[3][p].item() for p in (red, cat, on)] == [1, 1, 0]
    assert own[7].all() and not edit.at(Step(7, 10, 0)).moved.any()


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype, close", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("step", [0, 3, 7])
@pytest.mark.parametrize("masked", [False, True])
def test_an_edit_is_that_of_the_explicit_map(backend, dtype, close, step, masked):
    """Three prompts, two pictures each, a grid of odd size; swapped, added and scaled words."""
    tokens = TOKENIZER(["a fox on grass", "a red cat on grass", "a fox on the big tree"])
    options = EditSettings(cross=(0, 0.6), words={"cat": (0, 0.2)}, scales={"red": -2.0, "tree": 3})
    edit = PromptEdit(tokens, options).at(Step(step, 10, 0))
    generator = torch.Generator().manual_seed(step)
    q = torch.randn(6, 2, 15, 8, generator=generator, dtype=torch.float64).to(dtype)
    k, v = (torch.randn(6, 2, 16, 8, generator=generator).to(q) for _ in range(2))
    mask = torch.rand(6, 1, 1, 16, generator=generator) > 0.3 if masked else None
    out = edit(CROSS, (3, 5), q, k, v, make_attend(backend, mask))
    p = edited_map(attention_map(q.double(), k.double(), mask), 3, edit.moved, edit.own)
    torch.testing.assert_close(out.double(), p @ v.double(), rtol=close, atol=close)

    q, k, v = (torch.randn(6, 2, 15, 8, generator=generator).to(q) for _ in range(3))
    out = edit(SELF, (3, 5), q, k, v, make_attend(backend))
    p = attention_map(q.double(), k.double())
    p = injected_map(p, 3) if step < 4 else p
    torch.testing.assert_close(out.double(), p @ v.double(), rtol=close, atol=close)


class ExplicitEdit(RunControl):
    """Prompt-to-prompt as it was published: maps written out and exchanged, step by step."""

    def __init__(self, edit):
        self.edit = edit

    def at(self, step):
        now = self.edit.at(step)

        def control(site, grid, q, k, v, attend):
            p = attention_map(q, k)
            if site.kind == "cross":
                p = edited_map(p, 2, now.moved, now.own)
            elif now.layout is not None and now.layout(site):
                p = injected_map(p, 2)
            return p @ v

        return control


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("family", ["sd_folder", "sd2_folder", "sdxl_folder"])
def test_a_whole_run_equals_the_published_way(request, family, backend):
    pipe = TextToImage.from_pretrained(request.getfixturevalue(family))
    use_attention(pipe.unet, backend)
    prompts = ["a red fox on grass", "a big red cat on grass"]
    readings = [tokenizer(prompts) for tokenizer, _ in pipe.readers]
    edit = PromptEdit(readings, EditSettings(layout_sites=lambda site: True, scales={"big": 2.0}))
    kwargs = {"steps": 4, "seed": [7, 7], "scheduler": "ddim", "width": 40, "height": 72}
    fused = pipe(prompts, control=edit, **kwargs).latents
    written_out = pipe(prompts, control=ExplicitEdit(edit), **kwargs).latents
    plain = pipe(prompts, **kwargs).latents
    scale = plain.abs().max()
    assert (fused - written_out).abs().max() < 1e-5 * scale
    assert (fused[0] - plain[0]).abs().max() < 1e-5 * scale  # the source is what it would be alone
    assert (fused[1] - plain[1]).abs().max() > 1e-3 * scale


def test_the_same_prompt_twice_gives_the_same_picture_twice(sd):
    prompts = ["a red fox"] * 2
    edit = PromptEdit(sd.tokenizer(prompts))
    latents = sd(prompts, steps=2, seed=[3, 3], scheduler="euler a", control=edit).latents
    torch.testing.assert_close(latents[0], latents[1], rtol=1e-4, atol=1e-4)


def test_several_pictures_of_several_edits_in_one_run(sd):
    prompts = ["a red fox", "a red cat", "a big red fox"]
    edit = PromptEdit(sd.tokenizer(prompts))
    kwargs = {"steps": 2, "guidance_scale": 3.0}
    seen = sd(prompts, seed=[3, 3, 3], images_per_prompt=2, control=edit, **kwargs).latents
    pair = ["a red fox", "a big red fox"]
    alone = PromptEdit(sd.tokenizer(pair))
    pair = sd(pair, seed=[4, 4], control=alone, **kwargs).latents
    torch.testing.assert_close(seen[[1, 5]], pair, rtol=1e-4, atol=1e-4)


def test_a_list_of_seeds_has_one_for_each_prompt(sd):
    both = sd(["a fox", "a cat"], seed=[11, 11], steps=1)
    assert both.seeds == [11, 11]
    assert sd(["a fox", "a cat"], seed=[11, 5], steps=1, images_per_prompt=2).seeds == [
        11,
        12,
        5,
        6,
    ]
    alone = sd("a fox", seed=11, steps=1).latents
    torch.testing.assert_close(both.latents[:1], alone, rtol=1e-4, atol=1e-4)
    for wrong, message in (([1], "1 seeds for 2 prompts"), ([1, -1], "The seed is -1")):
        with pytest.raises(UsageError, match=message):
            sd(["a fox", "a cat"], seed=wrong, steps=1)


def test_outside_the_words_in_question_the_picture_stays(sd):
    prompts = ["a red fox on grass", "a red cat on grass"]
    options = EditSettings(cross=(0, 0.1), layout=None, blend=("fox", "cat"), blend_threshold=0.9)
    kwargs = {"steps": 4, "seed": [5, 5]}
    edit = PromptEdit(sd.tokenizer(prompts), options)
    latents = sd(prompts, control=edit, **kwargs).latents
    same = (latents[0] == latents[1]).all(dim=0)
    assert 0 < same.sum() < same.numel()
    grid = edit.places._reads(0, latents) | edit.places._reads(1, latents)
    assert same[~grid].all()
    for blend in (("foks",), ("fox", "zebra")):
        with pytest.raises(UsageError, match="not in the prompt"):
            PromptEdit(sd.tokenizer(prompts), EditSettings(blend=blend))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"words": {"katt": (0, 1)}}, "Did you mean 'cat'"),
        ({"scales": {"fox": 2.0}}, "not in the prompt"),  # of the source, not of the edit
        ({"scales": {"cat": float("nan")}}, "scale of 'cat'"),
        ({"scales": {"cat": True}}, "scale of 'cat'"),
        ({"cross": (0.5, 0.2)}, "parts of the run"),
        ({"words": {"cat": (0, 2)}}, "parts of the run"),
        ({"layout": (0, -1)}, "parts of the run"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        PromptEdit(TOKENIZER(["a fox", "a cat"]), EditSettings(**options))


# --- re-weighting ------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", HERE)
def test_reweighting_is_that_of_the_explicit_map(backend):
    tokens = TOKENIZER(["a red fox", "a cat"])
    control = Reweight(tokens, {"red": -2.0, "a": 0.5})
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(4, 2, n, 8, generator=generator, dtype=torch.float64) for n in (15, 16, 16)
    )
    c = torch.ones(4, 1, 1, 16, dtype=torch.float64)
    c[:, ..., 1], c[:2, ..., 2] = 0.5, -2
    out = control.at(STEP)(CROSS, (3, 5), q, k, v, make_attend(backend))
    torch.testing.assert_close(out, (attention_map(q, k) * c) @ v, rtol=1e-12, atol=1e-12)


def test_a_word_in_no_prompt_cannot_be_weighted():
    with pytest.raises(UsageError, match="Did you mean 'fox'"):
        Reweight(TOKENIZER(["a red fox", "a cat"]), {"foxs": 2.0})


# --- attend and excite -------------------------------------------------------------------------


def test_a_word_is_read_more_after_its_latents_were_moved(sd):
    tokens = sd.tokenizer("a fox and a tree")
    options = ExciteSettings(steps=(0, 1), strength=0.3, targets={})
    peaks = {}
    for name, controls in {
        "plain": (),
        "moved": (AttendAndExcite(tokens, ["tree"], options),),
    }.items():
        heatmaps = WordHeatmaps(tokens)
        sd(
            "a fox and a tree",
            steps=4,
            seed=1,
            scheduler="ddim",
            control=chain(heatmaps, *controls),
        )
        peaks[name] = float(heatmaps.of("tree").max())
    assert peaks["moved"] > peaks["plain"]


def test_targets_are_worked_for_and_images_do_not_touch_each_other(sd):
    prompts = ["a fox and a tree", "a cat and a dog"]
    tokens = sd.tokenizer(prompts)
    options = ExciteSettings(targets={0: 0.99}, most_moves=2)
    control = AttendAndExcite(tokens, ["tree", "dog"], options)
    kwargs = {"steps": 2, "guidance_scale": 1.0}
    both = sd(prompts, seed=1, control=control, **kwargs).latents
    second = AttendAndExcite(sd.tokenizer(prompts[1]), ["dog"], options)
    alone = sd(prompts[1], seed=2, control=second, **kwargs).latents
    plain = sd(prompts[1], seed=2, **kwargs).latents
    assert not torch.allclose(alone, plain)
    torch.testing.assert_close(both[1:], alone, rtol=1e-3, atol=1e-4)


def test_a_word_that_is_not_there_cannot_be_excited(sd):
    with pytest.raises(UsageError, match="Did you mean 'tree'"):
        AttendAndExcite(sd.tokenizer("a fox and a tree"), ["fox", "trea"])
