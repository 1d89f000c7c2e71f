"""Old checkpoints read in a closed process, models between folder and file."""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors import safe_open
from safetensors.torch import load_file

from sdcore import TextToImage
from sdcore.app import convert, convert_worker

WORKER = convert.WORKER


@pytest.fixture
def run(tmp_path, capsys):
    """Convert what `content` is when torch saves it: exit code, new file, what went to stderr."""

    def call(content: object, *flags: str, suffix: str = ".ckpt", **how) -> tuple[int, Path, str]:
        old, new = tmp_path / f"old{suffix}", tmp_path / "new.safetensors"
        if content is not None:
            torch.save(content, old, **how)
        code = convert.main([str(old), str(new), *flags])
        assert not list(tmp_path.glob(".converting*"))
        return code, new, capsys.readouterr().err

    return call


def convert_here(content: object, folder: Path, name: str = "", dtype=None, **how) -> Path:
    """What the closed process does, in this one."""
    torch.save(content, folder / "old.pt", **how)
    convert_worker.convert(folder / "old.pt", folder, name, dtype)
    return folder / "converted.safetensors"


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint(run, tmp_path, zipped):
    shared = torch.randn(4, 4)
    weights = {
        "a": torch.randn(3, 5),
        "half": torch.randn(4).half(),
        "ids": torch.arange(77),
        "shared": shared,
        "again": shared,
        "part": shared[:2],
        "turned": shared.t(),
        "none": torch.zeros(0),
    }
    content = {"state_dict": {**weights, "note": "x"}, "epoch": 3, "optimizer_states": [{}]}
    if zipped:
        code, new, err = run(content)
        assert code == 0 and "left out, no weights: epoch, optimizer_states, note" in err
    else:
        new = convert_here(content, tmp_path, _use_new_zipfile_serialization=False)
    found = load_file(new)
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype


def test_the_network_is_shut_off_while_it_is_open():
    code = f"""
import runpy, socket
worker = runpy.run_path({str(WORKER)!r}, run_name="worker")
"""
    code += "server = socket.create_server(('127.0.0.1', 0)); address = server.getsockname()\n"
    code += "socket.create_connection(address).close()\n"
    # torch's threads are there by now in this process, so the system call is made in a fresh one.
    code += "import os\npid = os.fork()\nif pid: os._exit(os.waitpid(pid, 0)[1] >> 8)\n"
    code += "if not worker['shut_network'](): os._exit(7)\n"
    code += "try: socket.create_connection(address, 1)\nexcept OSError: os._exit(0)\nos._exit(1)"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode == 7:
        pytest.skip("this system lets no process leave its network")
    assert done.returncode == 0


@pytest.mark.parametrize(("name", "token"), [("", "<cat-toy>"), ("my-cat", "my-cat")])
def test_a_textual_inversion(run, tmp_path, name, token):
    vectors = torch.nn.Parameter(torch.randn(3, 768))
    content = {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}}
    content |= {"name": "<cat-toy>", "step": 9}
    if name:
        code, new, _ = run(content, "--name", name, "--dtype", "float16", suffix=".pt")
        assert code == 0
        vectors = vectors.half()
    else:
        new = convert_here(content, tmp_path)
    with safe_open(new, "pt") as file:
        assert list(file.keys()) == [token] and file.metadata()["name"] == token
        assert torch.equal(file.get_tensor(token), vectors)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"state_dict": {"bad": torch.tensor([1.0, float("nan")])}}, "NaN or infinity"),
        ([torch.ones(2)], "a list, not weights by name"),
        ({"epoch": 3}, "no tensors are in it; its keys are epoch"),
        (
            {"waves": torch.ones(2, dtype=torch.complex64)},
            "waves is of a kind that weights are not",
        ),
        ({"sparse": torch.eye(3).to_sparse()}, "sparse is of a kind"),
    ],
)
def test_what_is_refused(tmp_path, content, said):
    torch.save(content, tmp_path / "old.pt")
    with pytest.raises(convert_worker.Refused, match=said):
        convert_worker.convert(tmp_path / "old.pt", tmp_path, "", None)
    assert [path.name for path in tmp_path.iterdir()] == ["old.pt"]


def test_what_holds_code_is_refused(run):
    code, new, err = run(torch.nn.Linear(2, 2))
    assert code == 3 and "Unpickl" in err and "why:" in err and "try:" in err
    assert "torch.nn.modules.linear.Linear" in err
    assert "weights_only" not in err and "safe_globals" not in err  # no advice to open it unsafely
    assert not new.exists()


