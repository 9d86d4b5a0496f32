"""Tuning chooses what is fastest on the engine, never what is slower as a whole, and remembers what it measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx
import pytest

import dnc
from dnc.compiler import autotuning as module
from dnc.compiler.autotuning import NATIVE, autotune
from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.passes import passes
from dnc.runtime.runners import Runner, Session
from dnc.runtime.runners.onnx import MODEL, OnnxRunner
from dnc.targets.onnx import Onnx
from tests.models import outputs, same

CFG = """[net]
width=24
height=24
channels=3
[convolutional]
filters=64
size=3
pad=1
activation=swish
[convolutional]
filters=64
size=3
pad=1
groups=64
batch_normalize=1
activation=relu6
[convolutional]
filters=96
size=1
activation=leaky
[convolutional]
filters=96
size=3
pad=1
stride=2
groups=4
activation=mish
[convolutional]
filters=64
size=1
activation=linear
[convolutional]
filters=64
size=3
pad=1
stride=2
groups=64
activation=linear
"""

Cost = Callable[[onnx.ModelProto], float]


class FakeRunner(OnnxRunner):
    """Runs nothing, and says that it took as long as it was told to."""

    def open(self, folder: Path, threads: int | None = None) -> Session:
        Fake.built += 1
        proto = onnx.load(folder / MODEL)
        seconds = Fake.cost(proto) / 4

        class Told(Session):
            device = "fake"

            def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
                # A run may say how long it took: no clock decides what these tests find.
                return seconds  # type: ignore[return-value]

        return Told()


class Fake(Onnx):
    """An engine that takes as long as it is told to."""

    name: ClassVar[str] = "fake"
    runs: ClassVar[type[Runner]] = FakeRunner
    cost: ClassVar[Cost]
    built: ClassVar[int] = 0

    def engine(self) -> str:
        return "Fake 1"


def groups(proto: onnx.ModelProto) -> list[int]:
    """Of every 3x3 convolution but the first, which reads 3 channels."""
    shapes = {each.name: list(each.dims) for each in proto.graph.initializer}
    convolutions = [node for node in proto.graph.node if node.op_type == "Conv"]
    counts = [[attr.i for attr in node.attribute if attr.name == "group"] for node in convolutions]
    return [
        count[0] if count else 1
        for node, count in zip(convolutions, counts, strict=True)
        if shapes[node.input[1]][1] != 3 and shapes[node.input[1]][2] == 3
    ]


def prefers(wanted: Mapping[int, float], otherwise: float = 4e-3) -> Cost:
    """Costs of a 3x3 convolution by its number of groups."""
    return lambda proto: 1e-3 + sum(wanted.get(number, otherwise) for number in groups(proto))


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures for as short as possible."""
    for name in ("_LEAF_SECONDS", "_NETWORK_SECONDS", "_PEAK_SECONDS"):
        monkeypatch.setattr(module, name, 0.01)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    hurry(monkeypatch)
    Fake.built = 0
    return Fake


def network() -> Any:
    built = lower(Network.parse(CFG).with_random_weights(0))
    for name in ("fold-batchnorm", "eliminate-dead-code"):
        passes[name]().rewrite(built)
    return built


def test_best_of_each_layer(fake: type[Fake]) -> None:
    """Blocks of 16 channels make 4 groups of 64, blocks of 32 make 2."""
    fake.cost = prefers({64: 9e-3, 4: 6e-3, 2: 2e-3})
    built = network()
    tuned = autotune(built, fake())
    assert [item.best for item in tuned.layers] == ["diagonalwise 32", "groups 2", "diagonalwise 32"]
    assert tuned.kept
    assert tuned.network is not None
    assert tuned.network.high < 1
    assert groups_of(built) == [64, 4, 64]
    before = outputs(built)
    for each in tuned.passes():
        each.rewrite(built)
    assert groups_of(built) == [2, 2, 2]
    same(outputs(built), before, 1e-5)


def groups_of(built: Any) -> list[int]:
    import onnx_ir as ir

    return groups(ir.to_proto(built))


def test_native_stays_where_nothing_is_faster(fake: type[Fake]) -> None:
    fake.cost = prefers({64: 1e-3, 4: 1e-3})
    tuned = autotune(network(), fake())
    assert [item.best for item in tuned.layers] == [NATIVE] * 3
    assert (tuned.network, tuned.kept, tuned.passes()) == (None, False, [])


