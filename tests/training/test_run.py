"""A run: N steps straight are, bit for bit, k steps, a kill and the rest; the learning rate."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from sdcore.errors import FileError, NonFiniteError, UsageError
from sdcore.training.run import Run
from sdcore.training.run_settings import RunSettings, learning_rate
from sdcore.training.settings import Settings, load_settings
from sdcore.training.state import generator, optimizer_tensors

STEPS = 10
EVERY = 4  # steps between checkpoints


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """accelerate remembers the first precision of a process; every test here chooses its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class Recipe(Settings):
    width: int = 32
    run: RunSettings


def recipe(folder: Path, **changes: object) -> Recipe:
    values = {"steps": STEPS, "batch_size": 3, "learning_rate": 0.02, "warmup_steps": 3}
    values |= {"checkpoint_every": EVERY, "log_every": 1, "ema_decay": 0.9, "precision": "no"}
    return Recipe(run=RunSettings.model_validate({"folder": str(folder), **values, **changes}))


def network(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Linear(4, width), nn.LayerNorm(width), nn.GELU()),
        *(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 2)),
    )


@dataclass
class End:
    """All that a run leaves behind."""

    model: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    losses: dict[int, float]  # unrounded
    logged: dict[int, tuple[float, float, float]]  # loss, gradient norm, learning rate


