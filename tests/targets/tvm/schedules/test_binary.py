"""Binary convolutions are numpy's sums of signs to the bit, whatever counts their bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("tvm.relax", exc_type=ImportError)

import tvm
from tvm import relax

from dnc.targets.tvm import schedules
from dnc.targets.tvm.compile import fused, machine_for
from dnc.targets.tvm.emit.binary import convolution, signs
from dnc.targets.tvm.emit.builder import MAIN, NODES, RelaxBuilder, Tensor
from dnc.targets.tvm.functions import lowered
from dnc.typing import Array
from tests.targets.tvm.schedules.harness import machine


@dataclass(frozen=True)
class Case:
    """A binary convolution."""

    height: int
    width: int
    inputs: int
    outputs: int
    size: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (1, 1, 1, 1)
    dilation: tuple[int, int] = (1, 1)
    images: int = 1
    differ: bool = False
    """Whether all signs of data and weights do."""

    @property
    def node(self) -> ir.Node:
        """The composite's call, without its inputs."""
        given = {"strides": self.stride, "pads": self.pads, "dilations": self.dilation}
        attributes = [ir.AttrInt64s(name, list(value)) for name, value in given.items()]
        return ir.Node("dnc", "BinaryConvolution", [], attributes, name="binary")

    def input(self) -> Array:
        """Zeros, -0 and NaN among them, none of which is positive."""
        generator = np.random.default_rng(1)
        x = generator.normal(size=(self.images, self.inputs, self.height, self.width)).astype(np.float32)
        special = generator.choice([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45], x.shape).astype(np.float32)
        return np.abs(x) + 1 if self.differ else np.where(generator.random(x.shape) < 0.1, special, x)

    def parameters(self) -> tuple[Array, Array, Array]:
        """Packed weights, scales and biases."""
        generator = np.random.default_rng(2)
        bits = generator.random((self.outputs, *self.size, self.inputs)) < (0 if self.differ else 0.5)
        scale, bias = generator.normal(size=(2, self.outputs)).astype(np.float32)
        return np.packbits(bits, axis=-1, bitorder="little"), scale, bias

    def expected(self, x: Array) -> Array:
        """Signs times signs, summed, scaled and shifted; each step rounded."""
        packed, scale, bias = self.parameters()
        bits = np.unpackbits(packed, axis=-1, count=self.inputs, bitorder="little")
        weights = 2 * bits.astype(np.int32) - 1
        top, left, bottom, right = self.pads
        s = np.pad(np.where(x > 0, 1, -1), ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=-1)
        rows, columns = (
            (s.shape[2 + axis] - (self.size[axis] - 1) * self.dilation[axis] - 1) // self.stride[axis] + 1
            for axis in range(2)
        )
        total = np.zeros((len(x), self.outputs, rows, columns), np.int64)
        for ky in range(self.size[0]):
            for kx in range(self.size[1]):
                low, left = ky * self.dilation[0], kx * self.dilation[1]
                taps = s[:, :, low :: self.stride[0], left :: self.stride[1]][:, :, :rows, :columns]
                total += np.einsum("nchw,oc->nohw", taps, weights[:, ky, kx], optimize=True)
        product = total.astype(np.float32) * scale.reshape(-1, 1, 1)
        result: Array = product + bias.reshape(-1, 1, 1)
        return result


def compiled(cases: Sequence[Case], mcpu: str = "host", after: str = "") -> tuple[Any, str]:
    """Convolutions one after the other, each with an operator of Relax after it. The program, and the rules."""
    where = machine(mcpu)
    b = RelaxBuilder()
    first = cases[0]
    shape = (first.images, first.inputs, first.height, first.width)
    variable = b.relax.Var("x", b.relax.TensorType(shape, "float32"))
    value = Tensor(variable, shape, "float32")
    with b.block.function(MAIN, [variable]):
        with b.block.dataflow():
            for case in cases:
                b.nodes.append("node")
                value = convolution(b, case.node, signs(b, value), [value, *case.parameters()])
                if after:
                    value = b.emit(getattr(b.op.nn, after)(value.expr), last=True)
            result = b.block.emit_output(b.first(value).expr)
        b.block.emit_func_output(result)
    module = b.block.finalize().with_attr(NODES, b.nodes)
    with where.target, tvm.transform.PassContext(opt_level=3):
        module = schedules.apply(fused(module), where.target)
        with lowered():
            executable = tvm.compile(module, where.target)
    return relax.VirtualMachine(executable, tvm.cpu()), " ".join(schedules.report(module).values())


