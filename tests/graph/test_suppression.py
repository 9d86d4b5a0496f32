"""`--decode graph` and `graph+nms`: the same detections as on the host, for every head and kind of suppression."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnc.compiler.compiling import compile
from dnc.darknet.network import Network
from dnc.darknet.weights import write_weights
from dnc.errors import DncError
from dnc.graph.builder import Builder
from dnc.graph.running import Running
from dnc.graph.suppression import emit_nms
from dnc.runtime.decoding import Candidates, Detection
from dnc.runtime.engine import Engine
from dnc.runtime.suppression import non_maximum_suppression
from tests.thinning import thinned

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]

SCORE = 1e-6
"""Products of two or three float32 near 1; only [Gaussian_yolo] has a double in between on the host."""
PLACE = 2e-6
"""Relative to the box, and to the image: the host takes exp in double and rounds once, the graph in float32."""

STEM = "[convolutional]\nfilters=8\nsize=8\nstride=8\nactivation=leaky\n"
ANCHORS = "anchors=20,14, 33,30, 14,40\nnum=3\n"


def conv(filters: int, activation: str = "linear") -> str:
    return f"[convolutional]\nfilters={filters}\nactivation={activation}\n"


def yolo(options: str = "") -> str:
    return f"{conv(24)}[yolo]\nclasses=3\n{ANCHORS}{options}"


def gaussian(options: str = "") -> str:
    return f"{conv(36)}[Gaussian_yolo]\nclasses=3\n{ANCHORS}{options}"


REGION = conv(24) + "[region]\nclasses=3\nnum=3\nanchors=2,1.5, 4,3, 1.5,5\n"
DETECTION = "[connected]\noutput=117\nactivation=linear\n[detection]\nclasses=3\ncoords=4\nside=3\nnum=2\n"

HEADS = {
    "yolo": yolo(),
    "scale_x_y": yolo("scale_x_y=1.2\n"),
    "new_coords": f"{conv(24, 'logistic')}[yolo]\nclasses=3\n{ANCHORS}new_coords=1\nscale_x_y=2\n",
    "mask": f"{conv(16)}[yolo]\nclasses=3\nmask=2,0\n{ANCHORS}",
    "greedynms": yolo("nms_kind=greedynms\nbeta_nms=.9\n"),
    "diounms": yolo("nms_kind=diounms\nbeta_nms=.9\n"),
    "diounms, beta": yolo("nms_kind=diounms\nbeta_nms=.2\n"),
    "two heads": yolo("nms_kind=diounms\n") + "[route]\nlayers=0\n[upsample]\n" + yolo("nms_kind=greedynms\n"),
    "gaussian": gaussian(),
    "gaussian left_top": gaussian("yolo_point=left_top\nnms_kind=greedynms\nscale_x_y=1.1\n"),
    "gaussian right_bottom": gaussian("yolo_point=right_bottom\nnms_kind=diounms\nbeta_nms=.4\n"),
    "region": REGION,
    "region softmax": REGION + "softmax=1\n",
    "region classfix": REGION + "softmax=1\nclassfix=-1\n",
    "detection": DETECTION,
    "detection sqrt, softmax": DETECTION + "sqrt=1\nsoftmax=1\n",
}


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Engine]]:
    """Engines that decode on the host, in the graph, and with suppression, by cfg text and options of `compile`."""

    @functools.cache
    def build(
        text: str, *, scale: float = 1.0, kinds: tuple[str, ...] = ("host", "graph", "graph+nms"), **options: Any
    ) -> dict[str, Engine]:
        folder = tmp_path_factory.mktemp("network")
        cfg = folder / "net.cfg"
        cfg.write_text(f"[net]\nwidth=64\nheight=48\nchannels=3\n{STEM}{text}", encoding="utf-8")
        network = Network.load(cfg).with_random_weights(3)
        arrays = [{name: array * np.float32(scale) for name, array in own.items()} for own in network.arrays]
        with (folder / "net.weights").open("wb") as file:
            write_weights(file, network.layers, arrays)
        # Passes are verified in their own tests; here the results are compared.
        options["verify"] = False
        return {kind: compile(cfg, None, "onnx", folder / kind, decode=kind, **options) for kind in kinds}

    return build


def noise(seed: int, height: int = 48, width: int = 64) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def same(got: Sequence[Detection], expected: Sequence[Detection]) -> None:
    """One for one, whatever the order of those whose scores are equal but for rounding."""
    assert len(got) == len(expected)
    assert all(a.confidence >= b.confidence for a, b in itertools.pairwise(got))
    rest = list(expected)
    for one in got:
        place = np.array([one.center_x, one.center_y, one.width, one.height])
        for other in rest:
            wanted = np.array([other.center_x, other.center_y, other.width, other.height])
            bound = PLACE * max(1.0, float(np.abs(wanted).max()))
            near = abs(one.confidence - other.confidence) <= SCORE and np.abs(place - wanted).max() <= bound
            if near and (one.class_id, one.label) == (other.class_id, other.label):
                rest.remove(other)
                break
        else:
            raise AssertionError(f"{one} is not among {rest}")


def hold(engines: dict[str, Engine], images: Sequence[Pixels], confidence: float, iou: float = 0.45) -> int:
    """All kinds of engine agree on a list of images; returns how many detections there are."""
    host = engines["host"](list(images), confidence=confidence, iou=iou)
    for kind in engines.keys() - {"host"}:
        for got, expected in zip(engines[kind](list(images), confidence=confidence, iou=iou), host, strict=True):
            same(got, expected)
    return sum(map(len, host))


@pytest.mark.parametrize("head", thinned(HEADS, 2))
def test_every_head(head: str, engines: Callable[..., dict[str, Engine]]) -> None:
    """Suppression at three thresholds; 0 leaves nothing that touches, 1 leaves all."""
    own = engines(HEADS[head])
    images = [noise(1), noise(2)]
    confidence = 0.2 if head.startswith(("gaussian", "detection")) else 0.38
    counts = [hold(own, images, confidence, iou) for iou in (0.0, 0.45, 1.0)]
    assert 5 < counts[0] < counts[2]
    assert counts[0] <= counts[1] <= counts[2]


@pytest.mark.parametrize("head", thinned(["yolo", "diounms, beta", "gaussian", "region", "detection"], 2))
def test_many_candidates(head: str, engines: Callable[..., dict[str, Engine]]) -> None:
    assert hold(engines(HEADS[head]), [noise(3)], confidence=0.05, iou=0.6) > 20


@pytest.mark.parametrize("mode", ["letterbox", "center-crop", "resize-half-pixel"])
@pytest.mark.parametrize("head", thinned(["yolo", "greedynms", "gaussian left_top", "detection"], 2))
def test_window(head: str, mode: str, engines: Callable[..., dict[str, Engine]]) -> None:
    """Boxes are mapped to the image before they are compared, which a letterbox stretches unevenly."""
    own = engines(HEADS[head], preprocess=mode)
    inputs = own["graph+nms"].manifest.extra_inputs
    assert inputs == (("confidence", "iou", "window") if mode != "resize-half-pixel" else ("confidence", "iou"))
    assert hold(own, [noise(4, 90, 40), noise(5, 20, 70), noise(6, 48, 64)], confidence=0.3) > 10


def test_kinds_differ(engines: Callable[..., dict[str, Engine]]) -> None:
    """Otherwise the tests above would pass with any of them."""
    found = {head: engines(HEADS[head])["graph+nms"](noise(7), confidence=0.2) for head in HEADS if "nms" in head}
    assert len({len(found[head]) for head in ("greedynms", "diounms", "diounms, beta")}) == 3


@pytest.mark.filterwarnings("ignore:confidence=1e")
@pytest.mark.parametrize("head", ["yolo", "two heads", "gaussian", "region", "detection"])
def test_empty(head: str, engines: Callable[..., dict[str, Engine]]) -> None:
    own = engines(HEADS[head])
    for kind in own:
        assert own[kind](noise(1), confidence=1e6) == []
        assert own[kind]([noise(1), noise(2)], confidence=1e6) == [[], []]


def test_some_images_are_empty(engines: Callable[..., dict[str, Engine]]) -> None:
    """Detections carry the number of their image."""
    own = engines(HEADS["yolo"])
    images = [noise(1), np.zeros((48, 64, 3), np.uint8), noise(2)]
    results = own["graph+nms"](images, confidence=0.35)
    assert [bool(result) for result in results] == [True, False, True]
    assert hold(own, images, confidence=0.35) == sum(map(len, results))


@pytest.mark.parametrize("batch", [1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_batches(batch: int, engines: Callable[..., dict[str, Engine]]) -> None:
    """Images of one batch do not suppress each other's boxes: the same image twice gives everything twice."""
    own = engines(HEADS["yolo"], batch=batch)
    images = [noise(1), noise(1), noise(2), noise(3), noise(1)]
    assert hold(own, images, confidence=0.3) > 10
    results = own["graph+nms"](images, confidence=0.3)
    same(results[0], results[1])
    same(results[0], results[4])
    free = engines(HEADS["yolo"])["graph+nms"](images, confidence=0.3)
    for got, expected in zip(results, free, strict=True):
        same(got, expected)


