"""Packages that only some layouts need, imported when they do."""

from __future__ import annotations

import importlib
from typing import Any

from sdcore.errors import UsageError


def extra(module: str, purpose: str) -> Any:
    """A module of pyarrow or datasets.

    Args:
        purpose: what needs it, such as "Parquet files".

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f'To read {purpose} needs the extra "data".',
            f"{module.split('.')[0]} cannot be imported: {error}.",
            'Install it: pip install "sdcore[data]".',
        ) from error
