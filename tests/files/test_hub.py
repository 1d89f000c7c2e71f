"""Models by hub name, fetched by huggingface_hub itself from a small hub on this machine.

Each case runs in a process of its own, because huggingface_hub reads its settings when imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sdcore.files.hub import MIRRORS
from tests.hub_server import Hub, commit_of

ROOT = Path(__file__).parents[2]
NAME = "owner/model"

# Opens a model the way the pipeline does, up to the point where tensors would be read.
OPEN = """
import json, sys, warnings
from sdcore.files.folder import component_folder, find_model, read_model_index
from sdcore.checkpoint.parts import preflight_model
from sdcore.errors import SdcoreError
what = json.loads(sys.argv[1])
result = {}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    try:
        if "component" in what:
            folder = component_folder(what.pop("name"), *what.pop("component"), **what)
        else:
            variant = what.pop("variant", None)
            source = find_model(what.pop("name"), **what)
            index = read_model_index(source.fetch(["model_index.json"]))
            ready = preflight_model(source, index.components, variant)
            result["variants"] = ready.variants
            folder = source.fetch(ready.files)
        result["folder"] = str(folder)
        here = (path for path in folder.rglob("*") if path.is_file())
        result["files"] = sorted(path.relative_to(folder).as_posix() for path in here)
    except SdcoreError as error:
        result["error"] = [type(error).__name__, error.what, error.why, error.hint]
