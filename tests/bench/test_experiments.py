"""The experiments: settings that fit, rows that are kept, a table that counts what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from bench.experiments import BASE, RESULTS, Experiments, _check, main, read_rows, run, table
from sdcore.errors import UsageError
from sdcore.text.encoder import CLIPTextEncoder
from sdcore.training.settings import load_settings
from tests.train.emoji.tiny_recipe import write_drawings, write_networks
from train.emoji.data.settings import DataSettings

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "train" / "experiments.yaml"


def row(name: str, verdicts: list[dict[str, bool]], asked: str = "a", **said: object) -> dict:
    settings = {"unet": {}, "first": {}, "guidance_scale": None, "autoencoder": None, **said}
    losses = {"right": 0.25, "wrong concept": 0.0015}
    figures = {"asked": asked, "losses": losses, "images": 19200, "minutes": 10.4}
    return {"name": name, "settings": settings, "verdicts": verdicts, **figures}


def cells(text: str) -> dict[str, dict[str, str]]:
    lines = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines()]
    return {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]}


def test_every_experiment_of_the_file_fits_the_recipes(tmp_path: Path) -> None:
    settings = load_settings(Experiments, CONFIG)
    _check(settings, tmp_path)
    assert sum(not one.long for one in settings.experiments.values()) >= 15
    wrong = settings.model_dump(mode="json")
    wrong["experiments"]["rate-double"]["unet"] = {"run.learning_rat": 1.0}
    with pytest.raises(UsageError, match="learning_rate"):
        _check(Experiments.model_validate(wrong), tmp_path)
    wrong["experiments"]["rate-double"] = {"why": "", "unet": {"heads": 2}, "guidance_scale": 2}
    with pytest.raises(UsageError, match="two things"):
        _check(Experiments.model_validate(wrong), tmp_path)
    with pytest.raises(UsageError, match="rate-double"):
        run(settings, ["rate-duble"], tmp_path)


def test_names_may_follow_the_flags(tmp_path, monkeypatch, capsys) -> None:
    line = ["experiments", "run", "--config", str(CONFIG), "--out", str(tmp_path), "rate-duble"]
    monkeypatch.setattr("sys.argv", line)
    with pytest.raises(SystemExit):
        main()
    assert "no experiment 'rate-duble'" in capsys.readouterr().err


def test_a_row_of_other_settings_is_not_taken_for_this_one(tmp_path: Path) -> None:
    settings = load_settings(Experiments, CONFIG)
    (tmp_path / RESULTS).write_text(json.dumps(row(BASE, [{"concept": True}])) + "\n", "utf-8")
    with pytest.raises(UsageError, match="'base' was run already"):
        run(settings, ["rate-double"], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [RESULTS], "that run may still be going on"


def test_the_table_pairs_each_prompt_with_the_base_s() -> None:
    base = [{"concept": False, "place": True}, {"concept": True}, {"both objects": False}]
    better = [{"concept": True, "place": True}, {"concept": True}, {"both objects": False}]
    rows = [row(BASE, base), row("more", better, unet={"run.steps": 9}), row("x", better, "b")]
    found = cells(table(rows))
    assert list(found) == ["more", "x", BASE], "the best first"
    assert found[BASE]["score"].startswith("50.0 ±") and found["more"]["score"].startswith("66.7")
    assert found["more"]["minus base"] == "+16.7 ± 32.7"  # of 50, 0, 0
    assert found[BASE]["minus base"] == "-"
    assert found["x"]["minus base"] == "-", "another validation set"
    assert found["more"]["concept"].startswith("100 (") and found["more"]["background"] == "-"
    assert found["more"]["change"] == "run.steps 9" and found[BASE]["change"] == "none"
    assert found["more"]["wrong concept"] == "1.50" and found["more"]["wrong order"] == "-"


@pytest.mark.slow
def test_trained_scored_and_not_again(tmp_path: Path) -> None:
    names = ("fox", "owl", "cat", "star")
    values = yaml.safe_load(CONFIG.read_text("utf-8"))
    data = {"concepts": dict(zip(names, names, strict=True)), "styles": {"noto": "noto"}}
    data |= {"folder": str(tmp_path), "held_out_pairs_share": 0.0}
    write_drawings(DataSettings.model_validate(data))
    tiny = {"steps": 4, "batch_size": 2, "checkpoint_every": 2}
    values["unet"] |= {"data": data} | write_networks(tmp_path)
    values["unet"]["run"] |= tiny
    values["autoencoder"] = {"data": data, "run": values["autoencoder"]["run"] | tiny}
    values["autoencoder"] |= {"block_out_channels": [8, 8, 8]}
    more: dict = {"guided": {"why": "", "guidance_scale": 4.0}}
    more |= {"rate": {"why": "", "unet": {"run.learning_rate": 1e-5}}}
    more |= {"long": {"why": "", "autoencoder": {"equivariance_weight": 0.1}}}
    other = {"train_text_encoder": False, "prediction_type": "sample", "weighting": "min_snr"}
    staged = {"run.steps": 2, "data.two_objects_share": 0.0}
    more |= {"staged": {"why": "", "first": staged, "unet": other}}
    values |= {"prompts": 8, "scenes": 12, "experiments": more}
    settings, out = Experiments.model_validate(values), tmp_path / "out"

    run(settings, [], out)
    rows = read_rows(out)
    names = [BASE, "guided", "rate", "staged"]
    assert [one["name"] for one in rows] == names, "not the long one"
    assert rows[0]["losses"] == rows[1]["losses"] != rows[2]["losses"], "guidance trains nothing"
    assert all(len(one["verdicts"]) == 8 for one in rows)
    assert [one["images"] for one in rows] == [8, 8, 8, 12]
    assert {"right", "wrong concept", "wrong background"} <= rows[0]["losses"].keys()
    model = out / "staged" / "model"
    config = json.loads((model / "scheduler" / "scheduler_config.json").read_text("utf-8"))
    assert config["prediction_type"] == "sample"
    frozen = CLIPTextEncoder.from_pretrained(model / "text_encoder").state_dict()
    for name, weight in (
        CLIPTextEncoder.from_pretrained(tmp_path / "text_encoder").state_dict().items()
    ):
        assert torch.equal(frozen[name], weight.half().float()), name
    assert (out / BASE / "model" / "unet").is_dir() and not (out / BASE / "checkpoints").exists()
    run(settings, ["long", "rate"], out)
    assert [one["name"] for one in read_rows(out)] == [*names, "long"]
    assert read_rows(out)[:4] == rows
    assert (out / "long" / "autoencoder" / "vae").is_dir()
    assert '"moved"' in (out / "long" / "autoencoder" / "metrics.jsonl").read_text("utf-8")
