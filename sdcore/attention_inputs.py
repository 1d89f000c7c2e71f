"""What attention is given: queries, keys, values and masks, checked alike for every backend.

B batch, H heads, N query tokens, T key tokens, d head width. Masks are boolean, True = attend.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdcore.checks import has_type
from sdcore.errors import UsageError


def check_inputs(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> None:
    """Refuse alike, in every backend, what some would compute and some would not.

    Raises:
        UsageError: shapes that do not belong together, whole numbers, or a mask that is not
            boolean (of 0 and -inf it would be read the wrong way round) or does not fit.
    """
    rows = q.shape[:-2]
    if not rows == k.shape[:-2] == v.shape[:-2]:
        rows = _broadcast(rows, k.shape[:-2], v.shape[:-2])
    fit = q.shape[-1] == k.shape[-1] and k.shape[-2] == v.shape[-2]
    if rows is None or not fit or not q.shape[-1] or not q.is_floating_point():
        named = (("q", q), ("k", k), ("v", v))
        shapes = ", ".join(f"{name} {describe_tensor(x)}" for name, x in named)
        raise UsageError(
            "These queries, keys and values cannot be attended with.",
            f"{shapes}.",
            "Give fractions: q (B, H, N, d), k (B, H, T, d) and v (B, H, T, any width).",
        )
    if mask is not None:
        _check_mask(mask, (*rows, q.shape[-2], k.shape[-2]), q.device)


def _check_mask(mask: Tensor, scores: tuple[int, ...], device: torch.device) -> None:
    if not has_type(mask, Tensor) or mask.dtype != torch.bool:
        raise UsageError(
            f"An attention mask is boolean, and this one is {describe_tensor(mask)}.",
            "True means attend; numbers could mean that, its opposite, or what is added to scores.",
            "Convert it: mask.bool() of ones and zeros, mask == 0 of zeros and -inf.",
        )
    sizes = zip(reversed(mask.shape), reversed(scores), strict=False)
    fits = 2 <= mask.dim() <= len(scores) and all(one in (1, size) for one, size in sizes)
    if not fits or mask.device != device:
        raise UsageError(
            f"The attention mask is {describe_tensor(mask)}.",
            f"It is for scores {scores} on {device}.",
            "Give a mask (N, T), (B, 1, N, T) or (B, H, N, T), with 1 where all share it.",
        )


def _broadcast(*shapes: torch.Size) -> torch.Size | None:
    try:
        return torch.broadcast_shapes(*shapes)  # pyright: ignore
    except RuntimeError:
        return None


def causal_mask(
    tokens: int, device: torch.device | str | None = None, *, before: int = 0
) -> Tensor:
    """Each token sees itself and those before it: (N, n + N).

    Args:
        before: n tokens that were there already, which all of them see.

    Raises:
        UsageError: one of the numbers is below 0.
    """
    if tokens < 0 or before < 0:
        raise UsageError(
            f"No mask can be made for {tokens} tokens after {before}.",
            "There are no fewer than 0.",
            "Give how many tokens there are.",
        )
    shape = (tokens, before + tokens)
    return torch.ones(shape, dtype=torch.bool, device=device).tril(diagonal=before)


def padding_mask(real: Tensor, tokens: Tensor | None = None) -> Tensor:
    """No query looks at padding: `real` (B, T), True or 1 for a real token, to (B, 1, 1, T).

    Args:
        tokens: (B, T) or (B, T, D), what it is the mask of.

    Raises:
        UsageError: it has another shape, holds fractions, or (seen on a CPU) whole numbers that
            are not 0 and 1.
    """
    return as_real(real, tokens)[:, None, None, :]


def as_real(mask: Tensor, tokens: Tensor | None = None) -> Tensor:
    """A text mask as booleans (B, T): of booleans, or of ones and zeros as tokenizers give them.

    Args, errors: as for `padding_mask`.
    """
    if has_type(mask, Tensor) and mask.dim() == 2:
        fits = tokens is None or mask.shape == tokens.shape[:2]
        if not fits or (tokens is not None and mask.device != tokens.device):
            raise UsageError(
                "The text mask does not fit the tokens.",
                f"The mask is {describe_tensor(mask)}, the tokens are {describe_tensor(tokens)}.",
                "Give one value per token, on the same device.",
            )
        if mask.dtype == torch.bool:
            return mask
        whole = not (mask.is_floating_point() or mask.is_complex())
        seen = mask.device.type == "cpu" and not torch.compiler.is_compiling()
        if whole and not (seen and mask.numel() and not ((mask == 0) | (mask == 1)).all()):
            return mask.bool()
    raise UsageError(
        f"The text mask is {describe_tensor(mask)}, and no mask of ones and zeros (B, T).",
        "1 or True is a real token and 0 or False is padding; 0 and -inf mean the opposite.",
        "Convert it: mask == 0 of a mask of zeros and -inf.",
    )


def describe_tensor(answer: object) -> str:
    """A tensor, or what stands in its place, for errors."""
    if isinstance(answer, Tensor):
        return f"a tensor {tuple(answer.shape)} of {answer.dtype} on {answer.device}"
    return "None" if answer is None else f"an object of type {type(answer).__name__}"
