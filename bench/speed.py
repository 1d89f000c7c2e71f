"""How fast is each part, beside diffusers, torch.compile and OpenVINO, on the machine at hand?

    python -m bench.speed                         all parts, beside diffusers
    python -m bench.speed --only embedded cold    some of them
    python -m bench.speed --peers compile openvino --only unet
    python -m bench.speed --check results.json    ratios against those of an earlier run

Every part runs in a process of its own. In it the engines take turns, with the same random weights,
inputs, threads and allocator, each in its own best layout and precision; what is printed are
medians, and the median of the ratios of turns to the first engine. The ceiling is what a matrix
product of 2048 x 2048 reaches in the same turns; "of limit" is the share of it that an engine's
multiplications reach. "error" is the relative distance to diffusers in float32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.command import main, make_parser

Engine = Callable[[], Any]
PEERS = ("compile", "openvino")


def parser() -> argparse.ArgumentParser:
    made = make_parser(__doc__, rounds=5, threads=0)
    made.add_argument("--only", nargs="+", choices=tuple(PARTS), default=list(PARTS))
    made.add_argument("--peers", nargs="+", choices=PEERS, default=[], help="beside diffusers")
    made.add_argument("--json", type=Path, metavar="FILE", help="where the results are written")
    made.add_argument("--check", type=Path, metavar="FILE", help="results to hold the ratios to")
    made.add_argument("--part", choices=tuple(PARTS), help=argparse.SUPPRESS)  # in this process
    return made


def run(arguments: argparse.Namespace) -> None:
    if arguments.part:
        print(json.dumps(PARTS[arguments.part](arguments)))
        return
    results: dict[str, Any] = {}
    for part in arguments.only:
        results[part] = _in_a_process(part, arguments)
        print(_table(part, results[part]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    if arguments.check:
        sys.exit(_check(results, json.loads(arguments.check.read_text())))


def _in_a_process(part: str, arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.speed", "--part", part]
    command += ["--rounds", str(arguments.rounds), "--threads", str(arguments.threads)]
    command += ["--peers", *arguments.peers] if arguments.peers else []
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{part}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# --- measuring -----------------------------------------------------------------------------------


def _turns(engines: dict[str, Engine], rounds: int, flops: float = 0, warm: int = 1) -> Any:
    """Seconds of each engine in each turn, and the ceiling in GFLOP/s.

    Args:
        warm: turns that are not counted.
    """
    import torch

    matrix = torch.ones(2048, 2048)
    halves = matrix.to(torch.bfloat16)
    for _ in range(warm):
        for engine in engines.values():
            engine()
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    ceiling = {"fp32": 0.0, "bf16": 0.0}
    for _ in range(rounds):
        for name, a in (("fp32", matrix), ("bf16", halves)):
            took = _seconds(lambda a=a: a @ a)
            ceiling[name] = max(ceiling[name], 2 * 2048**3 / took / 1e9)
        for name, engine in engines.items():
            seconds[name].append(_seconds(engine))
    return {"seconds": seconds, "ceiling": ceiling, "gflop": flops / 1e9}


def _seconds(work: Engine) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _set_threads(arguments: argparse.Namespace) -> None:
    import torch

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)


def _counted(work: Engine) -> tuple[Any, float]:
    """What an engine gives, and the operations of its multiplications."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        found = work()
    return found, counter.get_total_flops()


def _distance(found: Any, expected: Any) -> float:
    return float((found.float() - expected).norm() / expected.norm())


# --- the parts -----------------------------------------------------------------------------------


def unet_step(arguments: argparse.Namespace) -> dict[str, Any]:
    """A step of SD 1.5's UNet: batch 2, latents of 64 x 64, 77 tokens."""
    from bench.parity import SD15

    return _unet_step(arguments, {**SD15, "sample_size": 64}, side=64, text=768)


def embedded_step(arguments: argparse.Namespace) -> dict[str, Any]:
    """A step of the embedded model's UNet, batch 2."""
    from sdcore.pipeline.text_to_image import EMBEDDED

    settings = json.loads((Path(EMBEDDED) / "unet" / "config.json").read_text())
    side, text = settings["sample_size"], settings["cross_attention_dim"]
    known = {key: value for key, value in settings.items() if not key.startswith("_")}
    return _unet_step(arguments, known, side=side, text=text, warm=3)


