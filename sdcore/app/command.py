"""What the sampling scripts share: flags, what is refused early, files, errors, exit codes.

A script makes its parser from the `add_*` functions and hands its work to `run`. Nothing here loads
torch before the work begins, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcore.app import adapters
from sdcore.errors import FileError, MemoryLimitError, SdcoreError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdcore.pipeline.text_to_image import TextToImageResult

EXIT_INTERRUPTED = 130
_DEFAULT = " (default: %(default)s)"
BATCH_SIZE = 4


def add_painting_flags(parser: argparse.ArgumentParser) -> None:
    """How to paint, whatever the picture begins from."""
    add = parser.add_argument
    add("--negative-prompt", metavar="TEXT", help="what to keep away from (default: nothing)")
    add(
        "--seed",
        type=int,
        metavar="N",
        help="image i is painted from seed + i (default: a random one)",
    )
    add("--steps", type=int, metavar="N", help="sampling steps (default: the model's)")
    add(
        "--guidance-scale",
        type=float,
        metavar="X",
        help="how closely to follow (default: the model's)",
    )
    add(
        "--guidance-rescale",
        type=float,
        metavar="X",
        help="0 to 1, against glare (default: the model's)",
    )
    add("--scheduler", metavar="NAME", help="such as 'dpm++ 2m karras' (default: the model's)")
    text = "how marks in prompts are read: plain, a1111, a1111-nonorm, comfy or compel"
    add("--dialect", metavar="NAME", help=text + " (default: plain)")
    add(
        "--clip-skip",
        type=int,
        metavar="N",
        help="text encoder layers left out at the end (default: 0)",
    )
    add("--images", type=int, metavar="N", help="pictures of each prompt (default: 1)")
    add("--batch-size", type=int, metavar="N", help=f"painted at once (default: {BATCH_SIZE})")


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """What to paint with."""
    add = parser.add_argument
    add(
        "--model",
        metavar="NAME",
        help="folder, .safetensors file or hub name (default: the embedded model)",
    )
    add("--variant", help="weight files to read, such as fp16 (default: the plain ones)")
    predicts = ("epsilon", "v_prediction")
    text = "of a single file that says it wrongly (default: what it says)"
    add("--prediction-type", choices=predicts, help=text)
    add("--revision", metavar="NAME", help="of a model on the hub (default: its main branch)")
    add("--offline", action="store_true", help="use no network, as cached (default: no)")
    adapters.add_adapter_flags(parser)
    add("--hash-model", action="store_true", help="note its hash in pictures (default: no)")
    add("--device", default="auto", help="auto, cpu, cuda or mps" + _DEFAULT)
    precisions = ("auto", "fp32", "fp16", "bf16")
    add("--precision", choices=precisions, help="of the weights (default: auto)")
    add("--attention", metavar="NAME", help="backend, such as sdpa (default: auto)")


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    """Where to, and how loud."""
    add = parser.add_argument
    add("--output", type=Path, default=Path("outputs"), help="folder, or file.png" + _DEFAULT)
    add("--debug", action="store_true", help="show the traceback of an error (default: no)")


def run(work: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> int:
    """Do it; the exit code: 0 ok, 2 usage, 3 bad file, 4 out of memory, 5 non-finite numbers."""
    warnings.showwarning = show_warning
    try:
        work(options)
    except KeyboardInterrupt:
        print("\nstopped; what was painted before is saved", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        if options.debug:
            raise
        failure = as_failure(error)
        print(f"error: {failure}", file=sys.stderr)
        return failure.exit_code
    return 0


def as_failure(error: Exception) -> SdcoreError:
    """Any error in three parts."""
    if isinstance(error, SdcoreError):
        return error
    first_line = (str(error).splitlines() or [""])[0]
    if isinstance(error, MemoryError) or "out of memory" in first_line or "allocate" in first_line:
        return MemoryLimitError(
            "There is not enough memory for this run.",
            first_line or "The system refused to give more.",
            "Use a smaller --batch-size or size, --precision fp16, or --attention chunked.",
        )
    return SdcoreError(
        "Something went wrong that should not have.",
        f"{type(error).__name__}: {first_line}",
        "Run it again with --debug, and report what it prints.",
    )


def show_warning(message: Any, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


def check(options: argparse.Namespace) -> None:
    """Refuse what can be refused before a model is loaded; `prompts` are those to be painted."""
    for name in ("images", "batch_size", "steps"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(
                f"--{name.replace('_', '-')} is {value}.",
                "It is a count.",
                "Use a whole number from 1 up.",
            )
    if options.clip_skip is not None and options.clip_skip < 0:
        raise UsageError(
            f"--clip-skip is {options.clip_skip}.",
            "It counts the layers that are left out.",
            "Use 0 for none; where other tools say 2, it is 1 here.",
        )
    _check_model_flags(options)
    check_output(options.output)
    adapters.check_files(options)

    from sdcore.attention import check_attention
    from sdcore.diffusion.schedulers import canonical_name
    from sdcore.pipeline.request import check_seed
    from sdcore.prompt.dialects import find_dialect
    from sdcore.sampling.guidance import Guidance

    given = {"scale": options.guidance_scale, "rescale": options.guidance_rescale}
    Guidance(**{name: value for name, value in given.items() if value is not None})
    if options.seed is not None:
        check_seed(options.seed, len(options.prompts) * (options.images or 1))
    if options.dialect is not None:
        find_dialect(options.dialect)
    if options.attention is not None:
        check_attention(options.attention)
    if options.scheduler is not None:
        canonical_name(options.scheduler)
    for prompt in options.prompts:
        adapters.choose(options, prompt)  # LoRAs that it names and that are not here


def _check_model_flags(options: argparse.Namespace) -> None:
    for name in ("variant", "revision", "prediction_type"):
        if options.model is None and getattr(options, name) is not None:
            raise UsageError(
                f"--{name.replace('_', '-')} {getattr(options, name)} has no effect.",
                "The embedded model comes in one form.",
                "Name a model with --model, or leave it out.",
            )
    if (
        options.hash_model
        and options.model is not None
        and not Path(options.model).expanduser().exists()
    ):
        raise UsageError(
            f"--hash-model cannot be used with {options.model}.",
            "It reads a file or folder on this computer.",
            "Leave it out.",
        )


def save(result: TextToImageResult, output: Path) -> Iterator[Image]:
    """Write each picture with its settings and print its path; gives the pictures."""
    from sdcore.metadata.png import save_png

    for image, settings in zip(result.images, result.settings, strict=True):
        path = output if is_file(output) else output / f"{slug(settings.prompt)}.png"
        print(save_png(image, path, settings), flush=True)
        yield image


def is_file(path: Path) -> bool:
    """Whether --output names a PNG file and not a folder; UsageError for other kinds of file."""
    if path.suffix.lower() == ".png":
        return not path.is_dir()
    if path.suffix and not path.is_dir():
        raise UsageError(
            f"--output {path} cannot be written.",
            "Pictures are PNG files, which keep their settings.",
            "Use a name that ends in .png, or a folder.",
        )
    return False


def check_output(path: Path) -> None:
    """Refuse before painting what could not be written after it."""
    folder = path.parent if is_file(path) else path
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise FileError(
            f"--output {path} cannot be written.",
            f"{folder} is not a folder that you may write to.",
            "Choose another folder.",
        )


def slug(prompt: str) -> str:
    """The prompt's first words as a file name on every system."""
    kept = "".join(c if c.isalnum() else " " for c in prompt.lower()).split()
    return "-".join(kept)[:60].rstrip("-") or "image"
