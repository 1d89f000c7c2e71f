"""Page 4: what an LSTM recalls, by distance and by budget."""

from __future__ import annotations

import torch

from docs.book.book import Measured, term
from docs.book.drawing import FAINT, Svg, blue, signed
from docs.book.training import trained


def measure(language: str) -> Measured:
    found = trained()
    budgets = found["budgets"]
    recall = torch.tensor([[at["right"] for at in each] for each in found["recall"]])
    shares = 100 * recall.mean(0).flip(1)  # (budgets, T), the last word first
    survives = torch.tensor([each[-1]["survives"] for each in found["recall"]])  # (seeds, STATE)
    shown = found["recall"][0][-1]
    gates, states = torch.tensor(shown["gates"]), torch.tensor(shown["states"])  # (T, STATE)
    sheet = Svg(760, 540)
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
    order = gates[1:].prod(0).sort(descending=True).indices  # what keeps most comes first
    strips = ("gates", blue(gates.T[order])), ("states", signed(states.T[order]))
    for number, (name, colors) in enumerate(strips):
        x = 56 + 350 * number
        sheet.text(x, 330, term(f"figure.{name}", language), size=14, bold=True)
        sheet.cells(colors, x, 346, 84)
        sheet.text(x + 96, 352, term("figure.keeps_most", language), size=12, color=FAINT)
        sheet.text(x + 96, 508, term("figure.keeps_least", language), size=12, color=FAINT)
    sheet.text(56, 526, term("figure.words_read", language, n=len(gates)), size=12, color=FAINT)
    first, last = shares[:, -1].tolist(), shares[-1]
    seeds = recall[:, :, 0]  # (seeds, budgets), the first word
    return Measured(
        sheet,
        {
            "seeds": str(len(recall)),
            "few": f"{budgets[0]:,}",
            "many": f"{budgets[-1]:,}",
            "first_few": f"{first[0]:.0f}",
            "first_many": f"{first[-1]:.0f}",
            "worst_many": f"{last.min():.0f}",
            "most_kept": f"{100 * float(survives[0, 0]):.0f}",
            "half_kept": str(int((survives[0] > 0.5).sum())),
        },
        {
            "4.budget": bool((seeds.diff(dim=1) > 0.05).all()),
            "4.worst": bool((recall[:, -1].amin(1) < recall[:, -1].amax(1) - 0.2).all()),
            "4.gates": bool((survives[:, 0] > 0.5).all() and (survives[:, -1] < 0.05).all()),
        },
    )
