"""Settings files: YAML that holds only what differs from the defaults, checked by pydantic models.

An unknown key is refused with the file, the path of the key and the nearest known name; the
settings in force are written back into every run as `resolved.yaml`, which repeats the run.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from sdcore.errors import FileError, UsageError


class Settings(BaseModel):
    """Base of all settings: frozen, and no key that is not declared."""

    model_config = ConfigDict(extra="forbid", frozen=True)


AnySettings = TypeVar("AnySettings", bound=Settings)


def load_settings(
    model: type[AnySettings], path: str | Path, overrides: Sequence[str] = ()
) -> AnySettings:
    """Read `path` as YAML, apply `key.path=value` overrides, and check everything.

    Raises `FileError` when the file is missing or no mapping, `UsageError` when a key is unknown or
    a value does not fit; the message names the file, the key path and the nearest known key.
    """
    values = read_yaml(path)
    for override in overrides:
        _set(values, override)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UsageError(
            f"{path}: {_explain(error, model)}", "the settings do not fit", "see configs/"
        ) from error


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; `FileError` when it is missing or holds none."""
    path = Path(path)
    if not path.is_file():
        raise FileError(
            f"settings file {path} not found", "there is no such file", "check the path"
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise FileError(f"{path} is not valid YAML", str(error), "correct the file") from error
    if not isinstance(values, dict):
        raise FileError(
            f"{path} holds no settings", "its top level is not a mapping", "use key: value"
        )
    return values


def save_settings(settings: Settings, path: str | Path) -> None:
    """Write every setting in force to `path` as YAML."""
    Path(path).write_text(
        yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False), "utf-8"
    )


def _set(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise UsageError(
            f"override {override!r} is not understood", "it has no '='", "use key.path=value"
        )
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise UsageError(
                f"override {override!r} does not fit", f"{parent!r} is one value", "see configs/"
            )
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(
            f"override {override!r} is not valid YAML", str(error), "check the value"
        ) from error


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        text = problem["msg"]
        if problem["type"] == "extra_forbidden":
            known = _known_keys(model, problem["loc"][:-1])
            near = difflib.get_close_matches(str(problem["loc"][-1]), known, 1)
            text = "unknown key" + (f"; did you mean {near[0]!r}?" if near else f"; known: {known}")
        lines.append(f"{where}: {text}")
    return "; ".join(lines)


def _known_keys(model: type[BaseModel], parents: tuple[int | str, ...]) -> list[str]:
    for parent in parents:
        field = model.model_fields.get(str(parent))
        inner = field.annotation if field else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return sorted(model.model_fields)