assert "torch" not in sys.modules
print(json.dumps({**result, "warnings": [str(w.message) for w in caught]}))
"""


@dataclass
class Machine:
    """Somebody's computer: an empty cache, and the address of a hub."""

    hub: Hub
    home: Path

    def run(self, code: str, *arguments: str, **environment: str) -> str:
        settings = {
            "HF_ENDPOINT": self.hub.url,
            "HF_HOME": str(self.home),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(
            command, env={**kept, **settings, **environment}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def open(self, name: str = NAME, environment: dict[str, str] | None = None, **how: Any) -> dict:
        return json.loads(self.run(OPEN, json.dumps({"name": name, **how}), **(environment or {})))


def write(folder: Path, *paths: str) -> Path:
    """Files that are as long as their names: what is in them is not looked at here."""
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(path)
    return folder


def index(**components: str) -> str:
    homes = {name: ["diffusers", cls] for name, cls in components.items()}
    return json.dumps({"_class_name": "StableDiffusionPipeline", **homes})


TOKENIZER = ("tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer_config.json")
NEEDED = (
    "model_index.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    *TOKENIZER,
    "scheduler/scheduler_config.json",
)
FP16 = ("unet/diffusion_pytorch_model.fp16.safetensors",)
# What published repositories hold besides.
BALLAST = (
    "README.md",
    "v1-5-pruned.ckpt",
    "v1-5-pruned.safetensors",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/code.py",
    "text_encoder/pytorch_model.bin",
    "text_encoder/flax_model.msgpack",
    "safety_checker/config.json",
    "safety_checker/model.safetensors",
    "feature_extractor/preprocessor_config.json",
    "unet_ema/diffusion_pytorch_model.safetensors",
)
PARTS = {
    "unet": "UNet2DConditionModel",
    "text_encoder": "CLIPTextModel",
    "tokenizer": "CLIPTokenizer",
    "scheduler": "PNDMScheduler",
    "safety_checker": "StableDiffusionSafetyChecker",
    "feature_extractor": "CLIPImageProcessor",
}


@pytest.fixture
def hub(tmp_path):
    folder = write(tmp_path / "published", *NEEDED, *FP16, *BALLAST)
    (folder / "model_index.json").write_text(index(**PARTS))
    with Hub() as hub:
        hub.add(NAME, folder)
        yield hub


@pytest.fixture
def machine(hub, tmp_path) -> Machine:
    return Machine(hub, tmp_path / "home")


# --- what is fetched -------------------------------------------------------------------------


def test_only_what_is_needed_is_fetched_once(hub, machine):
    first = machine.open()
    assert set(first["files"]) == set(NEEDED) == hub.fetched()
    assert first["folder"].endswith(commit_of(NAME, "main"))
    hub.requests.clear()
    assert machine.open() == first and not hub.fetched()


def test_a_variant_and_what_does_not_come_in_it(hub, machine):
    result = machine.open(variant="fp16")
    plain = "unet/diffusion_pytorch_model.safetensors"
    assert set(result["files"]) == {*NEEDED, *FP16} - {plain}
    assert result["variants"]["unet"] == "fp16" and result["variants"]["text_encoder"] is None
    said = "the text_encoder does not come as fp16; model.safetensors is read"
    assert result["warnings"] == [f"{NAME}: {said}"]


def test_no_component_has_the_variant(hub, machine):
    kind, what, why, _ = machine.open(variant="bf16")["error"]
    assert kind == "FileError" and "'bf16'" in what and why == "It comes in: plain, fp16, non_ema."
    assert hub.fetched() == {"model_index.json"}


def test_shards(hub, machine):
    files = hub.models[NAME]["main"]
    names = ["diffusion_pytorch_model-00001-of-00002.safetensors", "odd[1]*.safetensors"]
    del files["unet/diffusion_pytorch_model.safetensors"]
    files["unet/diffusion_pytorch_model.safetensors.index.json"] = json.dumps(
        {"weight_map": {"a": names[0], "b": names[1], "c": names[0]}}
    ).encode()
    files[f"unet/{names[0]}"] = b"1"
    assert f"unet/{names[1]}" in machine.open()["error"][2]
    files[f"unet/{names[1]}"] = b"2"
    Path(machine.home).rename(machine.home.with_name("old"))
    assert {f"unet/{name}" for name in names} < set(machine.open()["files"])


@pytest.mark.parametrize("at", [None, "vae"])
def test_one_component_alone(hub, machine, tmp_path, at):
    paths = ["config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"]
    prefix = f"{at}/" if at else ""
    hub.add("owner/part", write(tmp_path / "part", *(prefix + path for path in paths), "x/y.json"))
    result = machine.open("owner/part", component=[at, "diffusion_pytorch_model"])
    assert result["files"] == paths[:2] and hub.fetched() == {prefix + path for path in paths[:2]}
    kind, what, why, _ = machine.open("owner/part", component=["unet", "model"])["error"]
    assert kind == "FileError" and "lacks 2 files" in what and "unet/config.json" in why


def test_a_tokenizer_alone(machine):
    result = machine.open(component=["tokenizer"])
    assert set(result["files"]) == {path.removeprefix("tokenizer/") for path in TOKENIZER}


def test_a_revision(hub, machine, tmp_path):
    hub.add(NAME, write(tmp_path / "other", *NEEDED), branch="refs-pr-1")
    (tmp_path / "other" / "model_index.json").write_text(index(unet="UNet2DConditionModel"))
    hub.add(NAME, tmp_path / "other", branch="refs-pr-1")
    result = machine.open(revision="refs-pr-1")
    assert result["folder"].endswith(commit_of(NAME, "refs-pr-1"))
    assert machine.open(revision=commit_of(NAME, "refs-pr-1")) == result
    assert set(result["files"]) == {path for path in NEEDED if path.startswith(("unet", "model_"))}


# --- what is missing is named before weights are fetched -------------------------------------


def test_missing_files_are_all_named_before_any_weights_are_fetched(hub, machine):
    files = hub.models[NAME]["main"]
    gone = ["unet/config.json", "text_encoder/model.safetensors", "tokenizer/merges.txt"]
    for path in gone:
        del files[path]
    kind, what, why, hint = machine.open()["error"]
    assert kind == "FileError" and what == f"{NAME} lacks 3 files."
    assert why == f"Missing: {', '.join(gone)}." and "pytorch_model.bin" not in hint
    assert hub.fetched() == {"model_index.json"}
    only_pickle = machine.open(component=["text_encoder", "model"])["error"]
    assert "sdcore convert" in only_pickle[3] and "pytorch_model.bin" in only_pickle[3]


def test_no_diffusers_model(hub, machine):
    del hub.models[NAME]["main"]["model_index.json"]
    kind, what, why, _ = machine.open()["error"]
    assert kind == "FileError" and what == f"{NAME} has no model_index.json."
    assert "README.md" in why


def test_no_room_on_the_disk(hub, machine):
    hub.sizes["unet/diffusion_pytorch_model.safetensors"] = 10**15
    kind, what, why, _ = machine.open()["error"]
    assert kind == "FileError" and "do not fit" in what
    assert "unet/diffusion_pytorch_model.safetensors 1e+06 GB" in why
    assert hub.fetched() == {"model_index.json"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"name": "owner/gone"}, "no such model"),
        ({"revision": "v9"}, "no such revision"),
    ],
)
def test_wrong_names(machine, arguments, said):
    kind, what, why, hint = machine.open(**arguments)["error"]
    assert kind == "FileError" and said in why and hint
    assert arguments.get("name", arguments.get("revision")) in what


