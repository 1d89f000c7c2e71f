"""Which family of Stable Diffusion a single file belongs to, and what any other file is instead.

Told by names and shapes of tensors, marker tensors and the header's notes; never by the file's
name. Nothing here loads torch, but to judge the prediction type of an SD 2 file that does not say.

| UNet's text width | label_emb | family                 | settings in sdcore/models/families |
|-------------------|-----------|------------------------|------------------------------------|
| 768               | none      | SD 1.x                 | sd1                                |
| 1024              | none      | SD 2.x, epsilon, 512   | sd2_base                           |
| 1024              | none      | SD 2.x, v, 768         | sd2                                |
| 2048              | 2816      | SDXL base              | sdxl                               |
| 1280              | 2560      | SDXL refiner           | sdxl_refiner                       |

The first convolution reads 4 channels, or 9 where the model inpaints. A family's settings are a
folder in diffusers layout without weights; LDM files hold none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from sdcore.checkpoint.edm import prediction_of
from sdcore.errors import FileError, UsageError, name_some, warn
from sdcore.files.header import WeightFile

FOLDER = Path(__file__).parents[1] / "models" / "families"

_UNET, _VAE = "model.diffusion_model.", "first_stage_model."
_TEXT = ("cond_stage_model.", "conditioner.embedders.")
_FIRST_CONV = f"{_UNET}input_blocks.0.0.weight"
_LABELS = f"{_UNET}label_emb.0.0.weight"
_TEXT_READER = re.compile(rf"{re.escape(_UNET)}.*\.transformer_blocks\.0\.attn2\.to_k\.weight")
_FAMILIES: dict[tuple[int | None, int | None], str] = {
    (768, None): "sd1",
    (1024, None): "sd2",
    (2048, 2816): "sdxl",
    (1280, 2560): "sdxl_refiner",
}
_TITLES = {
    "sd1": "Stable Diffusion 1.x",
    "sd2": "Stable Diffusion 2.x",
    "sd2_base": "Stable Diffusion 2.x base",
    "sdxl": "Stable Diffusion XL base",
    "sdxl_refiner": "Stable Diffusion XL refiner",
}
_CHANNELS = {4: "", 9: ", inpainting"}
_OTHER_CHANNELS = {
    5: "the fifth is a depth map: a depth-to-image model",
    7: "the other three are a small picture: an upscaler",
    8: "the other four are a picture: a model that edits by instruction, or of views or video",
}
PREDICTION_TYPES = ("epsilon", "v_prediction")
_SPOKEN = "modelspec.prediction_type"  # of the Stability AI model metadata standard
_WORDS = {
    "epsilon": "epsilon",
    "eps": "epsilon",
    "v": "v_prediction",
    "v_prediction": "v_prediction",
    "v-prediction": "v_prediction",
    "velocity": "v_prediction",
    **dict.fromkeys(("noise", "noise_prediction", "epsilon_prediction"), "epsilon"),
    **dict.fromkeys(("v-pred", "v_pred", "vpred", "vprediction"), "v_prediction"),
}
# SD 2.x trained to predict v spreads these numbers wider than SD 2.x base; ComfyUI's rule.
_TELLING = f"{_UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"
_SPREAD = 0.09


@dataclass(frozen=True)
class Family:
    """What a single file says about its model.

    name:               as in the table above.
    title:              for people.
    folder:             with the family's settings.
    in_channels:        of the UNet: 4, or 9 for inpainting.
    prediction_type:    "epsilon" or "v_prediction".
    said_by:            what the prediction type was told by.
    zero_terminal_snr:  whether it was trained down to pure noise (arXiv:2305.08891).
    """

    name: str
    title: str
    folder: Path
    in_channels: int
    prediction_type: str
    said_by: str
    zero_terminal_snr: bool


def recognise(
    file: WeightFile, *, prediction_type: str | None = None, without: Collection[str] = ()
) -> Family:
    """The family of a whole model in LDM layout, told by its UNet.

    Args:
        without: see `check_whole`.
        prediction_type: what the caller knows; it comes before all that the file says.

    Raises:
        FileError: another kind of file, a part is missing, or a family that is not supported.
        UsageError: a prediction type that there is not.
    """
    check_whole(file, without)
    text_width, labels = _text_width(file), _last_size(file, _LABELS)
    name = _FAMILIES.get((text_width, labels))
    if name is None:
        known = "; ".join(f"{_TITLES[name]}: {w}, {n}" for (w, n), name in _FAMILIES.items())
        raise FileError(
            f"{file.path} holds a UNet of no family that is known.",
            f"Its text width is {text_width} and its label_emb {labels}; {known}.",
            "Give the model's settings too: a folder in diffusers layout, as its config.",
        )
    channels = _in_channels(file)
    said = spoken_prediction(file, prediction_type)
    if said is None and name == "sd2" and channels == 4:
        said = _judged(file)
    prediction, said_by = said or ("epsilon", "the family: this model's file says nothing else")
    if name == "sd2" and prediction == "epsilon":
        name = "sd2_base"
    noise = "" if prediction_of(file) is None else ", EDM noise"
    return Family(
        name,
        _TITLES[name] + _CHANNELS[channels] + noise,
        FOLDER / name,
        channels,
        prediction,
        said_by,
        zero_terminal_snr="ztsnr" in file.shapes,
    )


def family_title(
    text_width: object, labels: object, channels: object, prediction_type: str
) -> str | None:
    """What people call the model that a UNet belongs to; None where it is of none of the families.

    Args:
        text_width, labels, channels: the UNet's cross_attention_dim,
            projection_class_embeddings_input_dim and in_channels.
    """
    families = {key: name for key, name in _FAMILIES.items() if key == (text_width, labels)}
    kinds = {key: kind for key, kind in _CHANNELS.items() if key == channels}
    if not families or not kinds:
        return None
    name, kind = next(iter(families.values())), next(iter(kinds.values()))
    base = name == "sd2" and prediction_type == "epsilon"
    return _TITLES["sd2_base" if base else name] + kind


def spoken_prediction(
    file: WeightFile, prediction_type: str | None = None
) -> tuple[str, str] | None:
    """The prediction type that is given or written in a file, and where; None where it is not.

    The caller comes first, then the marker tensors, then the header's notes, which tools copy from
    file to file when they merge models.
    """
    if prediction_type is not None:
        if prediction_type not in PREDICTION_TYPES:
            why = f"Single files predict {' or '.join(PREDICTION_TYPES)}."
            hint = "Leave it out to go by what the file says."
            raise UsageError(
                f"The prediction type {prediction_type!r:.80} cannot be used.", why, hint
            )
        return prediction_type, "prediction_type, as given"
    if (said := prediction_of(file)) is not None:
        return said
    if "v_pred" in file.shapes:
        return "v_prediction", "the marker tensor v_pred"
    word = file.metadata.get(_SPOKEN)
    if word is None:
        return None
    if word.lower() not in _WORDS:
        raise FileError(
            f"{file.path}: its header gives {_SPOKEN} as {word!r:.80}.",
            f"Known words: {', '.join(_WORDS)}.",
            "Say yourself what it predicts: epsilon or v_prediction.",
        )
    return _WORDS[word.lower()], f"{_SPOKEN} in the header"


def check_whole(file: WeightFile, without: Collection[str] = ()) -> None:
    """Check that a file is a whole model in LDM layout: UNet, autoencoder and text encoder.

    Args:
        without: which of the three it need not hold: `unet`, `vae`, `text_encoder`.

    Raises:
        FileError: naming what it is instead, or which of the three is missing.
    """
    parts = {
        "unet": ("a UNet", (_UNET,)),
        "vae": ("an autoencoder", (_VAE,)),
        "text_encoder": ("a text encoder", _TEXT),
    }
    kind = describe(file)
    missing = [
        (part, f"{name} ({' or '.join(f'{prefix}*' for prefix in prefixes)})")
        for part, (name, prefixes) in parts.items()
        if part not in without
        and not _begins(file.shapes, _FIRST_CONV if part == "unet" else prefixes)
    ]
    if kind == _WHOLE or (not missing and kind in _PARTS_OF_WHOLE):
        return
    if kind == _UNET_ALONE or (kind in _PARTS_OF_WHOLE and "unet" not in dict(missing)):
        given = " and ".join(f"{part}=PATH" for part, _ in missing)
        raise FileError(
            f"{file.path} is no whole model: it holds {kind}.",
            f"Missing: {', '.join(text for _, text in missing)}.",
            f"Take the checkpoint's full file, or name a file or folder: {given}.",
        )
    raise FileError(
        f"{file.path} is no whole model: it holds {kind}.",
        f"Its tensors: {name_some(list(file.shapes), 3) or 'none'}.",
        "Give the file of a whole Stable Diffusion 1.x, 2.x or XL model.",
    )


def describe(file: WeightFile) -> str:
    """What a safetensors file holds, in words."""
    if not file.shapes:
        return "no tensor"
    return next((kind for kind, fits in _KINDS.items() if fits(file)), UNKNOWN)


def _begins(names: Iterable[str], prefixes: str | tuple[str, ...]) -> bool:
    return any(name.startswith(prefixes) for name in names)


def _contains(*pieces: str) -> Callable[[WeightFile], bool]:
    return lambda file: any(piece in name for name in file.shapes for piece in pieces)


def _starting(*prefixes: str) -> Callable[[WeightFile], bool]:
    return lambda file: _begins(file.shapes, prefixes)


def _is_embedding(file: WeightFile) -> bool:
    """A few vectors, each as wide as a text encoder; `emb_params`, `clip_l`, `clip_g` are usual."""
    return len(file.shapes) <= 4 and all(
        len(shape) in (1, 2) and shape[-1] in (768, 1024, 1280) for shape in file.shapes.values()
    )


_LORA_PIECES = ("lora_", ".lora.", "hada_w", "lokr_w", "dora_scale", "bundle_emb.")
_LORA_ENDINGS = (
    *(".oft_blocks", ".oft_diag", ".oft_R.weight", ".boft_R", ".ia3_l", ".on_input"),
    *(".diff", ".diff_b", ".w_norm", ".b_norm", ".a1.weight"),
)


def _is_lora(file: WeightFile) -> bool:
    pieces = _contains(*_LORA_PIECES)(file)
    return not _is_whole(file) and (
        pieces or any(name.endswith(_LORA_ENDINGS) for name in file.shapes)
    )


def _is_whole(file: WeightFile) -> bool:
    parts = (_FIRST_CONV, _VAE, _TEXT)
    return all(_begins(file.shapes, prefix) for prefix in parts)


UNKNOWN = "something unknown"
_WHOLE, _UNET_ALONE = "a whole model in LDM layout", "a UNet without all that belongs to it"


# In this order: the first that fits. LoRA files and others use names of the parts they change.
_KINDS: dict[str, Callable[[WeightFile], bool]] = {
    "a LoRA": _is_lora,
    "a ControlNet": _starting(
        "control_model.", "controlnet_", "input_hint_block.", "zero_convs.", "controlnet."
    ),
    "motion modules of AnimateDiff": _contains("motion_modules."),
    "an IP-Adapter": _starting("image_proj.", "ip_adapter."),
    "a diffusion Transformer without a UNet (Stable Diffusion 3, Flux and others)": _contains(
        "joint_blocks.", "double_blocks.", "single_transformer_blocks.", "adaLN_modulation"
    ),
    _WHOLE: _is_whole,
    _UNET_ALONE: _starting(_FIRST_CONV),
    "an autoencoder alone, in LDM layout": _starting(
        _VAE, "encoder.down.", "decoder.up.", "encoder.mid.", "decoder.mid."
    ),
    "a UNet alone, without the prefix of a whole model": _starting(
        *("input_blocks.", "output_blocks.", "middle_block."), "diffusion_model.input_blocks."
    ),
    "the unet of a diffusers folder": _starting("down_blocks.", "mid_block.", "up_blocks."),
    "the vae of a diffusers folder": _starting("encoder.down_blocks.", "decoder.up_blocks."),
    "the text encoder of a diffusers folder": _starting(
        "text_model.", "embeddings.", "encoder.layers."
    ),
    "a text encoder in OpenCLIP's layout": _starting("transformer.resblocks.", *_TEXT),
    "a textual-inversion embedding": _is_embedding,
}


# What is one of the three parts of a whole model, by names that such a model has.
_PARTS_OF_WHOLE = (
    _UNET_ALONE,
    "an autoencoder alone, in LDM layout",
    "a text encoder in OpenCLIP's layout",
)


def _text_width(file: WeightFile) -> int | None:
    """D, the width of the text that the UNet's cross-attention reads."""
    readers = (name for name in file.shapes if _TEXT_READER.fullmatch(name))
    return next((_last_size(file, name) for name in readers), None)


