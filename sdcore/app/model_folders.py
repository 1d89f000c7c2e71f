"""The folders that people keep models in, and what lies there under which name.

`--models-dir` names a folder of Stable Diffusion web UI, Forge or ComfyUI, its folder `models`, or
one laid out like it; several may be given. A settings file says the same for all commands:

    # ~/.config/sdcore/sdcore.toml, or %APPDATA%\\sdcore\\sdcore.toml
    models-dir = ["~/stable-diffusion-webui", "~/ComfyUI"]
    loras = ["~/more-loras"]

Beside ComfyUI's own folders, those in its extra_model_paths.yaml are read. A name is looked for in
these folders alone, and is the file's, with or without its ending and the folders above it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from sdcore.errors import FileError, UsageError, warn
from sdcore.files.jsonfile import is_list, is_object
from sdcore.files.limits import YAML_BYTES
from sdcore.files.opening import read_bytes
from sdcore.files.tomlfile import read_toml

# Kind -> what its folder is called: by ComfyUI, the web UI, Forge. Letters' case does not count.
FOLDERS = {
    "checkpoints": ("checkpoints", "stable-diffusion", "diffusers"),
    "loras": ("loras", "lora", "lycoris"),
    "embeddings": ("embeddings",),
    "vae": ("vae",),
    "text-encoders": ("text_encoders", "clip", "text_encoder"),
    "unets": ("unet", "diffusion_models"),
}
SETTINGS_NAME = "sdcore.toml"
EXTRA_PATHS = "extra_model_paths.yaml"
_MODELS_DIR = "models-dir"
_SAFE = (".safetensors",)
_SUFFIXES = {"loras": _SAFE, "embeddings": _SAFE}
_WEIGHTS = (".safetensors", ".gguf")
_PICKLES = (".ckpt", ".pt", ".pth", ".bin")
_MOST = 200_000  # files that are looked at


@dataclass(frozen=True)
class ModelFolders:
    """Folders by what they hold.

    Attributes:
        places: kind in `FOLDERS` -> its folders, in the order in which they are looked through.
    """

    places: Mapping[str, tuple[Path, ...]] = field(default_factory=dict[str, tuple[Path, ...]])

    def names(self, kind: str) -> dict[str, Path]:
        """Every name that a file or model folder of this kind has, and which it is.

        Where two have one name, the one that is found first, as in the programs.
        """
        return dict(_names(self.places.get(kind, ()), _SUFFIXES.get(kind, _WEIGHTS)))

    def find(self, kind: str, name: str) -> Path | None:
        """What a name stands for; None where there is none. What is a pickle is said to be one."""
        known = self.names(kind)
        plain = name.strip().replace("\\", "/")
        plain = plain.split(" [")[0]  # the web UI writes a model's hash behind its name
        for suffix in (*_WEIGHTS, *_PICKLES):
            plain = plain.removesuffix(suffix)
        found = known.get(plain)
        if found is None and kind in self.places:
            pickles = dict(_names(self.places[kind], _PICKLES))
            if plain in pickles:
                text = f"{pickles[plain]} is a pickle, which is not opened"
                warn(f"{text}; `sdcore convert` makes a safetensors file of it")
        return found

    def nearest(self, kind: str, name: str) -> str | None:
        """The name of this kind that is most like another."""
        near = get_close_matches(name, self.names(kind), n=1, cutoff=0.4)
        return near[0] if near else None


def find_folders(models_dirs: Sequence[Path], settings: Path | None = None) -> ModelFolders:
    """The folders of --models-dir and of the settings file.

    Args:
        settings: the settings file; None is the one in the user's place for settings, if any.

    Raises:
        FileError: a folder is not there, or a settings file is damaged.
        UsageError: the settings file has a setting that there is not.
    """
    own: dict[str, list[Path]] = {kind: [] for kind in FOLDERS}
    roots = list(models_dirs)
    for root in roots:
        if not root.expanduser().is_dir():
            why = "Models that names stand for are looked for in it."
            raise FileError(f"--models-dir {root} is no folder.", why, "Name a folder.")
    path = settings_path() if settings is None else settings
    if path.is_file():
        said = _read_settings(path)
        roots += [Path(text) for text in said.pop(_MODELS_DIR, [])]
        for kind, texts in said.items():
            own[kind] += [Path(text) for text in texts]
    for root in roots:
        for kind, places in _in_root(root.expanduser()).items():
            own[kind] += places
    found = {kind: _there(places) for kind, places in own.items()}
    return ModelFolders({kind: places for kind, places in found.items() if places})


def settings_path() -> Path:
    """Where the settings file lies: in the user's folder for settings."""
    if sys.platform == "win32":
        base = Path(os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming")
    else:
        base = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return base / "sdcore" / SETTINGS_NAME


def _there(places: Sequence[Path]) -> tuple[Path, ...]:
    expanded = (place.expanduser() for place in places)
    return tuple(dict.fromkeys(place for place in expanded if place.is_dir()))


def _read_settings(path: Path) -> dict[str, list[str]]:
    """Setting -> paths. Relative ones are as seen from the file's folder."""
    content = read_toml(path)
    known = (_MODELS_DIR, *FOLDERS)
    said: dict[str, list[str]] = {}
    for key, value in content.items():
        name = key.replace("_", "-")
        texts: Any = value if is_list(value) else [value]
        if name not in known:
            near = get_close_matches(name, known, n=1)
            raise UsageError(
                f"{path} has an unknown setting {key!r:.80}.",
                f"It may hold: {', '.join(known)}.",
                f"Did you mean {near[0]!r}?" if near else "Remove it.",
            )
        if not all(isinstance(text, str) and text for text in texts):
            why = f"{key} is {value!r:.80}: neither a path nor a list of paths."
            raise FileError(f"{path} cannot be used.", why, "Correct it.")
        said[name] = [str(path.parent / Path(text).expanduser()) for text in texts]
    return said


def _in_root(root: Path) -> dict[str, list[Path]]:
    """The folders of a root by kind: its own, those of its `models`, and those of a list."""
    found: dict[str, list[Path]] = {kind: [] for kind in FOLDERS}
    for place in (root, root / "models"):
        for entry in sorted(place.iterdir()) if place.is_dir() else ():
            for kind, names in FOLDERS.items():
                if entry.name.lower() in names and entry.is_dir():
                    found[kind].append(entry)
    extra = root / EXTRA_PATHS
    if extra.is_file():
        for kind, places in _extra_paths(extra).items():
            found[kind] += places
    if not any(found.values()):  # a folder of models and nothing else
        return {**found, "checkpoints": [root], "loras": [root], "embeddings": [root]}
    return found


def _extra_paths(path: Path) -> dict[str, list[Path]]:
    """What ComfyUI's extra_model_paths.yaml lists."""
    import yaml

    try:
        content: Any = yaml.safe_load(read_bytes(path, YAML_BYTES).decode("utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # such as 5,000 digits
        why = f"{' '.join(str(error).split())[:200]}."
        raise FileError(f"{path} cannot be read.", why, "Correct it, or move it away.") from error
    found: dict[str, list[Path]] = {kind: [] for kind in FOLDERS}
    for section in content.values() if is_object(content) else ():
        if not is_object(section):
            continue
        base = path.parent / Path(str(section.get("base_path") or "")).expanduser()
        for kind, names in FOLDERS.items():
            for name, value in section.items():
                if str(name).lower() in names and isinstance(value, str):
                    lines = (line.strip() for line in value.splitlines())
                    found[kind] += [base / Path(line).expanduser() for line in lines if line]
    return found


@lru_cache(maxsize=64)
def _names(places: tuple[Path, ...], suffixes: tuple[str, ...]) -> tuple[tuple[str, Path], ...]:
    found: dict[str, Path] = {}
    for place in places:
        for path in _models(place, suffixes):
            name = path.relative_to(place)
            plain = name if path.is_dir() else name.with_name(name.name.removesuffix(path.suffix))
            found.setdefault(plain.as_posix(), path)
            found.setdefault(plain.name, path)
    return tuple(found.items())


def _models(place: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Files with these endings, and model folders; links are followed, each folder but once."""
    seen: set[str] = set()
    count = 0
    for folder, inner, files in os.walk(place, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            inner.clear()
            continue
        seen.add(real)
        inner.sort()
        count += len(files)
        if count > _MOST:
            warn(f"{place} holds more than {_MOST} files; names in the rest of it are not known")
            return
        if "model_index.json" in files and ".safetensors" in suffixes:
            inner.clear()
            yield Path(folder)
            continue
        yield from (Path(folder, name) for name in sorted(files) if name.endswith(suffixes))
