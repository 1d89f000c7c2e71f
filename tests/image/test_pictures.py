"""Pictures from outside: what is damaged is no other picture."""

from __future__ import annotations

import io
import random
import zlib
from pathlib import Path

import pytest
from PIL import Image

from sdcore.errors import FileError
from sdcore.image.pictures import open_picture


def png(side: int = 24, *, parts: int = 1) -> bytes:
    """A PNG of noise, its pixels in several chunks."""
    image = Image.frombytes("RGB", (side, side), random.Random(0).randbytes(3 * side * side))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    whole = buffer.getvalue()
    start, end = whole.index(b"IDAT") + 4, whole.rindex(b"IEND") - 8
    step = -(-(end - start) // parts)
    chunks = [whole[place : min(place + step, end)] for place in range(start, end, step)]
    body = b"".join(chunk(b"IDAT", each) for each in chunks)
    return whole[: start - 8] + body + whole[end + 4 :]


def chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


@pytest.mark.parametrize("parts", [1, 5])
def test_pixels_are_those_of_their_checksums(tmp_path: Path, parts: int) -> None:
    """Pillow stops where the last row is full, before it has seen the checksum of the stream."""
    sound, path = png(parts=parts), tmp_path / "picture.png"
    path.write_bytes(sound)
    pixels = open_picture(path).tobytes()
    first, last = sound.index(b"IDAT") + 4, sound.rindex(b"IEND") - 8
    for place in random.Random(1).sample(range(first, last), 60):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 255]) + sound[place + 1 :])
        with pytest.raises(FileError):
            open_picture(path)
    path.write_bytes(sound[: sound.rindex(b"IEND") - 4])  # the end mark is gone alone
    assert open_picture(path).tobytes() == pixels
