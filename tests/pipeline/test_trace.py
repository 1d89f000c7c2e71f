"""A diffusers pipeline traced: the same heatmaps, edits and regions as from ours, nothing left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    HeunDiscreteScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.models.attention_processor import AttnProcessor, IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection

from sdcore import (
    AttendAndExcite,
    EditSettings,
    Job,
    Noise,
    PromptEdit,
    Region,
    Regions,
    Reweight,
    TextToImage,
    WordHeatmaps,
    chain,
    trace,
)
from sdcore.errors import UsageError

PIPELINES = {
    "sd_folder": StableDiffusionPipeline,
    "sd2_folder": StableDiffusionPipeline,
    "sdxl_folder": StableDiffusionXLPipeline,
}
PROMPT = "a red apple on a blue table"
HOW: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 5.0, "output_type": "np"}


def load(kind: Any, folder: Path, **how: Any) -> Any:
    pipe = kind.from_pretrained(folder, **how)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    return pipe


def noise(pipe: Any, images: int = 1, width: int = 8) -> torch.Tensor:
    one = torch.randn(1, 4, 8, width, generator=torch.Generator().manual_seed(5))
    return one.repeat(images, 1, 1, 1)


def hooks(pipe: Any) -> list[Any]:
    modules = list(pipe.unet.modules())
    return [
        [m for m in modules if m._forward_pre_hooks or m._forward_hooks],
        vars(pipe).get("encode_prompt"),
        vars(pipe.scheduler).get("step"),
        torch.overrides._get_current_function_mode_stack(),
    ]


CLEAN = [[], None, None, []]


@pytest.mark.parametrize("layout", PIPELINES)
def test_heatmaps_are_those_of_our_own_pipeline(layout: str, request: Any) -> None:
    folder: Path = request.getfixturevalue(layout)
    pipe = load(PIPELINES[layout], folder)
    start = noise(pipe, width=12)
    how = {"negative_prompt": "bad", "latents": start, "width": 96, "height": 64, **HOW}
    plain = pipe(PROMPT, **how).images
    with trace(pipe) as t:
        seen = pipe(PROMPT, **how).images
    assert (plain == seen).all()
    assert t.steps == 3
    ours = TextToImage.from_pretrained(folder)
    expected = WordHeatmaps([tokenizer(PROMPT) for tokenizer, _ in ours.readers])
    job = Job(
        PROMPT,
        "bad",
        seed=0,
        steps=3,
        guidance_scale=5.0,
        scheduler="ddim",
        source=Noise(start[0]),
    )
    ours.paint(job, expected)
    got = t.heatmaps.maps()
    assert got.std() > 0
    assert torch.allclose(got, expected.maps(), atol=1e-5, rtol=1e-4)
    assert t.heatmaps.of("red apple", size=(8, 12)).shape == (8, 12)


def test_several_prompts_and_images_of_each(sd_folder: Path) -> None:
    pipe = load(StableDiffusionPipeline, sd_folder)
    prompts = ["a fox", "a blue cat in the snow"]
    with trace(pipe) as t:
        pipe(prompts, num_images_per_prompt=2, latents=noise(pipe, 4), **HOW)
    assert t.heatmaps.images == 4
    assert torch.allclose(t.heatmaps.of("cat", image=2), t.heatmaps.of("cat", image=3), atol=1e-6)
    with pytest.raises(UsageError, match="cat"):
        t.heatmaps.of("cat", image=0)


def test_without_guidance_there_are_no_negative_rows(sd_folder: Path) -> None:
    pipe = load(StableDiffusionPipeline, sd_folder)
    with trace(pipe) as t:
        pipe(PROMPT, latents=noise(pipe), num_inference_steps=2, guidance_scale=1.0)
    assert torch.allclose(t.heatmaps.maps().sum(dim=0), torch.ones(8, 8), atol=1e-4)


@pytest.mark.parametrize("blend", [(), ("cat",)])
def test_an_edit_is_that_of_our_own_pipeline(sd_folder: Path, blend: tuple[str, ...]) -> None:
    pipe = load(StableDiffusionPipeline, sd_folder)
    prompts, start = ["a fox on grass", "a cat on grass"], noise(pipe, 2)
    settings = EditSettings(blend=blend)
    with trace(pipe) as t:
        t.control = PromptEdit(t.tokens(prompts), settings)
        images = pipe(prompts, latents=start, **HOW).images
    free = pipe(prompts, latents=start, **HOW).images
    assert np.abs(images[0] - free[0]).max() < 1e-6
    assert np.abs(images[1] - free[1]).max() > 0.01
    ours = TextToImage.from_pretrained(sd_folder)
    how = {"steps": 3, "guidance_scale": 5.0, "scheduler": "ddim", "source": Noise(start[0])}
    jobs = [Job(prompt, seed=0, **how) for prompt in prompts]
    expected = ours.paint(jobs, PromptEdit(ours.tokenizer(prompts), settings)).images
    for got, wanted in zip(images, expected, strict=True):
        assert np.abs(got * 255 - np.asarray(wanted)).max() <= 1


@pytest.mark.parametrize("layout", ["sd_folder", "sdxl_folder"])
def test_regions_are_those_of_our_own_pipeline(layout: str, request: Any) -> None:
    folder: Path = request.getfixturevalue(layout)
    pipe, start = load(PIPELINES[layout], folder), noise(None)
    made = [Region("a fox", (0, 0, 0.5, 1)), Region("a red apple", (0.5, 0, 1, 1))]
    regions = Regions("a meadow", made, negative_prompt="bad")
    with trace(pipe, regions) as t:
        images = pipe(**t.prompt_of(regions), latents=start, **HOW).images
    ours = TextToImage.from_pretrained(folder)
    again = Regions("a meadow", made, negative_prompt="bad")
    job = Job(
        again.prompt,
        again.negative_prompt,
        seed=0,
        dialect="a1111",
        steps=3,
        guidance_scale=5.0,
        scheduler="ddim",
        source=Noise(start[0]),
    )
    expected = np.asarray(ours.paint(job, again).images[0])
    assert np.abs(images[0] * 255 - expected).max() <= 1
    assert t.heatmaps.of("apple").max() > 0


def test_its_own_features_go_on(sd_folder: Path) -> None:
    """A LoRA at half its weight, FreeU and sliced attention are in the picture as before."""
    from peft import LoraConfig

    pipe = load(StableDiffusionPipeline, sd_folder)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    how = {**HOW, "cross_attention_kwargs": {"scale": 0.5}, "latents": noise(pipe)}
    plain = pipe(PROMPT, **how).images
    pipe.enable_attention_slicing(1)
    processors = dict(pipe.unet.attn_processors)
    with trace(pipe) as t:
        seen = pipe(PROMPT, **how).images
    assert np.abs(plain - seen).max() < 1e-5
    assert dict(pipe.unet.attn_processors) == processors
    assert t.heatmaps.of("apple").max() > 0
    with trace(pipe, Reweight(t.tokens(PROMPT), {"apple": 3.0})):
        steered = pipe(PROMPT, **how).images
    assert np.abs(steered - plain).max() > 1e-3


def test_an_ip_adapter_is_at_work(sd_folder: Path) -> None:
    pipe = load(StableDiffusionPipeline, sd_folder)
    unet, width = pipe.unet, pipe.unet.config.cross_attention_dim
    torch.manual_seed(0)
    processors = dict(unet.attn_processors)
    for name in [name for name in processors if name.endswith("attn2.processor")]:
        inner = unet.get_submodule(name.removesuffix(".processor")).to_q.in_features
        processors[name] = IPAdapterAttnProcessor2_0(inner, width, num_tokens=(4,))
    unet.set_attn_processor(processors)
    picture = ImageProjection(16, width, num_image_text_embeds=4)
    unet.encoder_hid_proj = MultiIPAdapterImageProjection([picture])
    unet.config.encoder_hid_dim_type = "ip_image_proj"
    how = {**HOW, "latents": noise(pipe), "ip_adapter_image_embeds": [torch.randn(2, 1, 16)]}
    plain = pipe(PROMPT, **how).images
    with trace(pipe) as t:
        assert (pipe(PROMPT, **how).images == plain).all()
        pipe.set_ip_adapter_scale(0.2)
        assert np.abs(pipe(PROMPT, **how).images - plain).max() > 1e-3
    assert torch.allclose(t.heatmaps.maps().sum(dim=0), torch.ones(8, 8), atol=1e-4)


def test_other_pipelines(sd_folder: Path) -> None:
    parts = load(StableDiffusionPipeline, sd_folder).components
    image = torch.rand(1, 3, 64, 64)
    again = StableDiffusionImg2ImgPipeline(**parts)
    with trace(again) as t:
        again(PROMPT, image=image, strength=0.7, **{**HOW, "num_inference_steps": 6})
    assert t.steps == 4
    assert t.heatmaps.of("apple").max() > 0
    net = ControlNetModel.from_unet(parts["unet"])
    controlled = StableDiffusionControlNetPipeline(**parts, controlnet=net)
    with trace(controlled) as t:
        controlled(PROMPT, image=image, **HOW)
    assert t.heatmaps.of("apple").max() > 0
    perturbed = StableDiffusionPAGPipeline(**parts, pag_applied_layers="mid")
    with trace(perturbed) as t:
        perturbed(PROMPT, pag_scale=3.0, **HOW)
    assert torch.allclose(t.heatmaps.maps().sum(dim=0), torch.ones(8, 8), atol=1e-4)


def test_two_runs_and_a_solver_of_second_order(sd_folder: Path) -> None:
    pipe = load(StableDiffusionPipeline, sd_folder)
    with trace(pipe, chain(Reweight(_tokens(pipe, "a fox"), {"fox": 2.0}))) as t:
        pipe("a fox", **HOW)
        first = t.heatmaps
        pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
        pipe("a fox", **HOW)
    assert t.heatmaps is not first
    assert t.steps == 5
    assert hooks(pipe) == CLEAN


def _tokens(pipe: Any, prompt: str) -> Any:
    with trace(pipe) as t:
        return t.tokens(prompt)


@pytest.mark.parametrize("where", ["layer", "step", "block", "interrupt"])
def test_nothing_is_left_after_an_error(sd_folder: Path, where: str) -> None:
    pipe = load(StableDiffusionPipeline, sd_folder)
    pipe.unet.set_attn_processor(AttnProcessor())
    how = {**HOW, "latents": noise(pipe)}
    plain = pipe(PROMPT, **how).images
    processors = dict(pipe.unet.attn_processors)
    error = KeyboardInterrupt if where == "interrupt" else RuntimeError

    def broken(*_: Any) -> Any:
        raise error("broken")

    with pytest.raises(error, match="broken"), trace(pipe, None if where == "step" else broken):
        if where == "block":
            raise error("broken")
        pipe(PROMPT, callback_on_step_end=broken, **how)
    assert hooks(pipe) == CLEAN
    assert dict(pipe.unet.attn_processors) == processors
    assert (pipe(PROMPT, **how).images == plain).all()


def test_its_weights_are_its_own_and_stay_where_they_are(sd_folder: Path) -> None:
    pipe = load(StableDiffusionPipeline, sd_folder)
    before = {name: value.data_ptr() for name, value in pipe.unet.state_dict().items()}
    with trace(pipe):
        pipe(PROMPT, **HOW)
    assert {n: v.data_ptr() for n, v in pipe.unet.state_dict().items()} == before


def test_what_cannot_be_traced_says_so(sd_folder: Path) -> None:
    pipe = load(StableDiffusionPipeline, sd_folder)
    with pytest.raises(UsageError, match="takes control= itself"), trace(object()):
        pass
    with trace(pipe) as t:
        with pytest.raises(UsageError, match="traced already"), trace(pipe):
            pass
        with pytest.raises(UsageError, match="No prompt has been painted"):
            _ = t.heatmaps
        embeds = pipe.encode_prompt("a fox", "cpu", 1, True, "bad")
        pipe(prompt_embeds=embeds[0], negative_prompt_embeds=embeds[1], **HOW)
        with pytest.raises(UsageError, match="prompt_embeds"):
            _ = t.heatmaps
    excite = AttendAndExcite(t.tokens(PROMPT), ["apple"])
    with pytest.raises(UsageError, match="before_step"), trace(pipe, excite):
        pipe(PROMPT, **HOW)
    assert hooks(pipe) == CLEAN


def test_a_learned_word_of_two_vectors(sd_folder: Path) -> None:
    pipe = load(StableDiffusionPipeline, sd_folder)
    width = pipe.text_encoder.get_input_embeddings().weight.shape[1]
    pipe.load_textual_inversion({"<thing>": torch.randn(2, width)}, token="<thing>")
    with trace(pipe) as t:
        pipe("a <thing> on grass", **HOW)
    expected = pipe.tokenizer("a <thing> <thing>_1 on grass", padding="max_length").input_ids
    assert t.tokens("a <thing> on grass")[0].ids[0].tolist() == expected
    assert t.heatmaps.of("<thing>").max() > 0