@pytest.mark.parametrize("head", ["yolo", "diounms", "region softmax"])
def test_ties(head: str, engines: Callable[..., dict[str, Engine]]) -> None:
    """On a plain image every cell has the same scores: the first cell wins on both sides.

    (Ties that an earlier class has put into another order, as Darknet's sorting in place can, are not followed in the
    graph, where equals stay in the order of cells.)
    """
    own = engines(HEADS[head])
    image = np.full((48, 64, 3), 200, np.uint8)
    for iou in (0.1, 0.45):
        count = hold(own, [image], confidence=0.1, iou=iou)
        assert 0 < count < len(own["host"](image, confidence=0.1, iou=1.0))
    host, graph = (own[kind](image, confidence=0.1) for kind in ("host", "graph"))
    assert len({round(d.confidence, 5) for d in host}) < len(host)
    assert [d.class_id for d in host] == [d.class_id for d in graph]


def test_with_pixels_and_kept_layers(engines: Callable[..., dict[str, Engine]]) -> None:
    """The other options of compile leave the decoded outputs where they are."""
    own = engines(HEADS["two heads"], input="u8", preprocess="letterbox", keep_layers=True)
    assert hold(own, [noise(4, 90, 40), noise(5, 20, 70)], confidence=0.3) > 10
    assert own["graph+nms"].manifest.outputs[:2] == ("detections", "layer000")
    assert own["graph"].manifest.outputs[:3] == ("boxes", "scores", "layer000")


