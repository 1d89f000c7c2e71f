"""Controls in a run: their order, their steps, their sites, and that nothing is left of them."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from sdcore import TextToImage
from sdcore.attention import BACKENDS, Site
from sdcore.attention_choice import unavailable
from sdcore.control.chain import at_sites, chain, during, parts
from sdcore.control.heatmaps import WordHeatmaps
from sdcore.control.prompt_edit import EditSettings, PromptEdit
from sdcore.control.regions import Region, Regions
from sdcore.control.reweight import Reweight
from sdcore.control.run_control import RunControl, as_run_control, attention_sites
from sdcore.diffusion.steps import Step
from sdcore.errors import UsageError
from sdcore.prompt.tokens import read_tokens
from sdcore.sampling.begin import begin_control
from tests.control.runs import STEP, make_run
from tests.explicit_map import edited_map, heat, make_attend, region_map
from tests.painting import paint

CROSS = Site("down", 1, kind="cross", name="down_blocks.1.attentions.0.transformer_blocks.0.attn2")
SELF = Site("down", 1, kind="self", name="down_blocks.1.attentions.0.transformer_blocks.0.attn1")
HERE = [name for name in BACKENDS if unavailable(name) is None]


def qkv(rows, queries, keys, width=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(rows + queries)
    shapes = [(rows, 2, n, width) for n in (queries, keys, keys)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


class Times:
    """Multiplies values by a number: a control of no class of ours."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, site, grid, q, k, v, attend):
        return attend(q, k, self.factor * v)


class Add(Times):
    def __call__(self, site, grid, q, k, v, attend):
        return attend(q, k, v) + self.factor


@pytest.fixture(scope="module")
def pipe(sd_folder):
    return TextToImage.from_pretrained(sd_folder)


@pytest.fixture(scope="module")
def tokens(pipe):
    return pipe.tokenizer(["a red fox on grass", "a red cat on grass"])


def test_what_the_first_of_a_chain_asks_is_answered_by_the_next():
    q, k, v = qkv(1, 4, 5)
    attend = make_attend("reference")
    plain = attend(q, k, v)
    both = chain(Times(2.0), Add(1.0)).at(STEP)
    torch.testing.assert_close(both(CROSS, (2, 2), q, k, v, attend), 2 * plain + 1)
    other = chain(Add(1.0), Times(2.0)).at(STEP)
    torch.testing.assert_close(other(CROSS, (2, 2), q, k, v, attend), 2 * plain + 1)
    wide = chain(lambda s, g, q, k, v, a: 3 * a(q, k, v), Add(1.0)).at(STEP)
    torch.testing.assert_close(wide(CROSS, (2, 2), q, k, v, attend), 3 * (plain + 1))


def test_a_mask_given_by_one_control_reaches_the_backend_through_the_next():
    q, k, v = qkv(1, 4, 5)
    layers, mine = (torch.rand(1, 1, 1, 5) > 0.5 for _ in range(2))
    mine[..., 0] = True

    def masked(site, grid, q, k, v, attend):
        assert attend.mask is layers
        return attend(q, k, v, mask=mine)

    def looks(site, grid, q, k, v, attend):
        assert attend.mask is mine
        return attend(q, k, v)

    control = chain(masked, looks, Times(1.0)).at(STEP)
    out = control(CROSS, (2, 2), q, k, v, make_attend("sdpa", layers))
    torch.testing.assert_close(out, BACKENDS["reference"](q, k, v, mine))


def test_attend_knows_a_mask_and_no_other_keyword():
    q, k, v = qkv(1, 4, 5)

    def mistyped(site, grid, q, k, v, attend):
        return attend(q, k, v, msak=None)

    for control in (mistyped, chain(mistyped, Times(1.0)).at(STEP)):
        with pytest.raises(TypeError, match="msak"):
            control(CROSS, (2, 2), q, k, v, make_attend("sdpa"))


