"""Recurrent text encoders: their equations, the CLIP encoder's interface, its budget, its place."""

from __future__ import annotations

import json

import pytest
import torch

from sdcore import (
    TextToImage,
    apply_embeddings,
    read_embedding,
    save_embedding,
    save_folder,
    save_single_file,
)
from sdcore.errors import FileError, UsageError
from sdcore.pipeline.text_to_image import EMBEDDED
from sdcore.recurrence import CELLS, LSTMCell, Recurrence, RNNCell
from sdcore.text.encoder import CLIPTextConfig, CLIPTextEncoder
from sdcore.text.recurrent_encoder import RecurrentTextConfig, RecurrentTextEncoder
from tests.painting import paint

END = 19
IDS = torch.tensor([[18, 3, 7, 5, 19, 19, 19, 19], [18, 4, 19, 0, 0, 0, 0, 0]])


def make_encoder(cell: str, **changes) -> RecurrentTextEncoder:
    sizes = {"vocab_size": 20, "hidden_size": 16, "state_size": 24, "num_hidden_layers": 3}
    sizes |= {"max_position_embeddings": 10, "eos_token_id": END}
    torch.manual_seed(0)
    return RecurrentTextEncoder(RecurrentTextConfig(cell=cell, **{**sizes, **changes})).eval()


@pytest.fixture(params=CELLS)
def cell(request) -> str:
    return request.param


def test_an_rnn_step_is_the_equation():
    step = RNNCell(3, 5)
    x, h = torch.randn(2, 3), torch.randn(2, 5)
    w, b, u = step.from_input.weight, step.from_input.bias, step.from_state.weight
    expected = torch.tanh(x @ w.T + b + h @ u.T)
    torch.testing.assert_close(step(step.from_input(x), h[None]), expected[None])


def test_an_lstm_step_is_the_equations():
    step = LSTMCell(3, 5)
    x, h, c = torch.randn(2, 3), torch.randn(2, 5), torch.randn(2, 5)
    parts = zip(
        step.from_input.weight.split(5),
        step.from_input.bias.split(5),
        step.from_state.weight.split(5),
        strict=True,
    )
    i, f, g, o = (x @ w.T + b + h @ u.T for w, b, u in parts)
    kept = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    shown = torch.sigmoid(o) * torch.tanh(kept)
    state = step(step.from_input(x), torch.stack([h, c]))
    torch.testing.assert_close(state, torch.stack([shown, kept]))


def torch_layer(cell: str, ours: Recurrence, width: int) -> torch.nn.Module:
    """torch.nn.RNN or LSTM with the weights of ours; its second bias is one too many."""
    cls = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM}[cell]
    theirs = cls(width, ours.size, batch_first=True).to(next(ours.parameters()).dtype)
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(ours.cell.from_input.weight)
        theirs.bias_ih_l0.copy_(ours.cell.from_input.bias)
        theirs.weight_hh_l0.copy_(ours.cell.from_state.weight)
        theirs.bias_hh_l0.zero_()
    return theirs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("begun", [False, True])
