"""The scan: all planted faults are found, nothing sound is blamed, a second scan reads nothing."""

from __future__ import annotations

import os
import time
import warnings
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdcore.errors import FileError, UsageError
from sdcore.training.data.content import examine
from sdcore.training.data.scan import scan
from sdcore.training.data.scanned import Scan
from sdcore.training.data.settings import DataSettings
from sdcore.training.data.sources import read_items
from tests.training.data.making import (
    FAULTS,
    SIDE,
    encoded,
    make_folder,
    noise,
    plant,
    png_header,
    scanned,
    settings_of,
    tokenizer,
)


def named(found: Scan) -> set[tuple[str, str]]:
    return {(fault.name, fault.kind) for fault in (*found.skipped, *found.notes)}


def quiet_scan(settings: DataSettings, cache: Path | None = None) -> Scan:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return scan(read_items(settings), settings, cache, tokenizer=tokenizer())


def test_each_kind_of_fault_is_found_and_nothing_else(tmp_path: Path) -> None:
    settings, expected = plant(tmp_path / "data", 200, len(FAULTS))
    assert len(expected) == 25
    assert named(quiet_scan(settings)) == expected
    failing = settings.model_copy(update={"on_bad_sample": "fail"})
    with pytest.raises(FileError) as error:
        quiet_scan(failing)
    assert error.value.what.startswith("18 of 200 pictures")
    bad = {name for name, kind in expected if f"{name}: " in error.value.why}
    assert len(bad) == 18, "all are named"


