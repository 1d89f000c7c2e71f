"""LoRAs on a model: applied, weighted, merged, and refused; the model itself stays as it is."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sdcore import LoraWeight, TextToImage, apply_loras, fit_lora, read_lora, save_lora
from sdcore.adapters.lora_layer import AdaptedLayer
from sdcore.adapters.lora_names import Place, layers_of
from sdcore.checkpoint.loading import save_folder
from sdcore.checkpoint.single_file import save_single_file
from sdcore.control.heatmaps import WordHeatmaps
from sdcore.errors import FileError, NonFiniteError, UsageError
from sdcore.files.hashes import tensor_hash
from sdcore.unet.unet import AddedConditions

Tensors = dict[str, Tensor]
RANK = 3


@pytest.fixture(scope="module")
def sd(sd_folder: Path) -> TextToImage:
    return TextToImage.from_pretrained(sd_folder)


@pytest.fixture(scope="module")
def sdxl(sdxl_folder: Path) -> TextToImage:
    return TextToImage.from_pretrained(sdxl_folder)


def random(*shape: int, seed: int = 0) -> Tensor:
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def lora_tensors(name: str, layer: nn.Module, seed: int = 0) -> Tensors:
    """kohya's tensors for one layer; 3x3 convolutions in LoCon's form."""
    out, *rest = layer.weight.shape  # pyright: ignore[reportAttributeAccessIssue]
    points = [1] * (len(rest) - 1)
    return {
        f"{name}.lora_down.weight": random(RANK, *rest, seed=seed),
        f"{name}.lora_up.weight": random(out, RANK, *points, seed=seed + 1),
        f"{name}.alpha": torch.tensor(2.0),
    }


def kohya_name(place: Place, pipe: TextToImage) -> str:
    first = "lora_te" if pipe.text_encoder_2 is None else "lora_te1"
    prefix = {"unet": "lora_unet", "text_encoder": first, "text_encoder_2": "lora_te2"}
    return f"{prefix[place.part]}_{place.layer.replace('.', '_')}"


def whole_lora(pipe: TextToImage, seed: int = 0) -> Tensors:
    """A LoRA on every layer there is."""
    tensors: Tensors = {}
    for place, layer in layers_of(pipe).items():
        tensors |= lora_tensors(kohya_name(place, pipe), layer, seed)
    return tensors


def write(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    save_file(tensors, path, metadata=metadata)
    return path


@pytest.fixture(scope="module")
def lora_file(sd: TextToImage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("lora") / "whole.safetensors", whole_lora(sd))


@pytest.fixture(scope="module")
def other_file(sd: TextToImage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    some = {k: v for k, v in whole_lora(sd, seed=50).items() if "attn" in k}
    return write(tmp_path_factory.mktemp("lora") / "other.safetensors", some)


def parts(pipe: TextToImage) -> list[nn.Module]:
    found = (pipe.unet, pipe.text_encoder, pipe.text_encoder_2)
    return [part for part in found if part is not None]


def snapshot(pipe: TextToImage) -> list[Tensors]:
    return [{k: v.clone() for k, v in part.state_dict().items()} for part in parts(pipe)]


def assert_untouched(pipe: TextToImage, before: list[Tensors]) -> None:
    for part, state in zip(parts(pipe), before, strict=True):
        now = part.state_dict()
        assert list(now) == list(state)
        assert all(torch.equal(now[key], state[key]) for key in state)


@torch.no_grad()
def answer_of(pipe: TextToImage, control=None) -> Tensor:
    """One prediction of the UNet for an encoded prompt."""
    ids = pipe.tokenizer("a red fox").ids
    encoding, added = pipe.text_encoder(ids), None
    text = encoding.last_hidden_state
    if pipe.text_encoder_2 is not None:
        second = pipe.text_encoder_2(ids)
        text = torch.cat([encoding.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        added = AddedConditions(second.pooled, torch.tensor([[64.0, 64, 0, 0, 64, 64]]))
    return pipe.unet(random(1, 4, 8, 8).to(pipe.dtype), 500, text, control, added=added)


# --- what is applied ---------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["sd", "sdxl"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_beside_and_merged_paint_the_same_and_leave_no_trace(model, dtype, request, tmp_path):
    pipe: TextToImage = copy.deepcopy(request.getfixturevalue(model))
    lora = read_lora(write(tmp_path / "lora.safetensors", whole_lora(pipe)))
    pipe.to(dtype)
    layers, before, plain = layers_of(pipe), snapshot(pipe), answer_of(pipe)
    painted = []
    for merge in (False, True):
        painted.append(answer_of(apply_loras(pipe, [(lora, 0.1)], merge=merge)))
        assert torch.equal(answer_of(apply_loras(pipe, [(lora, 0)], merge=merge)), plain)
        assert_untouched(pipe, before)
        assert layers_of(pipe) == layers
        assert torch.equal(answer_of(pipe), plain)
    assert (painted[0] - plain).abs().mean() > 0.05
    spread = {torch.float32: 1e-4, torch.float16: 0.03, torch.bfloat16: 0.3}[dtype]
    assert (painted[0] - painted[1]).abs().mean() < spread


def test_what_comes_back_is_of_the_same_class_and_says_what_is_on_it(sd, lora_file, other_file):
    class Painter(TextToImage):
        pass

    painter = Painter.of(sd)
    lora, other = read_lora(lora_file), read_lora(other_file)
    once = apply_loras(painter, [(lora, LoraWeight(0.5, 0))])
    twice = apply_loras(once, [(other, -1)], merge=True)
    assert type(twice) is Painter and painter.loras == ()
    assert [(on.name, on.unet, on.text, on.merged) for on in twice.loras] == [
        ("whole", 0.5, 0, False),
        ("other", -1, -1, True),
    ]
    assert twice.loras[0] == once.loras[0]
    assert twice.loras[1].path == other_file and twice.loras[1].hash == tensor_hash(other_file)


@pytest.mark.parametrize("merge", [False, True])
def test_weights_are_linear(sd, lora_file, other_file, merge):
    place = Place("unet", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k")
    layer = layers_of(sd)[place]
    x = random(2, layer.weight.shape[1])
    loras = [read_lora(lora_file), read_lora(other_file)]
    fitted = [fit_lora(lora, sd).changes[place] for lora in loras]
    changes = [change.delta(layer.weight.detach()) for change in fitted]
    for weights in ((1, 0), (0, 1), (0.5, -2), (1.5, 1.5)):
        applied = apply_loras(sd, list(zip(loras, weights, strict=True)), merge=merge)
        answer = applied.unet.get_submodule(place.layer)(x)
        expected = layer(x) + x @ (weights[0] * changes[0] + weights[1] * changes[1]).T
        torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("merge", [(False, False), (True, True), (False, True), (True, False)])
def test_loras_compose_by_applying_to_what_came_back(sd, lora_file, other_file, merge):
    lora, other, plain = read_lora(lora_file), read_lora(other_file), answer_of(sd)
    together = apply_loras(sd, [(lora, 0.1), (other, 0.1)], merge=merge[0])
    first = apply_loras(sd, [(lora, 0.1)], merge=merge[0])
    alone = answer_of(first)
    both = apply_loras(first, [(other, 0.1)], merge=merge[1])
    if merge == (False, False):
        assert torch.equal(answer_of(both), answer_of(together))
    torch.testing.assert_close(answer_of(both), answer_of(together), rtol=0, atol=1e-3)
    assert torch.equal(answer_of(first), alone) and torch.equal(answer_of(sd), plain)
    assert not torch.equal(alone, plain)


@pytest.mark.parametrize("merge", [False, True])
def test_unet_and_text_have_their_own_weights(sd, lora_file, merge):
    lora, plain = read_lora(lora_file), answer_of(sd)
    ids = sd.tokenizer("a red fox").ids
    text = sd.text_encoder(ids).last_hidden_state
    on_unet = apply_loras(sd, [(lora, LoraWeight(unet=0.5, text=0))], merge=merge)
    assert on_unet.text_encoder is sd.text_encoder
    assert not torch.equal(answer_of(on_unet), plain)
    on_text = apply_loras(sd, [(lora, LoraWeight(unet=0, text=0.5))], merge=merge)
    assert on_text.unet is sd.unet
    assert not torch.equal(on_text.text_encoder(ids).last_hidden_state, text)


@pytest.mark.parametrize("merge", [False, True])
def test_without_alpha_it_is_the_rank(sd, tmp_path, merge):
    tensors = whole_lora(sd)
    given = {k: torch.tensor(float(RANK)) if k.endswith("alpha") else v for k, v in tensors.items()}
    without = {k: v for k, v in tensors.items() if not k.endswith("alpha")}
    painted = []
    for name, some in (("given", given), ("without", without), ("two", tensors)):
        lora = read_lora(write(tmp_path / f"{name}.safetensors", some))
        painted.append(answer_of(apply_loras(sd, [(lora, 0.1)], merge=merge)))
    assert torch.equal(painted[0], painted[1])
    assert not torch.equal(painted[0], painted[2])


@pytest.mark.parametrize("merge", [False, True])
def test_attention_backends_and_controls_work_on(sd, lora_file, merge):
    class Count:
        calls = 0

        def __call__(self, site, grid, q, k, v, attend):
            self.calls += 1
            return attend(q, k, v)

    control = Count()
    styled = apply_loras(sd, [(read_lora(lora_file), 0.1)], merge=merge)
    expected, plain = answer_of(styled), answer_of(sd)
    for adapted in (
        styled.with_attention("reference"),
        apply_loras(sd.with_attention("reference"), [(read_lora(lora_file), 0.1)], merge=merge),
    ):
        got = answer_of(adapted, control=control)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)
        assert not torch.equal(got, expected)
    assert control.calls
    assert torch.equal(answer_of(styled), expected) and torch.equal(answer_of(sd), plain)


@pytest.mark.parametrize("merge", [False, True])
def test_moving_one_model_leaves_the_other_where_it_is(sd, lora_file, merge):
    pipe = copy.deepcopy(sd)
    before = snapshot(pipe)
    applied = apply_loras(pipe, [(read_lora(lora_file), 0.1)], merge=merge)
    painted = answer_of(applied)
    applied.to(torch.float16)
    assert answer_of(applied).dtype == torch.float16
    assert_untouched(pipe, before)
    again = apply_loras(pipe, [(read_lora(lora_file), 0.1)], merge=merge)
    pipe.to(torch.float16)
    assert torch.equal(answer_of(again), painted)
    assert torch.equal(answer_of(pipe), answer_of(copy.deepcopy(sd).to(torch.float16)))


def test_a_model_that_nobody_shares_is_moved_in_place(sd, lora_file):
    pipe = copy.deepcopy(sd)
    norm = pipe.unet.conv_norm_out.weight
    pipe = apply_loras(pipe, [(read_lora(lora_file), 0.1)])
    assert pipe.to(torch.float16).unet.conv_norm_out.weight is norm


@pytest.mark.parametrize("merge", [False, True])
def test_word_heatmaps_of_a_lora_picture(sd, lora_file, merge):
    how = {"seed": 3, "steps": 2, "width": 64, "height": 64}
    styled = apply_loras(sd, [(read_lora(lora_file), 0.1)], merge=merge)
    plain, maps = styled("a red fox", **how).latents, WordHeatmaps(sd.tokenizer("a red fox"))
    recorded = styled("a red fox", control=maps, **how).latents
    torch.testing.assert_close(recorded, plain, rtol=1e-4, atol=1e-4)
    assert maps.of("fox").std() > 0


def test_names_without_a_prefix_are_the_unets(sd, tmp_path):
    """Files of `unet.save_attn_procs`, and those that PEFT saves from a UNet alone."""
    attention = "mid_block.attentions.0.transformer_blocks.0.attn2"
    layer = sd.unet.get_submodule(f"{attention}.to_out.0")
    one = lora_tensors("x", layer)
    down, up = one["x.lora_down.weight"], one["x.lora_up.weight"]
    for name, ends in {
        f"{attention}.processor.to_out": ("_lora.down.weight", "_lora.up.weight"),
        f"{attention}.to_out.0": (".lora_A.weight", ".lora_B.weight"),
        f"base_model.model.{attention}.to_out.0": (".lora_A.weight", ".lora_B.weight"),
    }.items():
        tensors = {name + ends[0]: down.clone(), name + ends[1]: up.clone()}
        lora = read_lora(write(tmp_path / "a.safetensors", tensors))
        assert list(fit_lora(lora, sd).changes) == [Place("unet", f"{attention}.to_out.0")]


@pytest.mark.parametrize("per_output", [True, False])
def test_dora_sets_the_length_of_each_row_or_column(sd, tmp_path, per_output):
    """LyCORIS' dora_scale: (O, 1, 1, 1) gives each output its length, (1, I, 1, 1) each input."""
    place = Place("unet", "mid_block.resnets.0.conv1")
    layer = layers_of(sd)[place]
    name = "lora_unet_mid_block_resnets_0_conv1"
    lengths = 1 + torch.rand(64, generator=torch.Generator().manual_seed(4))
    tensors = lora_tensors(name, layer)
    shape = (64, 1, 1, 1) if per_output else (1, 64, 1, 1)
    tensors[f"{name}.dora_scale"] = lengths.reshape(shape)
    weight = layer.weight.detach().clone()
    down, up = tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"]
    turned = weight + 2 / RANK * torch.einsum("orxy,rikl->oikl", up, down)
    lora = read_lora(write(tmp_path / "a.safetensors", tensors))
    merged, quarter = (
        layers_of(apply_loras(sd, [(lora, amount)], merge=True))[place].weight.detach()
        for amount in (1, 0.25)
    )
    for i in range(64):
        got, plain = (merged[i], turned[i]) if per_output else (merged[:, i], turned[:, i])
        torch.testing.assert_close(got, lengths[i] * plain / plain.norm())
    torch.testing.assert_close(quarter, 0.75 * weight + 0.25 * merged)
    assert torch.equal(layer.weight, weight)


