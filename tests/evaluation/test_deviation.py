"""How far an engine is from float32: of outputs that are changed by a known amount."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dnc
from dnc.compiler.options import CompileOptions
from dnc.compiler.preparing import lowered
from dnc.compiler.source import Source
from dnc.evaluation.deviation import Deviation, HeadError, _alike, measure_deviation
from dnc.graph.verification import photograph
from dnc.runtime.decoding import Classification, Detection
from dnc.runtime.runners import Session
from dnc.typing import Array
from tests.networks import REMEMBERING

Change = Callable[[str, Array], Array]


class Changed(Session):
    """An engine whose outputs are changed."""

    def __init__(self, session: Session, names: Sequence[str], change: Change) -> None:
        self.session, self.names, self.change = session, names, change
        self.device = "made up"

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        outputs = self.session.run(inputs)
        own = [self.change(name, output) for name, output in zip(self.names, outputs, strict=False)]
        return [*own, *outputs[len(own) :]]


@pytest.fixture
def measured(write: Callable[..., Path], tmp_path: Path) -> Callable[..., Deviation]:
    """Compares a network in float32 with itself, changed."""
    images = []
    for number in range(3):
        images.append(tmp_path / f"{number}.png")
        Image.fromarray(np.roll(photograph(), 40 * number, axis=1)).resize((48, 40)).save(images[-1])

    def measure(name: str, change: Change = lambda _, array: array, text: str | None = None, **given: Any) -> Deviation:
        cfg = write(name, text)
        options = CompileOptions(target="onnx", verify=False, **given)
        engine = dnc.compile(cfg, target="onnx", out=tmp_path / "e", verify=False, **given)
        source = Source.read(cfg, None, options, [])
        session = Changed(engine.session, engine.manifest.outputs, change)
        return measure_deviation(lowered(source, options, None), engine.manifest, session, images)

    return measure


@pytest.mark.parametrize("given", [{}, {"decode": "graph"}, {"decode": "graph+nms"}, {"input": "u8"}])
def test_the_same_engine(given: dict[str, str], measured: Callable[..., Deviation]) -> None:
    found = measured("yolo", **given)
    assert (found.images, found.device, found.kind) == (3, "made up", "boxes")
    assert (found.lost, found.new, found.changed) == (0, 0, 0)
    assert found.kept > 0
    assert all(head.error < 1e-5 for head in found.heads)
    assert len(found.heads) == {"graph": 2, "graph+nms": 0}.get(given.get("decode", ""), len(found.heads))


def test_a_known_error(measured: Callable[..., Deviation]) -> None:
    """A tenth is added to all numbers of one head, so that it is off by a tenth; its place is told."""
    plain = measured("yolo")
    first = plain.heads[0].output
    found = measured("yolo", lambda name, array: array * np.float32(1.1) if name == first else array)
    assert found.heads[0].error == pytest.approx(0.1, rel=1e-3)
    assert str(found.heads[0]) == "10.0 % (-20.0 dB)"
    assert "yolo.cfg:" in found.heads[0].where
    assert [head.error < 1e-5 for head in found.heads[1:]] == [True] * (len(plain.heads) - 1)


def test_nothing_is_found_any_more(measured: Callable[..., Deviation]) -> None:
    plain = measured("yolo")
    found = measured("yolo", lambda _, array: array * 0)
    assert (found.kept, found.lost, found.new, found.changed) == (0, plain.kept, 0, 1)
    assert {head.error for head in found.heads} == {1}
    assert f"of its {plain.kept} boxes 0 stay and {plain.kept} go, 0 come" in str(found)


def test_numbers_that_are_none(measured: Callable[..., Deviation]) -> None:
    """They are the largest error, which JSON can hold."""
    found = measured("classifier", lambda _, array: array * np.float32("nan"))
    assert {head.error for head in found.heads} == {1e6}


def test_answers(measured: Callable[..., Deviation]) -> None:
    """Each is another class."""
    plain = measured("classifier")
    assert (plain.kept > 0, plain.lost, plain.kind) == (True, 0, "classes")
    found = measured("classifier", lambda _, array: np.roll(array, 1, axis=1))
    assert (found.kept, found.lost, found.new, found.changed) == (0, plain.kept, plain.kept, 1)
    assert f"of its {plain.kept} sure answers 0 stay" in str(found)


def test_a_network_with_memory(measured: Callable[..., Deviation]) -> None:
    """Images are its frames, on both sides."""
    name = next(iter(REMEMBERING))
    found = measured(name, text=REMEMBERING[name])
    assert all(head.error < 1e-4 for head in found.heads)


def box(class_id: int, x: float, confidence: float = 0.5) -> Detection:
    return Detection(class_id, "", confidence, x, 0.5, 0.2, 0.2)


def test_boxes_that_are_alike() -> None:
    """Each counts once, and its class has to be the same."""
    one = [box(0, 0.5), box(1, 0.5), box(0, 0.2)]
    assert _alike(one, one) == (3, 0, 0)
    assert _alike(one, [box(0, 0.51), box(0, 0.52)]) == (1, 2, 1)
    assert _alike([], one) == (0, 0, 3)
    assert _alike(one, [box(2, 0.5), box(0, 0.8)]) == (0, 3, 2)
    sure, unsure, other = Classification(1, "", 0.5), Classification(1, "", 0.2), Classification(2, "", 0.9)
    assert _alike([sure], [unsure]) == (1, 0, 0)
    assert _alike([sure], [other]) == (0, 1, 1)
    assert _alike([unsure], [other]) == (0, 0, 0)


def test_json() -> None:
    found = Deviation(2, "CPU", (HeadError("layer001", "a.cfg:3 [yolo] #1", 0.5),), "boxes", 6, 2, 0)
    assert found.changed == 1 / 7
    assert found.to_json()["heads"] == [{"output": "layer001", "where": "a.cfg:3 [yolo] #1", "error": 0.5}]
