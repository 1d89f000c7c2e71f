"""The drawings: fetched versions are pinned, an SVG becomes the picture it describes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import train.data.drawings as drawings
from sdcore.errors import FileError
from train.data.settings import DataSettings
from train.settings import load_settings

ROOT = Path(__file__).parents[2]
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
    folder = ROOT / "train" / "data"
    wanted = json.loads((folder / "package.json").read_text("utf-8"))["dependencies"]
    text = (folder / "package-lock.json").read_text("utf-8")
    locked = json.loads(text)["packages"]
    for name, version in wanted.items():
        entry = locked[f"node_modules/{name}"]
        assert entry["version"] == version and entry["integrity"].startswith("sha512-")
        assert entry["license"] in ("Apache-2.0", "MIT", "CC-BY-4.0")
    assert "://" not in text


def test_the_embedded_model_s_packs_are_locked_and_none_is_share_alike() -> None:
    settings = load_settings(DataSettings, ROOT / "configs" / "train" / "emoji_data.yaml")
    lock = json.loads((ROOT / "train" / "data" / "package-lock.json").read_text("utf-8"))
    assert "openmoji" not in settings.styles.values()
    for pack in settings.styles.values():
        assert f"node_modules/@iconify-json/{pack}" in lock["packages"]
    for pair in settings.held_out_combinations:
        assert set(pair) <= set(settings.concepts)