def _last_size(file: WeightFile, name: str) -> int | None:
    return file.shapes[name][-1] if file.shapes.get(name) else None


def _in_channels(file: WeightFile) -> int:
    shape = file.shapes[_FIRST_CONV]
    channels = shape[1] if len(shape) == 4 else 0
    if channels not in _CHANNELS:
        raise FileError(
            f"{file.path} holds a UNet that reads {channels} channels.",
            _OTHER_CHANNELS.get(channels, f"{_FIRST_CONV} has the shape {shape}"),
            "Use a text-to-image model (4 channels) or one for inpainting (9).",
        )
    return channels


def _judged(file: WeightFile) -> tuple[str, str]:
    """SD 2.x base and SD 2.x 768-v differ in nothing but their numbers; what these suggest."""
    if _TELLING not in file.shapes:
        raise FileError(
            f"{file.path}: the UNet of an SD 2.x model lacks a tensor.",
            f"Missing: {_TELLING}.",
            "Download the file again.",
        )
    from sdcore.files.weights import read_tensor  # loads torch, which headers do not need

    spread = read_tensor(file, _TELLING).double().std(correction=0).item()
    prediction = "v_prediction" if spread > _SPREAD else "epsilon"
    warn(
        f"{file.path.name} does not say what its UNet predicts; judged by its weights it is "
        f"{prediction}. If the pictures are noise, give the other prediction_type"
    )
    return prediction, f"its weights: {_TELLING} spreads {spread:.3f}, the limit is {_SPREAD}"
