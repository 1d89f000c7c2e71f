"""A run as a control learns of it, without a pipeline."""

from __future__ import annotations

from typing import Any

import torch

from sdcore.control.run_control import Run
from sdcore.diffusion.steps import Step

STEP = Step(0, 1, 500.0)


def make_run(rows: int = 1, text_tokens: int = 77, **changes: Any) -> Run:
    """`rows` images whose text has `text_tokens`, on the CPU in float32; latents are 8 x 8."""
    usual = {"parts": (text_tokens,), "grid": (8, 8), "sites": ()}
    device = {"device": torch.device("cpu"), "dtype": torch.float32}
    return Run(rows, text_tokens, **{**usual, **device, **changes})