# --- saving ------------------------------------------------------------------------------------


def test_saving_with_loras_beside_is_refused(sd, lora_file, tmp_path):
    styled = apply_loras(sd, [(read_lora(lora_file), 1)])
    for save in (styled.unet.save_pretrained, partial(save_single_file, styled)):
        with pytest.raises(UsageError, match="LoRAs beside its layers cannot be saved"):
            save(tmp_path / "unet")
    assert not (tmp_path / "unet").exists()
    sd.unet.save_pretrained(tmp_path / "unet")


def test_a_merged_model_is_saved_as_it_paints(sd, lora_file, tmp_path):
    merged = apply_loras(sd, [(read_lora(lora_file), 0.1)], merge=True)
    how = {"seed": 3, "steps": 2, "width": 64, "height": 64}
    painted, plain = merged("a red fox", **how).latents, sd("a red fox", **how).latents
    save_folder(merged, tmp_path)
    saved = TextToImage.from_pretrained(tmp_path)
    assert torch.equal(saved("a red fox", **how).latents, painted)
    assert torch.equal(sd("a red fox", **how).latents, plain)
    assert not torch.equal(painted, plain)


@pytest.mark.parametrize("spelling", ["kohya", "diffusers"])
@pytest.mark.parametrize("model", ["sd", "sdxl"])
def test_saved_and_read_again(model, spelling, request, tmp_path):
    pipe: TextToImage = request.getfixturevalue(model)
    lora = read_lora(write(tmp_path / "a.safetensors", whole_lora(pipe)))
    path = tmp_path / "new" / "b.safetensors"
    changes = fit_lora(lora, pipe).changes
    save_lora(path, changes, spelling=spelling, metadata={"ss_note": "x"})
    again = read_lora(path)
    assert again.metadata["ss_note"] == "x"
    expected = snapshot(apply_loras(pipe, [(lora, 0.1)], merge=True))
    got = snapshot(apply_loras(pipe, [(again, 0.1)], merge=True))
    for state, known in zip(got, expected, strict=True):
        torch.testing.assert_close(state, known, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_saved(tmp_path, sd, lora_file):
    changes = fit_lora(read_lora(lora_file), sd).changes
    for path, how in (("a.bin", {}), ("a.safetensors", {"spelling": "peft"})):
        with pytest.raises(UsageError, match="cannot be saved"):
            save_lora(tmp_path / path, changes, **how)
    with pytest.raises(UsageError, match="cannot be saved"):
        save_lora(tmp_path / "a.safetensors", {})
    assert not list(tmp_path.iterdir())


# --- misuse ------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), "1", None, True])
def test_bad_weights(sd, lora_file, weight):
    before = snapshot(sd)
    with pytest.raises(UsageError, match="weight"):
        apply_loras(sd, [(read_lora(lora_file), weight)])
    assert_untouched(sd, before)


def test_a_merge_that_overflows_is_refused(sd, tmp_path):
    pipe = copy.deepcopy(sd).to(torch.float16)
    tensors = whole_lora(pipe)
    *_, last = (key for key in tensors if key.endswith("lora_up.weight"))
    tensors[last] *= 1e5  # every layer before this one can be merged
    lora = read_lora(write(tmp_path / "a.safetensors", tensors))
    before = snapshot(pipe)
    with pytest.raises(NonFiniteError, match="not finite as"):
        apply_loras(pipe, [(lora, 10)], merge=True)
    assert_untouched(pipe, before)
    assert answer_of(apply_loras(pipe, [(lora, 1e-3)], merge=True)).isfinite().all()


def test_none_at_all(sd):
    applied = apply_loras(sd, [])
    assert applied.unet is sd.unet and applied.loras == ()


def test_only_what_a_lora_names_is_wrapped(sd, other_file):
    styled = apply_loras(sd, [(read_lora(other_file), 1)])
    wrapped = [n for n, m in styled.unet.named_modules() if isinstance(m, AdaptedLayer)]
    assert wrapped and all(".attn" in name for name in wrapped)


# --- what does not fit -------------------------------------------------------------------------


def test_zero_matches_is_an_error(sd, tmp_path):
    layer = nn.Linear(4, 4)
    lora = read_lora(write(tmp_path / "a.safetensors", lora_tensors("lora_unet_nowhere", layer)))
    for allowed in (False, True):
        with pytest.raises(FileError, match="0 of its 1 layers fit"):
            apply_loras(sd, [(lora, 1)], allow_partial=allowed)


@pytest.mark.parametrize("matching", range(40))
def test_a_partial_match_is_an_error_unless_allowed(sd, tmp_path, matching):
    tensors: Tensors = {}
    for number, (place, layer) in enumerate(list(layers_of(sd).items())[:40]):
        name = kohya_name(place, sd) if number < matching else f"lora_unet_foreign_{number}"
        tensors |= lora_tensors(name, layer)
    lora = read_lora(write(tmp_path / "a.safetensors", tensors))
    layers = layers_of(sd)
    with pytest.raises(FileError, match=f"{matching} of its 40 layers fit.*keys are unknown"):
        apply_loras(sd, [(lora, 1)])
    assert layers_of(sd) == layers
    if matching:
        applied = apply_loras(sd, [(lora, 1)], allow_partial=True)
        assert len(applied.loras[0].unused) == 3 * (40 - matching)
        assert len(fit_lora(lora, sd, allow_partial=True).changes) == matching
        assert layers_of(sd) == layers


def test_counters_of_a_trainer_are_no_keys(sd, tmp_path):
    counters = {"global_step": torch.tensor(500), "epoch": torch.tensor(3.0)}
    tensors = {k: v for k, v in whole_lora(sd).items() if "attn" in k}
    lora = read_lora(write(tmp_path / "a.safetensors", tensors | counters))
    assert lora.unused == ()
    assert len(fit_lora(lora, sd).changes) == len(tensors) // 3


def test_an_unknown_key_beside_is_listed(sd, tmp_path):
    tensors = {**whole_lora(sd), "something.else": torch.zeros(1, 8)}
    lora = read_lora(write(tmp_path / "a.safetensors", tensors))
    assert lora.unused == ("something.else",)
    with pytest.raises(FileError, match="1 keys are unknown: something"):
        apply_loras(sd, [(lora, 1)])
    with pytest.warns(UserWarning, match=r"left out \(1\): something\.else"):
        styled = apply_loras(sd, [(lora, 1)], allow_partial=True)
    assert styled.loras[0].unused == lora.unused


def test_every_pair_of_families_is_refused_by_name(sd, sd_folder, sdxl, tmp_path):
    for pipe, other in ((sd, sdxl), (sdxl, sd)):
        lora = read_lora(write(tmp_path / "a.safetensors", whole_lora(other)))
        with pytest.raises(FileError, match="made for another model"):
            apply_loras(pipe, [(lora, 1)], allow_partial=True)


@pytest.mark.parametrize(("width", "family"), [(768, "SD 1.x"), (1024, "SD 2.x"), (2048, "SDXL")])
def test_a_real_width_names_the_family(sd, tmp_path, width, family):
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = lora_tensors(name, nn.Linear(width, 320))
    metadata = {"ss_base_model_version": "some_base"}
    lora = read_lora(write(tmp_path / "a.safetensors", tensors, metadata))
    with pytest.raises(FileError, match=f"for {family}.*width {width}.*some_base"):
        apply_loras(sd, [(lora, 1)])


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("lora_unet_double_blocks_0_img_attn_qkv", "Flux"),
        ("transformer.single_transformer_blocks.0.attn.to_q", "Flux"),
        ("lora_unet_joint_blocks_0_x_block_attn_qkv", "Stable Diffusion 3"),
        ("transformer.transformer_blocks.0.attn.to_q", "a model without UNet"),
    ],
)
def test_other_models_are_named(sd, tmp_path, name, family):
    lora = read_lora(write(tmp_path / "a.safetensors", lora_tensors(name, nn.Linear(8, 8))))
    with pytest.raises(FileError, match=f"is a layer of {family}"):
        apply_loras(sd, [(lora, 1)])


