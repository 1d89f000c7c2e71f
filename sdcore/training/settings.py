"""Settings files: YAML that holds only what differs from the defaults, checked by pydantic models.

An unknown key is refused with the file, the path of the key and the nearest known name; the
settings in force are written back into every run as `resolved.yaml`, which repeats the run.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, cast, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator

from sdcore.errors import FileError, UsageError
from sdcore.files.atomic import replace_file, text_writer
from sdcore.files.limits import YAML_BYTES
from sdcore.files.opening import read_bytes

_NESTING, _MOST_NESTED = (b"[", b"{", b"- ", b"*"), 2000


def _path(text: str) -> str:
    if "\0" in text:
        raise ValueError("no path holds a NUL")
    return os.path.expanduser(text)


# A path, or a name in its place; ~ is the home folder, also where no shell has said so.
PathText = Annotated[str, AfterValidator(_path)]


class Settings(BaseModel):
    """Base of all settings: frozen, and no key that is not declared."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    SHORT: ClassVar[Mapping[str, str]] = {}  # group -> the setting in it that its name stands for

    @model_validator(mode="before")
    @classmethod
    def _one_is_a_list(cls, values: object) -> object:
        """A text where a list is asked for is a list of one: lora.targets=cross."""
        if not isinstance(values, dict):
            return values
        values = cast("dict[str, Any]", values)
        lists = {n for n, field in cls.model_fields.items() if get_origin(field.annotation) is list}
        return {n: [v] if n in lists and isinstance(v, str) else v for n, v in values.items()}


AnySettings = TypeVar("AnySettings", bound=Settings)


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: only true and false are truth values, as in YAML 1.2, so that
    `precision: no` and a trigger word `on` stay words."""


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(  # pyright: ignore[reportUnknownMemberType]
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def load_settings(
    model: type[AnySettings], path: str | Path | None, overrides: Sequence[str] = ()
) -> AnySettings:
    """Read `path` as YAML, apply `key.path=value` overrides, and check everything.

    Args:
        path: None begins with nothing.

    Raises:
        FileError: the file is missing or holds no mapping.
        UsageError: a key is unknown or a value does not fit; names the file, the path of the key
            and the nearest known key.
    """
    values = {} if path is None else read_yaml(path)
    for group, name in model.SHORT.items():
        if isinstance(values.get(group), str):
            values[group] = {name: values[group]}
    for override in overrides:
        _set(values, override, model.SHORT)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UsageError(
            "The settings do not fit." if path is None else f"The settings of {path} do not fit.",
            _explain(error, model),
            "Correct the file, or the key.path=value that stands for it."
            if path is not None
            else "Correct the key.path=value that stands for it.",
        ) from error


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping that a YAML file holds. FileError when it is missing or holds none."""
    path = Path(path)
    data = read_bytes(path, YAML_BYTES)
    if sum(map(data.count, _NESTING)) > _MOST_NESTED:  # PyYAML takes seconds for them
        raise FileError(
            f"{path} is not a file of settings.",
            f"It has more than {_MOST_NESTED:,} brackets and entries.",
            "Write one setting per line as `key: value`.",
        )
    try:
        values: Any = yaml.load(data.decode("utf-8"), _Loader) or {}
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise FileError(
            f"{path} is not valid YAML.", f"{' '.join(str(error).split())}.", "Correct the file."
        ) from error
    if not isinstance(values, dict):
        raise FileError(
            f"{path} holds no settings.",
            f"Its top level is a {type(values).__name__}, not a mapping.",
            "Write one setting per line as `key: value`.",
        )
    return cast("dict[str, Any]", values)


def save_settings(settings: Settings, path: str | Path) -> None:
    """Write every setting in force to `path` as YAML. FileError when it cannot be written."""
    text = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)
    replace_file(Path(path), text_writer(text))


def flat(values: Mapping[str, Any], path: str = "") -> dict[str, object]:
    """{"run": {"steps": 3}} -> {"run.steps": 3}."""
    result: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            result |= flat(cast("dict[str, Any]", value), f"{path}{key}.")
        else:
            result[f"{path}{key}"] = value
    return result


def _set(values: dict[str, Any], override: str, short: Mapping[str, str]) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise _no_override(override, "It has no '='.")
    if key in short:
        key = f"{key}.{short[key]}"
    *parents, last = key.split(".")
    for parent in parents:
        group: Any = values.setdefault(parent, {})
        if not isinstance(group, dict):
            raise _no_override(override, f"{parent!r} is one value, not a group of settings.")
        values = cast("dict[str, Any]", group)
    try:
        values[last] = yaml.load(text, _Loader) if text.strip() else ""
    except yaml.YAMLError as error:
        raise _no_override(override, f"{' '.join(str(error).split())}.") from error


def _no_override(override: str, why: str) -> UsageError:
    what = f"{override!r} does not say which setting differs."
    return UsageError(what, why, "Write key.path=value, with a value as in YAML.")


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    lines: list[str] = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        text = problem["msg"].removeprefix("Value error, ").removesuffix(".")
        if problem["type"] == "extra_forbidden":
            text = f"unknown key; {_nearest(problem['loc'], model)}"
        elif problem["type"] in ("model_type", "model_attributes_type"):
            known = _known_keys(model, problem["loc"])
            text = f"it is a group of settings: {', '.join(known)}"
        lines.append(f"{where}: {text}")
    text = "; ".join(lines)
    return text if text.endswith("?") else f"{text}."


def _nearest(place: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """The key that was meant: one beside it, or one of this name in a group; else all there are."""
    name, known = str(place[-1]), _known_keys(model, place[:-1])
    elsewhere = sorted(path for path in _paths(model) if path.rpartition(".")[2] == name)
    if len(place) == 1 and elsewhere:
        return f"did you mean {' or '.join(elsewhere)}?"
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


def _paths(model: type[BaseModel], before: str = "") -> list[str]:
    """The paths of all settings in groups."""
    found: list[str] = []
    for name, field in model.model_fields.items():
        inner = _group(field.annotation)
        if inner is not None:
            found += _paths(inner, f"{before}{name}.")
        elif before:
            found.append(f"{before}{name}")
    return found


def _known_keys(model: type[BaseModel], parents: tuple[int | str, ...]) -> list[str]:
    for parent in parents:
        field = model.model_fields.get(str(parent))
        inner = _group(field.annotation) if field else None
        if inner is None:
            return []
        model = inner
    return sorted(model.model_fields)


def _group(annotation: Any) -> type[BaseModel] | None:
    """The group of settings that a field holds, also where it may be None."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None