def _unet_step(
    arguments: argparse.Namespace, settings: dict[str, Any], *, side: int, text: int, warm: int = 0
) -> dict[str, Any]:
    _set_threads(arguments)
    import torch

    from bench.parity import unet_pair
    from sdcore.machine import bfloat16_gain

    torch.manual_seed(0)
    theirs, ours = unet_pair(settings)  # which share their weights
    x, time_, read = torch.randn(2, 4, side, side), torch.tensor(500), torch.randn(2, 77, text)
    engines: dict[str, Engine] = {
        "diffusers fp32": lambda: theirs(x, time_, read, return_dict=False)[0],
        "sdcore fp32, torch's attention": lambda: ours(x, time_, read),
    }
    expected, flops = _counted(engines["diffusers fp32"])
    _add_best(engines, ours, (x, time_, read), bfloat16_gain() > 1.4)
    if bfloat16_gain() > 1.4:
        half = _copy(theirs).to(torch.bfloat16, memory_format=torch.channels_last)
        args = (x.bfloat16().to(memory_format=torch.channels_last), time_, read.bfloat16())
        engines["diffusers bf16 channels_last"] = lambda: half(*args, return_dict=False)[0]
    if "compile" in arguments.peers:
        compiled = torch.compile(theirs, dynamic=False)
        engines["torch.compile fp32"] = lambda: compiled(x, time_, read, return_dict=False)[0]
    if "openvino" in arguments.peers:
        engines["OpenVINO"] = _openvino(theirs, (x, time_, read))
    found = {"error": {name: _distance(_run(e), expected) for name, e in engines.items()}}
    return found | _turns(engines, arguments.rounds, flops, warm)


def _run(engine: Engine) -> Any:
    import torch

    return torch.as_tensor(engine())


def _copy(model: Any) -> Any:
    import copy

    return copy.deepcopy(model)


def _add_best(engines: dict[str, Engine], ours: Any, given: tuple[Any, ...], half: bool) -> None:
    """sdcore as its commands run it: the precision, attention, convolution that they choose."""
    import torch

    from sdcore.attention_choice import backend_of, with_attention
    from sdcore.convolution import convolution_of, with_convolution

    x, time_, read = given
    if half:
        ours = _copy(ours).to(torch.bfloat16)
        x, read = x.bfloat16(), read.bfloat16()
    model = with_convolution(with_attention(ours, "auto"), "auto")
    chosen = ("bf16" if half else "fp32", backend_of(model), convolution_of(model))
    name = f"sdcore as commands run it ({', '.join(chosen)})"
    engines[name] = lambda: model(x, time_, read)


def _openvino(model: Any, given: tuple[Any, ...]) -> Engine:
    import openvino  # pyright: ignore[reportMissingImports]
    import torch

    class Plain(torch.nn.Module):
        """diffusers' UNet with a tensor as its result."""

        def __init__(self) -> None:
            super().__init__()
            self.unet = model

        def forward(self, x: Any, time_: Any, text: Any) -> Any:
            return self.unet(x, time_, text, return_dict=False)[0]

    compiled = openvino.compile_model(openvino.convert_model(Plain(), example_input=given), "CPU")
    arrays = [x.numpy() for x in given]
    return lambda: compiled(arrays)[0]


def decode(arguments: argparse.Namespace) -> dict[str, Any]:
    """An autoencoder of SD's size: latents of 32 x 32 to 256 x 256 pixels."""
    _set_threads(arguments)
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    from bench.loading import VAE
    from sdcore import Autoencoder
    from sdcore.convolution import with_convolution

    torch.manual_seed(0)
    settings: dict[str, Any] = {**VAE, "latent_channels": 4}
    theirs = AutoencoderKL(**settings).eval()
    ours = Autoencoder(Autoencoder.Config.from_dict(settings)).eval()
    ours.load_state_dict(theirs.state_dict())
    latents = torch.randn(1, 4, 32, 32)
    scale = theirs.config["scaling_factor"]
    engines: dict[str, Engine] = {
        "diffusers fp32": lambda: theirs.decode(latents / scale, return_dict=False)[0],
        "sdcore fp32, torch's convolutions": lambda: ours.decode(latents),
    }
    chosen = with_convolution(ours, "auto")
    engines["sdcore as commands run it"] = lambda: chosen.decode(latents)
    expected, flops = _counted(engines["diffusers fp32"])
    found = {"error": {name: _distance(engine(), expected) for name, engine in engines.items()}}
    return found | _turns(engines, arguments.rounds, flops, warm=0)


def embedded(arguments: argparse.Namespace) -> dict[str, Any]:
    """Whole pictures by the embedded model: one, and eight at once."""
    return _pictures(arguments, 1)


def embedded_8(arguments: argparse.Namespace) -> dict[str, Any]:
    return _pictures(arguments, 8)


