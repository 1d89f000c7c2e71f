"""Flags of the commands, and what they stand for: a model, adapters, jobs, places for files.

A command makes its parser from the `add_*` functions; the functions below them are the only ones
that read an `argparse.Namespace`. Nothing here loads torch before it is asked to, so that --help
answers at once.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sdcore.app.adapters import Adapters, read_lora_flag
from sdcore.app.model_choice import PRECISIONS, ModelChoice
from sdcore.app.model_folders import ModelFolders, find_folders
from sdcore.errors import FileError, UsageError
from sdcore.files.limits import PROMPTS_BYTES
from sdcore.files.opening import read_bytes

if TYPE_CHECKING:
    from sdcore.job.adapters import EmbeddingSettings, HiresSettings, LoraSettings, RegionSettings
    from sdcore.job.budget import Budget
    from sdcore.job.job import Job

_DEFAULT = " (default: %(default)s)"
BATCH_SIZE = 4
HIRES_STRENGTH = 0.4
ENLARGED, LARGEST = 512, 4096  # pixels of the longer side of a picture for eyes
_LARGEST_FACTOR = 16
# What --fast stands for: of what `bench.shortcuts` measures, much faster and as true to the prompt.
FAST: dict[str, Any] = {"steps": 12, "deepcache": 2}
_SIDES = ("width", "height")
_LINES_OF_PROMPT = 4  # of a file; more than so many for each picture are not read
# Fields of a job that no flag gives as it is.
_NO_FLAGS = ("prompt", "size", "source", "hires", "loras", "embeddings", "budget")


def add_painting_flags(parser: argparse.ArgumentParser, batch_size: int = BATCH_SIZE) -> None:
    """How to paint, whatever the picture begins from; `batch_size` is that of no flag."""
    add = parser.add_argument
    add("--negative-prompt", metavar="TEXT", help="what to keep away from (default: nothing)")
    text = "image i is painted from seed + i (default: a random one)"
    add("--seed", type=int, metavar="N", help=text)
    add("--steps", type=int, metavar="N", help="sampling steps (default: the model's)")
    text = "how closely to follow (default: the model's)"
    add("--guidance-scale", type=float, metavar="X", help=text)
    text = "0 to 1, against glare (default: the model's)"
    add("--guidance-rescale", type=float, metavar="X", help=text)
    text = "part of the noise levels with guidance, 0 pure noise to 1 none (default: 0-1)"
    add("--guidance-interval", type=read_interval, metavar="A-B", help=text)
    add("--scheduler", metavar="NAME", help="such as 'dpm++ 2m karras' (default: the model's)")
    text = "how marks in prompts are read: plain, a1111, a1111-nonorm, comfy or compel"
    add("--dialect", metavar="NAME", help=text + " (default: plain)")
    text = "what is to be in a box: its left, top, right and bottom side as parts of the picture; "
    text += "several may be given (default: none)"
    add(
        "--region",
        dest="regions",
        action="append",
        type=read_region,
        metavar="PROMPT@L,T,R,B",
        help=text,
    )
    text = "text encoder layers left out at the end (default: 0)"
    add("--clip-skip", type=int, metavar="N", help=text)
    text = "fewer operations: " + " ".join(f"--{k} {v}" for k, v in FAST.items())
    add("--fast", action="store_true", help=text + ", where these are not given (default: no)")
    text = "run the deep layers at every N-th step only: faster, with a loss (default: 1)"
    add("--deepcache", type=int, metavar="N", help=text)
    text = "read the text at the first N steps only: faster, with a loss (default: all)"
    add("--tgate", type=int, metavar="N", help=text)
    text = "places on the finest grid read every N-th place only: faster, with a loss (default: 1)"
    add("--coarse-keys", type=int, metavar="N", help=text)
    add("--images", type=int, metavar="N", help="pictures of each prompt (default: 1)")
    add("--batch-size", type=int, metavar="N", help=f"painted at once (default: {batch_size})")
    text = "allow more of letters, tokens, steps, images, pixels, adapters or memory (default: no)"
    add("--budget", action="append", default=[], metavar="NAME=N", help=text)


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """What to paint with."""
    add = parser.add_argument
    text = "folder, .safetensors or .gguf file, or hub name (default: the embedded model)"
    add("--model", metavar="NAME", help=text)
    text = "file or folder of another autoencoder (default: the model's)"
    add("--vae", type=Path, metavar="PATH", help=text)
    text = "of another text encoder; may be given several times (default: the model's)"
    add("--text-encoder", action="append", default=[], type=Path, metavar="PATH", help=text)
    add("--unet", type=Path, metavar="PATH", help="of another UNet (default: the model's)")
    text = "leave out tensors that are in none of the networks (default: no)"
    add("--allow-extra", action="store_true", help=text)
    add("--variant", help="weight files to read, such as fp16 (default: the plain ones)")
    predicts = ("epsilon", "v_prediction")
    text = "of a single file that says it wrongly (default: what it says)"
    add("--prediction-type", choices=predicts, help=text)
    add("--revision", metavar="NAME", help="of a model on the hub (default: its main branch)")
    add("--offline", action="store_true", help="use no network, as cached (default: no)")
    text = "use a LoRA; may be given several times (default: none, weight 1)"
    add(
        "--lora",
        action="append",
        default=[],
        type=read_lora_flag,
        metavar="FILE[:WEIGHT]",
        help=text,
    )
    text = "where the LoRAs that prompts and pictures name lie (default: nowhere)"
    add("--lora-folder", type=Path, metavar="FOLDER", help=text)
    text = "folder of web UI or ComfyUI whose files names stand for; several (default: sdcore.toml)"
    add("--models-dir", action="append", default=[], type=Path, metavar="FOLDER", help=text)
    text = "use LoRAs of which only a part fits the model (default: no)"
    add("--allow-partial", action="store_true", help=text)
    text = "learned words for prompts; may be given several times (default: none)"
    add("--embedding", action="append", default=[], type=Path, metavar="FILE", help=text)
    add("--hash-model", action="store_true", help="note its hash in pictures (default: no)")
    add("--device", default="auto", help="auto, cpu, cuda or mps" + _DEFAULT)
    text = "for a model of few steps: turbo, lightning, hyper, lcm or tcd (default: as it says)"
    add("--preset", metavar="NAME", help=text)
    add("--precision", choices=PRECISIONS, help="of the weights (default: auto)")
    add("--attention", metavar="NAME", help="backend, such as sdpa (default: auto)")
    add("--convolution", metavar="NAME", help="torch or winograd (default: auto)")


def add_hires_flags(parser: argparse.ArgumentParser) -> None:
    """A second pass."""
    add = parser.add_argument
    text = "paint it again at this size, from what was painted first (default: no)"
    add("--hires", metavar="WxH", help=text)
    text = f"how much is painted anew then, above 0 to 1 (default: {HIRES_STRENGTH})"
    add("--hires-strength", type=float, metavar="X", help=text)
    text = "autoencoder in tiles, for large pictures in little memory (default: no)"
    add("--tiled", action="store_true", help=text)


def add_enlarged_flag(parser: argparse.ArgumentParser) -> None:
    """Small pictures once more, for eyes."""
    text = "pictures not half so large are also written enlarged, up to so many pixels, into "
    text += f"enlarged/ beside them; 0: none (default: {ENLARGED} where --output is a folder)"
    parser.add_argument("--enlarged", type=int, metavar="PIXELS", help=text)


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    """Where to, and how loud."""
    add = parser.add_argument
    text = "folder, or file.png; {seed}, {prompt}, {date}, {index} are filled in" + _DEFAULT
    add("--output", type=Path, metavar="PATH", default=Path("outputs"), help=text)
    add("--debug", action="store_true", help="show the traceback of an error (default: no)")


def read_region(text: str) -> RegionSettings:
    """PROMPT@L,T,R,B, such as a fox@0,0,0.5,1."""
    from sdcore.job.adapters import RegionSettings

    prompt, _, sides = text.rpartition("@")
    try:
        left, top, right, bottom = (float(side) for side in sides.split(","))
        return RegionSettings(prompt.strip(), (left, top, right, bottom))
    except UsageError as error:
        raise argparse.ArgumentTypeError(f"{error.what} {error.why}") from None
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not PROMPT@LEFT,TOP,RIGHT,BOTTOM, such as 'a fox@0,0,0.5,1'"
        ) from None


def read_interval(text: str) -> tuple[float, float]:
    """Two numbers joined by -, such as 0.2-0.8."""
    try:
        start, end = (float(number) for number in text.split("-"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not A-B, such as 0.2-0.8") from None
    return start, end


# --- what they stand for -----------------------------------------------------------------------


def model_choice(options: argparse.Namespace) -> ModelChoice:
    """The model that the flags name. UsageError where flags have no effect."""
    folders = find_folders(options.models_dir)
    model = _named(folders, "checkpoints", options.model)
    unet = _named(folders, "unets", options.unet)
    vae = _named(folders, "vae", options.vae)
    texts = [_named(folders, "text-encoders", path) for path in options.text_encoder]
    if model is None and unet is not None:
        model, unet = str(unet), None  # a UNet alone, with other parts beside it
    for name in ("variant", "revision", "prediction_type", "vae", "text_encoder"):
        if model is None and getattr(options, name):
            raise UsageError(
                f"--{name.replace('_', '-')} {_shown(getattr(options, name))} has no effect.",
                "The embedded model comes in one form.",
                "Name a model with --model, or leave it out.",
            )
    if options.hash_model and model and not Path(model).expanduser().exists():
        raise UsageError(
            f"--hash-model cannot be used with {model}.",
            "It reads a file or folder on this computer.",
            "Leave it out.",
        )
    names = ("variant", "revision", "offline", "prediction_type", "hash_model", "device")
    named = {name: getattr(options, name) for name in (*names, "allow_extra")}
    return ModelChoice(
        model,
        **named,
        unet=None if unet is None else Path(unet),
        vae=None if vae is None else Path(vae),
        text_encoders=tuple(Path(text) for text in texts if text is not None),
        precision=options.precision,
        preset=options.preset,
        attention=options.attention,
        convolution=options.convolution,
    )


def _named(folders: ModelFolders, kind: str, name: str | Path | None) -> str | None:
    """What is there under a path stays; else what the name stands for; else the name itself."""
    if name is None or Path(name).expanduser().exists() or kind not in folders.places:
        return None if name is None else str(name)
    found = folders.find(kind, str(name))
    if found is not None:
        return str(found)
    if "/" in str(name).strip("/"):
        return str(name)  # perhaps one on the hub
    near = folders.nearest(kind, str(name))
    raise UsageError(
        f"There is no {kind.removesuffix('s')} {str(name)!r:.80}.",
        f"It is looked for in {', '.join(map(str, folders.places[kind]))}.",
        f"Did you mean {near!r}?" if near else "Give its path, or its name as it is there.",
    )


def _shown(value: Any) -> str:
    return " ".join(map(str, cast("list[Any]", value))) if isinstance(value, list) else str(value)


def adapters(options: argparse.Namespace) -> Adapters:
    """The LoRAs and embeddings that the flags name. FileError where one cannot be read."""
    files = tuple(options.lora), options.lora_folder, tuple(options.embedding)
    folders = find_folders(options.models_dir)
    found = Adapters(*files, allow_partial=options.allow_partial, folders=folders)
    found.check()
    return found


def job_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of a job that flags of their names give, apart from size and source."""
    from dataclasses import fields

    from sdcore.job.job import Job

    count(options, "steps", 1)
    names = [field.name for field in fields(Job) if field.name not in _NO_FLAGS]
    settings = {name: getattr(options, name, None) for name in names}
    settings["budget"] = budget(options) if options.budget else None
    # A switch that is off says nothing.
    given = {name: v for name, v in settings.items() if v is not None and v is not False}
    return (FAST if options.fast else {}) | given


