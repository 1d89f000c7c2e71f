"""The command line of a bench: the flags that several have are said once."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcore.errors import exit_on_error

if TYPE_CHECKING:
    from sdcore import TextToImage

DATA = "configs/train/emoji_data.yaml"
# What is said of a flag whose default is None; of any other the default is shown.
_MODEL = "(default: the model's)"
_FLAGS: dict[str, dict[str, Any]] = {
    "model": {"metavar": "FOLDER", "help": "in diffusers layout (default: the embedded model)"},
    "lora": {"metavar": "FILE", "help": "applied to the model (default: none)"},
    "data": {"metavar": "FILE", "help": "settings of the scenes"},
    "prompts": {"type": int, "metavar": "N", "help": "how many"},
    "scenes": {"type": int, "metavar": "N", "help": "how many"},
    "seed": {"type": int, "metavar": "N", "help": "of prompts and pictures"},
    "steps": {"type": int, "metavar": "N", "help": f"denoising steps {_MODEL}"},
    "guidance_scale": {"type": float, "metavar": "X", "help": _MODEL},
    "scheduler": {"metavar": "NAME", "help": _MODEL},
    "batch_size": {"type": int, "metavar": "N", "help": "pictures at a time"},
    "latents": {"type": int, "metavar": "N", "help": "side of their grid"},
    "rounds": {"type": int, "metavar": "N", "help": "how often each is timed"},
    "threads": {"type": int, "metavar": "N", "help": "of the CPU; 0: as many as torch takes"},
    "device": {"metavar": "NAME", "help": "where it runs"},
    "out": {"type": Path, "metavar": "FOLDER", "help": "results"},
}


def make_parser(doc: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """The parser of a bench.

    Args:
        doc: what `--help` says.
        defaults: name -> default of those of the shared flags that it has.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in defaults.items():
        flag = dict(_FLAGS[name])
        if default is not None:
            flag["help"] = f"{flag['help'].removesuffix(_MODEL).strip()} (default: {default})"
            default = flag.get("type", str)(default)
        parser.add_argument(f"--{name.replace('_', '-')}", default=default, **flag)
    return parser


def main(parser: argparse.ArgumentParser, work: Callable[[argparse.Namespace], None]) -> None:
    """Do it with the arguments of this process; an error ends it with its exit code."""
    arguments = parser.parse_args()
    with exit_on_error():
        work(arguments)


def load_model(folder: str | None, device: str = "cpu", lora: str | None = None) -> TextToImage:
    """The model of `--model`, with `--lora` merged."""
    from sdcore import TextToImage, apply_loras, read_lora

    if folder is None:
        pipe = TextToImage.embedded(device=device)
    else:
        pipe = TextToImage.from_pretrained(folder, device=device)
    return pipe if lora is None else apply_loras(pipe, [(read_lora(lora), 1.0)], merge=True)


def plain(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments as JSON has them."""
    values = vars(arguments).items()
    return {key: str(value) if isinstance(value, Path) else value for key, value in values}
