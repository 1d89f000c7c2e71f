"""Everything that the cases use of sdcore, by name, so that a change of layout is a change here.

A name is looked for in `sdcore` first and then in the modules where it has lived.
"""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

TREE = Path(__file__).parents[2]

NAMES = {
    "TextToImage": ["sdcore", "sdcore.pipeline"],
    "use_attention": ["sdcore", "sdcore.attention"],
    "WordHeatmaps": ["sdcore", "sdcore.heatmap"],
    "heatmaps_of_image": ["sdcore", "sdcore.image_heatmaps"],
    "PromptEdit": ["sdcore", "sdcore.prompt_edit"],
    "EditSettings": ["sdcore", "sdcore.prompt_edit"],
    "Reweight": ["sdcore", "sdcore.reweight"],
    "Region": ["sdcore", "sdcore.regions"],
    "Regions": ["sdcore", "sdcore.regions"],
    "AttendAndExcite": ["sdcore", "sdcore.attend_and_excite"],
    "ExciteSettings": ["sdcore", "sdcore.attend_and_excite"],
    "chain": ["sdcore", "sdcore.control"],
    "during": ["sdcore", "sdcore.control"],
    "at_sites": ["sdcore", "sdcore.control"],
    "parts": ["sdcore", "sdcore.control"],
    "SizeConditioning": ["sdcore", "sdcore.conditioning"],
    "read_tokens": ["sdcore", "sdcore.prompt.reading"],
    "read_lora": ["sdcore", "sdcore.lora"],
    "apply_loras": ["sdcore", "sdcore.lora"],
    "fit_lora": ["sdcore"],
    "save_lora": ["sdcore", "sdcore.lora"],
    "LoraWeight": ["sdcore", "sdcore.lora"],
    "read_embedding": ["sdcore", "sdcore.textual_inversion"],
    "apply_embeddings": ["sdcore", "sdcore.textual_inversion"],
    "enlarge": ["sdcore", "sdcore.second_pass"],
    "refine": ["sdcore", "sdcore.second_pass"],
    "save_png": ["sdcore", "sdcore.png"],
    "read_single_file": ["sdcore", "sdcore.checkpoint.single_file"],
    "save_single_file": ["sdcore", "sdcore.checkpoint.single_file"],
}


def get(name: str) -> Any:
    """A name of sdcore, wherever it lives."""
    for module in NAMES[name]:
        with contextlib.suppress(ImportError, AttributeError):
            return getattr(import_module(module), name)
    raise ImportError(f"{name} is in none of {', '.join(NAMES[name])}")


def paint(pipe: Any, prompt: str | Sequence[str], **options: Any) -> Any:
    """A run; the options are those that `TextToImage.__call__` had, or of a job."""
    try:
        from sdcore import Handover, make_jobs
        from sdcore.pipeline.start import complete_size
    except ImportError:
        return pipe(prompt, **options)
    control, noise = options.pop("control", None), options.pop("latents", None)
    width, height = options.pop("width", None), options.pop("height", None)
    start, on_step = options.pop("denoising_start", None), options.pop("on_step", None)
    begun = options.pop("image", None) if start is not None else None
    jobs = make_jobs(prompt, noise=noise, **options)
    if begun is not None:
        jobs = [replace(j, source=Handover(x, start)) for j, x in zip(jobs, begun, strict=True)]
    factor = pipe.autoencoder.factor
    size = complete_size(width, height, jobs[0].source, pipe.native_size, factor)
    jobs = [replace(job, size=size) for job in jobs]
    for happened in pipe.painting(jobs, control):
        if hasattr(happened, "images"):
            return happened
        if on_step is not None:
            on_step(happened.step, happened.latents)


def enlarge(pipe: Any, first: Any, **options: Any) -> Any:
    return get("enlarge")(pipe, first, **options)


def refine(refiner: Any, begun: Any, **options: Any) -> Any:
    return get("refine")(refiner, begun, **options)


def load(folder: str | Path | None, **how: Any) -> Any:
    """A model; None is the embedded one."""
    kind = get("TextToImage")
    return kind.embedded(**how) if folder is None else kind.from_pretrained(folder, **how)


def open_single_file(path: Path, config: Path) -> Any:
    """A model of no known family in one file, with the settings of a folder."""
    kind, parts = get("TextToImage"), get("read_single_file")(path, config=config)
    return kind.of(parts) if hasattr(kind, "of") else kind(**vars(parts))


@contextlib.contextmanager
def applied(kind: str, pipe: Any, files: Sequence[Any], **how: Any) -> Iterator[Any]:
    """A model with LoRAs or embeddings, by the function's name.

    Some trees put them on the model itself until the block ends; later ones give another model.
    """
    made = get(kind)(pipe, files, **how)
    if hasattr(made, "remove"):
        with made:
            yield pipe
    else:
        yield made


def changes_of(lora: Any, pipe: Any) -> Any:
    """What a LoRA does to each layer of a model."""
    try:
        fit = get("fit_lora")
    except ImportError:
        with get("apply_loras")(pipe, [(lora, 1.0)]) as made:
            return made.changes(0)
    return fit(lora, pipe).changes


def tokens(pipe: Any, prompt: str | Sequence[str], dialect: str = "plain") -> Any:
    """Prompts as every tokenizer of the model reads them, for a control."""
    tokenizers = [t for t in (pipe.tokenizer, pipe.tokenizer_2) if t is not None]
    read = [get("read_tokens")(prompt, tokenizer, dialect) for tokenizer in tokenizers]
    return read if len(read) > 1 else read[0]


def run_script(name: str, *flags: object) -> str:
    """Run a script of sample/ in this process; what it printed to stdout.

    Raises:
        RuntimeError: it ended with another code than 0; with what it printed to stderr.
    """
    path = TREE / "sample" / f"{name}.py"
    out, err = io.StringIO(), io.StringIO()
    argv, paths, folder = sys.argv, sys.path[:], Path.cwd()
    sys.argv = [str(path), *map(str, flags)]
    code: Any = 0
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            runpy.run_path(str(path), run_name="__main__")
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv, sys.path[:] = argv, paths
        os.chdir(folder)
    if code:
        raise RuntimeError(f"{name} ended with {code}: {err.getvalue()}")
    return out.getvalue()
