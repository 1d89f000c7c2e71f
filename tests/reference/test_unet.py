"""The UNet against diffusers' own: same weights in, same numbers out, in every layout.

The models are built and saved by diffusers with random weights at small widths; nothing is
downloaded. `make parity` compares the full-size ones.
"""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from sdcore.attention import BACKENDS
from sdcore.attention_choice import unavailable, use_attention
from sdcore.unet.unet import AddedConditions, UNet

FOUR_LEVELS = {
    "block_out_channels": [16, 32, 64, 64],
    "norm_num_groups": 8,
    "cross_attention_dim": 24,
    "attention_head_dim": 4,
}
INNER_ATTENTION = {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}


def text_time(numbers):
    return {
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 20 + 8 * numbers,
    }


SCALE = 7.0  # of guidance
LAYOUTS = {
    "sd15": FOUR_LEVELS,
    "sd21": {
        **FOUR_LEVELS,
        "attention_head_dim": [2, 4, 8, 8],
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "inpainting": {**FOUR_LEVELS, "in_channels": 9},
    "sdxl-base": {
        **INNER_ATTENTION,
        **text_time(6),
        "block_out_channels": [16, 32, 64],
        "norm_num_groups": 8,
        "cross_attention_dim": 24,
        "attention_head_dim": [2, 4, 8],
        "transformer_layers_per_block": [1, 2, 3],
    },
    "sdxl-refiner": {
        **text_time(5),
        "block_out_channels": [16, 32, 64, 64],
        "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2, "DownBlock2D"],
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
        "norm_num_groups": 8,
        "cross_attention_dim": 24,
        "attention_head_dim": [2, 4, 8, 8],
        "transformer_layers_per_block": 2,
    },
    "emoji": {
        "in_channels": 16,
        "out_channels": 16,
        "block_out_channels": [24, 48],
        "down_block_types": ["CrossAttnDownBlock2D"] * 2,
        "up_block_types": ["CrossAttnUpBlock2D"] * 2,
        "norm_num_groups": 8,
        "cross_attention_dim": 24,
        "attention_head_dim": [3, 6],
    },
    # Distilled: a middle without attention, or none.
    "segmind": {**FOUR_LEVELS, "mid_block_type": "UNetMidBlock2D"},
    "tiny-sd": {**FOUR_LEVELS, "mid_block_type": None},
    "lcm": {**FOUR_LEVELS, "time_cond_proj_dim": 20},
    "uneven": {  # every setting that may be a list, as a list; and the rarer numbers
        **INNER_ATTENTION,
        "block_out_channels": [16, 32, 64],
        "layers_per_block": [1, 2, 1],
        "transformer_layers_per_block": [1, [2, 1], [1]],
        "reverse_transformer_layers_per_block": [[1, 2], [1, 2, 1], 1],
        "cross_attention_dim": [24, 24, 24],
        "attention_head_dim": [2, 4, 8],
        "norm_num_groups": 4,
        "norm_eps": 1e-3,
        "act_fn": "gelu",
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "conv_in_kernel": 5,
        "conv_out_kernel": 1,
        "dropout": 0.1,
    },
}


@pytest.fixture(scope="module", params=LAYOUTS)
def pair(request, tmp_path_factory):
    """Diffusers' model, and ours read from the folder that diffusers wrote."""
    torch.manual_seed(0)
    settings = {"layers_per_block": 2, "sample_size": 64, **LAYOUTS[request.param]}
    theirs = UNet2DConditionModel(**settings).eval()
    with torch.no_grad():  # norms are born as 1 and 0, which would hide one taken for another
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    return theirs, UNet.from_pretrained(folder)


def inputs(unet, size=(16, 16), batch=2, tokens=77):
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    latents, text = normal(batch, unet.config.in_channels, *size), normal(batch, tokens, 24)
    time = torch.tensor([981, 1, 500, 37])[:batch]
    if unet.config.addition_embed_type is None:
        return latents, time, text, None
    numbers = 6 if unet.config.projection_class_embeddings_input_dim == 20 + 8 * 6 else 5
    time_ids = torch.randint(0, 1024, (batch, numbers), generator=generator)
    return latents, time, text, AddedConditions(normal(batch, 20), time_ids)


def run_theirs(unet, latents, time, text, added, mask=None):
    kwargs = None
    if added is not None:
        kwargs = {"text_embeds": added.pooled_text, "time_ids": added.time_ids}
    told = None
    if unet.config.time_cond_proj_dim is not None:
        told = StableDiffusionPipeline.get_guidance_scale_embedding(
            None, torch.full((len(latents),), SCALE - 1), unet.config.time_cond_proj_dim
        )
    return unet(
        latents, time, text, timestep_cond=told, added_cond_kwargs=kwargs,
        encoder_attention_mask=mask,
    ).sample  # fmt: skip


def scale(unet):
    """The guidance scale, for a UNet that is told it."""
    return {"guidance_scale": SCALE} if unet.config.time_cond_proj_dim else {}


def error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def check(pair, mask=None, tolerance=1e-6, **sizes):
    """The promise is 1e-5; on the backend that diffusers uses too, rounding leaves far less."""
    theirs, ours = pair
    latents, time, text, added = inputs(ours, **sizes)
    with torch.no_grad():
        expected = run_theirs(theirs, latents, time, text, added, mask)
        found = ours(latents, time, text, added=added, text_mask=mask, **scale(ours))
    assert found.shape == expected.shape
    assert error(found, expected) <= tolerance


@pytest.mark.parametrize("size", [(24, 40), (9, 13)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_output_at_every_size(pair, size):
    check(pair, size=size, batch=1)


@pytest.mark.parametrize(("batch", "tokens"), [(1, 154), (3, 77)])
def test_output_at_every_batch_and_text_length(pair, batch, tokens):
    check(pair, batch=batch, tokens=tokens)


@pytest.mark.parametrize("name", [name for name in BACKENDS if unavailable(name) is None])
def test_output_on_every_backend(pair, name):
    use_attention(pair[1], name)
    try:
        check(pair, tolerance=1e-5, size=(9, 13))
    finally:
        use_attention(pair[1], "sdpa")


def test_output_with_a_text_mask(pair):
    real = torch.arange(77).expand(2, 77) < torch.tensor([[11], [60]])
    check(pair, mask=real)


def test_gradients_of_parameters_and_inputs(pair):
    """On the backend of diffusers; tests/test_attention.py holds the others to each other."""
    theirs, ours = pair
    grads = []
    for unet in (theirs, ours):
        latents, time, text, added = inputs(ours, size=(12, 8))
        leaves = [latents, text] if added is None else [latents, text, added.pooled_text]
        for leaf in leaves:
            leaf.requires_grad_()
        if unet is theirs:
            out = run_theirs(unet, latents, time, text, added)
        else:
            out = unet(latents, time, text, added=added, **scale(ours))
        weight = torch.linspace(-1, 1, out.numel()).view(out.shape)
        named = dict(unet.named_parameters())
        found = torch.autograd.grad((out * weight).sum(), [*leaves, *named.values()])
        names = ["latents", "text", "pooled_text"][: len(leaves)]
        grads.append(dict(zip([*names, *named], found, strict=True)))
    expected, found = grads
    assert found.keys() == expected.keys()
    whole = [torch.cat([g[key].flatten() for key in expected]) for g in (found, expected)]
    assert error(*whole) <= 1e-5
    # one parameter at a time, a little wider: some gradients are small differences of large numbers
    for key in expected:
        assert error(found[key], expected[key]) <= 1e-4, key


def test_time_as_a_plain_number(pair):
    theirs, ours = pair
    latents, _, text, added = inputs(ours)
    with torch.no_grad():
        for time in (0, 417, 12.5):
            expected = run_theirs(theirs, latents, time, text, added)
            assert error(ours(latents, time, text, added=added, **scale(ours)), expected) <= 1e-5


def test_what_we_save_opens_in_diffusers(pair, tmp_path):
    theirs, ours = pair
    ours.save_pretrained(tmp_path)
    again, info = UNet2DConditionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    for key, value in theirs.config.items():
        if not key.startswith("_"):
            assert again.config[key] == (list(value) if isinstance(value, tuple) else value), key
    latents, time, text, added = inputs(ours)
    with torch.no_grad():
        expected = run_theirs(theirs, latents, time, text, added)
        assert torch.equal(run_theirs(again, latents, time, text, added), expected)


def test_random_weights_start_from_the_same_distribution(pair):
    """A UNet trained from scratch here starts where diffusers' would."""
    torch.manual_seed(5)
    fresh = UNet(pair[1].config)
    reference = dict(UNet2DConditionModel.from_config(pair[0].config).named_parameters())
    for key, a in fresh.named_parameters():
        b = reference.pop(key)
        if a.ndim == 1 and a.unique().numel() == 1:  # the norms' ones and zeros
            assert torch.equal(a, b), key
        elif a.numel() >= 256:
            assert 0.8 < (a.std() / b.std()).item() < 1.25, key
    assert not reference
