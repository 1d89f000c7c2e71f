"""Classifier-free guidance, and the one place that knows which rows are unconditional.

    prediction = unconditional + scale · Σ weight · (part - unconditional)

With one part of weight 1 this is classifier-free guidance (Ho & Salimans 2022); with several, the
parts of an AND, it is their conjunction (Liu et al. 2022, arXiv 2206.01714). All are computed in
one call of the UNet, unconditional rows first, as in diffusers; texts of another length in a call
of their own.

Shapes: B images, R rows of a call (B for each part, B unconditional), C channels, h w latent grid,
T text tokens, D text width, H heads, N image tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sdcore.attention import Attend, Control, Site, call_control
from sdcore.diffusion.guidance import Guidance
from sdcore.sampling.calls import Conditioning


@dataclass(frozen=True)
class Part:
    """One prompt of an AND for every image, and how much it counts.

    `weight` is a number, or (B, 1, 1, 1) where it differs by image; an image whose prompt has no
    such part has the weight 0.
    """

    conditioning: Conditioning
    weight: float | Tensor = 1.0


@dataclass(frozen=True)
class StepConditioning:
    """What steers one step: the parts of the prompts, and the negative prompts.

    unconditional: may be None for one part of weight 1 without guidance.
    """

    parts: tuple[Part, ...]
    unconditional: Conditioning | None


@dataclass(frozen=True)
class StepControls:
    """The controls of one step: of the rows of each prompt of an AND, in their order, and of those
    of the negative prompt. Rows without one attend as they would alone.
    """

    parts: tuple[Control | None, ...] = ()
    negative: Control | None = None

    def of_part(self, number: int) -> Control | None:
        return self.parts[number] if number < len(self.parts) else None


NO_CONTROLS = StepControls()


class Prediction(NamedTuple):
    """What the UNet predicts for B images, (B, C, h, w), in the type of its answer.

    guided:        with guidance.
    unconditional: without the prompt; None where it was not run.
    """

    guided: Tensor
    unconditional: Tensor | None


def guided_prediction(
    call: Callable[..., Tensor],
    latents: Tensor,
    time: Tensor,
    conditioning: StepConditioning,
    guidance: Guidance,
    controls: StepControls = NO_CONTROLS,
) -> Prediction:
    """The UNet's prediction for B images, guided, and the one without the prompt.

    Args:
        call: the UNet of the run, a `RunCall`.
        controls: each sees the B rows of its own part, in the order of the images.
    """
    parts = conditioning.parts
    groups = [
        _Rows(part.conditioning, controls.of_part(number)) for number, part in enumerate(parts)
    ]
    told = guidance.scale if guidance.told else None
    if is_one_prompt(parts) and not guidance.active:
        return Prediction(_predict(call, latents, time, groups, told)[0], None)

    assert conditioning.unconditional is not None, "guidance needs the unconditional rows"
    unconditional = _Rows(conditioning.unconditional, controls.negative)
    negative, *positives = _predict(call, latents, time, [unconditional, *groups], told)
    scale = guidance.scale if guidance.active else 1.0
    direction = torch.zeros_like(negative)
    for part, positive in zip(parts, positives, strict=True):
        weight = part.weight.to(negative) if isinstance(part.weight, Tensor) else part.weight
        direction = direction + weight * (positive - negative)
    prediction = negative + scale * direction
    if guidance.rescale > 0 and guidance.active:
        positive = positives[0] if is_one_prompt(parts) else negative + direction
        prediction = _rescale(prediction, positive, guidance.rescale)
    return Prediction(prediction, negative)


@dataclass(frozen=True)
class _Rows:
    """B rows of one call of the UNet, and the control that sees them."""

    conditioning: Conditioning
    control: Control | None


def is_one_prompt(parts: Sequence[Part]) -> bool:
    """Whether there is one prompt for each image, which counts as it is."""
    return len(parts) == 1 and not isinstance(parts[0].weight, Tensor) and parts[0].weight == 1


def _predict(
    call: Callable[..., Tensor],
    latents: Tensor,
    time: Tensor,
    groups: Sequence[_Rows],
    told: float | None,
) -> list[Tensor]:
    """The UNet's answer to each group of rows; groups with texts of one length share a call."""
    answers: dict[int, Tensor] = {}
    for length in dict.fromkeys(rows.conditioning.text.shape[1] for rows in groups):
        mine = [i for i, rows in enumerate(groups) if rows.conditioning.text.shape[1] == length]
        texts = [groups[i].conditioning for i in mine]
        control = _control_of_rows([groups[i].control for i in mine])
        answer = call(latents, time, texts, control, told)  #       (R, C, h, w)
        answers.update(zip(mine, answer.chunk(len(mine)), strict=True))
    return [answers[i] for i in range(len(groups))]


def _control_of_rows(controls: Sequence[Control | None]) -> Control | None:
    """One control for a whole call: each group of rows is shown to its own."""
    if all(control is None for control in controls):
        return None
    return controls[0] if len(controls) == 1 else _ByRows(controls)


def _rescale(prediction: Tensor, conditional: Tensor, amount: float) -> Tensor:
    axes = tuple(range(1, prediction.ndim))
    wanted = conditional.std(dim=axes, keepdim=True)
    rescaled = prediction * (wanted / prediction.std(dim=axes, keepdim=True))
    return amount * rescaled + (1 - amount) * prediction


class _ByRows:
    """Shows each control its group of rows; rows without one attend as if there were none."""

    def __init__(self, controls: Sequence[Control | None]) -> None:
        self.controls = controls

    def __call__(
        self, site: Site, grid: tuple[int, int], q: Tensor, k: Tensor, v: Tensor, attend: Attend
    ) -> Tensor:
        groups = zip(*(x.chunk(len(self.controls)) for x in (q, k, v)), strict=True)
        out: list[Tensor] = []
        for control, (q, k, v) in zip(self.controls, groups, strict=True):  # (B, H, N, d)
            if control is None:
                out.append(attend(q, k, v))
            else:
                out.append(call_control(control, site, grid, q, k, v, attend))
        return torch.cat(out)
