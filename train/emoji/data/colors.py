"""Colours of drawings: which one a drawing has, by its pixels, and the same drawing in another.

A colour word covers a region of hue, saturation and value; a thing has the colour that most of its
pixels have. Recoloured, those pixels take the other colour and keep their light and shade.
"""

from __future__ import annotations

import numpy as np

COLORS = {  # name -> the colour that recoloured drawings take
    "red": (222, 48, 48),
    "orange": (245, 136, 36),
    "yellow": (250, 205, 45),
    "green": (62, 165, 72),
    "blue": (48, 112, 222),
    "purple": (142, 80, 200),
    "pink": (246, 130, 178),
    "brown": (134, 84, 48),
    "black": (42, 42, 46),
    "white": (246, 246, 246),
    "gray": (150, 150, 154),
}
_NAMES = list(COLORS)
_HUES = (  # up to this hue, in degrees -> colour of strong pixels
    (14, "red"),
    (41, "orange"),
    (68, "yellow"),
    (168, "green"),
    (252, "blue"),
    (300, "purple"),
    (342, "pink"),
    (361, "red"),
)
_NEAR = 26.0  # degrees of hue by which pixels of one colour may differ from its middle


def name_pixels(rgb: np.ndarray) -> np.ndarray:
    """Index into `COLORS` for each pixel of (..., 3), 0-255."""
    hue, saturation, value = _hsv(rgb)
    found = np.empty(hue.shape, np.int64)
    for upper, name in reversed(_HUES):
        found[hue < upper] = _NAMES.index(name)
    warm = (hue < 45) | (hue > 345)
    pale = ((hue > 330) | (hue < 14)) & (value > 0.8) & (saturation < 0.55)
    found[pale] = _NAMES.index("pink")
    found[warm & (value < 0.68) & ~((saturation > 0.7) & (hue < 8))] = _NAMES.index("brown")
    found[(hue > 8) & (hue < 40) & (value < 0.8) & (saturation < 0.6)] = _NAMES.index("brown")
    grey = saturation < 0.16
    found[grey] = _NAMES.index("gray")
    found[grey & (value > 0.86)] = _NAMES.index("white")
    found[(value < 0.28) | (grey & (value < 0.34))] = _NAMES.index("black")
    return found


def main_color(rgb: np.ndarray, weight: np.ndarray) -> str:
    """The colour that most of the pixels (..., 3), 0-255, have, counted by `weight` (...)."""
    counts = np.bincount(name_pixels(rgb).ravel(), weight.ravel(), len(_NAMES))
    return _NAMES[int(counts.argmax())]


def recolor(picture: np.ndarray, color: str) -> np.ndarray:
    """A drawing (S, S, 4), uint8, straight alpha, whose main colour has become `color`."""
    rgb, alpha = picture[..., :3].astype(np.float32), picture[..., 3] / 255.0
    names = name_pixels(rgb)
    main = int(np.bincount(names.ravel(), alpha.ravel(), len(_NAMES)).argmax())
    inside = (names == main) & (alpha > 0.5)
    if not inside.any():
        return picture
    chosen = names == main
    hue, saturation, _ = _hsv(rgb)
    if _NAMES[main] not in ("black", "white", "gray"):
        middle = np.median(hue[inside])
        away = np.abs((hue - middle + 180) % 360 - 180)
        chosen |= (away < _NEAR) & (saturation > 0.16)  # its shades, which may have other names
    light = rgb @ np.array([0.299, 0.587, 0.114], np.float32)
    ratio = (light / max(float(np.median(light[inside])), 1.0))[..., None]
    target = np.array(COLORS[color], np.float32)
    darker = target * np.clip(ratio, 0.6, 1)
    lighter = (255 - target) * np.clip((ratio - 1) * 0.5, 0, 0.3)
    painted = np.where(chosen[..., None], darker + lighter, rgb)
    whole = np.concatenate([painted, picture[..., 3:]], axis=-1)
    return whole.round().clip(0, 255).astype(np.uint8)


def _hsv(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hue in degrees, saturation and value 0-1."""
    scaled = rgb.astype(np.float32) / 255
    high, low = scaled.max(-1), scaled.min(-1)
    spread = np.maximum(high - low, 1e-6)
    red, green, blue = np.moveaxis(scaled, -1, 0)
    hue = np.where(
        high == red,
        (green - blue) / spread % 6,
        np.where(high == green, (blue - red) / spread + 2, (red - green) / spread + 4),
    )
    return hue * 60, (high - low) / np.maximum(high, 1e-6), high
