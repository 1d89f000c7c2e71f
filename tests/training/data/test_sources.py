"""Layouts: each is recognised, read, and its usual traps are named."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from sdcore.errors import FileError, UsageError
from sdcore.training.data.hub import HubBlob, dataset_items
from sdcore.training.data.items import Found
from sdcore.training.data.settings import DataSettings
from sdcore.training.data.sources import layout_of, prior_missing, read_items
from sdcore.training.data.subset import subset_of
from tests.training.data.making import encoded, make_folder, noise, scanned, settings_of

LIMIT = 1 << 20


def read(source: Path | str, **changes: Any) -> Found:
    return read_items(settings_of(source, **changes))


def captions(found: Found) -> dict[str, str | None]:
    return {item.name: item.caption for item in found}


def texts(found: Found) -> str:
    return "\n".join(map(str, (*found.faults, *found.notes)))


def test_a_plain_string_is_the_source() -> None:
    assert DataSettings.model_validate("pictures/").source == "pictures/"
    assert DataSettings.model_validate("x").resolution is None


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("most_enlarged", 0.5),
        ("dropout", float("nan")),
        ("repeats", 0),
        ("background", "no colour"),
        ("workers", -1),
        ("layout", "zip"),
        ("caption_extensions", 3),
        ("caption_extensions", ["png"]),
        ("caption_extensions", []),
        ("masks", "a\0b"),
    ],
)
def test_settings_have_ranges(setting: str, value: object) -> None:
    with pytest.raises(ValueError, match=setting):
        settings_of("x", **{setting: value})


# --- folders --------------------------------------------------------------------------------------


def test_text_files_in_whatever_encoding(tmp_path: Path) -> None:
    make_folder(tmp_path, 5)
    (tmp_path / "p00000.txt").write_bytes("\ufeffa café\r\nin the sun\n".encode())
    (tmp_path / "p00001.txt").write_bytes("a café \u2013 fox".encode("cp1252"))
    (tmp_path / "p00002.txt").write_bytes("un renard ünder".encode("utf-16"))
    (tmp_path / "p00003.txt").unlink()
    (tmp_path / "p00003.caption").write_text("the other ending", "utf-8")
    (tmp_path / "p00004.caption").write_text("not this one", "utf-8")
    found = read(tmp_path)
    assert list(captions(found).values()) == [
        "a café in the sun",
        "a café \u2013 fox",
        "un renard ünder",
        "the other ending",
        "a red fox, number 4",
    ]
    assert "p00001.jpg: Its caption p00001.txt is in cp1252" in texts(found)
    assert "p00002.png: Its caption p00002.txt is in utf-16" in texts(found)
    assert "p00004.png: p00004.txt is its caption; p00004.caption is not read" in texts(found)
    assert len(found.notes) == 3 and not found.faults


def test_names_as_captions_and_none(tmp_path: Path) -> None:
    for name in ("red_fox-02.png", "a big dog (3).png", "1234.png"):
        noise(len(name)).save(tmp_path / name)
    names = {"red_fox-02.png": "red fox", "a big dog (3).png": "a big dog", "1234.png": "1234"}
    assert captions(read(tmp_path, captions="name")) == names
    assert set(captions(read(tmp_path, captions="none")).values()) == {""}
    with pytest.raises(FileError, match=r"No picture of .* has a caption") as error:
        read(tmp_path)
    assert "data.captions to name" in error.value.hint
    assert len(scanned(tmp_path, trigger="sks").pictures) == 3


def test_the_folder_below_is_offered(tmp_path: Path) -> None:
    make_folder(tmp_path / "set" / "images", 2)
    with pytest.raises(FileError, match="images has some") as error:
        read(tmp_path / "set")
    assert "folder below" in error.value.hint
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match="It is empty"):
        read(tmp_path / "empty")
    with pytest.raises(FileError, match="no such file or folder"):
        read(tmp_path / "gone")
    with pytest.raises(FileError, match="none that ends in"):
        read(tmp_path / "set" / "images" / "p00000.png")


def test_what_else_lies_there_is_said_once(tmp_path: Path) -> None:
    make_folder(tmp_path, 2)
    for name in ("notes.md", "model.zip", ".DS_Store", "._p00000.png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "lone.txt").write_text("a caption of nothing")
    make_folder(tmp_path / "more", 1)
    found = read(tmp_path)
    assert [note.kind for note in found.notes] == ["text without picture", "unrelated", "folders"]
    assert "model.zip, notes.md" in texts(found) and "more (1 pictures)" in texts(found)


def test_two_pictures_of_one_name(tmp_path: Path) -> None:
    make_folder(tmp_path, 1)
    noise(9).save(tmp_path / "p00000.webp")
    found = read(tmp_path)
    assert "p00000.png: It shares its caption with p00000.webp" in texts(found)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x" * 5000, "are missing"),
        ("/".join(["x" * 200] * 40), "are missing"),
        ("https://example.com/pictures.tar", "It is an address"),
        ("pipe", "It is a pipe or a device"),
        ("dead", "There is a link, to nothing"),
    ],
)
def test_a_source_that_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo("pipe")
        Path("dead").symlink_to("nowhere")
        with pytest.raises(FileError, match=words):
            read(name)
    with pytest.raises(FileError, match=r"folder of masks .* is missing"):
        read(make_folder(tmp_path / "a", 1), masks=name)


def test_texts_of_nearly_the_name_are_pointed_at(tmp_path: Path) -> None:
    bare(tmp_path, 3)
    (tmp_path / "p00000.png.txt").write_text("a fox")
    (tmp_path / "P00001.TXT").write_text("a fox")
    said = "p00000.png.txt is not its caption; name it p00000.txt"
    with pytest.raises(FileError, match=said):
        read(tmp_path)
    (tmp_path / "p00002.txt").write_text("a fox")
    found = read(tmp_path)
    assert said in texts(found) and "P00001.TXT is not its caption" in texts(found)


def test_the_folder_above_class_folders_is_led_on(tmp_path: Path) -> None:
    make_folder(tmp_path / "img" / "10_sks dog", 1)
    with pytest.raises(FileError, match=r"folder below it\? .*img has some"):
        read(tmp_path)


def test_names_and_captions_cannot_steer_a_terminal(tmp_path: Path) -> None:
    make_folder(tmp_path, 1)
    (tmp_path / "p00000.png").rename(tmp_path / "a\x1b[31m\nskipped 9.png")
    (tmp_path / "p00000.txt").rename(tmp_path / "a\x1b[31m\nskipped 9.txt")
    (tmp_path / "a\x1b[31m\nskipped 9.txt").write_text("red " * 9000)
    lines = scanned(tmp_path).summary().splitlines()
    assert not any("\x1b" in line or line.startswith("skipped") for line in lines)
    assert max(map(len, lines)) < 400


# --- metadata ------------------------------------------------------------------------------------


def write_rows(folder: Path, rows: list[dict[str, Any]], name: str = "metadata.jsonl") -> Path:
    lines = "\n".join(json.dumps(row) for row in rows)
    (folder / name).write_text(lines, "utf-8")
    return folder


def bare(folder: Path, count: int) -> Path:
    make_folder(folder, count)
    for path in folder.glob("*.txt"):
        path.unlink()
    return folder


def test_metadata_in_json_lines(tmp_path: Path) -> None:
    bare(tmp_path / "train", 3)
    rows = [
        {"file_name": "train/p00000.png", "caption": "one", "score": 3},
        {"file_name": "train\\p00001.jpg", "caption": "two"},
        {"file_name": "train/gone.png", "caption": "three"},
        {"file_name": "../out.png", "caption": "four"},
        {"file_name": "train/p00000.png", "caption": "again"},
        {"file_name": None, "caption": "five"},
    ]
    write_rows(tmp_path, rows)
    with (tmp_path / "metadata.jsonl").open("a") as file:
        file.write("\n{not json\n")
    found = read(tmp_path)
    assert captions(found) == {
        "train/p00000.png": "one",
        "train/p00000.png (row 5)": "again",
        "train/p00001.jpg": "two",
    } or set(captions(found).values()) == {"one", "again", "two"}
    kinds = [fault.kind for fault in found.faults]
    assert sorted(kinds) == ["missing", "row damaged", "row without picture", "row without picture"]
    assert "train/gone.png: metadata.jsonl line 3 lists it" in texts(found)
    assert "1 pictures are not in it and are not used: train/p00002.png" in texts(found)
    assert "lists it more than once" in texts(found)


def test_metadata_in_csv_with_a_column_by_name(tmp_path: Path) -> None:
    bare(tmp_path, 2)
    table = 'file_name,short,long\np00000.png,a,"one, two"\np00001.jpg,b,café\n'
    (tmp_path / "metadata.csv").write_bytes(table.encode("cp1252"))
    found = read(tmp_path, text_column="long")
    assert captions(found) == {"p00000.png": "one, two", "p00001.jpg": "café"}
    assert "in cp1252" in texts(found)
    with pytest.raises(UsageError, match="short, long"):
        read(tmp_path)
    with pytest.raises(UsageError, match="no column 'tall'"):
        read(tmp_path, text_column="tall")


@pytest.mark.parametrize("name", ["metadata.json1", "metadata.jsonl.txt", "Metadata.JSONL"])
def test_a_nearly_right_name_is_seen(tmp_path: Path, name: str) -> None:
    write_rows(bare(tmp_path, 1), [{"file_name": "p00000.png", "text": "a"}], name)
    with pytest.raises(FileError, match=r"Rename it to metadata.jsonl"):
        read(tmp_path)


def test_metadata_without_file_names(tmp_path: Path) -> None:
    write_rows(bare(tmp_path, 1), [{"image": "p00000.png", "text": "a"}])
    with pytest.raises(UsageError, match="Its columns are image, text"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("metadata.jsonl", "", "It has no rows"),
        ("metadata.jsonl", "[]", "line 1: It is a list, not an object"),
        ("metadata.jsonl", "{", "line 1: It is not JSON"),
        ("metadata.csv", 'file_name,text\np00000.png,"a fox\np00001.jpg,b\n', "is not a table"),
        ("metadata.tsv", "file_name\ttext\np00000.png\ta\n", r"Rename it to metadata\.csv"),
    ],
)
def test_a_table_that_is_none(tmp_path: Path, name: str, text: str, words: str) -> None:
    (bare(tmp_path, 2) / name).write_text(text)
    with pytest.raises(FileError, match=words):
        read(tmp_path)


@pytest.mark.parametrize("mark", [",", ";", "\t", ", "])
def test_columns_as_spreadsheets_divide_them(tmp_path: Path, mark: str) -> None:
    rows = (("file_name", "text"), ("p00000.png", "a fox"))
    (bare(tmp_path, 1) / "metadata.csv").write_text("\n".join(map(mark.join, rows)))
    assert captions(read(tmp_path)) == {"p00000.png": "a fox"}


def test_lines_of_old_macintoshes_and_large_tables(tmp_path: Path) -> None:
    write_rows(bare(tmp_path, 2), [{"file_name": f"p0000{n}", "text": "x"} for n in (0, 1)])
    rows = [
        {"file_name": name, "text": f"a\u2028b {name}"} for name in ("p00000.png", "p00001.jpg")
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    padding = json.dumps({"file_name": "p00000.png", "text": "w " * 100, "more": "x" * 70_000})
    (tmp_path / "metadata.jsonl").write_text("\r".join([*lines, padding]), newline="")
    assert captions(read(tmp_path))["p00001.jpg"] == "a b p00001.jpg"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("a\0b", "control character 0"),
        ("a\x1b[31m", "control character 27"),
        ("\ud800 fox", "half a character"),
        ("w " * 40_000, "more than 64 KiB"),
        (["a"], "is a list"),
    ],
)
def test_captions_of_a_table_are_judged_as_those_of_files(
    tmp_path: Path, value: Any, words: str
) -> None:
    write_rows(bare(tmp_path, 1), [{"file_name": "p00000.png", "text": value}])
    assert words in texts(read(tmp_path))


def test_a_number_that_is_none_is_no_caption(tmp_path: Path) -> None:
    rows = [
        {"file_name": "p00000.png", "text": float("nan")},
        {"file_name": "p00001.jpg", "text": 3},
    ]
    write_rows(bare(tmp_path, 2), rows)
    assert captions(read(tmp_path)) == {"p00000.png": None, "p00001.jpg": "3"}


@pytest.mark.parametrize("name", [".", "./", "/", "..", "x/" * 3000, "x" * 300])
def test_a_row_that_names_no_file(tmp_path: Path, name: str) -> None:
    rows = [{"file_name": name, "text": "a"}, {"file_name": "p00000.png", "text": "b"}]
    write_rows(bare(tmp_path, 1), rows)
    found = read(tmp_path)
    assert len(found) == 1 and len(found.faults) == 1


# --- kohya ---------------------------------------------------------------------------------------


def test_class_folders(tmp_path: Path) -> None:
    make_folder(tmp_path / "10_sks dog", 2)
    bare(tmp_path / "3_sks cat", 1)
    (tmp_path / "5_nothing").mkdir()
    make_folder(tmp_path / "others", 1)
    found = read(tmp_path, repeats=2)
    assert captions(found) == {
        "10_sks dog/p00000.png": "a red fox, number 0",
        "10_sks dog/p00001.jpg": "a red fox, number 1",
        "3_sks cat/p00000.png": "sks cat",
    }
    assert [item.repeats for item in found] == [20, 20, 6]
    assert "5_nothing: It holds no picture" in texts(found) and "others" in texts(found)


TOML = """
[general]
shuffle_caption = true
keep_tokens = 2
caption_extension = '.caption'
enable_bucket = true

