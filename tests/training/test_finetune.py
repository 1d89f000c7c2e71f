"""Fine-tuning: every method trains and resumes to the bit, and what comes out paints."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sdcore import TextToImage, apply_embeddings, apply_loras, read_embedding, read_lora
from sdcore.errors import FileError, NonFiniteError, UsageError
from sdcore.training.finetune import train
from sdcore.training.finetune_settings import FinetuneSettings
from sdcore.training.folder import lock_folder
from sdcore.training.inpainting import draw_mask
from sdcore.training.prepare import prepare
from sdcore.training.run import Run
from sdcore.training.settings import load_settings
from sdcore.training.sharding import check_sharding
from sdcore.training.signals import Interrupted
from sdcore.training.state import generator, trained
from sdcore.training.summary import command_to_paint, summary
from sdcore.training.verify import verify_resume
from tests import tiny
from tests.training.fine_tuning import (
    QUICK,
    assert_same_state,
    losses_of,
    make_settings,
    run,
    state_of,
    write_pictures,
)

ROOT = Path(__file__).parents[2]
METHODS = {
    "lora": {},
    "full": {"method": "full", "full__text_encoder": True, "run__learning_rate": 1e-4},
    "textual_inversion": {"method": "textual_inversion", "inversion__token": "zork"},
}
KINDS = ("lora", "dora", "rslora", "locon", "loha", "lokr")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures") / "discs")


# --- exact resume --------------------------------------------------------------------------------

CASES = [
    (method, accumulate, cache, ema)
    for method, accumulate, cache, ema in itertools.product(
        METHODS, (1, 4), (True, False), (0, 0.9)
    )
]
FAST = {("lora", 1, True, 0.9), ("full", 4, True, 0.9), ("textual_inversion", 1, False, 0)}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            (number, *case),
            id="-".join(map(str, case)),
            marks=[] if case in FAST else pytest.mark.slow,
        )
        for number, case in enumerate(CASES)
    ],
)
def test_resumed_is_straight_to_the_bit(case, sd_folder: Path, pictures: Path, tmp_path: Path):
    number, method, accumulate, cache, ema = case
    how = {
        **METHODS[method],
        "run__accumulate": accumulate,
        "data__cache_latents": cache,
        "run__ema_decay": ema,
        "data__workers": 2 * (number % 2),
        "data__dropout": 0.2,
        "data__shuffle_tags": True,
        "data__flip": True,
        "lora__dropout": 0.1,
    }
    run(make_settings(sd_folder, pictures, tmp_path / "straight", **how))
    for steps in (1 + number % 3, 4):
        run(make_settings(sd_folder, pictures, tmp_path / "resumed", **how, run__steps=steps))
    assert_same_state(tmp_path / "straight", tmp_path / "resumed")
    assert len(losses_of(tmp_path / "straight")) == 4


HARD = {  # what resumes in a way of its own
    "fp16": {"run__precision": "fp16"},
    "bf16": {"run__precision": "bf16"},
    "dora of convolutions": {"lora__kind": "dora", "lora__targets": ["all"]},
    "loha": {"lora__kind": "loha", "lora__targets": ["all"]},
    "prodigy": {"run__optimizer": "prodigy", "lora__text_encoder": True},
    "schedule_free": {"run__optimizer": "schedule_free"},
    "adafactor": {"run__optimizer": "adafactor", "method": "full"},
    "held out": {"data__held_out": 1, "run__sample_every": 1, "lora__targets": ["all"]},
}


@pytest.mark.parametrize("name", HARD)
def test_precisions_kinds_and_optimizers_resume_to_the_bit(
    name, sd_folder: Path, pictures: Path, tmp_path: Path
):
    how = {**HARD[name], "run__steps": 3}
    run(make_settings(sd_folder, pictures, tmp_path / "straight", **how))
    for steps in (1, 3):
        run(make_settings(sd_folder, pictures, tmp_path / "resumed", **how | {"run__steps": steps}))
    assert_same_state(tmp_path / "straight", tmp_path / "resumed")
    rows = [json.loads(row) for row in (tmp_path / "straight/metrics.jsonl").open()]
    assert all(row["grad_norm"] > 0 for row in rows)


def test_workers_and_caches_change_nothing(sd_folder: Path, pictures: Path, tmp_path: Path):
    for name, how in (("plain", {}), ("other", {"data__workers": 2, "data__cache_latents": False})):
        run(make_settings(sd_folder, pictures, tmp_path / name, **how))
    assert_same_state(tmp_path / "plain", tmp_path / "other")


def test_resuming_twice_goes_on_from_where_the_second_stopped(
    sd_folder: Path, pictures: Path, tmp_path: Path
):
    run(make_settings(sd_folder, pictures, tmp_path / "straight", run__steps=6))
    for steps in (2, 4, 6):
        run(make_settings(sd_folder, pictures, tmp_path / "resumed", run__steps=steps))
    assert_same_state(tmp_path / "straight", tmp_path / "resumed")
    assert sorted(losses_of(tmp_path / "resumed")) == list(range(6))


def test_the_rate_may_change_by_name_and_takes_effect(
    sd_folder: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run(make_settings(sd_folder, pictures, tmp_path, run__steps=2))
    run(make_settings(sd_folder, pictures, tmp_path, run__steps=4, run__learning_rate=5e-4))
    assert "run.learning_rate was 0.001, is 0.0005" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["lr"] for row in rows] == [1e-3, 1e-3, 5e-4, 5e-4]


def test_other_pictures_captions_or_weights_are_another_run(
    sd_folder: Path, sd2_folder: Path, pictures: Path, tmp_path: Path
):
    mine = write_pictures(tmp_path / "mine")
    run(make_settings(sd_folder, mine, tmp_path / "run", run__steps=1))
    (mine / "red.txt").write_text("a red cat", "utf-8")
    with pytest.raises(UsageError, match="with other pictures or captions"):
        run(make_settings(sd_folder, mine, tmp_path / "run"))
    (mine / "red.txt").write_text("a red apple", "utf-8")
    assert len(run(make_settings(sd_folder, mine, tmp_path / "run", run__steps=2))[1]) == 1


# --- what is trained -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_only_what_the_method_names_is_trained(
    method, sd_folder: Path, pictures: Path, tmp_path: Path
):
    before = TextToImage.from_pretrained(sd_folder)
    ready, _ = run(make_settings(sd_folder, pictures, tmp_path, **METHODS[method]))
    pipe = ready.method.pipe
    for part in ("unet", "text_encoder"):
        old = dict(before.part(part).named_parameters())
        same = {
            name: torch.equal(p.detach(), old[plain])
            for name, p in pipe.part(part).named_parameters()
            if (plain := name.replace(".base_layer.", ".").replace(".base.", ".")) in old
        }
        assert len(same) == len(old)
        assert any(same.values()) != (method == "full") and (method == "full" or all(same.values()))
    moved = [name for name, p in trained(ready.method.network) if p.requires_grad]
    assert moved


def test_a_word_is_learned_from_captions_that_do_not_say_it(
    sd_folder: Path, pictures: Path, tmp_path: Path
):
    settings = make_settings(sd_folder, pictures, tmp_path, **METHODS["textual_inversion"])
    ready, _ = run(settings)
    assert "zork, a " in command_to_paint(ready, tmp_path)
    rows = [json.loads(row) for row in (tmp_path / "metrics.jsonl").open()]
    assert all(row["grad_norm"] > 0 for row in rows), "nothing was learned"


def test_the_ready_settings_of_a_word_take_another_word(pictures: Path, tmp_path: Path):
    texts = [f"data={pictures}", "inversion.token=<other>", f"run.folder={tmp_path}"]
    file = ROOT / "configs" / "train" / "textual_inversion.yaml"
    ready = prepare(load_settings(FinetuneSettings, file, texts), cache=False)
    assert ready.word == "<other>" and "a photo of <other>" in command_to_paint(ready, tmp_path)


def test_a_word_that_no_caption_says_is_refused(sd_folder: Path, pictures: Path, tmp_path: Path):
    how = {**METHODS["textual_inversion"], "data__trigger": "blork"}
    with pytest.raises(UsageError, match="No caption holds the word 'zork'"):
        prepare(make_settings(sd_folder, pictures, tmp_path, **how))
    how["inversion__token"] = "two words"
    how["data__trigger"] = ""
    with pytest.raises(UsageError, match="is not one word"):
        prepare(make_settings(sd_folder, pictures, tmp_path, **how))


@pytest.mark.parametrize(
    "output",
    [
        {"formats": ["folder"]},
        {"formats": ["kohya", "single_file"]},
        {"name": "../a"},
        {"name": "a" * 181},
    ],
)
def test_what_could_not_be_written_at_the_end_is_refused_at_the_start(
    output, sd_folder: Path, pictures: Path, tmp_path: Path
):
    with pytest.raises(UsageError, match=r"output\.") as caught:
        prepare(make_settings(sd_folder, pictures, tmp_path / "run", output=output))
    hints = ("Change output.formats", "without /", "Set output.name to something shorter")
    assert any(hint in str(caught.value) for hint in hints)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["run__folder", "data__cache"])
def test_a_folder_that_cannot_be_is_refused_before_anything_is_read(
    place: str, sd_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    target = {place: str(tmp_path / "file" / "x")}
    nowhere = tmp_path / "no pictures"
    with pytest.raises(FileError, match=r"file: Not a directory") as caught:
        prepare(make_settings(sd_folder, nowhere, tmp_path / "run", **target))
    assert place.replace("__", ".") in caught.value.what


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_a_kind_that_one_format_alone_has_is_refused_in_others_at_the_start(
    kind: str, sd_folder: Path, pictures: Path, tmp_path: Path
):
    how = {"lora__kind": kind, "output__formats": ["kohya", "diffusers"]}
    with pytest.raises(UsageError, match=rf"diffusers has no {kind}"):
        prepare(make_settings(sd_folder, pictures, tmp_path, **how), cache=False)


def test_what_is_there_already_is_not_replaced(sd_folder: Path, pictures: Path, tmp_path: Path):
    """A user's own folders and files, what a run keeps, and the model that is trained."""
    folder = tmp_path / "mine"
    (folder / "mine").mkdir(parents=True)
    full = {"method": "full", "run__steps": 1, "run__checkpoint_every": 1}
    with pytest.raises(UsageError, match="is there already"):
        prepare(make_settings(sd_folder, pictures, folder, **full), cache=False)
    for name in ("checkpoints", "cache", "samples", "best"):
        with pytest.raises(UsageError, match="keeps something else"):
            how = {**full, "output__name": name}
            prepare(make_settings(sd_folder, pictures, folder, **how), cache=False)
    (folder / "mine.safetensors").write_bytes(b"precious")
    with pytest.raises(UsageError, match="is there already"):
        prepare(make_settings(sd_folder, pictures, folder), cache=False)
    model = shutil.copytree(sd_folder, tmp_path / "models" / "sd")
    how = {**full, "output__name": "other"}
    run(make_settings(model, pictures, tmp_path / "models", **how))
    run(make_settings(model, pictures, tmp_path / "models", **how))  # its own is written again
    with pytest.raises(UsageError, match="is there already"):
        how["output__name"] = "sd"
        prepare(make_settings(model, pictures, tmp_path / "models", **how), cache=False)


