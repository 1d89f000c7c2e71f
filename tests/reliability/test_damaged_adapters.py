"""Damaged LoRA and textual inversion files, made by number: refused, the model untouched."""

from __future__ import annotations

import math
import random
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sdcore import TextToImage, apply_embeddings, apply_loras, fit_lora, read_embedding, read_lora
from sdcore.errors import FileError, UsageError
from tests.reliability import test_damaged_files as container

CPU_SECONDS = 2.0
FILE = container.WEIGHTS
Damage = Callable[[Path, random.Random], None]
RANK = 3
LAYERS = {
    "mid_block.attentions.0.proj_in": (64, 64, 1, 1),
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_q": (64, 64),
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_k": (64, 32),
    "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj": (512, 64),
    "mid_block.resnets.0.conv1": (64, 64, 3, 3),
}
# spelling -> prefix, separator, endings of down and up
SPELLINGS = {
    "kohya": ("lora_unet_", "_", ".lora_down.weight", ".lora_up.weight"),
    "diffusers": ("unet.", ".", ".lora_A.weight", ".lora_B.weight"),
    "PEFT": ("base_model.model.", ".", ".lora_A.weight", ".lora_B.weight"),
}


def write_lora(folder: Path, spelling: str) -> None:
    prefix, separator, down, up = SPELLINGS[spelling]
    tensors: dict[str, Tensor] = {}
    for layer, (out, *rest) in LAYERS.items():
        name = prefix + layer.replace(".", separator)
        tensors[name + down] = torch.full((RANK, *rest), 0.01)
        tensors[name + up] = torch.full((out, RANK, *[1] * (len(rest) - 1)), 0.01)
    save_file(tensors, folder / FILE, metadata={"format": "pt"})


def write_embedding(folder: Path) -> None:
    save_file({"<my-fox>": torch.full((2, 32), 0.5)}, folder / FILE, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def pipe(sd_folder: Path) -> TextToImage:
    return TextToImage.from_pretrained(sd_folder)


def edit(change: Callable[[dict[str, Tensor], random.Random], None]) -> Damage:
    def damage(folder: Path, rng: random.Random) -> None:
        tensors = load_file(folder / FILE)
        change(tensors, rng)
        (folder / FILE).unlink()
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / FILE)

    damage.__name__ = change.__name__
    return damage


def pick(tensors: dict[str, Tensor], rng: random.Random, ending: str = "") -> str:
    return rng.choice(sorted(key for key in tensors if key.endswith(ending)))


def layer_of(key: str) -> str:
    return key.rsplit(".", 2)[0]


def pairs_of(tensors: dict[str, Tensor]) -> list[tuple[str, str]]:
    names = sorted({layer_of(key) for key in tensors})
    return [tuple(sorted(key for key in tensors if layer_of(key) == name)) for name in names]  # pyright: ignore[reportReturnType]


# --- damage to what a LoRA says ----------------------------------------------------------------


@edit
def alpha(tensors: dict[str, Tensor], rng: random.Random) -> None:
    value = rng.choice([math.nan, math.inf, -math.inf, 0.0, -1.0, 1e30, -0.0, 3e38])
    kind = rng.choice([torch.tensor(value), torch.tensor([value]), torch.tensor([[value]])])
    tensors[f"{layer_of(pick(tensors, rng))}.alpha"] = kind


@edit
def alpha_of_several(tensors: dict[str, Tensor], rng: random.Random) -> None:
    size = rng.choice([0, 2, RANK, 1000])
    tensors[f"{layer_of(pick(tensors, rng))}.alpha"] = torch.ones(size)


@edit
def rank_zero(tensors: dict[str, Tensor], rng: random.Random) -> None:
    down, up = rng.choice(pairs_of(tensors))
    tensors[down], tensors[up] = tensors[down][:0], tensors[up][:, :0]


@edit
def ranks_differ(tensors: dict[str, Tensor], rng: random.Random) -> None:
    down, up = rng.choice(pairs_of(tensors))
    if rng.random() < 0.5:
        tensors[down] = tensors[down][: rng.randrange(1, RANK)]
    else:
        tensors[up] = tensors[up][:, : rng.randrange(1, RANK)]


