"""Our text encoder against transformers' on the layouts of SD 1.5, 2.1, XL and the refiner."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
import transformers

from sdcore.text.encoder import CLIPTextEncoder

TOLERANCE = 1e-5
START, END, VOCABULARY = 997, 998, 999

# The published settings with small widths: layers, activation and projection are the real ones.
LAYOUTS = {
    "sd15 ViT-L": {"num_hidden_layers": 12, "hidden_act": "quick_gelu", "eos_token_id": 2},
    "sd21 OpenCLIP-H": {"num_hidden_layers": 23, "hidden_act": "gelu", "eos_token_id": 2},
    "sdxl ViT-L": {"num_hidden_layers": 12, "hidden_act": "quick_gelu", "eos_token_id": 2},
    "sdxl and refiner bigG": {"num_hidden_layers": 32, "hidden_act": "gelu", "eos_token_id": 2},
    "own eos id": {"num_hidden_layers": 3, "hidden_act": "quick_gelu", "eos_token_id": END},
}


def make_reference(layout: str):
    projection = "bigG" in layout
    config = transformers.CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=256,
        projection_dim=48 if projection else 64,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=START,
        pad_token_id=1,
        **LAYOUTS[layout],
    )
    cls = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    torch.manual_seed(7)
    model = cls(config).eval()
    with torch.no_grad():  # biases and norms are born as 0 and 1, which would hide errors in them
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def make_ids(batch: int, length: int = 77) -> torch.Tensor:
    """Prompts of different lengths, padded with the end token or, in every other row, with 0."""
    ids = torch.randint(1, START, (batch, length), generator=torch.Generator().manual_seed(batch))
    for row in range(batch):
        end = 5 + 7 * row
        ids[row, 0], ids[row, end], ids[row, end + 1 :] = START, END, END if row % 2 == 0 else 0
    return ids


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def pooled_of(output) -> torch.Tensor:
    return output.text_embeds if hasattr(output, "text_embeds") else output.pooler_output


@pytest.fixture(params=LAYOUTS, scope="module")
def pair(request, tmp_path_factory):
    reference = make_reference(request.param)
    folder = tmp_path_factory.mktemp("reference")
    reference.save_pretrained(folder)
    return reference, CLIPTextEncoder.from_pretrained(folder)


@pytest.mark.parametrize("batch", [1, 3])
def test_same_outputs(pair, batch):
    reference, ours = pair
    ids = make_ids(batch)
    with torch.no_grad():
        theirs, mine = reference(ids, output_hidden_states=True), ours(ids)
    assert relative_error(mine.last_hidden_state, theirs.last_hidden_state) <= TOLERANCE
    assert relative_error(mine.pooled, pooled_of(theirs)) <= TOLERANCE
    assert len(mine.hidden_states) == len(theirs.hidden_states)
    for state, wanted in zip(mine.hidden_states, theirs.hidden_states, strict=True):
        assert relative_error(state, wanted) <= TOLERANCE


def test_same_outputs_with_padding_mask(pair):
    reference, ours = pair
    ids = make_ids(3)
    mask = torch.arange(77)[None] < torch.tensor([[6], [13], [77]])
    with torch.no_grad():
        theirs, mine = reference(ids, attention_mask=mask.long()), ours(ids, mask)
        plain = ours(ids)
    assert relative_error(mine.last_hidden_state, theirs.last_hidden_state) <= TOLERANCE
    assert not torch.equal(mine.last_hidden_state, plain.last_hidden_state)


def test_same_gradients(pair):
    reference, ours = pair
    ids = make_ids(2)
    direction = torch.randn(2, 77, 64, generator=torch.Generator().manual_seed(1))
    for model in (reference, ours):
        model.zero_grad()
    theirs, mine = reference(ids, output_hidden_states=True), ours(ids)
    (theirs.last_hidden_state * direction).sum().add(pooled_of(theirs).square().sum()).backward()
    (mine.last_hidden_state * direction).sum().add(mine.pooled.square().sum()).backward()
    gradients = dict(ours.named_parameters())
    prefix = "" if ours.config.with_projection else "text_model."
    compared = 0
    for name, parameter in reference.named_parameters():
        wanted, gradient = parameter.grad, gradients[prefix + name].grad
        # k's bias shifts all scores of a row alike, so its true gradient is 0: compare the absolute
        scale = 1.0 if name.endswith("k_proj.bias") else wanted.norm()
        assert (gradient - wanted).norm() <= TOLERANCE * scale, name
        compared += 1
    assert compared == len(gradients)


def test_what_we_save_opens_in_transformers_with_identical_outputs(pair, tmp_path):
    reference, ours = pair
    ours.save_pretrained(tmp_path)
    again, report = type(reference).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    ids = make_ids(3)
    with torch.no_grad():
        theirs, wanted = again.eval()(ids), reference(ids)
    assert torch.equal(theirs.last_hidden_state, wanted.last_hidden_state)
    assert torch.equal(pooled_of(theirs), pooled_of(wanted))


@pytest.mark.parametrize("old", ["prefix", "prefix and position_ids", "bare"])
def test_every_published_spelling_of_the_keys_loads(old, tmp_path):
    from safetensors.torch import save_file

    reference = make_reference("own eos id")
    reference.save_pretrained(tmp_path)
    state = dict(reference.state_dict())
    if old != "bare":
        state = {f"text_model.{key}": value for key, value in state.items()}
    if old == "prefix and position_ids":
        state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ours = CLIPTextEncoder.from_pretrained(tmp_path)
    ids = make_ids(1)
    with torch.no_grad():
        wanted, mine = reference(ids), ours(ids)
    assert relative_error(mine.last_hidden_state, wanted.last_hidden_state) <= TOLERANCE


def test_clip_skip_as_diffusers_counts():
    """StableDiffusionPipeline.encode_prompt itself is the reference, on our encoder's outputs."""
    from diffusers import StableDiffusionPipeline

    reference = make_reference("sd15 ViT-L")
    # diffusers 0.42 looks for text_model.final_layer_norm, which transformers 5 moved to the top
    reference.__dict__["text_model"] = reference
    encoder = CLIPTextEncoder(CLIPTextEncoder.Config.from_dict(reference.config.to_diff_dict()))
    encoder.load_state_dict({f"text_model.{k}": v for k, v in reference.state_dict().items()})
    ids = make_ids(1)
    for clip_skip in (1, 2, 12):
        theirs = _diffusers_prompt(StableDiffusionPipeline, reference, ids, clip_skip)
        with torch.no_grad():
            ours = encoder.skip(encoder(ids), clip_skip)
        assert relative_error(ours, theirs) <= TOLERANCE


def _diffusers_prompt(cls, text_encoder, ids, clip_skip):
    class Encoded:
        input_ids = ids
        attention_mask = None

    class FixedTokenizer:
        model_max_length = ids.shape[1]

        added_tokens_encoder: ClassVar[dict] = {}

        def tokenize(self, text):
            return [text]

        def __call__(self, *_, **__):
            return Encoded

    pipeline = object.__new__(cls)
    pipeline.__dict__.update(text_encoder=text_encoder, tokenizer=FixedTokenizer(), unet=None)
    with torch.no_grad():
        prompt, _ = pipeline.encode_prompt("", "cpu", 1, False, clip_skip=clip_skip)
    return prompt
