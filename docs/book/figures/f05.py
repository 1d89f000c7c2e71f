"""Page 5: attention over three tokens by hand, in six panels."""

from __future__ import annotations

import torch

from docs.book.book import Measured, term
from docs.book.drawing import FAINT, Svg, blue

Q = torch.tensor([1.0, 2, 0, 1])
K = torch.tensor([[2.0, 1, 0, 0], [0, 0, 3, 0], [0, 1, 0, 0]])
V = torch.tensor([[4.0, 0], [0, 4], [2, 2]])


def measure(language: str) -> Measured:
    scores = K @ Q
    weights = (scores / 2).softmax(0)
    sheet = Svg(800, 330)

    def word(name: str) -> str:
        return term(f"figure.{name}", language)

    def panel(number: int, name: str) -> tuple[float, float]:
        x, y = 12 + 262 * (number % 3), 10 + 160 * (number // 3)
        sheet.box(x, y, 252, 150, "#fafbfc", round_by=6)
        sheet.text(x + 10, y + 16, word(name), size=14, bold=True)
        return x + 10, y + 44

    def vector(values) -> str:
        return "(" + ", ".join(f"{value:g}" for value in values) + ")"

    tokens = [word(name) for name in ("fox", "left", "cat")]
    x, y = panel(0, "asks")
    sheet.text(x, y, f"{word('query')} = {vector(Q.tolist())}", size=13)
    for row, token in enumerate(tokens):
        line = y + 28 + 24 * row
        sheet.text(x, line, token, size=13)
        sheet.text(x + 46, line, f"k {vector(K[row].tolist())}", size=13)
        sheet.text(x + 150, line, f"v {vector(V[row].tolist())}", size=13)
    for number, name, values in (
        (1, "scores", scores),
        (2, "scaled", scores / 2),
        (3, "softmax", weights),
    ):
        x, y = panel(number, name)
        for row, (token, value) in enumerate(zip(tokens, values.tolist(), strict=True)):
            line = y + 8 + 30 * row
            sheet.text(x, line, token, size=13)
            if name == "softmax":
                sheet.box(x + 56, line - 10, 110 * value, 20, "#104e8b", "none")
                sheet.text(x + 62 + 110 * value, line, f"{100 * value:.1f} %", size=13)
            else:
                sheet.text(x + 70, line, f"{value:g}", size=16)
    x, y = panel(4, "weighted")
    for row, (token, weight) in enumerate(zip(tokens, weights.tolist(), strict=True)):
        line = y + 8 + 30 * row
        sheet.text(x, line, token, size=13)
        parts = (V[row] * weight).tolist()
        sheet.text(x + 46, line, f"{weight:.3f} · {vector(V[row].tolist())}", size=13)
        sheet.text(x + 146, line, f"= ({parts[0]:.2f}, {parts[1]:.2f})", size=13, color=FAINT)
    x, y = panel(5, "sum")
    out = weights @ V
    sheet.text(x, y + 20, f"({out[0]:.2f}, {out[1]:.2f})", size=22)
    sheet.cells(blue(out[None] / 4), x, y + 48, 100)
    return Measured(
        sheet,
        {f"w{i + 1}": f"{100 * float(w):.1f}" for i, w in enumerate(weights)},
        {"5.by_hand": round(1000 * float(weights[0])) == 665},
    )
