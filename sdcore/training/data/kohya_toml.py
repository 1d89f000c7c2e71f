"""kohya's dataset settings (TOML): several folders, each with options of its own.

Keys that say something about the pictures are honoured. Those that belong elsewhere here, or have
no meaning, are named in a note; those that nobody knows are refused.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

from sdcore.checks import as_finite, as_int
from sdcore.errors import UsageError, name_some
from sdcore.files.tomlfile import read_toml as load_toml
from sdcore.training.data.folder import read_folder
from sdcore.training.data.items import Found, Note
from sdcore.training.data.settings import ENDINGS
from sdcore.training.data.subset import Subset

Change = Callable[[Subset, Any], Subset]  # what a key does to a subset; ValueError for its value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text")
    return value


def _ending(value: Any) -> str:
    ending = _text(value).strip().lstrip(".").lower()
    if not ending or ending in ENDINGS:
        raise ValueError("the ending of text files, such as .txt")
    return ending


def _yes(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _count(value: Any, least: int = 0) -> int:
    number = as_int(value, least, 1_000_000)
    if number is None:
        raise ValueError(f"a whole number of {least} or more")
    return number


def _share(value: Any) -> float:
    number = as_finite(value, 0, 1)
    if number is None:
        raise ValueError("a number from 0 to 1")
    return float(number)


def _resolution(value: Any) -> int:
    sides = cast("list[Any]", value) if isinstance(value, list) else [value, value]
    whole = [as_int(side, 8, 16_384) for side in sides]
    if len(whole) != 2 or None in whole:
        raise ValueError("a whole number of 8 or more, or two")
    return round(math.sqrt(cast(int, whole[0]) * cast(int, whole[1])))


def _options(**changes: Any) -> Callable[[Subset], Subset]:
    return lambda subset: replace(subset, options=replace(subset.options, **changes))


def _look(**changes: Any) -> Callable[[Subset], Subset]:
    return lambda subset: replace(subset, look=replace(subset.look, **changes))


HONOURED: dict[str, Change] = {
    "num_repeats": lambda s, v: replace(s, repeats=_count(v, 1)),
    "caption_extension": lambda s, v: replace(s, extensions=(_ending(v),)),
    "class_tokens": lambda s, v: replace(s, fallback=_text(v)),
    "is_reg": lambda s, v: replace(s, prior=_yes(v)),
    "keep_tokens": lambda s, v: _options(keep_tags=_count(v))(s),
    "shuffle_caption": lambda s, v: _options(shuffle_tags=_yes(v))(s),
    "caption_separator": lambda s, v: _options(tag_separator=_text(v) or ",")(s),
    "caption_dropout_rate": lambda s, v: _options(dropout=_share(v))(s),
    "caption_prefix": lambda s, v: _options(prefix=_text(v))(s),
    "caption_suffix": lambda s, v: _options(suffix=_text(v))(s),
    "flip_aug": lambda s, v: _look(flip=_yes(v))(s),
    "random_crop": lambda s, v: _look(crop="random" if _yes(v) else "center")(s),
    "alpha_mask": lambda s, v: _look(alpha_mask=_yes(v))(s),
    "resolution": lambda s, v: _look(resolution=_resolution(v))(s),
}
# Known keys without a meaning here -> what has it, as the rest of a sentence.
NO_MEANING = {
    "batch_size": "run.batch_size says it",
    "enable_bucket": "data.buckets says it",
    "bucket_no_upscale": "data.most_enlarged says it",
    "bucket_reso_steps": "it follows from the model",
    "min_bucket_reso": "it follows from the resolution",
    "max_bucket_reso": "it follows from the resolution",
    "skip_image_resolution": "small pictures are judged by data.most_enlarged",
    "resize_interpolation": "pictures are resized by Lanczos",
    "network_multiplier": "there is no such factor",
    "validation_seed": "data.held_out chooses by content",
    "validation_split": "data.held_out says it",
    "color_aug": "colours are not changed",
    "face_crop_aug_range": "faces are not looked for",
    "caption_dropout_every_n_epochs": "captions are dropped by their rate alone",
    "caption_tag_dropout_rate": "single tags are not dropped",
    "keep_tokens_separator": "data.keep_tags counts tags",
    "secondary_separator": "there is one separator",
    "enable_wildcard": "captions are read as they are",
    "token_warmup_min": "captions are not lengthened in the course of a run",
    "token_warmup_step": "captions are not lengthened in the course of a run",
    "cache_info": "the scan has its own cache",
    "custom_attributes": "nothing reads them",
}
# What would change the data so much that to go on without it would be another training.
REFUSED = {
    "metadata_file": "captions in a JSON of kohya's are not read",
    "conditioning_data_dir": "pictures for a ControlNet are not read",
}
_LEVELS = ("general", "datasets")


def read_toml(path: Path, subset: Subset) -> Found:
    """The items of all subsets of a dataset file.

    A folder that is not absolute is looked for beside the file, and then where the program runs.

    Raises:
        FileError: it is not TOML, or a folder is missing or has no picture.
        UsageError: a key is unknown, or its value does not fit.
    """
    values = load_toml(path)
    problems: list[str] = []
    ignored: dict[str, str] = {}
    _check_keys(values, ("general", "datasets"), "the file", problems)
    general = _table(values.get("general", {}), "general", problems)
    base = _apply(subset, general, "general", problems, ignored)
    work: list[tuple[Path, Subset]] = []
    for number, dataset in enumerate(_tables(values.get("datasets", []), "datasets", problems)):
        where = f"datasets[{number}]"
        own = {key: value for key, value in dataset.items() if key != "subsets"}
        middle = _apply(base, own, where, problems, ignored)
        subsets = _tables(dataset.get("subsets", []), f"{where}.subsets", problems)
        for place, values_of in enumerate(subsets):
            inner = f"{where}.subsets[{place}]"
            rest = {key: value for key, value in values_of.items() if key != "image_dir"}
            its = _apply(middle, rest, inner, problems, ignored)
            work.append((_folder(path, values_of.get("image_dir"), inner, problems), its))
    if not work and not problems:
        problems.append("it has no [[datasets.subsets]] with an image_dir")
    if problems:
        raise UsageError(
            f"{path} cannot be used.",
            f"{'; '.join(text.rstrip('?') for text in problems[:10])}"
            + (f"; and {len(problems) - 10} more." if problems[10:] else "."),
            "Correct it; the keys are those of kohya's dataset settings.",
        )
    found = Found()
    for number, (folder, its) in enumerate(work):
        prefix = f"{folder.name}/" if _unlike(folder, work) else f"{number}/{folder.name}/"
        found = found + read_folder(folder, replace(its, prefix=prefix))
    texts = [f"{key} ({why})" for key, why in sorted(ignored.items())]
    text = f"Keys without a meaning here: {name_some(texts, 30)}."
    notes = (Note(path.name, "keys", text),) if texts else ()
    return replace(found, notes=(*notes, *found.notes))


def _unlike(folder: Path, work: list[tuple[Path, Subset]]) -> bool:
    return sum(other.name == folder.name for other, _ in work) == 1


def _apply(
    subset: Subset,
    values: Mapping[str, Any],
    where: str,
    problems: list[str],
    ignored: dict[str, str],
) -> Subset:
    """A subset with all that a table says of it."""
    for key, value in values.items():
        if key in NO_MEANING:
            ignored[key] = NO_MEANING[key]
        elif key in REFUSED:
            problems.append(f"{where}.{key}: {REFUSED[key]}")
        elif key not in HONOURED:
            problems.append(f"{where}.{key}: unknown key{_near(key)}")
        else:
            try:
                subset = HONOURED[key](subset, value)
            except ValueError as error:
                problems.append(f"{where}.{key} is {value!r:.80}; it must be {error}")
    return subset


def _near(key: str) -> str:
    known = [*HONOURED, *NO_MEANING, *REFUSED, "image_dir"]
    near = get_close_matches(key, known, 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _check_keys(
    values: Mapping[str, Any], known: tuple[str, ...], where: str, problems: list[str]
) -> None:
    for key in values:
        if key not in known:
            problems.append(f"{key}: {where} has only {' and '.join(known)} at its top")


def _table(value: Any, where: str, problems: list[str]) -> dict[str, Any]:
    if isinstance(value, dict):
        return cast("dict[str, Any]", value)
    problems.append(f"{where} is no table")
    return {}


def _tables(value: Any, where: str, problems: list[str]) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        problems.append(f"{where} is no list of tables; write [[{where}]]")
        return []
    return [_table(one, where, problems) for one in cast("list[Any]", value)]


def _folder(path: Path, name: Any, where: str, problems: list[str]) -> Path:
    if not isinstance(name, str) or not name:
        problems.append(f"{where} has no image_dir")
        return path.parent
    places = [path.parent / name, Path(name)]
    found = next((place for place in places if os.path.isdir(place)), None)
    if found is None:
        problems.append(f"{where}.image_dir: there is no folder {name:.200}")
    return found or path.parent
