"""The rooms of the package: each imports only what stands below it, and nothing goes in circles."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
ALL = ("errors", "checks", "size", "torch_state")  # which every room may import
BELOW = {
    "errors": "",
    "checks": "errors",
    "size": "errors checks",
    "torch_state": "errors",
    "views": "errors",
    "files": "errors",
    "machine": "errors files",
    "kernels": "errors",
    "attention_inputs": "errors",
    "attention": "errors views kernels attention_inputs",
    "attention_choice": "errors views attention kernels machine",
    "convolution": "errors views kernels machine",
    "positions": "errors",
    "recurrence": "attention_inputs",
    "text": "errors files attention attention_inputs positions recurrence",
    "unet": "errors files attention attention_inputs convolution positions",
    "diffusion": "errors files",
    "image": "errors files views convolution",
    "prompt": "errors text",
    "checkpoint": "errors files attention attention_choice convolution text unet diffusion image",
    "control": "errors attention text prompt diffusion image",
    "adapters": "errors views files attention text checkpoint",
    "job": "errors attention_choice convolution diffusion files image prompt",
    "metadata": "errors files diffusion prompt job",
    "sampling": "errors control prompt unet text diffusion attention attention_inputs checkpoint "
    "job",
    "sequence": "errors files attention attention_inputs positions recurrence text",
}
BELOW["pipeline"] = " ".join(set(BELOW) - {"sequence"})
BELOW["training"] = " ".join({*BELOW["pipeline"].split(), "pipeline"})
BELOW["app"] = " ".join(BELOW)
BELOW["__main__"] = "app"


def imports(path: Path) -> set[str]:
    """The modules of the project that a file imports anywhere, also for types alone."""
    tree = ast.parse(path.read_text("utf-8"))
    named = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    named += [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    return {name for name in named if name.split(".")[0] in ("sdcore", "train", "sample", "bench")}


def modules() -> dict[str, Path]:
    paths = (ROOT / "sdcore").rglob("*.py")
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in paths}
    return {name.removesuffix(".__init__"): path for name, path in names.items()}


def test_each_room_imports_only_what_stands_below_it():
    wrong = []
    for name, path in modules().items():
        room = name.split(".")[1] if "." in name else None
        for other in imports(path):
            there = other.split(".")[1] if "." in other else "sdcore"
            allowed = room and (there in (room, "sdcore", *ALL) or there in BELOW[room].split())
            if not other.startswith("sdcore") or (room and not allowed):
                wrong.append(f"{name} imports {other}")
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_in_a_circle():
    graph = {name: imports(path) for name, path in modules().items() if name != "sdcore"}
    graph = {name: {x for x in needed if x in graph} for name, needed in graph.items()}
    TopologicalSorter(graph).prepare()


def test_recipes_and_benches_import_no_command_and_recipes_no_bench():
    commands = ("sample", "sdcore.app")
    for folder, refused in (("train", (*commands, "bench")), ("bench", commands)):
        for path in (ROOT / folder).rglob("*.py"):
            if path.relative_to(ROOT).as_posix() == "train/finetune.py":
                continue  # the command, as a script
            assert not [name for name in imports(path) if name.startswith(refused)], path
