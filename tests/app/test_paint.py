"""The command that paints, as people run it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from sdcore.app import paint
from sdcore.app.flags import FAST, job_settings
from sdcore.metadata.png import read_settings
from sdcore.prompt.dialects import DIALECTS
from sdcore.size import Size


@pytest.fixture
def run(sd_folder, tmp_path, capsys):
    """Run the command; gives exit code, printed paths, and what went to stderr."""

    def call(*arguments: str) -> tuple[int, list[Path], str]:
        where = [] if "--output" in arguments else ["--output", str(tmp_path / "out")]
        model = [] if "--model" in arguments else ["--model", str(sd_folder)]
        steps = [] if "--steps" in arguments else ["--steps", "2"]
        code = paint.main([*arguments, *where, *model, *steps])
        captured = capsys.readouterr()
        return code, [Path(line) for line in captured.out.splitlines()], captured.err

    return call


def test_pictures_of_several_prompts_in_batches(run) -> None:
    code, paths, err = run(
        "a cat", "a Dog!", "--images", "2", "--batch-size", "3", "--seed", "5", "--grid"
    )
    assert code == 0 and "step 3 of 3" in err
    assert [p.name for p in paths] == [
        *("a-cat.png", "a-cat-1.png", "a-dog.png", "a-dog-1.png", "grid.png")
    ]
    settings = [read_settings(path) for path in paths[:4]]
    assert [s.job.seed for s in settings] == [5, 6, 7, 8]
    assert [s.job.prompt for s in settings] == ["a cat", "a cat", "a Dog!", "a Dog!"]
    with Image.open(paths[4]) as grid, Image.open(paths[3]) as last:
        assert grid.size == (128, 128)
        assert grid.crop((64, 64, 128, 128)).tobytes() == last.tobytes()
    _, again, _ = run("a dog!", "--seed", "7")
    assert again[0].name == "a-dog-2.png"  # nothing is overwritten


def test_one_file_size_scheduler_and_negative_prompt(run, tmp_path) -> None:
    target = tmp_path / "deep" / "picture.png"
    code, paths, _ = run(
        *("a cat", "--output", str(target), "--size", "40x24", "--scheduler", "Euler a"),
        *("--negative-prompt", "bad", "--guidance-scale", "3", "--attention", "reference"),
    )
    assert code == 0 and paths == [target]
    settings = read_settings(target)
    job = settings.job
    assert (job.size, job.guidance_scale, job.negative_prompt) == (Size(40, 24), 3.0, "bad")
    assert job.scheduler == settings.sampler == "euler a"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--scheduler", "eulr"], 2, "euler"),
        (["--steps", "0"], 2, "--steps is 0"),
        (["--size", "65"], 2, "multiple of 8"),
        (["--size", "6z"], 2, "--size 6z"),
        (["--size", "64", "--width", "0"], 2, "beside --width"),
        (["--width", "0"], 2, "width is 0"),
        (["--clip-skip", "-1"], 2, "--clip-skip is -1"),
        (["--guidance-scale", "nan"], 2, "nan"),
        (["--guidance-rescale", "2"], 2, "--guidance-rescale"),
        (["--dialect", "a11"], 2, "'a1111'"),
        (["--hires", "100"], 2, "width in --hires"),
        (["--hires", "2"], 2, "Use --hires 1024x1024 for 2 times 512x512"),
        (["--hires", "1,5x", "--size", "96x64"], 2, "Use --hires 144x96 for 1,5 times 96x64"),
        (["--scheduler", "res_2s"], 2, "Use 'dpm++ 2s', the nearest"),
        (["--hires-strength", "0.5"], 2, "without --hires"),
        (["--hires", "128", "--hires-strength", "0"], 2, "--hires-strength is 0"),
        (["--lora", "here.txt:0.5"], 3, "here.txt"),
        (["--lora", "gone.safetensors"], 3, "gone.safetensors"),
        (["--lora-folder", "gone"], 3, "--lora-folder gone"),
        (["--embedding", "here.txt"], 3, "here.txt"),
        (["<lora:ink:1>", "--dialect", "a1111"], 2, "no LoRA 'ink'"),
        (["<lora:ink:much>", "--dialect", "a1111"], 2, "much"),
        (["--hash-model", "--model", "no/such"], 2, "--hash-model"),
        (["--prompt-file", "here.txt"], 3, "holds no prompt"),
        (["--prompt-file", "gone.txt"], 3, "gone.txt"),
        (["--size", "64", "--width", "64"], 2, "--size"),
        (["--images", "0"], 2, "--images"),
        (["--images", "1000000000"], 2, "raise it with --budget images=1000000000"),
        (["--steps", "1000000000"], 2, "asks for 1,000,000,000 steps"),
        (["--size", "819200"], 2, "--budget pixels=671088640000"),
        (["--budget", "images"], 2, "letters, tokens, steps"),
        (["--seed", "-1"], 2, "seed"),
        (["--attention", "flesh"], 2, "flesh"),
        (["--output", "picture.jpg"], 2, "picture.jpg"),
        (["--output", "here.txt/new"], 3, "here.txt: Not a directory"),
        (["--output", "out/{index}/a.png"], 3, "out/1: Not a directory"),
        (["--output", "{sed}.png"], 2, "there is no {sed}"),
        (["--output", "x" * 300 + ".png"], 2, "more than 255"),
        (["--model", "gone.safetensors"], 3, "There is no model file 'gone.safetensors'"),
        (["--device", "abacus"], 2, "abacus"),
        (["--model", "no/such/folder"], 3, "no/such/folder"),
    ],
)
def test_errors_have_three_parts_an_exit_code_and_no_traceback(
    run, tmp_path, monkeypatch, arguments, code, said
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.txt").touch()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "1").touch()
    got, paths, err = run("a cat", *arguments)
    assert got == code and not paths
    _, _, message = err.partition("error:")  # after the line that says which attention runs
    assert said in message and "why:" in message and "try:" in message
    assert "Traceback" not in err
    assert not list(tmp_path.rglob("*.png"))


def test_a_lora_that_is_not_here_is_missed_before_the_model_is_loaded(run) -> None:
    code, paths, err = run("a cat", "a fox <lora:ink:1>", "--dialect", "a1111")
    assert code == 2 and not paths and err.startswith("error: There is no LoRA 'ink'")


def test_what_the_embedded_model_has_not_is_refused(capsys) -> None:
    for flag in (["--variant", "fp16"], ["--revision", "x"], ["--prediction-type", "epsilon"]):
        assert paint.main(["a cat", *flag]) == 2
        assert f"{flag[0]} {flag[1]} has no effect" in capsys.readouterr().err
    assert paint.main([]) == 2
    assert "There is no prompt" in capsys.readouterr().err


def test_prompts_from_a_file(run, tmp_path) -> None:
    (tmp_path / "prompts.txt").write_text("\ufeffa fox\r\n\n  苹果 \r\n", "utf-8")
    code, paths, _ = run("a cat", "--prompt-file", str(tmp_path / "prompts.txt"), "--seed", "3")
    assert code == 0
    assert [(read_settings(p).job.prompt, read_settings(p).job.seed) for p in paths] == [
        *(("a cat", 3), ("a fox", 4), ("苹果", 5))
    ]


def test_fast_stands_for_flags_where_these_are_not_given(run) -> None:
    own = {"steps": 2, "deepcache": 3}
    code, paths, _ = run("a cat", "--fast", "--deepcache", "3", "--seed", "1")
    job = read_settings(paths[0]).job
    assert code == 0 and {name: getattr(job, name) for name in own} == own
    code, paths, _ = run("a cat", "--fast", "--steps", str(FAST["steps"]), "--seed", "1")
    fast = read_settings(paths[0]).job
    assert code == 0 and {name: getattr(fast, name) for name in FAST} == FAST
    assert job_settings(paint.make_parser().parse_args(["a cat", "--fast"])) == FAST
    again = run("--from", str(paths[0]))[1][0]
    assert read_settings(again).job == replace(fast, steps=2)


def test_an_explanation_paints_nothing(sd_folder, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--model", str(sd_folder), "--dialect", "a1111", "--negative-prompt", "bad"]
    assert paint.main(["a (red:1.3) cat", "--explain-prompt", *flags]) == 0
    told = capsys.readouterr().out
    assert "1.3  red" in told and "prompt: bad" in told
    assert not list(tmp_path.iterdir())


def test_help_names_the_dialects() -> None:
    text = " ".join(paint.make_parser().format_help().split())
    assert "plain, a1111, a1111-nonorm, comfy or compel" in text
    assert list(DIALECTS) == ["plain", "a1111", "a1111-nonorm", "comfy", "compel"]


def test_debug_shows_the_traceback(run) -> None:
    with pytest.raises(ValueError, match="--steps is 0"):
        run("a cat", "--steps", "0", "--debug")


@pytest.mark.parametrize(
    ("error", "code"),
    [(MemoryError(), 4), (RuntimeError("CUDA out of memory. Tried"), 4), (KeyError("x"), 1)],
)
def test_unforeseen_errors_are_named_too(monkeypatch, capsys, error, code) -> None:
    def fail(_):
        raise error

    monkeypatch.setattr(paint, "paint", fail)
    assert paint.main(["a cat"]) == code
    err = capsys.readouterr().err
    assert "why:" in err and "try:" in err


def test_non_finite_numbers_leave_no_picture(run, monkeypatch, tmp_path) -> None:
    from sdcore.image import autoencoder

    def overflow(model, latents, tiled):
        return latents.new_full((1, 3, 64, 64), float("nan"))

    monkeypatch.setattr(autoencoder, "_decode", overflow)
    code, paths, err = run("a cat")
    assert code == 5 and not paths and "decoder" in err
    assert not (tmp_path / "out").exists()


def test_a_cut_prompt_is_a_plain_warning(run) -> None:
    code, paths, err = run("a red apple " * 30)
    assert code == 0 and len(paths) == 1
    assert "warning: the prompt is longer" in err and ".py" not in err


def test_files_are_named_by_a_pattern_and_the_seed_is_printed(run, tmp_path) -> None:
    pattern = str(tmp_path / "run.v2" / "{index}-{seed}.png")
    code, paths, err = run("a cat", "--images", "2", "--seed", "5", "--output", pattern)
    assert code == 0 and [path.name for path in paths] == ["1-5.png", "2-6.png"]
    assert "seed 5\n" in err and "seed 6\n" in err
    _, (path,), err = run("a cat", "-s", "1")
    assert f"seed {read_settings(path).job.seed}\n" in err


def test_an_explanation_is_in_letters(capsys) -> None:
    assert paint.main(["一只猫在狐狸的左边", "--explain-prompt"]) == 0
    told = capsys.readouterr()
    assert "  一只 " in told.out
    assert "does not know" not in told.err


def test_the_greeting_says_what_is_painted_and_where_it_will_lie(run, tmp_path) -> None:
    out = tmp_path / "out"
    _, _, err = run("a cat", "a fox", "--images", "2", "--seed", "5", "--steps", "1")
    first = err.splitlines()[0]
    assert first.startswith("painting 4 images with ") and first.endswith(
        f", seeds 5 to 8, into {out}{os.sep}: a cat and 1 more"
    )
    target = tmp_path / "x.png"
    _, (path,), err = run("a cat", "--steps", "1", "--output", str(target))
    assert f", seed {read_settings(path).job.seed}, into {target}: a cat\n" in err


def test_small_pictures_are_also_written_enlarged(run, tmp_path) -> None:
    _, (path,), err = run("a cat", "--seed", "5", "--size", "64x32")
    (larger,) = (tmp_path / "out" / "enlarged").iterdir()
    assert larger.name == path.name and f"enlarged 8 times: {larger}\n" in err
    assert read_settings(larger) == read_settings(path)
    with Image.open(path) as small, Image.open(larger) as large:
        assert (small.size, large.size) == ((64, 32), (512, 256))
    _, (without,), _ = run("a cat", "--seed", "5", "--size", "64x32", "--enlarged", "0")
    assert without.read_bytes() == path.read_bytes()  # the picture itself is the same
    assert len(list(larger.parent.iterdir())) == 1


def test_one_file_is_enlarged_where_it_is_asked_for(run, tmp_path) -> None:
    plain = ("a cat", "--steps", "1", "--output", str(tmp_path / "x.png"))
    run(*plain)
    assert not (tmp_path / "enlarged").exists()
    run(*plain, "--enlarged", "200")
    with Image.open(tmp_path / "enlarged" / "x-1.png") as larger:
        assert larger.size == (192, 192)
    code, _, err = run(*plain, "--enlarged", "-1")
    assert code == 2 and "--enlarged is -1" in err
