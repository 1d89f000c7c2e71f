"""Weights and settings in and out of diffusers folders: strict, safetensors only, never half.

component.py  a model from its folder and back
weights.py    which weight files a folder has, and what is in them, judged by content
jsonfile.py   settings files, read without trust
publish.py    files written beside their target, synced, then renamed
folder.py     a folder on disk or a hub name, and its model_index.json
"""

from sdcore.checkpoint.component import Component, load_component, save_component
from sdcore.checkpoint.folder import ModelIndex, read_model_index, resolve_folder

__all__ = [
    "Component",
    "ModelIndex",
    "load_component",
    "read_model_index",
    "resolve_folder",
    "save_component",
]
