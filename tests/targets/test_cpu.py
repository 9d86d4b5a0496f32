"""Target `cpu` keeps the fastest candidate that is installed and runs the network, and says what it measured."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import PIL.Image
import pytest

import dnc
from dnc.compiler.explaining import explain
from dnc.errors import CalibrationError, DncError, TargetError
from dnc.graph.pipeline import Step
from dnc.graph.verification import photograph
from dnc.passes import passes
from dnc.runtime.manifest import read_manifest
from dnc.runtime.runners import Runner, Session
from dnc.runtime.runners.onnx import OnnxRunner
from dnc.runtime.timing import interleave
from dnc.targets import Target
from dnc.targets.cpu import Cpu
from dnc.targets.onnx import Onnx
from tests.conftest import Result

Write = Callable[..., Path]


class Fake(Onnx):
    """ONNX Runtime, which takes as long as it is told to, by a clock of its own; it may be absent, or refuse."""

    faster: ClassVar[Sequence[str]] = ("bf16",)
    now: ClassVar[float] = 0.0
    seconds: ClassVar[float] = 0.001
    absent: ClassVar[str] = ""
    refuses: ClassVar[str] = ""
    cannot: ClassVar[list[str]] = []
    threads: ClassVar[list[int | None]] = []

    def missing(self) -> str:
        return self.absent

    def unsupported(self, model: Any) -> list[str]:
        return self.cannot

    def runner(self) -> Runner:
        return FakeRunner(self.given, type(self))


class FakeRunner(OnnxRunner):
    """Opens engines of a fake target."""

    def __init__(self, given: Mapping[str, str], target: type[Fake]) -> None:
        super().__init__(given)
        self.target = target

    def taking_turns(self) -> FakeRunner:
        return self

    def open(self, folder: Path, threads: int | None = None) -> Session:
        if self.target.refuses:
            raise TargetError(self.target.refuses)
        opened = super().open(folder, threads)
        Fake.threads.append(threads)
        seconds = self.target.seconds / (1 if self.given.get("precision", "fp32") == "fp32" else 5)

        class Slower(Session):
            device = "fake"

            def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
                Fake.now += seconds
                return opened.run(inputs)

        return Slower()


class A(Fake):
    name: ClassVar[str] = "a"


class B(Fake):
    name: ClassVar[str] = "b"

    def optimizations(self) -> Sequence[Step]:
        return [Step(passes["fold-batchnorm"]()), Step(passes["eliminate-dead-code"]())]


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Target cpu chooses between A and B."""

    def offers(self: Cpu, allowed: Collection[str] = ()) -> Sequence[Target]:
        return [A(self.given), B(self.given), *(B({"precision": each}) for each in allowed)]

    monkeypatch.setattr(Cpu, "candidates", offers)
    # Engines of fakes are opened by ONNX Runtime.
    monkeypatch.setattr("dnc.runtime.engine.find", lambda *_: OnnxRunner)
    for kind in (A, B):
        for name in ("seconds", "absent", "refuses", "cannot"):
            monkeypatch.setattr(kind, name, getattr(Fake, name))
    monkeypatch.setattr(Fake, "threads", [])
    monkeypatch.setattr("dnc.compiler.choosing.processors", lambda: 3)
    monkeypatch.setattr("dnc.compiler.choosing.interleave", partial(interleave, clock=lambda: Fake.now))


