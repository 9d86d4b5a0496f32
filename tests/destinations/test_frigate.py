"""Destination `frigate`: what Frigate's post-processing, in our words, makes of the output, and its configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dnc
from dnc.darknet.cfg import find_cfg
from dnc.destinations.frigate import _labelmap, _tracked
from dnc.errors import DestinationError, DncWarning
from dnc.runtime.engine import Engine
from dnc.typing import Array
from tests.destinations.conftest import pixels
from tests.networks import write_network

yaml = pytest.importorskip("yaml")

Engines = Callable[[str], Engine]
Row = tuple[int, float, float, float, float, float]
"""Class, score, and top, left, bottom, right in fractions of the input."""

DETECTORS = [
    *("gaussian", "non_square"),
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("yolo", "bgr", "scaled", "new_coords", "region", "one_class")
    ),
]
SCORE, OVERLAP, MOST = 0.1, 0.4, 20
"""Frigate's, but for the score, 0.4 there: random networks are seldom as sure."""


def rows_of(output: Array, width: int, height: int) -> list[Row]:
    """What Frigate reports of the output of a model of type yolo-generic."""
    [table] = output
    # It tells rows and columns apart by their number alone.
    table = table.T if table.shape[0] < table.shape[1] else table
    x, y, w, h = table[:, :4].T
    corners = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=1)
    return suppressed(corners, table[:, 4:], width, height)


def suppressed(corners: Array, scores: Array, width: int, height: int) -> list[Row]:
    """The best boxes by Frigate's rules, of left, top, right, bottom (K, 4) in pixels and scores (K, classes)."""
    best = scores.max(axis=1)
    left: list[int] = []
    for index in np.argsort(-best, kind="stable"):
        if best[index] > np.float32(SCORE) and not any(_overlap(corners[index], corners[other]) for other in left):
            left.append(int(index))
    rows = []
    for index in left[:MOST]:
        x0, y0, x1, y1 = corners[index].tolist()
        sides = (y0 / height, x0 / width, y1 / height, x1 / width)
        rows.append((int(scores[index].argmax()), float(best[index]), *sides))
    return rows


def _overlap(one: Array, other: Array) -> bool:
    """As cv2.dnn.NMSBoxes sees it, which takes right and bottom for width and height."""
    (x, y, w, h), (x2, y2, w2, h2) = one.astype(np.float64), other.astype(np.float64)
    across, down = min(x + w, x2 + w2) - max(x, x2), min(y + h, y2 + h2) - max(y, y2)
    shared = max(across, 0) * max(down, 0)
    return bool(shared > OVERLAP * (w * h + w2 * h2 - shared))


def expected_of(engine: Engine, plain: Array) -> list[Row]:
    """The same of dnc's own boxes."""
    prepared = engine.manifest.preprocessing
    assert prepared is not None
    x = plain[:, ::-1] if prepared.color == "bgr" else plain
    mean, std = (np.array(values, np.float32).reshape(1, -1, 1, 1) for values in (prepared.mean, prepared.std))
    outputs = engine.forward(np.ascontiguousarray((x - mean) / std))
    found = engine.postprocess.candidates(outputs, threshold=SCORE)
    x, y, w, h = (found.boxes * np.array([prepared.width, prepared.height] * 2, np.float32)).T
    corners = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=1)
    return suppressed(corners, found.scores, prepared.width, prepared.height)


def exported(engine: Engine, out: Path, **options: Any) -> dict[str, Any]:
    """The sections for config.yml."""
    dnc.export(engine.folder, "frigate", out, **options)
    assert {path.name for path in out.iterdir()} == {
        "README.md",
        "config.yml",
        "export.json",
        "labelmap.txt",
        "model.onnx",
    }
    config: dict[str, Any] = yaml.safe_load((out / "config.yml").read_text(encoding="utf-8"))
    return config


