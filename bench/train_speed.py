"""How fast does fine-tuning go, and how much memory does it take, beside diffusers and PEFT?

    python -m bench.train_speed                              the embedded model, LoRA and full
    python -m bench.train_speed --layout sd15 --side 256 --steps 3

The same random weights, latents, texts, times and noises are trained on by `sdcore.training` and by
a loop of the steps of diffusers' script (train_text_to_image_lora.py: its UNet, PEFT, text encoded
at each step, AdamW, clipping). Each way runs in a process of its own, in turn, so that peak memory
is its own; losses must agree. Prints a markdown table: medians over rounds, and ratios.
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

from bench.command import main, make_parser

WAYS = ("sdcore", "diffusers")
METHODS = ("lora", "full")
RANK, RATE = 8, 1e-4
_WARM = 2  # steps that are not counted


def parser() -> argparse.ArgumentParser:
    made = make_parser(__doc__, steps=8, rounds=3, threads=1)
    made.add_argument("--layout", choices=("embedded", "sd15"), default="embedded")
    made.add_argument("--side", type=int, default=0, help="pixels (default: the model's)")
    made.add_argument("--batch", type=int, default=0, help="pictures (default: 8, or 1 for sd15)")
    made.add_argument("--precision", choices=("no", "bf16"), default="no")
    made.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # way, method, folder
    return made


def run(arguments: argparse.Namespace) -> None:
    if arguments.one:
        way, method, folder = arguments.one
        print(json.dumps(measure(way, method, Path(folder), arguments)))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = _model(arguments.layout, Path(place))
        rows = [row for method in METHODS for row in _compare(method, folder, arguments)]
    head = "| method | way | images/s | ratio | peak memory, GB | ratio | last loss |"
    print("\n".join([head, "|--|--|--|--|--|--|--|", *rows]))


def _compare(method: str, folder: Path, arguments: argparse.Namespace) -> list[str]:
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(arguments.rounds):
        for way in WAYS:
            found[way].append(_in_a_process(way, method, folder, arguments))
    speed = {way: statistics.median(one["speed"] for one in found[way]) for way in WAYS}
    memory = {way: statistics.median(one["memory"] for one in found[way]) for way in WAYS}
    losses = [found[way][0]["losses"] for way in WAYS]
    apart = max(abs(a - b) / b for a, b in zip(*losses, strict=True))
    assert apart < 2e-2, f"the losses of {method} differ by {apart:.1%}: {losses}"
    return [
        f"| {method} | {way} | {speed[way]:.2f} | {speed[way] / speed['diffusers']:.2f} | "
        f"{memory[way] / 1e9:.2f} | {memory[way] / memory['diffusers']:.2f} | "
        f"{found[way][0]['losses'][-1]:.5f} |"
        for way in WAYS
    ]


def _in_a_process(
    way: str, method: str, folder: Path, arguments: argparse.Namespace
) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.train_speed", "--one", way, method, str(folder)]
    for name in ("steps", "threads", "layout", "side", "batch", "precision"):
        command += [f"--{name}", str(getattr(arguments, name))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _model(layout: str, place: Path) -> Path:
    """The folder of the model: the embedded one, or random weights of SD 1.5's size."""
    from sdcore.pipeline.text_to_image import EMBEDDED

    if layout == "embedded":
        return EMBEDDED
    import torch

    from bench.parity import SD15, VIT_L
    from sdcore import (
        Autoencoder,
        CLIPTextConfig,
        CLIPTextEncoder,
        Model,
        UNet,
        UNetConfig,
        make_scheduler,
        save_folder,
    )
    from sdcore.checkpoint.clip_tokenizer import clip_tokenizer
    from sdcore.checkpoint.families import FOLDER
    from sdcore.files.jsonfile import read_json

    torch.manual_seed(0)
    family, folder = FOLDER / "sd1", place / "sd15"
    scheduler = make_scheduler("ddim", read_json(family / "scheduler" / "scheduler_config.json"))
    autoencoder = Autoencoder.Config.from_dict(read_json(family / "vae" / "config.json"))
    model = Model(
        clip_tokenizer(49407),
        CLIPTextEncoder(CLIPTextConfig.from_dict(VIT_L)),
        UNet(UNetConfig.from_dict(SD15)),
        Autoencoder(autoencoder),
        scheduler,
    )
    save_folder(model, folder)
    return folder