def test_a_recurrence_equals_torch_in_values_and_gradients(cell, dtype, begun):
    torch.manual_seed(3)
    ours = Recurrence(cell, 6, 9).to(dtype)
    with torch.no_grad():  # biases are born as 0 and 1, which would hide a mistake in them
        ours.cell.from_input.bias.normal_()
    theirs = torch_layer(cell, ours, 6)
    x = torch.randn(4, 13, 6, dtype=dtype)
    state = torch.randn(ours.cell.KEPT, 4, 9, dtype=dtype) if begun else None
    direction = torch.randn(4, 13, 9, dtype=dtype)
    tolerance = {"rtol": 0, "atol": 1e-6}

    inputs = [x.clone().requires_grad_() for _ in range(2)]
    shown, last = ours(inputs[0], state=state)
    if state is None:
        wanted, wanted_last = theirs(inputs[1])
    elif cell == "rnn":
        wanted, wanted_last = theirs(inputs[1], state)
    else:
        wanted, wanted_last = theirs(inputs[1], (state[:1], state[1:]))
    wanted_last = torch.cat(wanted_last) if cell == "lstm" else wanted_last
    torch.testing.assert_close(shown, wanted, **tolerance)
    torch.testing.assert_close(last, wanted_last, **tolerance)

    for output, end in ((shown, last), (wanted, wanted_last)):
        ((output * direction).mean() + end.square().mean()).backward()
    pairs = {
        "x": (inputs[0].grad, inputs[1].grad),
        "W": (ours.cell.from_input.weight.grad, theirs.weight_ih_l0.grad),
        "b": (ours.cell.from_input.bias.grad, theirs.bias_ih_l0.grad),
        "U": (ours.cell.from_state.weight.grad, theirs.weight_hh_l0.grad),
    }
    for name, (ours_grad, theirs_grad) in pairs.items():
        assert theirs_grad.abs().max() > 1e-3, name
        torch.testing.assert_close(ours_grad, theirs_grad, **tolerance)


def test_padding_leaves_the_state_as_it_was(cell):
    ours, x = Recurrence(cell, 6, 9), torch.randn(2, 7, 6)
    real = torch.tensor([[1, 1, 1, 1, 0, 0, 0], [1, 0, 1, 1, 1, 1, 1]])
    shown, last = ours(x, real)
    _, first = ours(x[:1, :4])
    _, second = ours(x[1:, [0, 2, 3, 4, 5, 6]])
    torch.testing.assert_close(last, torch.cat([first, second], dim=1))
    assert torch.equal(shown[0, 3:], shown[0, 3].expand(4, 9))


def test_shapes_and_the_pooled_token(cell):
    encoding = make_encoder(cell)(IDS)
    assert encoding.last_hidden_state.shape == (2, 8, 16)
    assert [state.shape for state in encoding.hidden_states] == [(2, 8, 16)] * 4
    assert torch.equal(encoding.pooled, encoding.last_hidden_state[[0, 1], [4, 2]])


def test_no_token_sees_a_later_one_and_each_sees_all_before(cell):
    encoder = make_encoder(cell)
    wanted = encoder(IDS).last_hidden_state
    for place in (0, 3):
        changed = IDS.clone()
        changed[:, place] = 6
        now = encoder(changed).last_hidden_state
        assert torch.equal(now[:, :place], wanted[:, :place])
        assert (now[:, place:] != wanted[:, place:]).any(dim=-1).all()


def test_no_token_sees_padding(cell):
    encoder = make_encoder(cell)
    mask = torch.tensor([[1, 1, 0, 1, 1, 1, 1, 1], [1] * 8])
    changed = IDS.clone()
    changed[0, 2] = 9
    first, second = encoder(IDS, mask), encoder(changed, mask.bool())
    others = [0, 1, 3, 4, 5, 6, 7]
    assert torch.equal(first.last_hidden_state[:, others], second.last_hidden_state[:, others])
    assert not torch.equal(encoder(changed).last_hidden_state[0, 4], first.last_hidden_state[0, 4])


def test_clip_skip(cell):
    encoder = make_encoder(cell)
    encoding = encoder(IDS)
    assert torch.equal(encoder.skip(encoding, 0), encoding.last_hidden_state)
    norm = encoder.text_model.final_layer_norm
    assert torch.equal(encoder.skip(encoding, 2), norm(encoding.hidden_states[1]))
    with pytest.raises(UsageError, match="3 layers"):
        encoder.skip(encoding, 4)


def test_bad_input(cell):
    encoder = make_encoder(cell)
    for ids in (torch.tensor([1, 2]), torch.zeros(1, 4), torch.tensor([[20]]), IDS.repeat(1, 2)):
        with pytest.raises(UsageError):
            encoder(ids)
    with pytest.raises(UsageError, match="mask"):
        encoder(IDS, torch.ones(2, 7))


