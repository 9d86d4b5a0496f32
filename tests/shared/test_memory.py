"""A detector with memory on four photographs in a row, as Darknet's `detector test` finds them in one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dnc.compiler.compiling import compile
from dnc.targets import targets
from tests.goldens import boxes, detections, misses

pytestmark = pytest.mark.shared


@pytest.mark.parametrize("target", ["onnx", "openvino", "tvm"])
def test_frames(target: str, shared: Path, images: Path, tmp_path: Path) -> None:
    if targets[target]().missing():
        pytest.skip(f"{target} is not installed")
    folder = shared / "cases" / "recurrent"
    engine = compile(folder / "net.cfg", folder / "net.weights", target, tmp_path / "e", verify=False)
    paths = [images / name for name in (folder / "images.txt").read_text(encoding="utf-8").split()]
    recorded = detections(json.loads((folder / "darknet.json").read_text(encoding="utf-8")))
    found = engine.detect(paths, confidence=0.3)
    assert [len(one) for one in found] == [2, 16, 35, 37]
    for ours, theirs in zip(found, recorded.values(), strict=True):
        for some, others in ((boxes(ours), theirs), (theirs, boxes(ours))):
            assert misses(some, others, 0.3, 1e-5, 1e-5) == []
    assert list(engine.stream(paths, confidence=0.3)) == found
