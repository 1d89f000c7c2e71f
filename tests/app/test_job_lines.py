"""Files with a job a line, of every kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sdcore.app.job_lines import read_lines, read_prompt_line
from sdcore.errors import FileError

SAID = [
    {"prompt": "a fox, red", "seed": 7, "steps": 3, "guidance_scale": 6.5},
    {"prompt": "一只狐狸", "negative_prompt": "12", "width": 64, "height": 32},
]


def write(path: Path) -> Path:
    match path.suffix:
        case ".txt":
            path.write_text(
                "\ufeffa fox, red --d 7 --s 3 --l 6.5\n# a remark\n\n一只狐狸 --n 12 --w 64 --h 32",
                "utf-8",
            )
        case ".csv":
            path.write_text(
                "\ufeffprompt,seed,steps,guidance_scale,negative_prompt,width,height\n"
                '"a fox, red",7,3,6.5,,,\n\n一只狐狸,,,,12,64,32\n',
                "utf-8",
            )
        case ".jsonl":
            path.write_text("\n\n".join(json.dumps(each) for each in SAID), "utf-8")
        case ".parquet":
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(
                [{**dict.fromkeys(SAID[0] | SAID[1]), **each} for each in SAID]
            ), path)  # fmt: skip
    return path


@pytest.mark.parametrize("ending", ["txt", "csv", "jsonl", "parquet"])
def test_every_kind_of_file_says_the_same(ending: str, tmp_path: Path) -> None:
    lines = list(read_lines(write(tmp_path / f"jobs.{ending}")))
    assert [line.values for line in lines] == SAID
    assert [line.number for line in lines] == [1, 2]
    assert not any(line.error for line in lines)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        # kohya's sd-scripts: what its generation script and its samples of a training run take
        (
            "best, 1girl --n low quality, bad --w 768 --h 768 --d 1 --l 7.5 --s 28 --ss ddim",
            {
                "prompt": "best, 1girl",
                "negative_prompt": "low quality, bad",
                **{"width": 768, "height": 768, "seed": 1, "guidance_scale": 7.5, "steps": 28},
                "scheduler": "ddim",
            },
        ),
        # the web UI's "prompts from file"
        (
            '--prompt "a fox" --negative_prompt "blurry" --steps 10 --cfg_scale 3 '
            '--sampler_name "Euler a"',
            {
                **{"prompt": "a fox", "negative_prompt": "blurry", "steps": 10},
                **{"guidance_scale": 3, "scheduler": "Euler a"},
            },
        ),
        ("a fox -- a red one - or two--three", {"prompt": "a fox -- a red one - or two--three"}),
        ("a fox --S 3 --D=4", {"prompt": "a fox", "steps": 3, "seed": 4}),
    ],
)
def test_flags_behind_a_prompt(line: str, said: dict[str, object]) -> None:
    assert read_prompt_line(line) == said


def test_a_line_that_cannot_be_read_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "jobs.txt"
    path.write_text("a fox --zz 3\na cat --s many\n--s 3\na dog\n")
    *bad, good = read_lines(path)
    assert [f"{line.error}".splitlines()[0] for line in bad] == [
        "The line has a flag --zz.",
        "The value of steps is 'many'.",
        "The line has no prompt.",
    ]
    assert (good.number, good.place, good.values) == (4, "line 4", {"prompt": "a dog"})
    path = tmp_path / "jobs.jsonl"
    path.write_text('[1]\n{"prompt": "a", "prompt": "b"}\n{"seed": NaN}\n{\n')
    assert all(line.error is not None for line in read_lines(path))
    path = tmp_path / "jobs.csv"
    path.write_text("prompt\na,b\n")
    assert next(read_lines(path)).error is not None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("jobs.csv", b"text,seed\na,1\n"),
        ("jobs.csv", b""),
        ("jobs.txt", b"\xff\xfe\x00"),
        ("jobs.txt", b"a" * 2_000_000),
        ("jobs.parquet", b"PAR1 and no more"),
        ("jobs.xlsx", b""),
    ],
)
def test_files_that_hold_no_jobs_are_refused(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FileError, match="jobs"):
        list(read_lines(path))
