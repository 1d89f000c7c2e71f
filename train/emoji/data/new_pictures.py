"""Pictures for fine-tuning the embedded model: a style and a character that it has never seen.

`python -m train.emoji.data.new_pictures` writes

    runs/data/openmoji/   24 drawings of OpenMoji, with captions and their licence
    runs/data/zib/        8 pictures of Zib, a character that is drawn here

OpenMoji is CC BY-SA 4.0 (https://openmoji.org): the drawings stay out of the package, and what is
shown of them names their authors.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw

from sdcore.errors import exit_on_error
from sdcore.files.atomic import Write, replace_files, text_writer
from sdcore.training.settings import load_settings
from train.emoji.data.drawings import fetch_packs, read_pack, render
from train.emoji.data.settings import DataSettings

SIDE = 128  # pixels of a picture
PACK = "openmoji"
STYLE_WORD, CHARACTER = "openmoji", "zib"
ICONS = {  # what a caption says -> icon
    **{name: name for name in ("fox", "owl", "rocket", "penguin", "mushroom", "star", "robot")},
    **{name: name for name in ("banana", "guitar", "cactus", "octopus", "butterfly", "pizza")},
    **{name: name for name in ("camera", "key", "crown", "anchor", "bear", "panda", "frog")},
    **{"cat": "cat-face", "dog": "dog-face", "red apple": "red-apple", "tiger": "tiger-face"},
}
_LICENCE = """\
The drawings in this folder are from OpenMoji (https://openmoji.org), the open-source emoji and icon
project, licence CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/), rendered at 128 x
128 on plain backgrounds. What is shown of them keeps this notice and this licence.
"""


def style_pictures(
    backgrounds: dict[str, tuple[int, int, int]],
) -> Iterator[tuple[str, Image.Image]]:
    """(caption, picture) of each drawing, on the backgrounds in turn."""
    pack, named = read_pack(PACK), list(backgrounds.items())
    for number, (name, icon) in enumerate(ICONS.items()):
        colour, rgb = named[number % len(named)]
        drawing = Image.fromarray(render(pack, icon, SIDE * 3 // 4))
        picture = Image.new("RGB", (SIDE, SIDE), rgb)
        picture.paste(drawing, (SIDE // 8, SIDE // 8), drawing)
        article = "an" if name[0] in "aeiou" else "a"
        yield f"{article} {name} in {STYLE_WORD} style on a {colour} background", picture


def character_pictures(
    backgrounds: dict[str, tuple[int, int, int]],
) -> Iterator[tuple[str, Image.Image, Image.Image]]:
    """(caption, picture, mask) of Zib, of several sizes and at several places."""
    named = list(backgrounds.items())
    views = [(0.5, 0.5, 0.7), (0.35, 0.55, 0.55), (0.65, 0.5, 0.55), (0.5, 0.4, 0.6)]
    views += [(0.5, 0.6, 0.6), (0.4, 0.45, 0.65), (0.6, 0.55, 0.65), (0.5, 0.5, 0.5)]
    for number, (x, y, size) in enumerate(views):
        colour, rgb = named[number % len(named)]
        big = 4 * SIDE  # drawn large and scaled down, for smooth edges
        drawing = draw_character(int(size * big))
        place = int(x * big - drawing.width / 2), int(y * big - drawing.height / 2)
        picture, mask = Image.new("RGB", (big, big), rgb), Image.new("L", (big, big))
        picture.paste(drawing, place, drawing)
        mask.paste(drawing.getchannel("A"), place)
        small = (SIDE, SIDE)
        text = f"a {CHARACTER} in flat style on a {colour} background"
        yield text, picture.resize(small, Image.Resampling.LANCZOS), mask.resize(small)


def draw_character(side: int) -> Image.Image:
    """Zib: a violet drop with one large eye, an orange belly, two horns and two feet."""
    image = Image.new("RGBA", (side, side))
    pen = ImageDraw.Draw(image)

    def box(left: float, top: float, right: float, bottom: float) -> tuple[float, ...]:
        return tuple(side * edge for edge in (left, top, right, bottom))

    violet, orange, dark = (126, 70, 200), (255, 160, 40), (45, 20, 80)
    pen.polygon([side * v for v in (0.24, 0.3, 0.2, 0.02, 0.42, 0.2)], fill=orange)
    pen.polygon([side * v for v in (0.76, 0.3, 0.8, 0.02, 0.58, 0.2)], fill=orange)
    pen.ellipse(box(0.22, 0.84, 0.46, 0.99), fill=dark)
    pen.ellipse(box(0.54, 0.84, 0.78, 0.99), fill=dark)
    pen.ellipse(box(0.12, 0.12, 0.88, 0.94), fill=violet)
    pen.ellipse(box(0.28, 0.58, 0.72, 0.9), fill=orange)
    pen.ellipse(box(0.3, 0.22, 0.7, 0.56), fill=(255, 255, 255))
    pen.ellipse(box(0.42, 0.3, 0.6, 0.48), fill=(30, 170, 90))
    pen.ellipse(box(0.47, 0.35, 0.55, 0.43), fill=dark)
    return image


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--no-fetch", action="store_true", help="use the packs that are installed")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/data"), help="(default: %(default)s)"
    )
    arguments = parser.parse_args()
    with exit_on_error():
        if not arguments.no_fetch:
            fetch_packs()
        write(arguments.out)


def write(out: Path) -> None:
    """Write both folders."""
    settings = load_settings(DataSettings, "configs/train/emoji_data.yaml")
    backgrounds = {name: (r, g, b) for name, (r, g, b) in settings.backgrounds.items()}
    files: dict[str, Write] = {"LICENCE.md": text_writer(_LICENCE)}
    for number, (caption, picture) in enumerate(style_pictures(backgrounds)):
        files |= {f"{number:02d}.png": picture.save, f"{number:02d}.txt": text_writer(caption)}
    replace_files(out / PACK, files)
    files, masks = {}, {}
    for number, (caption, picture, mask) in enumerate(character_pictures(backgrounds)):
        files |= {f"{number:02d}.png": picture.save, f"{number:02d}.txt": text_writer(caption)}
        masks[f"{number:02d}.png"] = mask.save
    replace_files(out / CHARACTER, files)
    replace_files(out / f"{CHARACTER}_masks", masks)
    print(f"{out / PACK}, {out / CHARACTER}")


if __name__ == "__main__":
    main()
