"""A map laid over a picture, for eyes.

Shapes: h w grid of the map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdcore.torch_state import with_own_torch_state

if TYPE_CHECKING:
    from PIL.Image import Image

# From least to most; even in lightness, so it can be read in grey and by the colour-blind.
_STOPS = ((0.0, 0.0, 0.3), (0.5, 0.0, 0.6), (1.0, 0.2, 0.1), (1.0, 0.8, 0.1), (1.0, 1.0, 0.9))


@with_own_torch_state
def lay_over(picture: Image, heat: Tensor, strength: float = 0.6) -> Image:
    """A picture with a map over it, from dark blue (its least) over red to white (its most).

    Args:
        heat: (h, w), any size and range; scaled to the picture.
        strength: 0 shows the picture alone, 1 the map alone.
    """
    from PIL import Image as images

    levels = (heat_colors(heat.detach().float().cpu()) * 255).round().byte().numpy()
    layer = images.fromarray(levels).resize(picture.size, images.Resampling.BICUBIC)
    return images.blend(picture.convert("RGB"), layer, strength)


def heat_colors(heat: Tensor) -> Tensor:
    """(h, w) of any range to colours (h, w, 3) in 0 to 1."""
    low, high = heat.min(), heat.max()
    x = (heat - low) / (high - low).clamp(min=1e-12) * (len(_STOPS) - 1)
    below = x.floor().clamp(max=len(_STOPS) - 2).long()
    stops = torch.tensor(_STOPS)
    return torch.lerp(stops[below], stops[below + 1], (x - below)[..., None])