@pytest.mark.parametrize("dtype, close", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("grid", [(5, 3), (4, 8)])
@pytest.mark.parametrize("masked", [False, True])
def test_all_controls_together_are_the_explicit_map(pipe, backend, grid, dtype, close, masked):
    """chain(heatmaps, reweighting, edit, regions): two prompts, two pictures each."""
    regions = Regions("grass", [Region("x", box=(0, 0, 0.4, 1)), Region("y", box=(0.5, 0, 1, 0.8))])
    one = pipe.tokenizer(["a red fox on grass", "a big red cat on grass"])
    length, ends = one.ids.shape[1], [0, 70, 74, 77]  # as if three texts shared the row
    heatmaps = WordHeatmaps(one)
    scales = Reweight(one, {"red": -1.5, "cat": 2.0})
    step = Step(5, 10, 500)
    edit = PromptEdit(one, EditSettings(words={"grass": (0, 0.1)}))
    regions._slices = [slice(a, b) for a, b in itertools.pairwise(ends)]
    regions._fine = torch.stack([r.raster(16, 16) for r in regions.regions])

    q, k, v = qkv(4, grid[0] * grid[1], length, dtype=dtype)
    mask = torch.rand(4, 1, 1, length, generator=torch.Generator().manual_seed(1)) > 0.3
    mask = mask if masked else None
    control = chain(heatmaps, scales, edit, regions).at(step)
    out = control(CROSS, grid, q, k, v, make_attend(backend, mask))

    q, k, v = (x.double() for x in (q, k, v))

    def explicit(rows_q, rows_k, rows_mask):
        return region_map(rows_q, rows_k, regions.masks(grid), regions._slices, rows_mask)

    # The map of an edit over regions: the source's map moved, its own kept for added words.
    now = edit.edit_at(step)
    p = edited_map(explicit(q, k, mask), 2, now.moved, now.own)
    p = p * scales.scales.double().repeat_interleave(2, dim=0)[:, None, None]
    torch.testing.assert_close(out.double(), p @ v, rtol=close, atol=close)
    expected = heat(p, heatmaps.marks).float()
    for image in range(4):
        maps = heatmaps.maps(image=image).flatten(1).T
        torch.testing.assert_close(maps, expected[image], rtol=1e-5, atol=1e-5)


def test_self_attention_is_left_alone_by_what_concerns_words(tokens):
    q, k, v = qkv(2, 6, 6)
    attend = make_attend("reference")
    heatmaps = WordHeatmaps(tokens)
    for control in (
        Reweight(tokens, {"red": 3.0}),
        heatmaps,
        Regions("a", [Region("b", (0, 0, 1, 1))]),
    ):
        assert torch.equal(control.at(STEP)(SELF, (2, 3), q, k, v, attend), attend(q, k, v))
    assert not heatmaps.recorded


def test_a_window_of_steps():
    control = during(Times(2.0), 0.25, 0.75)
    active = [control.at(Step(i, 8, 0)) is not None for i in range(8)]
    assert active == [False, False, True, True, True, True, False, False]
    always = during(Times(2.0), 0, 1)
    assert all(always.at(Step(i, 5, 0)) for i in range(5))
    for start, end in ((0.5, 0.5), (-0.1, 1), (0, 1.1)):
        with pytest.raises(UsageError, match="parts of the run"):
            during(Times(2.0), start, end)


def test_a_window_also_bounds_what_is_done_to_latents():
    class Doubles(RunControl):
        def before_step(self, step, latents, predict):
            return 2 * latents

        def after_step(self, step, latents):
            return latents + 1

        def on_guess(self, step, guess):
            guesses.append((step.index, guess()))

    one, guesses = torch.ones(1), []
    control = chain(during(Doubles(), 0.5, 1), Doubles())
    control.on_guess(Step(0, 2, 0), lambda: "first")
    at_sites(control, lambda site: True).on_guess(Step(1, 2, 0), lambda: "second")
    assert guesses == [(0, "first"), (1, "second"), (1, "second")]
    assert control.before_step(Step(0, 2, 0), one, None) == 2
    assert control.before_step(Step(1, 2, 0), one, None) == 4
    assert control.after_step(Step(0, 2, 0), one) == 2
    assert control.after_step(Step(1, 2, 0), one) == 3


def test_chosen_sites_only(pipe):
    q, k, v = qkv(1, 4, 5)
    attend = make_attend("reference")
    control = at_sites(Times(2.0), lambda site: site.kind == "cross")
    now = control.at(Step(0, 1, 0))
    assert torch.equal(now(SELF, (2, 2), q, k, v, attend), attend(q, k, v))
    torch.testing.assert_close(now(CROSS, (2, 2), q, k, v, attend), 2 * attend(q, k, v))
    with pytest.raises(UsageError, match="no attention layer"):
        pipe("a cat", steps=1, control=at_sites(Times(2.0), lambda site: site.level == 9))


def test_one_control_for_each_prompt_of_an_and(tokens):
    words, other = Reweight(tokens, {"red": 2.0}), Times(3.0)
    assert as_run_control(words).part(0) is words and as_run_control(words).part(1) is None
    for number in (0, 1, 2):  # a plain function serves every part
        assert as_run_control(other).part(number).at(STEP) is other
    both = parts(None, words)
    assert both.part(0) is None and both.part(1) is words and both.part(2) is None
    assert both.at(STEP) is None
    assert chain(words, other).part(1).at(STEP) is other
    late = during(both, 0.5, 1).part(1)
    assert late.at(Step(0, 2, 0)) is None and late.at(Step(1, 2, 0)) == words.at(STEP)


def test_each_prompt_of_an_and_has_its_heatmaps(pipe):
    prompt = "a red fox AND a tree"
    both = [
        WordHeatmaps(read_tokens(prompt, pipe.tokenizer, "a1111", part=number)) for number in (0, 1)
    ]
    run = {"steps": 2, "dialect": "a1111", "seed": 1}
    pipe(prompt, control=parts(*both), **run)
    assert both[0].of("fox").shape == both[1].of("tree").shape == (8, 8)
    first = WordHeatmaps(both[0].tokens)
    pipe(prompt, control=first, **run)  # words are those of the first prompt
    assert torch.equal(first.of("fox"), both[0].of("fox"))
    with pytest.raises(UsageError, match="joins 1 by AND"):
        pipe("a red fox", control=parts(*both), **run)


def test_a_run_with_a_control_leaves_nothing_behind(pipe):
    before = {name: dict(vars(module)) for name, module in pipe.unet.named_modules()}
    kwargs = {"steps": 2, "seed": 3}
    plain = pipe("a red fox", **kwargs).latents
    tokens = pipe.tokenizer("a red fox")
    changed = pipe("a red fox", control=Reweight(tokens, {"red": -3.0}), **kwargs).latents
    assert not torch.equal(changed, plain)

    def broken(site, grid, q, k, v, attend):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        pipe("a red fox", control=chain(WordHeatmaps(tokens), broken), **kwargs)
    for name, module in pipe.unet.named_modules():
        assert vars(module).keys() == before[name].keys(), name
        assert "forward" not in vars(module) and not module._forward_hooks
    assert torch.equal(pipe("a red fox", **kwargs).latents, plain)


def test_a_control_can_change_the_latents_and_look_ahead(pipe):
    class Looks(RunControl):
        def __init__(self):
            self.seen = []

        def before_step(self, step, latents, predict):
            self.seen.append(predict(latents, None).shape)
            return latents

        def after_step(self, step, latents):
            return torch.zeros_like(latents)

    control = Looks()
    assert not pipe("a cat", steps=2, control=control).latents.any()
    assert len(control.seen) >= 2 and set(control.seen) == {(1, 4, 8, 8)}


def test_a_model_without_cross_attention_is_refused_before_the_first_step():
    with pytest.raises(UsageError, match="no cross-attention"):
        begin_control(Times(1.0), make_run(sites=attention_sites(nn.Linear(2, 2))), None)


def test_every_layer_of_a_unet_has_its_own_site(pipe):
    sites = attention_sites(pipe.unet)
    assert len(set(sites)) == len(sites) and {site.kind for site in sites} == {"self", "cross"}


def test_a_negative_control_without_negative_rows_is_refused(pipe):
    tokens = pipe.tokenizer("a cat")
    control = WordHeatmaps(tokens, negative=WordHeatmaps(pipe.tokenizer("bad")))
    with pytest.raises(UsageError, match="not read"):
        pipe("a cat", steps=1, guidance_scale=1.0, control=control)


def test_tokens_of_other_prompts_are_refused_before_the_first_step(pipe, tokens):
    steps = []
    for control in (Reweight(tokens, {"red": 1.0}), WordHeatmaps(tokens), PromptEdit(tokens)):
        with pytest.raises(UsageError, match="2 prompts"):
            paint(pipe, "a cat", steps=1, control=control, on_step=lambda s, x: steps.append(s))
    assert not steps