CASES = {
    "3x3": Case(9, 13, 64, 96),
    "one pixel": Case(1, 1, 36, 255, (1, 1), pads=(0, 0, 0, 0)),
    "no border": Case(8, 9, 32, 40, pads=(0, 0, 0, 0)),
    "odd channels": Case(7, 6, 37, 19),
    "one channel": Case(7, 6, 1, 3),
    "stride": Case(15, 17, 20, 16, stride=(2, 2)),
    "uneven": Case(11, 17, 24, 8, (3, 2), (2, 3), (2, 0, 1, 3)),
    "dilation": Case(17, 19, 28, 12, pads=(2, 3, 2, 3), dilation=(2, 3)),
    "a border larger than the map": Case(2, 3, 4, 4, (7, 7), pads=(3, 3, 3, 3)),
    "windows far apart": Case(9, 2, 8, 8, (1, 1), (1, 9), (3, 3, 3, 3)),
    "batch": Case(7, 5, 24, 17, images=3),
    "many channels": Case(4, 5, 260, 180),
    "pointwise": Case(9, 7, 96, 130, (1, 1), pads=(0, 0, 0, 0)),
    "pointwise with stride": Case(9, 7, 100, 13, (1, 1), (2, 2), (0, 0, 0, 0)),
    "5x5": Case(10, 14, 48, 48, (5, 5), pads=(2, 2, 2, 2)),
    "the largest sums": Case(3, 4, 1024, 16, pads=(0, 0, 0, 0), differ=True),
}
SOME = ("3x3", "windows far apart", "odd channels", "stride", "dilation", "many channels", "batch", "the largest sums")
MACHINES = {
    "host": tuple(CASES),
    # Tables of 64, 32 and 16 bytes, then whatever LLVM makes of a count of bits.
    "skylake-avx512": SOME,
    "x86-64-v3": SOME,
    "x86-64-v2": SOME[:3],
    "x86-64": SOME[:3],
}


@pytest.mark.parametrize(
    ("mcpu", "name"),
    [
        pytest.param(mcpu, name, marks=[pytest.mark.slow] if names is SOME and (place + turn) % 2 else [])
        for turn, (mcpu, names) in enumerate(MACHINES.items())
        for place, name in enumerate(names)
    ],
)
def test_sums(mcpu: str, name: str) -> None:
    case = CASES[name]
    x = case.input()
    virtual, rules = compiled([case], mcpu)
    found = virtual["main"](tvm.runtime.tensor(x)).numpy()
    assert "binary" in rules
    np.testing.assert_array_equal(found, case.expected(x))


@pytest.mark.parametrize(
    ("mcpu", "rules"),
    [
        ("host", "injective binary binary injective"),
        ("x86-64-v3", "injective binary binary injective"),
        # Vectors of four are no whole bytes.
        ("x86-64", "injective+signs binary+signs binary injective"),
    ],
)
def test_in_a_row(mcpu: str, rules: str) -> None:
    """The second reads bits that the first made with its numbers; of these, the activation changes some signs."""
    cases = [Case(9, 8, 64, 48), Case(9, 8, 48, 40, (5, 5), pads=(2, 2, 2, 2))]
    virtual, found = compiled(cases, mcpu, after="relu")
    assert sorted(found.split()) == sorted(rules.split())
    x = cases[0].input()
    wanted = np.maximum(cases[1].expected(np.maximum(cases[0].expected(x), 0)), 0)
    np.testing.assert_array_equal(virtual["main"](tvm.runtime.tensor(x)).numpy(), wanted)


@pytest.mark.parametrize(
    ("triple", "mcpu", "floats"),
    [("riscv64", "host", False), ("riscv64", "sifive-u74", True), ("aarch64", "host", True)],
)
def test_no_floats(triple: str, mcpu: str, floats: bool) -> None:
    """LLVM ends the process where it finds a fence behind a float that the processor does not compute with."""
    assert machine_for(triple, mcpu).floats == floats
    b = RelaxBuilder(fences=floats)
    x = Tensor(b.relax.Var("x", b.relax.TensorType((1, 5, 5, 8), "float32")), (1, 8, 5, 5), "float32", last=True)
    case = Case(5, 5, 8, 8)
    b.nodes.append("node")
    with b.block.function(MAIN, [x.expr]):
        value = convolution(b, case.node, signs(b, x), [x, *case.parameters()])
        b.block.emit_func_output(value.expr)
    assert ("arithmetic.fence" in b.block.finalize().script()) == floats
