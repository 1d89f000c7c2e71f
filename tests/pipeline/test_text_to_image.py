"""TextToImage: seeds, defaults, controls, refusals and non-finite numbers, on a tiny model."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image

from sdcore import TextToImage
from sdcore.control.run_control import RunControl
from sdcore.diffusion.methods import STOCHASTIC
from sdcore.diffusion.steps import Step
from sdcore.errors import FileError, NonFiniteError, UsageError
from tests.painting import paint
from tests.tiny import told_the_scale

FAST = {"steps": 3, "guidance_scale": 4.0}


@pytest.fixture(scope="module")
def pipe(sd_folder: Path) -> TextToImage:
    return TextToImage.from_pretrained(sd_folder)


def pixels(image: Any) -> np.ndarray:
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("scheduler", ["ddim", *sorted(STOCHASTIC)])
def test_image_i_is_the_image_of_seed_plus_i(pipe, scheduler) -> None:
    how = {**FAST, "scheduler": scheduler}
    batch = pipe(["a red apple", "the fox"], seed=7, images_per_prompt=2, **how)
    assert batch.seeds == [7, 8, 9, 10]
    for i in (1, 3):
        alone = pipe(batch.settings[i].job.prompt, seed=7 + i, **how)
        assert np.abs(pixels(alone.images[0]) - pixels(batch.images[i])).max() <= 1
    assert np.abs(pixels(batch.images[0]) - pixels(batch.images[1])).max() > 30


def test_the_same_seed_gives_the_same_bytes_and_none_a_new_one(pipe) -> None:
    first, again = pipe("a cat", seed=3, **FAST), pipe("a cat", seed=3, **FAST)
    assert torch.equal(first.latents, again.latents)
    assert first.images[0].tobytes() == again.images[0].tobytes()
    random = pipe("a cat", **FAST)
    assert random.seeds != pipe("a cat", **FAST).seeds
    repeated = pipe("a cat", seed=random.seeds[0], **FAST)
    assert torch.equal(repeated.latents, random.latents)


def test_the_size_follows_the_model_the_arguments_and_the_latents(pipe) -> None:
    assert pipe("a cat", steps=1).images[0].size == (64, 64)
    assert pipe("a cat", steps=1, width=40, height=72).images[0].size == (40, 72)
    noise = torch.randn(1, 4, 6, 3)
    assert paint(pipe, "a cat", steps=1, latents=noise).images[0].size == (24, 48)


def test_a_folder_may_say_how_it_is_best_run(sd_folder, tmp_path) -> None:
    folder = shutil.copytree(sd_folder, tmp_path / "fruit")
    defaults = {"steps": 2, "guidance_scale": 3.0, "scheduler": "Euler a", "width": 32}
    (folder / "sampling.json").write_text(json.dumps(defaults))
    settings = TextToImage.from_pretrained(folder)("a cat", seed=1).settings[0]
    assert (settings.job.steps, settings.job.guidance_scale, settings.sampler) == (
        2,
        3.0,
        "euler a",
    )
    assert (*settings.job.size.width_height, settings.model) == (32, 64, "fruit")
    wrong = ({"step": 2}, {"steps": "2"}, {"steps": 2.5}, {"scheduler": 1}, {"width": None})
    ranges = ({"steps": 0}, {"steps": 10**30}, {"width": -64}, {"height": 65}, {"strength": 7})
    ranges += ({"guidance_scale": 1e300}, {"guidance_rescale": 5}, {"strength": None})
    for bad in (*wrong, *ranges, {"scheduler": "eular"}):
        (folder / "sampling.json").write_text(json.dumps(bad))
        with pytest.raises(FileError, match=next(iter(bad))):
            TextToImage.from_pretrained(folder)


def state_of(pipe: TextToImage) -> dict[str, Any]:
    """Weights, attributes, hooks and methods of every module: all that a run could leave behind."""
    state: dict[str, Any] = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    for name, module in pipe.unet.named_modules():
        kept = {k: v for k, v in vars(module).items() if k not in ("_parameters", "_modules")}
        state[name + "()"] = (type(module).forward, repr(kept))
    return state


class Louder(RunControl):
    """Doubles what cross-attention gives, and keeps what it saw."""

    def __init__(self, fail: bool = False) -> None:
        self.rows: set[int] = set()
        self.steps: list[Step] = []
        self.fail = fail

    def at(self, step: Step):
        self.steps.append(step)
        return self.double if step.progress < 0.5 else None

    def double(self, site, grid, q, k, v, attend):
        self.rows.add(len(q))
        if self.fail:
            raise RuntimeError("stopped by the control")
        return attend(q, k, 2 * v) if site.kind == "cross" else attend(q, k, v)


def test_a_control_sees_conditional_rows_and_is_asked_at_each_step(pipe) -> None:
    control, seen = Louder(), []
    before = state_of(pipe)
    plain = pipe(["a cat", "a dog"], seed=1, scheduler="ddim", **FAST)
    louder = paint(
        pipe,
        ["a cat", "a dog"],
        seed=1,
        scheduler="ddim",
        control=control,
        on_step=lambda step, latents: seen.append((step, latents.shape)),
        **FAST,
    )
    assert control.rows == {2}
    assert [step.index for step in control.steps] == [0, 1, 2]
    assert [step for step, _ in seen] == control.steps
    assert not torch.allclose(louder.latents, plain.latents, atol=1e-2)
    after = state_of(pipe)
    assert before.keys() == after.keys()
    for name, value in before.items():
        same = torch.equal(value, after[name]) if torch.is_tensor(value) else value == after[name]
        assert same, name


def test_a_control_that_raises_leaves_the_model_as_it_was(pipe) -> None:
    before = pipe("a cat", seed=1, **FAST).latents
    with pytest.raises(RuntimeError, match="stopped by the control"):
        pipe("a cat", seed=1, control=Louder(fail=True), **FAST)
    assert torch.equal(pipe("a cat", seed=1, **FAST).latents, before)


def test_an_idle_control_changes_nothing(pipe) -> None:
    def idle(site, grid, q, k, v, attend):
        return attend(q, k, v)

    plain = pipe("a cat", seed=1, **FAST).latents
    torch.testing.assert_close(pipe("a cat", seed=1, control=idle, **FAST).latents, plain)


@pytest.mark.parametrize(
    ("prompt", "arguments", "message"),
    [
        ([], {}, "empty"),
        (None, {}, "not text"),
        (["a", 3], {}, "not text"),
        ("a", {"negative_prompt": ["b", "c"]}, "2 negative prompts for 1"),
        ("a", {"width": 60}, "width"),
        ("a", {"height": 0}, "8 or more"),
        ("a", {"width": 64.0}, "width"),
        ("a", {"steps": 0}, "steps"),
        ("a", {"steps": 1001}, "steps"),
        ("a", {"scheduler": "eular"}, "eular"),
        ("a", {"guidance_scale": float("inf")}, "guidance_scale"),
        ("a", {"guidance_scale": "7"}, "guidance_scale"),
        ("a", {"guidance_rescale": -1.0}, "guidance_rescale"),
        ("a", {"images_per_prompt": 0}, "images_per_prompt"),
        ("a", {"seed": -1}, "seed"),
        ("a", {"seed": 1.5}, "seed"),
        ("a", {"seed": 2**63}, "seed"),
        ("a", {"clip_skip": 9}, "clip_skip"),
        ("a", {"clip_skip": "1"}, "clip_skip"),
        ("a", {"seed": True}, "seed"),
        ("a", {"seed": np.float64(1)}, "seed"),
        ("a", {"latents": np.zeros((1, 4, 8, 8))}, "ndarray"),
        ("a", {"latents": torch.zeros(2, 4, 8, 8)}, "latents"),
        ("a", {"latents": torch.zeros(4, 8, 8)}, "latents"),
    ],
)
def test_bad_arguments_are_refused_in_three_parts(pipe, prompt, arguments, message) -> None:
    with pytest.raises(UsageError, match=message) as error:
        paint(pipe, prompt, **{"steps": 1, **arguments})
    assert error.value.why and error.value.hint


def test_a_prompt_that_is_too_long_is_cut_with_a_warning(pipe) -> None:
    with pytest.warns(UserWarning, match="tree"):
        pipe("a red apple " * 30 + "on the tree", steps=1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("part", "weight", "stage"),
    [
        ("text_encoder", "text_model.final_layer_norm.bias", "text encoder"),
        ("unet", "down_blocks.0.resnets.0.conv1.bias", "UNet gave NaN or infinity.*step 1 of"),
        ("unet", "conv_out.bias", "UNet gave NaN or infinity.*step 1 of"),
        ("autoencoder", "encoder.conv_in.bias", "autoencoder's encoder"),
        ("autoencoder", "decoder.conv_out.bias", "autoencoder's decoder"),
    ],
)
def test_non_finite_numbers_name_the_stage(sd_folder, part, weight, stage, value) -> None:
    broken = TextToImage.from_pretrained(sd_folder)
    getattr(broken, part).get_parameter(weight).data.fill_(value)
    with pytest.raises(NonFiniteError) as error:
        broken("a cat", image=Image.new("RGB", (64, 64), "red"), strength=0.7, **FAST)
    assert re.search(stage, str(error.value), re.DOTALL)


def test_a_scheduler_that_divides_by_zero_is_named(sd_folder) -> None:
    broken = TextToImage.from_pretrained(sd_folder)
    betas = [*np.linspace(1e-4, 0.02, 999), 1.0]  # nothing is left of the picture at the last level
    broken.scheduler = DDIMScheduler(
        trained_betas=betas, timestep_spacing="trailing", clip_sample=False
    )
    with pytest.raises(NonFiniteError, match="scheduler gave NaN or infinity") as error:
        broken("a cat", **FAST)
    assert "step 1 of 3, time 999" in error.value.why


def test_numbers_may_be_numpys(pipe) -> None:
    plain = pipe("a cat", seed=3, steps=2, width=64, height=40)
    of_numpy = paint(
        pipe,
        "a cat",
        seed=np.int64(3),
        steps=np.int32(2),
        width=np.uint16(64),
        height=np.int8(40),
        images_per_prompt=np.int64(1),
        clip_skip=np.int64(0),
    )
    assert torch.equal(plain.latents, of_numpy.latents)
    assert of_numpy.settings == plain.settings and type(of_numpy.seeds[0]) is int


def test_without_guidance_controls_see_every_row_and_negative_prompts_are_warned_of(pipe) -> None:
    control = Louder()
    how = {"seed": 1, "steps": 2, "guidance_scale": 1.0, "scheduler": "ddim"}
    louder = pipe(["a cat", "a dog"], control=control, **how)
    assert control.rows == {2}
    assert not torch.allclose(louder.latents, pipe(["a cat", "a dog"], **how).latents, atol=1e-2)
    with pytest.warns(UserWarning, match="negative prompt has no effect"):
        pipe("a cat", negative_prompt="bad", **how)


def test_a_model_that_is_told_the_guidance_scale_runs_its_own_rows_alone(
    sd_folder, tmp_path
) -> None:
    pipe = TextToImage.from_pretrained(told_the_scale(sd_folder, tmp_path / "lcm"))
    control, how = Louder(), {"steps": 2, "seed": 1, "scheduler": "lcm"}
    calm = pipe("a cat", guidance_scale=1.0, control=control, **how)
    strong = pipe("a cat", guidance_scale=8.0, control=control, **how)
    assert control.rows == {1}
    assert not torch.allclose(calm.latents, strong.latents, atol=1e-3)


def test_a_zero_terminal_snr_model_is_run_with_guidance_rescale(sd2_folder, tmp_path) -> None:
    folder = shutil.copytree(sd2_folder, tmp_path / "zero")
    path = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    changes = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    path.write_text(json.dumps({**config, **changes}))
    zero = TextToImage.from_pretrained(folder)
    assert zero("a cat", seed=1, **FAST).settings[0].job.guidance_rescale == 0.7
    plain = paint(zero, "a cat", seed=1, guidance_rescale=0.0, **FAST)
    assert plain.settings[0].job.guidance_rescale == 0.0


def test_half_precision_paints_nearly_the_same(pipe, sd_folder) -> None:
    half = TextToImage.from_pretrained(sd_folder, dtype=torch.bfloat16)
    clouds = Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 60).convert("RGB")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 0, 64, 48))
    for given in ({}, {"image": clouds, "strength": 0.7}, {"image": clouds, "mask": mask}):
        got = pixels(half("a cat", seed=1, **given, **FAST).images[0])
        expected = pixels(pipe("a cat", seed=1, **given, **FAST).images[0])
        assert np.abs(got - expected).mean() < 4


def test_folders_that_cannot_be_run_are_refused(sd_folder, tmp_path) -> None:
    with pytest.raises(FileError, match="nowhere"):
        TextToImage.from_pretrained(tmp_path / "nowhere")
    folder = shutil.copytree(sd_folder, tmp_path / "copy")
    index = json.loads((folder / "model_index.json").read_text())
    for part, entry in (
        ("unet", None),
        ("unet", ["diffusers", "FluxTransformer2DModel"]),
        ("image_encoder", ["transformers", "CLIPVisionModelWithProjection"]),
    ):
        changed = {k: v for k, v in index.items() if k != part} | ({part: entry} if entry else {})
        (folder / "model_index.json").write_text(json.dumps(changed))
        with pytest.raises(FileError, match=part):
            TextToImage.from_pretrained(folder)


@pytest.mark.parametrize("prompts", [None, 3, [None]])
def test_the_tokenizer_refuses_what_is_not_text(pipe, prompts) -> None:
    with pytest.raises(UsageError, match="text"):
        pipe.tokenizer(prompts)


def test_sdxl_has_both_readers_as_parts(sdxl_folder) -> None:
    pipe = TextToImage.from_pretrained(sdxl_folder)
    assert pipe.tokenizer_2 is not None and pipe.text_encoder_2 is not None
    assert pipe.defaults.zeros_for_no_prompt and pipe.defaults.guidance_scale == 5.0


def test_a_size_far_from_the_models_is_warned_of(pipe) -> None:
    with pytest.warns(UserWarning, match="128x128 is far"):  # twice as wide and high
        pipe("a cat", width=128, height=128, steps=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*far from")
        pipe("a cat", width=128, height=64, steps=1)
    photo = Image.new("RGB", (400, 200), "red")
    with pytest.warns(UserWarning, match="it is painted at 88x48"):
        assert pipe("a cat", image=photo, steps=2, strength=0.5).images[0].size == (88, 48)
    assert pipe("a cat", image=photo, width=64, height=32, steps=2).images[0].size == (64, 32)
