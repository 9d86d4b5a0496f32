"""Evaluation: cases computed by hand, COCO's figures, classifiers, and Darknet's own figures on real networks."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dnc.errors import DatasetError, DncError, DncWarning, ImageError
from dnc.evaluation.datasets import read_dataset
from dnc.evaluation.metrics import average_precision, evaluate
from dnc.evaluation.reports import CocoReport, DarknetReport, TopReport
from dnc.runtime.decoding import ClassifierHead, Head, YoloHead
from dnc.runtime.inputs import Inputs
from dnc.runtime.postprocessing import Postprocess
from dnc.runtime.preprocessing import Preprocessing
from tests import ROOT
from tests.manifests import manifest

CFG = ROOT / "cfg"

Box = tuple[float, float, float, float]
Scene = Sequence[tuple[Box, Sequence[float]]]
"""Boxes, each with a score for each class."""


class _Engine:
    """Finds scene i in an image whose pixels are all i; boxes are decoded, not suppressed."""

    def __init__(self, scenes: Sequence[Scene], classes: int, decode: str = "graph") -> None:
        head: Head = YoloHead("boxes", "", classes, ((1.0, 1.0),), (8, 8))
        extra = ("confidence", "iou") if decode == "graph+nms" else ()
        self._give(heads=(head,), decode=decode, extra_inputs=extra)
        self.scenes, self.classes = scenes, classes
        self.folder = Path("fake.engine")
        self.labels = ("cat",)
        self.session = self

    def _give(self, **fields: Any) -> None:
        shapes = {"outputs": ("boxes", "scores"), "output_shapes": ((9, 4), (9, 2)), "input_shape": (3, 8, 8)}
        self.manifest = manifest(**shapes, preprocessing=Preprocessing(8, 8), batch=2, **fields)
        self.inputs, self.postprocess = Inputs(self.manifest), Postprocess(self.manifest)

    def run(self, feeds: Any) -> list[Any]:
        x = feeds["input"]
        assert x.shape == (2, 3, 8, 8)
        scene = self.scenes[round(float(x[0, 0, 0, 0]) * 255)]
        if self.manifest.decode == "graph+nms":
            assert (feeds["confidence"], feeds["iou"]) == (np.float32(0.005), np.float32(0.45))
            rows = [
                (0, index, score, *box) for box, scores in scene for index, score in enumerate(scores) if score > 0.005
            ]
            return [np.array(rows, np.float32).reshape(-1, 7)]
        boxes = np.array([box for box, _ in scene], np.float32).reshape(-1, 4)
        scores = np.array([scores for _, scores in scene], np.float32).reshape(-1, self.classes)
        return [boxes[None], scores[None]]


def _evaluate(
    folder: Path,
    scenes: Sequence[Scene],
    truths: Sequence[Sequence[tuple[int, Box]]],
    classes: int = 2,
    order: Sequence[int] | None = None,
    decode: str = "graph",
    **options: Any,
) -> Any:
    for number, truth in enumerate(truths):
        Image.new("RGB", (100, 50), (number,) * 3).save(folder / f"{number}.png")
        text = "".join(f"{class_id} {' '.join(map(str, box))}\n" for class_id, box in truth)
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    places = [folder / f"{number}.png" for number in (order if order is not None else range(len(truths)))]
    engine: Any = _Engine(scenes, classes, decode)
    return evaluate(engine, read_dataset(places), **options)


def _darknet(*arguments: Any, **options: Any) -> DarknetReport:
    report = _evaluate(*arguments, like_darknet=True, **options)
    assert isinstance(report, DarknetReport)
    return report


def _counts(report: DarknetReport) -> tuple[int, int, int]:
    return report.true_positives, report.false_positives, report.false_negatives


LEFT, RIGHT, WHOLE = (0.275, 0.5, 0.55, 1.0), (0.725, 0.5, 0.55, 1.0), (0.5, 0.5, 1.0, 1.0)
"""Either half overlaps the whole by 0.55, and the other by 0.1 / 1."""
SMALL = (0.1, 0.1, 0.1, 0.1)


@pytest.mark.parametrize(
    ("right", "objects", "points", "expected"),
    [
        ([True, True], 2, 101, 1.0),
        ([True, True], 2, 11, 1.0),
        ([True, True], 2, 0, 1.0),
        ([False, False], 2, 101, 0.0),
        ([], 2, 101, 0.0),
        ([False], 0, 101, 0.0),
        # Recall 0.5 at precision 1, and no more: 51 of 101 points, 6 of 11.
        ([True], 2, 101, 51 / 101),
        ([True], 2, 11, 6 / 11),
        ([True], 2, 0, 0.5),
        # Recall 0.5 at precision 1, recall 1 at 2/3.
        ([True, False, True], 2, 101, (51 + 50 * 2 / 3) / 101),
        # Precisions 1, 1/2, 2/3; the best from each on 1, 2/3, 2/3. The step is between the second and the third.
        ([True, False, True], 2, 0, 0.5 + 0.5 * 2 / 3),
        # The step from the first to the second has the first one's precision in Darknet.
        ([True, True, False], 2, 0, 1.0),
        ([False, True], 1, 101, 0.5),
        ([False, True], 1, 0, 0.5),
    ],
)
def test_average_precision(right: list[bool], objects: int, points: int, expected: float) -> None:
    assert average_precision(right, objects, points) == pytest.approx(expected, abs=1e-12)


def darknets_average_precision(right: Sequence[bool], objects: int, points: int) -> float:
    """The loops of validate_detector_map for a class, with the reciprocal that -Ofast makes of its division."""
    curve = []
    true = 0
    for rank, hit in enumerate(right, 1):
        true += hit
        curve.append((true / rank, true / objects))
    total = 0.0
    for point in range(points):
        best = 0.0
        for precision, recall in curve:
            if recall >= point * (1.0 / (points - 1)) and precision > best:
                best = precision
        total += best
    return total / points


def test_a_recall_may_miss_its_point_by_a_rounding() -> None:
    """35 of 100 found: 35 times Darknet's 1/100 is more than 35/100."""
    assert average_precision([True] * 35, 100) == pytest.approx(35 / 101, abs=1e-12)
    assert average_precision([True] * 34, 100) == pytest.approx(35 / 101, abs=1e-12)
    random = np.random.default_rng(0)
    for objects in (1, 5, 10, 20, 50, 100, 200):
        for points in (11, 101):
            right = random.random(objects) < random.random()
            expected = darknets_average_precision(right.tolist(), objects, points)
            assert average_precision(right, objects, points) == pytest.approx(expected, abs=1e-12)