def outputs_of(model: Path, images: Array) -> Array:
    """What an ONNX Runtime makes of the images."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model)
    [entry], [output] = session.get_inputs(), session.get_outputs()
    assert entry.shape == list(images.shape)
    found: Array = session.run([output.name], {entry.name: images})[0]
    assert output.shape == list(found.shape)
    return found


@pytest.mark.parametrize("name", DETECTORS)
def test_boxes(engine: Engines, tmp_path: Path, name: str) -> None:
    check_boxes(engine(name), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"batch": 1}, {"preprocess": "letterbox"}])
def test_yolov4_tiny(tmp_path: Path, options: dict[str, Any]) -> None:
    cfg = write_network(tmp_path, "yolov4-tiny", find_cfg("yolov4-tiny").read_text(encoding="utf-8"))
    options = {**options, "width": 96, "height": 96}
    with pytest.warns(DncWarning, match="nms_kind=greedynms"):
        check_boxes(dnc.compile(cfg, None, "onnx", tmp_path / "e.engine", verify=False, **options), tmp_path)


def check_boxes(made: Engine, tmp_path: Path) -> None:
    """Frigate's rules give the same of the export and of dnc's own boxes."""
    config = exported(made, tmp_path / "out")
    model = config["model"]
    images = pixels(made)
    assert images.shape == (1, 3, model["height"], model["width"])
    expected = expected_of(made, images)
    found = rows_of(outputs_of(tmp_path / "out" / "model.onnx", images), model["width"], model["height"])
    assert expected, "nothing to compare"
    assert [row[0] for row in found] == [row[0] for row in expected]
    # Fractions of the input; sums in float32 in another order.
    np.testing.assert_allclose([row[1:] for row in found], [row[1:] for row in expected], rtol=0, atol=2e-5)


FEW = """[net]
width=32
height=32
channels=3

[convolutional]
filters=2
size=3
stride=8
pad=1
activation=leaky

[connected]
output=32
activation=logistic

[detection]
classes=3
coords=4
side=2
num=1
"""
"""4 boxes."""


def test_few_boxes_are_not_taken_for_their_transpose(write: Callable[..., Path], tmp_path: Path) -> None:
    """Boxes without a score make them more than there are columns, 4 + 3."""
    made = dnc.compile(write("few", FEW), None, "onnx", tmp_path / "few.engine", verify=False)
    exported(made, tmp_path / "out")
    images = pixels(made)
    output = outputs_of(tmp_path / "out" / "model.onnx", images)
    assert output.shape == (1, 7, 8)
    assert not output[0, :, 4:].any()
    found, expected = rows_of(output, 32, 32), expected_of(made, images)
    assert expected
    assert [row[0] for row in found] == [row[0] for row in expected]
    np.testing.assert_allclose([row[1:] for row in found], [row[1:] for row in expected], rtol=0, atol=2e-5)


def test_config(engine: Engines, tmp_path: Path) -> None:
    config = exported(engine("non_square"), tmp_path / "out")
    assert config == {
        "detectors": {"onnx": {"type": "onnx"}},
        "model": {
            "model_type": "yolo-generic",
            "path": "/config/model_cache/non_square/model.onnx",
            "labelmap_path": "/config/model_cache/non_square/labelmap.txt",
            "width": 64,
            "height": 32,
            "input_tensor": "nchw",
            "input_dtype": "float",
            "input_pixel_format": "rgb",
        },
        "objects": {"track": ["0", "1", "2"]},
    }
    assert (tmp_path / "out" / "labelmap.txt").read_text() == "0  0\n1  1\n2  2\n"


def test_a_confidence_over_frigates_is_its_min_score(engine: Engines, tmp_path: Path) -> None:
    config = exported(engine("one_class"), tmp_path / "out", confidence=0.6)
    assert config["objects"] == {"track": ["0"], "filters": {"0": {"min_score": 0.6}}}


def names_of(labelmap: Path) -> dict[int, str]:
    """As Frigate reads a file whose first word is a number."""
    pairs = [line.split(" ", maxsplit=1) for line in labelmap.open(encoding="utf-8").readlines()]
    return {int(number): name.strip() for number, name in pairs}


def test_labels(write: Callable[..., Path], tmp_path: Path) -> None:
    names = ["yes", "a: #b", 'say "hi"', "dont_show", "gr\u00fcn \U0001f33f", "null", "tvmonitor", "a\x85b", "yes"]
    cfg = f"""[net]
