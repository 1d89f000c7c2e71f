"""One model, many calls: none is in the picture of another, and none leaves a trace on the model.

What differs between the calls of one model is all that can: LoRAs beside and merged, learned words,
backends, schedulers, controls, pictures and masks.
"""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sdcore import (
    AttendAndExcite,
    EditSettings,
    ExciteSettings,
    Job,
    PromptEdit,
    Region,
    Regions,
    Reweight,
    Size,
    TextToImage,
    TextToImageResult,
    WordHeatmaps,
    apply_embeddings,
    apply_loras,
    chain,
    open_picture,
    read_embedding,
    read_lora,
    read_settings,
    read_tokens,
    save_png,
)
from sdcore.diffusion.methods import METHODS
from sdcore.errors import NonFiniteError, UsageError
from tests.adapters.test_lora import whole_lora
from tests.test_torch_state import STATES

Call = Callable[[TextToImage], TextToImageResult]
PROMPT = "a red fox on the tree"
SIZE = {"width": 48, "height": 64}
FEW = ("ddim", "pndm", "unipc", "dpm++ 2m sde")  # schedulers for every commit


@dataclass(frozen=True)
class Painter:
    """A model, and the files that its calls use."""

    pipe: TextToImage
    loras: list[Path]
    embedding: Path


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def painter(request, tmp_path_factory) -> Painter:
    folder = request.getfixturevalue(f"{request.param}_folder")
    return make_painter(folder, tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def sd(sd_folder, tmp_path_factory) -> Painter:
    return make_painter(sd_folder, tmp_path_factory.mktemp("adapters"))


def make_painter(model: Path, folder: Path) -> Painter:
    pipe = TextToImage.from_pretrained(model)
    loras = [folder / f"{seed}.safetensors" for seed in (1, 2)]
    for seed, path in enumerate(loras, start=1):
        save_file(whole_lora(pipe, seed), path)
    rows = torch.randn(2, 72, generator=torch.Generator().manual_seed(1))
    vectors = {"clip_l": rows[:, :32].contiguous(), "clip_g": rows[:, 32:].contiguous()}
    if pipe.text_encoder_2 is None:
        vectors = {"mark": vectors["clip_l"]}
    save_file(vectors, folder / "mark.safetensors")
    return Painter(pipe, loras, folder / "mark.safetensors")


@pytest.fixture(scope="module")
def alone(painter) -> dict[str, TextToImageResult]:
    """Each call by itself."""
    return {name: call(painter) for name, call in CALLS.items()}


def tokens(pipe: TextToImage, *prompts: str, dialect: str = "plain") -> Any:
    read = [read_tokens(list(prompts), tokenizer, dialect) for tokenizer, _ in pipe.readers]
    return read if len(read) > 1 else read[0]


def paint(pipe: TextToImage, scheduler: str, prompt: Any = PROMPT, **how: Any) -> TextToImageResult:
    how = {"seed": 3, "steps": 3, "progress": False, **SIZE, **how}
    return pipe(prompt, scheduler=scheduler, **how)


def lora(number: int, merge: bool, scheduler: str, painter: Painter) -> TextToImageResult:
    read = read_lora(painter.loras[number])
    return paint(apply_loras(painter.pipe, [(read, 0.2)], merge=merge), scheduler)


def learned(painter: Painter) -> TextToImageResult:
    pipe = apply_embeddings(painter.pipe, [read_embedding(painter.embedding)])
    pipe = apply_loras(pipe, [(read_lora(painter.loras[0]), -0.2)])
    return paint(pipe, "pndm", "a mark on the tree", negative_prompt="mark")


def measured(painter: Painter) -> TextToImageResult:
    pipe = painter.pipe.with_attention("chunked")
    readings = tokens(pipe, PROMPT)
    heatmaps = WordHeatmaps(readings)
    result = paint(pipe, "heun", control=chain(heatmaps, Reweight(readings, {"red": 3.0})))
    assert heatmaps.of("fox").std() > 0
    return result


def edited(painter: Painter) -> TextToImageResult:
    pipe = apply_loras(painter.pipe, [(read_lora(painter.loras[1]), 0.2)], merge=True)
    pipe = pipe.with_attention("reference")
    prompts = [PROMPT, "a blue cat on the tree"]
    edit = PromptEdit(tokens(pipe, *prompts), EditSettings(layout=(0, 0.4), blend=("cat",)))
    return paint(pipe, "dpm++ sde karras", prompts, seed=[5, 5], control=edit)


def excited(painter: Painter) -> TextToImageResult:
    settings = ExciteSettings(targets={0: 0.9}, most_moves=2)
    control = AttendAndExcite(tokens(painter.pipe, PROMPT), ["fox", "tree"], settings)
    return paint(painter.pipe, "unipc", control=control)


def in_regions(painter: Painter) -> TextToImageResult:
    halves = [Region("a red fox", (0, 0, 0.5, 1)), Region("a cat", (0.5, 0, 1, 1))]
    regions = Regions("a tree", halves)
    return paint(painter.pipe, "ddpm", regions.prompt, dialect="a1111", control=regions)


def repainted(painter: Painter) -> TextToImageResult:
    picture = Image.fromarray(np.arange(48 * 64 * 3, dtype=np.uint8).reshape(64, 48, 3))
    mask = Image.new("L", (48, 64))
    mask.paste(255, (8, 8, 40, 40))
    return paint(painter.pipe, "lcm", image=picture, mask=mask, strength=0.7)


def in_an_odd_state(painter: Painter) -> TextToImageResult:
    with torch.autocast("cpu", torch.bfloat16), torch.device("meta"), torch.inference_mode():
        return paint(painter.pipe, "euler a", "a (red:1.4) [cat:dog:0.5]", dialect="a1111")


CALLS: dict[str, Callable[[Painter], TextToImageResult]] = {
    "LoRA beside": partial(lora, 0, False, "dpm++ 2m karras"),
    "LoRA merged": partial(lora, 1, True, "ddim"),
    "LoRA and learned words": learned,
    "heatmaps and other weights": measured,
    "edit": edited,
    "attend and excite": excited,
    "regions": in_regions,
    "repainted": repainted,
    "odd state": in_an_odd_state,
}


@pytest.mark.parametrize("rounds", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_calls_in_threads_give_the_bits_of_each_call_alone(painter, alone, rounds):
    def work(name: str) -> None:
        try:
            together.wait()
            for _ in range(rounds):
                found[name].append(CALLS[name](painter))
        except BaseException as error:
            found[name].append(error)

    assert len({result.images[-1].tobytes() for result in alone.values()}) == len(CALLS)
    found: dict[str, list[Any]] = {name: [] for name in CALLS}
    together, interval = Barrier(len(CALLS)), sys.getswitchinterval()
    threads = [Thread(target=work, args=(name,)) for name in CALLS]
    sys.setswitchinterval(1e-3)  # many changes of threads within one step
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    for name, results in found.items():
        for result in results:
            assert isinstance(result, TextToImageResult), f"{name}: {result!r}"
            assert_same(result, alone[name], name)
            assert result.jobs == alone[name].jobs, name


def test_paintings_in_turn_give_the_bits_of_each_alone(sd):
    """As a server may run them: one step of each after the other, in one thread."""
    names = ("euler a", "dpm++ 2m sde", "pndm", "dpm++ sde", "unipc")
    jobs = [Job(PROMPT, seed=1, steps=3, scheduler=name, size=Size(**SIZE)) for name in names]
    alone = [sd.pipe.paint(job, progress=False).latents for job in jobs]
    work = [sd.pipe.painting(job) for job in jobs]
    ended: dict[int, torch.Tensor] = {}
    while len(ended) < len(jobs):
        for number, painting in enumerate(work):
            happened = next(painting, None)
            if isinstance(happened, TextToImageResult):
                ended[number] = happened.latents
    assert all(torch.equal(ended[i], latents) for i, latents in enumerate(alone))


# --- nothing changes -----------------------------------------------------------------------------


def trace(thing: Any) -> Any:
    """What can be seen of an object that stays the same if nothing is done with it."""
    if isinstance(thing, torch.Tensor):
        kind = (thing.dtype, thing.device, thing.shape, thing.requires_grad, thing.grad is None)
        return id(thing), thing.data_ptr(), thing._version, *kind
    if isinstance(thing, dict):
        return {key: trace(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple | set):
        return [trace(value) for value in thing]
    return id(thing), thing if isinstance(thing, str | int | float | None) else None


def traces(pipe: TextToImage) -> dict[str, Any]:
    """All parts of a model, all modules of each with their tables, and torch's and Python's own."""
    found = {"model": trace(vars(pipe)), "scheduler": trace(vars(pipe.scheduler))}
    for name, network in pipe.networks.items():
        for path, module in network.named_modules():
            found[f"{name}.{path}"] = trace(vars(module))
    for number, (tokenizer, _) in enumerate(pipe.readers):
        found[f"tokenizer {number}"] = trace(vars(tokenizer)), len(tokenizer)
    found["torch"] = (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_rng_state().tolist(),
    )
    found["python"] = random.getstate(), str(np.random.get_state()), list(warnings.filters)
    return found


@contextmanager
def unchanged(pipe: TextToImage) -> Iterator[None]:
    """The values are equal as well: a write by another name would not count a version."""
    values = [tensor.clone() for tensor in all_tensors(pipe)]
    before = traces(pipe)
    yield
    after = traces(pipe)
    assert after.keys() == before.keys()
    for name, known in before.items():
        assert after[name] == known, name
    for tensor, value in zip(all_tensors(pipe), values, strict=True):
        assert torch.equal(tensor, value)


def all_tensors(pipe: TextToImage) -> list[torch.Tensor]:
    return [t for network in pipe.networks.values() for t in network.state_dict().values()]


@pytest.mark.parametrize("name", CALLS)
def test_a_call_changes_nothing(painter, name):
    with unchanged(painter.pipe):
        CALLS[name](painter)


@pytest.mark.parametrize("schedulers", [FEW, pytest.param((*METHODS,), marks=pytest.mark.slow)])
def test_no_scheduler_changes_the_models_own(sd, schedulers):
    with unchanged(sd.pipe):
        for scheduler in schedulers:
            paint(sd.pipe, scheduler)


class Broken(RuntimeError):
    pass


def broken_control(at: int) -> Callable[..., Any]:
    """A control that fails at its call number `at`."""
    calls = iter(range(at))

    def control(site, grid, q, k, v, attend):
        if next(calls, None) is None:
            raise Broken
        return attend(q, k, v)

    return control


FAILING: dict[str, tuple[type[Exception], Call]] = {
    "in the first layer": (Broken, lambda pipe: paint(pipe, "ddim", control=broken_control(0))),
    "in a later step": (Broken, lambda pipe: paint(pipe, "heun", control=broken_control(9))),
    "no number": (
        NonFiniteError,
        lambda pipe: paint(pipe, "euler", f"a (cat:{10**38})", dialect="a1111-nonorm"),
    ),
    "unknown scheduler": (UsageError, lambda pipe: paint(pipe, "eulr")),
    "too many steps": (UsageError, lambda pipe: paint(pipe, "unipc", steps=1000)),
    "unknown backend": (UsageError, lambda pipe: paint(pipe.with_attention("flash9"), "ddim")),
}


@pytest.mark.parametrize("name", FAILING)
def test_a_call_that_fails_changes_nothing(sd, name):
    kind, call = FAILING[name]
    with unchanged(sd.pipe), pytest.raises(kind):
        call(sd.pipe)


def test_a_painting_that_is_stopped_changes_nothing(sd):
    job = Job(PROMPT, seed=1, steps=3, size=Size(**SIZE))
    with unchanged(sd.pipe):
        work = sd.pipe.painting(job)
        next(work)
        next(work)
        work.close()


@pytest.mark.parametrize("force_upcast", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_an_autoencoder_that_overflows_keeps_its_type(sdxl_folder, force_upcast, fails):
    """It was left in float32 after its first run, and saved so."""
    pipe = TextToImage.from_pretrained(sdxl_folder, dtype=torch.float16)
    vae = pipe.autoencoder
    vae.config = replace(vae.config, force_upcast=force_upcast)
    with torch.no_grad():
        vae.decoder.conv_in.weight.fill_(float("inf") if fails else 6e4)
        vae.encoder.conv_in.weight.fill_(6e4)
    with unchanged(pipe):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                repainted(Painter(pipe, [], Path()))
        except NonFiniteError:
            assert fails
    assert {tensor.dtype for tensor in all_tensors(pipe)} == {torch.float16}


def test_pictures_opened_in_threads_leave_no_filter_of_warnings_behind(sd, tmp_path):
    """Filters are the process's: two threads that put back what each found leave one behind."""

    def work() -> None:
        for _ in range(30):
            open_picture(path)
            read_settings(path)

    path = tmp_path / "a.png"
    result = paint(sd.pipe, "ddim", steps=1)
    save_png(result.images[0], path, result.settings[0])
    before, interval = list(warnings.filters), sys.getswitchinterval()
    threads = [Thread(target=work) for _ in range(8)]
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert list(warnings.filters) == before


# --- nothing outside reaches in ------------------------------------------------------------------


def assert_same(got: TextToImageResult, expected: TextToImageResult, name: str) -> None:
    assert torch.equal(got.latents, expected.latents), name
    for one, other in zip(got.images, expected.images, strict=True):
        assert one.tobytes() == other.tobytes(), name
    assert not got.latents.requires_grad and not got.latents.is_inference(), name


@pytest.mark.parametrize(
    "scheduler",
    [m if m in FEW else pytest.param(m, marks=pytest.mark.slow) for m in METHODS],
)
def test_the_callers_torch_state_is_not_in_the_picture_of_any_scheduler(sd, scheduler):
    expected = paint(sd.pipe, scheduler)
    with STATES["everything"]():
        got = paint(sd.pipe, scheduler)
    assert_same(got, expected, scheduler)


@pytest.mark.parametrize("name", CALLS)
def test_the_callers_torch_state_is_not_in_the_picture_of_any_call(painter, alone, name):
    """All that a call needs is made in the caller's state too: tokens, controls, adapters."""
    state = "everything" if painter.pipe.text_encoder_2 else "bfloat16"
    with STATES[state]():
        got = CALLS[name](painter)
    assert_same(got, alone[name], state)


@pytest.mark.parametrize("state", STATES)
def test_each_state_alone(sd, state):
    expected = measured(sd)
    with STATES[state]():
        got = measured(sd)
    assert_same(got, expected, state)


@pytest.mark.parametrize("state", [pytest.param("bfloat16", marks=pytest.mark.slow), "everything"])
def test_nor_in_a_model_that_was_loaded_in_it(sdxl_folder, state):
    expected = TextToImage.from_pretrained(sdxl_folder, dtype=torch.float16)
    with STATES[state]():
        pipe = TextToImage.from_pretrained(sdxl_folder, dtype=torch.float16)
    for got, tensor in zip(all_tensors(pipe), all_tensors(expected), strict=True):
        assert torch.equal(got, tensor) and got.dtype == tensor.dtype
    assert next(pipe.unet.parameters()).requires_grad
    assert not next(pipe.unet.parameters()).is_inference()
    assert torch.equal(paint(pipe, "unipc").latents, paint(expected, "unipc").latents)
