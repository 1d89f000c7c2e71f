"""Teach the model your pictures with a LoRA, and paint with it: python fine_tune_lora.py 250"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw

from sdcore import FinetuneSettings, TextToImage, apply_loras, finetune, read_lora

# Your pictures: a folder, and beside each a text file that says what is on it.
folder = Path("my_pictures")
folder.mkdir(exist_ok=True)
for number, color in enumerate(("red", "green", "blue", "orange")):
    picture = Image.new("RGB", (128, 128), "white")
    ImageDraw.Draw(picture).regular_polygon((64, 64, 44), 6, fill=color, outline="black")
    picture.save(folder / f"{number}.png")
    (folder / f"{number}.txt").write_text(f"a {color} star in my style")

settings = FinetuneSettings.model_validate(
    {
        "data": str(folder),
        "run": {"folder": "run", "steps": int(sys.argv[1]), "batch_size": 2, "sample_every": 0},
        "validation": {"images": 0},
    }
)
written = finetune(settings)  # the same call goes on where a run was stopped
lora = next(path for path in written if path.suffix == ".safetensors")
print("written:", lora)

pipe = TextToImage.embedded()
with_lora = apply_loras(pipe, [(read_lora(lora), 1.0)])  # `pipe` stays as it is
for name, model in (("without", pipe), ("with", with_lora)):
    model("a red star in my style", seed=1, steps=8).images[0].save(f"{name}.png")
