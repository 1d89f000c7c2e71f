"""Tensors and settings that do not belong together are refused by name, in every backend alike."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch

from sdcore.attention import BACKENDS, CrossAttention, SelfAttention
from sdcore.attention_inputs import as_real, causal_mask, padding_mask
from sdcore.convolution import CONVOLUTIONS, Convolution
from sdcore.convolution import unavailable as no_convolution
from sdcore.errors import UsageError
from sdcore.positions import LearnedPositions, sinusoid
from sdcore.recurrence import Recurrence
from sdcore.sequence.decoding import beam_search, greedy
from sdcore.sequence.recurrent_translator import AdditiveAttention, RecurrentTranslatorConfig
from sdcore.sequence.transformer import TransformerConfig
from sdcore.text.config import CLIPTextConfig
from sdcore.text.recurrent_encoder import RecurrentTextConfig
from tests.reliability.test_edges import ENCODERS, HERE, IDS, RECURRENT, SIZES, WRITERS, random

Q, K, V = random(2, 3, 4, 8), random(2, 3, 5, 8), random(2, 3, 5, 6)
CONFIGS: dict[str, Callable[..., Any]] = {
    "clip": lambda **changes: CLIPTextConfig(
        **{"vocab_size": 20, "hidden_size": 8, "num_attention_heads": 2, "eos_token_id": 19}
        | changes
    ),
    "recurrent": lambda **changes: RecurrentTextConfig(
        **{"cell": "rnn", "layer_norm_eps": 1e-5} | RECURRENT | changes
    ),
    "transformer": lambda **changes: TransformerConfig(
        **{"source_words": 9, "target_words": 9, "width": 8, "heads": 2} | changes
    ),
    "translator": lambda **changes: RecurrentTranslatorConfig(
        **{"source_words": 9, "target_words": 9, "width": 8} | changes
    ),
}
NO_NUMBER = ("8", True, None, math.nan, math.inf, [8])
NO_COUNT = (0, -1, 2.0, 10**30, *NO_NUMBER)
NAMES = {
    "clip": (*SIZES, "intermediate_size", "projection_dim", "num_attention_heads"),
    "recurrent": (*SIZES, "state_size"),
    "transformer": ("source_words", "target_words", "width", "heads", "layers"),
    "translator": ("source_words", "target_words", "width"),
}


# --- attention -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HERE)
def test_queries_keys_and_values_belong_together(name: str) -> None:
    """The native kernel would otherwise read what lies behind a tensor in memory."""
    wrong = {
        "widths": (Q[..., :7], K, V),
        "fewer values than keys": (Q, K, V[..., :4, :]),
        "more values than keys": (Q, K[..., :4, :], V),
        "batches": (Q, K[:1].repeat(3, 1, 1, 1), V[:1].repeat(3, 1, 1, 1)),
        "heads": (Q, K[:, :2], V[:, :2]),
        "no width": (Q[..., :0], K[..., :0], V),
        "whole numbers": (Q.long(), K.long(), V.long()),
    }
    for what, (q, k, v) in wrong.items():
        with pytest.raises(UsageError, match="queries, keys and values"):
            BACKENDS[name](q, k, v)
            pytest.fail(what)


@pytest.mark.parametrize("name", HERE)
def test_a_mask_fits_the_scores(name: str) -> None:
    sizes = [(4, 4), (3, 5), (3, 1, 4, 5), (2, 2, 4, 5), (1, 2, 3, 4, 5), (4, 0), (5,), ()]
    masks: list[Any] = [torch.ones(size, dtype=torch.bool) for size in sizes]
    masks += [torch.ones(4, 5, dtype=torch.bool, device="meta")]  # of another device
    masks += [[[True] * 5] * 4, True, np.ones((4, 5), bool), torch.ones(4, 5).to_sparse()]
    for mask in masks:
        with pytest.raises(UsageError, match="attention mask"):
            BACKENDS[name](Q, K, V, mask)
            pytest.fail(f"{mask!r:.60}")


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("size", [(4, 5), (4, 1), (1, 5), (3, 4, 5), (2, 1, 1, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_gradients_beside_rows_that_attend_nowhere(
    name: str, size: tuple[int, ...], dtype: torch.dtype
) -> None:
    mask = torch.rand(size, generator=torch.Generator().manual_seed(1)) > 0.4
    mask[..., 0, :] = False
    dead = ~mask.expand(2, 3, 4, 5).any(dim=-1)
    parts = [x.detach().to(dtype).requires_grad_() for x in (Q, K, V)]
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            out = BACKENDS[name](*parts, mask)
        assert not out.detach()[dead].any()
        expected = BACKENDS["reference"](*(x.detach().double() for x in parts), mask)
        near = 1e-5 if dtype.itemsize > 2 else 0.03
        torch.testing.assert_close(out.detach().double(), expected, atol=near, rtol=near)
        if grad:
            out.float().square().sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in parts)


@pytest.mark.parametrize("make", [SelfAttention, lambda *sizes: CrossAttention(*sizes, 4)])
@pytest.mark.parametrize(
    "sizes", [(8, 3), (8, 0), (8, -2), (0, 1), (-8, 2), (8, 2.0), ("8", 2), (8, None), (True, 1)]
)
def test_layers_need_whole_sizes(make: Callable[..., Any], sizes: tuple[Any, ...]) -> None:
    with pytest.raises(UsageError):
        make(*sizes)


@pytest.mark.parametrize("size", NO_COUNT[:3] + NO_NUMBER)
def test_parts_need_whole_sizes(size: Any) -> None:
    ways: list[Callable[[], object]] = [
        lambda: CrossAttention(8, 2, size),
        lambda: AdditiveAttention(size),
        lambda: Recurrence("rnn", size, 4),
        lambda: Recurrence("lstm", 4, size),
        lambda: LearnedPositions(size, 4),
        lambda: LearnedPositions(4, size),
        lambda: sinusoid(torch.arange(3), size),
    ]
    for make in ways:
        with pytest.raises(UsageError):
            make()


# --- convolution ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [each for each in CONVOLUTIONS if no_convolution(each) is None])
@torch.no_grad()
def test_a_convolution_answers_as_torch_does(name: str) -> None:
    torch.manual_seed(0)
    layer = Convolution(6, 7, 3, padding=1)
    wide = random(2, 6, 32, 32)
    nan = wide.clone()
    nan[1] = torch.nan
    inputs = {
        "no pictures": wide[:0],
        "small": wide[..., :7, :9],
        "strided": wide[..., ::2, ::2],
        "every other": wide[::2],
        "one shared": wide[:1].expand(3, -1, -1, -1),
        "offset": wide[1:],
        "channels last": wide.contiguous(memory_format=torch.channels_last),
        "transposed": wide.mT,
        "no batch": wide[0],
        "large": wide * 1e30,
        "a row of NaN": nan,
    }
    for what, x in inputs.items():
        layer.backend = "torch"
        expected = layer(x)
        layer.backend = name
        found = layer(x)
        scale = expected.nan_to_num().abs().max().item() if expected.numel() else 1.0
        torch.testing.assert_close(
            found, expected, atol=1e-5 * scale, rtol=0, equal_nan=True, msg=what
        )
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(wide).dtype == torch.bfloat16
    with torch.enable_grad():
        assert layer(wide).requires_grad
    for wrong in (wide[:, :5], torch.cat([wide, wide], dim=1), wide[:, :, :0], wide.double()):
        with pytest.raises(RuntimeError):  # torch's own: nothing is read from behind a tensor
            layer(wrong)
    layer.bias = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(RuntimeError):
        layer(wide)


# --- texts ---------------------------------------------------------------------------------------

REAL = torch.ones(2, 4, dtype=torch.bool)
NO_MASKS: list[Any] = [REAL[:, :3], REAL[:1], REAL[0], REAL.repeat(2, 1), REAL.repeat(1, 2)]
NO_MASKS += [REAL[:, None, None], REAL.tolist(), torch.full((2, 4), -1e9), REAL.bfloat16()]
NO_MASKS += [REAL.long() * 2, REAL.to("meta"), "x", REAL.numpy()]


@pytest.mark.parametrize("mask", NO_MASKS, ids=[f"{i}" for i in range(len(NO_MASKS))])
def test_text_masks_fit_the_text(mask: Any) -> None:
    readers: list[Callable[[], object]] = [
        lambda: as_real(mask, IDS),
        lambda: padding_mask(mask, IDS),
    ]
    readers += [lambda make=make: make()(IDS, mask) for make in ENCODERS.values()]
    readers += [lambda make=make: make()(IDS % 9, IDS % 9, mask) for make in WRITERS.values()]
    readers += [lambda: Recurrence("rnn", 4, 3)(random(2, 4, 4), mask)]
    attention = AdditiveAttention(4)
    readers += [lambda: attention(random(2, 4), random(2, 4, 4), random(2, 4, 4), mask)]
    for read in readers:
        with pytest.raises(UsageError, match="text mask"):
            read()


@pytest.mark.parametrize("kind", [*ENCODERS, *(f"write {name}" for name in WRITERS)])
def test_ids_are_whole_numbers(kind: str) -> None:
    model = ENCODERS[kind]() if kind in ENCODERS else WRITERS[kind[6:]]().start
    wrong: list[Any] = [IDS.tolist(), IDS.numpy(), None, IDS.byte(), IDS.short(), IDS[..., None]]
    for ids in [*wrong, IDS.to(torch.complex64), IDS.bool()]:
        with pytest.raises(UsageError, match="Token ids"):
            model(ids)


@pytest.mark.parametrize("kind", ["clip", "rnn"])
@torch.no_grad()
def test_a_text_encoder_is_exported_for_any_number_of_texts(kind: str) -> None:
    encoder = ENCODERS[kind]().eval()
    ids = IDS.repeat(2, 1)[:3]
    texts = torch.export.Dim("texts", min=2, max=9)
    exported = torch.export.export(encoder, (ids,), dynamic_shapes=({0: texts},)).module()
    more = IDS.repeat(3, 1)
    torch.testing.assert_close(exported(more).pooled, encoder(more).pooled)


@pytest.mark.parametrize("kind", ["rnn", "lstm"])
def test_a_recurrence_begins_with_a_state_of_its_own(kind: str) -> None:
    layer, x = Recurrence(kind, 4, 3), random(2, 5, 4)
    kept = layer.cell.KEPT
    for state in (random(kept, 3, 3), random(kept + 2, 2, 3), random(kept, 2, 4), random(2, 3)):
        with pytest.raises(UsageError, match="state"):
            layer(x, state=state)
    for text in (x[0], x[None], random(2, 5, 4, 1)):
        with pytest.raises(UsageError, match="state"):
            layer(text)
    with pytest.raises(UsageError, match="cell"):
        Recurrence("gru", 4, 3)


@pytest.mark.parametrize("kind", WRITERS)
def test_words_go_on_the_texts_of_their_state(kind: str) -> None:
    model = WRITERS[kind]()
    for rows in (IDS[:1], IDS.repeat(2, 1)):
        with pytest.raises(UsageError, match="texts"):
            model(IDS % 9, rows % 9)
    for first in (None, True, 2.0, "1"):
        with pytest.raises(UsageError, match="first"):
            greedy(model, IDS % 9, first=first, last=1, most=3)  # type: ignore[arg-type]
    for penalty in (math.nan, -1e30, 1e30, "1", None, True):
        with pytest.raises(UsageError, match="length_penalty"):
            beam_search(model, IDS % 9, first=0, last=1, most=3, length_penalty=penalty)  # type: ignore[arg-type]


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in NAMES for name in NAMES[kind]])
def test_sizes_are_whole_numbers_that_can_be(kind: str, name: str) -> None:
    for value in NO_COUNT:
        with pytest.raises(UsageError, match=name):
            CONFIGS[kind](**{name: value})


@pytest.mark.parametrize("kind", CONFIGS)
def test_numbers_of_numpy_become_pythons(kind: str) -> None:
    changes = {name: np.int64(8) for name in NAMES[kind]}
    changes |= {"eos_token_id": np.int64(2)} if kind in ("clip", "recurrent") else {}
    assert json.dumps(asdict(CONFIGS[kind](**changes)))


@pytest.mark.parametrize(
    ("kind", "name", "values"),
    [
        ("clip", "with_projection", ("yes", 1, None, 0.0)),
        ("translator", "attention", ("yes", 1, None, [])),
        ("translator", "cell", ("gru", None, ["rnn"], 1)),
        ("recurrent", "cell", ("gru", None, ["rnn"], 1)),
        ("recurrent", "eos_token_id", (20, -1, 1.0, None, True, 10**30)),
        ("clip", "eos_token_id", (20, -1, 1.0, None, True, [19])),
        ("clip", "num_attention_heads", (3, 16)),
        ("clip", "hidden_act", ("relu", None, ["gelu"])),
        ("clip", "layer_norm_eps", (0, 1, -1e-5, math.nan, "1e-5", None)),
        ("recurrent", "layer_norm_eps", (0, 1, -1e-5, math.nan, "1e-5", None)),
        ("transformer", "heads", (3, 16)),
    ],
)
def test_other_settings_have_a_type(kind: str, name: str, values: tuple[Any, ...]) -> None:
    for value in values:
        with pytest.raises(UsageError, match=name):
            CONFIGS[kind](**{name: value})


@pytest.mark.parametrize("shift", [math.nan, math.inf, -math.inf, "1", None, True, 10**400, 4, 4.5])
def test_a_shift_of_waves_is_a_number_below_half_their_width(shift: Any) -> None:
    with pytest.raises(UsageError, match="shift"):
        sinusoid(torch.arange(3), 8, shift=shift)
    with pytest.raises(UsageError, match="shift"):
        sinusoid(torch.arange(3), 1, shift=1)


@pytest.mark.parametrize("position", [torch.tensor(3), torch.zeros(2, 2), [1, 2], 3, None])
def test_waves_are_made_for_one_row_of_positions(position: Any) -> None:
    with pytest.raises(UsageError, match="positions"):
        sinusoid(position, 8)


def test_learned_positions_have_the_width_of_the_tokens() -> None:
    for width in (1, 7):
        with pytest.raises(UsageError, match="width"):
            LearnedPositions(4, 8)(random(2, 3, width))


def test_no_mask_is_made_of_fewer_than_no_tokens() -> None:
    for tokens, before in ((-1, 0), (3, -1), (0, -1)):
        with pytest.raises(UsageError, match="mask"):
            causal_mask(tokens, before=before)
