"""The drawings: fetched versions are pinned, an SVG becomes the picture it describes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import train.emoji.data.drawings as drawings
from sdcore.errors import FileError
from sdcore.training.settings import load_settings
from train.emoji.data.settings import DataSettings, Style

ROOT = Path(__file__).parents[3]
PACK = {
    "prefix": "noto",
    "width": 8,
    "height": 8,
    "icons": {
        "square": {"body": '<rect x="2" y="2" width="4" height="4" fill="#ff8000"/>'},
        "wide": {"body": '<rect width="16" height="8" fill="#0000ff"/>', "width": 16, "height": 8},
    },
    "aliases": {"box": {"parent": "crate"}, "crate": {"parent": "square"}},
}
INFO = {
    "author": {"name": "Somebody", "url": "https://example.org"},
    "license": {"title": "Apache 2.0", "spdx": "Apache-2.0"},
}


@pytest.fixture
def packs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "packs" / "noto"
    folder.mkdir(parents=True)
    (folder / "icons.json").write_text(json.dumps(PACK), "utf-8")
    (folder / "info.json").write_text(json.dumps(INFO), "utf-8")
    monkeypatch.setattr(drawings, "PACKS", tmp_path / "packs")
    return tmp_path


def test_svg_is_rendered_at_its_place_with_clear_surroundings() -> None:
    pytest.importorskip("resvg_py")
    picture = drawings.render(PACK, "square", size=64)
    assert picture.shape == (64, 64, 4) and picture.dtype == np.uint8
    assert (picture[17:47, 17:47] == (255, 128, 0, 255)).all()
    assert (picture[:15, :, 3] == 0).all() and (picture[:, 49:, 3] == 0).all()


def test_alias_of_an_alias_is_the_same_drawing() -> None:
    pytest.importorskip("resvg_py")
    assert np.array_equal(drawings.render(PACK, "box"), drawings.render(PACK, "square"))


def test_icon_that_is_not_there_is_named() -> None:
    with pytest.raises(FileError, match="'circle'"):
        drawings.render(PACK, "circle")


def ring(size: int = 128) -> np.ndarray:
    """A black line that encloses the middle, on clear ground, with a gap of 4 pixels in it."""
    y, x = np.mgrid[:size, :size] - size / 2
    radius = np.hypot(x, y)
    line = (radius > 36) & (radius < 44) & ~((abs(x) < 2) & (y < 0))
    picture = np.zeros((size, size, 4), np.uint8)
    picture[line, 3] = 255
    return picture


def test_a_tint_takes_the_place_of_black_and_white_and_of_what_is_between() -> None:
    picture = np.zeros((1, 4, 4), np.uint8)
    picture[0, :, 0] = picture[0, :, 1] = picture[0, :, 2] = [0, 255, 51, 9]
    picture[0, :, 3] = [255, 255, 100, 0]
    style = Style(pack="noto", tint=((70, 40, 20), (170, 240, 220)))
    tinted = drawings.restyle(picture, style)
    assert tinted[0, :3].tolist() == [[70, 40, 20, 255], [170, 240, 220, 255], [90, 80, 60, 100]]
    assert tinted[0, 3, 3] == 0


def test_shade_is_lit_from_the_upper_left_and_leaves_the_middle() -> None:
    picture = np.full((3, 3, 4), 100, np.uint8)
    shaded = drawings.restyle(picture, Style(pack="noto", shade=0.5))
    assert (shaded[..., 3] == 100).all()
    assert (shaded[..., 0] == shaded[..., 2]).all()
    assert shaded[0, 0, 0] == round(100 + 0.5 * 155)  # half way to white
    assert shaded[2, 2, 0] == 50  # half way to black
    assert [shaded[i, 2 - i, 0] for i in range(3)] == [100, 100, 100]


def test_paper_lies_behind_what_the_lines_enclose_and_a_rim_around_them() -> None:
    picture = ring()
    laid = drawings.restyle(picture, Style(pack="noto", paper=(250, 240, 230)))
    assert laid[64, 64].tolist() == [250, 240, 230, 255], "though the line has a gap"
    assert laid[64, 24].tolist() == [0, 0, 0, 255], "the line is on it"
    rim = laid[64, 64 - 46]
    assert rim[:3].tolist() == [250, 240, 230] and rim[3] > 0
    assert (laid[[0, 64, 64 - 52], [0, 64 - 52, 64], 3] == 0).all(), "no further than the rim"


def test_as_drawn_is_as_drawn_and_a_pack_s_name_alone_says_so() -> None:
    picture = ring()
    settings = DataSettings(concepts={}, styles={"noto": "noto", "pale": {"pack": "noto"}})
    assert settings.styles["noto"] == settings.styles["pale"] == Style(pack="noto")
    assert np.array_equal(drawings.restyle(picture, settings.styles["noto"]), picture)


def test_built_set_is_what_scenes_load_and_its_manifest_tells_origin_and_licence(
    packs: Path,
) -> None:
    pytest.importorskip("resvg_py")
    settings = DataSettings(
        concepts={"orange box": "box"}, styles={"noto": "noto"}, folder=str(packs / "built")
    )
    drawings.build(settings)
    loaded = drawings.load(settings)
    assert loaded.keys() == {("noto", "orange box")}
    assert np.array_equal(loaded["noto", "orange box"], drawings.render(PACK, "square"))
    manifest = json.loads((packs / "built" / "manifest.json").read_text("utf-8"))
    row = manifest["drawings"][0]
    assert (row["icon"], row["licence"], row["author"]) == ("noto:box", "Apache-2.0", "Somebody")
    assert manifest["packs"]["node_modules/@iconify-json/noto"]["integrity"].startswith("sha512-")


def test_pack_that_is_not_installed_says_so(packs: Path) -> None:
    with pytest.raises(FileError, match="'twemoji' not found"):
        drawings.read_pack("twemoji")


def test_lock_file_pins_every_pack_by_version_and_hash_and_names_no_host() -> None:
    folder = ROOT / "train" / "emoji" / "data"
    wanted = json.loads((folder / "package.json").read_text("utf-8"))["dependencies"]
    text = (folder / "package-lock.json").read_text("utf-8")
    locked = json.loads(text)["packages"]
    for name, version in wanted.items():
        entry = locked[f"node_modules/{name}"]
        assert entry["version"] == version and entry["integrity"].startswith("sha512-")
        shared_alike = "openmoji" in name  # for fine-tuning alone: no part of the embedded model
        free = ("CC-BY-SA-4.0",) if shared_alike else ("Apache-2.0", "MIT", "CC-BY-4.0")
        assert entry["license"] in free
    assert "://" not in text


def test_the_embedded_model_s_packs_are_locked_and_none_is_share_alike() -> None:
    settings = load_settings(DataSettings, ROOT / "configs" / "train" / "emoji_data.yaml")
    lock = json.loads((ROOT / "train" / "emoji" / "data" / "package-lock.json").read_text("utf-8"))
    packs = {style.pack for style in settings.styles.values()}
    assert "openmoji" not in packs
    for pack in packs:
        assert f"node_modules/@iconify-json/{pack}" in lock["packages"]
    for pair in settings.held_out_combinations:
        assert set(pair) <= set(settings.concepts)
