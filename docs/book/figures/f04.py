"""Page 4: what an LSTM recalls, by distance and by budget."""

from __future__ import annotations

import torch

from docs.book.book import Measured, term
from docs.book.drawing import Svg
from docs.book.training import trained


def measure(language: str) -> Measured:
    found = trained()
    budgets = found["budgets"]
    shares = 100 * torch.tensor(found["recall"]).mean(0).flip(
        1
    )  # (budgets, T), the last word first
    sheet = Svg(760, 330)
    sheet.text(56, 18, term("figure.recall_title", language), size=15, bold=True)
    sheet.chart(
        {
            term("figure.steps_trained", language, steps=budget): list(enumerate(each.tolist()))
            for budget, each in zip(budgets, shares, strict=True)
        },
        56,
        48,
        540,
        220,
        term("figure.words_ago", language),
        "",
    )
    first, last = shares[:, -1].tolist(), shares[-1]
    seeds = torch.tensor(found["recall"])[:, :, 0]  # (seeds, budgets), the first word
    return Measured(
        sheet,
        {
            "seeds": str(len(found["recall"])),
            "few": f"{budgets[0]:,}",
            "many": f"{budgets[-1]:,}",
            "first_few": f"{first[0]:.0f}",
            "first_many": f"{first[-1]:.0f}",
            "worst_many": f"{last.min():.0f}",
        },
        {
            "4.budget": bool((seeds[:, -1] > seeds[:, 0] + 0.1).all()),
            "4.worst": bool(last.min() < last.max() - 20),
        },
    )
