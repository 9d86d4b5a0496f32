"""The examples, as far as a machine without cameras allows."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dnc
from tests import ROOT
from tests.patience import PATIENCE

EXAMPLES = ROOT / "examples"


def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)


@pytest.mark.network
def test_demo(tmp_path: Path) -> None:
    """In a checkout of its own. Six people at lunch, of whom none is found twice."""
    for name in ("examples/demo.py", "cfg/yolov3-tiny.cfg"):
        (tmp_path / name).parent.mkdir()
        shutil.copy(ROOT / name, tmp_path / name)
    command = [sys.executable, str(tmp_path / "examples" / "demo.py")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr
    found = re.findall(r"^  (\w+) +\d+\.\d%", result.stdout, re.MULTILINE)
    assert found.count("person") == 6
    assert set(found) == {"person", "chair", "bowl", "diningtable"}
    assert re.search(r"^Speed: \d+ ms a picture, .* in fp32 by \w+", result.stdout, re.MULTILINE)
    assert (tmp_path / "demo" / "lunch.detected.jpg").is_file()


@pytest.mark.slow
def test_the_demo_without_a_network(tmp_path: Path) -> None:
    """It says what it lacks, and leaves nothing half."""
    (tmp_path / "examples").mkdir()
    shutil.copy(EXAMPLES / "demo.py", tmp_path / "examples")
    command = [sys.executable, str(tmp_path / "examples" / "demo.py")]
    environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 1
    assert result.stderr.startswith("demo: cannot fetch the photograph: pip: ")
    assert "  hint: it takes the network; " in result.stderr
    assert list((tmp_path / "demo").iterdir()) == []


def test_oak_camera(tmp_path: Path) -> None:
    """The pipeline of an engine of target myriad, whose blob no device loads here."""
    depthai = pytest.importorskip("depthai")
    if int(depthai.__version__.partition(".")[0]) != 2:
        pytest.skip("the example is for DepthAI 2")
    from dnc.runtime.runners.myriad import toolchain

    if toolchain.damage("myriad") != "":
        pytest.skip("the toolchain is not installed: dnc toolchain install myriad")
    from tests.networks import TINY, write_network

    cfg = write_network(tmp_path, "tiny", TINY.replace("=16\n", "=32\n"))
    engine = dnc.compile(cfg, out=tmp_path / "e", target="myriad", verify=False)
    result = run("oak_camera.py", engine.folder, "--dry-run")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "ColorCamera -> DetectionNetwork -> XLinkOut"


def test_oak_camera_reads_what_the_target_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for DepthAI that records what it is told."""
    told: list[tuple[str, tuple[object, ...]]] = []

    class Recorder:
        def __init__(self, path: str = "") -> None:
            self._path = path

        def __getattr__(self, name: str) -> Recorder:
            return Recorder(f"{self._path}.{name}")

        def __call__(self, *arguments: object) -> Recorder:
            told.append((self._path, arguments))
            return Recorder(self._path)

    monkeypatch.setitem(sys.modules, "depthai", Recorder())
    (tmp_path / "model.json").write_text(json.dumps({"color": "rgb"}))
    specific = {"classes": 2, "coordinates": 4, "anchors": [1.0, 2.0], "anchor_masks": {"side4": [0]}}
    specific |= {"iou_threshold": 0.4, "confidence_threshold": 0.3}
    config = {"input_size": "64x48", "NN_specific_metadata": specific}
    (tmp_path / "yolo.json").write_text(json.dumps({"nn_config": config, "mappings": {"labels": ["cat", "dog"]}}))
    import importlib.util

    spec = importlib.util.spec_from_file_location("oak_camera", EXAMPLES / "oak_camera.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    _, labels = module.build(tmp_path)
    assert labels == ["cat", "dog"]
    said = {path.rpartition(".")[2]: arguments for path, arguments in told}
    assert said["setPreviewSize"] == (64, 48)
    assert said["setNumClasses"] == (2,)
    assert said["setAnchorMasks"] == ({"side4": [0]},)
    assert said["setBlobPath"] == (str(tmp_path / "model.blob"),)
    assert said["setConfidenceThreshold"] == (0.3,)


def test_each_is_short_and_listed() -> None:
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    files = [path for path in EXAMPLES.rglob("*.*") if path.suffix in (".c", ".cpp", ".go", ".ipynb", ".py", ".rs")]
    listed = re.findall(r"^\| \[(.+?)\]\(", text, re.MULTILINE)
    assert sorted(listed) == sorted(path.relative_to(EXAMPLES).as_posix() for path in files)
    lines = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in files if path.suffix != ".ipynb"}
    assert {name for name, count in lines.items() if count > 80} <= {"demo.py"}
