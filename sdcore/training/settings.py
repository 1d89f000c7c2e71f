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

_KEPT = ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")
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
    def _as_people_write(cls, values: object) -> object:
        """A text where a list is asked for is a list of one: lora.targets=cross. A group with
        nothing in it, or whose lines are comments, is as if it were not there.
        """
        if not isinstance(values, dict):
            return values
        values = cast("dict[str, Any]", values)
        groups = {n for n, field in cls.model_fields.items() if _is_group(field.annotation)}
        values = {n: v for n, v in values.items() if v is not None or n not in groups}
        lists = {n for n, field in cls.model_fields.items() if get_origin(field.annotation) is list}
        return {n: [v] if n in lists and isinstance(v, str) else v for n, v in values.items()}


AnySettings = TypeVar("AnySettings", bound=Settings)


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: only true and false are truth values, as in YAML 1.2, so that
    `precision: no` and a trigger word `on` stay words. A key that stands twice is a fault."""

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Any, Any]:
        known: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in known:
                what = f"the key {key.value!r:.80} stands there twice"
                raise yaml.constructor.ConstructorError(None, None, what, key.start_mark)
            known |= {key.value} if isinstance(key, yaml.ScalarNode) else set()
        return super().construct_mapping(cast("yaml.MappingNode", node), deep)


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(  # pyright: ignore[reportUnknownMemberType]
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


class _Words(_Loader):
    """Each value as it is written: 007, 1.10 and 2024-05-01 are a folder's name as well as a
    number; which of them is meant says the setting."""


_Words.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag in _KEPT]
    for letter, resolvers in _Loader.yaml_implicit_resolvers.items()
}


def load_settings(
    model: type[AnySettings], path: str | Path | None, overrides: Sequence[str] = ()
) -> AnySettings:
    """Read `path` as YAML, apply `key.path=value` overrides, and check everything.

    The value of an override is a text as it is typed; [a, b] is a list, {a: b} a group, "a b" and
    'a b' a text, null nothing.

    Args:
        path: None begins with nothing.

    Raises:
        FileError: the file is missing or holds no mapping.
        UsageError: a key is unknown or a value does not fit; names the file, the path of the key
            and the nearest known key.
    """
    values = {} if path is None else _read(path, _Words)
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
            _hint(error, model, path is not None),
        ) from error


def _hint(error: ValidationError, model: type[Settings], file: bool) -> str:
    lacking = [p["loc"] for p in error.errors() if p["type"] == "missing"]
    if lacking:
        name = ".".join(map(str, lacking[0]))
        example = f"{name}=FOLDER" if name in model.SHORT else name
        return f"Set {example}{', or the same in the file' if file else ''}."
    text = "the key.path=value that stands for it."
    return f"Correct the file, or {text}" if file else f"Correct {text}"


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping that a YAML file holds. FileError when it is missing or holds none."""
    return _read(path, _Loader)


def _read(path: str | Path, loader: type[_Loader]) -> dict[str, Any]:
    path = Path(path)
    data = read_bytes(path, YAML_BYTES)
    if sum(map(data.count, _NESTING)) > _MOST_NESTED:  # PyYAML takes seconds for them
        raise FileError(
            f"{path} is not a file of settings.",
            f"It has more than {_MOST_NESTED:,} brackets and entries.",
            "Write one setting per line as `key: value`.",
        )
    try:
        values: Any = yaml.load(data.decode("utf-8"), loader) or {}
    except UnicodeDecodeError as error:
        why = f"Byte {error.start} is no text in UTF-8."
        raise FileError(f"{path} is not valid YAML.", why, "Save it as UTF-8.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no such date
        raise FileError(
            f"{path} is not valid YAML.", _first_upper(_told(error)), "Correct the file."
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
        name = next(iter(short), "key.path")
        raise _no_override(override, "It has no '='.", f"Write {name}=value, as {name}={key}.")
    key = key.strip()
    if key in short:
        key = f"{key}.{short[key]}"
    *parents, last = key.split(".")
    for parent in parents:
        group: Any = values.setdefault(parent, {})
        if not isinstance(group, dict):
            raise _no_override(override, f"{parent!r} is one value, not a group of settings.")
        values = cast("dict[str, Any]", group)
    values[last] = _value(override, text.strip())


def _value(override: str, text: str) -> Any:
    """What is typed behind the `=`: a text, unless it begins as a list, a group or a quotation."""
    if text in ("null", "~"):
        return None
    if text[:1] not in tuple("[{\"'"):
        return text
    try:
        return yaml.load(text, _Words)
    except (yaml.YAMLError, RecursionError) as error:
        if text[0] in "\"'":
            return text  # it begins with a quotation, and goes on
        raise _no_override(override, _first_upper(_told(error))) from error


def _told(error: Exception) -> str:
    """What is wrong with a text, and where, without the text."""
    mark = getattr(error, "problem_mark", None)
    parts = [getattr(error, name, None) for name in ("context", "problem")]
    text = ", ".join(part for part in parts if part) or re.split("[;\n]", str(error))[0]
    place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
    return f"{text.rstrip('.')}{place}."


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _no_override(override: str, why: str, hint: str = "") -> UsageError:
    what = f"{override!r} does not say which setting differs."
    return UsageError(what, why, hint or "Write key.path=value, as run.steps=500.")


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    lines: list[str] = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        text = problem["msg"].removeprefix("Value error, ").removesuffix(".")
        text = text.partition(", unable to parse")[0]
        if problem["type"] == "extra_forbidden":
            text = f"unknown key; {_nearest(problem['loc'], model)}"
        elif problem["type"] in ("model_type", "model_attributes_type"):
            known = _known_keys(model, problem["loc"])
            text = f"it is a group of settings: {', '.join(known)}"
        elif problem["type"] == "missing":
            text = "it has to be given"
        elif isinstance(problem["input"], str | int | float) and not text.startswith("'"):
            text += f"; it is {problem['input']!r:.80}"
        lines.append(f"{where}: {text}")
    text = "; ".join(lines)
    return text if text.endswith("?") else f"{text}."


def _nearest(place: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """The key that was meant: one beside it, or one of this name in a group; else all there are."""
    name, known = str(place[-1]).strip(), _known_keys(model, place[:-1])
    paths = _paths(model)
    if name in paths:
        group, _, last = name.rpartition(".")
        return f"in a file, {last} stands indented in a line below `{group}:`"
    elsewhere = sorted(path for path in paths if path.rpartition(".")[2] == name)
    if len(place) == 1 and elsewhere:
        return f"did you mean {' or '.join(elsewhere)}?"
    others: Mapping[str, str] = getattr(model, "OTHER_NAMES", {})
    if (ours := others.get(name.lower().replace("-", "_"))) is not None:
        return f"here it is {ours}"
    near = difflib.get_close_matches(name.lower(), known, 1)
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


def _is_group(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _group(annotation: Any) -> type[BaseModel] | None:
    """The group of settings that a field holds, also where it may be None."""
    for kind in (annotation, *get_args(annotation)):
        if _is_group(kind):
            return kind
    return None