def build(write: Write, tmp_path: Path, **options: Any) -> dnc.Engine:
    return dnc.compile(write("yolo"), out=tmp_path / "e", target="cpu", **options)


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize(("fast", "slow"), [(A, B), (B, A)])
def test_fastest(fast: type[Fake], slow: type[Fake], write: Write, tmp_path: Path) -> None:
    """The engine says what it was made for, with whose passes, and by how much the other one is slower."""
    fast.seconds, slow.seconds = 0.002, 0.005
    engine = build(write, tmp_path)
    assert engine.manifest.target == fast.name
    assert [item["name"] for item in engine.manifest.passes] == [item.name for item in fast().optimizations()]
    assert sorted(path.name for path in engine.folder.iterdir()) == ["engine.json", "model.onnx"]
    measured = engine.manifest.tuning["candidates"]
    assert measured["threads"] == 3
    assert measured["milliseconds"] == {fast.name: 2.0, slow.name: 5.0}
    assert measured["ratios"] == {slow.name: [2.5, 2.5, 2.5]}
    assert measured["refused"] == {}
    words = f"{fast.name}, 2.00 ms with 3 threads; {slow.name} takes 2.500 (2.500 to 2.500) times as long"
    assert engine.manifest.report["choice"] == words
    assert Fake.threads == [3, 3]
    assert engine.forward(np.zeros((3, 32, 32)))[0].shape == (21, 8, 8)
    assert dnc.load(engine.folder).manifest.tuning == engine.manifest.tuning


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize(
    ("what", "value", "reason"),
    [
        ("absent", "libb", "needs libb, which is not installed"),
        ("refuses", "no such thing", "no such thing"),
        ("cannot", ["a.cfg:3 [x] #0: X"], "cannot run this network:\n    a.cfg:3 [x] #0: X"),
    ],
)
def test_one_is_left(what: str, value: Any, reason: str, write: Write, tmp_path: Path) -> None:
    """Then nothing is timed, and why is said."""
    setattr(B, what, value)
    engine = build(write, tmp_path)
    assert engine.manifest.target == "a"
    measured = engine.manifest.tuning["candidates"]
    assert (measured["milliseconds"], measured["refused"]) == ({}, {"b": reason})
    assert engine.manifest.report["choice"] == f"a, without timing; b: {reason}"
    setattr(A, what, value)
    with pytest.raises(TargetError) as caught:
        build(write, tmp_path)
    assert ("libb" in str(caught.value)) if what == "absent" else (reason in str(caught.value))
    # The engine that stood there still does.
    assert read_manifest(engine.folder).target == "a"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e", "yolo.cfg", "yolo.weights"]


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize(("taken", "built"), [(True, True), (False, True), (False, False)])
def test_what_no_device_has_run(
    taken: bool, built: bool, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the place of what is proven if its target says so, of engines that are both there, whatever times say"""
    asked: list[list[str]] = []

    def replaces(self: Any, folder: Path, proven: Path, feeds: Any, progress: Any) -> tuple[bool, str]:
        asked.append([path.parent.name for path in (*folder.glob("model.onnx"), *proven.glob("model.onnx"))])
        return taken, "tried"

    monkeypatch.setattr(B, "proven", lambda self: A(self.given))
    monkeypatch.setattr(B, "replaces", replaces)
    monkeypatch.setattr(B, "builds_apart", True)
    A.seconds, B.seconds = (0.001, 0.005) if taken else (0.005, 0.001)
    if not built:
        monkeypatch.setattr(A, "build", lambda *_: (_ for _ in ()).throw(TargetError("no such thing")))
        with pytest.raises(TargetError, match="no such thing"):
            build(write, tmp_path)
        return
    engine = build(write, tmp_path)
    assert asked == [["b", "a"]]
    assert engine.manifest.report["choice"].startswith("b, without timing" if taken else "a, without timing")
    refused = engine.manifest.tuning["candidates"]["refused"]
    assert refused == ({"a": "b is tried"} if taken else {"b": "tried"})


@pytest.mark.usefixtures("fakes")
def test_precision_is_the_candidates_(write: Write, tmp_path: Path) -> None:
    A.seconds, B.seconds = 0.002, 0.005
    engine = build(write, tmp_path, precision="fp16")
    assert (engine.manifest.target, engine.manifest.options) == ("a", {"precision": "fp16"})
    assert {"to-float16"} <= {item["name"] for item in engine.manifest.passes if item["applied"]}


@pytest.fixture
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "photograph.png"
    PIL.Image.fromarray(photograph()).save(path)
    return path


@pytest.mark.usefixtures("fakes")
def test_max_drop_allows_less_precision(write: Write, tmp_path: Path, image: Path) -> None:
    """The fastest of all is kept, with its precision, if accuracy on the images allows."""
    A.seconds, B.seconds = 0.002, 0.005
    engine = build(write, tmp_path, max_drop=100.0, data=[str(image)])
    assert (engine.manifest.target, engine.manifest.options) == ("b", {"precision": "bf16"})
    assert engine.manifest.tuning["candidates"]["milliseconds"] == {"a": 2.0, "b": 5.0, "b bf16": 1.0}
    assert [path.name for path in engine.folder.iterdir() if path.is_dir()] == []


@pytest.mark.usefixtures("fakes")
def test_max_drop_refuses(write: Write, tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnc.compiler.compiling.drop", lambda *_, **__: 0.7)
    assert build(write, tmp_path, max_drop=0.7, data=[str(image)]).manifest.options == {"precision": "bf16"}
    engine = build(write, tmp_path, max_drop=0.69, data=[str(image)])
    assert engine.manifest.tuning["candidates"]["refused"] == {"b bf16": "costs 0.70 points"}
    assert engine.manifest.options == {}


@pytest.mark.usefixtures("fakes")
def test_max_drop_needs_images_and_a_choice(write: Write, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="none are named"):
        build(write, tmp_path, max_drop=1.0)
    with pytest.raises(DncError, match="does not choose by accuracy"):
        build(write, tmp_path, max_drop=1.0, precision="bf16")


def test_candidates() -> None:
    def titles(target: Cpu, *allowed: str) -> list[str]:
        return [each.title for each in target.candidates(allowed)]

    assert titles(Cpu()) == ["onnx", "openvino", "tvm"]
    faster = ["openvino bf16", "tvm bf16", "onnx mixed", "openvino mixed", "tvm mixed"]
    assert titles(Cpu(), "bf16", "mixed") == [*titles(Cpu()), *faster]
    assert titles(Cpu({"precision": "fp16"}), "bf16") == ["onnx fp16", "openvino fp16", "tvm fp16"]
    assert titles(Cpu({"precision": "int8"})) == ["onnx int8", "openvino int8", "tvm int8"]
    assert titles(Cpu({"precision": "bf16"})) == ["onnx bf16", "openvino bf16", "tvm bf16"]


@pytest.mark.usefixtures("fakes")
def test_dumps_are_apart(write: Write, tmp_path: Path) -> None:
    build(write, tmp_path, dump_dir=tmp_path / "dumps")
    assert sorted(path.name for path in (tmp_path / "dumps").iterdir()) == ["a", "b"]


@pytest.mark.usefixtures("fakes")
def test_explain_speaks_of_the_first_installed(write: Write) -> None:
    A.absent = "liba"
    explanation = explain(write("yolo"))
    assert [item["name"] for item in explanation.passes] == [step.name for step in B().optimizations()]


def test_for_real(write: Write, tmp_path: Path) -> None:
    """Whichever it is, it computes the same."""
    cfg = write("yolo")
    chosen = dnc.compile(cfg, out=tmp_path / "e")
    plain = dnc.compile(cfg, out=tmp_path / "o", target="onnx")
    assert chosen.manifest.target in [each.name for each in Cpu().candidates() if not each.missing()]
    x = np.random.default_rng(0).random((2, 3, 32, 32), np.float32)
    for found, expected in zip(chosen.forward(x), plain.forward(x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_command(command: Callable[..., Result], write: Write, tmp_path: Path) -> None:
    result = command("compile", write("tiny"), "-o", tmp_path / "e", "--precision", "bf16")
    assert result.code == 0
    choice = next(line for line in result.out.splitlines() if line.startswith("  choice: "))
    assert " takes " in choice or "without timing" in choice
