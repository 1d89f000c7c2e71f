"""Edges of the networks: nothing to attend to, nothing to read, masks of another kind, sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sdcore.attention import BACKENDS, SelfAttention
from sdcore.attention_choice import unavailable
from sdcore.attention_inputs import causal_mask, padding_mask
from sdcore.errors import UsageError
from sdcore.positions import sinusoid
from sdcore.recurrence import Recurrence
from sdcore.sequence.decoding import beam_search, greedy
from sdcore.sequence.recurrent_translator import (
    AdditiveAttention,
    RecurrentTranslator,
    RecurrentTranslatorConfig,
)
from sdcore.sequence.transformer import Transformer, TransformerConfig
from sdcore.text.config import CLIPTextConfig
from sdcore.text.encoder import CLIPTextEncoder
from sdcore.text.recurrent_encoder import RecurrentTextConfig, RecurrentTextEncoder

HERE = [name for name in BACKENDS if unavailable(name) is None]
SIZES = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 2, "max_position_embeddings": 6}
CLIP = CLIPTextConfig(
    **SIZES, intermediate_size=16, num_attention_heads=2, projection_dim=8, eos_token_id=19
)
RECURRENT = {**SIZES, "state_size": 5, "eos_token_id": 19}
ENCODERS = {
    "clip": lambda: CLIPTextEncoder(CLIP),
    "rnn": lambda: RecurrentTextEncoder(RecurrentTextConfig("rnn", **RECURRENT)),
    "lstm": lambda: RecurrentTextEncoder(RecurrentTextConfig("lstm", **RECURRENT)),
}
IDS = torch.tensor([[1, 2, 19, 0], [3, 19, 0, 0]])
WRITERS = {
    "transformer": lambda: Transformer(TransformerConfig(9, 9, width=8, heads=2)),
    "rnn": lambda: RecurrentTranslator(RecurrentTranslatorConfig(9, 9, 8, "rnn")),
    "lstm": lambda: RecurrentTranslator(RecurrentTranslatorConfig(9, 9, 8, attention=True)),
}


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


# --- nothing to attend to ------------------------------------------------------------------------


def test_a_source_of_padding_alone_gives_zeros_and_spoils_no_gradient() -> None:
    torch.manual_seed(0)
    layer = AdditiveAttention(4)
    state, source = random(2, 4), random(2, 3, 4).requires_grad_()
    real = torch.tensor([[True, True, False], [False, False, False]])
    context = layer(state, source, layer.from_source(source), real)
    assert torch.equal(context[1], torch.zeros(4))
    alone = layer(state[:1], source[:1], layer.from_source(source[:1]), real[:1])
    torch.testing.assert_close(context[:1], alone)
    context.sum().backward()
    gradients = [p.grad for p in layer.parameters()] + [source.grad]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)
    assert source.grad is not None and source.grad[0].abs().sum() > 0


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(
    ("batch", "queries", "keys"), [(0, 3, 4), (2, 0, 4), (2, 3, 0), (2, 0, 0), (0, 0, 0)]
)
def test_nothing_may_be_attended_to(name: str, grad: bool, batch: int, queries: int, keys: int):
    q, k, v = random(batch, 2, queries, 4), random(batch, 2, keys, 4), random(batch, 2, keys, 5)
    with torch.set_grad_enabled(grad):
        out = BACKENDS[name](q.requires_grad_(grad), k, v)
    assert out.shape == (batch, 2, queries, 5) and not out.detach().any()


# --- nothing to read -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rnn", "lstm"])
def test_an_empty_text_leaves_a_state_as_it_was(kind: str) -> None:
    recurrence = Recurrence(kind, 4, 3)
    state = random(recurrence.cell.KEPT, 2, 3)
    shown, after = recurrence(random(2, 0, 4), state=state)
    assert shown.shape == (2, 0, 3) and torch.equal(after, state)


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_text_encoder_reads_no_texts_and_refuses_no_tokens(kind: str) -> None:
    encoder = ENCODERS[kind]().eval()
    encoding = encoder(IDS[:0])
    assert encoding.last_hidden_state.shape == (0, 4, 8) and encoding.pooled.shape[0] == 0
    with pytest.raises(UsageError, match="no tokens"):
        encoder(IDS[:, :0])


@pytest.mark.parametrize("kind", WRITERS)
def test_writers_take_no_sources_no_words_and_empty_sources(kind: str) -> None:
    torch.manual_seed(0)
    model = WRITERS[kind]().eval()
    marks = {"first": 0, "last": 1, "most": 3}
    none = torch.zeros(0, 4, dtype=torch.long)
    assert len(greedy(model, none, **marks)) == 0
    found = beam_search(model, none, **marks, beams=2)
    assert found.words.shape[:2] == (0, 2) and found.scores.shape == (0, 2)
    empty = torch.zeros(2, 0, dtype=torch.long)
    assert torch.isfinite(model(empty, IDS[:, :2] % 9)).all()
    assert model(IDS % 9, empty).shape == (2, 0, 9)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("changes", [{"first": -1}, {"first": 9}, {"last": 9}, {"most": 0}])
def test_marks_outside_the_vocabulary_are_refused(kind: str, changes: dict[str, int]) -> None:
    model, marks = WRITERS[kind](), {"first": 0, "last": 1, "most": 3, **changes}
    for write in (greedy, beam_search):
        with pytest.raises(UsageError):
            write(model, IDS % 9, **marks)
    with pytest.raises(UsageError, match="beams"):
        beam_search(model, IDS % 9, first=0, last=1, most=3, beams=10**9)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_text_without_an_end_mark_is_written_to_its_length_and_has_no_beams(kind: str) -> None:
    torch.manual_seed(0)
    model = WRITERS[kind]().eval()
    words = greedy(model, IDS % 9, first=0, last=None, most=3)
    assert words.shape == (len(IDS), 3)
    with pytest.raises(UsageError, match="last"):
        beam_search(model, IDS % 9, first=0, last=None, most=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("ids", [IDS + 100, IDS - 9, IDS.float(), IDS[0], IDS.bool()])
def test_writers_refuse_what_are_no_ids_of_theirs(kind: str, ids: Tensor) -> None:
    model = WRITERS[kind]()
    for source, target in ((ids, IDS % 9), (IDS % 9, ids)):
        with pytest.raises(UsageError, match=r"vocabulary|whole numbers"):
            model(source, target)


# --- masks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64, torch.uint8])
def test_every_backend_refuses_masks_of_numbers(name: str, dtype: torch.dtype) -> None:
    q = random(1, 1, 3, 4)
    with pytest.raises(UsageError, match="attention mask is boolean"):
        BACKENDS[name](q, q, q, torch.ones(3, 3, dtype=dtype))


ADDED = torch.tensor([[0.0, 0.0, 0.0, -torch.inf], [0.0, 0.0, -torch.inf, -torch.inf]])


@pytest.mark.parametrize("mask", [ADDED, ADDED.half(), ADDED.eq(0).float(), ADDED.eq(0) * 7])
def test_masks_of_zeros_and_infinity_are_not_read_the_wrong_way_round(mask: Tensor) -> None:
    with pytest.raises(UsageError, match="no mask of ones and zeros"):
        padding_mask(mask)
    for make in ENCODERS.values():
        with pytest.raises(UsageError, match="no mask of ones and zeros"):
            make()(IDS, mask)


@pytest.mark.parametrize("kind", ENCODERS)
def test_ones_and_zeros_are_a_mask_as_booleans_are(kind: str) -> None:
    torch.manual_seed(0)
    encoder, real = ENCODERS[kind]().eval(), ADDED == 0
    whole = encoder(IDS, real).last_hidden_state
    for dtype in (torch.int64, torch.int32, torch.uint8):
        assert torch.equal(encoder(IDS, real.to(dtype)).last_hidden_state, whole)


def test_words_see_those_before_them_however_few_are_asked_for() -> None:
    for before in range(4):
        for tokens in range(4):
            expected = causal_mask(before + tokens)[before:]
            assert torch.equal(causal_mask(tokens, before=before), expected)


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: TransformerConfig(9, 9, width=10, heads=4),
        lambda: TransformerConfig(9, 9, layers=0),
        lambda: TransformerConfig(9, 9, heads=-1),
        lambda: TransformerConfig(0, 9),
        lambda: RecurrentTranslatorConfig(9, 9, width=0),
        lambda: RecurrentTranslatorConfig(9, 9, cell="gru"),
        lambda: RecurrentTextConfig("rnn", **{**RECURRENT, "eos_token_id": 20}),
        lambda: CLIPTextConfig(vocab_size=20, eos_token_id=20),
        lambda: CLIPTextConfig(vocab_size=20, eos_token_id=-1),
        lambda: SelfAttention(10, 4),
        lambda: SelfAttention(10, 0),
        lambda: sinusoid(torch.arange(3), 2, shift=1),
        lambda: sinusoid(torch.arange(3), 4, shift=2.5),
    ],
)
def test_what_cannot_work_is_refused(make) -> None:
    with pytest.raises(UsageError):
        make()


# --- one graph -----------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("kind", ENCODERS)
def test_a_text_encoder_is_one_graph(kind: str) -> None:
    torch.manual_seed(0)
    encoder = ENCODERS[kind]().eval()
    expected = encoder(IDS)
    exported = torch.export.export(encoder, (IDS,)).module()(IDS)
    torch.testing.assert_close(exported.last_hidden_state, expected.last_hidden_state)
    torch.testing.assert_close(exported.pooled, expected.pooled)
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)(IDS)
    torch.testing.assert_close(compiled.hidden_states, expected.hidden_states)


@pytest.mark.parametrize("name", ["reference", "chunked"])
def test_attention_in_plain_torch_is_differentiated_twice(name: str) -> None:
    q = random(1, 1, 3, 2).double().requires_grad_()

    def attend(q: Tensor) -> Tensor:
        return BACKENDS[name](q, q.sin(), q.cos())

    assert torch.autograd.gradgradcheck(attend, (q,))


def test_fused_attention_says_that_it_is_not() -> None:
    q = random(1, 1, 3, 2).requires_grad_()
    (first,) = torch.autograd.grad(BACKENDS["sdpa"](q, q, q).sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match=r"_scaled_dot_product.* is not implemented"):
        first.sum().backward()


def test_the_readable_attention_is_transformed_and_exported() -> None:
    q = random(3, 2, 4, 2)
    reference = BACKENDS["reference"]
    each = torch.func.vmap(lambda q: torch.func.grad(lambda q: reference(q, q, q).sum())(q))(q)
    whole = torch.func.grad(lambda q: reference(q, q, q).sum())(q)
    torch.testing.assert_close(each, whole)