def _pictures(arguments: argparse.Namespace, number: int) -> dict[str, Any]:
    _set_threads(arguments)
    import torch
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import (
        StableDiffusionPipeline,
    )

    from sdcore import TextToImage
    from sdcore.pipeline.text_to_image import EMBEDDED

    ours = TextToImage.embedded()
    theirs = StableDiffusionPipeline.from_pretrained(
        str(EMBEDDED), dtype=torch.float32, safety_checker=None
    )
    theirs.set_progress_bar_config(disable=True)
    prompts = ["a red apple in flat style on a light blue background"] * number
    guidance = ours.defaults.guidance_scale
    how: dict[str, Any] = {"num_inference_steps": 25, "guidance_scale": guidance}

    def with_diffusers() -> Any:
        return theirs(prompts, generator=torch.Generator().manual_seed(1), **how)

    engines = {
        "diffusers fp32": with_diffusers,
        "sdcore, torch's convolutions": lambda: ours(prompts, seed=1, steps=25, progress=False),
    }
    chosen = ours.with_convolution("auto")
    engines["sdcore as commands run it"] = lambda: chosen(prompts, seed=1, steps=25, progress=False)
    return _turns(engines, arguments.rounds)


def cold(arguments: argparse.Namespace) -> dict[str, Any]:
    """From nothing to the first picture of the embedded model in a file, each in a new process."""
    from sdcore.pipeline.text_to_image import EMBEDDED

    prompt = "a red apple in flat style on a light blue background"
    script = f"""
import torch
from diffusers import StableDiffusionPipeline
how = dict(dtype=torch.float32, safety_checker=None)
pipe = StableDiffusionPipeline.from_pretrained({str(EMBEDDED)!r}, **how)
pipe({prompt!r}, num_inference_steps=25).images[0].save("picture.png")
"""
    sample = Path(__file__).parents[1] / "sample" / "text_to_image.py"
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            "diffusers": [sys.executable, "-c", script],
            "sdcore": [sys.executable, str(sample), prompt, "--steps", "25"],
            "import sdcore": [sys.executable, "-c", "import sdcore"],
            "sdcore paint --help": [sys.executable, str(sample), "--help"],
        }

        def started(command: list[str]) -> Engine:
            return lambda: subprocess.run(command, cwd=folder, check=True, capture_output=True)

        engines = {name: started(command) for name, command in commands.items()}
        return _turns(engines, arguments.rounds)


def _of_controls(name: str) -> Callable[[argparse.Namespace], dict[str, Any]]:
    """Whole pictures of the embedded model with a control on, see `bench.controls_speed`."""

    def part(arguments: argparse.Namespace) -> dict[str, Any]:
        _set_threads(arguments)
        from bench import controls_speed

        return _turns(getattr(controls_speed, name)(), arguments.rounds)

    return part


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "embedded_step": embedded_step,
    "embedded": embedded,
    "embedded_8": embedded_8,
    "cold": cold,
    "controls": _of_controls("controls"),
    "controls_edit": _of_controls("edit"),
    "controls_kept_maps": _of_controls("kept_maps"),
    "decode": decode,
    "unet": unet_step,
}


# --- what is printed -----------------------------------------------------------------------------


def ratio(found: dict[str, Any], name: str) -> float:
    """How many times as fast as the first engine: the median over turns."""
    first, *_ = found["seconds"].values()
    return statistics.median(a / b for a, b in zip(first, found["seconds"][name], strict=True))


def _table(part: str, found: dict[str, Any]) -> str:
    head = f"| {part} | seconds | x the first | of limit | error |\n|---|---|---|---|---|"
    rows = [head]
    for name, times in found["seconds"].items():
        seconds = statistics.median(times)
        error = found.get("error", {}).get(name)
        limit = found["ceiling"]["bf16" if "bf16" in name else "fp32"]
        share = found["gflop"] / seconds / limit
        cells = [name, f"{seconds:.3f}", f"{ratio(found, name):.2f}"]
        cells += [f"{share:.0%}" if share else "-", "-" if error is None else f"{error:.1e}"]
        rows.append(f"| {' | '.join(cells)} |")
    peak = (
        f"ceiling {found['ceiling']['fp32']:.0f} GFLOP/s fp32, {found['ceiling']['bf16']:.0f} bf16"
    )
    return "\n".join([*rows, "", peak, ""])


def _check(results: dict[str, Any], stored: dict[str, Any]) -> int:
    """1 where an engine of sdcore is more than 10 % slower, to the first, than it was."""
    slower = [
        f"{part}, {name}: {ratio(found, name):.2f} x, was {ratio(stored[part], name):.2f} x"
        for part, found in results.items()
        for name in found["seconds"]
        if name in stored.get(part, {}).get("seconds", {})
        and ratio(found, name) < 0.9 * ratio(stored[part], name)
    ]
    print("\n".join(slower) or "no ratio is more than 10 % below the stored one")
    return int(bool(slower))


if __name__ == "__main__":
    main(parser(), run)
