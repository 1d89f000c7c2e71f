"""A model's folder: on disk or by hub name, and the model_index.json that lists its components."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdcore.checkpoint.jsonfile import listing, read_json
from sdcore.errors import FileError, UsageError

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Safetensors in component folders and their settings; not the single-file copies at the top.
_WANTED = ["*/*.safetensors", "*.json", "*.txt"]
# The places that component classes come from; "stable_diffusion" is the safety checker's old home.
_LIBRARIES = ("diffusers", "transformers", "stable_diffusion")


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


def resolve_folder(name_or_path: str | Path) -> Path:
    """A local folder as it is; a hub name `owner/model` downloaded, or found in the hub's cache.

    The network is used for a hub name alone, and not at all where HF_HUB_OFFLINE is set.

    Raises:
        FileError: no such folder, or the hub cannot be reached or has no such model.
    """
    if not str(name_or_path):
        raise UsageError("the model's name is empty", "no folder, no hub name", "name a folder")
    path = Path(name_or_path).expanduser()
    try:
        if path.is_dir():
            return path
        exists, parent_exists = path.exists(), path.parent.is_dir()
    except (OSError, ValueError) as error:  # a name too long, or with a NUL
        raise _no_folder(path, str(error)) from error
    if exists:
        raise _no_folder(path, "this is a file")
    local = isinstance(name_or_path, Path) or (parent_exists and path.parent != Path())
    if local or not _HUB_NAME.fullmatch(str(name_or_path)):
        parent = f"{path.parent} holds: {listing(path.parent)}" if parent_exists else ""
        raise _no_folder(path, parent or f"{path.parent} does not exist either")
    return _download(str(name_or_path))


def component_folder(name_or_path: str | Path, subfolder: str | None) -> Path:
    """The folder of one component: the model's own, or one directly inside it.

    Raises:
        FileError: as resolve_folder.
        UsageError: the subfolder is a path.
    """
    folder = resolve_folder(name_or_path)
    if subfolder is None:
        return folder
    if Path(subfolder).name != subfolder or subfolder == "..":
        hint = "name a folder directly inside the model, such as unet"
        raise UsageError(f"subfolder={subfolder!r:.80} cannot be used", "it is a path", hint)
    return resolve_folder(folder / subfolder)


def read_model_index(folder: str | Path) -> ModelIndex:
    """Read a local folder's model_index.json.

    Raises:
        FileError: missing or damaged, or a component that would need code from the folder.
    """
    path = Path(folder) / "model_index.json"
    content = read_json(path)
    refuse_custom_code(content, path)
    pipeline = content.pop("_class_name", None)
    if not isinstance(pipeline, str):
        why = f"_class_name is {pipeline!r:.80}, not the name of a pipeline class"
        raise FileError(f"{path} cannot be used", why, "use a diffusers model folder")
    components: dict[str, str] = {}
    settings: dict[str, Any] = {}
    for name, value in content.items():
        if not isinstance(value, list):
            settings[name] = value
        elif value != [None, None]:
            components[name] = _component_class(name, value, path)
    return ModelIndex(pipeline, components, settings)


def refuse_custom_code(content: dict[str, Any], path: Path) -> None:
    """Refuse settings that ask for Python code out of the model's folder."""
    if "auto_map" in content or isinstance(content.get("_class_name"), list):
        raise _custom_code(path, "it names Python code to be loaded with the model")


def _component_class(name: str, value: list[Any], path: Path) -> str:
    if Path(name).name != name or len(value) != 2 or not isinstance(value[1], str):
        why = f"the component {name!r:.80} is given as {value!r:.80}"
        raise FileError(f"{path} cannot be used", why, "use a diffusers model folder")
    if value[0] not in _LIBRARIES:
        raise _custom_code(path, f"{name} comes from {value[0]!r:.80}")
    return value[1]


def _custom_code(path: Path, why: str) -> FileError:
    hint = f"sdcore runs no code that comes with a model; classes come from {_LIBRARIES[:2]}"
    return FileError(f"{path} asks for custom code", why, hint)


def _no_folder(path: Path, why: str) -> FileError:
    hint = "give a folder in diffusers layout, or a hub name such as owner/model"
    return FileError(f"there is no model folder {str(path)!r:.200}", why, hint)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=_WANTED))
    except HFValidationError as error:
        raise _no_folder(Path(name), str(error)) from error
    except (HfHubHTTPError, OSError) as error:
        raise FileError(
            f"the model {name!r} could not be fetched",
            f"no folder of that name is here, and the hub says: {str(error).splitlines()[0]:.200}",
            "check the name and the network, or give a local folder",
        ) from error
