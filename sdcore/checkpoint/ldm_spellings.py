"""Other names under which single files hold the same tensors, and what they hold besides.

| in files                                                 | usual name                          |
|----------------------------------------------------------|-------------------------------------|
| `first_stage_model.….attn_1.to_q`, `.query`, ...         | `….attn_1.q`                        |
| `….attn_1.to_out.0`, `.proj_attn`; `.group_norm`         | `….attn_1.proj_out`; `.norm`        |
| `cond_stage_model.transformer.embeddings.…`              | `….transformer.text_model.…`        |
| `module.…`, `…._orig_mod.…`                              | the name without that word          |

A matrix (O, I) and a 1x1 convolution (O, I, 1, 1) hold the same numbers, too, whichever a file has.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from sdcore.checkpoint.edm import MARKS
from sdcore.checkpoint.ldm_names import VAE_PREFIX, is_open_clip, text_prefix
from sdcore.checkpoint.parts import TEXT_ENCODERS
from sdcore.text.config import CLIPTextConfig
from sdcore.text.encoder import CLIPTextEncoder

_VAE_ATTENTION = re.compile(rf"({re.escape(VAE_PREFIX)}\w+\.mid\.attn_1)\.(\w+(?:\.0)?)\.(\w+)")
VAE_WORDS = {
    **{"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"},
    **{"query": "q", "key": "k", "value": "v", "proj_attn": "proj_out", "group_norm": "norm"},
}

# What training leaves in nearly every published file and no picture depends on: not told.
LEFTOVERS = frozenset(
    {
        *("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod"),
        *("sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod"),
        *("sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance"),
        *("posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"),
        *("logvar", "denoiser.sigmas", "global_step"),
    }
)
LEFTOVER_PREFIXES = (
    "model_ema.",  # the moving average beside the weights
    f"{VAE_PREFIX}model_ema.",
    f"{VAE_PREFIX}loss.",
)
# Constants, and the temperature of CLIP's own training.
LEFTOVER_SUFFIXES = (".position_ids", ".logit_scale")
# Tensors that say how the model was trained, the first two by being there.
MARKERS = frozenset({"v_pred", "ztsnr", *MARKS})

# What some files hold besides, which no picture depends on either: told in one line.
TOLD = frozenset(
    {
        *("scale_factor", "lvlb_weights", "sigmas", "log_sigmas", "denoiser.log_sigmas"),
        *("num_updates", "model.num_updates", "iteration", "epoch", "step", "alphas"),
    }
)
TOLD_PREFIXES = (
    "embedding_manager.",  # of training textual inversion
    "safety_checker.",
    f"{VAE_PREFIX}discriminator.",
    "optimizer.",
    "lr_scheduler.",
)
# Of a text encoder: CLIP's other half, which reads pictures; its mask, a constant.
TOLD_OF_TEXT = (
    *("model.visual.", "model.attn_mask", "transformer.vision_model."),
    *("transformer.visual_projection.", "transformer.text_model.text_projection"),
)
# A projection that a text encoder does without, as in SD 1.x, and the first one of SDXL.
_LAYERS = ("model.transformer.resblocks", "transformer.text_model.encoder.layers")
_PROJECTIONS = ("transformer.text_projection.weight", "model.text_projection", "text_projection")


def plain_name(name: str) -> str:
    """A name without the words that torch.compile and parallel training add."""
    return name.removeprefix("module.").replace("_orig_mod.", "")


def usual_name(name: str, models: Mapping[str, Any], parts: Collection[str]) -> str:
    """The name that `ldm_names.table` has for a tensor under any of its names.

    Args:
        models: networks that the file is read for.
        parts: all components of the model that it is of.
    """
    if (match := _VAE_ATTENTION.fullmatch(name)) is not None:
        return f"{match[1]}.{VAE_WORDS.get(match[2], match[2])}.{match[3]}"
    for part in TEXT_ENCODERS:
        prefix = f"{text_prefix(part, parts)}transformer."
        if part in models and name.startswith(prefix):
            known = CLIPTextEncoder.published_name(name.removeprefix(prefix))
            return name if known is None else prefix + known
    return name


def has_published_text(names: Collection[str], part: str, parts: Collection[str]) -> bool:
    """Whether a file has a text encoder under transformers' names, and not under OpenCLIP's."""
    prefix = text_prefix(part, parts)
    return any(name.startswith(f"{prefix}transformer.") for name in names)


def is_leftover(name: str, models: Mapping[str, Any], parts: Collection[str]) -> bool:
    """Whether nearly every file of such models holds this, and no picture depends on it."""
    if name.removeprefix("model.") in LEFTOVERS or name in MARKERS:
        return True
    if name.startswith(LEFTOVER_PREFIXES) or name.endswith(LEFTOVER_SUFFIXES):
        return True
    for inside, config in _in_text(name, models, parts):
        if is_open_clip(config) and not config.with_projection:
            # SD 2 reads the last layer but one; its files may hold the last, and what followed it.
            last = config.num_hidden_layers
            layers = (f"{prefix}.{last}." for prefix in _LAYERS)
            return inside == "model.text_projection" or inside.startswith(tuple(layers))
    return False


def is_told_leftover(name: str, models: Mapping[str, Any], parts: Collection[str]) -> bool:
    """Whether some files hold this, and no picture depends on it."""
    if name in TOLD or name.startswith(TOLD_PREFIXES):
        return True
    return any(
        inside.startswith(TOLD_OF_TEXT) or (inside in _PROJECTIONS and not config.with_projection)
        for inside, config in _in_text(name, models, parts)
    )


def _in_text(
    name: str, models: Mapping[str, Any], parts: Collection[str]
) -> Iterator[tuple[str, CLIPTextConfig]]:
    """The rest of a name behind a text encoder's prefix, and that encoder's settings."""
    for part in TEXT_ENCODERS:
        if part in models and name.startswith(prefix := text_prefix(part, parts)):
            yield name.removeprefix(prefix), models[part].config
