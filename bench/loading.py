"""Loading a model of Stable Diffusion 1.5's size: peak memory and time, beside diffusers.

    python -m bench.loading              float32 and float16 files, each loaded as both
    python -m bench.loading --rounds 5   more runs; sdcore and diffusers take turns

Nothing is downloaded: UNet, text encoder and autoencoder of the published sizes are written with
random weights into a temporary folder (4.3 GB, then 2.1 GB), which is removed at the end. Every run
is a process of its own, after one that is not counted, so the files are in the system's cache.

peak:  the most memory that the process held while loading, less what it held before, as a multiple
       of the weights' size in memory. Pages of mapped files count, as the system counts them.
load:  seconds until the models are there.
ready: seconds until every weight has been read once more. diffusers may leave weights in the
       mapped file, to be read at the first use.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.command import make_parser
from bench.parity import SD15, VIT_L

DTYPES = ("float32", "float16")
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "sample_size": 512,
}


def write_model(folder: Path, dtype: str) -> None:
    """The three networks, each in its folder, with random weights."""
    import torch

    from sdcore import Autoencoder, CLIPTextEncoder, UNet

    parts = {"unet": (UNet, SD15), "text_encoder": (CLIPTextEncoder, VIT_L)}
    for name, (cls, settings) in {**parts, "vae": (Autoencoder, VAE)}.items():
        with torch.device("meta"):
            model: Any = cls(cls.Config.from_dict(settings))
        model = model.to(getattr(torch, dtype)).to_empty(device="cpu")
        for parameter in model.parameters():
            parameter.data.uniform_(-0.05, 0.05)
        model.save_pretrained(folder / name)


def networks(program: str, dtype: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Folder -> class, and how `from_pretrained` is told the type of the weights."""
    if program == "sdcore":
        from sdcore import Autoencoder, CLIPTextEncoder, UNet

        return {"unet": UNet, "text_encoder": CLIPTextEncoder, "vae": Autoencoder}, {"dtype": dtype}
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextModel

    classes = {"unet": UNet2DConditionModel, "text_encoder": CLIPTextModel, "vae": AutoencoderKL}
    return classes, {"torch_dtype": dtype, "use_safetensors": True}


def memory(name: str) -> int:
    """A line of this process's memory in bytes: VmRSS now, VmHWM at its highest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


def measure(program: str, folder: Path, dtype_name: str) -> dict[str, float]:
    """One run, in a process of its own."""
    import torch

    classes, how = networks(program, getattr(torch, dtype_name))
    tiny = torch.nn.Linear(2, 2)  # the first call of torch's kernels is not loading's
    sum(float(parameter.sum()) for parameter in tiny.parameters())
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
    before, start = memory("VmRSS"), time.perf_counter()
    models = [cls.from_pretrained(folder / name, **how) for name, cls in classes.items()]
    loaded = time.perf_counter()
    peak = memory("VmHWM") - before
    weights = [p for model in models for p in model.parameters()]
    assert all(p.dtype == getattr(torch, dtype_name) for p in weights)
    assert sum(float(p.sum()) for p in weights) != 0
    size = sum(p.nbytes for p in weights)
    ready = time.perf_counter()
    return {"peak": peak / size, "load": loaded - start, "ready": ready - start, "size": size}


def compare(folder: Path, stored: str, wanted: str, rounds: int) -> None:
    """A row of the table: medians of runs that take turns, the first of each not counted."""
    runs: dict[str, list[dict[str, float]]] = {"sdcore": [], "diffusers": []}
    for _ in range(rounds + 1):
        for program, results in runs.items():
            command = [sys.executable, "-m", "bench.loading", "--measure", program]
            done = subprocess.run(
                [*command, str(folder), wanted], capture_output=True, text=True, check=True
            )
            results.append(json.loads(done.stdout.splitlines()[-1]))
    cells = [f"{stored} → {wanted}", f"{runs['sdcore'][0]['size'] / 1e9:.2f} GB"]
    for key, form in (("peak", "{:.2f} x"), ("load", "{:.1f} s"), ("ready", "{:.1f} s")):
        for results in runs.values():
            cells.append(form.format(statistics.median(run[key] for run in results[1:])))
    print(f"| {' | '.join(cells)} |", flush=True)


HEADER = """\
| files → memory | weights | peak, sdcore | peak, diffusers | load, sdcore | load, diffusers \
| ready, sdcore | ready, diffusers |
|---|---|---|---|---|---|---|---|"""


def main() -> int:
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)  # program, folder, type
    arguments = parser.parse_args()
    if arguments.measure:
        program, folder, dtype = arguments.measure
        print(json.dumps(measure(program, Path(folder), dtype)))
        return 0
    print(HEADER, flush=True)
    for stored in DTYPES:
        with tempfile.TemporaryDirectory() as folder:
            command = "import sys, pathlib; from bench.loading import write_model as write; "
            command += "write(pathlib.Path(sys.argv[1]), sys.argv[2])"
            subprocess.run([sys.executable, "-c", command, folder, stored], check=True)
            for wanted in DTYPES:
                compare(Path(folder), stored, wanted, arguments.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
