"""A model's folder: on disk or by hub name, and the model_index.json that lists its components."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sdcore.errors import FileError, UsageError
from sdcore.files.jsonfile import is_list, read_json
from sdcore.files.opening import listing
from sdcore.files.preflight import MODEL_INDEX, TOKENIZER, ModelFiles, preflight

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# The places that component classes come from; "stable_diffusion" is the safety checker's old home.
_USE = "Use a model folder in diffusers layout."
_LIBRARIES = ("diffusers", "transformers", "stable_diffusion", "sdcore")
# What model_index.json says besides its components, each true or false.
_SETTINGS = (
    *("force_zeros_for_empty_prompt", "requires_aesthetics_score", "requires_safety_checker"),
    "add_watermarker",
)
_SCHEDULER = re.compile(r"[A-Za-z]\w*Scheduler")


@dataclass(frozen=True)
class ModelIndex:
    """What model_index.json says.

    pipeline:   name of diffusers' pipeline class, such as StableDiffusionPipeline.
    components: name -> class name; a component that the model does without is left out.
    settings:   everything else, such as force_zeros_for_empty_prompt.
    """

    pipeline: str
    components: dict[str, str]
    settings: dict[str, Any]


@dataclass(frozen=True)
class LocalFolder:
    """A model in a folder on disk."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    def listing(self, folder: str) -> dict[str, int]:
        place = self.path / folder
        if not place.is_dir():
            return {}
        return {path.name: path.stat().st_size for path in place.iterdir() if path.is_file()}

    def settings(self, path: str) -> dict[str, Any]:
        return read_json(self.path / path)

    def fetch(self, paths: Iterable[str]) -> Path:
        return self.path


_FILES = (".safetensors", ".gguf", ".ckpt", ".pt", ".pth", ".bin", ".zip")


def find_model(
    name_or_path: str | Path, *, revision: str | None = None, offline: bool = False
) -> ModelFiles:
    """A folder on disk, or a model on the hub by its name `owner/model`.

    The network is used for a hub name alone, and not where `offline` or HF_HUB_OFFLINE is set.

    Args:
        revision: a branch, tag or commit of a model on the hub; None is its main branch.

    Raises:
        FileError: no such folder, or the hub cannot be reached or has no such model or revision.
        UsageError: an argument that cannot be used.
    """
    named = isinstance(name_or_path, str | Path) and str(name_or_path)  # pyright: ignore[reportUnnecessaryIsInstance]
    if not named:
        why = f"The name is {name_or_path!r:.80}, of type {type(name_or_path).__name__}."
        hint = "Name a folder, or a model on the hub such as owner/model."
        raise UsageError("No model is named.", why, hint)
    path = Path(name_or_path).expanduser()
    try:
        is_folder, exists, parent_exists = path.is_dir(), path.exists(), path.parent.is_dir()
    except (OSError, ValueError) as error:  # a name too long, or with a NUL
        raise _no_folder(path, f"{error}.") from error
    if is_folder:
        return _local(path, revision)
    if exists:
        raise FileError(
            f"{path} is a file.",
            "A model's parts lie in a folder in diffusers layout, or all in one file.",
            "Give the folder, or a single file with all parts: .safetensors or .gguf.",
        )
    local = isinstance(name_or_path, Path) or (parent_exists and path.parent != Path())
    if local or not _HUB_NAME.fullmatch(str(name_or_path)):
        holds = f"holds: {listing(path.parent)}" if parent_exists else "does not exist either"
        raise _no_folder(path, f"{path.parent} {holds}.")
    from sdcore.files.hub import open_hub

    return open_hub(str(name_or_path), revision, offline)