def test_perfect(tmp_path: Path) -> None:
    report = _darknet(tmp_path, [[(WHOLE, (0.9, 0)), (SMALL, (0, 0.8))]], [[(0, WHOLE), (1, SMALL)]])
    assert _counts(report) == (2, 0, 0)
    assert (report.mean_average_precision, report.precision, report.recall, report.f1) == (1, 1, 1, 1)
    # Corners of float32 boxes.
    assert report.average_iou == pytest.approx(1, abs=1e-6)
    assert [entry.name for entry in report.classes] == ["cat", "1"]


def test_all_wrong(tmp_path: Path) -> None:
    """The other class, or elsewhere."""
    report = _darknet(tmp_path, [[(WHOLE, (0, 0.9)), (SMALL, (0.8, 0))]], [[(0, WHOLE), (1, SMALL)]])
    assert _counts(report) == (0, 2, 2)
    assert (report.mean_average_precision, report.f1, report.average_iou) == (0, 0, 0)


def test_nothing_found(tmp_path: Path) -> None:
    report = _darknet(tmp_path, [[]], [[(0, WHOLE)]])
    assert _counts(report) == (0, 0, 1)
    assert report.precision == report.mean_average_precision == 0


def test_duplicates(tmp_path: Path) -> None:
    """Of two boxes on one object, one is right."""
    report = _darknet(tmp_path, [[(LEFT, (0.6,)), (RIGHT, (0.9,))]], [[(0, WHOLE)]], 1)
    assert _counts(report) == (1, 1, 0)
    assert report.average_iou == pytest.approx(0.55 / 2, abs=1e-6)
    assert report.mean_average_precision == 1
    assert report.detections == 2


def test_an_unsure_box_takes_the_object_where_darknet_comes_to_it_first(tmp_path: Path) -> None:
    """LEFT has the higher score for the last class, so that it stands first, and RIGHT is no TP any more."""
    scene: Scene = [(LEFT, (0.1, 0.2)), (RIGHT, (0.9, 0.0))]
    report = _darknet(tmp_path, [scene], [[(0, WHOLE)]])
    assert _counts(report) == (0, 1, 1)
    assert report.classes[0].average_precision == 1
    report = _darknet(tmp_path, [scene], [[(0, WHOLE)]], decode="graph+nms")
    assert _counts(report) == (0, 1, 1)


def test_a_class_without_objects_counts_as_0(tmp_path: Path) -> None:
    report = _darknet(tmp_path, [[(WHOLE, (0.9, 0, 0.3))]], [[(0, WHOLE)]], 3)
    assert report.mean_average_precision == pytest.approx(1 / 3)
    assert [entry.average_precision for entry in report.classes] == [1, 0, 0]
    assert [entry.false_positives for entry in report.classes] == [0, 0, 1]