def test_the_second_text_encoder_alone_names_sdxl(sd, tmp_path):
    name = "lora_te2_text_model_encoder_layers_0_mlp_fc1"
    lora = read_lora(write(tmp_path / "a.safetensors", lora_tensors(name, nn.Linear(32, 64))))
    with pytest.raises(FileError, match="second text encoder of SDXL"):
        apply_loras(sd, [(lora, 1)])


def test_wrong_shapes_are_named(sd, tmp_path):
    tensors = whole_lora(sd)
    name = "lora_unet_mid_block_resnets_0_conv1"
    tensors[f"{name}.lora_down.weight"] = torch.zeros(RANK, 64 * 9, 1, 1)
    lora = read_lora(write(tmp_path / "a.safetensors", tensors))
    with pytest.raises(FileError, match=f"another shape: {name}.*64, 576, 1, 1.*64, 64, 3, 3"):
        apply_loras(sd, [(lora, 1)], allow_partial=True)
    tensors[f"{name}.lora_down.weight"] = torch.zeros(RANK + 1, 64, 3, 3)
    lora = read_lora(write(tmp_path / "a.safetensors", tensors))
    with pytest.raises(FileError, match="do not fit one another"):
        apply_loras(sd, [(lora, 1)])


def test_one_layer_under_two_names(sd, tmp_path):
    names = ("mid_block.attentions.0.proj_in", "unet.mid_block.attentions.0.proj_in")
    layer = sd.unet.get_submodule(names[0])
    tensors = {k: v for name in names for k, v in lora_tensors(name, layer).items()}
    with pytest.raises(FileError, match="another name both are"):
        apply_loras(sd, [(read_lora(write(tmp_path / "a.safetensors", tensors)), 1)])


