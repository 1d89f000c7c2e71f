"""Page 10: three places of the picture and their rows of cross-attention."""

from __future__ import annotations

from torch import Tensor

from docs.book.book import PROMPTS, Measured, Run, fine, run, runs, term
from docs.book.drawing import FAINT, Svg

EDGE = (0, 3)  # C
START, END, FIRST = 0, 1, 2  # columns of heatmaps


def measure(language: str) -> Measured:
    prompt, left, right = PROMPTS[language][0]
    shown = run(language)
    places = {"A": most(shown, left), "B": most(shown, right), "C": EDGE}
    rows = {name: row_at(shown, place) for name, place in places.items()}
    sheet, side = Svg(860, 330), 240
    sheet.picture(shown.picture, 12, 40, side)
    cell = side / 8
    names = [term("figure.start", language), *shown.words, term("figure.end", language)]
    order = [START, *range(FIRST, FIRST + len(shown.words)), END]
    for number, (name, (row, column)) in enumerate(places.items()):
        x, y = 12 + cell * column, 40 + cell * row
        sheet.box(x, y, cell, cell, stroke="#ffffff", wide=4)
        sheet.box(x, y, cell, cell, stroke="#000000", wide=2)
        sheet.text(x + cell / 2, y + cell / 2, name, "middle", 16, bold=True)
        at = 330 + 180 * number
        sheet.text(at, 20, name, size=18, bold=True)
        sheet.bars(at, 52, rows[name][order].tolist(), names, long=90)
    sheet.text(12, 300, prompt, size=13, color=FAINT)
    words = {word: FIRST + shown.words.index(word) for word in (left, right)}
    shares = {
        "a_own": rows["A"][words[left]],
        "a_other": rows["A"][words[right]],
        "b_own": rows["B"][words[right]],
        "b_other": rows["B"][words[left]],
        "c_both": rows["C"][words[left]] + rows["C"][words[right]],
        "c_rest": rows["C"][START] + rows["C"][END],
    }
    names_held, empty, rest = [], [], []
    for one, other, each in runs(language):
        columns = [FIRST + each.words.index(word) for word in (one, other)]
        for own, foreign, word in ((0, 1, one), (1, 0, other)):
            row = row_at(each, most(each, word))
            names_held.append(float(row[columns[own]]) > 5 * float(row[columns[foreign]]))
        edge = row_at(each, EDGE)
        empty.append(float(edge[columns].sum()) < 0.1)
        rest.append(float(edge[START] + edge[END]) > 0.5)
    return Measured(
        sheet,
        {name: f"{100 * float(share):.0f}" for name, share in shares.items()}
        | {"left": left, "right": right},
        {"10.names": all(names_held), "10.empty": all(empty), "10.rest": all(rest)},
    )


def most(each: Run, word: str) -> tuple[int, int]:
    """The place (row, column) that reads a word most."""
    heat = each.of(word, sites=fine)
    return divmod(int(heat.argmax()), heat.shape[1])


def row_at(each: Run, place: tuple[int, int]) -> Tensor:
    """What a place reads (G,): start, end, then the words; adds up to 1."""
    return each.maps(sites=fine)[:, place[0], place[1]]
