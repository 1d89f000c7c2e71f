"""Whole models in one file: what they are recognised as, and what is refused."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sdcore import TextToImage
from sdcore.checkpoint.clip_tokenizer import clip_tokenizer
from sdcore.checkpoint.families import FOLDER, describe, recognise
from sdcore.checkpoint.ldm_names import table
from sdcore.checkpoint.parts import find_components
from sdcore.checkpoint.single_file import read_single_file, save_single_file
from sdcore.diffusion.schedulers import make_scheduler
from sdcore.errors import FileError, NonFiniteError, UsageError
from sdcore.files.component import build_without_memory
from sdcore.files.header import WeightFile, open_header
from sdcore.image.autoencoder import Autoencoder
from sdcore.text.encoder import CLIPTextEncoder
from sdcore.unet.unet import UNet
from tests.tiny import write_edm

Shapes = dict[str, tuple[int, ...]]
CLASSES = {
    "unet": UNet,
    "vae": Autoencoder,
    "text_encoder": CLIPTextEncoder,
    "text_encoder_2": CLIPTextEncoder,
}
FIRST_CONV = "model.diffusion_model.input_blocks.0.0.weight"
TELLING = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"


@pytest.fixture(scope="module")
def family_shapes() -> dict[str, Shapes]:
    """What a file of each family holds, by our table; the reference tests check the table."""
    return {family: shapes_of(family) for family in ("sd1", "sd2_base", "sdxl", "sdxl_refiner")}


def shapes_of(family: str) -> Shapes:
    models: dict[str, Any] = {
        part: build_without_memory(cls, FOLDER / family / part / "config.json")
        for part, cls in CLASSES.items()
        if (FOLDER / family / part).is_dir()
    }
    shapes: Shapes = {}
    for part, entries in table(models).items():
        state = models[part].state_dict()
        for entry in entries:
            whole = entry.to_file([state[name] for name in entry.parameters])
            shapes[entry.name] = tuple(whole.shape)
    return shapes


def write_header(
    path: Path, shapes: Mapping[str, tuple[int, ...]], metadata: dict[str, str] | None = None
) -> WeightFile:
    """A sound file of these tensors, all zeros, that takes no room on the disk."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return open_header(path)


# --- recognising ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "tensors", "example", "shape"),
    [
        ("sd1", 1130, "cond_stage_model.transformer.text_model.final_layer_norm.weight", (768,)),
        (
            "sdxl",
            2513,
            "model.diffusion_model.input_blocks.8.1.transformer_blocks.9.attn2.to_k.weight",
            (1280, 2048),
        ),
        ("sdxl_refiner", 1857, "conditioner.embedders.0.model.text_projection", (1280, 1280)),
    ],
)
def test_whole_families_are_recognised(
    family_shapes: dict[str, Shapes],
    tmp_path: Path,
    family: str,
    tensors: int,
    example: str,
    shape: tuple[int, ...],
) -> None:
    shapes = family_shapes[family]
    assert len(shapes) == tensors  # as the published files have, without what is ignored
    assert shapes[example] == shape
    found = recognise(write_header(tmp_path / "model.safetensors", shapes))
    assert (found.name, found.in_channels, found.prediction_type) == (family, 4, "epsilon")
    assert not found.zero_terminal_snr


def test_names_as_published_files_have_them(family_shapes: dict[str, Shapes]) -> None:
    """Names that diffusers' own reader would also accept in another place."""
    ways = {  # family -> where the way up doubles the grid: after attention or without it
        "sd1": ["2.1", "5.2", "8.2"],
        "sd2_base": ["2.1", "5.2", "8.2"],
        "sdxl": ["2.2", "5.2"],
        "sdxl_refiner": ["2.1", "5.2", "8.2"],
    }
    for family, places in ways.items():
        names = [name for name in family_shapes[family] if name.endswith("conv.weight")]
        up = [name for name in names if ".output_blocks." in name]
        assert up == [
            f"model.diffusion_model.output_blocks.{place}.conv.weight" for place in places
        ]


