"""Page 7: positions on or off, mask on or off: which tokens end alike."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor, nn

from docs.book.book import PROMPTS, SEED, STEPS, Measured, model, run, term
from docs.book.drawing import Svg
from sdcore import causal_mask

PICTURE = 110
CASES = {(True, True): "both", (True, False): "positions_only", (False, True): "mask_only"}
CASES |= {(False, False): "neither"}


def measure(language: str) -> Measured:
    prompt = PROMPTS[language][0][0]
    words, first, second = twice(prompt) or ([], 0, 0)
    names = [term("figure.start", language), *words, term("figure.end", language)]
    cell, left, top = 17, 74, 96
    side = cell * len(names)
    across = left + side + PICTURE + 40
    sheet = Svg(2 * across, 2 * (top + side + 24))
    for number, (positions, mask) in enumerate(CASES):
        x = left + number % 2 * across
        y = top + number // 2 * (top + side + 24)
        title = " + ".join(
            term(f"figure.{'' if on else 'no_'}{name}", language)
            for name, on in (("positions", positions), ("mask", mask))
        )
        sheet.text(x - left + 8, y - top + 14, title, size=14, bold=True)
        last = encoded(prompt, positions, mask)[-1][: len(names)]
        near = F.cosine_similarity(last[:, None], last[None], dim=-1)
        sheet.matrix(near, x, y, cell, rows=names, columns=names, size=11)
        cosine = f"{float(near[first, second]):.4f}"
        said = term("figure.two_same", language, word=words[first - 1], cosine=cosine)
        sheet.text(x + side / 2, y + side + 14, said, "middle", 13)
        as_it_is = positions and mask
        picture = run(language).picture if as_it_is else painted(prompt, positions, mask)
        sheet.picture(picture, x + side + 12, y, PICTURE)
    found = [each for prompt, _, _ in PROMPTS[language] if (each := cosines(prompt))]
    return Measured(
        sheet,
        {name: f"{value:.4f}" for name, value in found[0].items()} | {"word": words[first - 1]},
        {
            "7.queries": all(0.5 < each["queries"] < 0.99 for each in found),
            "7.mask": all(each["mask_only"] < 0.97 for each in found),
            "7.positions": all(each["positions_only"] > each["mask_only"] for each in found),
            "7.neither": all(each["neither"] > 0.9999 for each in found),
        },
    )


class _Seeing(nn.Module):
    """An encoder's layers with another mask than they are given."""

    def __init__(self, layers: nn.Module, visible: Tensor) -> None:
        super().__init__()
        self.layers, self.visible = layers, visible

    def forward(self, x: Tensor, _: Tensor) -> tuple[Tensor, ...]:
        return self.layers(x, self.visible)


def painted(prompt: str, positions: bool, mask: bool) -> Image:
    """The picture of a prompt that was encoded so; a copy of the encoder is changed."""
    pipe = copy.copy(model())
    pipe.text_encoder = copy.deepcopy(pipe.text_encoder)
    network = pipe.text_encoder.text_model
    places = network.embeddings.position_embedding.weight
    places.data.mul_(positions)
    if not mask:
        network.encoder = _Seeing(network.encoder, torch.ones(len(places), len(places)).bool())
    return pipe(prompt, seed=SEED, steps=STEPS).images[0]


def twice(prompt: str) -> tuple[list[str], int, int] | None:
    """The words, and the tokens of the first that stands there twice."""
    words = [span.word for span in model().tokenizer(prompt).spans[0]]
    for second, word in enumerate(words):
        if word in words[:second]:
            return words, words.index(word) + 1, second + 1
    return None


def cosines(prompt: str) -> dict[str, float]:
    """How alike the two equal words are: their first queries, and at the end in each case."""
    found = twice(prompt)
    if found is None:
        return {}
    _, first, second = found
    layer = model().text_encoder.text_model.encoder.layers[0]
    queries = layer.self_attn.q_proj(layer.layer_norm1(encoded(prompt, True, True)[0]))
    result = {"queries": _cosine(queries[first], queries[second])}
    for case, name in CASES.items():
        last = encoded(prompt, *case)[-1]
        result[name] = _cosine(last[first], last[second])
    return result


def encoded(prompt: str, positions: bool, mask: bool, length: int | None = None) -> list[Tensor]:
    """The text encoder's states (T, D) of every layer, with what was asked for.

    length: so many tokens alone are read; without it, the padding behind the prompt is as well.
    """
    pipe = model()
    network, ids = pipe.text_encoder.text_model, pipe.tokenizer(prompt).ids[:, :length]
    places = network.embeddings.position_embedding.weight[: ids.shape[1]]
    x = network.embeddings.token_embedding(ids) + positions * places
    everything = torch.ones(ids.shape[1], ids.shape[1]).bool()
    visible = causal_mask(ids.shape[1]) if mask else everything
    return [state[0] for state in network.encoder(x, visible)]


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(F.cosine_similarity(one, other, dim=0))