[[datasets]]
resolution = [512, 768]
batch_size = 4
  [[datasets.subsets]]
  image_dir = 'dog'
  num_repeats = 10
  class_tokens = 'sks dog'
  flip_aug = true
  [[datasets.subsets]]
  image_dir = 'reg'
  is_reg = true
  class_tokens = 'dog'
  keep_tokens = 0
"""


def test_kohya_toml(tmp_path: Path) -> None:
    bare(tmp_path / "dog", 2)
    (tmp_path / "dog" / "p00001.caption").write_text("sks dog, on a tree")
    bare(tmp_path / "reg", 1)
    path = tmp_path / "dataset.toml"
    path.write_text(TOML)
    found = read(path)
    dog, other, reg = found
    assert captions(found) == {
        "dog/p00000.png": "sks dog",
        "dog/p00001.jpg": "sks dog, on a tree",
        "reg/p00000.png": "dog",
    }
    assert (dog.repeats, dog.prior, dog.look.flip, dog.options.keep_tags) == (10, False, True, 2)
    assert (reg.repeats, reg.prior, reg.look.flip, reg.options.keep_tags) == (1, True, False, 0)
    assert other.options.shuffle_tags and other.look.resolution == 627
    assert "batch_size (run.batch_size says it)" in texts(found) and "enable_bucket" in texts(found)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("'.caption'", "'.png'", "general.caption_extension is '.png'; it must be the ending of"),
        ("'dog'", f"'{'d' * 5000}'", "there is no folder ddd"),
        ("num_repeats", "num_repeat", "datasets[0].subsets[0].num_repeat: unknown key; did you"),
        ("num_repeats = 10", "num_repeats = 'ten'", "num_repeats is 'ten'; it must be a whole"),
        ("'dog'", "'gone'", "image_dir: there is no folder gone"),
        ("[general]", "[generals]", "generals: the file has only general and datasets"),
        ("flip_aug", "metadata_file", "metadata_file: captions in a JSON"),
        ("[[datasets]]", "[datasets]", "datasets"),
    ],
)
def test_kohya_toml_names_what_is_wrong(tmp_path: Path, old: str, new: str, words: str) -> None:
    for name in ("dog", "reg"):
        bare(tmp_path / name, 1)
    path = tmp_path / "dataset.toml"
    path.write_text(TOML.replace(old, new, 1))
    with pytest.raises((UsageError, FileError)) as error:
        read(path)
    assert words in error.value.why


# --- tables --------------------------------------------------------------------------------------


def write_parquet(path: Path, count: int, *, struct: bool, column: str = "text") -> Path:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    data: list[Any] = [encoded(noise(number), "PNG") for number in range(count)]
    if struct:
        data = [{"bytes": value, "path": None} for value in data]
    rows = {"image": data, column: [f"fox {number}" for number in range(count)]}
    rows["id"] = list(range(count))
    parquet.write_table(arrow.table(rows), path, row_group_size=3)
    return path


@pytest.mark.parametrize("struct", [False, True])
def test_parquet(tmp_path: Path, struct: bool) -> None:
    path = write_parquet(tmp_path / "train.parquet", 11, struct=struct)
    for source in (path, tmp_path):
        found = scanned(source)
        assert [p.item.name for p in found.pictures][::10] == ["train row 00", "train row 10"]
        for number, picture in enumerate(found.pictures):
            assert picture.item.blob.read(LIMIT) == encoded(noise(number), "PNG")
            assert picture.item.caption == f"fox {number}"


def test_parquet_columns_are_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "train.parquet", 2, struct=False)
    with pytest.raises(UsageError, match="text"):
        read(path, text_column="caption")
    with pytest.raises(UsageError, match="image"):
        read(path, image_column="photo")
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(FileError, match="cannot be read as Parquet"):
        read(path)


def test_parquet_columns_of_every_type_of_text_and_bytes(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path, data = tmp_path / "train.parquet", [encoded(noise(n), "BMP") for n in range(2)]
    texts = arrow.array(["fox 0", "fox 1"])
    for column in (texts.dictionary_encode(), texts.cast(arrow.large_string())):
        for kind in (arrow.binary(), arrow.large_binary(), arrow.binary(len(data[0]))):
            parquet.write_table(
                arrow.table({"image": arrow.array(data, kind), "text": column}), path
            )
            assert captions(read(path)) == {"train row 0": "fox 0", "train row 1": "fox 1"}
            assert scanned(path).pictures[1].item.blob.read(LIMIT) == data[1]
    parquet.write_table(arrow.table({"image": data, "text": [1, 2]}), path)
    with pytest.raises(UsageError, match="Write such a column, of texts"):
        read(path)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "train.parquet"
    path.write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"pip install .sdcore\[data\]"):
        read(path)


def test_hub_data_sets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"image": [noise(number) for number in range(3)], "text": ["a", "b", None]}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    data = datasets.Dataset.from_dict(rows, features=features)
    settings = settings_of("hub:owner/foxes")
    found = dataset_items(data, "owner/foxes", settings, subset_of(settings))
    assert captions(found) == {
        "owner/foxes row 0": "a",
        "owner/foxes row 1": "b",
        "owner/foxes row 2": None,
    }
    assert isinstance(found[1].blob, HubBlob)
    assert found[1].blob.read(LIMIT)[:4] == b"\x89PNG"
    with pytest.raises(UsageError, match="names no data set"):
        read("hub:foxes")


def test_a_hub_data_set_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` takes a folder owner/name where there is one, as it would one of the hub."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "foxes").mkdir(parents=True)
    write_parquet(tmp_path / "owner" / "foxes" / "train.parquet", 4, struct=True)
    found = scanned("hub:owner/foxes:train[1:]", image_column="image")
    assert [p.item.caption for p in found.pictures] == ["fox 1", "fox 2", "fox 3"]
    with pytest.raises(FileError, match="could not be fetched"):
        read("hub:owner/foxes:validation")


# --- tars ----------------------------------------------------------------------------------------


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def sample_files(first: int, count: int) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for number in range(first, first + count):
        files[f"{number:06d}.png"] = encoded(noise(number), "PNG")
        files[f"{number:06d}.txt"] = f"fox {number}".encode()
    return files


def test_webdataset(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", sample_files(0, 3))
    extra = {"lone.txt": b"x", "j.jpg": encoded(noise(70), "JPEG"), "j.json": b'{"caption": "jay"}'}
    write_tar(tmp_path / "1.tar", sample_files(3, 2) | extra)
    cache = tmp_path / "cache"
    found = scanned(tmp_path, cache)
    assert [p.item.caption for p in found.pictures] == [*(f"fox {n}" for n in range(5)), "jay"]
    assert found.pictures[4].item.blob.read(LIMIT) == encoded(noise(4), "PNG")
    assert [note.name for note in found.notes] == ["1.tar/lone.txt"]
    assert len(list(cache.glob("tar-*.json"))) == 2


def test_the_index_of_a_tar_is_used_and_never_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = write_tar(tmp_path / "0.tar", sample_files(0, 3)), tmp_path / "cache"
    settings = settings_of(path)
    first = read_items(settings, cache)
    with monkeypatch.context() as patch:
        patch.setattr("sdcore.training.data.tars._list", lambda *_: pytest.fail("was listed"))
        assert read_items(settings, cache) == first
    write_tar(path, sample_files(5, 4))
    assert len(read_items(settings, cache)) == 4


def test_a_cut_tar_is_named(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", sample_files(0, 4))
    found = read(path)
    blob: Any = found[2].blob
    path.write_bytes(path.read_bytes()[: blob.start + 100])
    cut = read(path)
    assert len(cut) == 2 and cut.faults[0].name == "0.tar"
    assert "cut short in 000002.png" in cut.faults[0].reason
    path.rename(tmp_path / "0.tar.gz")
    with pytest.raises(FileError, match="is packed"):
        read(tmp_path)


def test_a_tar_by_itself(tmp_path: Path) -> None:
    """A packed one, one without pictures, and one with a name that stands twice."""
    path = write_tar(tmp_path / "0.tar", {"a.txt": b"a fox", "b.left.png": b"x"})
    with pytest.raises(FileError, match=r"holds no picture") as caught:
        read(path)
    assert "0.tar/a.txt" in caught.value.why
    for name in ("0.tar.gz", "0.tgz"):
        with pytest.raises(FileError, match="is packed"):
            read(path.rename(tmp_path / name))
        (tmp_path / name).rename(path)
    write_tar(path, sample_files(0, 1))
    with tarfile.open(path, "a") as archive:
        entry = tarfile.TarInfo("000000.txt")
        entry.size = 3
        archive.addfile(entry, io.BytesIO(b"two"))
    found = read(path)
    assert captions(found) == {"0.tar/000000.png": "two"} and "more than once" in texts(found)


def test_class_pictures_alone_are_no_data(tmp_path: Path) -> None:
    make_folder(tmp_path / "dogs", 2)
    text = '[[datasets]]\n[[datasets.subsets]]\nimage_dir="dogs"\nis_reg=true\n'
    (tmp_path / "set.toml").write_text(text)
    with pytest.raises(FileError, match="none is one's own"):
        scanned(tmp_path / "set.toml")


def test_layouts_are_recognised(tmp_path: Path) -> None:
    assert layout_of(settings_of("hub:a/b")) == "hub"
    assert layout_of(settings_of(make_folder(tmp_path / "a", 1))) == "folder"
    make_folder(tmp_path / "b" / "3_dog", 1)
    assert layout_of(settings_of(tmp_path / "b")) == "kohya"


def test_how_many_class_pictures_are_missing(tmp_path: Path) -> None:
    prior = settings_of("x", prior={"source": str(tmp_path / "c"), "prompt": "a dog", "count": 5})
    assert prior.prior is not None and prior_missing(prior.prior) == 5
    make_folder(tmp_path / "c", 2)
    assert prior_missing(prior.prior) == 3
