"""Page 9: key-value recall at three budgets; memory of scores, whole and in blocks."""

from __future__ import annotations

from collections.abc import Callable

import torch

from docs.book.book import Measured, term
from docs.book.drawing import FAINT, Svg
from docs.book.training import trained
from sdcore import BACKENDS
from sdcore.attention import KEY_CHUNK, QUERY_CHUNK

PLACES, HEADS = (1024, 2048, 4096), 8


def measure(language: str) -> Measured:
    found = trained()
    budgets = found["budgets"]
    scores = {
        kind: 100 * torch.tensor([[at["right"] for at in each] for each in found[kind]])
        for kind in ("transformer", "lstm")
    }

    def word(name: str, **values: object) -> str:
        return term(f"figure.{name}", language, **values)

    sheet = Svg(860, 470)
    sheet.text(50, 16, word("pairs_title"), size=14, bold=True)
    lines = {
        word(kind): list(zip(budgets, scores[kind].mean(0).tolist(), strict=True))
        for kind in ("transformer", "lstm")
    }
    sheet.chart(lines, 50, 44, 230, 210, word("trained_steps"), "")
    sheet.text(430, 16, word("memory_title"), size=14, bold=True)
    most = _megabytes(PLACES[-1], PLACES[-1])
    for row, places in enumerate(PLACES):
        blocks = min(places, QUERY_CHUNK), min(places, KEY_CHUNK)
        for line, (name, size) in enumerate(
            (("whole_table", _megabytes(places, places)), ("in_blocks", _megabytes(*blocks)))
        ):
            y = 54 + 76 * row + 26 * line
            sheet.text(610, y, word(name, n=places), "end", 13)
            sheet.box(618, y - 8, max(150 * size / most, 1.5), 16, "#104e8b", "none")
            sheet.text(624 + 150 * size / most, y, f"{size:.0f}", size=12, color=FAINT)
    _tiles(sheet, word)
    q = torch.randn(1, 2, 700, 16, generator=torch.Generator().manual_seed(0)).double()
    same = torch.allclose(
        BACKENDS["chunked"](q, q, q), BACKENDS["reference"](q, q, q), rtol=0, atol=1e-12
    )
    worst, best = scores["transformer"].amin(0), scores["lstm"].amax(0)
    return Measured(
        sheet,
        {
            "seeds": str(len(found["lstm"])),
            "few": f"{budgets[0]:,}",
            "many": f"{budgets[-1]:,}",
            "t_few": f"{scores['transformer'].mean(0)[0]:.0f}",
            "l_few": f"{scores['lstm'].mean(0)[0]:.0f}",
            "t_many": f"{scores['transformer'].mean(0)[-1]:.0f}",
            "l_many": f"{scores['lstm'].mean(0)[-1]:.0f}",
        },
        {"9.pairs": bool((worst > best + 5).all()) and _as_large(found), "9.same": same},
    )


def _tiles(sheet: Svg, word: Callable[..., str]) -> None:
    """How the table of scores is gone through: some are summed up, one tile is held."""
    places, left, top, side = PLACES[-1], 50, 330, 120
    rows, columns = places // QUERY_CHUNK, places // KEY_CHUNK
    sheet.text(left, top - 16, word("tiles", n=places), size=14, bold=True)
    held = 3 * columns + 2
    for tile in range(rows * columns):
        fill = "#104e8b" if tile == held else "#cfdcea" if tile < held else "#ffffff"
        row, column = divmod(tile, columns)
        size = side / columns, side / rows
        sheet.box(left + size[0] * column, top + size[1] * row, *size, fill)
    sheet.text(left + side + 30, top + 10, word("tile_keeps"), size=13, color=FAINT)
    for line, name in enumerate(("tile_most", "tile_sum", "tile_out", "tile_rule")):
        sheet.text(left + side + 30, top + 36 + 24 * line, word(name), size=13)


def _as_large(found: dict) -> bool:
    """Whether the LSTM has no fewer weights."""
    return 1 <= found["lstm weights"] / found["transformer weights"] < 1.1


def _megabytes(rows: int, columns: int) -> float:
    return 4e-6 * HEADS * rows * columns
