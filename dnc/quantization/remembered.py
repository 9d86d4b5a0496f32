"""What measuring found, kept in the cache folder by all that it depends on: asked again, nothing is measured anew.

    sensitivity/4f0c…/found.json     a name for each digest of models, images and what else there is

One that cannot be read, or holds something else, counts as missing; so that no harm is done where it cannot be written.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import onnx_ir as ir

from dnc import __version__
from dnc.errors import DncError
from dnc.files.places import prune
from dnc.files.reading import read_json
from dnc.files.writing import whole_file
from dnc.graph.serialization import serialize

__all__ = ["Remembered", "digest_of", "digest_of_model"]

_FILE = "found.json"
_LARGEST = 1 << 20
"""Bytes of one file; a layer takes some 30."""
_LIMIT = 1 << 22
"""Bytes of all of them."""


class Remembered:
    """Results by digest.

    Args:
        cache: the cache folder (`dnc.files.places.cache_dir`); nothing is kept if not given.
    """

    def __init__(self, cache: Path | None) -> None:
        self._root = None if cache is None else cache / "sensitivity"

    def get(self, key: str) -> Any:
        """The JSON value that was kept by this digest; None if there is none."""
        if self._root is None:
            return None
        place = self._root / key
        try:
            found = read_json(place / _FILE, _LARGEST)
            os.utime(place)
        except (OSError, ValueError, DncError):
            return None
        return found

    def put(self, key: str, value: Any) -> None:
        """Keeps a JSON value; a cache that cannot be written is no error."""
        if self._root is None:
            return
        place = self._root / key
        with suppress(OSError, DncError):
            place.mkdir(parents=True, exist_ok=True)
            with whole_file(place / _FILE, durable=False) as file:
                file.write(json.dumps(value).encode())
            os.utime(place)
            prune(self._root, _LIMIT, [place])


def digest_of(parts: Iterable[str | bytes | memoryview]) -> str:
    """One name for all of these; another version of dnc has others."""
    digest = hashlib.sha256(__version__.encode())
    for part in parts:
        data = part.encode(errors="surrogateescape") if isinstance(part, str) else part
        # Or two lists that differ in where a part ends would be one.
        digest.update(f"\0{memoryview(data).nbytes}\0".encode())
        digest.update(data)
    return digest.hexdigest()[:32]


def digest_of_model(model: ir.Model) -> str:
    """One name for a graph with its weights."""
    return digest_of(serialize(model))
