"""What is taken away from a model: controls of a few lines, where they act, and the list of them.

Nothing in a model is patched. Text positions, to which no control reaches, are those of a copy of
the text encoder.

Shapes: B images, H heads, N image tokens, T text tokens, d head width, D text width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from sdcore import TextToImage
from sdcore.attention import Attend, AttentionLayer, Control, Site
from sdcore.control.chain import Chain, at_sites
from sdcore.control.run_control import ControlLike, RunControl, attention_sites
from sdcore.errors import UsageError
from sdcore.text.tokenizer import Tokens
from sdcore.text.words import FIRST_WORD, column_marks, word_positions


@dataclass(frozen=True)
class Case:
    """A prompt, and the two of its words whose keys and values are blanked."""

    text: str
    noun: str
    colour: str


# --- controls: plain functions in place of attention --------------------------------------------


def off(
    site: Site, grid: tuple[int, int], q: Tensor, k: Tensor, v: Tensor, attend: Attend
) -> Tensor:
    """Nothing is read: zeros (B, H, N, d) go into the output projection."""
    return torch.zeros_like(q)


def one_head(number: int) -> Control:
    """Every head but one, counted from 0, reads zeros."""

    def control(site, grid, q, k, v, attend) -> Tensor:
        others = torch.arange(v.shape[1], device=v.device) != number  # (H,)
        return attend(q, k, v.masked_fill(others[:, None, None], 0))

    return control


def blank_keys(marked: Tensor) -> Control:
    """Marked tokens (B, T) have the key 0, so the score 0, from every place in the picture."""

    def control(site, grid, q, k, v, attend) -> Tensor:
        return attend(q, k.masked_fill(marked.to(k.device)[:, None, :, None], 0), v)

    return control


def blank_values(marked: Tensor) -> Control:
    """Marked tokens (B, T) are looked at as before, and give nothing."""

    def control(site, grid, q, k, v, attend) -> Tensor:
        return attend(q, k, v.masked_fill(marked.to(v.device)[:, None, :, None], 0))

    return control


class InBoth(Chain):
    """A control for the rows of the prompt and for those of the negative prompt."""

    def __init__(self, control: ControlLike) -> None:
        super().__init__([control])

    @property
    def negative(self) -> RunControl:
        return Chain(self.controls)


# --- where ----------------------------------------------------------------------------------------


def reads_text(site: Site) -> bool:
    return site.kind == "cross"


def grids(pipe: TextToImage) -> dict[tuple[int, int], int]:
    """The token grids (h, w) on which the UNet reads the text, finest first; the level of each."""
    height, width = pipe.native_size.latent_grid(pipe.autoencoder.factor)
    levels = sorted({site.level for site in attention_sites(pipe.unet) if reads_text(site)})
    return {(-(-height // 2**level), -(-width // 2**level)): level for level in levels}


def at_grid(control: ControlLike, pipe: TextToImage, grid: tuple[int, int]) -> RunControl:
    """A control where the UNet reads the text on one grid (h, w).

    Raises:
        UsageError: it does so on no such grid.
    """
    known = grids(pipe)
    if grid not in known:
        raise UsageError(
            f"The text is read on no grid of {grid[0]} x {grid[1]}.",
            f"This UNet reads it on: {', '.join(f'{h} x {w}' for h, w in known)}.",
            "Use one of these.",
        )
    return at_sites(control, lambda site: reads_text(site) and site.level == known[grid])


def mark(tokens: Tokens, words: Sequence[str]) -> Tensor:
    """Where a word of each prompt stands among its tokens: (B, T) bool.

    Raises:
        UsageError: it is not in the prompt.
    """
    marked = torch.zeros(tokens.ids.shape, dtype=torch.bool)
    for prompt, word in enumerate(words):
        marked[prompt, word_positions(tokens, prompt, word)] = True
    return marked


def with_positions(pipe: TextToImage, change: Callable[[Tensor], Tensor]) -> TextToImage:
    """The same pipeline around copies of its text encoders, with other positions (T, D)."""
    other = copy(pipe)
    for name in ("text_encoder", "text_encoder_2"):
        encoder = deepcopy(getattr(pipe, name))
        if encoder is not None:
            positions = encoder.text_model.embeddings.position_embedding.weight.data
            positions.copy_(change(positions))
            setattr(other, name, encoder)
    return other


def shuffle(positions: Tensor) -> Tensor:
    """The rows of (T, D) in another order, always the same."""
    return positions[torch.randperm(len(positions), generator=torch.Generator().manual_seed(0))]


# --- what is taken away ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Ablation:
    """A name, what paints, and the control to paint some prompts with, made from their tokens."""

    name: str
    pipe: TextToImage
    control: Callable[[Tokens, Sequence[Case]], ControlLike | None] = lambda tokens, cases: None


def of_the_network(pipe: TextToImage, guided: bool) -> list[Ablation]:
    """Cross-attention off, and each head alone; `guided` where there are negative rows as well."""
    layers = (layer for layer in pipe.unet.modules() if isinstance(layer, AttentionLayer))
    heads = min(layer.heads for layer in layers if layer.site and reads_text(layer.site))
    chosen: dict[str, RunControl] = {
        **{f"off at {h} x {w}": at_grid(off, pipe, (h, w)) for h, w in grids(pipe)},
        "off everywhere": at_sites(off, reads_text),
        **{f"head {n + 1} alone": at_sites(one_head(n), reads_text) for n in range(heads)},
    }
    if guided:
        chosen = {name: InBoth(control) for name, control in chosen.items()}
    return [
        Ablation(name, pipe, lambda tokens, cases, control=control: control)
        for name, control in chosen.items()
    ]


def of_the_text(pipe: TextToImage) -> list[Ablation]:
    """Positions, keys and values taken away."""

    def noun(tokens: Tokens, cases: Sequence[Case]) -> Tensor:
        return mark(tokens, [case.noun for case in cases])

    def colour(tokens: Tokens, cases: Sequence[Case]) -> Tensor:
        return mark(tokens, [case.colour for case in cases])

    def words(tokens: Tokens, cases: Sequence[Case]) -> Tensor:
        return column_marks([tokens])[..., FIRST_WORD:].any(dim=-1)

    def after(tokens: Tokens, cases: Sequence[Case]) -> Tensor:
        return column_marks([tokens])[..., 1].bool()

    blanked = {
        "key of the noun blanked": (blank_keys, noun),
        "value of the noun blanked": (blank_values, noun),
        "key of the colour blanked": (blank_keys, colour),
        "value of the colour blanked": (blank_values, colour),
        "values of all words blanked": (blank_values, words),
        "values of end and padding blanked": (blank_values, after),
    }
    return [
        Ablation("no positions", with_positions(pipe, torch.zeros_like)),
        Ablation("positions shuffled", with_positions(pipe, shuffle)),
        *(
            Ablation(
                name,
                pipe,
                lambda tokens, cases, b=blank, w=where: at_sites(b(w(tokens, cases)), reads_text),
            )
            for name, (blank, where) in blanked.items()
        ),
    ]
