"""What the tests of the library share: the library, the harness, and engine folders made for them."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dnc.runtime.manifest import write_folder
from tests.embed import native
from tests.manifests import manifest

Folder = Callable[..., Path]


@pytest.fixture(scope="session")
def compiler() -> None:
    if shutil.which("g++") is None:
        pytest.skip("there is no g++")


@pytest.fixture(scope="session")
def library_file(compiler: None) -> Path:
    pytest.importorskip("openvino", exc_type=ImportError)
    return native.build_library()


@pytest.fixture(scope="session")
def lib(library_file: Path) -> ctypes.CDLL:
    return native.library(library_file)


@pytest.fixture(scope="session")
def harness(compiler: None) -> Iterator[native.Harness]:
    running = native.Harness(native.build_harness())
    yield running
    running.close()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Writes an engine folder without a model."""
    count = iter(range(1_000_000))

    def write(**fields: Any) -> Path:
        place = tmp_path / f"engine{next(count)}"
        with write_folder(place) as writer:
            writer.finish(manifest(**fields))
        return place

    return write