def component_folder(
    name_or_path: str | Path,
    subfolder: str | None,
    kind: str = TOKENIZER,
    *,
    variant: str | None = None,
    revision: str | None = None,
    offline: bool = False,
) -> Path:
    """The folder of one component: the model's own, or one directly inside it.

    Of a model on the hub, the component's files and no others are fetched.

    Args:
        kind: TOKENIZER, SCHEDULER, or the name of a network's weights; see `preflight`.

    Raises:
        FileError: as find_model; or files of the component are missing on the hub.
        UsageError: the subfolder is a path.
    """
    if subfolder is not None and (Path(subfolder).name != subfolder or subfolder == ".."):
        hint = "Name a folder directly inside the model, such as unet."
        raise UsageError(f"The subfolder {subfolder!r:.80} cannot be used.", "It is a path.", hint)
    source = find_model(name_or_path, revision=revision, offline=offline)
    if not isinstance(source, LocalFolder):
        files = preflight(source, {subfolder or "": kind}, variant).files
        return source.fetch(files) / (subfolder or "")
    folder = source.path / (subfolder or "")
    if not folder.is_dir():
        raise _no_folder(folder, f"{source.path} holds: {listing(source.path)}.")
    return folder


def read_model_index(folder: str | Path) -> ModelIndex:
    """Read a local folder's model_index.json.

    Raises:
        FileError: missing or damaged, or a component that would need code from the folder.
    """
    path = Path(folder) / MODEL_INDEX
    content = read_json(path)
    refuse_custom_code(content, path)
    pipeline = content.pop("_class_name", None)
    if not isinstance(pipeline, str) or not pipeline.isidentifier():
        why = f"_class_name is {pipeline!r:.80}, not the name of a pipeline class."
        raise FileError(f"{path} cannot be used.", why, _USE)
    components: dict[str, str] = {}
    settings: dict[str, Any] = {}
    for name, value in content.items():
        if not is_list(value):
            _check_setting(name, value, path)
            settings[name] = value
        elif value != [None, None]:
            components[name] = _component_class(name, value, path)
    return ModelIndex(pipeline, components, settings)


def _check_setting(name: str, value: Any, path: Path) -> None:
    """Refuse a setting that no pipeline has: it may be one that is spelt wrongly."""
    if name.startswith("_"):
        return
    if name not in _SETTINGS:
        near = get_close_matches(name, _SETTINGS, n=1)
        raise FileError(
            f"{path} has an unknown setting {name!r:.80}.",
            f"It may hold components and: {', '.join(_SETTINGS)}.",
            f"Did you mean {near[0]!r}?" if near else "Remove it.",
        )
    if value is not None and not isinstance(value, bool):
        why = "It is a switch, true or false."
        raise FileError(f"{path}: {name} is {value!r:.80}.", why, "Correct the file.")


def refuse_custom_code(content: dict[str, Any], path: Path) -> None:
    """Refuse settings that ask for Python code out of the model's folder."""
    if "auto_map" in content or isinstance(content.get("_class_name"), list):
        raise _custom_code(path, "It names Python code to be loaded with the model.")


def _local(path: Path, revision: str | None) -> LocalFolder:
    if revision is not None:
        raise UsageError(
            f"The revision {revision!r:.80} cannot be used with {path}.",
            "A folder on disk has no revisions; models on the hub have.",
            "Leave the revision out.",
        )
    return LocalFolder(path)


def _component_class(name: str, value: list[Any], path: Path) -> str:
    if Path(name).name != name or len(value) != 2 or not isinstance(value[1], str):
        why = f"The component {name!r:.80} is given as {value!r:.80}."
        raise FileError(f"{path} cannot be used.", why, _USE)
    if value[0] not in _LIBRARIES:
        raise _custom_code(path, f"{name} comes from {value[0]!r:.80}.")
    if name == "scheduler" and not _SCHEDULER.fullmatch(value[1]):
        why = f"The component {name} is {value[1]!r:.80}, which is the name of no scheduler."
        raise FileError(f"{path} cannot be used.", why, _USE)
    return value[1]


def _custom_code(path: Path, why: str) -> FileError:
    hint = f"Use a model whose classes come from {' and '.join(_LIBRARIES[:2])}."
    why += " No code that comes with a model is run."
    return FileError(f"{path} asks for custom code.", why, hint)


def _no_folder(path: Path, why: str) -> FileError:
    file = path.suffix.lower() in _FILES
    hint = "Give a folder in diffusers layout, or a hub name such as owner/model."
    if file:
        hint = (
            "Give the file's path as it lies on this computer, or a hub name such as owner/model."
        )
    kind = "file" if file else "folder"
    return FileError(f"There is no model {kind} {str(path)!r:.200}.", why, hint)