def train(settings: Recipe, until: int | None = None) -> End:
    """Train as the recipes do; `until` is the step in which the process dies."""
    run = Run(settings, settings.run, network(settings.width))
    losses = {}
    for step in run.steps():
        draws = [
            generator(settings.run.seed, "data", step, i) for i in range(settings.run.batch_size)
        ]
        data = torch.stack([torch.randn(4, generator=draw) for draw in draws])
        with run.autocast():
            output = run.module(data)
        loss = (output.float() - data[:, :2].sin()).square().mean()
        if step == until:
            break
        norm = run.update(loss)
        losses[step] = loss.item()
        run.log(loss=loss, grad_norm=norm)
    average = run.average.tensors if run.average else {}
    logged = {}
    for line in (run.folder / "metrics.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        logged[row["step"]] = (row["loss"], row["grad_norm"], row["lr"])
    AcceleratorState._reset_state(reset_partial_state=True)
    states = {
        f"{name}.{key}": tensor
        for name, optimizer in run.optimizers.items()
        for key, tensor in optimizer_tensors(optimizer).items()
    }
    return End(run.module.state_dict(), average, states, losses, logged)


def assert_equal_to_the_bit(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys() and ours
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("killed", [(1,), (4,), (5,), (9,), (3, 6, 9), (5, 5, 8)])
def test_resumed_is_straight_to_the_bit(
    killed: tuple[int, ...], optimizer: str, precision: str, tmp_path: Path
) -> None:
    straight = train(recipe(tmp_path / "straight", precision=precision, optimizer=optimizer))
    settings = recipe(tmp_path / "resumed", precision=precision, optimizer=optimizer)
    losses: dict[int, float] = {}
    for step in killed:
        losses |= train(settings, until=step).losses
    resumed = train(settings)

    assert_equal_to_the_bit(resumed.model, straight.model)
    assert_equal_to_the_bit(resumed.average, straight.average)
    assert_equal_to_the_bit(resumed.optimizer, straight.optimizer)
    assert losses | resumed.losses == straight.losses
    assert resumed.logged == straight.logged
    assert list(resumed.logged) == list(range(STEPS))
    first = killed[-1] // EVERY * EVERY
    assert min(resumed.losses) == first, "resumed from the newest checkpoint, not from the start"


def test_training_moves_and_bf16_is_not_fp32(tmp_path: Path) -> None:
    """Without this, equality above could be that of runs in which nothing happens."""
    single = train(recipe(tmp_path / "single"))
    half = train(recipe(tmp_path / "half", precision="bf16"))
    assert not torch.equal(single.model["0.weight"], network(6)[0].weight)
    assert not torch.equal(single.model["0.weight"], single.average["0.weight"])
    assert single.losses != half.losses


def test_no_average_unless_asked(tmp_path: Path) -> None:
    settings = recipe(tmp_path, ema_decay=0.0)
    assert train(settings).average == {}
    assert not list(tmp_path.rglob("average.safetensors"))


def test_resume_from_the_older_when_the_newest_is_damaged(tmp_path: Path) -> None:
    straight = train(recipe(tmp_path / "straight"))
    settings = recipe(tmp_path / "resumed")
    train(settings, until=9)
    newest = max((tmp_path / "resumed" / "checkpoints").iterdir())
    assert newest.name == "step-00000008"
    (newest / "model.safetensors").write_bytes(b"")
    resumed = train(settings)
    assert min(resumed.losses) == 4
    assert_equal_to_the_bit(resumed.model, straight.model)


def test_finished_run_does_nothing_more(tmp_path: Path) -> None:
    first = train(recipe(tmp_path))
    again = train(recipe(tmp_path))
    assert again.losses == {}
    assert_equal_to_the_bit(again.model, first.model)
    assert_equal_to_the_bit(again.average, first.average)


def test_run_is_prolonged_from_before_the_fall(tmp_path: Path) -> None:
    straight = train(recipe(tmp_path / "long", steps=16, decay_share=0.25))
    train(recipe(tmp_path / "prolonged", decay_share=0.25), until=5)
    prolonged = train(recipe(tmp_path / "prolonged", steps=16, decay_share=0.25))
    assert_equal_to_the_bit(prolonged.model, straight.model)


def test_average_switched_on_midway_is_refused(tmp_path: Path) -> None:
    train(recipe(tmp_path, ema_decay=0.0), until=5)
    with pytest.raises(UsageError, match="ema_decay"):
        train(recipe(tmp_path, ema_decay=0.9))


def test_another_network_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    train(recipe(tmp_path), until=5)
    before = (tmp_path / "resolved.yaml").read_text("utf-8")
    with pytest.raises(UsageError, match="width was 32, is 7"):
        train(recipe(tmp_path).model_copy(update={"width": 7}))
    assert (tmp_path / "resolved.yaml").read_text("utf-8") == before


@pytest.mark.parametrize("change", [{"seed": 9}, {"batch_size": 4}, {"weight_decay": 0.1}])
def test_other_settings_do_not_go_on_with_the_run(tmp_path: Path, change: dict) -> None:
    train(recipe(tmp_path), until=5)
    with pytest.raises(UsageError, match=f"run.{next(iter(change))} was") as e:
        train(recipe(tmp_path, **change))
    assert "resolved.yaml" in str(e.value)


def test_resolved_settings_repeat_the_run(tmp_path: Path) -> None:
    first = train(recipe(tmp_path / "run", seed=3))
    resolved = load_settings(Recipe, tmp_path / "run" / "resolved.yaml")
    again = train(resolved.model_copy(update={"run": resolved.run.model_copy(
        update={"folder": str(tmp_path / "again")})}))  # fmt: skip
    assert_equal_to_the_bit(again.model, first.model)
    assert again.losses == first.losses


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_loss_stops_with_the_step_and_leaves_the_weights(
    value: float, tmp_path: Path
) -> None:
    settings = recipe(tmp_path)
    run = Run(settings, settings.run, network(settings.width))
    before = {name: tensor.clone() for name, tensor in run.module.state_dict().items()}
    steps = run.steps()
    next(steps)
    run.update(run.module(torch.ones(1, 4)).sum())
    after_one = {name: tensor.clone() for name, tensor in run.module.state_dict().items()}
    next(steps)
    with pytest.raises(NonFiniteError, match="step 1"):
        run.update(run.module(torch.ones(1, 4)).sum() * value)
    assert not torch.equal(before["0.weight"], after_one["0.weight"])
    assert_equal_to_the_bit(dict(run.module.state_dict()), after_one)


def test_gradients_are_clipped_to_the_norm_asked_for(tmp_path: Path) -> None:
    settings = recipe(tmp_path, max_grad_norm=0.5)
    run = Run(settings, settings.run, network(settings.width))
    seen = []
    run.optimizers["optimizer"].register_step_pre_hook(
        lambda *_: seen.append(
            torch.cat([p.grad.flatten() for p in run.module.parameters()]).norm()
        )
    )
    norm = run.update(1000 * run.module(torch.randn(8, 4)).square().mean())
    assert norm > 10
    assert float(seen[0]) == pytest.approx(0.5, rel=1e-4)


def test_averaged_weights_are_swapped_in_and_out_also_after_an_error(tmp_path: Path) -> None:
    settings = recipe(tmp_path)
    run = Run(settings, settings.run, network(settings.width))
    for _ in run.steps():
        run.update(run.module(torch.ones(2, 4)).square().mean())
    trained = {name: p.detach().clone() for name, p in run.module.named_parameters()}
    average = {name: tensor.clone() for name, tensor in run.average.tensors.items()}
    with pytest.raises(KeyError), run.averaged():
        assert_equal_to_the_bit(dict(run.module.named_parameters()), average)
        raise KeyError
    assert_equal_to_the_bit(dict(run.module.named_parameters()), trained)
    assert_equal_to_the_bit(run.average.tensors, average)


@pytest.mark.parametrize(("warmup", "share", "steps"), [(10, 0.25, 80), (1, 1.0, 40), (0, 0.0, 20)])
def test_learning_rate_against_its_closed_form(warmup: int, share: float, steps: int) -> None:
    top = 3e-4
    settings = RunSettings(
        folder="",
        steps=steps,
        batch_size=1,
        learning_rate=top,
        warmup_steps=warmup,
        decay_share=share,
    )
    fall_starts = steps - share * steps
    for step in range(steps):
        expected = top
        if step < warmup:
            expected *= (step + 1) / warmup
        if step > fall_starts:
            expected *= (steps - step) / (steps - fall_starts)
        assert abs(learning_rate(settings, step) - expected) <= 1e-12


def test_learning_rate_reaches_every_optimizer(tmp_path: Path) -> None:
    settings = recipe(tmp_path, optimizer="muon")
    run = Run(settings, settings.run, network(settings.width))
    seen = []
    for _ in run.steps():
        optimizers = run.optimizers.values()
        seen.append({group["lr"] for one in optimizers for group in one.param_groups})
        run.update(run.module(torch.ones(1, 4)).sum())
    assert seen == [{learning_rate(settings.run, step)} for step in range(STEPS)]


def test_several_processes_are_refused_rather_than_trained_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    with pytest.raises(UsageError, match="2 processes"):
        train(recipe(tmp_path))


# --- what is in the folder -----------------------------------------------------------------------


def test_a_second_run_in_one_folder_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    settings = recipe(tmp_path)
    first = Run(settings, settings.run, network(settings.width))
    with pytest.raises(UsageError, match="Another run is at work"):
        Run(settings, settings.run, network(settings.width))
    del first
    Run(settings, settings.run, network(settings.width))


def test_nothing_starts_anew_where_all_checkpoints_are_damaged(tmp_path: Path) -> None:
    train(recipe(tmp_path), until=9)
    checkpoints = sorted((tmp_path / "checkpoints").iterdir())
    for path in checkpoints:
        (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(FileError, match="step-00000004 is damaged") as error:
        train(recipe(tmp_path))
    assert "No checkpoint" in error.value.what and "step-00000008" in error.value.why
    assert sorted((tmp_path / "checkpoints").iterdir()) == checkpoints


def test_a_copy_that_a_user_keeps_is_neither_read_nor_removed(tmp_path: Path) -> None:
    train(recipe(tmp_path, keep=1), until=5)
    copy = tmp_path / "checkpoints" / "step-00000004-best"
    shutil.copytree(tmp_path / "checkpoints" / "step-00000004", copy)
    train(recipe(tmp_path, keep=1))
    names = sorted(path.name for path in copy.parent.iterdir())
    assert names == ["step-00000004-best", "step-00000010"]


def test_a_link_to_a_checkpoint_elsewhere_is_neither_read_nor_removed(tmp_path: Path) -> None:
    train(recipe(tmp_path, keep=1), until=5)
    link = tmp_path / "checkpoints" / "step-00000003"
    link.symlink_to(link.with_name("step-00000004"), target_is_directory=True)
    train(recipe(tmp_path, keep=1))
    assert sorted(path.name for path in link.parent.iterdir()) == [link.name, "step-00000010"]


def test_a_checkpoint_of_other_settings_is_named_where_those_are_lost(tmp_path: Path) -> None:
    train(recipe(tmp_path, ema_decay=0.0), until=5)
    (tmp_path / "resolved.yaml").unlink()
    wider = recipe(tmp_path, ema_decay=0.0).model_copy(update={"width": 5})
    averaged, scaled = recipe(tmp_path), recipe(tmp_path, ema_decay=0.0, precision="fp16")
    for other, why in ((wider, "tensors differ"), (averaged, "average"), (scaled, "scaler")):
        with (
            pytest.warns(UserWarning, match="is gone"),
            pytest.raises(FileError, match="is of a run with other settings") as caught,
        ):
            train(other)
        assert why in caught.value.why


def test_settings_that_cannot_be_read_are_said_with_a_way_on(tmp_path: Path) -> None:
    straight = train(recipe(tmp_path / "straight"))
    train(recipe(tmp_path / "run"), until=5)
    resolved = tmp_path / "run" / "resolved.yaml"
    whole = resolved.read_text("utf-8")
    for damaged in (whole[: whole.index("seed")], whole[:20] + ": [", ""):
        resolved.write_text(damaged)
        with pytest.raises(FileError, match="cannot be read") as error:
            train(recipe(tmp_path / "run"))
        assert f"remove {resolved}" in error.value.hint
    resolved.unlink()
    with pytest.warns(UserWarning, match="is gone"):
        resumed = train(recipe(tmp_path / "run"))
    assert_equal_to_the_bit(resumed.model, straight.model)


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileError, match="could not be written"):
        train(recipe(tmp_path / "file" / "run"))


def test_half_a_line_of_metrics_does_not_stay(tmp_path: Path) -> None:
    train(recipe(tmp_path), until=5)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    assert list(train(recipe(tmp_path)).logged) == [0, 1, 2, 3, 4, *range(5, STEPS)]


def test_a_tracker_gets_settings_and_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, object]] = []
    monkeypatch.setattr("sdcore.training.processes.find_spec", lambda name: True)
    monkeypatch.setattr(
        Accelerator, "init_trackers", lambda self, name, config: told.append((name, config))
    )
    monkeypatch.setattr(Accelerator, "log", lambda self, row, step: told.append((step, row)))
    monkeypatch.setattr(Accelerator, "end_training", lambda self: told.append(("end", None)))
    settings = recipe(tmp_path, tracker="tensorboard", steps=2, log_every=1)
    run = Run(settings, settings.run, network(settings.width))
    for _ in run.steps():
        run.log(loss=1.5, grad_norm=run.update(run.module(torch.ones(1, 4)).sum()))
    run.close()
    assert told[0] == (tmp_path.name, {**told[0][1], "run.steps": 2})
    assert [step for step, _ in told[1:]] == [0, 1, "end"] and told[1][1]["loss"] == 1.5


def test_a_tracker_that_is_not_there_is_named(tmp_path: Path) -> None:
    settings = recipe(tmp_path, tracker="trackio")
    with pytest.raises(UsageError, match="tracker trackio is not installed"):
        Run(settings, settings.run, network(settings.width))
