"""Loading a model as the flags say, and painting prompts in batches, with progress."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcore.app import adapters
from sdcore.app.command import BATCH_SIZE
from sdcore.app.unknown_words import warn_of_unknown_words

if TYPE_CHECKING:
    from sdcore import TextToImage
    from sdcore.pipeline.text_to_image import TextToImageResult


def load(options: argparse.Namespace) -> TextToImage:
    """The model on its device, with the attention backend chosen and the learned words on it.

    Warns of words of the prompts to be painted that the model was never taught.
    """
    import torch

    from sdcore import TextToImage, use_attention

    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    # Half precision is for GPUs: CPUs are slower in it.
    precision = options.precision or "auto"
    if precision == "auto":
        precision = "fp32" if device in ("cpu", "mps") else "fp16"
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    if options.model is None:
        pipe = TextToImage.embedded(dtype=dtype, device=device)
    else:
        pipe = TextToImage.from_pretrained(
            options.model,
            dtype=dtype,
            device=device,
            variant=options.variant,
            revision=options.revision,
            offline=options.offline,
            prediction_type=options.prediction_type,
        )
    attention = use_attention(pipe.unet, options.attention or "auto")
    print(f"attention: {attention.kernel} ({attention.why})", file=sys.stderr)
    warn_of_unknown_words(pipe, options)
    return adapters.embedded(pipe, options)


def model_hash(options: argparse.Namespace) -> str | None:
    """Of the embedded model, which is small; of others with --hash-model: it reads them whole."""
    from sdcore.files.hashes import weights_hash

    if options.model is None:
        from sdcore.pipeline.text_to_image import EMBEDDED

        return weights_hash(EMBEDDED)
    path = Path(options.model).expanduser()
    return weights_hash(path, options.variant) if options.hash_model else None


def paint_batches(
    pipe: TextToImage,
    prompts: Sequence[str],
    options: argparse.Namespace,
    second: Callable[..., TextToImageResult] | None = None,
    *,
    one_seed: bool = False,
    **more: Any,
) -> Iterator[TextToImageResult]:
    """`--images` pictures of every prompt, `--batch-size` at a time.

    Args:
        second: a second pass, called with the model, the result of the first one and `on_step`.
        one_seed: every picture is painted from the first one's seed, as a prompt and its edits are.
        more: goes to the pipeline as it is: size, image, mask, strength.
    """
    import secrets

    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    arguments = {
        "negative_prompt": options.negative_prompt,
        "steps": options.steps,
        "guidance_scale": options.guidance_scale,
        "guidance_rescale": options.guidance_rescale,
        "scheduler": options.scheduler,
        "clip_skip": options.clip_skip or 0,
        "dialect": options.dialect or "plain",
        **more,
    }
    record = {
        "attention": options.attention or "auto",
        "prediction_type": options.prediction_type,
        "model_hash": model_hash(options),
    }
    count, start = len(prompts) * (options.images or 1), 0
    for batch, chosen in _batches(prompts, options):
        title = f"images {start + 1}-{start + len(batch)} of {count}"
        adapted = adapters.applied(pipe, chosen)
        with Progress(title) as progress:
            seeds = [seed] * len(batch) if one_seed else seed + start
            result = adapted(batch, seed=seeds, on_step=progress, **arguments)
            if second is not None:
                progress.begin(f"{title}, second pass")
                result = second(adapted, result, on_step=progress)
        start += len(batch)
        loras, embeddings = adapters.recorded(adapted)
        told = {"loras": loras, "embeddings": embeddings, **record}
        yield replace(result, settings=[replace(one, **told) for one in result.settings])


def _batches(
    prompts: Sequence[str], options: argparse.Namespace
) -> Iterator[tuple[list[str], tuple[adapters.ChosenLora, ...]]]:
    """Prompts that are painted at once, and their LoRAs: prompts in a batch have the same."""
    each = [(prompt, adapters.choose(options, prompt)) for prompt in prompts]
    images = [image for image in each for _ in range(options.images or 1)]
    size = options.batch_size or BATCH_SIZE
    for chosen, group in groupby(images, key=lambda image: image[1]):
        batch = [prompt for prompt, _ in group]
        for start in range(0, len(batch), size):
            yield batch[start : start + size], chosen


class Progress:
    """A bar in a terminal; elsewhere a plain line for each quarter of the way."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.bar: Any = None

    def begin(self, title: str) -> None:
        """Another run of steps."""
        self.__exit__()
        self.title, self.bar = title, None

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