width=32
height=32
channels=3

[convolutional]
filters={5 + len(names)}
size=3
stride=4
pad=1
activation=linear

[yolo]
anchors=10,14
mask=0
num=1
classes={len(names)}
"""
    path = write("labelled", cfg)
    path.with_suffix(".names").write_text("\n".join(names) + "\n", encoding="utf-8")
    dnc.export(path, "frigate", tmp_path / "out", verify=False)
    known = names_of(tmp_path / "out" / "labelmap.txt")
    assert list(known) == list(range(len(names)))
    assert [known[number] for number in (0, 1, 2, 4, 6)] == [*names[:3], names[4], "tv"]
    config = yaml.safe_load((tmp_path / "out" / "config.yml").read_text(encoding="utf-8"))
    tracked = config["objects"]["track"]
    assert set(tracked) == set(known.values()) - {"dont_show"}
    assert len(tracked) == len(names) - 2


def test_coco_is_called_as_in_frigates_own_labelmap() -> None:
    coco = ["person", "bicycle", "car", "motorbike", "aeroplane", "bus", "train", "truck", *map(str, range(72))]
    found = _labelmap(coco)
    assert found[:8] == ["person", "bicycle", "car", "motorcycle", "airplane", "car", "train", "car"]
    assert _tracked(found) == ["person", "bicycle", "car", "motorcycle"]
    # Who tells them apart himself wants to.
    assert _labelmap(["car", "bus", "truck"]) == ["car", "bus", "truck"]
    assert _tracked(["helmet", "vest", "helmet"]) == ["helmet", "vest"]


def test_a_free_batch_becomes_one(engine: Engines, write: Callable[..., Path], tmp_path: Path) -> None:
    assert engine("yolo").manifest.batch == "N"
    exported(engine("yolo"), tmp_path / "one")
    # Of a square, a square letterbox takes all.
    dnc.export(write("tiny"), "frigate", tmp_path / "other", preprocess="letterbox", verify=False)
    for out in ("one", "other"):
        images = np.zeros((1, 3, *((32, 32) if out == "one" else (16, 16))), np.float32)
        assert len(outputs_of(tmp_path / out / "model.onnx", images)) == 1


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("classifier", "a classifier has no boxes", "Frigate trains classifiers"),
        ("batch_4", "takes batches of 4", "compile it without --batch"),
        ("letterbox", "stretches squares to 64 x 32, and the network wants a letterbox", "--preprocess resize"),
        pytest.param("gray", "takes 1 channels, and Frigate's frames have 3", "", marks=pytest.mark.slow),
        pytest.param("tree", "class tree", "dnc detect", marks=pytest.mark.slow),
        pytest.param("classes_differ", "a head of 3 classes and one of 2", "", marks=pytest.mark.slow),
        pytest.param("recurrent", "remembers what it saw", "", marks=pytest.mark.slow),
        pytest.param("vector", "takes no images", "", marks=pytest.mark.slow),
    ],
)
def test_refusals(engine: Engines, tmp_path: Path, name: str, message: str, hint: str) -> None:
    with pytest.raises(DestinationError, match=message) as caught:
        dnc.export(engine(name).folder, "frigate", tmp_path / "out")
    assert hint in (caught.value.hint or "")
    assert not list(tmp_path.iterdir())


def test_pixels_are_refused(write: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(DestinationError, match="takes pixels") as caught:
        dnc.export(write("tiny"), "frigate", tmp_path / "out", input="u8", verify=False)
    assert "leave --input out" in (caught.value.hint or "")
