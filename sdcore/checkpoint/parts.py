"""The parts of a model: the one table of what each is called, read from and written as.

Nothing here loads torch; `ModelPart.load_class` does, when it is called.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from sdcore.errors import FileError
from sdcore.files.folder import ModelIndex, read_model_index
from sdcore.files.preflight import SCHEDULER, TOKENIZER, ModelFiles, Preflight, preflight


@dataclass(frozen=True)
class ModelPart:
    """One part of a model.

    Attributes:
        name: of its folder and in model_index.json, as in diffusers.
        attribute: of `Model`.
        library: that model_index.json says it is from.
        classes: of that library, whose files can be read; the first is written. None are all
            schedulers that `sdcore.diffusion.schedulers` knows.
        contents: of its folder: TOKENIZER, SCHEDULER, or the name of a network's weights.
        reader: module and class of sdcore that reads it; None: diffusers' own class does.
            Classes of sdcore are in _OWN.
    """

    name: str
    attribute: str
    library: str
    classes: tuple[str, ...]
    contents: str
    reader: str | None

    @property
    def is_network(self) -> bool:
        """Whether it has weights."""
        return self.contents not in (TOKENIZER, SCHEDULER)

    def load_class(self, published: str = "") -> Any:
        """The class of sdcore that reads this part, which model_index.json calls `published`."""
        reader = _OWN.get(published, self.reader)
        assert reader is not None
        module, _, name = reader.rpartition(".")
        return getattr(import_module(f"sdcore.{module}"), name)


_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
_OWN = {"RecurrentTextEncoder": "text.recurrent_encoder.RecurrentTextEncoder"}
_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection", *_OWN)
_UNETS, _AUTOENCODERS = ("UNet2DConditionModel",), ("AutoencoderKL",)
_TOKENIZER, _ENCODER = "text.tokenizer.Tokenizer", "text.encoder.CLIPTextEncoder"
_UNET, _AUTOENCODER = "unet.unet.UNet", "image.autoencoder.Autoencoder"
_WEIGHTS = "diffusion_pytorch_model"

_ROWS = (
    # name, attribute, library, classes, contents, reader
    ("tokenizer", "tokenizer", "transformers", _TOKENIZERS, TOKENIZER, _TOKENIZER),
    ("text_encoder", "text_encoder", "transformers", _ENCODERS, "model", _ENCODER),
    ("tokenizer_2", "tokenizer_2", "transformers", _TOKENIZERS, TOKENIZER, _TOKENIZER),
    ("text_encoder_2", "text_encoder_2", "transformers", _ENCODERS, "model", _ENCODER),
    ("unet", "unet", "diffusers", _UNETS, _WEIGHTS, _UNET),
    ("vae", "autoencoder", "diffusers", _AUTOENCODERS, _WEIGHTS, _AUTOENCODER),
    ("scheduler", "scheduler", "diffusers", (), SCHEDULER, None),
)
PARTS = {row[0]: ModelPart(*row) for row in _ROWS}
NETWORKS = tuple(name for name, part in PARTS.items() if part.is_network)
TOKENIZER_OF = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
TEXT_ENCODERS = tuple(TOKENIZER_OF)
_FIRST, _SECOND = TOKENIZER_OF.items()
_NOT_RUN = ("safety_checker", "feature_extractor")


def wanted_parts(components: Collection[str]) -> list[ModelPart]:
    """What a model needs of which some parts are these.

    A part of a second text encoder asks for both of that encoder's, as in SDXL. Only then may those
    of the first be missing, as in SDXL's refiner.
    """
    second = any(name in components for name in _SECOND)
    first = not second or any(name in components for name in _FIRST)
    left_out = _FIRST * (not first) + _SECOND * (not second)
    return [part for part in PARTS.values() if part.name not in left_out]


def find_components(folder: Path) -> ModelIndex:
    """The folder's model_index.json, once it lists everything that painting needs.

    Raises:
        FileError: a part is missing or of a class that is not supported.
    """
    index = read_model_index(folder)
    hint = "Use a Stable Diffusion 1.x, 2.x or XL model."
    wanted = wanted_parts(index.components)
    for part in wanted:
        found = index.components.get(part.name)
        if found is None:
            there = ", ".join(index.components) or "nothing"
            raise FileError(
                f"{folder} has no {part.name}.",
                f"Its model_index.json ({index.pipeline}) lists: {there}.",
                hint,
            )
        if part.classes and found not in part.classes:
            raise FileError(
                f"{folder}: the {part.name} is a {found}, which is not supported.",
                f"A {index.pipeline} was found where {' or '.join(part.classes)} can be read.",
                hint,
            )
    for name in index.components:
        if name not in (*_NOT_RUN, *(part.name for part in wanted)):
            raise FileError(
                f"{folder} has a part {name!r} that is not supported.",
                "The picture would not be the one that the model was made for.",
                hint,
            )
    return index


def preflight_model(
    source: ModelFiles, components: Iterable[str], variant: str | None
) -> Preflight:
    """What a whole model is read from, by the components of its model_index.json; see `preflight`.

    A safety checker and a feature extractor, which are not run, are passed over.
    """
    contents = {name: PARTS[name].contents for name in components if name in PARTS}
    return preflight(source, contents, variant)