def test_a_revision_that_is_a_path(machine):
    assert machine.open(revision="../../x")["error"][0] == "UsageError"


# --- without a network -----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_offline(hub, machine, how):
    off = {"offline": True} if how == "argument" else {"environment": {"HF_HUB_OFFLINE": "1"}}
    kind, what, why, _ = machine.open(**off)["error"]
    assert kind == "FileError" and NAME in what and "The network is off." in why
    assert not hub.requests
    online = machine.open()
    hub.requests.clear()
    assert machine.open(**off) == online
    # A file that was not needed before: named with its size, which the listing of then tells.
    kind, what, why, _ = machine.open(**off, variant="fp16")["error"]
    assert "1 of its files" in what and f"{FP16[0]} {len(FP16[0])} bytes" in why
    assert not hub.requests


@pytest.mark.slow  # the hub's client tries again for 10 seconds, twice
def test_the_hub_is_down(hub, machine):
    online = machine.open()
    hub.down = True
    again = machine.open()
    assert again["files"] == online["files"]
    assert len(again["warnings"]) == 1 and "is read from the cache" in again["warnings"][0]
    fresh = Machine(hub, machine.home.with_name("fresh"))
    kind, _, why, _ = fresh.open()["error"]
    assert kind == "FileError" and "The hub cannot be reached" in why


def test_nobody_listens(hub, machine):
    hub.url = "http://127.0.0.1:9"
    kind, _, why, _ = machine.open()["error"]
    assert kind == "FileError" and "The hub cannot be reached" in why


def test_a_download_that_breaks_off(hub, machine):
    weights = "unet/diffusion_pytorch_model.safetensors"
    hub.cut.add(weights)
    kind, what, why, hint = machine.open()["error"]
    assert kind == "FileError" and "could not be fetched" in what
    assert f"Not here yet: {weights}" in why and "Run it again" in hint
    assert not list(machine.home.rglob(Path(weights).name))
    hub.cut.clear()
    hub.requests.clear()
    assert set(machine.open()["files"]) == set(NEEDED)
    assert weights in hub.fetched() and "text_encoder/model.safetensors" not in hub.fetched()


# --- names that are gone ---------------------------------------------------------------------


def test_a_name_that_is_gone_is_read_from_its_mirror(hub, machine):
    gone, mirror = "runwayml/stable-diffusion-v1-5", MIRRORS["runwayml/stable-diffusion-v1-5"]
    hub.models[gone] = {"main": {"model_index.json": b"somebody else's"}}
    hub.models[mirror] = hub.models.pop(NAME)
    result = machine.open(gone)
    assert set(result["files"]) == set(NEEDED) and mirror in result["warnings"][0]
    assert not any(gone in request for request in hub.requests)


def test_every_mirror_is_another_name():
    assert not set(MIRRORS) & set(MIRRORS.values())


# --- the whole way ---------------------------------------------------------------------------


def test_the_pipeline_paints_from_the_hub(hub, machine, sd_folder):
    hub.add("owner/tiny", sd_folder)
    code = """
import json, sys
from sdcore import TextToImage, UNet
here = TextToImage.from_pretrained(sys.argv[1])
there = TextToImage.from_pretrained("owner/tiny", revision="main")
again = TextToImage.from_pretrained("owner/tiny", offline=True)
UNet.from_pretrained("owner/tiny", subfolder="unet", offline=True)
paint = lambda pipe: pipe("a cat", seed=1, steps=2).images[0].tobytes()
assert paint(here) == paint(there) == paint(again)
"""
    machine.run(code, str(sd_folder))
