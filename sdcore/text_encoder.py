"""The CLIP text Transformer that turns token ids into text for the UNet.

Shapes: B batch, T text tokens, H heads, d width of a head, D width, P projection width.

One class serves SD 1.x (ViT-L), SD 2.x (OpenCLIP-H), both encoders of SDXL (ViT-L and OpenCLIP-bigG
with projection) and the embedded model. Parameter names are the published ones. Architecture:
Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision".
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sdcore.errors import UsageError

# Keys of a transformers config.json that change nothing in what the encoder computes.
_BOOKKEEPING = frozenset(
    "_name_or_path architectures dtype gradient_checkpointing initializer_factor initializer_range "
    "model_type torch_dtype transformers_version".split()
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
_LAYERS_LIMIT = 512
_SIZE_LIMIT = 1 << 24


def quick_gelu(x: Tensor) -> Tensor:
    """GELU approximated by a sigmoid, as OpenAI's CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": F.gelu}


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
            _check_size(name, getattr(self, name))
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            value = getattr(self, name)
            if not _is_int(value) and not (value is None and name != "eos_token_id"):
                raise _bad_setting(name, value, "it must be one whole number")
        if self.hidden_act not in ACTIVATIONS:
            raise _bad_setting("hidden_act", self.hidden_act, f"sdcore has {sorted(ACTIVATIONS)}")
        if self.hidden_size % self.num_attention_heads:
            why = f"it does not divide hidden_size = {self.hidden_size}"
            raise _bad_setting("num_attention_heads", self.num_attention_heads, why)
        eps = self.layer_norm_eps
        if not isinstance(eps, (int, float)) or isinstance(eps, bool) or not 0 < eps < 1:
            raise _bad_setting("layer_norm_eps", eps, "it must be a number between 0 and 1")

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> CLIPTextConfig:
        """Read the dict of a transformers config.json; every setting we do not have is refused."""
        model_type = settings.get("model_type", "clip_text_model")
        if model_type != "clip_text_model":
            raise _bad_setting("model_type", model_type, "this class reads clip_text_model")
        architectures = settings.get("architectures") or ["CLIPTextModel"]
        if not isinstance(architectures, list) or architectures[0] not in list(_ARCHITECTURES):
            raise _bad_setting("architectures", architectures, f"known: {list(_ARCHITECTURES)}")
        known = {field.name for field in fields(cls)} - {"with_projection"}
        for name, value in settings.items():
            if name in known or name in _BOOKKEEPING:
                continue
            if name not in _FIXED:
                raise _bad_setting(name, value, "sdcore's CLIP text encoder has no such setting")
            if value not in _FIXED[name]:
                raise _bad_setting(name, value, f"sdcore has only {_FIXED[name][0]} here")
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


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_size(name: str, value: object) -> None:
    limit = _LAYERS_LIMIT if name == "num_hidden_layers" else _SIZE_LIMIT
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
        raise _bad_setting(name, value, f"it must be a whole number from 1 to {limit}")


def _bad_setting(name: str, value: object, why: str) -> UsageError:
    return UsageError(
        f"text encoder setting {name} = {value!r:.80} cannot be used",
        why,
        "use a CLIP text encoder of SD 1.x, 2.x or XL, or correct the setting",
    )


@dataclass(frozen=True)
class TextEncoding:
    """What a text encoder returns.

    last_hidden_state: (B, T, D), after the final LayerNorm: the text of SD 1.x and 2.x.
    hidden_states:     num_hidden_layers + 1 of (B, T, D), embeddings first, none of them normalised;
                       SDXL's text is hidden_states[-2].
    pooled:            (B, D) the normalised state at the end-of-text token; (B, P) where the
                       encoder has a projection.
    """

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...]
    pooled: Tensor


class CLIPTextEmbeddings(nn.Module):
    """Token embedding plus learned absolute positions: ids (B, T) -> (B, T, D)."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, ids: Tensor) -> Tensor:
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]


class CLIPTextAttention(nn.Module):
    """Multi-head self-attention over the text; mask (B or 1, 1, T, T), True = attend."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (  #                                                    each (B, H, T, d)
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(out.transpose(1, 2).flatten(2))  #           (B, T, D)


class CLIPTextMLP(nn.Module):
    """Two linear layers with the activation between them, on each token alone."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class CLIPTextLayer(nn.Module):
    """Pre-norm Transformer encoder layer: attention, then MLP, each added to its input."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = CLIPTextAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = CLIPTextMLP(config)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


