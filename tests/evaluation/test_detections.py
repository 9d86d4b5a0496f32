"""Detections against Darknet's `detector test`, from the image file to the box.

The networks run in ONNX Runtime and in OpenVINO, with all passes. libstb decodes as Darknet's stb_image does, so the
inputs have the same bits and nothing is left but the rounding of the convolutions. tests/shared/test_trained.py does
this with trained networks, and photographs, that are not here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from dnc.compiler.compiling import compile
from dnc.runtime.engine import Engine
from dnc.targets import targets
from tests import goldens
from tests.goldens import Box, boxes, misses
from tests.networks import RECORDED

THRESHOLDS = {"enet-coco": 0.9, "yolov4-tiny": 0.8}
"""Darknet's, and ours: below it neither has anything."""
CONFIDENCE, EDGE = 1e-5, 1e-5
"""1.5e-6 and, of a box twice as wide as the image, 6.1e-6 were seen; 5e-7 is the six digits of Darknet's JSON."""

HOST: dict[str, str] = {}
GRAPH = {"decode": "graph+nms", "input": "u8"}

Build = Callable[..., Engine]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """An engine by the network's name, and options of `compile`."""

    @functools.cache
    def build(name: str, target: str = "onnx", **options: str) -> Engine:
        folder = tmp_path_factory.mktemp(name)
        cfg, weights = goldens.whole(name).write(folder)
        return compile(cfg, weights, target, folder / "engine", verify=False, **options)  # type: ignore[arg-type]

    return build


def both(engine: Engine, name: str) -> tuple[list[Box], list[Box]]:
    """Our boxes of the photograph, and Darknet's."""
    pytest.importorskip("libstb")
    (theirs,) = goldens.detections(goldens.frames(name)).values()
    return boxes(engine(goldens.PHOTOGRAPH, confidence=THRESHOLDS[name])), theirs


@pytest.mark.parametrize(
    ("name", "target", "options"),
    # Of each two of these every pair is among the first four.
    [
        ("enet-coco", "onnx", HOST),
        ("enet-coco", "openvino", GRAPH),
        ("yolov4-tiny", "onnx", GRAPH),
        ("yolov4-tiny", "openvino", HOST),
        pytest.param("enet-coco", "onnx", GRAPH, marks=pytest.mark.slow),
        pytest.param("enet-coco", "openvino", HOST, marks=pytest.mark.slow),
        pytest.param("yolov4-tiny", "onnx", HOST, marks=pytest.mark.slow),
        pytest.param("yolov4-tiny", "openvino", GRAPH, marks=pytest.mark.slow),
    ],
)
def test_same_detections(name: str, target: str, options: dict[str, str], engine: Build) -> None:
    """Every box of one side is one of the other's, down to the threshold less the bound."""
    if target == "openvino":
        pytest.importorskip("openvino", exc_type=ImportError)
    ours, theirs = both(engine(name, target, **options), name)
    for some, others in ((ours, theirs), (theirs, ours)):
        assert misses(some, others, THRESHOLDS[name] + CONFIDENCE, CONFIDENCE, EDGE) == []
    unsure = sum(abs(box.confidence - THRESHOLDS[name]) < CONFIDENCE for box in (*ours, *theirs))
    assert abs(len(ours) - len(theirs)) <= unsure
    assert len(theirs) > 100


@pytest.mark.parametrize("options", [{"preprocess": "resize"}, {"preprocess": "resize-half-pixel"}, {"color": "bgr"}])
def test_a_wrong_preprocessing_is_seen(options: dict[str, str], engine: Build) -> None:
    """The bounds are narrow enough to tell another one."""
    ours, theirs = both(engine("yolov4-tiny", **options), "yolov4-tiny")
    assert misses(theirs, ours, 0.85, CONFIDENCE, EDGE)


def test_a_near_threshold_pair_matches() -> None:
    one, other = Box.of(3, 0.2003, 0.5, 0.5, 0.2, 0.2), Box.of(3, 0.1996, 0.5, 0.5, 0.2, 0.201)
    assert misses([one], [other], 0.2, 0.01, 0.01) == []
    assert misses([other], [one], 0.2, 0.01, 0.01) == []
    assert misses([one], [other._replace(class_id=4)], 0.2, 0.01, 0.01) == [one]
    assert misses([one], [other._replace(confidence=0.18)], 0.2, 0.01, 0.01) == [one]
    assert misses([one], [other._replace(edges=other.edges + 0.02)], 0.2, 0.01, 0.01) == [one]


@pytest.mark.parametrize("options", [{}, {"decode": "graph+nms", "input": "u8"}], ids=["host", "graph"])
@pytest.mark.parametrize("target", ["onnx", "openvino", pytest.param("tvm", marks=pytest.mark.slow)])
def test_what_is_remembered(target: str, options: dict[str, str], tmp_path: Path) -> None:
    """Four images in one process, of a network with memory; without it, other boxes."""
    pytest.importorskip("libstb")
    if targets[target]().missing():
        pytest.skip(f"{target} is not installed")
    cfg, weights = goldens.write_network("remembering", RECORDED, tmp_path)
    engine = compile(cfg, weights, target, tmp_path / "engine", verify=False, **options)  # type: ignore[arg-type]
    paths = goldens.turned(tmp_path)
    recorded = goldens.detections(goldens.frames("remembering"))
    assert list(recorded) == [path.stem for path in paths]
    for run in (engine.detect, engine.stream):
        for ours, theirs in zip(run(paths, confidence=0.4), recorded.values(), strict=True):
            assert len(ours) == len(theirs) >= 10
            for some, others in ((boxes(ours), theirs), (theirs, boxes(ours))):
                assert misses(some, others, 0.4, CONFIDENCE, EDGE) == []
    engine.reset()
    assert misses(boxes(engine(paths[1], confidence=0.4)), recorded["turned1"], 0.4, 100 * CONFIDENCE, 100 * EDGE)
