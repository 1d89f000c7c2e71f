"""Every picture of a measurement at a glance, with its prompt and what the judge saw."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from bench.judge import Reading
from bench.prompts import Prompt, english
from bench.verdict import halves, verdict


def contact_sheet(
    prompts: Sequence[Prompt],
    images: Sequence[Image.Image],
    readings: Sequence[Reading],
    columns: int = 10,
) -> Image.Image:
    """Every picture with its prompt and what the judge read; green where all of it is right.

    The font has no Chinese: such a prompt is told in English.
    """
    width, picture, height = 150, 128, 202
    rows = math.ceil(len(prompts) / columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=10)
    for i, (prompt, image, reading) in enumerate(zip(prompts, images, readings, strict=True)):
        x, y = i % columns * width + 4, i // columns * height + 4
        sheet.paste(image.resize((picture, picture), Image.Resampling.NEAREST), (x, y))
        text = prompt.text
        if prompt.language == "Chinese":
            text = f"(in Chinese) {english(prompt, prompt.concepts)}"
        draw.text((x, y + picture + 2), textwrap.fill(text, 28), "black", font, spacing=1)
        names = [reading.concept]
        if prompt.relation:
            names = [reading.halves[half] for half in halves(prompt.relation)]
        color = "green" if all(verdict(prompt, reading).values()) else "red"
        draw.text((x, y + picture + 52), textwrap.shorten(", ".join(names), 28), color, font)
    return sheet
