"""HTML pages in one file: a template with slots, which allows its own script and style alone.

The template names its slots {{like_this}}, and files beside it whose text stands in their place
{{file:like_this.js}}; {{script_hash}} and {{style_hash}} stand in its Content-Security-Policy.
Whatever is put in is HTML already: what comes from outside is escaped by who puts it in, and is
data for the script.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def fill_template(path: Path, slots: Mapping[str, str]) -> str:
    """A template of the package with its slots filled."""
    template = re.sub(
        r"\{\{file:([\w.]+)\}\}\n",
        lambda file: path.with_name(file[1]).read_text("utf-8"),
        path.read_text("utf-8"),
    )
    own = [tag for tag in ("script", "style") if f"{{{{{tag}_hash}}}}" in template]
    hashes = {f"{tag}_hash": _hash_of(template, tag) for tag in own}
    filled = {**slots, **hashes}
    # One pass, so that nothing that was put in is looked at again.
    return re.sub(r"\{\{(\w+)\}\}", lambda slot: filled[slot[1]], template)


def as_script_data(data: Mapping[str, Any]) -> str:
    """JSON that no HTML parser takes for an end of the script."""
    text = json.dumps(data, separators=(",", ":"))  # ASCII alone
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def source_hash(text: str) -> str:
    """SHA-256 of an inline script or style, as a Content-Security-Policy wants it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _hash_of(template: str, tag: str) -> str:
    found = re.search(rf"<{tag}>(.*?)</{tag}>", template, re.DOTALL)
    assert found is not None, tag
    return source_hash(found[1])
