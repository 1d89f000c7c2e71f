"""Score against scenes seen: the fit, what it says, and the checkpoints of a real tiny run."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.numpy import save_file

from bench import learning_curve
from bench.curve_chart import draw
from bench.curve_fit import Score, fit, scenes, verdict
from bench.learning_curve import open_checkpoint, scenes_before
from sdcore.errors import FileError, UsageError
from sdcore.training.state import load_checkpoint
from train.emoji import pretrain_unet
from train.emoji.data.settings import DataSettings
from train.emoji.pretrain_unet import UNetSettings


def line(start: float, slope: float, images: Sequence[int], count: int = 100_000) -> list[Score]:
    """Scores that lie on a curve."""
    shares = [1 / (1 + math.exp(-(start + slope * math.log10(x)))) for x in images]
    return [Score(x, round(count * p), count) for x, p in zip(images, shares, strict=True)]


def test_the_fit_finds_the_curve_and_where_it_crosses() -> None:
    curve = fit(line(-12, 2.4, (16_000, 64_000, 256_000)))
    assert curve and curve.dispersion == 1
    assert (curve.start, curve.slope) == pytest.approx((-12, 2.4), abs=0.02)
    middle, low, high = curve.crossing(0.85)
    assert middle == pytest.approx(10 ** ((math.log(0.85 / 0.15) + 12) / 2.4), rel=0.02)
    assert low < middle < high and curve.share(middle) == pytest.approx(0.85)


def test_the_interval_holds_the_crossing_as_often_as_it_says() -> None:
    random, held, images = np.random.default_rng(0), 0, (20_000, 40_000, 80_000, 160_000, 320_000)
    truth = 10 ** ((math.log(0.85 / 0.15) + 12) / 2.4)
    for _ in range(100):
        exact = line(-12, 2.4, images)
        drawn = [Score(s.images, int(random.binomial(120, s.hits / s.count)), 120) for s in exact]
        curve = fit(drawn)
        assert curve
        _, low, high = curve.crossing(0.85)
        held += low <= truth <= high
    assert held >= 88


def test_what_a_curve_says() -> None:
    images = (20_000, 40_000, 80_000, 160_000)
    inside = verdict(line(-18, 4, images, 200), 0.85)
    assert inside.startswith("crosses 85 % at 85,000 scenes") and "within" in inside
    beyond = verdict(line(-12, 2.4, images, 200), 0.85)
    assert beyond.startswith("would cross") and "times what was seen, if it goes on" in beyond
    assert "no support" in verdict(line(-12, 2.0, images, 2000), 0.85)  # eight times too far
    assert "do not surely rise" in verdict(line(0, 0, images, 200), 0.85)
    assert "do not surely rise" in verdict(line(6, -1, images, 200), 0.85)
    assert "three models" in verdict(line(-12, 2.4, images[:2]), 0.85)
    assert "three models" in verdict([Score(x, 0, 50) for x in images], 0.85)
    hits, wide = (2, 4, 120, 110, 125, 290, 296), (10_000, *images, 320_000, 640_000)
    jumps = [Score(x, right, 300) for x, right in zip(wide, hits, strict=True)]
    assert "far off the curve" in verdict(jumps, 0.85)
    assert (scenes(1_234_567), scenes(94_432)) == ("1.2 million", "94,000")
    assert scenes(math.inf) == "no number of"


@pytest.mark.parametrize("hits", [(0, 25, 50), (50, 25, 0), (0, 0, 1, 50, 50), (0, 50, 50)])
def test_scores_that_jump_at_one_place_decide_no_curve(hits: tuple[int, ...]) -> None:
    found = [Score(1000 * 2**i, right, 50) for i, right in enumerate(hits)]
    assert fit(found) is None and "three models" in verdict(found, 0.85)


@pytest.mark.filterwarnings("error")
def test_a_steep_curve_is_followed_far_out() -> None:
    hits = {1000: 0, 8000: 1, 8100: 149, 10**9: 150}
    curve = fit([Score(images, right, 150) for images, right in hits.items()])
    assert curve and curve.share(1) == 0 and curve.share(10**12) == 1
    assert 8000 < curve.crossing(0.85)[0] < 8100


def test_the_chart(tmp_path: Path) -> None:
    runs = {"a <run>": line(-12, 2.4, (16_000, 64_000, 256_000)), "b": [Score(50_000, 3, 9)]}
    draw(tmp_path / "curve.svg", runs, "concept", 0.85)
    text = (tmp_path / "curve.svg").read_text("utf-8")
    assert text.count("<circle") == 4 and text.count("<polyline") == 2
    assert "a &lt;run&gt;" in text and "aim 85" in text and ">200 k<" in text and ">1 M<" in text


@pytest.fixture(scope="module")
def settings(
    tmp_path_factory: pytest.TempPathFactory, sd_folder: Path, few_captions: None
) -> UNetSettings:
    """A run of three steps, each of which leaves a checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    data = DataSettings(
        concepts={name: name for name in ("fox", "cat", "tree", "apple")},
        styles={name: name for name in ("noto", "flat")},
        held_out_pairs_share=0.0,
        folder=str(folder),
    )
    random = np.random.default_rng(0)
    pictures = {f"{s}/{c}": np.full((128, 128, 4), 255, np.uint8)
                for s in data.styles for c in data.concepts}  # fmt: skip
    for picture in pictures.values():
        picture[..., :3] = random.integers(0, 256, 3)
    save_file(pictures, folder / "drawings.safetensors")
    run = {"folder": str(folder / "run"), "steps": 3, "batch_size": 2, "learning_rate": 1e-3}
    run |= {"sample_every": 9, "checkpoint_every": 1, "keep": 3, "ema_decay": 0.5}
    settings = UNetSettings.model_validate(
        {
            "data": data.model_dump(),
            "autoencoder": str(sd_folder / "vae"),
            "text_encoder": str(sd_folder),
            "block_out_channels": [32, 32],
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
            "run": run | {"precision": "no"},
        }
    )
    AcceleratorState._reset_state(reset_partial_state=True)  # it remembers the first precision
    pretrain_unet.train(settings)
    AcceleratorState._reset_state(reset_partial_state=True)
    return settings