def test_confidence_and_iou(tmp_path: Path) -> None:
    scene: Scene = [(LEFT, (0.3,))]
    truth = [[(0, WHOLE)]]
    assert _counts(_darknet(tmp_path, [scene], truth, 1)) == (1, 0, 0)
    report = _darknet(tmp_path, [scene], truth, 1, confidence=0.3)
    assert _counts(report) == (0, 0, 1)
    assert report.mean_average_precision == 1
    assert _counts(_darknet(tmp_path, [scene], truth, 1, iou=0.75)) == (0, 1, 1)


def test_difficult_objects_do_not_count(tmp_path: Path) -> None:
    """Found, they are neither right nor wrong for AP; among TP and FP they are FP, as in Darknet."""
    scenes: Sequence[Scene] = [[(WHOLE, (0.9,)), (SMALL, (0.8,))]]
    _darknet(tmp_path, scenes, [[(0, SMALL)]], 1)
    (tmp_path / "hard").mkdir()
    (tmp_path / "hard/0.txt").write_text("0 .5 .5 1 1\n", encoding="utf-8")
    (tmp_path / "hard.list").write_text(f"{tmp_path}/hard/0.png\n", encoding="utf-8")
    (tmp_path / "valid.list").write_text(f"{tmp_path}/0.png\n", encoding="utf-8")
    (tmp_path / "a.data").write_text(f"valid={tmp_path}/valid.list\ndifficult={tmp_path}/hard.list\n", encoding="utf-8")
    engine: Any = _Engine(scenes, 1)
    report = evaluate(engine, read_dataset(tmp_path / "a.data"), like_darknet=True)
    assert isinstance(report, DarknetReport)
    assert (report.detections, report.objects, report.mean_average_precision) == (1, 1, 1)
    assert _counts(report) == (1, 1, 0)


def test_text_is_darknets(tmp_path: Path) -> None:
    lines = _darknet(tmp_path, [[(WHOLE, (0.9,))]], [[(0, WHOLE), (0, SMALL)]], 1).text().splitlines()
    assert lines == [
        " detections_count = 1, unique_truth_count = 2  ",
        "class_id = 0, name = cat, ap = 50.50%   \t (TP = 1, FP = 0) ",
        "",
        " for conf_thresh = 0.25, precision = 1.00, recall = 0.50, F1-score = 0.67 ",
        " for conf_thresh = 0.25, TP = 1, FP = 0, FN = 1, average IoU = 100.00 % ",
        "",
        " IoU threshold = 50 %, used 101 Recall-points ",
        " mean average precision (mAP@0.50) = 0.504950, or 50.50 % ",
    ]
    report = _darknet(tmp_path, [[(WHOLE, (0.9,))]], [[(0, WHOLE)]], 1, points=0)
    assert "used Area-Under-Curve" in report.text()
    json.dumps(report.to_json(), allow_nan=False)


_BOXES = st.builds(
    lambda x, y, w, h: (x / 10, y / 10, w / 10, h / 10),
    *(st.integers(1, 9) for _ in range(4)),
)


@settings(max_examples=30)
@given(st.data())
def test_the_order_of_images_does_not_matter(data: st.DataObject) -> None:
    """Where no two scores are equal; Darknet ranks equal ones by their images."""
    counts = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
    scores = data.draw(st.permutations(range(1, 1 + 2 * sum(counts))))
    left = iter([score / (2 * sum(counts)) for score in scores])
    scenes = [[(data.draw(_BOXES), (next(left), next(left))) for _ in range(count)] for count in counts]
    object_ = st.tuples(st.integers(0, 1), _BOXES)
    truths = [data.draw(st.lists(object_, max_size=3)) for _ in counts]
    order = data.draw(st.permutations(range(len(counts))))
    with tempfile.TemporaryDirectory() as folder:
        report = _darknet(Path(folder), scenes, truths)
        other = _darknet(Path(folder), scenes, truths, order=order)
    # The overlaps are summed in another order.
    assert other.average_iou == pytest.approx(report.average_iou, abs=1e-12)
    assert {**other.to_json(), "average_iou": 0} == {**report.to_json(), "average_iou": 0}


def test_bad_images(tmp_path: Path) -> None:
    scenes: Sequence[Scene] = [[(WHOLE, (0.9,))]] * 3
    _darknet(tmp_path, scenes, [[(0, WHOLE)]] * 3, 1)
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:60])
    (tmp_path / "all.txt").write_text("0.png\n1.png\n2.png\n", encoding="utf-8")
    engine: Any = _Engine(scenes, 1)
    dataset = read_dataset(tmp_path / "all.txt")
    with pytest.raises(ImageError, match=r"1\.png\n  hint: .*all\.txt:2 names it; --skip-bad"):
        evaluate(engine, dataset, like_darknet=True)
    seen: list[tuple[int, int]] = []
    with pytest.warns(DncWarning, match=r"1\.png"):
        report = evaluate(
            engine, dataset, like_darknet=True, skip_bad=True, progress=lambda done, total: seen.append((done, total))
        )
    assert (report.images, report.skipped) == (2, 1)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert isinstance(report, DarknetReport)
    assert _counts(report) == (2, 0, 0)
    with pytest.raises(ImageError, match="none of the 1 images"), pytest.warns(DncWarning):
        evaluate(engine, read_dataset(tmp_path / "1.png"), like_darknet=True, skip_bad=True)


