"""The settings of a CLIP text encoder: transformers' config.json, read strictly and written."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from sdcore.checks import as_finite, as_int, has_type, shown
from sdcore.errors import UsageError
from sdcore.files.jsonfile import is_list

ACTIVATION_NAMES = ("quick_gelu", "gelu")
# Keys of a transformers config.json that change nothing in what the encoder computes.
_BOOKKEEPING = frozenset(
    {
        "_name_or_path",
        "architectures",
        "dtype",
        "gradient_checkpointing",
        "initializer_factor",
        "initializer_range",
        "model_type",
        "torch_dtype",
        "transformers_version",
    }
)
# Keys that are accepted at exactly this value, because sdcore has nothing else.
_FIXED = {
    "_attn_implementation_autoset": (True, False),
    "add_cross_attention": (False,),
    "attention_dropout": (0, None),
    "dropout": (0, None),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
    "return_dict": (True,),
    "tie_word_embeddings": (True, False),
    "use_bfloat16": (False,),
}
_ARCHITECTURES = {"CLIPTextModel": False, "CLIPTextModelWithProjection": True}
LAYERS_LIMIT = 512
SIZE_LIMIT = 1 << 24


@dataclass(frozen=True)
class CLIPTextConfig:
    """Sizes of a CLIP text encoder; names and defaults are those of transformers' config.json.

    `eos_token_id == 2` is the value of old files (SD 1.x, 2.x, SDXL) that never was the real id:
    the pooled token is then the one with the highest id, as it was when they were trained.

    Raises:
        UsageError: a size that cannot be, or an unknown activation.
    """

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    pad_token_id: int | None = 1
    bos_token_id: int | None = 49406
    eos_token_id: int = 49407
    with_projection: bool = False

    def __post_init__(self) -> None:
        for name in _SIZES:
            object.__setattr__(self, name, _as_size(name, getattr(self, name)))
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            value = getattr(self, name)
            number = as_int(value)
            if number is None and (value is not None or name == "eos_token_id"):
                raise bad_setting(name, value, "It must be one whole number.")
            object.__setattr__(self, name, number)
        if self.eos_token_id != 2 and not 0 <= self.eos_token_id < self.vocab_size:
            why = f"It is outside the vocabulary of {self.vocab_size} tokens."
            raise bad_setting("eos_token_id", self.eos_token_id, why)
        if self.hidden_act not in ACTIVATION_NAMES:
            raise bad_setting("hidden_act", self.hidden_act, f"sdcore has {ACTIVATION_NAMES}.")
        if self.hidden_size % self.num_attention_heads:
            why = f"It does not divide hidden_size = {self.hidden_size}."
            raise bad_setting("num_attention_heads", self.num_attention_heads, why)
        if not has_type(self.with_projection, bool):
            raise bad_setting("with_projection", self.with_projection, "It is True or False.")
        eps = self.layer_norm_eps
        if as_finite(eps) is None or not 0 < eps < 1:
            raise bad_setting("layer_norm_eps", eps, "It must be a number between 0 and 1.")

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> CLIPTextConfig:
        """Read the dict of a transformers config.json; every setting we do not have is refused."""
        model_type = settings.get("model_type", "clip_text_model")
        if model_type != "clip_text_model":
            raise bad_setting(
                "model_type", model_type, "A CLIP text encoder is of the type clip_text_model."
            )
        architectures = settings.get("architectures") or ["CLIPTextModel"]
        if not is_list(architectures) or architectures[0] not in list(_ARCHITECTURES):
            raise bad_setting("architectures", architectures, f"Known: {list(_ARCHITECTURES)}.")
        known = {field.name for field in fields(cls)} - {"with_projection"}
        for name, value in settings.items():
            if name in known or name in _BOOKKEEPING:
                continue
            if name not in _FIXED:
                raise bad_setting(name, value, "sdcore's CLIP text encoder has no such setting.")
            if value not in _FIXED[name]:
                raise bad_setting(name, value, f"sdcore has only {_FIXED[name][0]} here.")
        chosen = {name: settings[name] for name in known & settings.keys()}
        return cls(**chosen, with_projection=_ARCHITECTURES[architectures[0]])

    def to_dict(self) -> dict[str, Any]:
        """The config.json that transformers' CLIPTextModel (or ...WithProjection) reads."""
        settings = asdict(self)
        with_projection = settings.pop("with_projection")
        architecture = "CLIPTextModelWithProjection" if with_projection else "CLIPTextModel"
        return {"architectures": [architecture], "model_type": "clip_text_model", **settings}


_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "projection_dim",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)


def _as_size(name: str, value: object) -> int:
    limit = LAYERS_LIMIT if name == "num_hidden_layers" else SIZE_LIMIT
    size = as_int(value, 1, limit)
    if size is not None:
        return size
    raise bad_setting(name, value, f"It must be a whole number from 1 to {limit}.")


def bad_setting(name: str, value: object, why: str) -> UsageError:
    return UsageError(
        f"The text encoder's setting {name} = {shown(value)} cannot be used.",
        why,
        "Use a CLIP text encoder of SD 1.x, 2.x or XL, or correct the setting.",
    )
