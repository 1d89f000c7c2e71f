"""Weights and settings in and out of diffusers folders: strict, safetensors only, never half.

folder.py     a folder on disk or a hub name, and its model_index.json
hub.py        a hub name: what is fetched, from where, at which commit
layout.py     the names of weight files, variants and shards
preflight.py  which files a model needs, and which are missing
component.py  a model from its folder;  saving.py  and back
model.py      a whole model, of whatever form
single_file.py, families.py, ldm_names.py   models in one file
weights.py    the tensors of weight files
header.py     what is in a safetensors file, judged by content
jsonfile.py   settings files, read without trust
publish.py    files written beside their target, synced, then renamed

The names below are loaded when they are first used, so telling what a file is needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdcore.checkpoint.component import Component as Component
    from sdcore.checkpoint.component import load_component as load_component
    from sdcore.checkpoint.folder import ModelIndex as ModelIndex
    from sdcore.checkpoint.folder import find_model as find_model
    from sdcore.checkpoint.folder import read_model_index as read_model_index
    from sdcore.checkpoint.saving import save_component as save_component

_HOME = {
    "Component": "component",
    "ModelIndex": "folder",
    "load_component": "component",
    "find_model": "folder",
    "read_model_index": "folder",
    "save_component": "saving",
}

__all__ = list(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sdcore.checkpoint' has no attribute {name!r}")
    return getattr(import_module(f"sdcore.checkpoint.{_HOME[name]}"), name)