def test_dropped_where_the_whole_is_no_faster(fake: type[Fake]) -> None:
    """Each layer alone is faster, the network with all of them is not."""
    each = prefers({64: 9e-3, 4: 6e-3, 2: 1e-3})
    fake.cost = lambda proto: each(proto) if len(proto.graph.node) < len(network().graph) else 20e-3
    tuned = autotune(network(), fake())
    assert any(item.best != NATIVE for item in tuned.layers)
    assert tuned.choices
    assert tuned.network is not None
    assert (tuned.kept, tuned.passes()) == (False, [])


def test_hopeless_ones_are_not_tried(fake: type[Fake], monkeypatch: pytest.MonkeyPatch) -> None:
    """More multiply-adds than the machine could do in the native time."""
    fake.cost = prefers({64: 1e-3})
    monkeypatch.setattr(module, "_peak", lambda bench: 1e6)
    first, *_ = autotune(network(), fake()).layers
    assert list(first.seconds) == [NATIVE]
    assert set(first.skipped) == {f"diagonalwise {width}" for width in (8, 16, 32, "all")}
    assert all("even at the machine's best speed" in reason for reason in first.skipped.values())


def test_measurements_are_kept(fake: type[Fake], tmp_path: Path) -> None:
    fake.cost = prefers({64: 9e-3, 4: 6e-3, 2: 2e-3})
    first = autotune(network(), fake(), cache=tmp_path)
    built = fake.built
    second = autotune(network(), fake(), cache=tmp_path)
    # The network both ways, and nothing else.
    assert fake.built == built + 2
    assert second.layers == first.layers
    (file,) = (tmp_path / "autotune").iterdir()
    content = json.loads(file.read_text())
    assert content["device"] == first.device
    assert "Fake 1" in first.device
    assert "2 threads" in autotune(network(), fake(), cache=tmp_path, threads=2).device
    autotune(network(), fake(), cache=tmp_path, batch=7)
    assert fake.built > built + 4


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schema": 1}', '{"schema": 9, "device": "x", "layers": {}, "peak": 1}']
)
def test_damaged_cache_counts_as_empty(text: str, fake: type[Fake], tmp_path: Path) -> None:
    fake.cost = prefers({64: 9e-3, 4: 6e-3, 2: 2e-3})
    autotune(network(), fake(), cache=tmp_path)
    (file,) = (tmp_path / "autotune").iterdir()
    file.write_text(text)
    built = fake.built
    autotune(network(), fake(), cache=tmp_path)
    assert fake.built > built + 2
    assert json.loads(file.read_text())["layers"]


def test_other_network_same_layers(fake: type[Fake], tmp_path: Path) -> None:
    """Neither weights nor names count."""
    fake.cost = prefers({64: 9e-3})
    autotune(network(), fake(), cache=tmp_path)
    built = fake.built
    other = lower(Network.parse(CFG.replace("filters=64\nsize=1\n", "filters=64\nsize=1\n#\n")).with_random_weights(5))
    for name in ("fold-batchnorm", "eliminate-dead-code"):
        passes[name]().rewrite(other)
    autotune(other, fake(), cache=tmp_path)
    assert fake.built == built + 2


def test_no_groups_nothing_to_do(fake: type[Fake]) -> None:
    fake.cost = prefers({})
    text = "[net]\nwidth=4\nheight=4\nchannels=3\n[convolutional]\nfilters=2\n"
    tuned = autotune(lower(Network.parse(text).with_random_weights(0)), fake())
    assert tuned.layers == []
    assert fake.built == 0


def test_of_the_compiler(tmp_path: Path, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """For real: the numbers stay, and engine.json says what was measured."""
    hurry(monkeypatch)
    monkeypatch.setenv("DNC_CACHE", str(tmp_path / "cache"))
    cfg = write("grouped", CFG)
    plain = dnc.compile(cfg, out=tmp_path / "a", target="onnx")
    tuned = dnc.compile(cfg, out=tmp_path / "b", target="onnx", autotune=True)
    assert plain.manifest.tuning == {}
    tuning = tuned.manifest.tuning
    assert [layer["kind"].split()[0] for layer in tuning["layers"]] == ["depthwise", "4", "depthwise"]
    assert all(layer["microseconds"][layer["best"]] > 0 for layer in tuning["layers"])
    x = np.random.default_rng(0).random((2, 3, 24, 24), np.float32)
    for found, expected in zip(tuned.forward(x), plain.forward(x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert dnc.load(tmp_path / "b").manifest.tuning == tuning


def test_command(
    command: Callable[..., Any], tmp_path: Path, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    monkeypatch.setenv("DNC_CACHE", str(tmp_path / "cache"))
    result = command("compile", write("grouped", CFG), "--target", "onnx", "-o", tmp_path / "e", "--autotune")
    assert result.code == 0
    assert "of 3 grouped convolutions are faster otherwise" in result.out.splitlines()[-1]
