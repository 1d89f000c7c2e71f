"""The web UI's published client, unmodified."""

from __future__ import annotations

import base64
import io
import threading
import time
from dataclasses import replace

import pytest
import webuiapi
from PIL import Image

from sdcore import Job, Size, TextToImage
from sdcore.job.adapters import HiresSettings
from sdcore.job.sources import Picture


@pytest.fixture(scope="module")
def pipe(sd_folder) -> TextToImage:
    return TextToImage.from_pretrained(sd_folder)


@pytest.fixture(scope="module")
def api(live) -> webuiapi.WebUIApi:
    return webuiapi.WebUIApi(host="127.0.0.1", port=live.port, sampler="Euler", steps=3)


JOB = Job(
    "a (red:1.4) fox", "bad", seed=7, steps=3, guidance_scale=6.0, size=Size(64, 48),
    scheduler="euler normal", dialect="a1111",
)  # fmt: skip
HOW = {"prompt": JOB.prompt, "negative_prompt": "bad", "seed": 7, "cfg_scale": 6, "width": 64}


def test_txt2img_is_the_picture_of_its_job(api, pipe) -> None:
    result = api.txt2img(**HOW, height=48, batch_size=2, n_iter=2)
    assert len(result.images) == 4
    for number, image in enumerate(result.images):
        expected = pipe.paint(replace(JOB, seed=7 + number)).images[0]
        assert image.tobytes() == expected.tobytes()
    assert result.info["all_seeds"] == [7, 8, 9, 10] and result.info["not_the_same"] == []
    assert "Sampler: Euler" in result.info["infotexts"][0]
    said = api.png_info(result.images[0]).info
    assert said == "" or "Euler" in said  # Pillow writes no texts of its own accord


def test_without_a_size_the_picture_has_the_models_own(ask, pipe) -> None:
    asked = {"prompt": "a fox", "steps": 1, "seed": 1, "enable_hr": False}
    said = ask.post("/sdapi/v1/txt2img", json=asked).json()
    image = Image.open(io.BytesIO(base64.b64decode(said["images"][0])))
    assert image.size == pipe.native_size.width_height != (512, 512)


def test_hires_clip_skip_and_what_is_not_the_same(api, pipe) -> None:
    result = api.txt2img(
        **HOW, height=48, enable_hr=True, hr_scale=2, denoising_strength=0.5, tiling=True,
        hr_upscaler="Lanczos", override_settings={"CLIP_stop_at_last_layers": 2, "eta": 1},
    )  # fmt: skip
    hires = HiresSettings(128, 96, 0.5)
    expected = pipe.paint(replace(JOB, hires=hires, clip_skip=1)).images[0]
    assert result.image.tobytes() == expected.tobytes()
    assert result.info["not_the_same"] == ["tiling", "eta"]


def test_img2img_with_and_without_a_mask(api, pipe) -> None:
    image = Image.effect_noise((64, 48), 60).convert("RGB")
    plain = api.img2img([image], **HOW, height=48, denoising_strength=0.6)
    job = replace(JOB, source=Picture(image, 0.6))
    assert plain.image.tobytes() == pipe.paint(job).images[0].tobytes()
    mask = Image.new("L", image.size)
    mask.paste(255, (8, 8, 40, 40))
    how = {"denoising_strength": 0.6, "mask_blur": 0, "inpainting_fill": 1}
    masked = api.img2img([image], mask_image=mask, **HOW, height=48, **how, inpaint_full_res=False)
    job = replace(JOB, source=Picture(image, 0.6, mask))
    assert masked.image.tobytes() == pipe.paint(job).images[0].tobytes()
    part = api.img2img(
        [image], mask_image=mask, **HOW, height=48, **how, inpaint_full_res_padding=8,
        inpainting_mask_invert=1,
    )  # fmt: skip
    inverted = Image.eval(mask, lambda level: 255 - level)
    job = replace(JOB, source=Picture(image, 0.6, inverted, only_masked=8))
    assert part.image.tobytes() == pipe.paint(job).images[0].tobytes()


def test_heatmaps_come_through_alwayson_scripts(api) -> None:
    scripts = {"sdcore heatmaps": {"args": []}}
    result = api.txt2img(**HOW, height=48, alwayson_scripts=scripts)
    (words,) = result.info["sdcore heatmaps"]
    assert "fox" in [word["word"] for word in words]


def test_lists_and_models(api) -> None:
    assert {"Euler", "DPM++ 2M"} <= set(api.util_get_sampler_names())
    assert {"automatic", "karras", "sgm_uniform"} <= set(api.util_get_scheduler_names())
    models = api.util_get_model_names()
    first = api.util_get_current_model()
    assert {first, "second"} <= set(models)
    api.util_set_model("second")
    assert api.util_get_current_model() == "second"
    api.set_options({"sd_model_checkpoint": first})
    assert api.get_options()["sd_model_checkpoint"] == first
    for empty in (api.get_hypernetworks, api.get_sd_vae, api.get_face_restorers, api.get_loras):
        assert empty() == []
    assert api.get_embeddings()["loaded"] == {}
    assert api.get_memory()["ram"]["free"] > 0
    for sampler in api.util_get_sampler_names():  # each can be asked for
        if sampler in ("DDIM", "LCM", "Euler a"):
            assert api.txt2img(prompt="a", width=64, height=64, steps=2, sampler_name=sampler)
    with pytest.raises(RuntimeError, match="script"):
        api.txt2img(prompt="a", script_name="x/y/z plot")
    with pytest.raises(RuntimeError, match="5000"):
        api.txt2img(prompt="a", steps=5000)


def test_progress_and_interrupt(api) -> None:
    assert api.get_progress()["progress"] == 0
    found: list[webuiapi.WebUIApiResult] = []
    how = {"prompt": "a cat", "width": 64, "height": 64, "steps": 60, "n_iter": 8}
    asking = threading.Thread(target=lambda: found.append(api.txt2img(**how)))
    asking.start()
    while api.get_progress()["state"]["job_no"] < 1:
        time.sleep(0.01)
    said = api.get_progress()
    assert 0 < said["progress"] < 1 and said["state"]["sampling_steps"] == 60
    api.interrupt()
    asking.join(60)
    assert 1 <= len(found[0].images) < 8
    api.util_wait_for_ready(0.01)
