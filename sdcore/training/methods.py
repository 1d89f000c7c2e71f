"""What each method trains of a model.

    full               the networks' own weights, or those of the attention to the text alone
    lora               small layers beside them, by PEFT
    textual_inversion  vectors of one new word

A method changes the model that it is given, in place: the same modules train and paint. What it
leaves behind is in export.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sdcore.adapters.textual_inversion import Embedding, apply_embeddings
from sdcore.errors import UsageError
from sdcore.training.network import Network
from sdcore.training.peft_layers import add_adapters, target_layers
from sdcore.training.state import trained

if TYPE_CHECKING:
    from sdcore.pipeline.text_to_image import TextToImage
    from sdcore.training.finetune_settings import FinetuneSettings

_CROSS = ".attn2."
_SYNTAX = "()[]\\"  # of prompts: weights, schedules, escapes
TYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Method:
    """A model made ready for training.

    Attributes:
        pipe: paints with what is trained.
        network: its networks; what takes a gradient is trained.
        what: what is trained, for people.
        adapted: name of a part -> its layers that have adapters.
    """

    pipe: TextToImage
    network: Network
    what: str
    adapted: Mapping[str, list[str]] = field(default_factory=dict[str, list[str]])

    @property
    def numbers(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for _, parameter in trained(self.network))


def prepare_method(settings: FinetuneSettings, pipe: TextToImage) -> Method:
    """The model as the method trains it.

    Raises:
        UsageError: this model cannot be trained so.
    """
    _check_kind(pipe)
    for network in pipe.networks.values():
        network.requires_grad_(False)
    pipe.unet.gradient_checkpointing = settings.gradient_checkpointing
    made = {"lora": _lora, "full": _full, "textual_inversion": _inversion}
    method = made[settings.method](settings, pipe)
    for _, parameter in trained(method.network):
        parameter.data = parameter.data.float()  # what is trained has room for small steps
    return method


def prepare_networks(method: Method, precision: str) -> None:
    """Weights as they are computed with fastest, in place.

    What is not trained takes the type that is computed in: half the memory, and no casts.
    """
    parameters = trained(method.pipe.unet)
    if any(".lora_magnitude_vector." in name for name, _ in parameters):
        for _, parameter in parameters:  # PEFT's DoRA takes them as matrices, by views
            parameter.data = parameter.data.contiguous()
    dtype = TYPES[precision]
    if dtype == torch.float32:
        return
    for parameter in method.network.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def rates(settings: FinetuneSettings) -> dict[str, float]:
    """Beginnings of parameter names -> factor of the learning rate."""
    if settings.method == "textual_inversion":
        return {}
    factor = 0.5
    if settings.text_encoder_rate is not None:
        factor = settings.text_encoder_rate / settings.run.learning_rate
    return {"text_encoder": factor}


def _check_kind(pipe: TextToImage) -> None:
    if pipe.kind.refiner:
        raise UsageError(
            "The SDXL refiner cannot be trained.",
            "It refines what another model began, and reads an aesthetic score that pictures do "
            "not have.",
            "Use SDXL's base model.",
        )


def _lora(settings: FinetuneSettings, pipe: TextToImage) -> Method:
    how = settings.lora
    parts = ["unet", *(pipe.kind.text_encoders if how.text_encoder else ())]
    adapted: dict[str, list[str]] = {}
    for part in parts:
        names = target_layers(pipe.part(part), part, how.layers)
        add_adapters(pipe.part(part), names, how, settings.run.seed)
        adapted[part] = names
    layers = " and ".join(f"{len(names)} layers of the {part}" for part, names in adapted.items())
    what = f"{how.kind} of rank {how.rank_or_default} beside {layers} ({', '.join(how.targets)})"
    return Method(pipe, Network(pipe), what, adapted)


def _full(settings: FinetuneSettings, pipe: TextToImage) -> Method:
    how = settings.full
    for name, parameter in pipe.unet.named_parameters():
        parameter.requires_grad_(how.layers == "all" or _CROSS in name)
    what = "the UNet" if how.layers == "all" else "the UNet's attention to the text"
    if how.text_encoder:
        for part in pipe.kind.text_encoders:
            pipe.part(part).requires_grad_(True)
        what += " and the text encoders"
    return Method(pipe, Network(pipe), what)


def _inversion(settings: FinetuneSettings, pipe: TextToImage) -> Method:
    how = settings.inversion
    token = how.token
    if not token or len(token.split()) > 1 or set(token) & set(_SYNTAX):
        raise UsageError(
            f"{token!r} is not one word to learn." if token else "There is no word to learn.",
            "Textual inversion learns vectors for a word that is new to the model, in letters that "
            f"have no meaning of their own in prompts, as {' '.join(_SYNTAX)} do.",
            'Name it: inversion.token="<mine>".',
        )
    start = {
        _VECTORS[i] if len(pipe.readers) > 1 else "": _vectors(*reader, how.begin_from, how.vectors)
        for i, reader in enumerate(pipe.readers)
    }
    embedding = Embedding(Path(token), token, "", token, start)
    taught = apply_embeddings(pipe, [embedding]).replace(embeddings=())
    for part in pipe.kind.text_encoders:
        learned_rows(taught.part(part)).requires_grad_(True)
    what = f"{how.vectors} vectors of the word {token!r}, which begin as {how.begin_from!r}"
    return Method(taught, Network(taught), what)


_VECTORS = ("clip_l", "clip_g")


def learned_rows(encoder: nn.Module) -> nn.Parameter:
    """The learned rows of a text encoder's table."""
    return encoder.get_parameter("text_model.embeddings.token_embedding.rows")


def _vectors(tokenizer: Any, encoder: Any, words: str, count: int) -> Tensor:
    """The vectors (n, D) of some words, in turn until there are enough."""
    ids = [piece.id for piece in tokenizer.pieces(words)]
    if not ids:
        raise UsageError(
            "The setting inversion.begin_from says no word.",
            f"It is {words!r:.80}.",
            "Use a word that the model knows, such as cat, toy or style.",
        )
    table = encoder.text_model.embeddings.token_embedding.weight.detach()
    return torch.stack([table[ids[i % len(ids)]] for i in range(count)]).clone()
