"""The text encoder alone: masks, the pooled position, CLIP skip, settings and bad input."""

from __future__ import annotations

import pytest
import torch

from sdcore.attention_choice import use_attention
from sdcore.errors import UsageError
from sdcore.text.encoder import CLIPTextConfig, CLIPTextEncoder, end_of_text

END = 19


def make_encoder(**changes) -> CLIPTextEncoder:
    sizes = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 2, "max_position_embeddings": 10, "projection_dim": 6}
    torch.manual_seed(0)
    return CLIPTextEncoder(CLIPTextConfig(**{**sizes, "eos_token_id": END, **changes})).eval()


IDS = torch.tensor([[18, 3, 7, 5, 19, 19, 19, 19], [18, 4, 19, 0, 0, 0, 0, 0]])


def test_no_token_sees_a_later_one():
    encoder = make_encoder()
    changed = IDS.clone()
    changed[:, 5:] = 6
    with torch.no_grad():
        first, second = encoder(IDS), encoder(changed)
    assert torch.equal(first.last_hidden_state[:, :5], second.last_hidden_state[:, :5])
    assert not torch.equal(first.last_hidden_state[:, 5:], second.last_hidden_state[:, 5:])


def test_no_token_sees_padding():
    encoder = make_encoder()
    mask = torch.tensor([[1, 1, 0, 1, 1, 1, 1, 1], [1] * 8])
    changed = IDS.clone()
    changed[0, 2] = 9
    with torch.no_grad():
        first, second = encoder(IDS, mask), encoder(changed, mask.bool())
        unmasked = encoder(changed)
    others = [0, 1, 3, 4, 5, 6, 7]
    assert torch.equal(first.last_hidden_state[:, others], second.last_hidden_state[:, others])
    assert not torch.equal(first.last_hidden_state[0, 4], unmasked.last_hidden_state[0, 4])


def test_rows_of_a_batch_do_not_touch_each_other(device):
    encoder, ids = make_encoder().to(device), IDS.to(device)
    with torch.no_grad():
        both, alone = encoder(ids), encoder(ids[1:])
    torch.testing.assert_close(both.last_hidden_state[1:], alone.last_hidden_state)
    torch.testing.assert_close(both.pooled[1:], alone.pooled)


def test_shapes():
    for projection, width in ((False, 16), (True, 6)):
        encoding = make_encoder(with_projection=projection)(IDS)
        assert encoding.last_hidden_state.shape == (2, 8, 16)
        assert [state.shape for state in encoding.hidden_states] == [(2, 8, 16)] * 4
        assert encoding.pooled.shape == (2, width)


@pytest.mark.parametrize(
    ("eos", "positions"),
    [(19, [4, 2]), (2, [4, 2]), (5, [3, 0]), (0, [0, 3])],
)
def test_end_of_text(eos, positions):
    """2 means the highest id; else the first of that id, and the first token where it is absent."""
    assert end_of_text(IDS, eos).tolist() == positions


def test_pooled_is_the_state_at_the_end_of_text():
    encoding = make_encoder()(IDS)
    assert torch.equal(encoding.pooled, encoding.last_hidden_state[[0, 1], [4, 2]])


def test_clip_skip():
    encoder = make_encoder()
    encoding = encoder(IDS)
    assert torch.equal(encoder.skip(encoding, 0), encoding.last_hidden_state)
    norm = encoder.text_model.final_layer_norm
    assert torch.equal(encoder.skip(encoding, 1), norm(encoding.hidden_states[-2]))
    assert torch.equal(encoder.skip(encoding, 3), norm(encoding.hidden_states[0]))
    for bad in (-1, 4):
        with pytest.raises(UsageError, match="3 layers"):
            encoder.skip(encoding, bad)


@pytest.mark.parametrize("backend", ["sdpa", "chunked", "reference"])
def test_every_attention_backend(backend):
    encoder = make_encoder()
    with torch.no_grad():
        wanted = encoder(IDS).last_hidden_state
        assert use_attention(encoder, backend).layers == 3
        torch.testing.assert_close(encoder(IDS).last_hidden_state, wanted)


@pytest.mark.parametrize(
    ("ids", "mask"),
    [
        (torch.tensor([1, 2]), None),
        (torch.zeros(1, 4), None),
        (torch.zeros(1, 11, dtype=torch.long), None),
        (torch.tensor([[20]]), None),
        (torch.tensor([[-1]]), None),
        (IDS, torch.ones(2, 7)),
    ],
)
def test_bad_input(ids, mask):
    with pytest.raises(UsageError):
        make_encoder()(ids, mask)


def test_initial_weights_keep_the_signal():
    """Neither vanishing nor exploding: what training from scratch needs."""
    torch.manual_seed(1)
    config = CLIPTextConfig(
        vocab_size=500, eos_token_id=499, hidden_size=128, intermediate_size=512
    )
    with torch.no_grad():
        states = CLIPTextEncoder(config)(torch.randint(0, 500, (4, 32))).hidden_states
    assert 0.01 < states[0].std() < 0.05 and 0.05 < states[-1].std() < 5
    parameters = dict(CLIPTextEncoder(config).named_parameters())
    assert not any(p.any() for name, p in parameters.items() if name.endswith("bias"))


def test_settings_round_trip():
    for projection in (False, True):
        config = CLIPTextConfig(hidden_act="gelu", eos_token_id=2, with_projection=projection)
        assert CLIPTextConfig.from_dict(config.to_dict()) == config


def test_published_settings_are_read():
    """config.json of text_encoder_2 in stable-diffusion-xl-base-1.0, key for key."""
    config = CLIPTextConfig.from_dict(
        {
            "architectures": ["CLIPTextModelWithProjection"],
            "attention_dropout": 0.0,
            "bos_token_id": 0,
            "dropout": 0.0,
            "eos_token_id": 2,
            "hidden_act": "gelu",
            "hidden_size": 1280,
            "initializer_factor": 1.0,
            "initializer_range": 0.02,
            "intermediate_size": 5120,
            "layer_norm_eps": 1e-05,
            "max_position_embeddings": 77,
            "model_type": "clip_text_model",
            "num_attention_heads": 20,
            "num_hidden_layers": 32,
            "pad_token_id": 1,
            "projection_dim": 1280,
            "torch_dtype": "float16",
            "transformers_version": "4.32.0.dev0",
            "vocab_size": 49408,
        }
    )
    assert (config.hidden_size, config.num_hidden_layers, config.eos_token_id) == (1280, 32, 2)
    assert config.with_projection


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden_act": "gelu_new"},
        {"attention_dropout": 0.1},
        {"dropout": 0.5},
        {"is_decoder": True},
        {"hidden_sizes": 8},
        {"model_type": "clip"},
        {"architectures": ["T5EncoderModel"]},
        {"num_attention_heads": 7},
        {"num_hidden_layers": 10**6},
        {"quantization_config": {}},
    ],
)
def test_settings_that_we_do_not_have_are_named(settings):
    with pytest.raises(UsageError, match=next(iter(settings))):
        CLIPTextConfig.from_dict(settings)
