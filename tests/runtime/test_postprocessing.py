"""From outputs to results, for the three forms that a graph's outputs have. Darknet's numbers: test_decoding.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dnc
from dnc.errors import BundleError, DncError
from dnc.runtime import Inputs, Postprocess
from dnc.runtime.decoding import Classification, ClassifierHead, Detection, YoloHead
from dnc.runtime.preprocessing import Preprocessing
from tests.manifests import manifest

Write = Callable[..., Path]

HEAD = YoloHead("out", "a.cfg:1 [yolo] #0", 2, ((8.0, 8.0),), (32, 32))
PREPARED = Preprocessing(32, 32, mode="letterbox")
BOXES = np.array([[0.5, 0.5, 0.25, 0.25], [0.5, 0.5, 0.25, 0.2], [0.25, 0.5, 0.25, 0.25]], np.float32)
SCORES = np.array([[0.5, 0.0], [0.75, 0.125], [0.0, 0.625]], np.float32)


def decoded(**fields: Any) -> Postprocess:
    shapes: dict[str, Any] = {"outputs": ("boxes", "scores"), "output_shapes": ((3, 4), (3, 2))}
    return Postprocess(manifest(heads=(HEAD,), decode="graph", preprocessing=PREPARED, **shapes, **fields))


@pytest.mark.parametrize("name", ["yolo", "classifier"])
@pytest.mark.parametrize("decode", ["host", "graph", "graph+nms"])
def test_outputs_of_forward(name: str, decode: str, write: Write, tmp_path: Path) -> None:
    """With a batch axis and without, they give what the engine says."""
    if name == "classifier" and decode != "host":
        return
    engine = dnc.compile(write(name), out=tmp_path / "e", target="onnx", decode=decode, verify=False)
    inputs, postprocess = Inputs(engine.manifest), Postprocess(engine.manifest)
    # As large as the network's input: forward() of a graph with the suppression inside knows no other image.
    _, height, width = engine.manifest.input_shape
    images = [np.random.default_rng(n).integers(0, 256, (height, width, 3), np.uint8) for n in range(2)]
    arrays = np.stack([inputs.prepare(image).array for image in images])
    for position, image in enumerate(images):
        expected = engine(image, confidence=0.25, top=3)
        assert expected
        size = (width, height)
        assert postprocess(engine.forward(arrays[position]), size, top=3) == expected
        for found, right in zip(
            postprocess(engine.forward(arrays), size, top=3, position=position), expected, strict=True
        ):
            assert isinstance(found, Classification | Detection)
            assert isinstance(right, Classification | Detection)
            assert found.class_id == right.class_id
            assert found.confidence == pytest.approx(right.confidence, abs=1e-5)


def test_graph_decodes() -> None:
    """What overlaps is suppressed; labels, and boxes on the image."""
    found: Any = decoded(labels=("cat", "dog"))([BOXES, SCORES], (64, 32), confidence=0.2)
    assert [(box.label, box.confidence) for box in found] == [("cat", 0.75), ("dog", 0.625)]
    # The image is the middle half of the input.
    assert [box.height for box in found] == [np.float32(0.4), 0.5]
    assert found[0].image_size == (64, 32)
    two: Any = decoded()([BOXES[None].repeat(2, 0), np.stack([SCORES * 0, SCORES])], confidence=0.2, position=1)
    assert [(box.label, box.height) for box in two] == [("0", np.float32(0.2)), ("1", 0.25)]
    assert decoded()([BOXES[None], SCORES[None] * 0]) == []


def test_candidates_of_low_scores() -> None:
    """For evaluation: in the order of the graph or of the heads, and with what will be suppressed."""
    postprocess = decoded()
    candidates = postprocess.candidates([BOXES, SCORES], threshold=0.1)
    assert np.array_equal(candidates.scores, SCORES)
    assert np.array_equal(candidates.boxes, BOXES)
    assert postprocess.candidates([BOXES, SCORES], threshold=0.6).scores.tolist() == [[0.75, 0], [0, 0.625]]
    assert postprocess.suppressed(candidates, 0.45).tolist() == [[0, 0], [0.75, 0.125], [0, 0.625]]


def test_graph_suppresses() -> None:
    rows = np.array([[0, 1, 0.5, *BOXES[0]], [1, 0, 0.25, *BOXES[1]], [1, 1, 0.75, *BOXES[2]]], np.float32)
    shapes: dict[str, Any] = {"outputs": ("detections",), "output_shapes": ((7,),)}
    postprocess = Postprocess(manifest(heads=(HEAD,), decode="graph+nms", **shapes), Path("net.engine"))
    found: Any = postprocess([rows], (64, 32), position=1)
    assert [(box.class_id, box.confidence) for box in found] == [(1, 0.75), (0, 0.25)]
    with pytest.raises(DncError, match="suppressed itself") as caught:
        postprocess.candidates([rows], threshold=0.1)
    assert caught.value.where == Path("net.engine")


@pytest.mark.parametrize(
    "rows", [np.zeros((1, 2)), np.zeros(7), np.zeros((1, 1, 7)), [[0, 2, *[0.5] * 5]], [[0, np.nan] * 3 + [0]]]
)
def test_a_model_that_suppresses_otherwise(rows: Any) -> None:
    """Of another network, with a right digest."""
    shapes: dict[str, Any] = {"outputs": ("detections",), "output_shapes": ((7,),)}
    postprocess = Postprocess(manifest(heads=(HEAD,), decode="graph+nms", **shapes), Path("net.engine"))
    with pytest.raises(BundleError, match="the model "):
        postprocess([np.array(rows, np.float32)])


@pytest.mark.parametrize(
    ("boxes", "scores"),
    [(BOXES[:1], SCORES), (BOXES[:, :2], SCORES), (BOXES, BOXES), (BOXES[0], SCORES), (BOXES, SCORES[0, 0])],
)
def test_a_model_that_decodes_otherwise(boxes: Any, scores: Any) -> None:
    with pytest.raises(BundleError, match="the model "):
        decoded()([boxes, scores], (64, 32), confidence=0.2)


def test_classes() -> None:
    head = ClassifierHead("out", "a.cfg:1 [softmax] #0", 3)
    postprocess = Postprocess(manifest(heads=(head,), output_shapes=((3,),), labels=("a", "b", "c")))
    values = np.array([[0.5, 0.25, 0.25], [0.0, 0.25, 0.75]], np.float32)
    found: Any = postprocess([values], top=2, position=1)
    assert [(one.label, one.confidence) for one in found] == [("c", 0.75), ("b", 0.25)]
    assert postprocess([values[1]], top=2) == found


def test_networks_without_heads() -> None:
    with pytest.raises(DncError, match="no head that gives boxes or classes"):
        Postprocess(manifest())([np.zeros((1, 1), np.float32)])
