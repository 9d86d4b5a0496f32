"""The runtime by itself: its folder and the ground, numpy and one engine's library run every engine."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import dnc
from tests import ROOT
from tests.patience import PATIENCE
from tools.packages import RUNTIME

Write = Callable[..., Path]

GROUND = tuple(name.removeprefix("dnc/") for name in RUNTIME if name not in ("dnc/runtime", "dnc/py.typed"))
"""What darknet-runtime has beside dnc.runtime."""
CODE = """
import sys
ground = ("dnc.errors", "dnc.files", "dnc.registry", "dnc.typing", "dnc.runtime")
class Blocked:
    def find_spec(self, name, *_):
        other = name.startswith("dnc.") and not name.startswith(ground)
        if other or name.partition(".")[0] in ("onnx", "onnx_ir", "PIL", "click", "rich"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
sys.path.insert(0, sys.argv[1])
import json
import numpy as np
import dnc
assert dnc.__file__.startswith(sys.argv[1]), dnc.__file__
image = np.full((30, 40, 3), 99, np.uint8)
found = []
for folder in sys.argv[2:]:
    with dnc.load(folder) as engine:
        if engine.manifest.preprocessing is None:
            outputs = engine.forward(np.full(engine.manifest.input_shape, 0.5))
            found.append([float(output.sum()) for output in outputs])
        else:
            found.append([[box.class_id, box.confidence] for box in engine(image, confidence=0.2)])
# Its library is found beside it, without its compiler.
assert "tvm" not in sys.modules
print(json.dumps(found))
"""


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """A folder to import dnc from, with nothing of the compiler in it."""
    place = tmp_path / "alone"
    for name in ("runtime", *GROUND):
        source, copy = ROOT / "dnc" / name, place / "dnc" / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, copy)
    return place


@pytest.mark.parametrize(("target", "library"), [("onnx", "onnxruntime"), ("openvino", "openvino"), ("tvm", "tvm")])
def test_runs_every_engine(target: str, library: str, alone: Path, write: Write, tmp_path: Path) -> None:
    """Boxes and classes, decoded and suppressed on the host or in the graph, pixels, states."""
    pytest.importorskip(library, exc_type=ImportError)
    variants: dict[str, tuple[str, dict[str, str]]] = {
        "boxes": ("yolo", {}),
        "pixels": ("yolo", {"input": "u8", "decode": "graph+nms"}),
        "classes": ("classifier", {}),
        "states": ("rnn", {}),
    }
    engines = [
        dnc.compile(write(network), target=target, out=tmp_path / name, verify=False, **options)  # type: ignore[arg-type]
        for name, (network, options) in variants.items()
    ]
    command = [sys.executable, "-c", CODE, str(alone), *(str(engine.folder) for engine in engines)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr
    for engine, found in zip(engines, json.loads(result.stdout), strict=True):
        if engine.manifest.preprocessing is None:
            expected = [float(output.sum()) for output in engine.forward(np.full(engine.manifest.input_shape, 0.5))]
            assert found == pytest.approx(expected, rel=1e-5)
        else:
            shown = engine(np.full((30, 40, 3), 99, np.uint8), confidence=0.2)
            assert [class_id for class_id, _ in found] == [box.class_id for box in shown]
            assert [confidence for _, confidence in found] == pytest.approx([box.confidence for box in shown], rel=1e-5)


def test_imports_numpy_alone() -> None:
    """`import dnc.runtime` loads no engine's library, and of dnc itself and the ground alone."""
    code = "import sys, dnc.runtime; print(*sorted(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    loaded = result.stdout.split()
    ours = {name.split(".")[1] for name in loaded if name.startswith("dnc.")}
    assert ours <= {"runtime", *(name.removesuffix(".py") for name in GROUND)}
    heavy = {"onnxruntime", "openvino", "tvm", "tvm_ffi", "onnx", "onnx_ir", "PIL", "click", "rich", "asyncio"}
    assert not heavy & set(loaded)