def measure(way: str, method: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Images each second, peak memory in bytes, and the losses of a way."""
    import torch

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    batch = arguments.batch or (8 if arguments.layout == "embedded" else 1)
    make = {"sdcore": _sdcore, "diffusers": _diffusers}[way]
    step, device = make(method, folder, batch, arguments)
    losses: list[float] = []
    began = 0.0
    for number in range(_WARM + arguments.steps):
        if number == _WARM:
            began = time.perf_counter()
        losses.append(step(number))
    if device.type == "cuda":
        torch.cuda.synchronize()
    speed = batch * arguments.steps / (time.perf_counter() - began)
    from sdcore.training.run import peak_memory

    return {"speed": speed, "memory": peak_memory(device), "losses": losses}


def _draw(number: int, shape: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """Latents, noise and times of a step, the same for all ways."""
    import torch

    draw = torch.Generator().manual_seed(number)
    latents, noise = (torch.randn(shape, generator=draw) for _ in range(2))
    return latents, noise, torch.randint(0, 1000, shape[:1], generator=draw)


def _captions(batch: int) -> list[str]:
    return [f"a red fox in flat style, picture {i}" for i in range(batch)]


def _sdcore(method: str, folder: Path, batch: int, arguments: argparse.Namespace) -> Any:
    import torch

    from sdcore import TextToImage
    from sdcore.training.finetune_settings import FinetuneSettings
    from sdcore.training.methods import prepare_method, prepare_networks
    from sdcore.training.network import CaptionReader
    from sdcore.training.objective import Objective
    from sdcore.training.run import Run

    place = tempfile.mkdtemp()
    loop = {"folder": place, "steps": 1000, "batch_size": batch, "learning_rate": RATE}
    loop |= {"schedule": "constant", "warmup_steps": 0, "precision": arguments.precision}
    settings = FinetuneSettings.model_validate(
        {"data": "none", "method": method, "lora": {"rank": RANK}, "run": loop}
    )
    ready = prepare_method(settings, TextToImage.from_pretrained(folder))
    prepare_networks(ready, arguments.precision)
    run = Run(settings, settings.run, ready.network)
    objective = Objective(ready.pipe.scheduler.config, device=run.device)
    read = CaptionReader(ready.pipe, ready.network)
    ready.network.train()
    shape = _shape(ready.pipe.unet.config.sample_size, batch, arguments, ready.pipe.unet.config)

    def step(number: int) -> float:
        latents, noise, times = (x.to(run.device) for x in _draw(number, shape))
        noised = objective.add_noise(latents, noise, times)
        with run.autocast():
            text = read(_captions(batch), run.device)
            answer = run.network(noised.latents, noised.times, text)
        loss = objective.weighted_errors(answer, noised).mean()
        run.backward(loss)
        run.update()
        return float(loss)

    torch.manual_seed(0)
    return step, run.device


def _shape(
    sample_size: Any, batch: int, arguments: argparse.Namespace, config: Any
) -> tuple[int, ...]:
    side = arguments.side // 8 if arguments.side and arguments.layout == "sd15" else sample_size
    return batch, config.in_channels, side, side


def _diffusers(method: str, folder: Path, batch: int, arguments: argparse.Namespace) -> Any:
    import torch
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from peft import LoraConfig
    from transformers import CLIPTextModel, CLIPTokenizer

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    unet: Any = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    encoder: Any = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
    tokenizer: Any = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    scheduler: Any = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    unet.float()
    encoder.float()
    encoder.requires_grad_(False)
    half = torch.bfloat16 if arguments.precision == "bf16" else torch.float32
    encoder.to(device, half)
    if method == "lora":
        unet.requires_grad_(False)
        unet.to(device, half)
        unet.add_adapter(
            LoraConfig(
                r=RANK,
                lora_alpha=RANK,
                init_lora_weights="gaussian",
                target_modules=["to_k", "to_q", "to_v", "to_out.0"],
            )
        )
        for parameter in unet.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    else:
        unet.to(device)
    unet.train()
    weights = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    shape = _shape(unet.config.sample_size, batch, arguments, unet.config)

    def step(number: int) -> float:
        latents, noise, times = (x.to(device) for x in _draw(number, shape))
        noisy = scheduler.add_noise(latents, noise, times)
        ids = tokenizer(
            _captions(batch),
            max_length=tokenizer.model_max_length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).input_ids.to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half != torch.float32):
            states = encoder(ids, return_dict=False)[0]
            answer = unet(noisy, times, states, return_dict=False)[0]
        target = noise
        if scheduler.config.prediction_type == "v_prediction":
            target = scheduler.get_velocity(latents, noise, times)
        loss = torch.nn.functional.mse_loss(answer.float(), target.float(), reduction="mean")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        return float(loss)

    return step, device


if __name__ == "__main__":
    main(parser(), run)
