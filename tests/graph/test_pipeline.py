"""Passes run in order, are checked after each, and the one that fails is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import dnc
from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.errors import BundleError, DncError, PassError, Where
from dnc.graph.pipeline import Applied, Decision, Pipeline, Step
from dnc.graph.rewriting import Remarks
from dnc.passes import Pass, passes
from tests.networks import TINY

ORDER = ("eliminate-identity", "fold-constants", "fold-batchnorm", "eliminate-dead-code")


@pytest.fixture
def lowered() -> ir.Model:
    return lower(Network.parse(TINY).with_random_weights(0))


def chosen(*names: str) -> list[Pass]:
    return [passes[name]() for name in names]


class Renames(Pass):
    """Makes the graph invalid: a node reads what nobody gives."""

    name: ClassVar[str] = "renames"

    def rewrite(self, model: ir.Model) -> Remarks:
        node = next(iter(model.graph))
        node.op_type = "NoSuchOperator"
        remarks = Remarks()
        remarks.apply(node, "renamed")
        return remarks


class Refuses(Pass):
    """Fails with a place."""

    name: ClassVar[str] = "refuses"

    def rewrite(self, model: ir.Model) -> Remarks:
        raise DncError("cannot be done", Where("a.cfg", 3, "yolo", 1))


class Crashes(Pass):
    """Has a bug."""

    name: ClassVar[str] = "crashes"

    def rewrite(self, model: ir.Model) -> Remarks:
        raise ZeroDivisionError


class Lies(Pass):
    """Breaks the graph, and says that it did nothing."""

    name: ClassVar[str] = "lies"

    def rewrite(self, model: ir.Model) -> Remarks:
        return Remarks()


def test_applied(lowered: ir.Model) -> None:
    told: list[str] = []
    applied = Pipeline(chosen(*ORDER)).run(lowered, progress=told.append)
    assert told == [f"pass {number} of {len(ORDER)}: {name}" for number, name in enumerate(ORDER, 1)]
    assert [item.name for item in applied] == list(ORDER)
    assert [item.count for item in applied] == [0, 0, 1, 5]
    assert all(isinstance(item, Applied) and item.seconds >= 0 for item in applied)


def test_no_passes(lowered: ir.Model) -> None:
    assert Pipeline([]).run(lowered) == []


def test_invalid_graph_names_the_pass(lowered: ir.Model) -> None:
    with pytest.raises(PassError) as caught:
        Pipeline([*chosen("fold-batchnorm"), Renames(), *chosen("eliminate-dead-code")]).run(lowered)
    text = str(caught.value)
    assert text.startswith("pass renames: the pass made an invalid graph: ")
    assert "NoSuchOperator" in text
    assert text.endswith("hint: --skip renames leaves the pass out")


def test_refusal_keeps_its_place(lowered: ir.Model) -> None:
    with pytest.raises(PassError) as caught:
        Pipeline([Refuses()]).run(lowered)
    assert str(caught.value) == (
        "pass refuses: cannot be done\n  at a.cfg:3 [yolo] #1\n  hint: --skip refuses leaves the pass out"
    )


def test_bug_keeps_its_traceback_and_names_the_pass(lowered: ir.Model) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        Pipeline([Crashes()]).run(lowered)
    assert caught.value.__notes__ == ["in pass crashes; --skip crashes leaves it out"]


def test_dump(lowered: ir.Model, tmp_path: Path) -> None:
    """The graph before, and after each pass, for any ONNX tool and for the eye; the weights are in it."""
    folder = tmp_path / "deep" / "dump"
    Pipeline([*chosen("fold-batchnorm"), Lies()]).run(lowered, dump=folder)
    names = ["00-lowered", "01-fold-batchnorm", "02-lies"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{n}.{s}" for n in names for s in ("onnx", "txt"))
    for name in names:
        onnx.checker.check_model(onnx.load(folder / f"{name}.onnx"), full_check=True)
    operators = [node.op_type for node in onnx.load(folder / "01-fold-batchnorm.onnx").graph.node]
    assert "BatchNormalization" in (folder / "00-lowered.txt").read_text()
    assert "BatchNormalization" not in operators
    assert "tiny.cfg" not in (folder / "00-lowered.txt").read_text()


@pytest.mark.parametrize("place", ["file", "file/deeper", "/proc/dump"])
def test_dump_that_cannot_be_written(place: str, lowered: ir.Model, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BundleError, match=r"cannot write the graph: .*\n.*\n  hint: is the disk full"):
        Pipeline([]).run(lowered, dump=tmp_path / place)
    assert (tmp_path / "file").read_text() == "mine"


def test_dump_of_the_compiler(write: Callable[..., Path], tmp_path: Path) -> None:
    cfg = write("tiny")
    dnc.compile(cfg, out=tmp_path / "e", target="onnx", dump_dir=tmp_path / "dump", skip=["fold-constants"])
    names = [path.stem for path in sorted((tmp_path / "dump").glob("*.onnx"))]
    assert names[:2] == ["00-lowered", "01-eliminate-identity"]
    assert not any("fold-constants" in name for name in names)
    last = onnx.load(tmp_path / "dump" / f"{names[-1]}.onnx")
    written = onnx.load(tmp_path / "e" / "model.onnx")
    assert last.SerializeToString(deterministic=True) == written.SerializeToString(deterministic=True)


def test_skip(write: Callable[..., Path], tmp_path: Path) -> None:
    """What is skipped is neither run nor listed, and the numbers stay."""
    cfg = write("tiny")
    x = np.random.default_rng(0).random((2, 3, 16, 16), np.float32)
    plain = dnc.compile(cfg, out=tmp_path / "a", target="onnx")
    names = [item["name"] for item in plain.manifest.passes]
    assert "fold-batchnorm" in names
    (expected,) = plain.forward(x)
    for name in names:
        engine = dnc.compile(cfg, out=tmp_path / "b", target="onnx", skip=[name])
        assert [item["name"] for item in engine.manifest.passes] == [other for other in names if other != name]
        np.testing.assert_allclose(engine.forward(x)[0], expected, rtol=0, atol=1e-5)
    engine = dnc.compile(cfg, out=tmp_path / "c", target="onnx", skip=names)
    assert engine.manifest.passes == ()
    np.testing.assert_allclose(engine.forward(x)[0], expected, rtol=0, atol=1e-5)
    operators = [node.op_type for node in onnx.load(tmp_path / "c" / "model.onnx").graph.node]
    assert "BatchNormalization" in operators


def test_decision(lowered: ir.Model) -> None:
    """It sees what the passes before it left; its steps run where it stands, but for those that are skipped."""
    seen: list[int] = []

    def decide(model: ir.Model) -> list[Step]:
        seen.append(sum(node.op_type == "BatchNormalization" for node in model.graph))
        return [Step(item) for item in chosen("eliminate-dead-code", "fold-constants")]

    before = sum(node.op_type == "BatchNormalization" for node in lowered.graph)
    steps: list[Step | Decision | Pass] = [*chosen("fold-batchnorm"), Decision("choice", decide)]
    applied = Pipeline([*steps, *chosen("eliminate-identity")]).run(lowered, skip=["fold-constants"])
    assert [item.name for item in applied] == ["fold-batchnorm", "eliminate-dead-code", "eliminate-identity"]
    assert (before, seen) == (1, [0])


def test_a_named_pass_must_do_something(lowered: ir.Model) -> None:
    """An optimization may find nothing; what needs something that is not there was asked for in vain."""
    Pipeline([Step(passes["merge-pools"](), named=True)]).run(lowered)
    reasons = {"quantize": "no range of input was calibrated", "diagonalwise": "no depthwise convolution"}
    for name, reason in reasons.items():
        assert Pipeline([Step(passes[name]())]).run(lowered)[0].count == 0
        with pytest.raises(PassError, match=f"pass {name}: .*{reason}"):
            Pipeline([Step(passes[name](), named=True)]).run(lowered)
