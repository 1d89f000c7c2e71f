"""The first hour of fine-tuning, command by command, with the embedded model.

python train/first_hour.py runs/first_hour          about two minutes on two cores

paint → train → Ctrl-C → the same command again → paint with the LoRA → open it in diffusers
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STEPS = 60
PROMPT = "a fox in moss style on a white background"
THINGS = ("fox", "cat", "owl", "star")


def main(place: Path) -> None:
    pictures, run = place / "pictures", place / "run"
    print("1. four pictures of a style: neon drawings, called moss")
    for seed, thing in enumerate(THINGS):
        picture = pictures / f"{thing}.png"
        text = f"a {thing} in neon style on a dark blue background"
        paint([text, "--seed", str(seed), "--output", str(picture)])
        caption = f"a {thing} in moss style on a dark blue background"
        picture.with_suffix(".txt").write_text(caption, "utf-8")
    train = ["train/finetune.py", f"data={pictures}", "data.trigger=moss", f"run.folder={run}"]
    train += [f"run.steps={STEPS}", "run.batch_size=4", "run.log_every=1", "run.sample_every=30"]

    print("2. train, and press Ctrl-C on the way")
    process = subprocess.Popen([sys.executable, *train], cwd=ROOT)
    metrics = run / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and len(_lines(metrics)) > STEPS // 4):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    code = process.wait()
    assert code == 130, f"it ended with {code}"
    done = len(_lines(metrics))

    print(f"3. the same command goes on after {done} of {STEPS} steps")
    command(train)
    assert len(_lines(metrics)) == STEPS

    print("4. paint with the LoRA, and without")
    lora = run / "run.safetensors"
    paint([PROMPT, "--seed", "1", "--output", str(place / "without.png")])
    paint([PROMPT, "--seed", "1", "--lora", str(lora), "--output", str(place / "with.png")])

    print("5. diffusers opens it")
    open_in_diffusers(lora, place / "diffusers.png")
    print(f"done: {place}/with.png, {place}/diffusers.png, {run}/report.html")


def open_in_diffusers(lora: Path, picture: Path) -> None:
    """Paint with the LoRA in diffusers' own pipeline."""
    import torch
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import (
        StableDiffusionPipeline,
    )

    from sdcore.pipeline.text_to_image import EMBEDDED

    pipe: Any = StableDiffusionPipeline.from_pretrained(EMBEDDED, torch_dtype=torch.float32)
    pipe.load_lora_weights(str(lora))
    draw = torch.Generator().manual_seed(1)
    image = pipe(PROMPT, num_inference_steps=12, guidance_scale=2.0, generator=draw).images[0]
    image.save(picture)


def paint(arguments: list[str]) -> None:
    command(["sample/text_to_image.py", *arguments])


def command(arguments: list[str]) -> None:
    """Run a script of this project; it has to succeed."""
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True)


def _lines(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines() if path.exists() else []


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/first_hour").resolve())
