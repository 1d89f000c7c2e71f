"""Words that count more or less, by re-weighting what they give to the picture.

Shapes: P prompts, T text tokens; the rest as in attention.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdcore.attention import Attend, Control, Site
from sdcore.checks import as_finite
from sdcore.control.run_control import Run, RunControl, check_rows
from sdcore.errors import UsageError
from sdcore.text.tokenizer import Tokens
from sdcore.text.words import as_readings, prompts_with, word_positions
from sdcore.torch_state import with_own_torch_state

if TYPE_CHECKING:
    from sdcore.diffusion.steps import Step


class Reweight(RunControl):
    """Let words count more, less, or against themselves: attend(q, k, c v).

        pipe(prompt, control=Reweight(pipe.tokenizer(prompt), {"red": 2.0}))

    Args:
        tokens: of the prompts of the run; for SDXL those of both tokenizers.
        scales: word, or words in a row, to c; 1 changes nothing, 0 blanks, -1 reverses.

    Raises:
        UsageError: a word is in none of the prompts.
    """

    @with_own_torch_state
    def __init__(self, tokens: Tokens | Sequence[Tokens], scales: Mapping[str, float]) -> None:
        readings = as_readings(tokens)
        self.scales = word_scales(readings, range(len(readings[0].spans)), scales)  # (P, T)
        self._run_scales = self.scales  # where and in the type in which the run attends

    def begin(self, run: Run) -> None:
        check_rows(run, *self.scales.shape)
        self._run_scales = self.scales.to(run.device, run.dtype)

    def at(self, step: Step) -> Control:
        return self.scale_values

    def scale_values(
        self, site: Site, grid: tuple[int, int], q: Tensor, k: Tensor, v: Tensor, attend: Attend
    ) -> Tensor:
        """The control of every step."""
        if site.kind == "self":
            return attend(q, k, v)
        rows = len(v) // len(self.scales)
        scales = self._run_scales.to(v).repeat_interleave(rows, dim=0)  # (B, T)
        return attend(q, k, scales[:, None, :, None] * v)


def word_scales(
    readings: Sequence[Tokens], prompts: Sequence[int], scales: Mapping[str, float]
) -> Tensor:
    """c for some of the prompts, (P, T); the mean of what the tokenizers say where they differ.

    Raises:
        UsageError: a word is in none of these prompts, or a scale is no finite number.
    """
    rows = torch.ones(len(readings), len(prompts), readings[0].ids.shape[1])
    for word, scale in scales.items():
        if as_finite(scale) is None:
            why = "It multiplies what the word gives to the picture."
            raise UsageError(f"The scale of {word!r} is {scale!r}.", why, "Use a finite number.")
        for prompt in prompts_with(readings[0], prompts, word):
            for row, tokens in zip(rows[:, prompts.index(prompt)], readings, strict=True):
                row[word_positions(tokens, prompt, word)] *= scale
    return rows.mean(dim=0)
