"""Sums of products of 8-bit numbers are numpy's integers, whatever instruction adds them up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm.relax", exc_type=ImportError)

from tvm import relax, te, tirx

from dnc.targets.tvm.compile import machine_for
from dnc.targets.tvm.schedules.dot import Dot
from dnc.targets.tvm.schedules.machine import Machine
from dnc.typing import Array
from tests.targets.tvm.schedules.harness import run
from tests.targets.tvm.schedules.test_convolutions import POINTWISE, SAME, SPATIAL, Conv

FOURS = {
    "pointwise": Conv(11, 13, 8, 24, (1, 1)),
    "one pixel": Conv(1, 1, 36, 255, (1, 1)),
    "odd width": Conv(13, 11, 12, 40, padding=SAME),
    "stride": Conv(15, 17, 4, 16, stride=(2, 2), padding=SAME),
    "uneven": Conv(11, 17, 8, 8, (3, 2), (2, 3), (2, 0, 1, 3)),
    "dilation": Conv(17, 19, 8, 12, padding=(2, 3, 2, 3), dilation=(2, 3)),
    "groups": Conv(9, 10, 12, 27, (5, 5), padding=(2, 2, 2, 2), groups=3),
    "few channels": Conv(9, 17, 24, 3, (3, 3), padding=SAME),
    "a border larger than the map": Conv(2, 3, 4, 4, (7, 7), padding=(3, 3, 3, 3)),
    "batch": Conv(7, 5, 24, 17, padding=SAME, images=2),
    "beyond the cache": Conv(4, 5, 260, 180, padding=SAME),
    "the largest sums": Conv(3, 3, 1024, 16, (3, 3), padding=SAME),
}


class Integers(Conv):
    """The same convolution of 8-bit numbers, all of which occur, the extremes often."""

    def weights(self) -> Array:
        shape = (*self.size, self.inputs // self.groups, self.outputs)
        return np.clip(np.random.default_rng(1).integers(-160, 161, shape), -128, 127).astype(np.int8)

    def input(self) -> Array:
        shape = (self.images, self.height, self.width, self.inputs)
        return np.clip(np.random.default_rng(2).integers(-60, 316, shape), 0, 255).astype(np.uint8)

    def expression(self, x: Any) -> Any:
        return relax.op.nn.conv2d(
            x,
            relax.const(self.weights()),
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            data_layout="NHWC",
            kernel_layout="HWIO",
            out_dtype="int32",
        )


class Words(Integers):
    """As x86 without VNNI has them: in 16 bits."""

    def input(self) -> Array:
        return super().input().astype(np.int16)


class Extremes(Words):
    """Pairs whose sums are beyond 16 bits, on either side, and cancel or do not."""

    def weights(self) -> Array:
        return np.where(super().weights() < 0, -128, 127).astype(np.int8)

    def input(self) -> Array:
        return np.where(super().input() < 8, 0, 255).astype(np.int16)


class Signed(Integers):
    """As aarch64 has them."""

    def input(self) -> Array:
        return (super().input().astype(np.int32) - 128).astype(np.int8)


CASES = {**{f"fours, {name}": conv for name, conv in FOURS.items()}, **POINTWISE, **SPATIAL}


@pytest.mark.parametrize("conv", list(CASES.values()), ids=list(CASES))
def test_convolutions(conv: Conv) -> None:
    """Float64 adds up these integers exactly."""
    found, rules = run(Integers(*conv).expression, Integers(*conv).input())
    assert rules in ("pointwise", "spatial")
    np.testing.assert_array_equal(found, Integers(*conv).reference())


@pytest.mark.parametrize("name", ["pointwise", "groups", "dilation", "few channels"])
@pytest.mark.parametrize("mcpu", ["x86-64-v3", "alderlake"])
def test_other_processors(mcpu: str, name: str) -> None:
    """Shorter vectors, with VNNI and without."""
    conv = Integers(*FOURS[name])
    found, _ = run(conv.expression, conv.input(), mcpu=mcpu)
    np.testing.assert_array_equal(found, conv.reference())


@pytest.mark.parametrize(
    ("kind", "mcpu"),
    [
        *((Extremes, mcpu) for mcpu in ("x86-64-v2", "x86-64-v3", "x86-64-v4")),
        (Words, "x86-64-v3"),
        *(pytest.param(Words, mcpu, marks=pytest.mark.slow) for mcpu in ("x86-64-v2", "x86-64-v4")),
    ],
)
def test_numbers_in_16_bits(mcpu: str, kind: type[Integers]) -> None:
    """Vectors of each length, without VNNI: exact, whatever the pairs add up to."""
    for name in ("pointwise", "uneven", "groups", "few channels", "batch", "the largest sums"):
        conv = kind(*FOURS[name])
        found, rules = run(conv.expression, conv.input(), mcpu=mcpu)
        assert rules in ("pointwise", "spatial")
        np.testing.assert_array_equal(found, conv.reference(), name)


def test_signed_data() -> None:
    conv = Signed(*FOURS["odd width"])
    found, _ = run(conv.expression, conv.input())
    np.testing.assert_array_equal(found, conv.reference())


def test_products_of_matrices() -> None:
    generator = np.random.default_rng(3)
    x = generator.integers(0, 256, (5, 36)).astype(np.uint8)
    w = generator.integers(-128, 128, (36, 21)).astype(np.int8)

    def product(a: Any, b: Any) -> Any:
        k = te.reduce_axis((0, 36), name="k")
        return te.compute((5, 21), lambda n, o: te.sum(a[n, k].astype("int32") * b[k, o].astype("int32"), axis=k))

    def build(a: Any) -> Any:
        return relax.BlockBuilder.current().call_te(product, a, relax.const(w))

    found, rules = run(build, x)
    assert rules == "pointwise"
    np.testing.assert_array_equal(found, x.astype(np.int64) @ w.astype(np.int64))


@pytest.mark.parametrize(("triple", "mcpu", "data", "lanes", "inputs", "group"), [
    ("", "znver4", "uint8", 16, 8, 4),
    ("", "znver4", "uint8", 4, 8, 4),
    ("", "alderlake", "uint8", 8, 8, 4),
    ("", "x86-64-v4", "uint8", 16, 8, 1),
    ("", "x86-64-v3", "uint8", 8, 8, 1),
    ("", "znver4", "uint8", 2, 8, 1),
    ("", "znver4", "uint8", 16, 7, 1),
    ("", "znver4", "int8", 16, 8, 1),
    ("", "x86-64-v4", "int16", 16, 2, 2),
    ("", "x86-64-v4", "int16", 4, 2, 2),
    ("", "x86-64-v3", "int16", 8, 6, 2),
    ("", "x86-64-v3", "int16", 8, 7, 1),
    ("", "x86-64-v3", "int16", 2, 6, 1),
    ("", "x86-64-v2", "int16", 4, 2, 2),
    ("", "sandybridge", "int16", 8, 2, 1),
    ("", "znver4", "uint16", 16, 2, 2),
    ("", "znver4", "uint16", 4, 2, 2),
    ("", "znver4", "uint16", 16, 3, 1),
    ("", "icelake-server", "uint16", 16, 2, 1),
    ("aarch64", "cortex-a76", "int8", 4, 8, 4),
    ("aarch64", "cortex-a76", "uint8", 4, 8, 1),
    ("aarch64", "cortex-a72", "int8", 4, 8, 1),
    ("aarch64", "cortex-a72", "int16", 4, 8, 1),
])  # fmt: skip
def test_which_instruction(triple: str, mcpu: str, data: str, lanes: int, inputs: int, group: int) -> None:
    """Several at once where the processor can, and the numbers lie so."""
    if not triple and not machine_for("", "host").triple.startswith("x86_64"):
        pytest.skip("for x86")
    machine = Machine.of(machine_for(triple, mcpu).target)
    kinds = ("uint16", "float32") if data == "uint16" else ("int8", "int32")
    numbers, weights = tirx.decl_buffer([8], data), tirx.decl_buffer([8], kinds[0])
    assert Dot.of(numbers, weights, kinds[1], inputs, lanes, machine).group == group


@pytest.mark.parametrize(("mcpu", "held"), [
    ("znver4", "uint8"), ("cascadelake", "uint8"), ("alderlake", "uint8"),
    ("haswell", "int16"), ("znver3", "int16"), ("skylake-avx512", "int16"), ("goldmont", "int16"),
    # 8 floats at once, but 4 integers; 16 floats, but 8 pairs.
    ("sandybridge", ""), ("knl", ""),
])  # fmt: skip
def test_what_numbers_are_held_in(mcpu: str, held: str) -> None:
    assert machine_for("x86_64", mcpu).eights == held


@pytest.mark.parametrize(("mcpu", "held"), [("cortex-a76", "int8"), ("cortex-a72", "")])
def test_what_numbers_are_held_in_on_aarch64(mcpu: str, held: str) -> None:
    assert machine_for("aarch64", mcpu).eights == held
