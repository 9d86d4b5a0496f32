"""The examples in C, Rust and Go find Python's boxes, built as their first comments say."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import dnc
from tests.embed.native import EMBED, build_library
from tests.examples.conftest import EXAMPLES
from tests.patience import PATIENCE

pytestmark = pytest.mark.slow
"""They compile libdnc_runtime, unless tests/embed has."""


@pytest.mark.parametrize(
    ("example", "compiler", "picture"),
    [("c/detect.c", "gcc", "a.ppm"), ("rust/detect.rs", "rustc", "a.ppm"), ("go/detect.go", "go", "a.png")],
)
def test_boxes_are_those_of_python(
    example: str, compiler: str, picture: str, engine: dnc.Engine, image: npt.NDArray[np.uint8], tmp_path: Path
) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler}")
    source = EXAMPLES / example
    shutil.copy(build_library(), tmp_path)
    (tmp_path / "runtime").symlink_to(EMBED)
    shutil.copy(source, tmp_path)
    said = re.findall(rf"^(?: \*|//!?)\s+((?:export|{compiler}) .*)$", source.read_text(), re.MULTILINE)
    words = "-Wall -Wextra -pedantic -Werror" if compiler == "gcc" else "-D warnings" if compiler == "rustc" else ""
    lines = [line.replace(f"{compiler} ", f"{compiler} {words} ", 1) if words else line for line in said]
    cache = f"export GOCACHE={tmp_path}/cache GOFLAGS=-mod=mod HOME={tmp_path}\n" if compiler == "go" else ""
    script = f"set -e\n{cache}" + "\n".join(lines)
    built = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert built.returncode == 0, built.stderr

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = ["./detect", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)

    result = run(engine.folder, picture)
    assert result.returncode == 0, result.stderr
    found = [line.split() for line in result.stdout.splitlines()]
    expected = engine(image)
    assert [(label, *map(int, sides)) for label, _, *sides in found] == [(box.label, *box.pixels()) for box in expected]
    assert [float(score) for _, score, *_ in found] == pytest.approx([box.confidence for box in expected], abs=1e-5)
    assert len(expected) > 5
    for message, arguments in {
        "not an engine": (tmp_path / "absent", picture),
        "usage: ": (engine.folder,),
        "no binary PPM" if picture == "a.ppm" else "unknown format": (engine.folder, source),
    }.items():
        result = run(*arguments)
        assert result.returncode in (1, 2)
        assert message in result.stderr
