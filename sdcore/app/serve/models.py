"""Models by name, of which one is in memory."""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from sdcore.app.adapters import Adapters
from sdcore.app.model_choice import ModelChoice
from sdcore.app.session import Session
from sdcore.errors import UsageError
from sdcore.machine import return_freed_memory


class Models:
    """The model of the command line, and those of the folders that it names.

    Args:
        first: that is loaded at first, and meant where a request names none.
    """

    def __init__(self, first: ModelChoice, adapters: Adapters) -> None:
        self.adapters = adapters
        self._session = Session(first, adapters)
        self.first: str = self._session.pipe.defaults.name or "model"
        self.current: str = self.first
        self._choices = {self.first: first}
        paths: dict[Path, str] = {}
        for name, path in adapters.folders.names("checkpoints").items():
            paths[path] = max(paths.get(path, ""), name, key=len)
        for path, name in paths.items():
            self._choices.setdefault(name, replace(first, name=str(path)))

    @property
    def names(self) -> list[str]:
        """All of them, the first one first."""
        return list(self._choices)

    def known(self, name: str | None) -> str:
        """The whole name for a name, or for none. UsageError where there is no such model."""
        if not name:
            return self.current
        if name in self._choices:
            return name
        plain = name.split(" [")[0].removesuffix(".safetensors").lower()
        for known in self._choices:
            if plain in (known.lower(), known.lower().rpartition("/")[2]):
                return known
        near = get_close_matches(name, self._choices, n=1, cutoff=0.4)
        raise UsageError(
            f"There is no model {name!r:.80}.",
            f"This server has {', '.join(self.names)}.",
            f"Use {near[0]!r}." if near else f"Use {self.first!r}, or name none.",
        )

    def session(self, name: str | None = None) -> Session:
        """The session of a model, which is loaded in place of another one."""
        name = self.known(name)
        if name != self.current:
            session = Session(self._choices[name], self.adapters)
            self._session, self.current = session, name
            return_freed_memory()
        return self._session