@pytest.mark.parametrize("family", ["sd1", "sd2_base", "sdxl"])
def test_nine_channels_are_inpainting(
    family_shapes: dict[str, Shapes], tmp_path: Path, family: str
) -> None:
    width = family_shapes[family][FIRST_CONV][0]
    shapes = {**family_shapes[family], FIRST_CONV: (width, 9, 3, 3)}
    found = recognise(write_header(tmp_path / "model.safetensors", shapes))
    assert (found.name, found.in_channels, found.prediction_type) == (family, 9, "epsilon")
    assert found.title.endswith("inpainting")


def test_another_family_is_named(family_shapes: dict[str, Shapes], tmp_path: Path) -> None:
    labels = "model.diffusion_model.label_emb.0.0.weight"
    unclip = {**family_shapes["sd2_base"], labels: (1280, 1536)}
    with pytest.raises(FileError, match="text width is 1024 and its label_emb 1536"):
        recognise(write_header(tmp_path / "a.safetensors", unclip))
    edits = {**family_shapes["sd1"], FIRST_CONV: (320, 8, 3, 3)}
    with pytest.raises(FileError, match=r"8 channels(.|\n)*edits by instruction"):
        recognise(write_header(tmp_path / "b.safetensors", edits))


def test_prediction_type_is_told_in_this_order(
    family_shapes: dict[str, Shapes], tmp_path: Path
) -> None:
    shapes = family_shapes["sdxl"]
    marked = {**shapes, "v_pred": (0,), "ztsnr": (0,)}
    notes = {"modelspec.prediction_type": "v"}
    stale = {"modelspec.prediction_type": "epsilon"}

    noted = recognise(write_header(tmp_path / "noted.safetensors", shapes, notes))
    assert (noted.prediction_type, noted.zero_terminal_snr) == ("v_prediction", False)
    file = write_header(tmp_path / "marked.safetensors", marked, stale)
    found = recognise(file)
    assert (found.prediction_type, found.zero_terminal_snr) == ("v_prediction", True)
    assert "v_pred" in found.said_by
    assert recognise(file, prediction_type="epsilon").prediction_type == "epsilon"
    with pytest.raises(UsageError, match="sample"):
        recognise(file, prediction_type="sample")
    unknown = write_header(
        tmp_path / "x.safetensors", shapes, {"modelspec.prediction_type": "flow"}
    )
    with pytest.raises(FileError, match="flow"):
        recognise(unknown)


def test_sd2_is_judged_by_its_weights_and_says_so(
    family_shapes: dict[str, Shapes], tmp_path: Path
) -> None:
    shapes = family_shapes["sd2_base"]
    file = write_header(tmp_path / "flat.safetensors", shapes)
    with pytest.warns(UserWarning, match="judged by its weights it is epsilon"):
        assert recognise(file).name == "sd2_base"
    first = {TELLING: shapes[TELLING], **shapes}  # its numbers begin right after the header
    wide = write_header(tmp_path / "wide.safetensors", first)
    with wide.path.open("r+b") as stream:
        stream.seek(8 + struct.unpack("<Q", stream.read(8))[0])
        stream.write(torch.linspace(-0.5, 0.5, 320).half().numpy().tobytes())
    with pytest.warns(UserWarning, match="v_prediction"):
        found = recognise(wide)
    assert (found.name, found.prediction_type) == ("sd2", "v_prediction")
    assert recognise(wide, prediction_type="epsilon").name == "sd2_base"
    assert recognise(file, prediction_type="v_prediction").name == "sd2"


