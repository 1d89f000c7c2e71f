"""What a trained file says about its training, in its header: strings, under kohya's names.

    notes = facts(network_dim=16, seed=0, tag_frequency=tag_frequency({"cats": captions}))
    save_lora("mine.safetensors", changes, spelling="kohya", metadata=model_facts(model) | notes)

The web UI's and other programs' lists of LoRAs show `ss_*` (kohya-ss/sd-scripts, train_network.py)
and `modelspec.*` (Stability AI's model metadata standard 1.0.0). `save_lora` adds the two hashes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from sdcore.errors import UsageError
from sdcore.files.hashes import file_hash, legacy_hash

if TYPE_CHECKING:
    from sdcore.checkpoint.kind import ModelKind
    from sdcore.checkpoint.model import Model

# Names of kohya's, without their ss_; each is an argument of `facts`.
TRAINING = (
    *("session_id", "training_started_at", "training_finished_at", "training_comment"),
    *("output_name", "steps", "epoch", "num_epochs", "max_train_steps", "seed"),
    *("base_model_version", "sd_model_name", "sd_model_hash", "new_sd_model_hash"),
    *("vae_name", "vae_hash", "new_vae_hash", "v2", "clip_skip", "max_token_length"),
    *("network_module", "network_dim", "network_alpha", "network_dropout", "network_args"),
    *("learning_rate", "unet_lr", "text_encoder_lr", "lr_scheduler", "lr_warmup_steps"),
    *("optimizer", "max_grad_norm", "mixed_precision", "full_fp16", "gradient_checkpointing"),
    *("gradient_accumulation_steps", "batch_size_per_device", "total_batch_size"),
    *("num_train_images", "num_reg_images", "num_batches_per_epoch", "prior_loss_weight"),
    *("resolution", "enable_bucket", "bucket_no_upscale", "min_bucket_reso", "max_bucket_reso"),
    *("bucket_info", "dataset_dirs", "reg_dataset_dirs", "datasets", "tag_frequency"),
    *("shuffle_caption", "keep_tokens", "caption_dropout_rate", "caption_tag_dropout_rate"),
    *("flip_aug", "color_aug", "random_crop", "cache_latents", "min_snr_gamma"),
    *("noise_offset", "multires_noise_iterations", "multires_noise_discount"),
    *("adaptive_noise_scale", "ip_noise_gamma", "zero_terminal_snr", "debiased_estimation"),
    *("loss_type", "scale_weight_norms", "masked_loss"),
)
# Names of the standard, which begin with modelspec. in the header and modelspec_ as arguments.
STANDARD = (
    *("sai_model_spec", "architecture", "implementation", "title", "resolution", "description"),
    *("author", "date", "license", "usage_hint", "tags", "trigger_phrase", "prediction_type"),
    *("timestep_range", "encoder_layer", "merged_from", "hash_sha256", "thumbnail"),
)
_KEYS = {
    **{name: f"ss_{name}" for name in TRAINING},
    **{f"modelspec_{name}": f"modelspec.{name}" for name in STANDARD},
}
_MOST_TAGS = 5000  # of a folder, the most frequent: a header stays a header

# Width of the text that a UNet reads -> kohya's version, the standard's architecture.
_FAMILIES = {
    768: ("sd_v1", "stable-diffusion-v1"),
    1024: ("sd_v2", "stable-diffusion-v2"),
    2048: ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base"),
}
_V2_WIDTH = 1024
_IMPLEMENTATION = "https://github.com/Stability-AI/generative-models"  # whose names are kohya's


def facts(**named: object) -> dict[str, str]:
    """A header's entries: each argument under its public key, as a string.

    Args:
        named: names of `TRAINING`, and of `STANDARD` after `modelspec_`. None is left out. Mappings
            and sequences become JSON, times seconds since 1970, all else what `str` makes of it.

    Raises:
        UsageError: a name is unknown.
    """
    for name in named:
        if name not in _KEYS:
            near = get_close_matches(name, _KEYS, 1)
            hint = f"Did you mean {near[0]}?" if near else "See sdcore.training.facts.TRAINING."
            raise UsageError(
                f"A trained file cannot say {name!r:.80}.", "Programs read no such fact.", hint
            )
    return {_KEYS[name]: _as_text(value) for name, value in named.items() if value is not None}


def model_facts(model: Model, *, file: Path | None = None, kind: str = "lora") -> dict[str, str]:
    """What a trained file says of the model that it was trained on.

    Args:
        file: of the model, if it is a single one; it is hashed, seconds for each GB.
        kind: of the trained file, as the standard names it: `lora`, `textual-inversion`, or "" for
            a whole model.

    Raises:
        FileError: the file cannot be read.
    """
    velocity = model.scheduler.config.get("prediction_type") == "v_prediction"
    name = model.defaults.name or None
    version, architecture = family_names(model.kind, velocity=velocity, name=name or "own")
    return facts(
        base_model_version=version,
        v2=model.kind.text_width == _V2_WIDTH,
        sd_model_name=name if file is None else file.name,
        sd_model_hash=None if file is None else legacy_hash(file),
        new_sd_model_hash=None if file is None else file_hash(file),
        zero_terminal_snr=bool(model.scheduler.config.get("rescale_betas_zero_snr")),
        modelspec_sai_model_spec="1.0.0",
        modelspec_architecture=f"{architecture}/{kind}" if kind else architecture,
        modelspec_implementation=_IMPLEMENTATION,
        modelspec_prediction_type="v" if velocity else "epsilon",
    )


def family_names(kind: ModelKind, *, velocity: bool, name: str) -> tuple[str, str]:
    """What kohya's trainers and the standard call a kind of model.

    Args:
        velocity: it predicts v.
        name: of a model that is of no known family; it is called sdcore_NAME.
    """
    width = kind.text_width
    version, architecture = _FAMILIES.get(width, (f"sdcore_{name}",) * 2)
    if width == _V2_WIDTH:
        architecture += "-768-v" if velocity else "-512"
    if width in (768, _V2_WIDTH) and velocity:
        version += "_v"
    return version, architecture + "-inpainting" * kind.reads_mask


def tag_frequency(captions: Mapping[str, Iterable[str]]) -> dict[str, dict[str, int]]:
    """How often each tag stands in the captions of each folder, as kohya's trainers count them.

    Tags are what stands between commas, in lower case. Those of the 5,000 most frequent are kept.
    """
    counted: dict[str, dict[str, int]] = {}
    for folder, texts in captions.items():
        tags = (tag.strip().lower() for text in texts for tag in text.split(","))
        counted[folder] = dict(Counter(tag for tag in tags if tag).most_common(_MOST_TAGS))
    return counted


def _as_text(value: object) -> str:
    if isinstance(value, datetime):
        return str(value.timestamp())
    if isinstance(value, Mapping | list):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, tuple):  # a resolution, as kohya's settings write it
        return ",".join(map(str, value))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return str(value)