def weights(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_embedded_encoder_is_matched_in_width_layers_and_weights(cell):
    settings = json.loads((EMBEDDED / "text_encoder" / "config.json").read_text("utf-8"))
    clip = CLIPTextConfig.from_dict(settings)
    ours = RecurrentTextConfig.matching(clip, cell)
    assert (ours.hidden_size, ours.num_hidden_layers) == (256, 4)
    with torch.device("meta"):
        budget, found = weights(CLIPTextEncoder(clip)), weights(RecurrentTextEncoder(ours))
    assert abs(found / budget - 1) < 0.005


def test_what_is_saved_is_what_is_loaded(cell, tmp_path):
    encoder = make_encoder(cell)
    encoder.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text("utf-8"))["architectures"] == [
        "RecurrentTextModel"
    ]
    again = RecurrentTextEncoder.from_pretrained(tmp_path)
    assert again.config == encoder.config
    assert torch.equal(again(IDS).last_hidden_state, encoder(IDS).last_hidden_state)
    with pytest.raises(FileError, match="RecurrentTextModel"):
        CLIPTextEncoder.from_pretrained(tmp_path)


def test_a_folder_with_it_loads_and_takes_learned_words(cell, sd_folder, tmp_path):
    pipe = TextToImage.from_pretrained(sd_folder)
    torch.manual_seed(0)
    config = RecurrentTextConfig.matching(pipe.text_encoder.config, cell)
    model = pipe.replace(text_encoder=RecurrentTextEncoder(config).eval())
    save_folder(model, tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text("utf-8"))
    assert index["text_encoder"] == ["sdcore", "RecurrentTextEncoder"]
    opened = TextToImage.from_pretrained(tmp_path)
    assert isinstance(opened.text_encoder, RecurrentTextEncoder)
    how = {"seed": 1, "steps": 2, "height": 64, "width": 64}
    before = opened("a red apple", **how).images[0].tobytes()
    assert before == model("a red apple", **how).images[0].tobytes()

    save_embedding(
        tmp_path / "zork.safetensors",
        "zork",
        {"text_encoder": torch.randn(2, config.hidden_size)},
    )
    taught = apply_embeddings(opened, [read_embedding(tmp_path / "zork.safetensors")])
    assert taught("a red apple", **how).images[0].tobytes() == before
    assert (
        taught("a red zork", **how).images[0].tobytes()
        != opened("a red zork", **how).images[0].tobytes()
    )
    with pytest.raises(UsageError, match="RecurrentTextEncoder"):
        save_single_file(opened, tmp_path / "one.safetensors")


def test_settings_that_do_not_fit_are_named(tmp_path):
    good = make_encoder("rnn").config.to_dict()
    for name, value in (
        ("cell", "gru"),
        ("state_size", 0),
        ("num_hidden_layers", 2.5),
        ("layer_norm_eps", 2.0),
        ("dropout", 0.1),
    ):
        with pytest.raises(UsageError, match=name):
            RecurrentTextConfig.from_dict({**good, name: value})
    del good["state_size"]
    with pytest.raises(UsageError, match=r"state_size.*\n.*missing"):
        RecurrentTextConfig.from_dict(good)
    with pytest.raises(UsageError, match="gru"):
        RecurrentTextConfig.matching(CLIPTextConfig(), "gru")


def test_pictures_are_painted_with_it_in_place_of_the_clip_encoder(cell, sd_folder):
    pipe = TextToImage.from_pretrained(sd_folder)
    torch.manual_seed(0)
    config = RecurrentTextConfig.matching(pipe.text_encoder.config, cell)
    encoder = RecurrentTextEncoder(config).eval()
    ours = TextToImage(pipe.tokenizer, encoder, pipe.unet, pipe.autoencoder, pipe.scheduler)
    how = {"seed": 1, "steps": 2, "height": 64, "width": 64}
    one, other = ours(["a red apple", "a blue cat"], **how).images
    assert one.size == (64, 64) and one.tobytes() != other.tobytes()
    (skipped,) = paint(ours, "a red apple", clip_skip=1, **how).images
    assert skipped.tobytes() != one.tobytes()
