"""Graphs with QuantizeLinear and DequantizeLinear: every number is the one that the integers say."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from dnc.targets.tvm.emit import unsupported
from dnc.typing import Array
from tests import models

pytest.importorskip("tvm.relax", exc_type=ImportError)

import tvm
from tvm import relax

from dnc.targets.tvm import schedules
from dnc.targets.tvm.compile import fused
from dnc.targets.tvm.emit import emit
from dnc.targets.tvm.functions import lowered
from tests.targets.tvm.schedules.harness import machine
from tests.thinning import crossed

EIGHTS = ("uint8", "int8", "int16")
"""Types that numbers are held in."""
EXACT = 1e-5
"""Of the largest number: integers below 2^24 are float32 numbers, larger ones are rounded to 2^-24 of themselves; then
there is one multiplication and one addition, of numbers that partly cancel where the zero is large."""


def compute(
    model: ir.Model, *inputs: Array, eights: str = "uint8", bfloat16: bool = False, mcpu: str = "host"
) -> tuple[list[Array], str]:
    """The outputs, and the rules that wrote the kernels."""
    assert not unsupported(model)
    where = machine(mcpu)
    with where.target, tvm.transform.PassContext(opt_level=3):
        module = schedules.apply(fused(emit(model, eights=eights, bfloat16=bfloat16)), where.target)
        with lowered():
            executable = tvm.compile(module, where.target)
    virtual = relax.VirtualMachine(executable, tvm.cpu())
    results = virtual["main"](*(tvm.runtime.tensor(array) for array in inputs))
    return [result.numpy() for result in results], " ".join(schedules.report(module).values())


def grid(scale: float, zero: int) -> dict[str, Array]:
    return {"s": np.array(scale, np.float32), "z": np.array(zero, np.uint8)}


def rounded(x: Array, scale: float, zero: int) -> Array:
    """As ONNX says."""
    with np.errstate(over="ignore"):
        return np.clip(np.round(x / np.float32(scale)) + zero, 0, 255).astype(np.uint8)


def convolved(x: Array, w: Array, pads: tuple[int, ...], strides: tuple[int, int], dilations: tuple[int, int]) -> Array:
    """Of (N, C, H, W) and (O, I, kh, kw), exactly: all are integers or multiples of a power of 2."""
    top, left, bottom, right = pads
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    rows = (x.shape[2] - (w.shape[2] - 1) * dilations[0] - 1) // strides[0] + 1
    columns = (x.shape[3] - (w.shape[3] - 1) * dilations[1] - 1) // strides[1] + 1
    y = np.zeros((x.shape[0], w.shape[0], rows, columns))
    for ky, kx in np.ndindex(*w.shape[2:]):
        down, across = ky * dilations[0], kx * dilations[1]
        part = x[:, :, down :: strides[0], across :: strides[1]][:, :, :rows, :columns]
        y += np.einsum("nchw,oc->nohw", part, w[:, :, ky, kx])
    return y


FORMS: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, int], tuple[int, int]]] = {
    # Weights (O, I, kh, kw), padding, strides, dilations
    "1x1": ((24, 16, 1, 1), (0, 0, 0, 0), (1, 1), (1, 1)),
    "1x1 with a border": ((8, 4, 1, 1), (1, 2, 0, 1), (1, 1), (1, 1)),
    "3x3": ((20, 8, 3, 3), (1, 1, 1, 1), (1, 1), (1, 1)),
    "three channels": ((16, 3, 3, 3), (1, 1, 1, 1), (2, 2), (1, 1)),
    "uneven": ((7, 12, 3, 2), (2, 0, 1, 3), (2, 3), (1, 1)),
    "dilated": ((12, 8, 3, 3), (2, 4, 2, 4), (1, 1), (2, 3)),
    "larger than the map": ((5, 4, 11, 13), (5, 6, 5, 6), (1, 1), (1, 1)),
    "no window lies inside": ((5, 4, 15, 17), (7, 8, 7, 8), (1, 1), (1, 1)),
    "nothing inside": ((4, 4, 1, 1), (12, 0, 0, 0), (1, 1), (1, 1)),
}


@pytest.mark.parametrize(("form", "zero", "eights"), crossed(FORMS, [0, 77], EIGHTS))
def test_convolution(form: str, zero: int, eights: str) -> None:
    """Borders are the real 0, whatever number stands for it."""
    shape, pads, strides, dilations = FORMS[form]
    generator = np.random.default_rng(zero)
    x = (generator.integers(-zero, 256 - zero, (2, shape[1], 9, 11)) / 64).astype(np.float32)
    w = generator.integers(-127, 128, shape).astype(np.int8)
    scales = generator.uniform(0.01, 0.02, shape[0]).astype(np.float32)
    bias = generator.standard_normal(shape[0]).astype(np.float32)
    sides = f"pads: ints = {list(pads)}, strides: ints = {list(strides)}, dilations: ints = {list(dilations)}"
    built = models.model(
        f"g (float[2, {shape[1]}, 9, 11] x) => (float[N, O, H, W] y) {{ q = QuantizeLinear(x, s, z) "
        f"d = DequantizeLinear(q, s, z) k = DequantizeLinear<axis: int = 0>(w, t) y = Conv<{sides}>(d, k, b) }}",
        **grid(1 / 64, zero),
        w=w,
        t=scales,
        b=bias,
    )
    (found,), rules = compute(built, x, eights=eights)
    wanted = convolved(x.astype(np.float64), w.astype(np.float64), pads, strides, dilations)
    wanted = wanted * scales[:, None, None].astype(np.float64) + bias[:, None, None]
    assert "none" not in rules
    np.testing.assert_allclose(found, wanted, rtol=0, atol=EXACT * np.abs(wanted).max())


@pytest.mark.parametrize("zero", [0, 100])
def test_product(zero: int) -> None:
    generator = np.random.default_rng(zero)
    x = (generator.integers(-zero, 256 - zero, (3, 37)) / 64).astype(np.float32)
    w = generator.integers(-127, 128, (21, 37)).astype(np.int8)
    scales = generator.uniform(0.01, 0.02, 21).astype(np.float32)
    built = models.model(
        "g (float[3, 37] x) => (float[3, 21] y) { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) "
        "k = DequantizeLinear<axis: int = 0>(w, t) y = Gemm<transB: int = 1>(d, k) }",
        **grid(1 / 64, zero),
        w=w,
        t=scales,
    )
    (found,), _ = compute(built, x)
    wanted = x.astype(np.float64) @ (w.astype(np.float64) * scales[:, None].astype(np.float64)).T
    np.testing.assert_allclose(found, wanted, rtol=0, atol=EXACT * np.abs(wanted).max())


@pytest.mark.parametrize("mcpu", ["host", "x86-64"])
@pytest.mark.parametrize("eights", EIGHTS)
@pytest.mark.parametrize("zero", [0, 128, 77, 255])
def test_rounding(zero: int, eights: str, mcpu: str) -> None:
    """To even, as ONNX has it, on either side of an odd zero; beyond the ends, the ends."""
    built = models.model(
        "g (float[1, 300, 1, 4] x) => (float[1, 300, 1, 4] y) "
        "{ q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }",
        **grid(0.5, zero),
    )
    x = (np.arange(-600, 600).reshape(1, 300, 1, 4) / 4).astype(np.float32)
    x.reshape(-1)[:5] = [np.inf, -np.inf, 3e38, -3e38, -0.0]
    (found,), _ = compute(built, x, eights=eights, mcpu=mcpu)
    np.testing.assert_array_equal(found, (rounded(x, 0.5, zero).astype(np.float32) - zero) * np.float32(0.5))


MOVED = (
    "p = MaxPool<kernel_shape: ints = [3, 3], pads: ints = [1, 1, 1, 1]>(d) "
    "u = Resize<mode: string = \"nearest\", nearest_mode: string = \"floor\", "
    "coordinate_transformation_mode: string = \"asymmetric\">(p, , r) "
    "c = Slice(u, one, three, one) e = Concat<axis: int = 1>(c, u)"
)  # fmt: skip
CONSTANTS = {"r": np.array([1, 1, 2, 2], np.float32), "one": np.array([1]), "three": np.array([3])}


@pytest.mark.parametrize("eights", EIGHTS)
def test_what_moves_numbers(eights: str) -> None:
    """They stay 8-bit numbers from one rounding to the next, and none of it is rounded again."""
    built = models.model(
        f"g (float[1, 4, 6, 5] x) => (float[1, 6, 12, 10] y) {{ a = Relu(x) q = QuantizeLinear(a, s, z) "
        f"d = DequantizeLinear(q, s, z) {MOVED} f = QuantizeLinear(e, s, z) y = DequantizeLinear(f, s, z) }}",
        **grid(0.25, 3),
        **CONSTANTS,
    )
    x = np.random.default_rng(0).uniform(-9, 70, (1, 4, 6, 5)).astype(np.float32)
    (found,), _ = compute(built, x, eights=eights)
    np.testing.assert_array_equal(found, models.run(built, {"x": x})["y"])
    kernels = [str(function) for function in fused(emit(built, eights=eights)).functions.values()]
    assert sum(f'Cast("{eights}"' in each for each in kernels) == 1


def test_several_roundings_are_one_kernel() -> None:
    """A value that is rounded in two ways, and read as it is, is computed and stored by one kernel."""
    weights = np.random.default_rng(1).standard_normal((8, 8, 1, 1)).astype(np.float32)
    built = models.model(
        "g (float[1, 8, 5, 5] x) => (float[1, 8, 5, 5] v, float[1, 8, 5, 5] b, float[1, 8, 5, 5] y) "
        "{ c = Conv(x, w) v = Relu(c) q = QuantizeLinear(v, s, z) a = DequantizeLinear(q, s, z) "
        "e = QuantizeLinear(v, t, z) b = DequantizeLinear(e, t, z) y = Neg(a) }",
        **grid(0.05, 9),
        t=np.array(0.125, np.float32),
        w=weights,
    )
    x = np.random.default_rng(0).standard_normal((1, 8, 5, 5)).astype(np.float32)
    found, rules = compute(built, x)
    wanted = models.run(built, {"x": x})
    assert rules.count("pointwise") == 1
    for y, (name, step) in zip(found, (("v", 1e-5), ("b", 0.125), ("y", 0.05)), strict=True):
        # Where the sums were added up in another order, a number may be rounded to the other side.
        difference = np.abs(y - wanted[name])
        assert difference.max() <= step * 1.001
        assert (difference > 1e-5).sum() <= 2


def test_reals_where_integers_do_not_fit() -> None:
    """Convolutions of groups, and what computes with reals."""
    built = models.model(
        "g (float[1, 4, 5, 5] x) => (float[1, 4, 3, 3] y, float[1, 4, 5, 5] e) { q = QuantizeLinear(x, s, z) "
        "d = DequantizeLinear(q, s, z) k = DequantizeLinear<axis: int = 0>(w, t) y = Conv<group: int = 4>(d, k) "
        "e = Add(d, x) }",
        **grid(0.05, 100),
        w=np.random.default_rng(1).integers(-127, 128, (4, 1, 3, 3)).astype(np.int8),
        t=np.array([0.1, 0.2, 0.3, 0.4], np.float32),
    )
    x = np.random.default_rng(0).standard_normal((1, 4, 5, 5)).astype(np.float32)
    found, _ = compute(built, x)
    wanted = models.run(built, {"x": x})
    for y, name in zip(found, ("y", "e"), strict=True):
        np.testing.assert_allclose(y, wanted[name], rtol=0, atol=1e-5 * np.abs(wanted[name]).max())