@pytest.mark.slow
def test_200_faults_in_10_000_pictures_within_a_minute(tmp_path: Path) -> None:
    settings, expected = plant(tmp_path / "data", 10_000, 200)
    start = time.perf_counter()
    found = quiet_scan(settings, tmp_path / "cache")
    seconds = time.perf_counter() - start
    assert named(found) == expected and len(expected) == 200
    start = time.perf_counter()
    again = quiet_scan(settings, tmp_path / "cache")
    print(f"{seconds:.1f} s, with its cache {time.perf_counter() - start:.1f} s")
    assert again.pictures == found.pictures and seconds < 60


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid", "git-lfs pointer"),
        (encoded(noise(1), "GIF"), "a GIF"),
        (encoded(noise(1), "TIFF"), "a TIFF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"%PDF-1.7", "a PDF"),
        (bytes(5000), "zeros alone"),
        (b"some words", "none of PNG"),
    ],
)
def test_what_is_no_picture_is_named(data: bytes, words: str) -> None:
    content = examine(data)
    assert content.kind == "not a picture" and words in content.reason


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (encoded(noise(1), "JPEG")[:700], "It cannot be decoded"),
        (encoded(noise(1), "WEBP")[:500], "It cannot be decoded"),
        (encoded(noise(1), "AVIF")[:500], "It cannot be decoded"),
        (encoded(noise(1), "BMP")[:500], "It cannot be decoded"),
        (png_header(60_000, 60_000), "million pixels"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\0IEND\xaeB`\x82", "It cannot be decoded: it is damaged."),
    ],
)
def test_what_is_damaged_is_said_in_words(data: bytes, words: str) -> None:
    reason = examine(data).reason
    assert words in reason and reason.endswith(".") and not reason.endswith("..")
    assert "Error" not in reason and "0x" not in reason


def test_a_link_to_nothing_says_where_it_leads(tmp_path: Path) -> None:
    make_folder(tmp_path, 1)
    (tmp_path / "q.png").symlink_to("gone/q.png")
    (tmp_path / "q.txt").symlink_to("gone/q.txt")
    with pytest.raises(FileError) as caught:
        scanned(tmp_path)
    assert "q.png: It is a link to gone/q.png, which is not there" in caught.value.why
    assert "q.txt: It is a link to gone/q.txt" in caught.value.why


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_unusual_pictures_are_fine(tmp_path: Path, mode: str) -> None:
    make_folder(tmp_path, 2)
    image = noise(5).convert("L").convert(mode) if mode != "I;16" else noise(5).convert("I;16")
    name = "odd.jpg" if mode == "CMYK" else "odd.png"
    image.save(tmp_path / name)
    (tmp_path / "odd.txt").write_text("an odd fox")
    found = scanned(tmp_path)
    assert not found.skipped and not found.notes and len(found.pictures) == 3


def test_a_picture_under_another_name_is_fine(tmp_path: Path) -> None:
    make_folder(tmp_path, 1)
    for number, name in enumerate(("wrong.jpg", "bare", "x.bmp", "y.avif", "z.webp")):
        format = {"x.bmp": "BMP", "y.avif": "AVIF", "z.webp": "WEBP"}.get(name, "PNG")
        (tmp_path / name).write_bytes(encoded(noise(50 + number), format))
        (tmp_path / name).with_suffix(".txt").write_text("a fox of another kind")
    found = scanned(tmp_path)
    assert len(found.pictures) == 6 and not found.notes


def test_the_size_is_that_of_the_upright_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(1, (96, 64)).save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "a.txt").write_text("a fox")
    assert scanned(tmp_path).pictures[0].size.width_height == (64, 96)


def test_more_than_the_ceiling_is_not_skipped(tmp_path: Path) -> None:
    make_folder(tmp_path, 10)
    (tmp_path / "p00001.jpg").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"1 of 10 pictures(.|\n)*p00001.jpg: The file has zero"):
        found = scanned(tmp_path, on_bad_sample="skip", most_bad=0.1)
    assert len(found.pictures) == 9 and found.skipped[0].name == "p00001.jpg"
    with pytest.raises(FileError, match="No more than 5%"):
        scanned(tmp_path, on_bad_sample="skip", most_bad=0.05)
    for path in tmp_path.glob("*.[pj]*g"):
        path.write_bytes(b"")
    with (
        pytest.raises(FileError, match="No picture is left"),
        pytest.warns(UserWarning, match="10 of 10"),
    ):
        scanned(tmp_path, on_bad_sample="skip", most_bad=1.0)


def test_a_second_scan_reads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "data", 6)
    monkeypatch.setattr("sdcore.training.data.scan_cache._COARSE", 0)
    first = scanned(folder, tmp_path / "cache")
    seen: list[object] = []
    monkeypatch.setattr("sdcore.training.data.items.FileBlob.read", lambda *a: seen.append(a))
    assert scanned(folder, tmp_path / "cache").pictures == first.pictures and not seen


@pytest.mark.parametrize("coarse", [0, 2_000_000_000])
def test_another_content_of_the_same_size_and_time_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, coarse: int
) -> None:
    monkeypatch.setattr("sdcore.training.data.scan_cache._COARSE", coarse)
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "a.bmp"
    path.write_bytes(encoded(noise(1), "BMP"))
    path.with_suffix(".txt").write_text("a fox")
    before, first = path.stat(), scanned(tmp_path / "data", tmp_path / "cache")
    time.sleep(0.02)  # more than a tick of the file system's clock
    path.write_bytes(encoded(noise(2), "BMP"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert scanned(tmp_path / "data", tmp_path / "cache").pictures[0].digest != (
        first.pictures[0].digest
    )


@pytest.mark.parametrize("damage", [b"", b"{}", b"not ours\n{}"])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, damage: bytes) -> None:
    folder = make_folder(tmp_path / "data", 4)
    first = scanned(folder, tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob("scan-*.json")
    whole = path.read_bytes()
    for bad in (damage, whole[:-5], whole.replace(b"64", b"65", 1)):
        path.write_bytes(bad)
        with pytest.warns(UserWarning, match="made anew"):
            assert scanned(folder, tmp_path / "cache").pictures == first.pictures


def test_held_out_pictures_are_never_trained_on(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data", 12)
    for number in range(3):
        (folder / f"copy{number}.png").write_bytes((folder / f"p{number * 2:05d}.png").read_bytes())
        (folder / f"copy{number}.txt").write_text("a fox again")
    found = scanned(folder, held_out=5)
    assert len({picture.pixels for picture in found.held_out}) == 5
    assert not {p.pixels for p in found.held_out} & {p.pixels for p in found.pictures}
    assert len(found.held_out) + len(found.pictures) == 15
    for path in folder.glob("p00011*"):
        path.unlink()
    fewer = scanned(folder, held_out=5)
    kept = {p.pixels for p in found.held_out} & {p.pixels for p in fewer.held_out}
    assert len(kept) >= 4, "one picture less changes one choice at most"


def test_the_summary_says_what_there_is(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, 24)
    (folder / "p00003.jpg").write_bytes(b"<html>")
    (folder / "p00004.txt").write_text("a fox in the tree " * 40)
    (folder / "readme.md").write_text("about")
    settings = settings_of(folder, on_bad_sample="skip", trigger="sks")
    found = quiet_scan(settings)
    text = found.summary(tokenizer())
    assert "24 found, 23 used, 1 skipped" in text
    assert "p00003.jpg: It is a web page" in text
    assert "24 found, 0 missing, 1 cut" in text
    assert text.count("tokens)") == 4 and "a | red | fox" in text
    assert "64x64       23" in text and "readme.md" in text


def test_a_resolution_is_needed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"data\.resolution"):
        scanned(make_folder(tmp_path, 2), resolution=None)


def drawing(number: int) -> Image.Image:
    """A drawing on white, whose uppermost rows are those of all others."""
    image = Image.new("RGB", (SIDE, SIDE), "white")
    image.paste(noise(number, (20, 20)), (22, 30))
    return image


def test_pictures_that_begin_alike_are_no_duplicates_unless_they_are(tmp_path: Path) -> None:
    text = PngInfo()
    text.add_text("parameters", "a fox, Steps: 20")
    (tmp_path / "data").mkdir()
    saved = {
        "a.png": encoded(drawing(1), "PNG"),
        "b.png": encoded(drawing(2), "PNG"),
        "c.png": encoded(drawing(2), "PNG", compress_level=1, pnginfo=text),
        "d.png": encoded(drawing(3).convert("RGBA"), "PNG"),
        "e.webp": encoded(drawing(3), "WEBP", lossless=True),
        "f.png": encoded(noise(4), "PNG"),
        "g.png": encoded(noise(4), "PNG", pnginfo=text, compress_level=0),
        "h.bmp": encoded(noise(4), "BMP"),
        "i.png": encoded(noise(5).quantize(200), "PNG"),
        "j.png": encoded(noise(5).quantize(200).convert("RGB"), "PNG"),
    }
    for name, data in saved.items():
        (tmp_path / "data" / name).write_bytes(data)
        (tmp_path / "data" / name).with_suffix(".txt").write_text(f"a fox {name}")
    expected = {("c.png", "b.png"), ("e.webp", "d.png"), ("g.png", "f.png"), ("h.bmp", "f.png")}
    expected |= {("j.png", "i.png")}
    for threads in (1, 2, 1):
        settings = settings_of(tmp_path / "data")
        found = scan(read_items(settings), settings, tmp_path / "cache", threads=threads)
        same = {(n.name, n.reason.removesuffix(".").split()[-1]) for n in found.notes}
        assert same == expected


def test_held_out_pictures_that_begin_alike_are_told_apart(tmp_path: Path) -> None:
    for number in range(8):
        drawing(number).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"a fox {number}")
    found = scanned(tmp_path, held_out=2)
    assert len(found.held_out) == 2 and len(found.pictures) == 6


def test_a_png_is_turned_as_its_notes_say(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    noise(1, (96, 64)).save(tmp_path / "a.png", exif=exif)
    (tmp_path / "a.txt").write_text("a fox")
    assert scanned(tmp_path).pictures[0].size.width_height == (64, 96)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "AVIF"])
def test_a_cut_file_is_found_wherever_it_is_cut(format: str) -> None:
    whole = encoded(noise(3), format)
    assert not examine(whole).kind
    for share in range(1, 20):
        assert examine(whole[: len(whole) * share // 20]).kind, share


def test_any_damage_of_a_png_is_found() -> None:
    whole = encoded(noise(3), "PNG")
    for place in range(0, len(whole) - 12, 97):
        data = bytearray(whole)
        data[place] ^= 0x10
        assert examine(bytes(data)).kind, place