def budget(options: argparse.Namespace) -> Budget:
    """How much the command may ask for. UsageError where --budget cannot be used."""
    from sdcore.job.budget import Budget

    return Budget.parse(options.budget)


def enlarged(options: argparse.Namespace) -> int:
    """Up to how many pixels small pictures are enlarged beside themselves; 0 where they are not."""
    from sdcore.app.output import is_file

    if options.enlarged is None:
        return 0 if is_file(options.output) else ENLARGED
    if not 0 <= options.enlarged <= LARGEST:
        raise UsageError(
            f"--enlarged is {options.enlarged}.",
            "It is the longer side of a picture to look at.",
            f"Use 0 to {LARGEST}.",
        )
    return options.enlarged


def count(options: argparse.Namespace, name: str, default: int) -> int:
    """A count of a flag, or its default. UsageError below 1."""
    value = getattr(options, name)
    if value is not None and value < 1:
        flag = f"--{name.replace('_', '-')}"
        raise UsageError(f"{flag} is {value}.", "It is a count.", "Use a whole number from 1 up.")
    part = "steps" if name == "steps" else "images"
    budget(options).check(part, value or default, "The command")
    return default if value is None else value


def sides(options: argparse.Namespace) -> tuple[int | None, int | None]:
    """Width and height as far as they are given. UsageError where they cannot be."""
    from sdcore.size import Size, check_side

    width, height = (getattr(options, side, None) for side in _SIDES)
    if options.size is not None:
        if width is not None or height is not None:
            raise UsageError(
                f"--size {options.size} cannot be used beside --width or --height.",
                "It stands in place of both.",
                "Leave one of them out.",
            )
        width, height = Size.parse(options.size, "--size").width_height
    named = zip(_SIDES, (width, height), strict=True)
    width, height = (None if side is None else check_side(side, name) for name, side in named)
    return width, height


