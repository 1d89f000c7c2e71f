"""Files as they lie on disks: other names, left-overs, few bits, parts from elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdcore import TextToImage
from sdcore.checkpoint.ldm_names import UNET_PREFIX, VAE_PREFIX
from sdcore.checkpoint.model import Model
from sdcore.checkpoint.single_file import read_single_file, save_single_file
from sdcore.errors import FileError, UsageError
from sdcore.files.gguf_file import open_weights
from sdcore.files.header import open_header

Tensors = dict[str, Tensor]
TEXT = "cond_stage_model.transformer."


@pytest.fixture(scope="module")
def pipe(sd_folder: Path) -> TextToImage:
    return TextToImage.from_pretrained(sd_folder)


@pytest.fixture(scope="module")
def tensors(pipe: TextToImage, tmp_path_factory: pytest.TempPathFactory) -> Tensors:
    path = tmp_path_factory.mktemp("whole") / "whole.safetensors"
    save_single_file(pipe, path)
    return load_file(path)


def write(path: Path, tensors: Tensors) -> Path:
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path)
    return path


def is_same(model: Model, other: Model) -> bool:
    ours, theirs = model.networks, other.networks
    assert ours.keys() == theirs.keys()
    for part, network in ours.items():
        state, expected = network.state_dict(), theirs[part].state_dict()
        if not all(torch.equal(state[name], value) for name, value in expected.items()):
            return False
    return True


# --- names and shapes ----------------------------------------------------------------------------


def vae_words(words: dict[str, str], flat: bool) -> Callable[[Tensors], Tensors]:
    """The autoencoder's attention in other words, as matrices or as convolutions."""

    def change(tensors: Tensors) -> Tensors:
        new: Tensors = {}
        for name, tensor in tensors.items():
            module, _, last = name.rpartition(".")
            parent, _, word = module.rpartition(".")
            if parent.endswith("mid.attn_1"):
                name = f"{parent}.{words.get(word, word)}.{last}"
                tensor = tensor[:, :, 0, 0] if flat and tensor.ndim == 4 else tensor
            new[name] = tensor
        return new

    return change


def bent(tensors: Tensors) -> Tensors:
    """1x1 convolutions as matrices, and the linear layers of the time as convolutions."""
    new = {name: t[:, :, 0, 0] if t.shape[2:] == (1, 1) else t for name, t in tensors.items()}
    name = f"{UNET_PREFIX}time_embed.0.weight"
    return {**new, name: new[name][:, :, None, None]}


