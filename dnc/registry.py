"""Plug-ins: a layer, a pass, a target or a command is a file in its folder that registers one class.

The folder is scanned the first time something is looked up, so nobody edits a list to add a plug-in, and importing
`dnc` loads none of them.
"""

from __future__ import annotations

import importlib
import pkgutil
import threading
from collections.abc import Iterator, Mapping
from typing import TypeVar

from dnc.errors import DncError, close_match

_Class = TypeVar("_Class", bound=type)


class Registry(Mapping[str, _Class]):
    """The plug-ins of one package by name, sorted; filled by the decorator `@registry.register`.

    Args:
        package: whose modules they are.
        what: what one is called in messages.
        failure: what `find` raises.
        meant: what people call them besides, as for `close_match`.
        otherwise: the hint where no name is near; else it lists them.
    """

    def __init__(
        self,
        package: str,
        what: str = "plug-in",
        failure: type[DncError] = DncError,
        *,
        meant: Mapping[str, str] | None = None,
        otherwise: str = "",
    ) -> None:
        self._package = package
        self._what, self._failure, self._meant, self._otherwise = what, failure, meant, otherwise
        self._classes: dict[str, _Class] = {}
        self._scanned = False
        self._lock = threading.RLock()

    def register(self, plugin: _Class) -> _Class:
        """Class decorator: files the class under its `name` and, where it has them, its `aliases`."""
        for name in (plugin.name, *getattr(plugin, "aliases", ())):  # type: ignore[attr-defined]
            other = self._classes.get(name)
            # A module whose import was interrupted is imported once more, and registers its class again.
            if other is not None and (other.__module__, other.__qualname__) != (plugin.__module__, plugin.__qualname__):
                raise TypeError(f"{plugin!r} and {other!r} are both called {name!r}")
            self._classes[name] = plugin
        return plugin

    def find(self, name: str) -> _Class:
        """The plug-in that a user named; raises `failure` if there is none."""
        if name not in self:
            hint = close_match(name, self, meant=self._meant) or self._otherwise or f"one of: {', '.join(self)}"
            raise self._failure(f"unknown {self._what} '{name}'", hint=hint)
        return self[name]

    def _scan(self) -> dict[str, _Class]:
        if not self._scanned:
            # Whoever comes second waits: half a folder would make sections unknown.
            with self._lock:
                package = importlib.import_module(self._package)
                for module in pkgutil.iter_modules(package.__path__, self._package + "."):
                    importlib.import_module(module.name)
                self._scanned = True
        return self._classes

    def __getitem__(self, name: str) -> _Class:
        if name not in self._classes and not self._scanned:
            self._import_alone(name)
        return self._classes[name] if name in self._classes else self._scan()[name]

    def _import_alone(self, name: str) -> None:
        """Imports the module that is called like the plug-in, if there is one: an app that runs an engine waits for no
        other target."""
        module = name.replace("-", "_")
        package = importlib.import_module(self._package)
        if any(found.name == module for found in pkgutil.iter_modules(package.__path__)):
            importlib.import_module(f"{self._package}.{module}")

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._scan()))

    def __len__(self) -> int:
        return len(self._scan())