def test_the_checkpoints_of_a_run(
    settings: UNetSettings, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = Path(settings.run.folder)
    command = [str(run), "--prompts", "20", "--steps", "1", "--out", str(tmp_path)]
    learning_curve.run(learning_curve._parser().parse_args(command))
    printed = capsys.readouterr().out
    assert all(f"| {2 * step} |" in printed for step in (1, 2, 3))
    assert "first weights" not in printed and (tmp_path / "learning_curve.svg").is_file()
    path = tmp_path / "learning_curve.json"
    kept = json.loads(path.read_text("utf-8"))
    scored = kept["runs"][str(run)]
    assert list(scored) == [f"step-0000000{step}" for step in (1, 2, 3)]
    assert scored["step-00000003"]["background"][1] == 20
    # What was scored is not painted again.
    scored["step-00000001"]["background"] = [17, 20]
    path.write_text(json.dumps(kept), "utf-8")
    again = learning_curve._parser().parse_args([*command, "--measure", "background"])
    learning_curve.run(again)
    assert "| 2 | 85.0 (64-95, n 20) |" in capsys.readouterr().out
    again.measure = "relation"
    for checkpoint in scored.values():
        checkpoint["relation"] = [0, 0]
    path.write_text(json.dumps(kept), "utf-8")
    with pytest.raises(UsageError, match="relation"):
        learning_curve.run(again)
    again.seed = 1
    with pytest.raises(UsageError, match="cannot stand on one curve"):
        learning_curve.run(again)


def test_a_checkpoint_is_opened_with_its_averaged_weights(
    settings: UNetSettings, tmp_path: Path
) -> None:
    run = shutil.copytree(settings.run.folder, tmp_path / "run")
    for step in (1, 3):
        checkpoint = run / "checkpoints" / f"step-0000000{step}"
        average = load_checkpoint(checkpoint)[1]["average"]
        for _ in range(2):  # from the exported model; without it, from what the run was given
            unet = open_checkpoint(run, settings, checkpoint).unet
            for name, weight in unet.named_parameters():
                assert torch.equal(weight, average[f"unet.{name}"])
            shutil.rmtree(run / "model", ignore_errors=True)
    with pytest.raises(FileError, match="no training run"):
        learning_curve.checkpoints(tmp_path)


def test_a_run_goes_on_from_another_ones_scenes(settings: UNetSettings, tmp_path: Path) -> None:
    runs = [tmp_path / name for name in "abc"]
    starts = ("", tmp_path / "a" / "model" / "unet", tmp_path / "b" / "model" / "unet")
    for run, start in zip(runs, starts, strict=True):
        run.mkdir()
        text = f"start_from: {str(start)!r}\nrun: {{steps: 10, batch_size: 4}}\n"
        (run / "resolved.yaml").write_text(text, "utf-8")
    assert [scenes_before(run, runs)[0] for run in runs] == [0, 40, 80]
    assert scenes_before(runs[2], runs[2:]) == (0, str(starts[2]))  # not known, and said