@edit
def one_half_missing(tensors: dict[str, Tensor], rng: random.Random) -> None:
    del tensors[pick(tensors, rng)]


@edit
def wrong_width(tensors: dict[str, Tensor], rng: random.Random) -> None:
    key = pick(tensors, rng)
    axis = 0 if tensors[key].shape[1] == RANK else 1
    size = tensors[key].shape[axis]
    index = torch.arange(rng.choice([1, size - 1, size // 2, size + 1, 2 * size])) % size
    tensors[key] = tensors[key].index_select(axis, index)


@edit
def transposed(tensors: dict[str, Tensor], rng: random.Random) -> None:
    key = pick(tensors, rng)
    tensors[key] = tensors[key].transpose(0, 1)


@edit
def another_rank_of_tensor(tensors: dict[str, Tensor], rng: random.Random) -> None:
    key = pick(tensors, rng)
    value = tensors[key]
    tensors[key] = rng.choice([value[0, 0], value.flatten(), value[None], value[..., None]])
    if tensors[key].ndim == 4:  # a 1x1 kernel more is no damage
        tensors[key] = value[None, None, None]


@edit
def numbers(tensors: dict[str, Tensor], rng: random.Random) -> None:
    key = pick(tensors, rng)
    value = tensors[key].to(rng.choice([torch.float32, torch.float16, torch.bfloat16]))
    value.view(-1)[rng.randrange(value.numel())] = rng.choice([math.nan, math.inf, -math.inf])
    tensors[key] = value


@edit
def whole_numbers(tensors: dict[str, Tensor], rng: random.Random) -> None:
    key = pick(tensors, rng)
    tensors[key] = tensors[key].to(rng.choice([torch.int32, torch.int64]))


@edit
def foreign_layers(tensors: dict[str, Tensor], rng: random.Random) -> None:
    """Some of the layers, or all, are of no model or of another one."""
    pairs = pairs_of(tensors)
    new = rng.choice(
        ["nowhere", "lora_unet_double_blocks_0_qkv", "transformer.x", "..", "__class__"]
    )
    for number, pair in enumerate(rng.sample(pairs, rng.randrange(1, len(pairs) + 1))):
        for key in pair:
            tensors[f"{new}{number}{key[len(layer_of(key)) :]}"] = tensors.pop(key)


@edit
def other_parts(tensors: dict[str, Tensor], rng: random.Random) -> None:
    """A layer of a text encoder that has another shape or is not there."""
    down, up = rng.choice(pairs_of(tensors))
    new = rng.choice(
        [
            "lora_te2_text_model_encoder_layers_0_self_attn_q_proj",
            "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj",
            "lora_te_text_model_encoder_layers_0_mlp_fc2",
            "text_encoder.text_model.encoder.layers.99.mlp.fc1",
        ]
    )
    for key in (down, up):
        tensors[new + key[len(layer_of(key)) :]] = tensors.pop(key)


@edit
def other_kinds(tensors: dict[str, Tensor], rng: random.Random) -> None:
    name = layer_of(pick(tensors, rng))
    endings = ["oft_blocks", "oft_diag", "diff", "diff_b", "a1.weight", "on_input", "w_norm"]
    endings += ["hada_w1_a", "lokr_w1", "lora_mid.weight", "lokr_t1", "lora_B.bias", "weight"]
    endings += ["lora_embedding_A", "lora_E", "dora_scale", "scalar"]
    tensors[f"{name}.{rng.choice(endings)}"] = torch.ones(2, 2)


@edit
def surplus(tensors: dict[str, Tensor], rng: random.Random) -> None:
    names = [
        "../../etc/x",
        "__class__",
        "a\0b",
        "k" * 10_000,
        "text_model",
        "🦊",
        "alpha",
        ".alpha",
    ]
    tensors[rng.choice(names)] = torch.tensor(1.0)


@edit
def two_spellings(tensors: dict[str, Tensor], rng: random.Random) -> None:
    down, _ = rng.choice(pairs_of(tensors))
    name = layer_of(down)
    shape = tensors[down]
    tensors[f"{name}.lora.down.weight"] = shape.clone()
    tensors[f"{name}.lora.up.weight"] = shape.clone()


@edit
def nothing(tensors: dict[str, Tensor], rng: random.Random) -> None:
    tensors.clear()
    tensors |= rng.choice(
        [
            {},
            {"emb_params": torch.ones(1, 32)},
            {"clip_l": torch.ones(1, 32), "clip_g": torch.ones(1, 40)},
            {"model.diffusion_model.out.2.weight": torch.ones(4, 4)},
            {"lora_unet_mid_block_attentions_0_proj_in.alpha": torch.tensor(1.0)},
            {"x": torch.ones(3)},
        ]
    )


def adapter_config(folder: Path, rng: random.Random) -> None:
    (folder / FILE).rename(folder / "adapter_model.safetensors")
    texts = [
        '{"lora_alpha": NaN}',
        '{"lora_alpha": 1e999}',
        '{"lora_alpha": 0, "r": 3}',
        '{"lora_alpha": -1}',
        '{"lora_alpha": "8"}',
        '{"lora_alpha": true}',
        '{"lora_alpha": [8]}',
        '{"lora_alpha": 1e30}',
        '{"lora_alpha": 8, "lora_alpha": 9}',
        '{"lora_alpha": 8',
        '{"lora_alpha": 8, "alpha_pattern": {"proj_in": "x", "to_q": "x", "to_k": "x"}}',
        '{"lora_alpha": 8, "alpha_pattern": {"conv1": -1}}',
        "[" * 100_000,
        "null",
        "\ufeff{}",
    ]
    (folder / "adapter_config.json").write_text(rng.choice(texts), encoding="utf-8")


CONTAINER: dict[Damage, int] = {
    container.cut_anywhere: 16,
    container.cut_near_an_edge: 8,
    container.header_length: 8,
    container.header_byte: 16,
    container.key_twice: 2,
    container.offsets: 10,
    container.shape: 8,
    container.number_type: 8,
    container.tail: 4,
    container.not_finite: 4,
    container.odd_header: 8,
    container.huge_header: 1,
    container.another_kind_of_file: 10,
}
LORA: dict[Damage, int] = {
    **CONTAINER,
    alpha: 28,
    alpha_of_several: 8,
    rank_zero: 6,
    ranks_differ: 12,
    one_half_missing: 12,
    wrong_width: 24,
    transposed: 12,
    another_rank_of_tensor: 16,
    numbers: 20,
    whole_numbers: 12,
    foreign_layers: 24,
    other_parts: 16,
    other_kinds: 32,
    surplus: 16,
    two_spellings: 6,
    nothing: 12,
}


# --- damage to what a textual inversion says ---------------------------------------------------


@edit
def vectors(tensors: dict[str, Tensor], rng: random.Random) -> None:
    tensors.clear()
    ones = torch.ones
    tensors |= rng.choice(
        [
            {"<x>": ones(1, 31)},
            {"<x>": ones(1, 768)},
            {"<x>": ones(1, 2048)},
            {"<x>": ones(32, 2)},
            {"<x>": ones(0, 32)},
            {"<x>": ones(1, 0)},
            {"<x>": ones(1, 1, 32)},
            {"<x>": torch.tensor(1.0)},
            {"<x>": ones(1, 32, dtype=torch.int64)},
            {"<x>": ones(76, 32)},
            {"<x>": math.nan * ones(1, 32)},
            {"<x>": math.inf * ones(32)},
            {"clip_l": ones(1, 32), "clip_g": ones(1, 40)},
            {"clip_g": ones(1, 40)},
            {"clip_l": ones(1, 32), "clip_g": ones(2, 40)},
            {"clip_l": ones(1, 32), "<x>": ones(1, 32)},
            {"<x>": ones(1, 32), "<y>": ones(1, 32)},
            {},
        ]
    )


@edit
def token(tensors: dict[str, Tensor], rng: random.Random) -> None:
    tensors.clear()
    names = ["cat", "Red", "a", "!", "<|endoftext|>", "<|startoftext|>", " ", "\0", "a\nb"]
    names += ["\u202e", "x" * 201, "\t"]
    tensors[rng.choice(names)] = torch.ones(1, 32)


EMBEDDING: dict[Damage, int] = {**CONTAINER, vectors: 40, token: 24}
del EMBEDDING[container.header_byte]  # another letter in its only key is another good token


# --- the tests ---------------------------------------------------------------------------------


def cases(kinds: dict[Damage, int]) -> list:
    return [
        pytest.param(
            damage,
            seed,
            id=f"{damage.__name__}-{seed}",
            marks=[pytest.mark.slow] if seed > 1 else [],
        )
        for damage, count in kinds.items()
        for seed in range(count)
    ]


def assert_refused(run: Callable[[], object], folder: Path, model: TextToImage) -> None:
    files, layers = container.snapshot(folder), list(model.unet.modules())
    weights = [parameter.data_ptr() for parameter in model.unet.parameters()]
    tokenizer, table = model.tokenizer, model.text_encoder.text_model.embeddings.token_embedding
    started = time.thread_time()
    with pytest.raises((FileError, UsageError)) as caught:
        run()
    assert time.thread_time() - started < CPU_SECONDS
    assert str(folder) in caught.value.what and len(str(caught.value)) < 2500
    assert caught.value.why and caught.value.hint
    assert container.snapshot(folder) == files
    assert list(model.unet.modules()) == layers
    assert [parameter.data_ptr() for parameter in model.unet.parameters()] == weights
    assert model.tokenizer is tokenizer
    assert model.text_encoder.text_model.embeddings.token_embedding is table
    assert isinstance(table, nn.Embedding)


@pytest.mark.parametrize(("damage", "seed"), cases(LORA))
def test_loras_are_refused(pipe, tmp_path, damage, seed):
    write_lora(tmp_path, list(SPELLINGS)[seed % 3])
    damage(tmp_path, random.Random(f"{damage.__name__} {seed}"))
    merge = seed % 2 == 1
    path = tmp_path / FILE
    assert_refused(lambda: apply_loras(pipe, [(read_lora(path), 1)], merge=merge), tmp_path, pipe)


@pytest.mark.parametrize("seed", range(20))
def test_peft_folders_are_refused(pipe, tmp_path, seed):
    write_lora(tmp_path, "PEFT")
    adapter_config(tmp_path, random.Random(seed))
    assert_refused(lambda: apply_loras(pipe, [(read_lora(tmp_path), 1)]), tmp_path, pipe)


@pytest.mark.parametrize(("damage", "seed"), cases(EMBEDDING))
def test_embeddings_are_refused(pipe, tmp_path, damage, seed):
    write_embedding(tmp_path)
    damage(tmp_path, random.Random(f"{damage.__name__} {seed}"))
    path = tmp_path / FILE
    assert_refused(lambda: apply_embeddings(pipe, [read_embedding(path)]), tmp_path, pipe)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_sound_files_are_accepted(pipe, tmp_path, spelling):
    write_lora(tmp_path, spelling)
    assert len(fit_lora(read_lora(tmp_path / FILE), pipe).changes) == len(LAYERS)
    write_embedding(tmp_path)
    apply_embeddings(pipe, [read_embedding(tmp_path / FILE)])


def test_there_are_at_least_500_cases():
    assert sum(LORA.values()) + sum(EMBEDDING.values()) + 20 >= 500


def test_a_weight_of_bits_that_are_no_number(pipe, tmp_path):
    """The payload alone is damaged, in a type that safetensors does not look into."""
    write_lora(tmp_path, "kohya")
    data = bytearray((tmp_path / FILE).read_bytes())
    data[-4:] = struct.pack("<I", 0x7FC00001)
    (tmp_path / FILE).write_bytes(data)
    assert_refused(lambda: apply_loras(pipe, [(read_lora(tmp_path / FILE), 1)]), tmp_path, pipe)
