"""Pages that move: a component for a page of the book, over stored tensors, in one HTML file.

Each has a table, which is the page where no script runs. Nothing is computed in the browser that
is not arithmetic on the numbers in the file.

Shapes: L layers, H heads, T tokens, K dimensions of a value, G columns of heatmaps, h w grid.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from docs.book.book import (
    HERE,
    PROMPTS,
    STEPS,
    fine,
    many,
    model,
    run,
    term,
    terms,
)
from docs.book.drawing import colored_map, image_of
from docs.book.figures import f05, f06, f07, f08, f12
from sdcore import BACKENDS, causal_mask, to_images
from sdcore.attention import KEY_CHUNK, QUERY_CHUNK
from sdcore.files.html_page import as_script_data, fill_template
from sdcore.image.data_url import data_url

FOLDER = HERE / "live"
VALUES = 16  # dimensions of a value that are shown
SHOWN = 96  # pixels of a picture of a step


@dataclass(frozen=True)
class Alive:
    """words: the labels of [live] that the component says; table: rows of HTML, the head first."""

    data: dict[str, Any]
    words: Sequence[str]
    table: Iterable[Sequence[object]]


def page_of(name: str, language: str, links: str) -> str:
    """The HTML of a component; `links` is HTML."""
    made = COMPONENTS[name](language)
    words = {word: terms()["live"][word][language] for word in made.words}
    head, *rows = made.table
    title = term(f"live.title_{name}", language)
    slots = {
        "language": language,
        "title": escape(title),
        "how": escape(term(f"live.how_{name}", language)),
        "table_name": escape(term("live.table", language)),
        "table": _table(head, rows),
        "links": links,
        "data": as_script_data({"kind": name, "words": words, **made.data}),
    }
    return fill_template(HERE / "page" / "page.html", slots)


def _table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Cells are text, or pictures."""

    def cell(value: object) -> str:
        if isinstance(value, Image):
            return f'<img src="{data_url(value)}" alt="">'
        return escape(str(value))

    top = "".join(f'<th scope="col">{cell(each)}</th>' for each in head)
    lines = [
        f'<tr><th scope="row">{cell(first)}</th>'
        + "".join(f"<td>{cell(each)}</td>" for each in rest)
        + "</tr>"
        for first, *rest in rows
    ]
    return f'<div class="scroll"><table><tr>{top}</tr>{"".join(lines)}</table></div>'


def _whole(values: Tensor, times: int) -> list[int]:
    return (values * times).round().int().flatten().tolist()


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def hand(language: str) -> Alive:
    """Page 5: three tokens, whose queries, keys and values can be changed."""
    tokens = [term(f"figure.{name}", language) for name in ("fox", "left", "cat")]
    scores = f05.K @ f05.Q / 2
    weights = scores.softmax(0)
    rows = [
        (token, k.tolist(), v.tolist(), f"{score:g}", f"{100 * float(weight):.1f} %")
        for token, k, v, score, weight in zip(tokens, f05.K, f05.V, scores, weights, strict=True)
    ]
    data = {"tokens": tokens, "q": f05.Q.tolist(), "k": f05.K.tolist(), "v": f05.V.tolist()}
    head = ["", *(term(f"live.{name}", language) for name in ("key", "value", "score", "weight"))]
    return Alive(data, ("query", "key", "value", "sum"), [head, *rows])


def steps(language: str) -> Alive:
    """Page 2: what a run passes on, what it expects, and where words are read, step by step."""
    shown, decode = run(language), model().autoencoder.decode
    _, left, right = PROMPTS[language][0]
    frames, rows = [], []
    for step, (latents, guess) in enumerate(zip(shown.latents, shown.guesses, strict=True)):
        part = step / STEPS, (step + 1) / STEPS
        maps = [shown.of(word, sites=fine, steps=part) for word in (left, right)]
        # Noise does not compress: smaller, so that the page stays light.
        pictures = [to_images(decode(x))[0].resize((SHOWN, SHOWN)) for x in (latents, guess)]
        frames.append(
            {
                "latents": data_url(pictures[0]),
                "expected": data_url(pictures[1]),
                "maps": [_whole(each, 1000) for each in maps],
            }
        )
        rows.append((step + 1, *pictures, *(_percent(float(each.max())) for each in maps)))
    names = [term("live.most", language, word=word) for word in (left, right)]
    head = [term("live.steps", language), *(term(f"live.{n}", language) for n in _PARTS), *names]
    words = ("steps", "step", "word", "read", *_PARTS)
    return Alive({"frames": frames, "words_read": [left, right]}, words, [head, *rows])