def test_forward_gives_the_decoded_arrays(engines: Callable[..., dict[str, Engine]]) -> None:
    own = engines(HEADS["two heads"])
    preprocessing = own["graph"].manifest.preprocessing
    assert preprocessing is not None
    boxes, scores = own["graph"].forward(preprocessing(noise(1))[None])
    assert (boxes.shape, scores.shape) == ((1, 3 * (48 + 192), 4), (1, 3 * (48 + 192), 3))
    (detections,) = own["graph+nms"].forward(preprocessing(noise(1))[None])
    assert detections.shape[1] == 7
    assert (np.diff(detections[:, 2]) <= 0).all()


@pytest.mark.parametrize(
    ("text", "kind", "message", "line", "hint"),
    [
        (
            gaussian("nms_kind=cornersnms\n"),
            "graph+nms",
            "nms_kind=cornersnms moves boxes, which cannot be done in the graph",
            "[Gaussian_yolo] #2",
            "use --decode graph or host",
        ),
        (
            "[softmax]\n",
            "graph",
            "only boxes can be decoded in the graph",
            "",
            "leave --decode at host",
        ),
        (
            yolo() + "[softmax]\n",
            "graph+nms",
            "only boxes can be decoded in the graph",
            "",
            "leave --decode at host",
        ),
        (
            f"{yolo()}[route]\nlayers=0\n[upsample]\n{conv(21)}[yolo]\nclasses=2\n{ANCHORS}",
            "graph",
            "a head of 3 classes and one of 2 cannot be decoded in one graph",
            "[yolo] #2",
            "leave --decode at host",
        ),
        (
            REGION + "tree=a.tree\n",
            "graph",
            "the class tree of [region] cannot be decoded in the graph",
            "[region] #2",
            "leave --decode at host",
        ),
    ],
)
def test_refused(tmp_path: Path, text: str, kind: str, message: str, line: str, hint: str) -> None:
    cfg = tmp_path / "net.cfg"
    (tmp_path / "a.tree").write_text("a -1\nb -1\naa 0\n")
    text = f"[net]\nwidth=64\nheight=48\nchannels=3\n{STEM}{text}"
    cfg.write_text(text)
    network = Network.load(cfg).with_random_weights()
    with cfg.with_suffix(".weights").open("wb") as file:
        write_weights(file, network.layers, network.arrays)
    with pytest.raises(DncError) as caught:
        compile(cfg, None, "onnx", tmp_path / "engine", decode=kind)
    where = f"  at {cfg}"
    if line:
        number = text.split("\n").index(line.partition(" ")[0]) + 1
        where += f":{number} {line}\n  {number:>5} | {line.partition(' ')[0]}"
    assert str(caught.value) == f"{message}\n{where}\n  hint: {hint}"
    assert not (tmp_path / "engine").exists()


