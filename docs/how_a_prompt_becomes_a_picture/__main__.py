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
from docs.how_a_prompt_becomes_a_picture.book import PICTURES, Book
from sdcore import TextToImage


def main() -> int:
    began = time.monotonic()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    PICTURES.mkdir(exist_ok=True)
    book, pipe = Book(), TextToImage.embedded()
    reading.recall(book, pipe)
    reading.attention_maps(book, pipe)
    reading.positions(book, pipe)
    run = painting.paint(pipe)
    unet.rows_of_attention(book, run)
    unet.spatial_transformer(book, pipe, run)
    unet.maps_of_the_unet(book, pipe, run)
    painting.steps_and_guidance(book, pipe, run)
    painting.heatmaps(book, run)
    painting.steering(book, pipe)
    broken = book.finish()
    print(f"{len(book.figures)} figures, {len(book.claims)} claims, {len(broken)} of them untrue")
    print(f"{time.monotonic() - began:.0f} s")
    for sentence in broken:
        print(f"not true of this model: {sentence}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
