"""Recipes: the embedded model's in emoji/, and sequence_task.py; they share sdcore.training."""

from sdcore.errors import exit_on_error

with exit_on_error():  # without the extra `train`, one line in place of a traceback
    import sdcore.training  # noqa: F401  # pyright: ignore[reportUnusedImport]