class Call:
    """Calls something when it is read."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("call", [os.system, os.popen, eval, importlib.import_module])
def test_no_reason_is_advice_to_open_it_unsafely(tmp_path, call, zipped):
    """torch blocks some modules altogether, and says it in another way."""
    path = tmp_path / "old.ckpt"
    torch.save({"a": Call(call, "true")}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(pickle.UnpicklingError) as caught:
        convert_worker.unpickle(path)
    reason = convert_worker.reason_of(caught.value)
    assert "GLOBAL" in reason and "weights_only" not in reason and "trust" not in reason


def test_whole_numbers_keep_their_type(tmp_path):
    content = {"a": torch.ones(2), "ids": torch.arange(2)}
    found = load_file(convert_here(content, tmp_path, dtype=torch.float16))
    assert {name: x.dtype for name, x in found.items()} == {"a": torch.float16, "ids": torch.int64}


def test_overflow_is_named(tmp_path):
    with pytest.raises(convert_worker.Refused, match=r"at least as torch\.float16, in large"):
        convert_here({"large": torch.tensor([1e6])}, tmp_path, dtype=torch.float16)  # over 65504


def test_too_little_memory_or_time(run):
    code, new, err = run({"a": torch.zeros(30_000_000)}, "--memory", "0.05")
    assert code in (3, 4) and "memory" in err and not new.exists()
    code, new, err = run(None, "--seconds", "0")
    assert code == 3 and "--seconds" in err and not new.exists()


def test_nothing_is_overwritten(run, tmp_path):
    (tmp_path / "new.safetensors").write_text("mine")
    code, new, err = run({"a": torch.ones(2)})
    assert code == 2 and "exists" in err and new.read_text() == "mine"


def test_an_old_torch_is_not_trusted(run, monkeypatch):
    monkeypatch.setattr(convert, "version", lambda _: "2.9.1+cpu")
    code, new, err = run({"a": torch.ones(2)})
    assert code == 2 and "torch 2.10" in err and not new.exists()


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_a_single_file_becomes_a_folder(request, tmp_path, kind, monkeypatch):
    """Of a family's own size this would be gigabytes; a tiny model's folder shows the writing."""
    from sdcore.checkpoint.loading import save_folder

    pipe = TextToImage.from_pretrained(request.getfixturevalue(f"{kind}_folder"))
    save_folder(pipe, tmp_path / "folder")
    cls = StableDiffusionXLPipeline if kind == "sdxl" else StableDiffusionPipeline
    theirs = cls.from_pretrained(tmp_path / "folder")
    ours = TextToImage.from_pretrained(tmp_path / "folder")
    state = theirs.unet.state_dict()
    assert all(torch.equal(x, state[name]) for name, x in ours.unet.state_dict().items())
    assert ours("a cat", seed=1, steps=2).images == pipe("a cat", seed=1, steps=2).images


def test_a_folder_becomes_a_single_file(sd_folder, tmp_path, capsys):
    new = tmp_path / "new.safetensors"
    assert convert.main([str(sd_folder), str(new), "--dtype", "float16"]) == 0
    assert any(name.startswith("model.diffusion_model.") for name in load_file(new))
    assert convert.main([str(sd_folder), str(tmp_path / "other")]) == 2
    assert "cannot become" in capsys.readouterr().err


def test_no_memory_at_all_is_too_little(run):
    code, new, err = run({"a": torch.ones(2)}, "--memory", "0")
    assert code == 4 and "Raise --memory" in err and not new.exists()


@pytest.mark.parametrize(
    "flags",
    [("--memory", each) for each in ("-1", "nan", "inf", "1e300", "1e6", "9" * 400)]
    + [("--seconds", "-1"), ("--seconds", "9" * 40), ("--seconds", "9" * 400)],
)
def test_a_limit_that_is_none_is_refused(run, flags):
    code, new, err = run({"a": torch.ones(2)}, *flags)
    assert code == 2 and not new.exists() and f"{flags[0]} is" in err


@pytest.mark.parametrize(
    "new", ["/proc/new.safetensors", "x" * 300 + ".safetensors", "old.ckpt/new.safetensors"]
)
def test_a_target_that_cannot_be_is_named(tmp_path, capsys, monkeypatch, new: str) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.ones(2)}, "old.ckpt")
    assert convert.main(["old.ckpt", new]) == 3
    err = capsys.readouterr().err
    assert new[:100] in err and "should not" not in err


@pytest.mark.parametrize("content", [b"\1\2hi\n", b""])
def test_a_file_that_torch_did_not_save_is_said_to_be_one(run, tmp_path, content):
    (tmp_path / "old.ckpt").write_bytes(content)
    code, new, err = run(None)
    assert code == 3 and not new.exists() and "not what torch.save writes" in err


# --- by content, not by name ---------------------------------------------------------------------


def test_a_pickle_that_is_called_safetensors(run) -> None:
    weights = {"conv_in.weight": torch.ones(2)}
    code, new, err = run({"down_blocks.0.x": torch.ones(2), **weights}, suffix=".safetensors")
    assert code == 0 and set(load_file(new)) == {"conv_in.weight", "down_blocks.0.x"}
    assert "no model" not in err


def test_what_is_no_model_is_said_to_be_none(run) -> None:
    code, new, err = run({"a": torch.ones(2)}, suffix=".safetensors")
    assert code == 0 and list(load_file(new)) == ["a"]
    assert "are those of no model that is known: a" in err


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"<!DOCTYPE html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "a git-lfs pointer"),
        (b"\x89HDF\r\n", "an HDF5 file"),
        (b"Entry not found\n", "a text that begins with 'Entry not found'"),
    ],
)
def test_what_is_no_checkpoint_is_named(run, tmp_path, head: bytes, said: str) -> None:
    (tmp_path / "old.ckpt").write_bytes(head + bytes(100))
    code, new, err = run(None)
    assert code == 3 and said in err and not new.exists()


def test_safetensors_under_another_name(sd_folder, tmp_path, capsys) -> None:
    import shutil

    weights = sd_folder / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(weights, tmp_path / "old.ckpt")
    assert convert.main([str(tmp_path / "old.ckpt"), str(tmp_path / "new.safetensors")]) == 2
    assert "needs no converting" in capsys.readouterr().err


# --- wrappers that carry no tensors --------------------------------------------------------------


def saved_as(name: str, path: Path, content: object, **classes: type) -> Path:
    """A checkpoint with objects of modules that are not here, as a trainer's machine has them."""
    from types import ModuleType

    made = {}
    for module in {kind.__module__ for kind in classes.values()}:
        parts = module.split(".")
        made |= {".".join(parts[: n + 1]): ModuleType(parts[n]) for n in range(len(parts))}
    for kind in classes.values():
        setattr(made[kind.__module__], kind.__qualname__, kind)
    with pytest.MonkeyPatch.context() as patch:
        for module, found in made.items():
            patch.setitem(sys.modules, module, found)
        torch.save(content, path / name)
    return path / name


