"""The command that edits a prompt, as people run it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdcore import TextToImage
from sdcore.app import edit as edit_prompt
from sdcore.control.prompt_edit import EditSettings, PromptEdit
from sdcore.metadata.png import read_recipe


@pytest.fixture
def run(sd_folder, tmp_path, monkeypatch, capsys):
    """Run the command in an empty folder; gives exit code, printed paths and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, model: Path | str = sd_folder) -> tuple[int, list[Path], str]:
        fast = ["--model", str(model), "--steps", "4", "--seed", "5"]
        code = edit_prompt.main([*arguments, *fast])
        captured = capsys.readouterr()
        return code, [Path(line) for line in captured.out.splitlines()], captured.err

    return call


def levels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_pictures_are_those_of_the_library(run, sd_folder) -> None:
    prompts = ["a fox on the red tree", "a cat on the red tree"]
    flags = ["--steps-window", "0-0.6", "--steps-window", "cat:0-0.3", "--keep-layout", "0.5"]
    code, (source, edited, pair), _ = run(
        prompts[0], "--to", prompts[1], *flags, "--only", "fox", "--only", "cat"
    )
    assert code == 0
    pipe = TextToImage.from_pretrained(sd_folder)
    assert pipe.tokenizer is not None
    settings = EditSettings((0, 0.6), {"cat": (0, 0.3)}, (0, 0.5), blend=("fox", "cat"))
    edit = PromptEdit(pipe.tokenizer(prompts), settings)
    want = pipe(prompts, seed=[5, 5], steps=4, control=edit).images
    for path, image in zip((source, edited), want, strict=True):
        assert (levels(path) == np.asarray(image)).all()
        recorded = read_recipe(path).settings
        assert recorded is not None and recorded.job.seed == 5 and "control" in recorded.beyond
    assert source.name == "a-fox-on-the-red-tree-source.png"
    assert edited.name == "a-fox-on-the-red-tree-edit.png"
    assert pair.name == "a-fox-on-the-red-tree.png"
    sheet = levels(pair)
    assert sheet.shape[1] > 2 * 192 and (sheet[:20] == 0).any(), "names over both"


def test_the_source_is_as_without_edits(run, sd_folder) -> None:
    _, (source, edited, _), _ = run("a fox", "--reweight", "fox:-1", "--steps-window", "0-1")
    plain = TextToImage.from_pretrained(sd_folder)("a fox", seed=5, steps=4).images[0]
    assert (abs(levels(source) - np.asarray(plain)) <= 1).all()
    assert (levels(source) != levels(edited)).any()


def test_the_layout_can_be_left_alone(run) -> None:
    pictures = []
    for share in ("0", "1"):
        _, (_, edited, _), _ = run("a fox", "--to", "a cat", "--keep-layout", share)
        pictures.append(levels(edited))
    assert (pictures[0] != pictures[1]).any()


def test_several_edits_of_several_seeds(run) -> None:
    code, paths, _ = run(
        *("a fox", "--to", "a cat", "--to", "a red fox", "--images", "2", "--output", "x/e.png")
    )
    assert code == 0 and len(paths) == 2 * 3 + 1
    seeds = [read_recipe(path).settings.job.seed for path in paths[:-1]]  # pyright: ignore
    assert seeds == [5, 5, 5, 6, 6, 6]
    kinds = ("source", "edit1", "edit2")
    assert paths[:-1] == [Path(f"x/e-seed{seed}-{kind}.png") for seed in (5, 6) for kind in kinds]
    assert paths[-1] == Path("x/e.png")
    assert levels(paths[-1]).shape[0] > 2 * 192, "a row for each seed"


@pytest.mark.parametrize("dialect", ["a1111", "compel"])
def test_dialects_and_negative_prompts(run, dialect) -> None:
    long = "a fox " + "red " * 90
    code, paths, err = run(
        *(long, "--to", long + " tree", "--negative-prompt", "bad", "--dialect", dialect)
    )
    assert code == 0 and len(paths) == 3, err


def test_sdxl(run, sdxl_folder) -> None:
    code, paths, err = run("a fox", "--to", "a cat", "--only", "cat", model=sdxl_folder)
    assert code == 0 and len(paths) == 3, err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a fox"], "Nothing is changed"),
        (["a fox", "--reweight", "fox"], "--reweight fox"),
        (["a fox", "--reweight", "fox:much"], "--reweight fox:much"),
        (["a fox", "--to", "a cat", "--steps-window", "0.5"], "--steps-window 0.5"),
        (["a fox", "--to", "a cat", "--steps-window", "cat:a-b"], "--steps-window cat:a-b"),
        (["a fox", "--to", "a cat", "--keep-layout", "2"], "--keep-layout is 2"),
        (["a fox", "--to", "a cat", "--keep-layout", "nan"], "--keep-layout is nan"),
        (["a fox", "--to", "a cat", "--batch-size", "2"], "--batch-size"),
        (["a fox", "--to", "a cat <lora:x>", "--dialect", "a1111"], "LoRA"),
    ],
)
def test_refusals_come_before_the_model_is_loaded(run, tmp_path, arguments, said) -> None:
    code, paths, err = run(*arguments, model="no/such/model")
    assert code == 2 and not paths and said in err and "try:" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a fox", "--to", "a cat", "--only", "foks"], "'fox'"),
        (["a fox", "--reweight", "fpx:2"], "'fox'"),
        (["a fox", "--to", "a cat", "--steps-window", "fox:0-0.5"], "'fox' are not in the prompt"),
        (["a fox", "--to", "a cat", "--steps-window", "0.8-0.2"], "from 0.8 to 0.2"),
        (["a fox", "--to", "one big green apple"], "cannot be aligned"),
    ],
)
def test_words_that_are_not_there_are_refused_before_the_first_step(
    run, tmp_path, arguments, said
) -> None:
    code, paths, err = run(*arguments)
    assert code == 2 and not paths and said in err and "try:" in err
    assert "step 1" not in err and not list(tmp_path.iterdir())
