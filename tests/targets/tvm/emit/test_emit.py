"""What of a graph target `tvm` can compile, and what it says of the rest: all of it without TVM."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.errors import TargetError
from dnc.graph.composites import inline_composites
from dnc.runtime.preprocessing import Preprocessing
from dnc.targets.tvm.compile import import_tvm
from dnc.targets.tvm.emit import shared_outputs, unsupported
from dnc.targets.tvm.target import Tvm
from tests.models import model


def test_refused_operators() -> None:
    """All at once, each with its section; so are constants that are none, and free sizes, but on CPUs."""
    built = model(
        "g (float[1, 3] x, float[1, 2, 4, 4] a, int64[2] s, float[N, 2] f) => "
        "(float[1, 3] y, float[1, 2, 8, 8] r, float[I, J] t, float[N, 2] e) "
        '{ y = Erf(x) r = Resize <mode: string = "linear"> (a, , scales) t = Reshape(x, s) e = Exp(f) }',
        scales=np.array([1, 1, 2, 2], np.float32),
    )
    for number, node in enumerate(built.graph):
        node.metadata_props["dnc.where"] = f"a.cfg:{number} [layer] #{number}"
    found = unsupported(built)
    assert Tvm().unsupported(built) == found[1:]
    assert found == [
        "input f: its shape (N, 2) is not fixed: --batch 1 fixes it",
        "a.cfg:0 [layer] #0: Erf: dnc does not write it for TVM",
        "a.cfg:1 [layer] #1: Resize: only the repetition of pixels is known here",
        "a.cfg:2 [layer] #2: Reshape: its input 1 is computed, it must be constant",
    ]


@pytest.mark.parametrize(("node", "why"), [
    ("y = Conv <auto_pad: string = \"SAME_UPPER\"> (x, w)", "Conv: its padding must be given in numbers"),
    ("y = Conv (x, x)", "Conv: its input 1 is computed, it must be constant"),
    ("y = MaxPool <kernel_shape: ints = [2, 2], ceil_mode: int = 1> (x)", "MaxPool: its padding must be given"),
    ("y = MaxPool <kernel_shape: ints = [2, 2], dilations: ints = [2, 2]> (x)", "MaxPool: dilated windows are not"),
    ("y = Pad <mode: string = \"edge\"> (x, pads)", "Pad: only constant borders are known here"),
    ("y = ConvTranspose <strides: ints = [2, 2]> (x, w)", "ConvTranspose: with more than one tap it is not known"),
    ("y = Resize <mode: string = \"nearest\", nearest_mode: string = \"ceil\"> (x, , scales)", "Resize: only the rep"),
])  # fmt: skip
def test_refused_forms(node: str, why: str) -> None:
    """Of operators that are known in other forms."""
    built = model(
        f"g (float[1, 1, 4, 4] x) => (float[1, 1, H, W] y) {{ {node} }}",
        w=np.ones((1, 1, 2, 2), np.float32),
        pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        scales=np.array([1, 1, 2, 2], np.float32),
    )
    (found,) = Tvm().unsupported(built)
    assert why in found


def test_composites(write: Callable[..., Path]) -> None:
    """Two are taken whole, for CPUs and GPUs alike; boxes are decoded by operators."""
    cfg = write("yolo")
    preprocessing = Preprocessing(32, 32, mode="center-crop", interpolation="bicubic")
    network = Network.load(cfg, cfg.with_suffix(".weights"))
    built = lower(network, batch=1, preprocessing=preprocessing, pixels=True, decode="graph+nms")
    assert "DecodeBoxes: dnc does not write it for TVM" in unsupported(built)[0]
    inline_composites(built, keep=Tvm.composites)
    assert unsupported(built) == []


def test_shared_outputs() -> None:
    """What is an input, a constant, or another output; not what is computed, whatever its shape is called."""
    built = model(
        "g (float[1, 4] x) => (float[1, 4] a, float[2, 2] b, float[4, 1] c, float[1, 4] d, float[2] e, float[2, 2] f) "
        "{ a = Identity(x) y = Exp(x) b = Reshape(y, two) c = Reshape(y, four) d = Neg(x) e = Identity(k) "
        "z = Abs(x) f = Reshape(z, two) }",
        two=np.array([2, 2]),
        four=np.array([4, 1]),
        k=np.ones(2, np.float32),
    )
    assert shared_outputs(built) == ["a", "b", "c", "e"]


def test_grids_that_are_refused() -> None:
    """Rounding is to unsigned numbers, on one grid for a tensor."""
    built = model(
        "g (float[1, 2] x, float[1] s) => (float[1, 2] a, float[1, 2] b, float[1, 2] c) { "
        "p = QuantizeLinear(x, s) a = DequantizeLinear(p, s) q = QuantizeLinear(x, t, z) b = DequantizeLinear(q, t, z) "
        "r = QuantizeLinear<axis: int = 1>(x, u, v) c = DequantizeLinear<axis: int = 1>(r, u, v) }",
        t=np.array(1, np.float32),
        z=np.array(0, np.int8),
        u=np.ones(2, np.float32),
        v=np.zeros(2, np.uint8),
    )
    found = [why.rpartition(": ")[2] for why in Tvm().unsupported(built)]
    several = "only one scale and one zero of uint8 are known here"
    assert found == ["its input 1 is computed, it must be constant"] * 2 + [several] * 2


@pytest.mark.parametrize(("there", "missing", "to_open"), [
    ((), "apache-tvm apache-tvm-ffi==", "apache-tvm-ffi=="), (("tvm_ffi",), "apache-tvm", ""),
])  # fmt: skip
def test_missing(there: tuple[str, ...], missing: str, to_open: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str, *_: Any) -> object:
        return object() if name in there else None

    monkeypatch.setattr(importlib.util, "find_spec", found)
    target = Tvm()
    assert target.missing().startswith(missing)
    assert target.runner().missing().startswith(to_open)
    assert "darknet-compiler[runtime-tvm]" in target.remedy()


def test_libraries_that_do_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError("libtvm_ffi.so: undefined symbol")

    monkeypatch.setattr("importlib.import_module", broken)
    with pytest.raises(TargetError, match=r"tvm cannot be loaded: libtvm_ffi(.|\n)*darknet-compiler\[tvm\]"):
        import_tvm()