def test_cornersnms_on_the_host(engines: Callable[..., dict[str, Engine]]) -> None:
    """What it adds is commented out in Darknet, so it is the default; the graph can still decode for it."""
    own = engines(gaussian("nms_kind=cornersnms\n"), kinds=("host", "graph"))
    assert hold(own, [noise(1)], confidence=0.3) > 5


# The suppression alone


@functools.cache
def suppression(kind: str, beta: float) -> Running:
    b = Builder("N")
    boxes, scores = b.input("boxes", ["K", 4]), b.input("scores", ["K", "classes"])
    b.output(emit_nms(b, boxes, scores, kind, beta, window=False), "detections", ["D", 7])
    return Running(b.model("nms", {}), optimize=True, spin=False)


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Floats, Floats]:
    """Boxes (N, K, 4) on a coarse grid, so that many are equal, touch, contain each other or have no size; and scores
    (N, K, classes) that all differ."""
    n, k, classes = draw(st.integers(1, 2)), draw(st.integers(1, 24)), draw(st.integers(1, 3))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    boxes = generator.integers(0, draw(st.integers(2, 6)), (n, k, 4)) / 8
    scores = generator.permutation(n * k * classes).reshape(n, k, classes) / (n * k * classes)
    return boxes.astype(np.float32), scores.astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "beta"), [("default", 0.6), ("greedynms", 0.9), ("diounms", 0.6), ("diounms", 0.25), ("diounms", 1.0)]
)
@given(scene=scenes(), confidence=st.sampled_from([0.0, 0.3, 0.9]), iou=st.sampled_from([0.0, 0.23, 0.45, 0.77]))
@settings(max_examples=60)
def test_suppression_is_the_hosts(
    kind: str, beta: float, scene: tuple[Floats, Floats], confidence: float, iou: float
) -> None:
    """To the box: the thresholds of overlap are none that boxes on the grid can have exactly."""
    boxes, scores = scene
    feeds = {"boxes": boxes, "scores": scores}
    feeds |= {"confidence": np.array([confidence], np.float32), "iou": np.array([iou], np.float32)}
    (rows,) = suppression(kind, beta)(feeds).values()
    expected = []
    for image in range(len(boxes)):
        above = np.where(scores[image] > np.float32(confidence), scores[image], np.float32(0))
        points = np.zeros(len(above), np.uint8)
        left = non_maximum_suppression(Candidates(boxes[image], above.max(axis=1), above, points), kind, iou, beta)
        for place, class_id in zip(*np.nonzero(left), strict=True):
            expected.append((image, class_id, left[place, class_id], *boxes[image, place]))
    expected.sort(key=lambda row: -row[2])
    assert rows.shape == (len(expected), 7)
    np.testing.assert_array_equal(rows, np.array(expected, np.float32).reshape(-1, 7))


def test_chains_of_suppression() -> None:
    """Each box would suppress the next, but every other one is suppressed itself: as many rounds as boxes."""
    k = 64
    boxes = np.zeros((1, k, 4), np.float32)
    boxes[0, :, 0], boxes[0, :, 2:] = np.arange(k) / 4, 1
    scores = np.linspace(1, 0.5, k, dtype=np.float32).reshape(1, k, 1)
    feeds = {"confidence": np.array([0.1], np.float32), "iou": np.array([0.5], np.float32)}
    (rows,) = suppression("default", 0.6)({"boxes": boxes, "scores": scores, **feeds}).values()
    np.testing.assert_array_equal(rows[:, 3], np.arange(0, k, 2) / 4)


def test_only_so_many_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best of them; the host has no such limit."""
    monkeypatch.setattr("dnc.graph.suppression.MAX_CANDIDATES", 5)
    boxes = np.zeros((1, 9, 4), np.float32)
    boxes[0, :, 0], boxes[0, :, 2:] = np.arange(9) * 2, 1
    scores = np.linspace(0.1, 0.9, 9, dtype=np.float32).reshape(1, 9, 1)
    feeds = {"confidence": np.array([0.0], np.float32), "iou": np.array([0.5], np.float32)}
    suppression.cache_clear()
    (rows,) = suppression("default", 0.6)({"boxes": boxes, "scores": scores, **feeds}).values()
    suppression.cache_clear()
    np.testing.assert_array_equal(rows[:, 3], [16, 14, 12, 10, 8])