UNET = {FIRST_CONV: (320, 4, 3, 3)}
KINDS: dict[str, Shapes] = {
    "a LoRA": {"lora_unet_down_blocks_0_x.lora_down.weight": (4, 320)},
    "a textual-inversion embedding": {"clip_l": (4, 768), "clip_g": (4, 1280)},
    "a ControlNet": {"control_model.input_blocks.0.0.weight": (320, 4, 3, 3)},
    "an autoencoder alone": {"encoder.down.0.block.0.norm1.weight": (128,)},
    "the vae of a diffusers folder": {"encoder.down_blocks.0.resnets.0.norm1.weight": (128,)},
    "the unet of a diffusers folder": {"down_blocks.0.resnets.0.norm1.weight": (320,)},
    "the text encoder of a diffusers folder": {"text_model.encoder.layers.0.x.bias": (768,)},
    "Flux": {"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": (8, 8), **UNET},
    "no tensor": {},
    "something unknown": {"a": (3, 3, 3)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_files_are_named(tmp_path: Path, kind: str) -> None:
    file = write_header(tmp_path / "model.safetensors", KINDS[kind])
    assert kind in describe(file)
    with pytest.raises(FileError) as caught:
        TextToImage.from_pretrained(file.path)
    assert kind in caught.value.what and str(file.path) in caught.value.what


def test_a_unet_alone_is_told_what_is_missing(tmp_path: Path) -> None:
    file = write_header(tmp_path / "pruned.safetensors", UNET)
    with pytest.raises(FileError) as caught:
        TextToImage.from_pretrained(str(file.path))
    assert "an autoencoder (first_stage_model.*)" in caught.value.why
    assert "cond_stage_model.*" in caught.value.why
    bare = {"input_blocks.0.0.weight": (320, 4, 3, 3)}
    file = write_header(tmp_path / "bare.safetensors", bare)
    assert describe(file) == "a UNet alone, without the prefix of a whole model"
    with pytest.raises(FileError, match="vae=PATH and text_encoder=PATH"):
        TextToImage.from_pretrained(file.path)
    with_vae = {**UNET, "first_stage_model.quant_conv.bias": (8,)}
    with pytest.raises(FileError) as caught:
        recognise(write_header(tmp_path / "b.safetensors", with_vae))
    assert "autoencoder" not in caught.value.why and "text encoder" in caught.value.why


def test_recognising_needs_no_torch() -> None:
    code = "import sys, sdcore.checkpoint.families; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- opening and writing -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sd2_pipe(sd2_folder: Path) -> TextToImage:
    return TextToImage.from_pretrained(sd2_folder)


@pytest.fixture(scope="module")
def sd_file(sd_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("single") / "tiny.safetensors"
    save_single_file(TextToImage.from_pretrained(sd_folder), path)
    return path


def changed(source: Path, target: Path, **changes: Tensor | None) -> Path:
    """A copy of a file with tensors added or replaced, or left out where the value is None."""
    tensors = {**load_file(source), **changes}
    save_file({name: t for name, t in tensors.items() if t is not None}, target)
    return target


def open_tiny(path: Path, folder: Path, **settings: Any) -> TextToImage:
    return TextToImage.of(read_single_file(path, config=folder, **settings))


def test_paints_what_the_folder_paints(sd_file: Path, sd_folder: Path) -> None:
    pipe = open_tiny(sd_file, sd_folder)
    assert pipe.defaults.name == "tiny"
    again = pipe("a red fox", seed=3, steps=2)
    expected = TextToImage.from_pretrained(sd_folder)("a red fox", seed=3, steps=2)
    assert torch.equal(again.latents, expected.latents)


def test_fused_and_turned_tensors_have_openclips_form(
    sd2_pipe: TextToImage, sd2_folder: Path, tmp_path: Path
) -> None:
    save_single_file(sd2_pipe, tmp_path / "a.safetensors")
    file = load_file(tmp_path / "a.safetensors")
    attention = sd2_pipe.text_encoder.text_model.encoder.layers[1].self_attn
    rows = torch.cat([p.weight for p in (attention.q_proj, attention.k_proj, attention.v_proj)])
    name = "cond_stage_model.model.transformer.resblocks.1.attn.in_proj_weight"
    assert torch.equal(file[name], rows)
    # SD 2 has no use for the last layer; files hold it all the same.
    last = "cond_stage_model.model.transformer.resblocks.3"
    extra = {f"{last}.ln_1.weight": torch.ones(32), f"{last}.attn.in_proj_bias": torch.ones(96)}
    extra["cond_stage_model.model.text_projection"] = torch.ones(32, 32)
    extra["cond_stage_model.model.logit_scale"] = torch.ones(())
    path = changed(tmp_path / "a.safetensors", tmp_path / "b.safetensors", **extra)
    again = open_tiny(path, sd2_folder)
    assert_same(sd2_pipe.text_encoder, again.text_encoder)
    for parameter in again.text_encoder.parameters():  # none drags the fused tensor along
        assert parameter.untyped_storage().nbytes() == parameter.nbytes


def assert_same(model: nn.Module, other: nn.Module) -> None:
    ours, theirs = model.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_what_the_unet_predicts_is_written_and_read(
    sd2_pipe: TextToImage, sd2_folder: Path, sd_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "v.safetensors"
    save_single_file(sd2_pipe, path)
    header = open_header(path)
    assert "v_pred" in header.shapes and "ztsnr" not in header.shapes
    assert header.metadata["modelspec.prediction_type"] == "v"
    as_said = open_tiny(path, sd2_folder, prediction_type="epsilon")
    assert as_said.scheduler.config.prediction_type == "epsilon"

    pipe = TextToImage.of(read_single_file(path, config=sd2_folder))
    pipe.scheduler = type(pipe.scheduler).from_config(
        pipe.scheduler.config, rescale_betas_zero_snr=True
    )
    save_single_file(pipe, tmp_path / "z.safetensors")
    again = open_tiny(tmp_path / "z.safetensors", sd2_folder)
    assert again.scheduler.config.rescale_betas_zero_snr
    assert again.scheduler.config.timestep_spacing == "trailing"
    assert again.scheduler.config.prediction_type == "v_prediction"
    assert again.defaults.guidance_rescale == 0.7
    assert pipe.defaults.guidance_rescale == 0.0
    again("a cat", seed=1, steps=2)


@pytest.mark.parametrize(
    ("kind", "marks"),
    [
        ("playground", {"edm_mean", "edm_std"}),
        ("cosxl", {"edm_vpred.sigma_max", "edm_vpred.sigma_min"}),
    ],
)
def test_edm_noise_is_told_by_marks(
    sdxl_folder: Path, tmp_path: Path, kind: str, marks: set[str]
) -> None:
    """Settings of SDXL beside it, which has other noise; the folder's picture is diffusers'."""
    folder, file = write_edm(tmp_path / kind, sdxl_folder, kind), tmp_path / "edm.safetensors"
    pipe = TextToImage.from_pretrained(folder)
    save_single_file(pipe, file)
    tensors = load_file(file)
    assert {name for name in tensors if name.startswith("edm_")} == marks
    again = open_tiny(file, sdxl_folder)
    assert type(again.scheduler) is type(pipe.scheduler)
    how: dict[str, Any] = {"seed": 3, "steps": 3}
    assert torch.equal(again("a fox", **how).latents, pipe("a fox", **how).latents)
    if kind == "playground":
        # as the published file has them
        of_channel = {name: tensors[name].reshape(1, 4, 1, 1) for name in marks}
        shaped = open_tiny(changed(file, tmp_path / "b.safetensors", **of_channel), sdxl_folder)
        assert shaped.autoencoder.config.latents_mean == pytest.approx([-1.6, 1.1, 3.3, -3.2])
        assert shaped.autoencoder.config.scaling_factor == 0.5
        with pytest.raises(FileError, match="lacks edm_std"):
            open_tiny(changed(file, tmp_path / "c.safetensors", edm_std=None), sdxl_folder)
        nan = torch.tensor([1.0, 1, torch.nan, 1])
        with pytest.raises(FileError, match="edm_mean is"):
            open_tiny(changed(file, tmp_path / "d.safetensors", edm_mean=nan), sdxl_folder)
    pipe.scheduler = make_scheduler("euler", {**pipe.scheduler.config, "sigma_data": 0.7})
    with pytest.raises(UsageError, match="EDM noise cannot be written"):
        save_single_file(pipe, file)


def test_a_file_with_edm_noise_is_recognised(
    family_shapes: dict[str, Shapes], tmp_path: Path
) -> None:
    shapes = {**family_shapes["sdxl"], "edm_vpred.sigma_max": (1,)}
    found = recognise(write_header(tmp_path / "c.safetensors", shapes))
    assert (found.name, found.prediction_type) == ("sdxl", "v_prediction")
    assert "EDM" in found.title and "edm_vpred" in found.said_by


def test_pndm_gives_way_where_it_cannot_start_from_pure_noise(
    sd_file: Path, sd_folder: Path, tmp_path: Path
) -> None:
    empty = torch.zeros(0)
    path = changed(sd_file, tmp_path / "z.safetensors", v_pred=empty, ztsnr=empty)
    pipe = open_tiny(path, sd_folder)
    assert type(pipe.scheduler).__name__ == "DDIMScheduler"
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert pipe.scheduler.config.rescale_betas_zero_snr
    assert pipe.scheduler.config.beta_end == 0.012


def test_precision_of_file_and_memory(sd_file: Path, sd_folder: Path, tmp_path: Path) -> None:
    pipe = open_tiny(sd_file, sd_folder, dtype=torch.bfloat16)
    assert {p.dtype for p in pipe.unet.parameters()} == {torch.bfloat16}
    path = tmp_path / "half.safetensors"
    save_single_file(open_tiny(sd_file, sd_folder), path, dtype=torch.float16)
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}
    whole = load_file(sd_file)
    halved = open_tiny(path, sd_folder).unet.conv_in.weight
    assert torch.equal(halved, whole[FIRST_CONV].half().float())


def test_leftovers_of_training_are_left_out(sd_file: Path, sd_folder: Path, tmp_path: Path) -> None:
    ids = torch.arange(77)[None]
    leftovers = {
        "model_ema.diffusion_modelinput_blocks00weight": torch.zeros(32, 4, 3, 3),
        "model_ema.num_updates": torch.tensor(5),
        "alphas_cumprod": torch.zeros(1000),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": ids,
    }
    path = changed(sd_file, tmp_path / "full.safetensors", **leftovers)
    plain = open_tiny(sd_file, sd_folder)
    assert_same(open_tiny(path, sd_folder).unet, plain.unet)


def test_text_encoder_under_its_older_names(sd_file: Path, sd_folder: Path, tmp_path: Path) -> None:
    tensors = {
        name.replace("transformer.text_model.", "transformer."): tensor
        for name, tensor in load_file(sd_file).items()
    }
    save_file(tensors, tmp_path / "old.safetensors")
    plain, old = (open_tiny(p, sd_folder) for p in (sd_file, tmp_path / "old.safetensors"))
    assert_same(old.text_encoder, plain.text_encoder)
    name = "cond_stage_model.transformer.text_model.final_layer_norm.bias"
    twice = {name: tensors[name.replace("text_model.", "")]}
    path = changed(tmp_path / "old.safetensors", tmp_path / "twice.safetensors", **twice)
    with pytest.raises(FileError, match="two tensors of one name"):
        open_tiny(path, sd_folder)


CONV = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({CONV: None}, f"1 missing: {CONV}"),
        ({"model.diffusion_model.new.weight": torch.ones(2)}, "1 unknown: model.diffusion_model.n"),
        ({"cond_stage_model.model.x": torch.ones(2)}, "1 unknown: cond_stage_model.model.x"),
        ({CONV: torch.ones(32, 32, 1, 1)}, r"1 wrong shape: .*\(32, 32, 1, 1\) instead of"),
        ({CONV: torch.ones(32, 32, 3, 3, dtype=torch.int64)}, rf"whole numbers \(I64\) in {CONV}"),
        ({CONV: torch.full((32, 32, 3, 3), torch.nan)}, "NaN or infinity"),
    ],
)
def test_every_tensor_must_fit(
    sd_file: Path, sd_folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = changed(sd_file, tmp_path / "bad.safetensors", **changes)
    with pytest.raises(FileError, match=message) as caught:
        open_tiny(path, sd_folder)
    assert str(path) in str(caught.value)


def test_what_cannot_be_written(sd_file: Path, sd_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.safetensors"
    target.write_bytes(b"the old one")
    pipe = open_tiny(sd_file, sd_folder)
    with torch.no_grad():
        pipe.unet.conv_in.bias[0] = 1e10
    with pytest.raises(NonFiniteError, match=r"input_blocks\.0\.0\.bias"):
        save_single_file(pipe, target, dtype=torch.float16)
    published = pipe.scheduler
    pipe.scheduler = type(published).from_config(published.config, prediction_type="sample")
    with pytest.raises(UsageError, match="sample"):
        save_single_file(pipe, target)
    pipe.unet.conv_in.register_parameter("lora", nn.Parameter(torch.ones(1)))
    with pytest.raises(UsageError, match=r"(?s)unet.*1 unknown: conv_in.lora.*Merge"):
        save_single_file(pipe, target)
    assert target.read_bytes() == b"the old one"
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_settings_that_belong_to_one_layout_only(sd_file: Path, sd_folder: Path) -> None:
    with pytest.raises(UsageError, match="single file"):
        TextToImage.from_pretrained(sd_file, variant="fp16")
    with pytest.raises(UsageError, match="prediction_type"):
        TextToImage.from_pretrained(sd_folder, prediction_type="epsilon")
    with pytest.raises(FileError, match="of no family that is known"):
        TextToImage.from_pretrained(sd_file)  # its widths are no family's


# --- settings that come with sdcore --------------------------------------------------------------


def test_clips_tokens() -> None:
    ids = clip_tokenizer(49407)("a photo of a cat").ids[0].tolist()
    assert ids == [49406, 320, 1125, 539, 320, 2368] + [49407] * 71
    padded = clip_tokenizer(0)("a photo of a cat").ids[0].tolist()
    assert padded == [49406, 320, 1125, 539, 320, 2368, 49407] + [0] * 70


@pytest.mark.parametrize(
    ("pipeline", "absent"),
    [
        ("StableDiffusionInpaintPipeline", ("text_encoder_2", "tokenizer_2")),
        ("StableDiffusionXLInpaintPipeline", ()),
        ("StableDiffusionXLImg2ImgPipeline", ("text_encoder", "tokenizer")),
    ],
)
def test_folders_of_inpainting_models_and_refiners(
    tmp_path: Path, pipeline: str, absent: tuple[str, ...]
) -> None:
    index: dict[str, Any] = json.loads((FOLDER / "sdxl" / "model_index.json").read_text())
    index |= {"_class_name": pipeline, "image_encoder": [None, None]}
    index |= {part: [None, None] for part in absent}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    parts = find_components(tmp_path).components
    assert not any(part in parts for part in absent) and "unet" in parts
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "unet": [None, None]}))
    with pytest.raises(FileError, match="no unet"):
        find_components(tmp_path)


@pytest.mark.slow
def test_a_whole_sd1_file_takes_one_copy_of_memory(
    family_shapes: dict[str, Shapes], tmp_path: Path
) -> None:
    file = write_header(tmp_path / "whole.safetensors", family_shapes["sd1"])
    code = f"""
import resource, torch
from sdcore import TextToImage
from sdcore.checkpoint.single_file import read_single_file
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
before = peak()
pipe = TextToImage.from_pretrained({str(file.path)!r}, dtype=torch.float16)
assert pipe.tokenizer("a cat").ids.shape == (1, 77)
print(peak() - before, pipe.defaults.name, type(pipe.scheduler).__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    memory, name, scheduler = done.stdout.split()
    assert (name, scheduler) == ("whole", "PNDMScheduler")
    weights = 2 * sum(torch.Size(shape).numel() for shape in family_shapes["sd1"].values())
    assert int(memory) < 1.15 * weights
