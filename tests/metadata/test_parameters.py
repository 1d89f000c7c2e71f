"""The `parameters` text of Stable Diffusion web UI: its grammar, its traps, what it can carry."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as some

from sdcore import __version__
from sdcore.diffusion.levels import SCHEDULES
from sdcore.diffusion.methods import METHODS
from sdcore.diffusion.sampler_names import from_web_ui, to_web_ui
from sdcore.job.adapters import HiresSettings, LoraSettings
from sdcore.metadata.parameters import carries, read_parameters, write_parameters
from sdcore.metadata.web_ui import recipe_of_parameters
from sdcore.size import Size
from tests.metadata.test_png import EVERYTHING, SETTINGS, any_text, with_job


def test_the_text_as_the_web_ui_writes_it() -> None:
    assert write_parameters(SETTINGS) == (
        "a red apple, photo\n"
        "Negative prompt: bad drawing\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 5, Seed: 7, "
        'Size: 64x48, Model: "fruit: ripe", Clip skip: 2, RNG: CPU, '
        f"Dialect: plain, Version: sdcore {__version__}"
    )
    plain = with_job(SETTINGS, negative_prompt=None, clip_skip=0, scheduler="euler a")
    text = write_parameters(plain)
    assert "Negative" not in text and "Clip skip" not in text
    assert "Sampler: Euler a, Schedule type: model's own (sdcore), CFG" in text
    told = write_parameters(replace(plain, noise_levels="ddim uniform"))
    assert "Sampler: Euler a, Schedule type: DDIM, CFG" in told


def test_hashes_are_as_long_as_the_web_ui_writes_them() -> None:
    text = write_parameters(EVERYTHING)
    assert text.startswith("a red apple, photo <lora:ink:0.3:0.7> <lora:pen, wide:1:-1.5>\n")
    assert "Model hash: 0f0f0f0f0f, " in text
    assert f'Lora hashes: "ink: {"ab" * 6}, pen wide: {"cd" * 6}"' in text
    assert f'TI hashes: "<mark>: {"ef" * 6}"' in text


@settings(max_examples=60)
@given(any_text, any_text)
@example("a\nSteps: 20, Sampler: Euler, Seed: 7", "bad")
@example("a\nNegative prompt: b", "")
@example("a\n\n", "b\nNegative prompt: c")
@example('quote " comma, colon: "', '"')
def test_prompts_are_read_back_or_said_not_to_be(prompt, negative) -> None:
    written = with_job(SETTINGS, prompt=prompt, negative_prompt=negative)
    text = write_parameters(written).encode("utf-8", "replace").decode()
    read = read_parameters(text)
    assert (read.prompt, read.negative_prompt) == (prompt, negative) or not carries(
        prompt, negative
    )
    assert read.pairs["Seed"] == "7"  # whatever the prompts hold, the settings are found


one_line = some.text(some.characters(codec="utf-8", exclude_characters="\n"), max_size=9)
line = one_line.map(str.strip) | some.sampled_from(["Negative prompt: a", "Steps: 1", ""])


@given(some.lists(line, min_size=1, max_size=3), some.lists(line, max_size=3))
def test_what_the_grammar_carries(prompt_lines, negative_lines) -> None:
    """The rule as the module states it: lines without outer spaces, the first not blank, ..."""
    prompt, negative = "\n".join(prompt_lines), "\n".join(negative_lines)
    blank_first = (prompt and not prompt_lines[0]) or (negative and not negative_lines[0])
    marked = any(x.startswith("Negative prompt:") for x in (*prompt_lines, *negative_lines[1:]))
    assert carries(prompt, negative) == (not blank_first and not marked)


@pytest.mark.parametrize(
    ("text", "prompt", "negative", "pairs"),
    [
        ("a\nNegative prompt: b\nSteps: 1, Seed: 2, Size: 8x8", "a", "b", 3),
        ("a\nNegative prompt: b\nc\n\nd\nSteps: 1, Seed: 2, Size: 8x8", "a", "b\nc\n\nd", 3),
        ("a\nNegative prompt:\nb\nSteps: 1, Seed: 2, Size: 8x8", "a", "b", 3),
        ("a\nSteps: 1, Seed: 2", "a\nSteps: 1, Seed: 2", "", 0),  # two are a prompt
        ("Steps: 1, Seed: 2, Size: 8x8", "", "", 3),
        ("Negative prompt: b", "", "b", 0),
        ("", "", "", 0),
        ("a: b, cd: e, fg: h, ij: k", "", "", 3),  # a key has two letters or more
        ("\n\n a \n b \nSteps: 1, Seed: 2, Size: 8x8\n\n", "a\nb", "", 3),
        ("a\r\nNegative prompt: b\r\nSteps: 1, Seed: 2, Size: 8x8", "a", "b", 3),
    ],
)
def test_the_readers_rules(text, prompt, negative, pairs) -> None:
    read = read_parameters(text)
    assert (read.prompt, read.negative_prompt, len(read.pairs)) == (prompt, negative, pairs)


SETTINGS_LINE = "Steps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64"
WIDE = str.maketrans({":": "\uff1a"})


@pytest.mark.parametrize(
    "text",
    [
        "a cat, red Negative prompt: bad Steps: 20, Sampler: Euler, CFG scale: 7, Seed: 1",
        "a cat, red\nNegative prompt: bad Steps: 20, Sampler: Euler, CFG scale: 7, Seed: 1",
        f"a cat, red\rNegative prompt: bad\r{SETTINGS_LINE}",
        f"a cat, red<br>Negative prompt: bad<br />{SETTINGS_LINE}",
        f"a cat, red\nNegative Prompt: bad\n{SETTINGS_LINE.lower()}\nSteps: 20",
        f"a cat, red\nnegative_prompt: bad\n{SETTINGS_LINE}",
        f"a cat, red\nNegative prompt\uff1abad\n{SETTINGS_LINE}".translate(WIDE),
    ],
)
def test_texts_that_were_joined_or_retyped(text: str) -> None:
    read = read_parameters(text)
    assert (read.prompt, read.negative_prompt) == ("a cat, red", "bad")
    assert {"Steps": "20", "Sampler": "Euler", "Seed": "1"}.items() <= {
        key: value.capitalize() for key, value in read.pairs.items()
    }.items()


def test_settings_in_another_order_are_no_joined_line() -> None:
    read = read_parameters("a cat\nSeed: 1, Size: 64x64, Steps: 20, Sampler: Euler")
    assert (read.prompt, read.pairs["Seed"], read.pairs["Steps"]) == ("a cat", "1", "20")


def test_values_with_commas_are_json() -> None:
    read = read_parameters(
        'Steps: 1, Hires prompt: "a, \\"b\\": 苹\\n果", Odd: "open, Not JSON: "\\x", Last: 1:2'
    ).pairs
    assert read == {
        "Steps": "1",
        "Hires prompt": 'a, "b": 苹\n果',
        "Odd": '"open',
        "Not JSON": '"\\x"',
        "Last": "1:2",
    }


@given(some.text(min_size=1, max_size=30).map(str.strip).filter(len))
@example("a\uff1bbc\uff1ad")
@example("a\uff0cb")
@example("a\rb")
def test_any_value_is_read_back(value) -> None:
    # The web UI takes a value in quotes as JSON; we therefore quote whatever has quotes.
    text = write_parameters(replace(SETTINGS, model=value))
    assert read_parameters(text).pairs["Model"] == value


@pytest.mark.parametrize("method", METHODS)
def test_every_scheduler_goes_there_and_back(method) -> None:
    assert from_web_ui(*to_web_ui(method)).name == method
    assert from_web_ui(*to_web_ui(method, "leading")).name == f"{method} leading"
    for schedule in SCHEDULES:
        name = f"{method} {schedule}"
        assert from_web_ui(*to_web_ui(name)).name == name


@pytest.mark.parametrize(
    ("sampler", "schedule", "name", "said"),
    [
        ("DPM++ 2M Karras", None, "dpm++ 2m karras", ""),
        ("DPM++ 2M", "Karras", "dpm++ 2m karras", ""),
        ("DPM++ 2M", "Automatic", "dpm++ 2m karras", ""),  # the solver's own since 1.9
        ("DPM++ 2M", None, "dpm++ 2m normal", ""),
        ("DDIM", None, "ddim ddim uniform", "leaves out the last of its steps"),
        ("Euler a", "Automatic", "euler a normal", "noise in every step"),
        ("Euler", "SGM Uniform", "euler sgm uniform", ""),
        ("Euler", "Polyexponential", "euler exponential", ""),
        ("Euler", "KL Optimal", "euler kl optimal", "end at the least one there"),
        ("Euler", "Bong Tangent", "euler", "'bong tangent' are not there"),
        ("DPM++ 2M SDE", "Automatic", "dpm++ 2m sde exponential", "noise in every step"),
        ("DPM++ 2M SDE Heun Karras", None, "dpm++ 2m sde heun karras", "noise in every step"),
        ("DPM++ 3M SDE Exponential", None, "dpm++ 3m sde exponential", "before its last"),
        ("Restart", None, "heun normal", "goes back to noisier levels, and times only fall here)"),
        ("DPM Turbo Nova", None, "dpm++ 2m normal", "'DPM Turbo Nova' is not there; 'dpm++ 2m'"),
    ],
)
def test_samplers_of_the_web_ui(sampler, schedule, name, said) -> None:
    found = from_web_ui(sampler, schedule)
    assert found.name == name
    assert said in " ".join(found.differences) if said else not found.differences


WEB_UI = """\
a girl, (hat:1.2) <lora:ink:0.7>
Negative prompt: bad
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 965400086, \
Size: 512x768, Model hash: 45DEE52B01, Model: ../../etc/v1-5.safetensors, Clip skip: 2, \
Lora hashes: "ink: 0123456789ab", RNG: CPU, Version: v1.9.4"""


def test_a_run_of_the_web_ui() -> None:
    recipe = recipe_of_parameters(WEB_UI)
    assert recipe.job.prompt == "a girl, (hat:1.2) <lora:ink:0.7>"
    assert (recipe.job.negative_prompt, recipe.job.seed, recipe.job.steps) == ("bad", 965400086, 20)
    assert (recipe.job.size, recipe.job.guidance_scale) == (Size(512, 768), 7.5)
    assert (recipe.job.scheduler, recipe.job.dialect) == ("dpm++ 2m karras", "a1111")
    assert (recipe.model, recipe.model_hash) == ("v1-5", "45dee52b01")  # a name, no path
    assert recipe.job.loras == (LoraSettings("ink", 0.7, 0.7, "0123456789ab"),)
    assert recipe.differences == ()
    # The web UI's 2 is one layer left out, and has no effect on SDXL.
    assert (recipe.clip_skip_for(False), recipe.clip_skip_for(True)) == (1, 0)


def test_what_a_reader_assumes_where_nothing_is_said() -> None:
    recipe = recipe_of_parameters("a\nSteps: 20, Sampler: DDIM, Seed: 7")
    assert recipe.job.clip_skip == 0 and recipe.job.size is None
    assert "RNG 'GPU'" in " ".join(recipe.differences)


@pytest.mark.parametrize("scale", ["7,5", '"7,5"', "7.5", "07,50", "+7.5"])
def test_a_comma_before_a_fraction_is_read(scale: str) -> None:
    text = f"a\nSteps: 20.0, Sampler: Euler, CFG scale: {scale}, Seed: 7, Size: 512x768"
    text += ", Denoising strength: 0,4, Hires upscale: 1,5, CFG rescale: 0,7"
    text += ', Lora weights: "ink: 0,8, b,c: 1,2,"'
    job = recipe_of_parameters(text).job
    assert (job.guidance_scale, job.steps, job.seed, job.guidance_rescale) == (7.5, 20, 7, 0.7)
    assert job.hires == HiresSettings(768, 1152, 0.4, upscale="pixels")
    assert job.loras == (LoraSettings("ink", 0.8, 0.8, ""), LoraSettings("c", 1.2, 1.2, ""))


@pytest.mark.parametrize(
    "setting",
    ["CFG scale: 1,234,5", "Seed: 1,234", "CFG scale: high", "Steps: 20,5", "CFG rescale: 7"],
)
def test_a_number_that_is_none_is_named(setting: str) -> None:
    key, _, value = setting.partition(": ")
    text = f"a\nSampler: Euler, {setting}, Clip skip: 2, Size: 512x768"
    recipe = recipe_of_parameters(text)
    assert recipe.job.clip_skip == 1
    assert f"{key} {value!r} cannot be used" in recipe.differences


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ("Variation seed: 3", "variation seed"),
        ("Denoising strength: 0.5", "began from a picture"),
        ("Hires upscale: 2", "second pass cannot be understood"),
        ("Hires prompt: a dog", "second pass had a prompt"),
        ("RNG: NV", "RNG 'NV'"),
        ("Refiner: x", "refiner"),
        ("VAE: other", "VAE"),
        ("ControlNet 0: x", "ControlNet"),
        ("Emphasis: Ignore", "dialect 'Emphasis Ignore'"),
        ("Dialect: odd", "dialect 'odd' is not there"),
        ("My Extension: on", "'My Extension' is a setting that is not known"),
        ("Size: 1x999999", "Size '1x999999' cannot be used"),
        ("Seed: -1", "Seed '-1' cannot be used"),
        ("Steps: 9" + "9" * 5000, "Steps '9999"),
    ],
)
def test_what_cannot_match_is_named(added, said) -> None:
    recipe = recipe_of_parameters(f"{WEB_UI}, {added}")
    assert said in " ".join(recipe.differences)
    assert all(len(why) < 200 for why in recipe.differences)


@pytest.mark.parametrize(
    ("added", "hires", "said"),
    [
        ("Hires upscale: 2", HiresSettings(1024, 1536, 0.4), "upscaler ''"),
        ("Hires upscale: 1.3, Hires upscaler: Lanczos", HiresSettings(664, 992, 0.4), ""),
        (
            "Hires resize: 600x800, Hires steps: 9, Hires upscaler: Latent (nearest)",
            HiresSettings(600, 800, 0.4, 9, "latents"),
            "upscaler 'Latent (nearest)'",
        ),
        ("Hires upscale: 2, Hires steps: 0, Hires upscaler: ESRGAN_4x", None, "'ESRGAN_4x'"),
    ],
)
def test_the_second_pass_of_the_web_ui(added, hires, said) -> None:
    recipe = recipe_of_parameters(f"{WEB_UI}, Denoising strength: 0.4, {added}")
    assert recipe.job.hires == (hires or HiresSettings(1024, 1536, 0.4))
    assert said in " ".join(recipe.differences) and bool(said) == bool(recipe.differences)


def test_ensd_counts_only_where_steps_draw_noise() -> None:
    assert not recipe_of_parameters(f"{WEB_UI}, ENSD: 31337").differences
    moved = WEB_UI.replace("DPM++ 2M, Schedule type: Karras", "Euler a")
    assert "ENSD" in " ".join(recipe_of_parameters(f"{moved}, ENSD: 31337").differences)


def test_our_own_text_without_the_json() -> None:
    recipe = recipe_of_parameters(write_parameters(SETTINGS))
    assert recipe.origin == "sdcore" and not recipe.differences
    for name in ("prompt", "negative_prompt", "seed", "steps", "scheduler", "clip_skip", "dialect"):
        assert getattr(recipe.job, name) == getattr(SETTINGS.job, name), name


def test_random_lines_are_read_or_refused_and_in_no_time() -> None:
    rng = random.Random(20)
    bits = ["Steps: ", "Seed: ", "Size: ", "8x8", "1", ", ", ":", '"', "\\", "\n", "-", "/", " "]
    bits += ["Negative prompt:", "Model: ", "../", "\0", "苹", "Clip skip: ", "e9", "Sampler: "]
    read = 0
    for _ in range(3000):
        text = "".join(rng.choice(bits) for _ in range(rng.randrange(1, 60)))
        try:
            recipe_of_parameters(text)
            read += 1
        except ValueError as error:
            assert "settings" in str(error)
    assert read > 100
    for text in ("a" * 10**6, "a " * 10**6, 'ab: "' * 10**5, 'ab: "\\' * 10**5, "- " * 10**6):
        read_parameters(text)  # would take hours if a key were tried from each letter


def test_what_cannot_be_used_or_applied_is_said() -> None:
    listed = [
        {"type": "checkpoint", "modelName": "M"},
        {"type": "lora", "weight": 0.7, "modelName": "Ink", "modelVersionName": "v2"},
    ]
    line = f"Steps: 20, Seed: 1, CFG scale: nan, Civitai resources: {json.dumps(listed)}"
    said = recipe_of_parameters(f"a cat\n{line}").differences
    assert "CFG scale 'nan' cannot be used" in said
    assert "LoRA 'Ink v2' of Civitai, weight 0.7, is not applied" in said