class CLIPTextLayers(nn.Module):
    """The stack of layers: returns its input and the output of every layer."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CLIPTextLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1], mask))
        return tuple(states)


class CLIPTextTransformer(nn.Module):
    """Embeddings, layers and final LayerNorm: everything but the projection."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.embeddings = CLIPTextEmbeddings(config)
        self.encoder = CLIPTextLayers(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class CLIPTextEncoder(nn.Module):
    """CLIP text encoder: ids (B, T) -> TextEncoding.

    Built with the random weights that CLIP training starts from.
    """

    Config = CLIPTextConfig
    WEIGHTS_NAME = "model"

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = CLIPTextTransformer(config)
        if config.with_projection:
            self.text_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)
        self._reset_parameters()

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> TextEncoding:
        """Encode token ids.

        Args:
            ids: (B, T) integers, T <= max_position_embeddings; each row holds the end-of-text id.
            mask: (B, T), True or 1 = a real token, False or 0 = padding that no token may read.
                Stable Diffusion encodes without it: its text encoders read the padding.

        Raises:
            UsageError: ids of another rank, too long, or outside the vocabulary (CPU only: on a
                GPU the check would cost a synchronisation).
        """
        self._check(ids, mask)
        x = self.text_model.embeddings(ids)  #                           (B, T, D)
        states = self.text_model.encoder(x, _attention_mask(ids, mask))
        last = self.text_model.final_layer_norm(states[-1])  #           (B, T, D)
        rows = torch.arange(len(ids), device=ids.device)
        pooled = last[rows, end_of_text(ids, self.config.eos_token_id)]  # (B, D)
        if self.config.with_projection:
            pooled = self.text_projection(pooled)  #                     (B, P)
        return TextEncoding(last, states, pooled)

    def skip(self, encoding: TextEncoding, clip_skip: int) -> Tensor:
        """The text (B, T, D) of SD 1.x and 2.x with the last `clip_skip` layers left out.

        Counted as diffusers does: 0 is `last_hidden_state`, 1 is the penultimate layer's output
        (hidden_states[-2]), and so on; the final LayerNorm is applied. (Other programs count from
        1: their "CLIP skip 2" is 1 here. SDXL takes hidden_states[-2] without the LayerNorm.)
        """
        if not 0 <= clip_skip <= self.config.num_hidden_layers:
            raise UsageError(
                f"clip_skip = {clip_skip} cannot be used",
                f"this text encoder has {self.config.num_hidden_layers} layers",
                f"choose 0 to {self.config.num_hidden_layers}; 1 is the penultimate layer",
            )
        return self.text_model.final_layer_norm(encoding.hidden_states[-(clip_skip + 1)])

    def _check(self, ids: Tensor, mask: Tensor | None) -> None:
        limit = self.config.max_position_embeddings
        if ids.ndim != 2 or ids.is_floating_point():
            why = f"shape {tuple(ids.shape)}, {ids.dtype}"
            raise UsageError("token ids must be whole numbers (B, T)", why, "call the tokenizer")
        if ids.shape[1] > limit:
            raise UsageError(
                f"{ids.shape[1]} tokens are too long for this text encoder",
                f"it has {limit} positions",
                f"cut the prompt to {limit} tokens, or encode it in chunks",
            )
        if mask is not None and mask.shape != ids.shape:
            why = f"mask {tuple(mask.shape)}, ids {tuple(ids.shape)}"
            raise UsageError("the text mask does not fit the ids", why, "give one value per token")
        vocabulary = self.config.vocab_size
        if (
            ids.device.type == "cpu"
            and ids.numel()
            and not 0 <= ids.min() <= ids.max() < vocabulary
        ):
            raise UsageError(
                f"token ids from {ids.min()} to {ids.max()} are outside the vocabulary",
                f"this text encoder knows {vocabulary} tokens",
                "use the tokenizer that belongs to this text encoder",
            )

    @torch.no_grad()
    def _reset_parameters(self) -> None:
        """Initial weights of CLIP training (Radford et al. 2021, section 2.4, and its code)."""
        width, layers = self.config.hidden_size, self.config.num_hidden_layers
        into_residual = width**-0.5 * (2 * layers) ** -0.5
        nn.init.normal_(self.text_model.embeddings.token_embedding.weight, std=0.02)
        nn.init.normal_(self.text_model.embeddings.position_embedding.weight, std=0.01)
        for name, parameter in self.named_parameters():
            if name.endswith(".bias"):
                nn.init.zeros_(parameter)
            elif name.endswith(("out_proj.weight", "fc2.weight")):
                nn.init.normal_(parameter, std=into_residual)
            elif name.endswith(("_proj.weight", "text_projection.weight")):
                nn.init.normal_(parameter, std=width**-0.5)
            elif name.endswith("fc1.weight"):
                nn.init.normal_(parameter, std=(2 * width) ** -0.5)


def end_of_text(ids: Tensor, eos_token_id: int) -> Tensor:
    """Position (B,) of the first end-of-text token in ids (B, T); see CLIPTextConfig on id 2."""
    if eos_token_id == 2:
        return ids.to(torch.int).argmax(dim=-1)
    return (ids == eos_token_id).to(torch.int).argmax(dim=-1)


def _attention_mask(ids: Tensor, mask: Tensor | None) -> Tensor:
    """Causal mask (1, 1, T, T), with padding removed from the keys (B, 1, T, T); True = attend."""
    length = ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()[None, None]
    return causal if mask is None else causal & mask.bool()[:, None, None, :]
