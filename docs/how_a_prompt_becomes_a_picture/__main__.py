"""Remake every picture and every figure of these pages: a few minutes on a CPU.

    python -m docs.how_a_prompt_becomes_a_picture

Everything comes from the embedded model, with one thread, so that the same weights give the same
pictures. Ends with 1 and names the sentence if the model is no longer as the pages say.
"""

from __future__ import annotations

import sys
import time

import torch

from docs.how_a_prompt_becomes_a_picture import painting, reading, unet
from docs.how_a_prompt_becomes_a_picture.guide import PICTURES, Guide
from sdcore import TextToImage


def main() -> int:
    began = time.monotonic()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    PICTURES.mkdir(exist_ok=True)
    guide, pipe = Guide(), TextToImage.embedded()
    reading.recall(guide, pipe)
    reading.attention_maps(guide, pipe)
    reading.positions(guide, pipe)
    run = painting.paint(pipe)
    unet.rows_of_attention(guide, run)
    unet.spatial_transformer(guide, pipe, run)
    unet.maps_of_the_unet(guide, pipe, run)
    painting.steps_and_guidance(guide, pipe, run)
    painting.heatmaps(guide, run)
    painting.steering(guide, pipe)
    broken = guide.finish()
    print(f"{len(guide.figures)} figures, {len(guide.claims)} claims, {len(broken)} of them untrue")
    print(f"{time.monotonic() - began:.0f} s")
    for sentence in broken:
        print(f"not true of this model: {sentence}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