def test_trainers_callbacks_and_numpy_scalars(tmp_path: Path) -> None:
    import numpy as np

    def stub(module: str, name: str) -> type:
        return type(name, (), {"__module__": module, "__qualname__": name})

    callback = stub("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    config = stub("omegaconf.dictconfig", "DictConfig")
    thing = callback()
    thing.best, thing.inner = np.float64(0.5), [config()]  # pyright: ignore[reportAttributeAccessIssue]
    content = {
        "state_dict": {"a": torch.ones(2), "mask": torch.tensor([True])},
        "callbacks": {callback: {"best": np.float32(1), "score": torch.tensor(1.0)}, "x": thing},
        "epoch": 3,
    }
    path = saved_as("old.ckpt", tmp_path, content, callback=callback, config=config)
    convert_worker.convert(path, tmp_path, "", None)
    found = load_file(tmp_path / "converted.safetensors")
    assert {name: t.dtype for name, t in found.items()} == {"a": torch.float32, "mask": torch.bool}


def test_a_textual_inversion_in_a_parameter_dict(tmp_path: Path) -> None:
    vectors = torch.nn.Parameter(torch.randn(3, 768))
    content = {"string_to_token": {"*": torch.tensor(265)}, "name": "<toy>"}
    content["string_to_param"] = torch.nn.ParameterDict({"*": vectors})
    assert torch.equal(load_file(convert_here(content, tmp_path))["<toy>"], vectors)


@pytest.mark.parametrize("key", ["state_dict", "model", "module", "params_ema"])
def test_weights_in_a_container_of_their_own(key: str, tmp_path: Path) -> None:
    content = {"epoch": 3, key: {"a": torch.ones(2), "note": "x"}, "args": {"lr": 1e-4}}
    assert list(load_file(convert_here(content, tmp_path))) == ["a"]


@pytest.mark.parametrize("key", ["model", "unet", "model_state_dict"])
def test_weights_beside_other_tensors(key: str, tmp_path: Path) -> None:
    weights = {"a": torch.ones(2)}
    content = {"optimizer": {"m": torch.zeros(2)}, "ema": {"a": torch.zeros(2)}, key: weights}
    assert load_file(convert_here(content, tmp_path))["a"].tolist() == [1, 1]


def test_a_class_that_is_not_a_trainers_is_still_refused(tmp_path: Path) -> None:
    import pickle

    kind = type("Model", (), {"__module__": "my.network", "__qualname__": "Model"})
    path = saved_as("old.ckpt", tmp_path, {"state_dict": {"a": torch.ones(2)}, "m": kind()}, k=kind)
    with pytest.raises(pickle.UnpicklingError, match=r"my\.network\.Model"):
        convert_worker.convert(path, tmp_path, "", None)