def hires(options: argparse.Namespace, known: HiresSettings | None = None) -> HiresSettings | None:
    """The second pass that the flags ask for; `known` is a picture's, which they may change."""
    from dataclasses import replace

    from sdcore.job.adapters import HiresSettings
    from sdcore.size import Size, check_side

    strength = options.hires_strength
    if strength is not None and not 0 < strength <= 1:
        raise UsageError(
            f"--hires-strength is {strength:g}.",
            "It is the share of the second pass's steps that are run.",
            "Use 0.3 to sharpen, 0.7 to add details.",
        )
    if options.hires is not None:
        _refuse_factor(options)
        size = Size.parse(options.hires, "--hires")
        named = zip(_SIDES, size.width_height, strict=True)
        width, height = (check_side(side, f"{name} in --hires") for name, side in named)
        return HiresSettings(width, height, HIRES_STRENGTH if strength is None else strength)
    if strength is not None and known is None and getattr(options, "from_picture", None) is None:
        raise UsageError(
            f"--hires-strength {strength:g} has no effect.",
            "There is no second pass without --hires.",
            "Add --hires, such as --hires 1024x1024.",
        )
    if known is None:
        return None
    Size(known.width, known.height).paintable()
    return known if strength is None else replace(known, strength=strength)


def _refuse_factor(options: argparse.Namespace) -> None:
    """UsageError where --hires says how many times as large, as it does in other tools."""
    found = re.fullmatch(r"x?([0-9]{1,2}(?:[.,][0-9]{1,9})?)x?", options.hires.strip().lower())
    factor = float(found[1].replace(",", ".")) if found else 0.0
    if not 1 <= factor <= _LARGEST_FACTOR:
        return
    first = [side or 512 for side in sides(options)]
    larger = "x".join(f"{int(side * factor) // 8 * 8}" for side in first)
    raise UsageError(
        f"--hires {options.hires} cannot be used.",
        "It is the size of the second pass, not how many times as large as the first one it is.",
        f"Use --hires {larger} for {found[1] if found else ''} times {first[0]}x{first[1]}.",
    )


