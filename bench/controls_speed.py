"""What controls cost, beside keeping every attention map: parts of `bench.speed`.

Heatmaps, edits and regions are whole pictures of the embedded model. The usual way to heatmaps
(Tang et al. 2023, DAAM, arXiv 2210.04885) writes attention out and keeps the map of every layer
that reads the text, at every step: here as an attention processor of diffusers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Engine = Callable[[], Any]
APPLE, PEAR = (f"a {thing} in flat style on a light blue background" for thing in ("apple", "pear"))
HOW: dict[str, Any] = {"steps": 25, "progress": False}


def controls() -> dict[str, Engine]:
    """One picture: plain, with heatmaps of its words, with two regions."""
    from sdcore import RegionSettings, TextToImage, WordHeatmaps

    pipe: Any = TextToImage.embedded()
    parts = [
        RegionSettings("an apple in flat style", (0.0, 0.0, 0.5, 1.0)),
        RegionSettings("a pear in flat style", (0.5, 0.0, 1.0, 1.0)),
    ]
    return {
        "plain": lambda: pipe(APPLE, seed=1, **HOW),
        "heatmaps": lambda: pipe(APPLE, seed=1, control=WordHeatmaps(pipe.tokenizer(APPLE)), **HOW),
        "regions": lambda: pipe(APPLE, seed=1, dialect="a1111", regions=parts, **HOW),
    }


def edit() -> dict[str, Engine]:
    """Two prompts from one noise, and the second as an edit of the first."""
    from sdcore import PromptEdit, TextToImage

    pipe: Any = TextToImage.embedded()
    both = [APPLE, PEAR]
    return {
        "two prompts": lambda: pipe(both, seed=[1, 1], **HOW),
        "edit": lambda: pipe(both, seed=[1, 1], control=PromptEdit(pipe.tokenizer(both)), **HOW),
    }


def kept_maps() -> dict[str, Engine]:
    """The same picture by diffusers: plain, and with the map of every layer kept."""
    import torch
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import (
        StableDiffusionPipeline,
    )

    from sdcore.pipeline.text_to_image import EMBEDDED

    pipe: Any = StableDiffusionPipeline.from_pretrained(
        str(EMBEDDED), dtype=torch.float32, safety_checker=None
    )
    pipe.set_progress_bar_config(disable=True)
    fused = dict(pipe.unet.attn_processors)

    def paint() -> Any:
        generator = torch.Generator().manual_seed(1)
        return pipe(APPLE, num_inference_steps=25, guidance_scale=2.0, generator=generator)

    def keeping() -> Any:
        maps: list[Any] = []
        pipe.unet.set_attn_processor(KeepsMaps(maps))
        try:
            return paint(), maps
        finally:
            pipe.unet.set_attn_processor(dict(fused))

    return {"diffusers": paint, "diffusers, every map kept": keeping}


class KeepsMaps:
    """An attention processor of diffusers that keeps the maps of layers that read the text.

    maps: of every such layer and step in turn, (B H, N, T).
    """

    def __init__(self, maps: list[Any]) -> None:
        self.maps = maps

    def __call__(
        self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, **others: Any
    ) -> Any:
        read = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        projected = (attn.to_q(hidden_states), attn.to_k(read), attn.to_v(read))
        q, k, v = (attn.head_to_batch_dim(x) for x in projected)
        weights = attn.get_attention_scores(q, k)
        if encoder_hidden_states is not None:
            self.maps.append(weights)
        out = attn.batch_to_head_dim(weights @ v)
        return attn.to_out[1](attn.to_out[0](out))
