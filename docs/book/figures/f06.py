"""Page 6: a head that looks a token up beside one that blends, of one layer."""

from __future__ import annotations

import torch
from torch import Tensor

from docs.book.book import PROMPTS, Measured, model, term
from docs.book.drawing import Svg
from sdcore import BACKENDS, causal_mask

LAYER = 1


def measure(language: str) -> Measured:
    names, maps = weights_of(PROMPTS[language][0][0], language)
    share = _favourite(maps)
    soft, sharp = int(share.argmin()), int(share.argmax())
    cell, left, top = 27, 74, 92
    across = left + cell * len(names) + 24
    sheet = Svg(2 * across, top + cell * len(names) + 12)
    for number, (name, head) in enumerate((("looks_up", sharp), ("blends", soft))):
        x = number * across + left
        sheet.text(x - left + 8, 16, term(f"figure.{name}", language, head=head + 1), bold=True)
        sheet.matrix(maps[head], x, top, cell, rows=names, columns=names, numbers=True, causal=True)
    every = [_favourite(weights_of(prompt, language)[1]) for prompt, _, _ in PROMPTS[language]]
    return Measured(
        sheet,
        {
            "sharp": str(sharp + 1),
            "soft": str(soft + 1),
            "sharp_share": f"{100 * float(share[sharp]):.0f}",
            "soft_share": f"{100 * float(share[soft]):.0f}",
        },
        {"6.both": all(float(each.max() - each.min()) > 0.1 for each in every)},
    )


def _favourite(maps: Tensor) -> Tensor:
    """The largest weight of a row (H,), in the row in which it is smallest."""
    return maps[:, 1:].amax(-1).amin(-1)


def weights_of(prompt: str, language: str) -> tuple[list[str], Tensor]:
    """Names of the tokens up to the end, and the attention of LAYER (H, T, T)."""
    pipe = model()
    tokens = pipe.tokenizer(prompt)
    words = [span.word for span in tokens.spans[0]]
    names = [term("figure.start", language), *words, term("figure.end", language)]
    layer = pipe.text_encoder.text_model.encoder.layers[LAYER]
    x = layer.layer_norm1(pipe.text_encoder(tokens.ids).hidden_states[LAYER])
    attention, length = layer.self_attn, x.shape[1]
    q, k = (
        project(x).unflatten(2, (attention.heads, -1)).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj)
    )
    identity = torch.eye(length).expand(1, attention.heads, -1, -1)
    maps = BACKENDS["reference"](q, k, identity, causal_mask(length))[0]
    return names, maps[:, : len(names), : len(names)]