def with_loras(
    jobs: Sequence[Job], found: Adapters, of_picture: Sequence[LoraSettings] = ()
) -> list[Job]:
    """Jobs with the LoRAs and embeddings that flags, prompts and a picture ask for."""
    from dataclasses import replace

    from sdcore.prompt.dialects import parse_prompt

    def embeddings(job: Job) -> tuple[EmbeddingSettings, ...]:
        return found.embedding_settings(job.dialect, job.text, job.negative_text or "")

    loras = {
        (job.text, job.dialect): found.choose(parse_prompt(job.text, job.dialect).loras, of_picture)
        for job in jobs
    }
    return [
        replace(job, loras=loras[job.text, job.dialect], embeddings=embeddings(job)) for job in jobs
    ]


def read_prompts(options: argparse.Namespace) -> list[str]:
    """The lines of a UTF-8 file that are not blank. FileError; UsageError where they are many."""
    path: Path | None = options.prompt_file
    if path is None:
        return []
    try:
        text = read_bytes(path, PROMPTS_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileError(
            f"--prompt-file {path} cannot be read.",
            "It is not UTF-8 text.",
            "Give a text file, one prompt a line.",
        ) from error
    most = budget(options).images
    ends = sum(map(text.count, "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"))
    if ends > _LINES_OF_PROMPT * most:  # before each becomes an object
        budget(options).check("images", ends, f"--prompt-file {path}")
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise FileError(
            f"--prompt-file {path} holds no prompt.", "All its lines are blank.", "Fill it."
        )
    return prompts
