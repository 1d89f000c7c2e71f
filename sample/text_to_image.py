"""Paint prompts.

python sample/text_to_image.py "a red apple on a light blue background"
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without installation

from sdcore.errors import FileError, MemoryLimitError, SdcoreError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sdcore import TextToImage
    from sdcore.pipeline import TextToImageResult

EXIT_INTERRUPTED = 130


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Paint prompts with the embedded model, or with Stable Diffusion 1.x, 2.x, XL."
    )
    add = parser.add_argument
    shown = " (default: %(default)s)"
    add("prompts", nargs="+", metavar="PROMPT", help="what to paint; several in one go")
    add("--negative-prompt", metavar="TEXT", help="what to keep away from (default: nothing)")
    add("--seed", type=int, help="image i is painted from seed + i (default: a random one)")
    add("--steps", type=int, help="sampling steps (default: the model's)")
    add("--guidance-scale", type=float, help="how closely to follow (default: the model's)")
    add("--scheduler", metavar="NAME", help="such as 'dpm++ 2m karras' (default: the model's)")
    add("--width", type=int, help="in pixels (default: the model's)")
    add("--height", type=int, help="in pixels (default: the model's)")
    add("--size", metavar="WxH", help="both in one: 768x512, or 512 (default: the model's)")
    add("--images", type=int, default=1, metavar="N", help="pictures of each prompt" + shown)
    add("--batch-size", type=int, default=4, metavar="N", help="painted at once" + shown)
    add("--output", type=Path, default=Path("outputs"), help="folder, or file.png" + shown)
    add("--grid", action="store_true", help="also write all pictures as one (default: no)")
    add("--model", metavar="NAME", help="folder or hub name (default: the embedded model)")
    add("--variant", help="weight files to read, such as fp16 (default: the plain ones)")
    add("--device", default="auto", help="auto, cpu, cuda or mps" + shown)
    precisions = ("auto", "fp32", "fp16", "bf16")
    add("--precision", default="auto", choices=precisions, help="of the weights" + shown)
    add("--attention", default="auto", metavar="NAME", help="backend, such as sdpa" + shown)
    add("--debug", action="store_true", help="show the traceback of an error (default: no)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 ok, 2 usage, 3 bad file, 4 out of memory, 5 non-finite numbers."""
    options = make_parser().parse_args(arguments)
    try:
        paint(options)
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
            "Use a smaller --batch-size or --size, --precision fp16, or --attention chunked.",
        )
    return SdcoreError(
        "Something went wrong that should not have.",
        f"{type(error).__name__}: {first_line}",
        "Run it again with --debug, and report what it prints.",
    )


def paint(options: argparse.Namespace) -> None:
    from sdcore.png import save_png

    check(options)
    size = parse_size(options)
    warnings.showwarning = show_warning
    pipe = load(options)
    targets = output_paths(options)
    grid: list[Any] = []
    for result in paint_batches(pipe, options, size):
        for image, settings in zip(result.images, result.settings, strict=True):
            print(save_png(image, next(targets), settings))
            if options.grid:
                grid.append(image)
    if options.grid:
        print(save_grid(grid, options))


def check(options: argparse.Namespace) -> None:
    """What can be refused before anything is loaded."""
    for name in ("images", "batch_size"):
        if getattr(options, name) < 1:
            raise UsageError(
                f"--{name.replace('_', '-')} is {getattr(options, name)}.",
                "It counts pictures.",
                "Use a whole number from 1 up.",
            )
    check_output(options.output)
    if options.attention != "auto":
        from sdcore.attention import check_attention

        check_attention(options.attention)
    if options.scheduler is not None:
        from sdcore.schedulers import canonical_name

        canonical_name(options.scheduler)


def parse_size(options: argparse.Namespace) -> dict[str, int | None]:
    if options.size is None:
        return {"width": options.width, "height": options.height}
    width, x, height = options.size.lower().partition("x")
    if options.width or options.height or not width.isdigit() or (x and not height.isdigit()):
        raise UsageError(
            f"--size {options.size} cannot be used.",
            "It is one number or two joined by x, and stands in place of --width and --height.",
            "Use for example --size 512 or --size 768x512.",
        )
    return {"width": int(width), "height": int(height or width)}


def load(options: argparse.Namespace) -> TextToImage:
    import torch

    from sdcore import TextToImage, use_attention

    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    # Half precision is for GPUs: CPUs are slower in it.
    precision = options.precision
    if precision == "auto":
        precision = "fp32" if device in ("cpu", "mps") else "fp16"
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    if options.model is None:
        pipe = TextToImage.embedded(dtype=dtype, device=device)
    else:
        pipe = TextToImage.from_pretrained(
            options.model, dtype=dtype, device=device, variant=options.variant
        )
    attention = use_attention(pipe.unet, options.attention)
    print(f"attention: {attention.kernel} ({attention.why})", file=sys.stderr)
    return pipe


def paint_batches(
    pipe: TextToImage, options: argparse.Namespace, size: dict[str, int | None]
) -> Iterator[TextToImageResult]:
    """Every picture of every prompt, `batch_size` at a time; the batch changes no picture."""
    import secrets

    prompts = [prompt for prompt in options.prompts for _ in range(options.images)]
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    for start in range(0, len(prompts), options.batch_size):
        batch = prompts[start : start + options.batch_size]
        with Progress(f"images {start + 1}-{start + len(batch)} of {len(prompts)}") as progress:
            yield pipe(
                batch,
                negative_prompt=options.negative_prompt,
                seed=seed + start,
                steps=options.steps,
                guidance_scale=options.guidance_scale,
                scheduler=options.scheduler,
                on_step=progress,
                **size,
            )


class Progress:
    """A bar in a terminal; elsewhere a plain line for each quarter of the way."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.bar: Any = None

    def __call__(self, step: Any, latents: Any) -> None:
        done = step.index + 1
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = self.bar or tqdm(total=step.count, desc=self.title, unit="step")
            self.bar.update(1)
        elif done * 4 // step.count > step.index * 4 // step.count:
            print(f"{self.title}: step {done} of {step.count}", file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()


def output_paths(options: argparse.Namespace) -> Iterator[Path]:
    """A file name for each picture; `save_png` numbers those that exist already."""
    names = [prompt for prompt in options.prompts for _ in range(options.images)]
    for prompt in names:
        yield options.output if is_file(options.output) else options.output / f"{slug(prompt)}.png"


def is_file(path: Path) -> bool:
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


def save_grid(images: list[Any], options: argparse.Namespace) -> Path:
    from PIL import Image

    from sdcore.png import save_png

    rows, columns = len(options.prompts), options.images
    if rows > 1 and columns == 1:  # one picture of each prompt: nearly a square
        columns = int(len(images) ** 0.5 + 0.999)
        rows = -(-len(images) // columns)
    width, height = images[0].size
    grid = Image.new("RGB", (columns * width, rows * height), "white")
    for place, image in enumerate(images):
        grid.paste(image, (place % columns * width, place // columns * height))
    output = options.output
    path = output.with_stem(f"{output.stem}-grid") if is_file(output) else output / "grid.png"
    return save_png(grid, path)


def show_warning(message: Any, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
