"""The drawings: SVG emoji of one concept in several styles, rendered once to RGBA pictures.

`python -m train.emoji.data.drawings` fetches the pinned drawing packs (npm,
`package-lock.json` beside this file), renders every (concept, style) of the settings, and writes

    runs/data/emoji/drawings.safetensors   uint8 (128, 128, 4) per drawing, straight alpha
    runs/data/emoji/manifest.json          hash, source icon, licence and author of each drawing
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from safetensors.numpy import load_file, save_file

from sdcore.errors import FileError, exit_on_error
from sdcore.files.atomic import json_writer, replace_files
from sdcore.training.settings import load_settings
from train.emoji.data.settings import DataSettings, Style

PACKS = Path(__file__).parent / "node_modules" / "@iconify-json"
SIZE = 128  # pixels; larger than any object in a scene, so that every scene size is a reduction
RIM = 2  # pixels of 128 by which paper shows around a drawing
GAP = 4  # pixels of 128: lines that come as near as twice this to each other enclose what is within


def fetch_packs() -> None:
    """Install the pinned drawing packs beside this file with npm (checked against their hashes)."""
    npm = shutil.which("npm")
    if npm is None:
        raise FileError("cannot fetch the drawings", "npm is not installed", "install Node.js")
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    if subprocess.run(command, cwd=Path(__file__).parent).returncode:
        raise FileError(
            "cannot fetch the drawings", "npm failed; it says why above", "check the network"
        )


def read_pack(pack: str) -> dict:
    """The icon set `pack` as parsed JSON: icons, aliases, width, height, info (author, licence)."""
    parts = [PACKS / pack / name for name in ("icons.json", "info.json")]
    if not all(path.is_file() for path in parts):
        raise FileError(
            f"drawing pack {pack!r} not found", f"{parts[0]} is missing", "fetch the packs first"
        )
    icons, info = (json.loads(path.read_text(encoding="utf-8")) for path in parts)
    return icons | {"info": info}


def render(pack: dict, icon: str, size: int = SIZE) -> np.ndarray:
    """Icon name -> RGBA picture (size, size, 4), uint8, straight alpha.

    Of several names with spaces between, the first that the pack knows is drawn.
    """
    from resvg_py import svg_to_bytes

    body = next((found for name in icon.split() if (found := _find(pack, name))), None)
    if body is None:
        raise FileError(f"no drawing {icon!r}", f"pack {pack['prefix']!r} has none", "see configs/")
    width = body.get("width", pack.get("width", 16))
    height = body.get("height", pack.get("height", 16))
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{size}" height="{size}" viewBox="0 0 {width} {height}">{body["body"]}</svg>'
    )
    png = bytes(svg_to_bytes(svg_string=svg, width=size, height=size))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


def restyle(picture: np.ndarray, style: Style) -> np.ndarray:
    """A drawing (S, S, 4), uint8, straight alpha, in the colours of `style`, on its paper."""
    color, alpha = picture[..., :3].astype(np.float32), picture[..., 3:] / 255
    if style.tint is not None:
        dark, light = (np.array(end, np.float32) for end in style.tint)
        brightness = color @ np.array([0.299, 0.587, 0.114], np.float32)[:, None] / 255
        color = dark + (light - dark) * brightness
    if style.shade:
        side = np.linspace(-0.5, 0.5, len(color), dtype=np.float32)
        depth = (side[:, None] + side)[..., None] * style.shade  # below 0: lit; above: shaded
        color = color + (255 - color) * np.maximum(-depth, 0) - color * np.maximum(depth, 0)
    if style.paper is not None:
        paper = _enclosed(picture[..., 3])[..., None] / 255
        behind = paper * (1 - alpha)
        paper_color = np.array(style.paper, np.float32)
        color = (color * alpha + paper_color * behind) / np.maximum(alpha + behind, 1e-6)
        alpha = alpha + behind
    whole = np.concatenate([color, alpha * 255], axis=-1)
    return whole.round().clip(0, 255).astype(np.uint8)


def _enclosed(alpha: np.ndarray) -> np.ndarray:
    """What is drawn or enclosed by it, and a rim around: (S, S), uint8, soft at the edge."""
    margin = GAP + 1  # so that the outside is one piece
    lines = Image.fromarray(np.pad(np.where(alpha > 127, 255, 0).astype(np.uint8), margin))
    closed = lines.filter(ImageFilter.MaxFilter(2 * GAP + 1))
    ImageDraw.floodfill(closed, (0, 0), 128)  # the outside
    filled = closed.point([0 if value == 128 else 255 for value in range(256)])
    filled = filled.filter(ImageFilter.MinFilter(2 * (GAP - RIM) + 1))
    return np.asarray(filled.filter(ImageFilter.GaussianBlur(0.7)))[margin:-margin, margin:-margin]


def _find(pack: dict, name: str | None) -> dict | None:
    while name is not None and name not in pack["icons"]:  # an alias may point to another alias
        name = pack.get("aliases", {}).get(name, {}).get("parent")
    return None if name is None else pack["icons"][name]


def build(settings: DataSettings) -> None:
    """Render every drawing of `settings` and write pictures and manifest into `settings.folder`."""
    folder = Path(settings.folder)
    pictures, rows = {}, []
    for style, how in settings.styles.items():
        pack = read_pack(how.pack)
        licence, author = pack["info"]["license"], pack["info"]["author"]
        for concept, icon in settings.concepts.items():
            picture = restyle(render(pack, icon), how)
            pictures[f"{style}/{concept}"] = picture
            rows.append(
                {
                    "concept": concept,
                    "style": style,
                    "icon": f"{how.pack}:{icon}",
                    "sha256": hashlib.sha256(picture.tobytes()).hexdigest(),
                    "licence": licence["spdx"],
                    "author": author["name"],
                    "source": author["url"],
                }
            )
    lock = json.loads((Path(__file__).parent / "package-lock.json").read_text("utf-8"))["packages"]
    used = [f"node_modules/@iconify-json/{style.pack}" for style in settings.styles.values()]
    packs = {key: {k: lock[key][k] for k in ("version", "integrity", "license")} for key in used}
    manifest = {
        "packs": packs,
        "held_out_pairs": sorted(map(list, settings.held_out_pairs())),
        "drawings": rows,
    }
    files = {
        "drawings.safetensors": lambda path: save_file(pictures, path),
        "manifest.json": json_writer(manifest, indent=1),
    }
    replace_files(folder, files)
    kinds = f"{len(settings.concepts)} concepts in {len(settings.styles)} styles"
    print(f"{len(rows)} drawings of {kinds}: {folder}")


def load(settings: DataSettings) -> dict[tuple[str, str], np.ndarray]:
    """(style, concept) -> RGBA picture (128, 128, 4), uint8, from the built set."""
    path = Path(settings.folder) / "drawings.safetensors"
    if not path.is_file():
        raise FileError(
            f"{path} not found", "the drawings are not built", "python -m train.emoji.data.drawings"
        )
    pictures = load_file(path)
    wanted = [(style, concept) for style in settings.styles for concept in settings.concepts]
    missing = [pair for pair in wanted if "/".join(pair) not in pictures]
    if missing:
        raise FileError(
            f"{path} lacks {missing[:3]}",
            "the settings changed",
            "python -m train.emoji.data.drawings",
        )
    return {pair: pictures["/".join(pair)] for pair in wanted}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", default="configs/train/emoji_data.yaml", help="(default: %(default)s)"
    )
    parser.add_argument("--no-fetch", action="store_true", help="use the packs that are installed")
    arguments = parser.parse_args()
    with exit_on_error():
        settings = load_settings(DataSettings, arguments.config)
        if not arguments.no_fetch:
            fetch_packs()
        build(settings)


if __name__ == "__main__":
    main()