def test_the_folder_in_which_one_stands_gives_its_name(
    sd_folder: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    _, (path,) = run(make_settings(sd_folder, pictures, Path("."), run__steps=1))
    assert path.name == "here.safetensors" and path.exists()


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=[] if m == "lora" else pytest.mark.slow) for m in METHODS]
)
def test_resume_is_proved_on_own_settings(
    method: str, sd_folder: Path, pictures: Path, tmp_path: Path
):
    """In a folder that is not there yet; what else lies in one stays."""
    settings = make_settings(sd_folder, pictures, tmp_path / "new", **METHODS[method])
    assert "are equal to the bit" in verify_resume(settings)
    (tmp_path / "new" / "verify").mkdir()
    (tmp_path / "new" / "verify" / "notes.txt").write_text("mine")
    verify_resume(settings)
    left = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert left == ["cache", "verify"] and (tmp_path / "new" / "verify" / "notes.txt").exists()


def test_a_cache_may_lie_elsewhere(sd_folder: Path, pictures: Path, tmp_path: Path):
    how = {"data__cache": str(tmp_path / "cache"), "run__steps": 1}
    _, (path,) = run(make_settings(sd_folder, pictures, tmp_path / "run", **how))
    assert path.exists() and not (tmp_path / "run" / "cache").exists()


