"""What may be a control of a run and of a network, and that anything else is refused by name."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from sdcore import TextToImage, use_attention
from sdcore.attention import BACKENDS, RUN_HOOKS
from sdcore.attention_choice import unavailable
from sdcore.control.attend_and_excite import AttendAndExcite
from sdcore.control.chain import Chain, at_sites, chain, during, parts
from sdcore.control.heatmaps import WordHeatmaps
from sdcore.control.made_at_begin import MadeAtBegin
from sdcore.control.prompt_edit import EditSettings, PromptEdit
from sdcore.control.regions import Region, Regions
from sdcore.control.reweight import Reweight
from sdcore.control.run_control import RunControl, as_run_control
from sdcore.errors import UsageError
from tests.control.runs import STEP, make_run

HERE = [name for name in BACKENDS if unavailable(name) is None]
FAST = {"seed": 1, "steps": 2, "scheduler": "ddim"}


@pytest.fixture(scope="module")
def pipe(sd_folder):
    return TextToImage.from_pretrained(sd_folder)


def call_unet(pipe, control):
    generator = torch.Generator().manual_seed(0)
    width = pipe.unet.config.cross_attention_dim
    latents, text = (torch.randn(s, generator=generator) for s in ((1, 4, 8, 8), (1, 77, width)))
    with torch.no_grad():
        return pipe.unet(latents, 500, text, control=control)


def paint(pipe, control):
    return pipe("a red fox", control=control, **FAST).latents


def keep(site, grid, q, k, v, attend):
    return attend(q, k, v)


class Doubles:
    """A control by its class, with nothing of a run."""

    def __call__(self, site, grid, q, k, v, attend):
        return attend(q, k, 2 * v)


# --- half of one, or none -------------------------------------------------------------------------


def test_the_hooks_are_what_a_run_control_has():
    assert set(RUN_HOOKS) == {name for name in vars(RunControl) if not name.startswith("_")}


@pytest.mark.parametrize("hook", RUN_HOOKS)
@pytest.mark.parametrize("use", [call_unet, paint])
def test_a_control_with_one_hook_of_a_run_is_refused(pipe, hook, use):
    class Half(Doubles):
        pass

    setattr(Half, hook, lambda self, *_: None)
    with pytest.raises(UsageError, match=f"The control Half has {hook}, but is no RunControl") as e:
        use(pipe, Half())
    assert "ignored" in e.value.why and "sdcore.RunControl" in e.value.hint


@pytest.mark.parametrize("wrap", [chain, lambda c: during(c, 0, 1), lambda c: parts(c)])
def test_half_a_control_is_refused_inside_of_others(wrap):
    class Half(Doubles):
        def after_step(self, step, latents):
            return 0 * latents

    with pytest.raises(UsageError, match="Half has after_step"):
        wrap(Half())


def test_a_run_refuses_hooks_that_are_no_methods(pipe):
    def fades(site, grid, q, k, v, attend):
        return attend(q, k, 0.5 * v)

    fades.negative = keep
    with pytest.raises(UsageError, match="The control fades has negative, but is no RunControl"):
        paint(pipe, fades)

    class NotCallable:
        def at(self, step):
            return keep

    with pytest.raises(UsageError, match="The control NotCallable has at, but is no RunControl"):
        paint(pipe, NotCallable())


def test_the_negative_control_and_those_of_parts_are_held_to_the_same(pipe):
    class Half(Doubles):
        def at(self, step):
            return None

    class Negative(RunControl):
        @property
        def negative(self):
            return Half()

    class Part(RunControl):
        def part(self, number):
            return Half()

    for control in (Negative(), Part()):
        with pytest.raises(UsageError, match="Half has at"):
            paint(pipe, control)


@pytest.mark.parametrize("use", [call_unet, paint])
def test_what_cannot_be_called_and_classes_are_refused(pipe, use):
    with pytest.raises(UsageError, match="control is of type str"):
        use(pipe, "louder")
    with pytest.raises(UsageError, match="The control is the class WordHeatmaps"):
        use(pipe, WordHeatmaps)
    with pytest.raises(UsageError, match="The control is the class Doubles"):
        use(pipe, Doubles)


def test_a_network_says_that_a_run_control_belongs_to_a_run(pipe):
    tokens, both = pipe.tokenizer("a red fox"), pipe.tokenizer(["a red fox", "a red cat"])
    for control in (
        PromptEdit(both),
        WordHeatmaps(tokens),
        Reweight(tokens, {"red": 2.0}),
        Regions("grass", [Region("a fox", box=(0, 0, 1, 1))]),
        AttendAndExcite(tokens, ["fox"]),
        chain(keep),
        during(keep, 0, 0.5),
        at_sites(keep, lambda site: True),
        parts(keep),
        MadeAtBegin(lambda run: RunControl()),
        RunControl(),
    ):
        name = type(control).__name__
        with pytest.raises(UsageError, match=f"An attention layer cannot call {name}") as error:
            call_unet(pipe, control)
        assert "belongs to a run" in error.value.why
        assert "pipe(..., control=control)" in error.value.hint
        assert "control.at(step)" in error.value.hint
    assert torch.equal(call_unet(pipe, chain(keep).at(STEP)), call_unet(pipe, None))


def test_a_run_control_that_is_called_is_refused_where_it_is_defined():
    with pytest.raises(UsageError, match="Both is a RunControl with __call__"):

        class Both(RunControl):
            __call__ = Doubles.__call__

    with pytest.raises(UsageError, match="Mixed is a RunControl with __call__"):

        class Mixed(Doubles, RunControl):
            pass


def test_a_control_that_learns_all_from_its_run_is_refused_without_one(pipe):
    regions = Regions("grass", [Region("a fox", box=(0, 0, 1, 1))])
    with pytest.raises(UsageError, match="Regions has not begun a run"):
        call_unet(pipe, regions.at(STEP))
    with pytest.raises(UsageError, match="MadeAtBegin has not begun a run"):
        MadeAtBegin(lambda run: regions).at(STEP)


# --- answers that a layer cannot go on with -------------------------------------------------------

WRONG = {
    "None": lambda out: None,
    "an object of type list": lambda out: [out],
    r"a tensor \(1, .*\) of torch.float32 on cpu": lambda out: out[:, :1],
    "a tensor .* of torch.float64 on cpu": lambda out: out.double(),
    "a tensor .* on meta": lambda out: out.to("meta"),
    r"a tensor \(1, \d+, \d+\) of .*": lambda out: out.flatten(2),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("use", [call_unet, paint])
@pytest.mark.parametrize("hidden", [False, True])
def test_a_wrong_answer_names_the_control_and_the_site(pipe, what, use, hidden):
    """Also where another control would take it first, or the rows of a negative prompt join it."""

    def broken(site, grid, q, k, v, attend):
        return WRONG[what](attend(q, k, v))

    control = chain(lambda s, g, q, k, v, attend: 2 * attend(q, k, v), broken)
    control = broken if not hidden else control.at(STEP) if use is call_unet else control
    message = rf"The control broken gave {what} at down\.\d\.0\.0 self"
    with pytest.raises(UsageError, match=message) as error:
        use(pipe, control)
    assert "torch.float32 on cpu" in error.value.why and "attend(q, k, v)" in error.value.hint


def test_the_name_is_that_of_the_class_the_method_or_the_function(pipe):
    class Silent:
        def __call__(self, site, grid, q, k, v, attend):
            return None

        def method(self, site, grid, q, k, v, attend):
            return None

    def function(number, site, grid, q, k, v, attend):
        return None

    for control, name in (
        (Silent(), "Silent"),
        (Silent().method, r"Silent\.method"),
        (partial(function, 3), "function"),
    ):
        with pytest.raises(UsageError, match=f"The control {name} gave None"):
            call_unet(pipe, control)


# --- what is one ----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", HERE)
def test_every_kind_of_control_runs_on_every_backend(sd_folder, backend):
    pipe = TextToImage.from_pretrained(sd_folder)
    prompts, tokens = ["a red fox", "a red cat"], pipe.tokenizer(["a red fox", "a red cat"])
    place = Regions("a red fox", [Region("a cat", box=(0, 0, 0.5, 1))])

    def paint_all():
        heatmaps = WordHeatmaps(tokens)
        all_words = chain(heatmaps, Reweight(tokens, {"red": 2.0}), PromptEdit(tokens))
        latents = [
            pipe(prompts, control=control, **FAST).latents
            for control in (keep, Doubles(), at_sites(Doubles(), lambda site: site.level > 0))
        ]
        latents.append(pipe(prompts, control=all_words, **{**FAST, "seed": [1, 1]}).latents)
        excite = AttendAndExcite(tokens, ["fox", "cat"])
        latents.append(pipe(prompts, control=excite, **FAST).latents)
        latents.append(pipe(place.prompt, control=place, dialect="a1111", **FAST).latents)
        return [*latents, heatmaps.of("red")]

    use_attention(pipe.unet, "reference")
    expected = paint_all()
    use_attention(pipe.unet, backend)
    for ours, theirs in zip(paint_all(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(expected[0], expected[1], atol=1e-2)


def test_a_plain_control_is_used_at_every_step_and_for_every_prompt(pipe):
    ready = as_run_control(keep)
    ready.begin(make_run())
    assert ready.at(STEP) is keep and ready.negative is None
    assert [ready.part(number).at(STEP) for number in (0, 3)] == [keep, keep]
    latents = torch.ones(1)
    assert ready.before_step(STEP, latents, None) is latents
    assert ready.after_step(STEP, latents) is latents
    assert as_run_control(ready) is ready


def test_a_run_control_alone_changes_nothing(pipe):
    assert torch.equal(paint(pipe, RunControl()), paint(pipe, None))


class CopiesWatched(Chain):
    """Counts what is copied to another device or type while layers call a control, step by step."""

    def begin(self, run):
        super().begin(run)
        self.copies = {}

    def at(self, step):
        control = super().at(step)
        counted = self.copies.setdefault(step.index, [])

        class Copies(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                if function.overloadpacket is torch.ops.aten._to_copy:
                    counted.append(args[0].shape)
                return function(*args, **(kwargs or {}))

        def watched(site, grid, q, k, v, attend):
            with Copies():
                return control(site, grid, q, k, v, attend)

        return watched


def test_tensors_go_to_the_device_and_type_of_a_run_before_its_layers_are_called(sd_folder):
    pipe = TextToImage.from_pretrained(sd_folder, dtype=torch.bfloat16)
    use_attention(pipe.unet, "sdpa")
    prompts, tokens = ["a red fox", "a red cat"], pipe.tokenizer(["a red fox", "a red cat"])
    place = Regions("a red fox", [Region("a cat", box=(0, 0, 0.5, 1))])
    for control, texts in (
        (WordHeatmaps(tokens), prompts),
        (Reweight(tokens, {"red": 2.0}), prompts),
        (PromptEdit(tokens, EditSettings(blend=("fox", "cat"))), prompts),
        (place, place.prompt),
    ):
        watched = CopiesWatched([control])
        pipe(texts, control=watched, dialect="a1111", **{**FAST, "steps": 3})
        assert set(watched.copies) == {0, 1, 2}
        if control is place:  # each grid's masks are made where the grid is first met
            watched.copies.pop(0)
        assert not any(watched.copies.values()), type(control)


# --- latents --------------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", ["before_step", "after_step"])
@pytest.mark.parametrize(
    ("change", "said"),
    [(lambda x: None, "None"), (lambda x: x[:, :1], "(1, 1,"), (lambda x: x.double(), "float64")],
)
def test_latents_that_the_run_cannot_go_on_with_are_refused(pipe, hook, change, said):
    class Changes(RunControl):
        pass

    setattr(Changes, hook, lambda self, step, latents, *_: change(latents))
    with pytest.raises(UsageError, match=f"A control's {hook} gave") as error:
        paint(pipe, Changes())
    assert said in error.value.what and "at step 1 of 2" in error.value.what
