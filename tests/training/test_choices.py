"""What a fine-tuning takes where nothing is said."""

from __future__ import annotations

from pathlib import Path

from sdcore.training.choices import choose_folder, idle
from sdcore.training.finetune_settings import FinetuneSettings
from sdcore.training.settings import load_settings, save_settings


def settings(*texts: str) -> FinetuneSettings:
    return load_settings(FinetuneSettings, None, ["data=my/pictures", *texts])


def begin(*texts: str) -> str:
    """The folder of a run, which has begun and chosen its batch."""
    chosen = choose_folder(settings(*texts))
    run = chosen.run.model_copy(update={"batch_size": chosen.run.batch_size or 8})
    lora = chosen.lora.model_copy(update={"rank": chosen.lora.rank or 16, "targets": ["all"]})
    Path(run.folder).mkdir(parents=True, exist_ok=True)
    save_settings(
        chosen.model_copy(update={"run": run, "lora": lora}), Path(run.folder) / "resolved.yaml"
    )
    return run.folder


def test_a_second_experiment_has_a_folder_of_its_own(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert begin() == "runs/pictures-lora"
    assert begin() == "runs/pictures-lora", "the same command goes on"
    assert begin("run.steps=900", "run.log_every=3") == "runs/pictures-lora", "these may change"
    assert begin("run.seed=1") == "runs/pictures-lora-2"
    assert begin("data.trigger=zork") == "runs/pictures-lora-3"
    assert begin("run.seed=1") == "runs/pictures-lora-2"
    assert begin("method=full") == "runs/pictures-full"
    assert begin("run.folder=runs/mine") == "runs/mine"


def test_settings_that_cannot_be_read_are_left_to_the_run(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (Path(begin()) / "resolved.yaml").write_text("run: [", "utf-8")
    assert choose_folder(settings()).run.folder == "runs/pictures-lora"


def test_settings_without_effect_are_known() -> None:
    def of(*texts: str) -> list[str]:
        return idle(settings(*texts))

    assert not of() and not of("method=full", "full.layers=cross", "lora.kind=lora")
    assert of("method=full", "lora.rank=4", "lora.targets=cross") == ["lora.rank", "lora.targets"]
    assert of("full.text_encoder=true", "inversion.vectors=3") == [
        "full.text_encoder",
        "inversion.vectors",
    ]
    assert of("text_encoder_rate=1e-4") == ["text_encoder_rate"]
    assert not of("text_encoder_rate=1e-4", "lora.text_encoder=true")
    assert of("method=textual_inversion", "inversion.token=x", "lora.rank=4") == ["lora.rank"]
