"""The notebook, with a small network and images in the place of the zoo's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import ROOT
from tests.examples.conftest import EXAMPLES
from tests.patience import PATIENCE

NOTEBOOK = EXAMPLES / "notebook.ipynb"


def test_it_holds_no_outputs() -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert not [cell for cell in cells if cell["outputs"] or cell["execution_count"] is not None]
    assert sum(len(cell["source"]) for cell in cells) < 80


@pytest.mark.slow
def test_it_runs(cfg: Path, tmp_path: Path) -> None:
    pytest.importorskip("nbmake")
    pytest.importorskip("ipykernel")
    pytest.importorskip("onnxruntime")
    from PIL import Image

    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(4):
        Image.fromarray(generator.integers(0, 256, (40, 50, 3), np.uint8)).save(tmp_path / f"images/{number}.png")
    book = json.loads(NOTEBOOK.read_text())
    (chosen,) = [cell for cell in book["cells"] if cell["metadata"].get("tags") == ["parameters"]]
    chosen["source"] = [f"NETWORK = {str(cfg)!r}\n", f"IMAGES = {str(tmp_path / 'images')!r}\n", "CONFIDENCE = 0.15"]
    (tmp_path / "copy.ipynb").write_text(json.dumps(book))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbmake", "--overwrite", "copy.ipynb"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    cells = json.loads((tmp_path / "copy.ipynb").read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    said = "".join("".join(output.get("text", "")) for output in outputs)
    assert "4 photographs" in said
    assert "float32: " in said
    assert "int8: " in said
