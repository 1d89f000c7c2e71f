"""Small trainable layers beside those of a network: PEFT puts them there, and gives them back.

    settings = AdapterSettings(kind="lora", rank=8, targets=["cross+up"])
    names = target_layers(model.unet, "unet", settings.layers)
    add_adapters(model.unet, names, settings, seed=0)
    ...                                                       # train what requires a gradient
    save_lora("mine.safetensors", changes_of(model.unet, "unet"), spelling="kohya")

The network's own weights are frozen and stay as they are. Its first answer is unchanged, since one
factor of each change begins at zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from sdcore.adapters.lora_math import Change, Hadamard, Kronecker, LowRank
from sdcore.adapters.lora_names import Place
from sdcore.attention import AttentionLayer
from sdcore.errors import UsageError, name_some
from sdcore.text.encoder import CLIPTextMLP
from sdcore.training.settings import Settings
from sdcore.training.state import generator
from sdcore.unet.spatial_transformer import FeedForward

if TYPE_CHECKING:  # to import PEFT takes seconds
    from peft.tuners.tuners_utils import BaseTunerLayer

PLACES = {"down": "down_blocks.", "mid": "mid_block.", "up": "up_blocks."}
KINDS_OF_LAYER = ("cross", "self", "attention", "mlp", "conv", "all")
WORDS = (*KINDS_OF_LAYER, *PLACES)
DEFAULT_RANK = 16
_NAME = "default"  # PEFT's for the only adapter of a network


class AdapterSettings(Settings):
    """What is trained beside the layers of a network, and beside which.

    Attributes:
        kind: `lora` (Hu et al. 2021, arXiv:2106.09685); `dora`, with a length for each output (Liu
            et al. 2024, arXiv:2402.09353); `rslora`, divided by √rank (Kalajdzievski 2023,
            arXiv:2312.03732); `locon`, a LoRA of the convolutions too (arXiv:2309.14859); `loha`
            (arXiv:2108.06098); `lokr` (arXiv:2309.14859).
        rank: of each change; None leaves it to the method.
        alpha: the change is multiplied by alpha / rank; None is the rank, so by 1.
        dropout: share of a layer's input that is left out in training; of loha and lokr, share of
            its outputs that are not changed.
        targets: words of `target_layers`, names of layers, or patterns of names such as
            `up_blocks.*.attn2.to_k`.
        text_encoder: also in the text encoders.
    """

    kind: Literal["lora", "dora", "rslora", "locon", "loha", "lokr"] = "lora"
    rank: int | None = Field(default=None, ge=1, le=4096)
    alpha: float | None = Field(default=None, gt=0, le=1e4, allow_inf_nan=False)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: list[str] = Field(default=["attention"], min_length=1)
    text_encoder: bool = False

    @field_validator("targets")
    @classmethod
    def _words_are_known(cls, targets: list[str]) -> list[str]:
        for target in targets:
            try:
                _parse(target)
            except UsageError as error:  # on one line, after the key of the setting
                raise ValueError(f"{error.what} {error.hint}") from error
        return targets

    @property
    def layers(self) -> tuple[str, ...]:
        """The targets, for LoCon with the convolutions."""
        convolutions = any("conv" in target or target == "all" for target in self.targets)
        return (*self.targets, *["conv"] * (self.kind == "locon" and not convolutions))

    @property
    def rank_or_default(self) -> int:
        return self.rank or DEFAULT_RANK

    @property
    def alpha_or_rank(self) -> float:
        return self.rank_or_default if self.alpha is None else self.alpha


def target_layers(network: nn.Module, part: str, targets: Sequence[str]) -> list[str]:
    """The linear layers and convolutions of a network that targets name, in its own order.

    Words: `cross` and `self`, the layers of attention to the text and to the image; `attention`,
    both; `mlp`, the feed-forward layers; `conv`, the convolutions; `all`, every one of the blocks.
    `down`, `mid` and `up` join them by +, as in `cross+up`; alone they are the attention there.
    Besides: published names of layers, and patterns of them (`*`, `?`, `[...]`).

    A text encoder has no cross-attention, convolutions or places: there such words name nothing,
    nor does a name of a layer of the UNet. `all` leaves its projection out, and of the UNet what
    lies outside the blocks, since other programs do not read changes of those.

    Args:
        part: the network's name in a model, such as `unet`.

    Raises:
        UsageError: a word is unknown, a name fits no layer, or nothing is left.
    """
    layers = {
        name: module
        for name, module in _modules(network)
        if isinstance(module, nn.Linear | nn.Conv2d)
    }
    kinds = dict(_kinds(network, layers))
    chosen: set[str] = set()
    for target in targets:
        words = _parse(target)
        found = {
            n for n in layers if (_is_named(n, target) if words is None else words <= kinds[n])
        }
        foreign = part != "unet" or target.startswith("text_")
        if not found and not foreign:
            raise _unknown(target, f"It fits no layer of the {part}.", next(iter(layers)))
        chosen |= found
    if not chosen:
        why = f"It has no layers for {name_some(list(targets))}."
        raise UsageError(
            f"Nothing of the {part} would be trained.",
            why,
            "Use attention, mlp or all, or train the UNet alone: text_encoder=false.",
        )
    return [name for name in layers if name in chosen]


def add_adapters(
    network: nn.Module, names: Sequence[str], settings: AdapterSettings, seed: int
) -> None:
    """Put trainable layers beside those of these names, in place; all else is frozen.

    What they begin as follows from the seed and the layer's name: not from torch's random state,
    and not from which other layers there are. They are float32 also where the network is not.

    Raises:
        UsageError: the network has adapters already, or no names are there.
    """
    if not names or any(True for _ in _adapted(network)):
        raise UsageError(
            "The adapters cannot be added.",
            "The network has some already." if names else "No layer is named.",
            "Load the model anew, and name at least one layer.",
        )
    import peft

    state = torch.get_rng_state()  # PEFT draws from it numbers that are not used here
    peft.inject_adapter_in_model(_config(names, settings), network)
    torch.set_rng_state(state)
    network.requires_grad_(False)
    for name, layer in _adapted(network):
        _begin(name, layer, seed)


def changes_of(network: nn.Module, part: str) -> dict[Place, Change]:
    """What was trained, as `save_lora` and `apply_loras` know it; copies, float32, on the CPU.

    Raises:
        UsageError: the network has no adapters.
    """
    changes = {Place(part, name): _change(layer) for name, layer in _adapted(network)}
    if not changes:
        why = "It has no layers that PEFT added."
        raise UsageError(f"Nothing was trained in the {part}.", why, "Call add_adapters first.")
    return changes


# --- which layers ------------------------------------------------------------------------------


def _parse(target: str) -> frozenset[str] | None:
    """The words of a target; None for a name or pattern. UsageError for an unknown word."""
    if "." in target or any(mark in target for mark in "*?["):
        return None
    words = target.split("+")
    if set(words) <= set(WORDS):
        given = frozenset(words)
        return given if given & set(KINDS_OF_LAYER) else given | {"attention"}
    if "+" not in target and target in _NAMES_WITHOUT_DOT:
        return None
    raise _unknown(target, "It is no word for layers, and no name of one.", _EXAMPLE)


_NAMES_WITHOUT_DOT = ("conv_in", "conv_out", "text_projection")
_EXAMPLE = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


def _unknown(target: str, why: str, example: str) -> UsageError:
    return UsageError(
        f"The target {target!r:.120} is unknown.",
        why,
        f"Use {', '.join(WORDS)}, joined by + as in cross+up; or a name or pattern of layers, such "
        f"as {example} or *.attn2.to_k.",
    )


def _is_named(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)


def _kinds(
    network: nn.Module, layers: Mapping[str, nn.Module]
) -> Iterator[tuple[str, frozenset[str]]]:
    """The words that are true of each layer."""
    owners: dict[str, set[str]] = {}
    for name, module in _modules(network):
        if isinstance(module, AttentionLayer):
            kind = "self" if module.site is None else module.site.kind
            owners[f"{name}."] = {"attention", kind}
        elif isinstance(module, FeedForward | CLIPTextMLP):
            owners[f"{name}."] = {"mlp"}
    for name, layer in layers.items():
        words = {word for owner, of in owners.items() if name.startswith(owner) for word in of}
        place = next((word for word, start in PLACES.items() if name.startswith(start)), None)
        if place is not None:
            words |= {place, "all"} | ({"conv"} if isinstance(layer, nn.Conv2d) else set[str]())
        elif words:
            words.add("all")  # of a text encoder
        yield name, frozenset(words)


def _modules(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    yield from cast("Iterator[tuple[str, nn.Module]]", network.named_modules())


# --- PEFT's layers -----------------------------------------------------------------------------


def _config(names: Sequence[str], settings: AdapterSettings) -> Any:
    import peft

    rank, alpha = settings.rank_or_default, settings.alpha_or_rank
    shared: dict[str, Any] = {"r": rank, "target_modules": list(names)}
    if settings.kind in ("loha", "lokr"):
        kind: Any = peft.LoHaConfig if settings.kind == "loha" else peft.LoKrConfig
        return kind(**shared, alpha=alpha, rank_dropout=settings.dropout)
    lora: Any = peft.LoraConfig
    return lora(
        **shared,
        lora_alpha=alpha,
        lora_dropout=settings.dropout,
        use_dora=settings.kind == "dora",
        use_rslora=settings.kind == "rslora",
    )


def _adapted(network: nn.Module) -> Iterator[tuple[str, BaseTunerLayer]]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in _modules(network):
        if isinstance(module, BaseTunerLayer):
            yield name, module


# The factor of each kind that begins at zero; the others as PEFT has them.
_ZERO = ("lora_B", "hada_w2_b", "lokr_w1", "lokr_w1_a")


@torch.no_grad()
def _begin(name: str, layer: BaseTunerLayer, seed: int) -> None:
    base: Any = layer.get_base_layer()
    for word, parameter in _own_parameters(layer):
        if word == "lora_magnitude_vector":
            weight: Tensor = base.weight.float()
            # as PEFT takes it, to the bit, so that the layer's first answer is its own
            dims = tuple(range(1, weight.ndim))
            lengths = cast(Tensor, torch.linalg.vector_norm(weight, dim=dims))  # pyright: ignore[reportUnknownMemberType]
            start = lengths.reshape(parameter.shape)
        else:
            start = torch.zeros(parameter.shape)
            if word not in _ZERO:
                draw = generator(seed, f"adapter {name} {word}", 0, 0)
                nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=draw)
        parameter.data = start.to(base.weight.device, torch.float32)
        parameter.requires_grad_(True)


def _own_parameters(layer: BaseTunerLayer) -> Iterator[tuple[str, nn.Parameter]]:
    """PEFT's word for each trained tensor of a layer, with the tensor."""
    module = cast(nn.Module, layer)
    for name, parameter in module.named_parameters():
        word, _, rest = name.partition(".")
        if word != "base_layer" and _NAME in rest.split("."):
            yield word, parameter


_WORDS_OF_LORA = {"lora_A": "down", "lora_B": "up", "lora_magnitude_vector": "magnitude"}


def _change(layer: BaseTunerLayer) -> Change:
    from peft.tuners.lora import LoraLayer

    scaling: float = cast(Any, layer).scaling[_NAME]
    tensors: dict[str, Tensor] = {
        word: parameter.detach().to("cpu", torch.float32, copy=True)
        for word, parameter in _own_parameters(layer)
    }
    if isinstance(layer, LoraLayer):
        tensors = {_WORDS_OF_LORA[word]: tensor for word, tensor in tensors.items()}
        if "magnitude" in tensors:
            tensors["magnitude"] = tensors["magnitude"].reshape(-1, 1)
        return LowRank(tensors, scaling)
    kind = Hadamard if "hada_w1_a" in tensors else Kronecker
    return kind(tensors, scaling)