TO = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
OLD = {"q": "query", "k": "key", "v": "value", "proj_out": "proj_attn", "norm": "group_norm"}
SPELLINGS: dict[str, Callable[[Tensors], Tensors]] = {
    "to_q, matrices": vae_words(TO, flat=True),
    "to_q, convolutions": vae_words(TO, flat=False),
    "query, matrices": vae_words(OLD, flat=True),
    "matrices and convolutions": bent,
    "without text_model": lambda tensors: {
        n.replace(".text_model.", "."): t for n, t in tensors.items()
    },
    "compiled": lambda tensors: {
        n.replace(UNET_PREFIX, f"{UNET_PREFIX}_orig_mod."): t for n, t in tensors.items()
    },
    "parallel": lambda tensors: {f"module.{n}": t for n, t in tensors.items()},
    "wrapped": lambda tensors: {f"state_dict.{n}": t for n, t in tensors.items()},
    "wrapped twice": lambda tensors: {f"pipe.model.{n}": t for n, t in tensors.items()},
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_same_numbers_in_other_words(
    spelling: str, pipe: TextToImage, tensors: Tensors, sd_folder: Path, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.safetensors", SPELLINGS[spelling](tensors))
    assert is_same(read_single_file(path, config=sd_folder), pipe)


def test_an_encoder_of_openclip_under_published_names(sdxl_folder: Path, tmp_path: Path) -> None:
    pipe = TextToImage.from_pretrained(sdxl_folder)
    save_single_file(pipe, tmp_path / "a.safetensors")
    ours = "conditioner.embedders.1."
    rest = {n: t for n, t in load_file(tmp_path / "a.safetensors").items() if ours not in n}
    published = load_file(sdxl_folder / "text_encoder_2" / "model.safetensors")
    path = write(
        tmp_path / "b.safetensors",
        rest | {f"{ours}transformer.{name}": tensor for name, tensor in published.items()},
    )
    assert is_same(read_single_file(path, config=sdxl_folder), pipe)


def test_a_projection_as_a_layer(sdxl_folder: Path, tmp_path: Path) -> None:
    pipe = TextToImage.from_pretrained(sdxl_folder)
    save_single_file(pipe, tmp_path / "a.safetensors")
    tensors = load_file(tmp_path / "a.safetensors")
    name = "conditioner.embedders.1.model.text_projection"
    published = load_file(sdxl_folder / "text_encoder_2" / "model.safetensors")
    tensors[f"{name}.weight"] = tensors.pop(name).T
    assert torch.equal(tensors[f"{name}.weight"], published["text_projection.weight"])
    path = write(tmp_path / "b.safetensors", tensors)
    assert is_same(read_single_file(path, config=sdxl_folder), pipe)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_the_parts_of_a_folder_in_one_file(kind: str, request: Any, tmp_path: Path) -> None:
    folder: Path = request.getfixturevalue(f"{kind}_folder")
    tensors = {
        f"{part.name}.{name}": tensor
        for part in folder.iterdir()
        for path in part.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }
    read = read_single_file(write(tmp_path / "a.safetensors", tensors), config=folder)
    assert is_same(read, TextToImage.from_pretrained(folder))


def test_a_lacking_part_is_to_be_taken_from_elsewhere(
    tensors: Tensors, sd_folder: Path, tmp_path: Path
) -> None:
    encoder = f"{VAE_PREFIX}encoder."
    decodes = {name: t for name, t in tensors.items() if not name.startswith(encoder)}
    with pytest.raises(FileError, match="72 missing") as caught:
        read_single_file(write(tmp_path / "a.safetensors", decodes), config=sd_folder)
    assert caught.value.hint == "Take this part from another file or folder: vae=PATH."


# --- what else is in a file ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        f"{TEXT}text_projection.weight",
        "embedding_manager.embedder.x",
        "cond_stage_model.model.visual.proj",
        "safety_checker.concept_embeds",
        "scale_factor",
        f"{VAE_PREFIX}discriminator.main.0.weight",
    ],
)
def test_known_left_overs_are_dropped_with_a_line(
    name: str, pipe: TextToImage, tensors: Tensors, sd_folder: Path, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.safetensors", {**tensors, name: torch.zeros(2, 2)})
    with pytest.warns(UserWarning, match=f"a.safetensors: .*no picture depends on.*{name}") as said:
        assert is_same(read_single_file(path, config=sd_folder), pipe)
    assert len(said) == 1


def test_unknown_surplus_is_allowed_by_name_only(
    pipe: TextToImage, tensors: Tensors, sd_folder: Path, tmp_path: Path
) -> None:
    surplus = {**tensors, "x.flag": torch.tensor(True), "lora_unet_x.y": torch.ones(3)}
    path = write(tmp_path / "a.safetensors", surplus)
    with pytest.raises(FileError, match=r"2 unknown: lora_unet_x\.y, x\.flag") as caught:
        read_single_file(path, config=sd_folder)
    assert "allow_extra=True" in caught.value.hint
    with pytest.warns(UserWarning, match="lora_unet_x.y, x.flag"):
        assert is_same(read_single_file(path, config=sd_folder, allow_extra=True), pipe)
    lacking = {name: t for name, t in surplus.items() if not name.endswith("quant_conv.bias")}
    write(path, lacking)
    with pytest.raises(FileError, match="2 missing: ") as caught:
        read_single_file(path, config=sd_folder, allow_extra=True)
    assert "allow_extra" not in caught.value.hint and "unknown" not in caught.value.why


def test_surplus_in_a_folder(pipe: TextToImage, sd_folder: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(sd_folder, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    write(weights, {**load_file(weights), "more": torch.ones(2)})
    with pytest.raises(FileError, match="1 unknown: more") as caught:
        TextToImage.from_pretrained(folder)
    assert "allow_extra=True" in caught.value.hint
    with pytest.warns(UserWarning, match="more"):
        assert is_same(TextToImage.from_pretrained(folder, allow_extra=True), pipe)


# --- few bits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_numbers_of_8_bits_are_exact(
    dtype: torch.dtype, tensors: Tensors, sd_folder: Path, tmp_path: Path
) -> None:
    eight = {n: t.to(dtype) if n.startswith(UNET_PREFIX) else t for n, t in tensors.items()}
    path = write(tmp_path / "a.safetensors", eight)
    wide = write(tmp_path / "b.safetensors", {name: t.float() for name, t in eight.items()})
    read, expected = (read_single_file(p, config=sd_folder) for p in (path, wide))
    assert is_same(read, expected)


@pytest.mark.parametrize(
    "words", [("scale_weight", "scale_input"), ("weight_scale", "input_scale")]
)
@pytest.mark.parametrize("rows", [False, True], ids=["one scale", "a scale for each row"])
def test_scaled_numbers_of_8_bits(
    words: tuple[str, str], rows: bool, tensors: Tensors, sd_folder: Path, tmp_path: Path
) -> None:
    """ComfyUI's two ways to write them: weight times scale."""
    stored, wide = dict[str, Tensor](), dict[str, Tensor]()
    for name, tensor in tensors.items():
        wide[name] = stored[name] = tensor
        if name.startswith(UNET_PREFIX) and tensor.ndim == 2:
            layer = name.removesuffix("weight")
            scale = (tensor.abs().amax(1, keepdim=True) if rows else tensor.abs().max()) / 448
            stored[name] = (tensor / scale).to(torch.float8_e4m3fn)
            wide[name] = stored[name].float() * scale
            stored[layer + words[0]] = scale
            stored[layer + words[1]] = torch.ones(())
            stored[f"{layer}comfy_quant"] = torch.zeros(3, dtype=torch.uint8)
    stored[f"{UNET_PREFIX}scaled_fp8"] = torch.zeros(2).to(torch.float8_e4m3fn)
    read = read_single_file(write(tmp_path / "a.safetensors", stored), config=sd_folder)
    expected = read_single_file(write(tmp_path / "b.safetensors", wide), config=sd_folder)
    assert is_same(read, expected)


def test_what_is_sound_and_not_read_is_not_called_damaged(
    tensors: Tensors, sd_folder: Path, tmp_path: Path
) -> None:
    codes = {**tensors, f"{UNET_PREFIX}time_embed.0.weight": torch.ones(9, dtype=torch.uint8)}
    with pytest.raises(FileError, match="codes") as caught:
        read_single_file(write(tmp_path / "a.safetensors", codes), config=sd_folder)
    assert "again" not in caught.value.hint
    name = f"{UNET_PREFIX}time_embed.0.weight"
    eight = {name: tensors[name].to(torch.float8_e4m3fn), f"{name}_scale_inv": torch.ones(2, 2)}
    with pytest.raises(FileError, match=r"is sound(.|\n)*in a way that is not known"):
        read_single_file(
            write(tmp_path / "c.safetensors", tensors | eight), config=sd_folder, allow_extra=True
        )
    complex_numbers = write(tmp_path / "b.safetensors", {"a": torch.ones(2, dtype=torch.complex64)})
    with pytest.raises(FileError, match="is sound") as caught:
        open_header(complex_numbers)
    assert "again" not in caught.value.hint


# --- parts from elsewhere ------------------------------------------------------------------------


def part(tensors: Tensors, prefix: str) -> Tensors:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


@pytest.fixture(scope="module")
def parts(tensors: Tensors, sd_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Part -> the forms in which it lies on disks."""
    folder = tmp_path_factory.mktemp("parts")
    whole = write(folder / "whole.safetensors", tensors)
    unet, vae, text = (part(tensors, prefix) for prefix in (UNET_PREFIX, VAE_PREFIX, TEXT))
    left = {"loss.x": torch.ones(1), "model_ema.decay": torch.ones(())}
    published = sd_folder / "unet" / "diffusion_pytorch_model.safetensors"
    return {
        "unet": [
            *(whole, sd_folder / "unet", sd_folder, published),
            write(folder / "bare.safetensors", unet),
            write(
                folder / "comfy.safetensors", {f"diffusion_model.{n}": t for n, t in unet.items()}
            ),
        ],
        "vae": [
            *(whole, sd_folder / "vae", sd_folder),
            sd_folder / "vae" / "diffusion_pytorch_model.safetensors",
            write(folder / "wrapped.safetensors", {f"vae.{n}": t for n, t in vae.items()}),
            write(folder / "vae.safetensors", vae | left),
        ],
        "text_encoder": [
            *(whole, sd_folder / "text_encoder", sd_folder),
            sd_folder / "text_encoder" / "model.safetensors",
            write(
                folder / "wrapped_clip.safetensors", {f"clip.model.{n}": t for n, t in text.items()}
            ),
            write(folder / "clip_l.safetensors", text | {"logit_scale": torch.ones(())}),
        ],
    }


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder"])
def test_a_part_from_elsewhere(
    name: str, parts: Any, pipe: TextToImage, sd_folder: Path, tmp_path: Path
) -> None:
    import shutil

    other = tmp_path / "other"
    shutil.copytree(sd_folder, other)
    network = pipe.networks[name]
    weights = other / name / f"{type(network).WEIGHTS_NAME}.safetensors"
    write(weights, {key: t + 1 for key, t in load_file(weights).items()})
    assert not is_same(TextToImage.from_pretrained(other), pipe)
    for path in parts[name]:
        given: dict[str, Any] = {name: path}
        model = TextToImage.from_pretrained(other, **given)
        assert is_same(model, pipe), path
        assert model.defaults.name == f"other + {path.stem}"


def test_a_model_of_parts_alone(parts: Any, pipe: TextToImage, sd_folder: Path) -> None:
    for unet in parts["unet"][3:]:
        given = {"vae": parts["vae"][-1:], "text_encoder": parts["text_encoder"][-1:]}
        assert is_same(read_single_file(unet, config=sd_folder, parts=given), pipe)
        with pytest.raises(FileError, match="no whole model") as caught:
            read_single_file(unet, config=sd_folder, parts={"vae": parts["vae"][-1:]})
        assert "text_encoder=PATH" in caught.value.hint


def test_encoders_are_told_apart_by_their_width(sdxl_folder: Path, sd_folder: Path) -> None:
    pipe = TextToImage.from_pretrained(sdxl_folder)
    encoders = [
        sdxl_folder / name / "model.safetensors" for name in ("text_encoder_2", "text_encoder")
    ]
    assert is_same(TextToImage.from_pretrained(sdxl_folder, text_encoder=encoders), pipe)
    with pytest.raises(FileError, match=r"40 wide; this model has text_encoder 32"):
        TextToImage.from_pretrained(sd_folder, text_encoder=encoders[0])
    with pytest.raises(UsageError, match="given twice"):
        TextToImage.from_pretrained(sd_folder, text_encoder=[encoders[1], encoders[1]])


def test_what_holds_no_such_part(parts: Any, sd_folder: Path) -> None:
    with pytest.raises(FileError, match="holds no vae") as caught:
        TextToImage.from_pretrained(sd_folder, vae=parts["unet"][-1])
    assert "a UNet" in caught.value.why
    with pytest.raises(FileError, match="holds no text_encoder"):
        TextToImage.from_pretrained(sd_folder, text_encoder=parts["vae"][-1])


# --- GGUF ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q6_K", "F16", "BF16"])
def test_a_unet_in_gguf(kind: str, tensors: Tensors, sd_folder: Path, tmp_path: Path) -> None:
    """As the package `gguf` widens them; rows that are no whole blocks are flattened before."""
    gguf = pytest.importorskip("gguf")
    kinds = gguf.GGMLQuantizationType
    chosen = kinds[kind]
    block = gguf.GGML_QUANT_SIZES[chosen][0]
    quantise = gguf.quants.quantize
    if kind == "Q6_K":  # the package reads it, and writes it not: blocks of zeros
        quantise = lambda values, _: torch.zeros(  # noqa: E731
            values.shape[0], values.shape[1] // block * 210, dtype=torch.uint8
        ).numpy()
    writer, expected = gguf.GGUFWriter(tmp_path / "unet.gguf", "sd1"), dict[str, Tensor]()
    for name, tensor in part(tensors, UNET_PREFIX).items():
        flat = tensor.reshape(1, -1) if tensor.numel() % block == 0 and tensor.ndim > 1 else None
        if flat is None:
            writer.add_tensor(name, tensor.numpy())
            expected[name] = tensor
            continue
        data = quantise(flat.numpy(), chosen)
        writer.add_tensor(name, data, raw_dtype=chosen)
        writer.add_array(f"comfy.gguf.orig_shape.{name}", list(tensor.shape))
        expected[name] = torch.tensor(gguf.quants.dequantize(data, chosen)).reshape(tensor.shape)
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()
    model = TextToImage.from_pretrained(sd_folder, unet=tmp_path / "unet.gguf")
    bare = write(tmp_path / "bare.safetensors", expected)
    assert is_same(model, TextToImage.from_pretrained(sd_folder, unet=bare))
    assert kind in open_weights(tmp_path / "unet.gguf").types.values()


def test_damaged_gguf(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    path = tmp_path / "a.gguf"
    heads = [
        b"GGUF",
        b"GGUF" + b"\xff" * 20,
        b"GGUF\3\0\0\0" + b"\1" + b"\0" * 15,
        b"GGUF" + b"\0" * 60,
    ]
    for head in heads:
        path.write_bytes(head)
        with pytest.raises(FileError, match="not a sound GGUF file"):
            open_weights(path)
