"""The UNet by itself: sizes, sites, controls, training, compiling, and what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch

from sdcore.attention_choice import use_attention
from sdcore.errors import UsageError
from sdcore.unet.unet import AddedConditions, UNet, UNetConfig

TINY = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [8, 16],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 6,
    "attention_head_dim": 2,
}
SDXL = {
    **TINY,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 5 + 6 * 4,
}


ONE_LEVEL = {  # of SDXL
    **SDXL,
    "block_out_channels": [8],
    "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D"],
}


NO_TEXT = {
    **TINY,
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "mid_block_type": None,
}


def tiny(**settings):
    torch.manual_seed(0)
    return UNet(UNetConfig.from_dict({**TINY, **settings})).eval()


def inputs(batch=2, height=8, width=8, tokens=5, device="cpu"):
    torch.manual_seed(1)
    latents, text = torch.randn(batch, 4, height, width), torch.randn(batch, tokens, 6)
    return latents.to(device), torch.tensor(300, device=device), text.to(device)


@pytest.mark.parametrize("size", [(8, 8), (8, 12), (5, 7), (1, 1)])
def test_any_latent_size(size, device):
    latents, time, text = inputs(height=size[0], width=size[1], device=device)
    assert tiny().to(device)(latents, time, text).shape == latents.shape


def test_time_may_be_a_number_or_one_per_image():
    unet = tiny()
    latents, _, text = inputs()
    expected = unet(latents, torch.tensor([7, 7]), text)
    for time in (7, 7.0, torch.tensor(7), torch.tensor([7])):
        torch.testing.assert_close(unet(latents, time, text), expected)
    mixed = unet(latents, torch.tensor([7, 900]), text)
    torch.testing.assert_close(mixed[0], expected[0])
    assert not torch.allclose(mixed[1], expected[1], atol=1e-4)


@pytest.mark.parametrize("settings", [TINY, SDXL, NO_TEXT], ids=["sd", "sdxl", "no attention"])
def test_several_texts_for_each_image_are_several_rows(settings):
    """What all rows of an image share is computed once; the answer is that of all rows."""
    unet = tiny(**settings)
    latents, _, text = inputs(batch=6)
    latents, time = latents[:2], torch.tensor([300, 20])
    real, added = torch.arange(5) < torch.tensor([5, 4, 3, 5, 5, 1])[:, None], None
    if settings is SDXL:
        added = AddedConditions(torch.randn(6, 5), torch.arange(36.0).view(6, 6))
    found = unet(latents, time, text, added=added, text_mask=real)
    rows = latents.repeat(3, 1, 1, 1), time.repeat(3), text
    torch.testing.assert_close(found, unet(*rows, added=added, text_mask=real))


def test_a_known_text_gives_the_same_bits():
    unet = tiny()
    latents, time, text = inputs()
    assert torch.equal(unet(latents, time, unet.read(text)), unet(latents, time, text))


def test_the_text_mask_hides_tokens(device):
    unet = tiny().to(device)
    latents, time, text = inputs(device=device)
    real = torch.tensor([[1, 1, 1, 0, 0]] * 2, device=device)
    masked = unet(latents, time, text, text_mask=real)
    torch.testing.assert_close(masked, unet(latents, time, text[:, :3]))


def test_every_attention_layer_has_its_own_site_under_its_published_name():
    unet = tiny()
    latents, time, text = inputs(height=8, width=12)
    seen = {}

    def watch(site, grid, q, k, v, attend):
        assert site not in seen
        seen[site] = grid
        return attend(q, k, v)

    assert torch.equal(unet(latents, time, text, watch), unet(latents, time, text))
    modules = dict(unet.named_modules())
    assert {site.name for site in seen} == {
        name for name in modules if name.endswith(("attn1", "attn2"))
    }
    for site, grid in seen.items():
        assert modules[site.name].site is site
        assert grid == (8 >> site.level, 12 >> site.level)
        assert site.kind == ("self" if site.name.endswith("attn1") else "cross")
    places = [(site.place, site.level, site.index) for site in seen if site.kind == "cross"]
    assert places == [("down", 0, 0), ("mid", 1, 0), ("up", 0, 0), ("up", 0, 1)]


def test_a_control_is_differentiable_and_leaves_no_trace():
    unet = tiny()
    latents, time, text = inputs()
    latents.requires_grad_()
    plain = unet(latents, time, text)
    before = {name: dict(vars(module)) for name, module in unet.named_modules()}
    maps = []

    def record(site, grid, q, k, v, attend):
        if site.kind == "cross":
            identity = torch.eye(k.shape[2]).expand(*k.shape[:2], -1, -1)
            maps.append(attend(q, k, identity).mean(1))  # (B, N, T): where each word is read
        return attend(q, k, v)

    unet(latents, time, text, record)
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 5), (16, 5), (64, 5), (64, 5)]
    torch.testing.assert_close(maps[0].sum(-1), torch.ones(2, 64))
    (gradient,) = torch.autograd.grad(maps[-1][..., 2].sum(), latents)
    assert gradient.abs().max() > 0

    def broken(site, grid, q, k, v, attend):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        unet(latents, time, text, broken)
    assert {name: dict(vars(module)) for name, module in unet.named_modules()} == before
    assert torch.equal(unet(latents, time, text), plain)


def test_it_learns_and_every_parameter_takes_part():
    unet = tiny().train()
    use_attention(unet, "auto")
    latents, time, text = inputs()
    target = torch.randn_like(latents)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            prediction = unet(latents, time, text)
        loss = (prediction.float() - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in unet.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("settings", "backend"),
    [
        (ONE_LEVEL, "sdpa"),  # and tests/test_attention.py has a layer on each backend
        pytest.param(SDXL, "sdpa", marks=pytest.mark.slow),
        pytest.param(TINY, "reference", marks=pytest.mark.slow),
        pytest.param(TINY, "chunked", marks=pytest.mark.slow),
    ],
    ids=["one level", "sdxl sdpa", "sd reference", "sd chunked"],
)
def test_it_compiles_as_one_graph(settings, backend):
    torch.compiler.reset()
    unet = tiny(**settings)
    use_attention(unet, backend)
    latents, time, text = inputs()
    added = None
    if settings.get("addition_embed_type"):
        added = AddedConditions(torch.randn(2, 5), torch.arange(12.0).view(2, 6))
    compiled = torch.compile(unet, fullgraph=True, backend="aot_eager")
    found = compiled(latents, time, text, added=added)
    torch.testing.assert_close(found, unet(latents, time, text, added=added))
    found.sum().backward()
    assert all(p.grad is not None for p in unet.parameters())


def test_channels_last_stays_channels_last():
    unet = tiny(use_linear_projection=True)
    latents, time, text = inputs()
    expected = unet(latents, time, text)
    assert expected.is_contiguous()
    unet = unet.to(memory_format=torch.channels_last)
    found = unet(latents.to(memory_format=torch.channels_last), time, text)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected)


def test_half_precision_weights():
    unet = tiny().to(torch.bfloat16)
    latents, time, text = inputs()
    found = unet(latents.bfloat16(), time, text.bfloat16())
    assert found.dtype == torch.bfloat16
    expected = tiny()(latents, time, text)
    assert (found - expected).norm() / expected.norm() < 0.05


def test_it_can_be_built_without_memory():
    with torch.device("meta"):
        unet = UNet(UNetConfig())
    assert sum(p.numel() for p in unet.parameters()) > 800_000_000
    assert not list(unet.buffers())


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("act_fn", "snake"),
        ("addition_embed_type", "text_image"),
        ("attention_type", "gated"),
        ("center_input_sample", True),
        ("class_embed_type", "timestep"),
        ("class_embeddings_concat", True),
        ("cross_attention_norm", "layer_norm"),
        ("downsample_padding", 0),
        ("dual_cross_attention", True),
        ("encoder_hid_dim", 768),
        ("encoder_hid_dim_type", "text_proj"),
        ("mid_block_only_cross_attention", True),
        ("mid_block_scale_factor", 2),
        ("mid_block_type", "UNetMidBlock2DSimpleCrossAttn"),
        ("norm_num_groups", None),
        ("num_attention_heads", 8),
        ("num_class_embeds", 10),
        ("only_cross_attention", True),
        ("only_cross_attention", [False, True]),
        ("resnet_out_scale_factor", 1.5),
        ("resnet_skip_time_act", True),
        ("resnet_time_scale_shift", "scale_shift"),
        ("time_cond_proj_dim", "256"),
        ("time_embedding_act_fn", "silu"),
        ("time_embedding_dim", 512),
        ("time_embedding_type", "fourier"),
        ("timestep_post_act", "silu"),
    ],
)
def test_a_setting_we_do_not_have_is_refused_by_name(name, value):
    with pytest.raises(UsageError) as caught:
        UNetConfig.from_dict({**TINY, name: value})
    assert name in caught.value.what and repr(value) in caught.value.what


def test_a_block_type_we_do_not_have_is_refused_by_name():
    for name, wrong in [("down_block_types", "KDownBlock2D"), ("up_block_types", "AttnUpBlock2D")]:
        with pytest.raises(UsageError, match=f"{name} = '{wrong}'"):
            UNetConfig.from_dict({**TINY, name: [TINY[name][0], wrong]})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attention_head_dim", 3),
        ("attention_head_dim", [2, 2, 2]),
        ("block_out_channels", "8, 16"),
        ("cross_attention_dim", 0),
        ("down_block_types", ["DownBlock2D"]),
        ("in_channels", 4.5),
        ("layers_per_block", [1, True]),
        ("norm_num_groups", 3),
        ("transformer_layers_per_block", [[1], 1]),
        ("transformer_layers_per_block", -1),
    ],
)
def test_a_setting_that_does_not_fit_is_refused_by_name(name, value):
    with pytest.raises(UsageError, match=name):
        UNetConfig.from_dict({**TINY, name: value})


def test_lists_within_levels_need_their_counterpart_on_the_way_up():
    settings = {**TINY, "transformer_layers_per_block": [[2], 1]}
    with pytest.raises(UsageError, match="reverse_transformer_layers_per_block"):
        UNetConfig.from_dict(settings)
    settings["reverse_transformer_layers_per_block"] = [1, [3, 2, 1]]
    with pytest.raises(UsageError, match="2 residual blocks"):
        UNetConfig.from_dict(settings)


def test_an_unknown_setting_is_refused_with_the_nearest_name():
    with pytest.raises(UsageError, match=r"cross_attention_dims[\s\S]*'cross_attention_dim'"):
        UNetConfig.from_dict({**TINY, "cross_attention_dims": 6})
    with pytest.raises(UsageError, match="UNet3DConditionModel"):
        UNetConfig.from_dict({**TINY, "_class_name": "UNet3DConditionModel"})


def test_text_time_needs_its_sizes():
    for name in ("addition_time_embed_dim", "projection_class_embeddings_input_dim"):
        with pytest.raises(UsageError, match=name):
            UNetConfig.from_dict({**SDXL, name: None})


def test_a_config_survives_the_way_through_json():
    import json

    config = UNetConfig.from_dict({**SDXL, "sample_size": [8, 8]})
    assert UNetConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert copy.copy(config) == config and hash(config)


def test_inputs_of_a_wrong_shape_are_named():
    unet, (latents, time, text) = tiny(), inputs()
    with pytest.raises(UsageError, match="latents"):
        unet(latents[:, :3], time, text)
    with pytest.raises(UsageError, match="text"):
        unet(latents, time, text[:1])
    with pytest.raises(UsageError, match=f"D={text.shape[2]}"):
        unet(latents, time, text[..., :-1])
    with pytest.raises(UsageError, match="text_mask"):
        unet(latents, time, text, text_mask=torch.ones(text.shape[0], text.shape[1] + 1))
    with pytest.raises(UsageError, match="time"):
        unet(latents, torch.tensor([1, 2, 3]), text)
    added = AddedConditions(torch.randn(2, 5), torch.zeros(2, 6))
    with pytest.raises(UsageError, match="given"):
        unet(latents, time, text, added=added)
    sdxl = tiny(**SDXL)
    with pytest.raises(UsageError, match="missing"):
        sdxl(latents, time, text)
    with pytest.raises(UsageError, match="time_ids"):
        sdxl(latents, time, text, added=AddedConditions(torch.randn(2, 5), torch.zeros(2, 5)))


def test_checkpointed_gradients_are_the_same_and_less_is_kept():
    kept: dict[bool, int] = {}
    gradients: dict[bool, list[torch.Tensor]] = {}
    for recompute in (False, True):
        unet = tiny().train()
        unet.gradient_checkpointing = recompute
        latents, time, text = inputs()
        sizes: dict[int, int] = {}

        def keep(tensor, sizes=sizes):
            sizes[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            answer = unet(latents, time, text)
        kept[recompute] = sum(sizes.values())
        answer.square().mean().backward()
        gradients[recompute] = [parameter.grad for parameter in unet.parameters()]
    assert kept[True] < 0.6 * kept[False]
    assert all(torch.equal(a, b) for a, b in zip(*gradients.values(), strict=True))