def test_a_word_with_signs_that_prompts_use_is_refused(
    sd_folder: Path, pictures: Path, tmp_path: Path
):
    how = {**METHODS["textual_inversion"], "inversion__token": "(zork:1.2)"}
    with pytest.raises(UsageError, match="is not one word to learn"):
        prepare(make_settings(sd_folder, pictures, tmp_path, **how), cache=False)


def test_what_is_only_looked_at_may_be_damaged(
    sd_folder: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    how = {"validation__images": 1, "validation__steps": 1, "data__held_out": 1}
    how |= {"run__sample_every": 1}
    run(make_settings(sd_folder, pictures, tmp_path, run__steps=2, **how))
    (tmp_path / "evaluation.jsonl").write_bytes(b'{"step": 1, "validation_loss": "x"}\n\xff{')
    samples = tmp_path / "samples"
    (samples / "step-final.png").write_bytes((samples / "grid.png").read_bytes())
    for name in ("step-000001.png", "other-000000.png"):
        (samples / name).write_bytes((samples / name).read_bytes()[:99])
    (tmp_path / "best/model.safetensors").write_bytes(b"torn")
    with pytest.warns(UserWarning, match=r"step-000001\.png is damaged and is left out"):
        run(make_settings(sd_folder, pictures, tmp_path, run__steps=3, **how))
    rows = json.loads((samples / "samples.json").read_text("utf-8"))["rows"]
    assert [row["step"] for row in rows] == [0, 2, 3]
    (tmp_path / "best/model.safetensors").write_bytes(b"torn")
    capsys.readouterr()
    with pytest.warns(UserWarning, match=r"model\.safetensors is damaged and is left out"):
        run(make_settings(sd_folder, pictures, tmp_path, run__steps=3, **how))
    assert "3 steps are done" in capsys.readouterr().out
    (tmp_path / "data.json").write_text("{")
    with pytest.raises(FileError, match=r"remove it and start again"):
        run(make_settings(sd_folder, pictures, tmp_path, run__steps=4, **how))


def test_a_finished_run_is_written_again_in_another_format(
    sd_folder: Path, pictures: Path, tmp_path: Path
):
    run(make_settings(sd_folder, pictures, tmp_path, run__steps=1))
    how = {"output__formats": ["diffusers"], "data__workers": 1, "data__cache_latents": False}
    _, (path,) = run(make_settings(sd_folder, pictures, tmp_path, run__steps=1, **how))
    assert path.name.endswith(".diffusers.safetensors") and path.exists()


def test_the_command_that_paints_is_quoted_for_a_shell(
    sd_folder: Path, pictures: Path, tmp_path: Path
):
    ready = prepare(make_settings(sd_folder, pictures, tmp_path, validation__prompts="a $5 apple"))
    said = shlex.split(command_to_paint(ready, tmp_path / "my first" / "my first.safetensors"))
    assert said[2] == "a $5 apple" and said[-1] == str(tmp_path / "my first/my first.safetensors")


def test_a_learned_word_leaves_every_other_row_to_the_bit(
    sd_folder: Path, pictures: Path, tmp_path: Path
):
    ready, (path,) = run(
        make_settings(sd_folder, pictures, tmp_path, **METHODS["textual_inversion"])
    )
    table = ready.method.pipe.text_encoder.text_model.embeddings.token_embedding
    old = TextToImage.from_pretrained(sd_folder).text_encoder.text_model.embeddings.token_embedding
    assert torch.equal(table.base.weight, old.weight)
    embedding = read_embedding(path)
    assert len(embedding.vectors[""]) == 4 and embedding.token == "zork"
    pipe = apply_embeddings(TextToImage.from_pretrained(sd_folder), [embedding])
    torch.testing.assert_close(
        pipe.text_encoder.text_model.embeddings.token_embedding.rows, table.rows, rtol=0, atol=1e-3
    )


@pytest.mark.parametrize("kind", [*KINDS])
def test_a_trained_lora_paints_what_the_trained_network_paints(
    kind, sd_folder: Path, pictures: Path, tmp_path: Path
):
    ready, (path,) = run(
        make_settings(
            sd_folder,
            pictures,
            tmp_path,
            lora__kind=kind,
            lora__rank=2,
            lora__text_encoder=True,
            output__dtype="float32",
        )
    )
    pipe = apply_loras(TextToImage.from_pretrained(sd_folder), [(read_lora(path), 1.0)])
    how = {"seed": 3, "steps": 2, "scheduler": "ddim", "guidance_scale": 1.0}
    ours, theirs = pipe("a red apple", **how), ready.method.pipe("a red apple", **how)
    torch.testing.assert_close(ours.latents, theirs.latents, rtol=1e-4, atol=1e-4)
    plain = TextToImage.from_pretrained(sd_folder)("a red apple", **how)
    assert not torch.allclose(plain.latents, ours.latents, atol=1e-3), "it changes something"


def test_a_fully_trained_model_opens_as_folder_and_file(
    sd_folder: Path, pictures: Path, tmp_path: Path
):
    how = {"method": "full", "output__dtype": "float32", "output__formats": ["folder"]}
    ready, (folder,) = run(make_settings(sd_folder, pictures, tmp_path, **how))
    again = TextToImage.from_pretrained(folder)
    for name, parameter in again.unet.named_parameters():
        assert torch.equal(parameter, ready.method.pipe.unet.get_parameter(name)), name


@pytest.mark.parametrize("family", ["sd2_folder", "sdxl_folder"])
@pytest.mark.parametrize("method", METHODS)
def test_every_family_trains(method, family, request, pictures: Path, tmp_path: Path):
    folder = request.getfixturevalue(family)
    how = {**METHODS[method], "run__steps": 2}
    _, paths = run(make_settings(folder, pictures, tmp_path, **how))
    assert all(map(torch.isfinite, map(torch.tensor, losses_of(tmp_path).values())))
    assert all(path.exists() for path in paths)


def test_an_inpainting_model_trains_on_masks_drawn_at_random(
    sd_folder: Path, pictures: Path, tmp_path: Path
):
    model = tmp_path / "inpainting"
    shutil.copytree(sd_folder, model)
    shutil.rmtree(model / "unet")
    tiny.make_unet(in_channels=9).save_pretrained(model / "unet")
    # Looked at as by default: it cannot paint from a prompt, but has a held-out loss.
    how = {"data__held_out": 1, "validation__images": 2, "data__trigger": "zork"}
    ready, _ = run(make_settings(model, pictures, tmp_path / "straight", **how))
    assert ready.method.pipe.kind.reads_mask
    assert "validation_loss" in (tmp_path / "straight" / "evaluation.jsonl").read_text()
    for steps in (2, 4):
        run(make_settings(model, pictures, tmp_path / "resumed", **how, run__steps=steps))
    assert_same_state(tmp_path / "straight", tmp_path / "resumed")


def test_masks_differ_and_hide_some_or_all():
    masks = [draw_mask(64, 48, generator(0, "mask", 0, row)) for row in range(40)]
    assert all(mask.shape == (1, 48, 64) and 0 < mask.mean() <= 1 for mask in masks)
    assert len({float(mask.mean()) for mask in masks}) > 20
    assert 0 < sum(bool(mask.all()) for mask in masks) < 20


def test_zero_snr_is_said_by_the_model_that_comes_out(
    sd2_folder: Path, pictures: Path, tmp_path: Path
):
    how = {"method": "full", "noise__zero_terminal_snr": True, "run__steps": 1}
    _, (folder,) = run(make_settings(sd2_folder, pictures, tmp_path, **how))
    assert TextToImage.from_pretrained(folder).scheduler.config["rescale_betas_zero_snr"]


def test_the_refiner_is_refused(refiner_folder: Path, pictures: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="refiner cannot be trained"):
        prepare(make_settings(refiner_folder, pictures, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_four_pictures_are_learned_by_heart(
    method, sd_folder: Path, pictures: Path, tmp_path: Path
):
    shares = {"lora": 0.9, "full": 0.7, "textual_inversion": 0.999}
    how = {**METHODS[method], "run__steps": 150, "run__batch_size": 4, "data__held_out": 0}
    how |= {"run__learning_rate": 5e-3 if method != "full" else 1e-3, "lora__targets": ["all"]}
    run(make_settings(sd_folder, pictures, tmp_path, **how))
    losses = list(losses_of(tmp_path).values())
    first, last = sum(losses[:20]) / 20, sum(losses[-20:]) / 20
    assert last < shares[method] * first, (first, last)


# --- numbers that are none -----------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["latents", "text", "weights"])
def test_a_nan_is_named_with_its_step_and_pictures(
    stage, sd_folder: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = make_settings(sd_folder, pictures, tmp_path, method="full")
    ready = prepare(settings)
    if stage == "weights":
        next(ready.method.pipe.unet.parameters()).data.fill_(float("nan"))
    elif stage == "text":
        encoder = ready.method.pipe.text_encoder
        next(encoder.text_model.final_layer_norm.parameters()).data.fill_(float("nan"))
    else:
        real = ready.examples.batch

        def broken(number: int):
            batch = real(number)
            batch.latents[0, 0, 0, 0] = float("nan")
            return batch

        monkeypatch.setattr(ready.examples, "batch", broken)
    what = "text encoder gave NaN" if stage == "text" else r"loss is nan in step 0"
    with pytest.raises(NonFiniteError, match=what) as error:
        train(ready)
    assert ("apple" if stage == "text" else ".png") in error.value.why
    assert not (tmp_path / "checkpoints").exists()


def test_steps_that_are_not_finite_can_be_left_out(
    sd_folder: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ready = prepare(make_settings(sd_folder, pictures, tmp_path, run__on_non_finite="skip"))
    real = ready.examples.batch

    def broken(number: int):
        batch = real(number)
        if number == 1:
            batch.latents[0, 0, 0, 0] = float("nan")
        return batch

    monkeypatch.setattr(ready.examples, "batch", broken)
    train(ready)
    assert all(x.isfinite().all() for x in state_of(tmp_path)["model"].values())


# --- looking at it -------------------------------------------------------------------------------


def test_pictures_heatmaps_drift_and_the_held_out_loss(
    sd_folder: Path, pictures: Path, tmp_path: Path
):
    how = {"data__held_out": 1, "validation__images": 2, "validation__steps": 2}
    how |= {"data__trigger": "zork", "run__sample_every": 2, "validation__other_prompts": ["a cat"]}
    ready, paths = run(make_settings(sd_folder, pictures, tmp_path, **how))
    rows = [json.loads(line) for line in (tmp_path / "evaluation.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 2, 4]
    assert rows[0]["drift_of_others"] == 0 < rows[2]["drift_of_others"]
    assert all(0 < row["validation_loss"] < 10 for row in rows)
    samples = json.loads((tmp_path / "samples" / "samples.json").read_text())
    assert [row["step"] for row in samples["rows"]] == [0, 2, 4]
    assert all((tmp_path / "samples" / row["file"]).exists() for row in samples["rows"])
    assert all((tmp_path / "samples" / row["heatmap"]).exists() for row in samples["rows"])
    assert len(samples["prompts"]) == 2 and all("zork" in prompt for prompt in samples["prompts"])
    best = min(rows, key=lambda row: row["validation_loss"])
    assert (tmp_path / "best" / "model.safetensors").exists() and best
    assert [path.name for path in paths] == [
        f"{tmp_path.name}.safetensors",
        f"{tmp_path.name}-best.safetensors",
    ]
    assert len(ready.scan.held_out) == 1


def test_looking_changes_nothing(sd_folder: Path, pictures: Path, tmp_path: Path):
    how = {"run__ema_decay": 0.9, "lora__dropout": 0.2, "data__held_out": 1}
    run(make_settings(sd_folder, pictures, tmp_path / "blind", **how))
    looking = {"validation__images": 1, "validation__steps": 1, "run__sample_every": 1}
    run(make_settings(sd_folder, pictures, tmp_path / "looking", **how, **looking))
    assert_same_state(tmp_path / "blind", tmp_path / "looking")


def test_it_stops_where_it_gets_no_better(sd_folder: Path, pictures: Path, tmp_path: Path):
    how = {"data__held_out": 1, "validation__patience": 2, "run__sample_every": 1}
    how |= {"run__steps": 50, "run__learning_rate": 3.0}  # which only gets worse
    run(make_settings(sd_folder, pictures, tmp_path, **how))
    assert len(losses_of(tmp_path)) < 50


# --- stopping ------------------------------------------------------------------------------------


def test_a_signal_finishes_the_step_and_saves(
    sd_folder: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run(make_settings(sd_folder, pictures, tmp_path / "straight"))
    settings = make_settings(sd_folder, pictures, tmp_path / "stopped")
    ready = prepare(settings)
    real = ready.examples.batch

    def asked(number: int):
        if number == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return real(number)

    monkeypatch.setattr(ready.examples, "batch", asked)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted) as stop:
        train(ready)
    assert (stop.value.signal, stop.value.step) == (signal.SIGINT, 3)
    assert signal.getsignal(signal.SIGINT) is before
    run(settings)
    assert_same_state(tmp_path / "straight", tmp_path / "stopped")


@pytest.mark.slow
@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_the_same_command_goes_on(
    asked, sd_folder: Path, pictures: Path, tmp_path: Path
):
    settings = [
        *(f"model={sd_folder}", f"data={pictures}", "run.steps=20", "run.batch_size=2"),
        *("run.learning_rate=1e-3", "run.log_every=1", "validation.images=0", "run.precision=no"),
    ]
    command = [sys.executable, str(ROOT / "train" / "finetune.py"), *settings]
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    subprocess.run([*command, f"run.folder={straight}"], check=True, capture_output=True)
    process = subprocess.Popen(
        [*command, f"run.folder={stopped}"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    metrics = stopped / "metrics.jsonl"
    until = time.monotonic() + 120
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 3):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, asked)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + asked and "the same command goes on" in said
    done = len(losses_of(stopped))
    assert 3 < done < 20
    again = subprocess.run(
        [*command, f"run.folder={stopped}"], check=True, capture_output=True, text=True
    )
    assert f"step-{done:08d}" in again.stdout and "paint with it" in again.stdout
    assert_same_state(straight, stopped)


def two_processes(**values: object) -> None:
    """Train in two processes on the CPU, joined by gloo."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    settings = {**QUICK, **{name.replace("__", "."): value for name, value in values.items()}}
    texts = [f"{name}={value}" for name, value in settings.items()]
    command = [sys.executable, *launch, str(ROOT / "train" / "finetune.py"), *texts]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]


def assert_close_state(one: Path, other: Path) -> None:
    """Weights and losses of two runs are equal but for the order of sums."""
    ours, theirs = state_of(one)["model"], state_of(other)["model"]
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-5)
    losses, others = losses_of(one), losses_of(other)
    assert losses.keys() == others.keys()
    assert all(abs(losses[step] - others[step]) <= 1e-5 for step in losses)


@pytest.mark.slow
def test_two_processes_are_one_with_accumulation(sd_folder: Path, pictures: Path, tmp_path: Path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    run(make_settings(sd_folder, pictures, alone, run__accumulate=2, run__batch_size=1))
    two_processes(model=sd_folder, data=pictures, run__folder=together, run__batch_size=1)
    assert_close_state(together, alone)


@pytest.mark.slow
def test_a_divided_network_is_a_whole_one(sd_folder: Path, pictures: Path, tmp_path: Path):
    """FSDP2 in two processes, with a look and a stop on the way: as one process, and resumable."""
    changes: dict[str, object] = {"method": "full", "run__batch_size": 1, "run__ema_decay": 0.9}
    changes |= {"validation__images": 1, "validation__steps": 2, "run__sample_every": 2}
    changes |= {"data__held_out": 1}
    alone, divided = tmp_path / "alone", tmp_path / "divided"
    run(make_settings(sd_folder, pictures, alone, run__accumulate=2, **changes))
    shared = {"model": sd_folder, "data": pictures, "run__folder": divided, **changes}
    two_processes(**shared, run__shard="true", run__steps=2)
    two_processes(**shared, run__shard="true")
    assert_close_state(divided, alone)
    ours, theirs = (state_of(folder)["average"] for folder in (divided, alone))
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-5)
    assert (divided / "samples" / "step-000004.png").exists()
    one, two = (TextToImage.from_pretrained(f / f.name).unet.state_dict() for f in (divided, alone))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=0, atol=1e-3)  # written in float16


@pytest.mark.parametrize(
    "changes",
    [{"run__optimizer": "muon"}, {"full__text_encoder": True}, {"run__precision": "fp16"}],
)
def test_what_a_divided_network_cannot_do_is_refused(
    changes: dict[str, object], sd_folder: Path, pictures: Path, tmp_path: Path
):
    settings = make_settings(
        sd_folder, pictures, tmp_path, method="full", run__shard=True, **changes
    )
    ready = prepare(settings, cache=False)
    with pytest.raises(UsageError, match="shard cannot be used"):
        check_sharding(ready.settings.run, dict(trained(ready.method.network)))


# --- before anything -----------------------------------------------------------------------------


def test_a_dry_run_says_everything_and_trains_nothing(
    sd_folder: Path, pictures: Path, tmp_path: Path
):
    text = summary(prepare(make_settings(sd_folder, pictures, tmp_path, data__trigger="zork")))
    for said in (
        "4 found, 4 used, 0 skipped",
        "a | blue | apple",
        "4, each of 2 pictures",
        "GB of memory",
    ):
        assert said in text, said
    assert not (tmp_path / "checkpoints").exists()


def test_a_dry_run_refuses_what_the_run_would(sd_folder: Path, pictures: Path, tmp_path: Path):
    run(make_settings(sd_folder, pictures, tmp_path / "run", run__steps=2))

    def dry(cache: bool = False, **changes: object) -> None:
        settings = make_settings(
            sd_folder, pictures, tmp_path / "run", **{"run__steps": 2, **changes}
        )
        prepare(settings, cache=cache)

    dry(run__log_every=3)  # may change
    (tmp_path / "again").symlink_to(pictures)
    prepare(make_settings(sd_folder, tmp_path / "again", tmp_path / "run", run__steps=2))
    for changes, said in (
        ({"run__seed": 4}, "run with other settings"),
        ({"run__optimizer": "adamw_8bit"}, "adamw_8bit is not installed"),
        ({"run__tracker": "wandb"}, "wandb is not installed"),
        ({"noise__zero_terminal_snr": True}, "zero_terminal_snr"),
    ):
        with pytest.raises(UsageError) as refused:
            dry(**changes)
        assert said in str(refused.value)
    lock = lock_folder(tmp_path / "run")
    with pytest.raises(UsageError, match="Another run"):
        dry()
    lock.release()
    caption = pictures / "red.txt"
    before = caption.read_text("utf-8")
    caption.write_text("another one", "utf-8")
    try:
        with pytest.raises(UsageError, match="other pictures or captions"):
            dry()
    finally:
        caption.write_text(before, "utf-8")
    weights = next((tmp_path / "run" / "checkpoints").glob("*/model*"))
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(FileError, match="No checkpoint"):
        dry()


def test_captions_that_all_say_nothing_are_warned_of(
    sd_folder: Path, pictures: Path, tmp_path: Path
):
    with pytest.warns(UserWarning, match="shows in pictures of every prompt"):
        prepare(make_settings(sd_folder, pictures, tmp_path, data__captions="none"), cache=False)


def test_a_full_disk_is_found_before_the_first_step(
    sd_folder: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(FileError, match="too little room"):
        run(make_settings(sd_folder, pictures, tmp_path))


@pytest.mark.slow
def test_the_class_is_not_forgotten_by_loss_alone(sd_folder: Path, pictures: Path, tmp_path: Path):
    """DreamBooth: as many class pictures as others in each epoch, with a weight of their own."""
    prior = write_pictures(tmp_path / "class")
    for path in prior.glob("*.txt"):
        path.unlink()
    for path in prior.glob("*.png"):
        path.write_bytes(path.read_bytes() + b"\0")  # other files than those that are trained on
    how = {"data__prior": {"source": str(prior), "prompt": "a cat", "weight": 0.5}}
    ready, _ = run(make_settings(sd_folder, pictures, tmp_path / "run", **how))
    assert ready.order.samples_per_epoch == 8
    batches = [ready.examples.batch(number) for number in range(ready.order.per_epoch)]
    weights = torch.cat([batch.weights for batch in batches])
    captions = [caption for batch in batches for caption in batch.captions]
    assert (weights == 0.5).sum() == 4 == captions.count("a cat")


def test_the_run_is_closed_also_after_an_error(sd_folder: Path, pictures: Path, tmp_path: Path):
    ready = prepare(make_settings(sd_folder, pictures, tmp_path))
    other = Run(ready.settings, ready.settings.run, ready.method.network, parallel=True)
    with pytest.raises(UsageError, match="Another run"):
        run(make_settings(sd_folder, pictures, tmp_path))
    other.close()
    run(make_settings(sd_folder, pictures, tmp_path))