def test_the_data_file_fits_the_engine(tmp_path: Path) -> None:
    _darknet(tmp_path, [[]], [[(0, WHOLE)]], 1)
    (tmp_path / "list").write_text("0.png", encoding="utf-8")
    (tmp_path / "a.names").write_text("cat\ndog\n", encoding="utf-8")
    engine: Any = _Engine([[]], 1)
    for text, said in (("classes=2", "2 classes, but 1 in"), ("names=a.names", "2 names in")):
        (tmp_path / "a.data").write_text(f"valid=list\n{text}\n", encoding="utf-8")
        with pytest.raises(DatasetError, match=said):
            evaluate(engine, read_dataset(tmp_path / "a.data"))
    with pytest.raises(DncError, match="1 points"):
        evaluate(engine, read_dataset(tmp_path / "list"), points=1)


def test_coco_figures(tmp_path: Path) -> None:
    """An object of 100 x 50 pixels, found with an overlap of 0.82: right at IoU 0.50 to 0.80, 7 of 10."""
    pytest.importorskip("pycocotools")
    box = (0.41, 0.5, 0.82, 1.0)
    report = _evaluate(tmp_path, [[(box, (0.9, 0.002))]], [[(0, WHOLE)]])
    assert isinstance(report, CocoReport)
    # 5000 pixels are medium; the class without objects does not count. pycocotools adds 2e-16 to what it divides by.
    expected = CocoReport("fake.engine", 1, 0, 0.7, 1.0, 1.0, -1.0, 0.7, -1.0)
    assert [figure.value for figure in report.figures] == pytest.approx([figure.value for figure in expected.figures])


def test_coco_figures_without_anything(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    values = [figure.value for figure in _evaluate(tmp_path, [[]], [[(0, WHOLE)]]).figures]
    assert values == [0, 0, 0, -1, 0, -1]
    values = [figure.value for figure in _evaluate(tmp_path, [[(WHOLE, (0.9, 0))]], [[]]).figures]
    assert values == [-1] * 6


def test_coco_annotations_have_areas_and_crowds(tmp_path: Path) -> None:
    """The area, 400, makes the object small; what is found in the crowd is no mistake."""
    pytest.importorskip("pycocotools")
    content = {
        "categories": [{"id": 18, "name": "dog"}],
        "images": [{"id": 5, "file_name": "0.png", "width": 100, "height": 50}],
        "annotations": [
            {"image_id": 5, "category_id": 18, "bbox": [0, 0, 50, 50], "area": 400, "iscrowd": 0},
            {"image_id": 5, "category_id": 18, "bbox": [50, 0, 50, 50], "area": 2500, "iscrowd": 1},
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(content), encoding="utf-8")
    scene: Scene = [((0.6, 0.3, 0.1, 0.2), (0.9,)), ((0.25, 0.5, 0.5, 1.0), (0.8,))]
    values = [figure.value for figure in _evaluate(tmp_path, [scene], [[]], 1, annotations=tmp_path / "a.json").figures]
    assert values == pytest.approx([1, 1, 1, 1, -1, -1])
    report = _darknet(tmp_path, [scene], [[]], 1, annotations=tmp_path / "a.json")
    # There a crowd is a difficult object: a small box within it is none.
    assert (report.objects, report.mean_average_precision) == (1, 0.5)


def test_without_pycocotools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    monkeypatch.setitem(sys.modules, "pycocotools.cocoeval", None)
    with pytest.raises(DncError, match=r"darknet-compiler\[eval\]"):
        _evaluate(tmp_path, [[]], [[(0, WHOLE)]])


def test_classifiers(tmp_path: Path) -> None:
    """Image i is of class i; the engine says 1, 0, 2, 3."""
    for number in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number:04}_n0000000{number}.png")
    engine: Any = _Engine([], 4)
    engine._give(heads=(ClassifierHead("boxes", "", 4),))
    engine.run = lambda feeds: [np.array([[0.3, 0.4, 0.2, 0.1]], np.float32), np.zeros((1, 9, 2), np.float32)]
    dataset = read_dataset(tmp_path)
    report = evaluate(engine, dataset, top=3)
    assert report == TopReport("fake.engine", 4, 0, 3, 0.25, 0.75)
    assert [figure.name for figure in report.figures] == ["top-1", "top-3"]
    assert [figure.value for figure in evaluate(engine, dataset, top=1).figures] == [0.25]