_PARTS = ("latents", "expected")


def matrix(language: str) -> Alive:
    """Page 6: every head of the text encoder, with and without positions and mask."""
    prompt = PROMPTS[language][0][0]
    names, shown = f06.weights_of(prompt, language)
    cases = [
        _heads(prompt, positions, mask, len(names))
        for positions, mask in itertools.product((False, True), repeat=2)
    ]
    head = int(shown[:, 1:].amax(-1).amin(-1).argmin())
    data = {"tokens": names, "width": VALUES, "layer": f06.LAYER, "head": head, "cases": cases}
    rows = [
        (name, *(f"{100 * float(share):.0f}" for share in row))
        for name, row in zip(names, shown[head], strict=True)
    ]
    words = (
        "layer",
        "head",
        "positions",
        "mask",
        "adds_up",
        "weight",
        "of_value",
        "product",
        "sum",
    )
    return Alive(data, words, [["", *names], *rows])


def _heads(prompt: str, positions: bool, mask: bool, length: int) -> list[list[dict[str, Any]]]:
    """Weights (T, T) in per cent and the first values (T, K) in hundredths, by layer and head."""
    network, found = model().text_encoder.text_model, []
    states = f07.encoded(prompt, positions, mask, length)  # no padding, so that rows add up
    everything = torch.ones(len(states[0]), len(states[0])).bool()
    for layer, state in zip(network.encoder.layers, states, strict=False):
        attention, x = layer.self_attn, layer.layer_norm1(state[None])
        q, k, v = (
            project(x).unflatten(2, (attention.heads, -1)).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        identity = torch.eye(q.shape[2]).expand(1, attention.heads, -1, -1)
        visible = causal_mask(q.shape[2]) if mask else everything
        weights = BACKENDS["reference"](q, k, identity, visible)[0]
        values = v[0, :, :, :VALUES]
        found.append(
            [
                {"weights": _whole(w, 100), "values": _whole(each / each.abs().max(), 100)}
                for w, each in zip(weights, values, strict=True)
            ]
        )
    return found


def places(language: str) -> Alive:
    """Page 10: what each place reads, and where each word is read."""
    shown, (prompt, left, right) = run(language), PROMPTS[language][0]
    maps = shown.maps(sites=fine)  # (G, h, w): start, end, words
    order = [0, *range(2, len(maps)), 1]
    tokens = [term("figure.start", language), *shown.words, term("figure.end", language)]
    most = {word: int(shown.of(word, sites=fine).argmax()) for word in (left, right)}
    grid = maps.shape[1:]
    data = {
        "tokens": tokens,
        "grid": list(grid),
        "place": most[left],
        "maps": [_whole(maps[column], 1000) for column in order],
        "picture": data_url(shown.picture),
        "prompt": prompt,
    }
    rows = []
    for place in (*most.values(), 3):
        row, column = divmod(place, grid[1])
        said = term("live.place", language, row=row + 1, column=column + 1)
        rows.append((said, *(_percent(float(maps[each, row, column])) for each in order)))
    words = ("word", "places", "place", "none", "read")
    return Alive(data, words, [["", *tokens], *rows])


def unet(language: str) -> Alive:
    """Page 12: the blocks; cross-attention cut in one of them, or in all."""
    prompt = PROMPTS[language][0][0]
    pictures = f12.cut_one_by_one(prompt)
    network, names = model().unet, [*f12.sites()]
    features = _features(language)
    shown, read = [], 0
    for number, (place, grid, count) in enumerate(f12.blocks(network, 16)):
        row = min(number, 2 * len(network.down_blocks) - number)
        own = names[read : read + count]
        read += count
        weights = sum(p.numel() for p in _blocks(network)[number].parameters())
        for index in range(max(count, 1)):
            cut = own[index] if own else ""
            shown.append(
                {
                    "name": cut or term(f"figure.{place}", language),
                    "cut": cut,
                    "grid": grid,
                    "row": row + 1,
                    "column": len(shown) + 1,
                    "weights": many(weights, language),
                    "features": features[number],
                }
            )
    moved = {cut: f12.change(pictures[()], each) for cut, each in pictures.items()}
    named = {cut: "all" if len(cut) > 1 else "".join(cut) for cut in pictures}
    data = {
        "blocks": shown,
        "columns": len(shown),
        "pictures": {
            named[cut]: {"picture": data_url(each), "by": f"{moved[cut]:.1f}"}
            for cut, each in pictures.items()
        },
    }
    labels = {"": term("live.uncut", language), "all": term("live.all_cut", language)}
    rows = [
        (labels.get(named[cut], named[cut]), each, f"{moved[cut]:.1f}")
        for cut, each in pictures.items()
    ]
    head = [term(f"live.{name}", language) for name in ("cut", "picture", "moves")]
    words = ("blocks", "uncut", "all_cut", "changed", "features")
    return Alive(data, words, [head, *rows])


def _blocks(network) -> list:
    return [*network.down_blocks, network.mid_block, *network.up_blocks]


def _features(language: str) -> list[str]:
    """What leaves each block in the middle of the run, as a picture of its map."""
    seen: dict[nn.Module, Tensor] = {}  # of a block's layers the last one

    def keep(block: nn.Module, _, out: Tensor) -> None:
        seen[block] = out[0]

    hooks = [block.register_forward_hook(keep) for block in _blocks(model().unet)]
    prompt = PROMPTS[language][0][0]
    text = model().text_encoder(model().tokenizer(prompt).ids).last_hidden_state
    model().unet(run(language).latents[STEPS // 2], 400, text)
    for hook in hooks:
        hook.remove()
    maps = (seen[block] for block in _blocks(model().unet))
    return [data_url(image_of(colored_map(each)), lossless=True) for each in maps]


def cost(language: str) -> Alive:
    """Page 9: bytes of scores; a formula, the same on every machine."""
    rows = []
    for places in (64, 256, 1024, 4096, 16384):
        tile = min(places, QUERY_CHUNK) * min(places, KEY_CHUNK)
        rows.append((places, f"{16e-6 * places * places:,.1f}", f"{16e-6 * tile:,.1f}"))
    types = ["float16", "bfloat16", "float32", "float64"]
    data = {"types": types, "bytes": [2, 2, 4, 8], "tile": [QUERY_CHUNK, KEY_CHUNK]}
    head = [term(f"live.{name}", language) for name in ("n", "whole_mb", "tiles_mb")]
    words = ("n", "t", "heads", "type", "own", "cross", "tiles")
    return Alive(data, words, [head, *rows])


def beam(language: str) -> Alive:
    """Page 8: the beginnings that a beam search keeps, and what may follow each."""
    source = torch.tensor([[2, 3, 4, 5]])
    searches = [[*f08.beams(source, count)] for count in (1, 2, 3, 4)]
    after: dict[str, list[int]] = {}
    for text in {text for search in searches for kept in search for _, text in kept}:
        if not text.endswith(">"):
            after[text] = _whole(f08.next_chances(source, text).exp(), 1000)
    data = {
        "letters": f08.LETTERS,
        "next": dict(sorted(after.items())),
        "searches": [
            [
                [{"text": text, "score": round(10 * score)} for score, text in kept]
                for kept in search
            ]
            for search in searches
        ],
    }
    rows = [
        (number + 1, ", ".join(f"{text} ({score:.1f})" for score, text in search[-1]))
        for number, search in enumerate(searches)
    ]
    head = [term(f"live.{name}", language) for name in ("beams", "kept_last")]
    return Alive(data, ("beams", "next", "ended"), [head, *rows])


COMPONENTS: dict[str, Callable[[str], Alive]] = {
    each.__name__: each for each in (hand, steps, matrix, places, unet, cost, beam)
}
# The page of the book that a component belongs to.
PAGE = {"steps": 2, "hand": 5, "matrix": 6, "beam": 8, "cost": 9, "places": 10, "unet": 12}
