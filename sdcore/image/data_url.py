"""Pictures as part of an HTML page."""

from __future__ import annotations

import base64
import io

from PIL import Image


def data_url(picture: Image.Image, *, lossless: bool = False, quality: int = 88) -> str:
    """A picture as a data URL, of JPEG or PNG."""
    file = io.BytesIO()
    kind = "png" if lossless else "jpeg"
    picture.convert("RGB").save(file, format=kind, quality=quality, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def resized(picture: Image.Image, longest: int) -> Image.Image:
    """An RGB picture whose longer side is so many pixels."""
    scale = longest / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
