"""What each method trains of a model, and what it leaves behind.

    full               the networks' own weights, or those of the attention to the text alone
    lora               small layers beside them, by PEFT
    textual_inversion  vectors of one new word

A method changes the model that it is given, in place: the same modules train and paint.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sdcore.adapters.embedding_saving import save_embedding
from sdcore.adapters.lora_peft import PEFT_WEIGHTS
from sdcore.adapters.lora_saving import save_lora
from sdcore.adapters.textual_inversion import Embedding, apply_embeddings
from sdcore.checkpoint.defaults import FILE_NAME as SAMPLING
from sdcore.checkpoint.loading import save_folder
from sdcore.checkpoint.single_file import save_single_file
from sdcore.diffusion.schedulers import with_settings
from sdcore.errors import UsageError
from sdcore.files.atomic import replace_file
from sdcore.pipeline.text_to_image import EMBEDDED
from sdcore.text.known_words import FILE_NAME as WORDS
from sdcore.training.network import Network
from sdcore.training.peft_layers import add_adapters, changes_of, target_layers
from sdcore.training.state import trained

if TYPE_CHECKING:
    from sdcore.pipeline.text_to_image import TextToImage
    from sdcore.training.finetune_settings import FinetuneSettings

_CROSS = ".attn2."


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
    if not token or len(token.split()) > 1:
        raise UsageError(
            f"{token!r} is not one word to learn." if token else "There is no word to learn.",
            "Textual inversion learns vectors for a word that is new to the model.",
            'Name it: inversion.token="<mine>".',
        )
    start = {
        _VECTORS[i] if len(pipe.readers) > 1 else "": _vectors(*reader, how.begin_from, how.vectors)
        for i, reader in enumerate(pipe.readers)
    }
    embedding = Embedding(Path(token), token, "", token, start)
    taught = apply_embeddings(pipe, [embedding]).replace(embeddings=())
    for part in pipe.kind.text_encoders:
        _rows(taught.part(part)).requires_grad_(True)
    what = f"{how.vectors} vectors of the word {token!r}, which begin as {how.begin_from!r}"
    return Method(taught, Network(taught), what)


_VECTORS = ("clip_l", "clip_g")


def _rows(encoder: nn.Module) -> nn.Parameter:
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


# --- what is left behind -------------------------------------------------------------------------

FORMATS = {  # the first is written where none is named
    "lora": ("kohya", "diffusers", "peft"),
    "full": ("folder", "single_file"),
    "textual_inversion": ("kohya", "diffusers"),
}


def check_output(settings: FinetuneSettings) -> None:
    """Refuse what could not be written at the end, before the first step.

    Raises:
        UsageError: a format that the method does not have, or a name that is a path.
    """
    known = FORMATS[settings.method]
    for form in settings.output.formats:
        if form not in known:
            raise UsageError(
                f"The format {form} is not one of {settings.method}.",
                f"It is written as {' or '.join(known)}.",
                "Change output.formats, or leave it out.",
            )
    name = settings.output.name
    if name and (name != Path(name).name or name.startswith(".")):
        raise UsageError(
            f"The setting output.name cannot be {name!r}.",
            "It names files in run.folder, without their endings.",
            "Use a word without / that begins with no dot.",
        )


def export(
    method: Method, settings: FinetuneSettings, folder: Path, name: str, facts: Mapping[str, str]
) -> list[Path]:
    """Write what was trained; the network holds the weights that are meant.

    Args:
        name: of the files, without suffix.
        facts: strings for the header.

    Raises:
        FileError: the disk is full, or the folder cannot be written.
    """
    formats = settings.output.formats or FORMATS[settings.method][:1]
    dtype: torch.dtype = getattr(torch, settings.output.dtype)
    writers = {"lora": _export_lora, "full": _export_full, "textual_inversion": _export_word}
    export_one = writers[settings.method]
    return [export_one(method, settings, each, folder, name, dtype, facts) for each in formats]


def _export_lora(
    method: Method,
    settings: FinetuneSettings,
    form: str,
    folder: Path,
    name: str,
    dtype: torch.dtype,
    facts: Mapping[str, str],
) -> Path:
    changes = {
        place: change.at(torch.device("cpu"), dtype)
        for part in method.adapted
        for place, change in changes_of(method.pipe.part(part), part).items()
    }
    path = folder / f"{name}.safetensors"
    if form == "diffusers":
        path = path.with_name(f"{name}.diffusers.safetensors")
    if form == "peft":  # of one network each, in a folder with its settings
        for part in method.adapted:
            mine = {place: change for place, change in changes.items() if place.part == part}
            save_lora(folder / f"{name}-{part}" / PEFT_WEIGHTS, mine, spelling=form)
        return folder / f"{name}-unet"
    save_lora(path, changes, spelling=form, metadata=facts)
    return path


def _export_full(
    method: Method,
    settings: FinetuneSettings,
    form: str,
    folder: Path,
    name: str,
    dtype: torch.dtype,
    facts: Mapping[str, str],
) -> Path:
    pipe = method.pipe
    if settings.noise.zero_terminal_snr:  # what was trained down to pure noise is painted from it
        changed = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        pipe = pipe.replace(scheduler=with_settings(pipe.scheduler, **changed))
    if form == "single_file":
        path = folder / f"{name}.safetensors"
        save_single_file(pipe, path, dtype=dtype)
        return path
    source = Path(EMBEDDED if settings.model == "embedded" else settings.model)
    save_folder(pipe, folder / name, dtype=dtype)
    for said in (SAMPLING, WORDS):  # how the model is best run, and the words that it knows
        if (source / said).is_file():
            replace_file(folder / name / said, partial(shutil.copyfile, source / said))
    return folder / name


def _export_word(
    method: Method,
    settings: FinetuneSettings,
    form: str,
    folder: Path,
    name: str,
    dtype: torch.dtype,
    facts: Mapping[str, str],
) -> Path:
    token = settings.inversion.token
    vectors = {
        part: _rows(method.pipe.part(part)).detach().cpu().to(dtype)
        for part in method.pipe.kind.text_encoders
    }
    path = folder / f"{name}{'' if form == 'kohya' else f'.{form}'}.safetensors"
    spelling = "web_ui" if form == "kohya" else form
    return save_embedding(path, token, vectors, spelling=spelling, metadata=facts)[0]