# --- what cannot be read -----------------------------------------------------------------------

GOOD = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def good() -> Tensors:
    return lora_tensors(GOOD, nn.Linear(64, 64))


def with_(**changes: Tensor | None) -> Callable[[], Tensors]:
    def make() -> Tensors:
        keys = {"down": "lora_down.weight", "up": "lora_up.weight"}
        tensors = good()
        for name, value in changes.items():
            key = f"{GOOD}.{keys.get(name, name)}"
            if value is None:
                del tensors[key]
            else:
                tensors[key] = value
        return tensors

    return make


def beside(**tensors: Tensor) -> Callable[[], Tensors]:
    return lambda: {**good(), **{f"other.{key}": value for key, value in tensors.items()}}


NAN = torch.full((RANK, 64), torch.nan)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (with_(alpha=torch.tensor(torch.nan)), "NaN|not finite"),
        (with_(alpha=torch.tensor(torch.inf)), "not finite"),
        (with_(alpha=torch.tensor(0.0)), "alpha is .*above 0"),
        (with_(alpha=torch.tensor(-1.0)), "alpha is .*above 0"),
        (with_(alpha=torch.tensor(1e30)), "Alpha / rank is"),
        (with_(alpha=torch.tensor([1.0, 2.0])), "one number"),
        (with_(alpha=torch.zeros(0)), "one number"),
        (with_(down=NAN), "not finite"),
        (with_(up=-torch.inf * torch.ones(64, RANK)), "not finite"),
        (with_(down=torch.zeros(0, 64), up=torch.zeros(64, 0)), "no matrix"),
        (with_(down=torch.zeros(64)), "no matrix"),
        (with_(down=torch.tensor(1.0)), "no matrix"),
        (with_(up=None), "A part is missing"),
        (with_(down=None), "A part is missing"),
        (with_(hada_w1_a=torch.ones(2, 2)), "too many"),
        (with_(**{"lora_A.weight": torch.ones(2, 2)}), "the same tensor"),
        (lambda: {}, "holds no LoRA"),
        (lambda: {"emb_params": torch.ones(1, 8)}, "textual inversion"),
        (lambda: {"clip_l": torch.ones(1, 8), "clip_g": torch.ones(1, 8)}, "textual inversion"),
        (lambda: {"model.diffusion_model.out.2.weight": torch.ones(1)}, "a network"),
        (lambda: {f"{GOOD}.alpha": torch.tensor(1.0)}, "holds no LoRA"),
        (beside(oft_blocks=torch.ones(0)), "no matrix"),
        (beside(on_input=torch.ones(1)), "cannot be of its kind"),
        (beside(ia3_l=torch.ones(1), on_input=torch.ones(1)), "cannot be of its kind"),
        (beside(**{"a1.weight": torch.ones(1, 1)}), "A part is missing"),
        (beside(**{"oft_R.weight": torch.ones(2, 5)}), "no triangle"),
        (beside(**{"lora_B.bias": torch.ones(1)}), "A part is missing or too many"),
        (beside(set_weight=torch.ones(1)), "(?s)sdcore does not have.*whole weights"),
        (beside(lora_embedding_A=torch.ones(1)), "(?s)sdcore does not have.*embeddings"),
    ],
)
def test_bad_files(tmp_path, make, message):
    path = write(tmp_path / "bad.safetensors", make())
    with pytest.raises(FileError, match=message) as caught:
        read_lora(path)
    assert "bad.safetensors" in caught.value.what


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(FileError, match="missing"):
        read_lora(tmp_path / "none.safetensors")
    with pytest.raises(FileError, match="is a folder"):
        read_lora(tmp_path)
    (tmp_path / "archive.safetensors").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(FileError, match="zip archive of other files"):
        read_lora(tmp_path / "archive.safetensors")
    torch.save({"a": torch.ones(2)}, tmp_path / "pickle.safetensors")
    with pytest.raises(FileError, match="pickle checkpoint"):
        read_lora(tmp_path / "pickle.safetensors")


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 3, "lora_alpha": "6"},
        {"r": 3, "lora_alpha": -6},
        {"r": 3, "lora_alpha": 1e300},
        {"lora_alpha": [1]},
    ],
)
def test_bad_peft_settings(tmp_path, settings):
    name = "base_model.model.mid_block.attentions.0.proj_in"
    tensors = {f"{name}.lora_A.weight": torch.ones(3, 8), f"{name}.lora_B.weight": torch.ones(8, 3)}
    write(tmp_path / "adapter_model.safetensors", tensors)
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(FileError, match=r"settings cannot be used|Alpha / rank"):
        read_lora(tmp_path)


def test_facts_for_display(tmp_path):
    tags = {"10_fox": {"fox": 7, " red ": 2, "bad": "x"}, "20_more": {"red": 9}, "odd": 3}
    metadata = {
        "ss_base_model_version": "sdxl_base_v1-0",
        "modelspec.trigger_phrase": "a sks fox",
        "ss_tag_frequency": json.dumps(tags),
    }
    lora = read_lora(write(tmp_path / "style.safetensors", good(), metadata))
    assert lora.name == "style" and lora.base_model == "sdxl_base_v1-0"
    assert lora.trigger_words == "a sks fox"
    assert list(lora.tag_counts.items()) == [("red", 11), ("fox", 7)]
    for broken in ("", "[1]", "{", '{"a": 1'):
        lora = read_lora(write(tmp_path / "b.safetensors", good(), {"ss_tag_frequency": broken}))
        assert lora.tag_counts == {} and lora.base_model is None and lora.trigger_words is None
