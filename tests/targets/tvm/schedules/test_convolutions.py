"""Every kernel of a convolution gives numpy's numbers, on shapes that divide into nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("tvm.relax", exc_type=ImportError)

from tvm import relax

from dnc.targets.tvm import schedules
from dnc.typing import Array
from tests.targets.tvm.schedules.harness import close, legalized, machine, run

TOLERANCE = 1e-5
"""Of the largest number: rounding of sums of up to some thousand products, in another order."""


class Conv(NamedTuple):
    """A convolution of an image of `height` x `width`; padding is above, left, below, right."""

    height: int
    width: int
    inputs: int
    outputs: int
    size: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    images: int = 1

    def weights(self) -> Array:
        """(kh, kw, I, O)."""
        shape = (*self.size, self.inputs // self.groups, self.outputs)
        return np.random.default_rng(1).standard_normal(shape).astype(np.float32)

    def input(self) -> Array:
        """(N, H, W, C)."""
        shape = (self.images, self.height, self.width, self.inputs)
        return np.random.default_rng(2).standard_normal(shape).astype(np.float32)

    def expression(self, x: Any) -> Any:
        """In Relax."""
        return relax.op.nn.conv2d(
            x,
            relax.const(self.weights()),
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            data_layout="NHWC",
            kernel_layout="HWIO",
        )

    def reference(self) -> Array:
        """In numpy, in float64."""
        top, left, bottom, right = self.padding
        x = np.pad(self.input().astype(np.float64), ((0, 0), (top, bottom), (left, right), (0, 0)))
        weights = self.weights().astype(np.float64)
        reach = [(size - 1) * step for size, step in zip(self.size, self.dilation, strict=True)]
        rows = (x.shape[1] - reach[0] - 1) // self.stride[0] + 1
        columns = (x.shape[2] - reach[1] - 1) // self.stride[1] + 1
        out = np.zeros((self.images, rows, columns, self.outputs))
        inputs, outputs = self.inputs // self.groups, self.outputs // self.groups
        for ky, kx, group in np.ndindex(*self.size, self.groups):
            rows_of = slice(ky * self.dilation[0], ky * self.dilation[0] + rows * self.stride[0], self.stride[0])
            of = slice(kx * self.dilation[1], kx * self.dilation[1] + columns * self.stride[1], self.stride[1])
            part = x[:, rows_of, of][:, :rows, :columns, group * inputs : (group + 1) * inputs]
            to = slice(group * outputs, (group + 1) * outputs)
            out[..., to] += part @ weights[ky, kx, :, to]
        return out


SAME = (1, 1, 1, 1)
POINTWISE = {
    "prime": Conv(11, 13, 7, 24, (1, 1)),
    "one pixel": Conv(1, 1, 37, 255, (1, 1)),
    "three channels": Conv(9, 17, 24, 3, (1, 1)),
    "batch": Conv(5, 7, 16, 19, (1, 1), images=3),
    "beyond the cache": Conv(3, 3, 331, 401, (1, 1)),
    "maps beyond the cache": Conv(71, 83, 17, 19, (1, 1)),
    "many inputs beyond the cache": Conv(11, 17, 601, 3, (1, 1)),
}
SPATIAL = {
    "prime": Conv(13, 11, 7, 24, padding=SAME),
    "255": Conv(5, 29, 3, 255, padding=SAME),
    "first layer": Conv(31, 37, 3, 16, stride=(2, 2), padding=SAME),
    "stride 2 of 1 x 1": Conv(7, 9, 24, 7, (1, 1), (2, 2)),
    "uneven": Conv(11, 17, 5, 8, (3, 2), (2, 3), (2, 0, 1, 3)),
    "dilation": Conv(17, 19, 8, 12, padding=(2, 3, 2, 3), dilation=(2, 3)),
    "groups": Conv(9, 10, 12, 21, (5, 5), padding=(2, 2, 2, 2), groups=3),
    "two of each": Conv(9, 10, 6, 12, padding=SAME, groups=6),
    "one pixel": Conv(1, 1, 24, 24, padding=SAME),
    "a border larger than the map": Conv(2, 3, 4, 4, (7, 7), padding=(3, 3, 3, 3)),
    "nothing but border": Conv(1, 1, 4, 4, (1, 1), padding=(2, 2, 2, 2)),
    "tiles of nothing but border": Conv(2, 1, 8, 64, (1, 1), padding=(16, 16, 16, 16)),
    "batch": Conv(7, 5, 24, 17, padding=SAME, images=2),
    "beyond the cache": Conv(4, 5, 131, 137, padding=SAME),
    "maps beyond the cache": Conv(71, 83, 3, 17, padding=SAME),
    "13 columns": Conv(4, 13, 29, 24, padding=SAME),
}
DEPTHWISE = {
    "one channel": Conv(5, 7, 1, 1, (1, 1)),
    "prime": Conv(13, 11, 7, 7, padding=SAME, groups=7),
    "24": Conv(23, 29, 24, 24, padding=SAME, groups=24),
    "stride 2": Conv(15, 17, 255, 255, (5, 5), (2, 2), (2, 2, 2, 2), groups=255),
    "uneven": Conv(15, 17, 32, 32, (3, 5), (2, 1), (1, 0, 2, 3), groups=32),
    "dilation": Conv(15, 17, 3, 3, padding=(2, 2, 2, 2), dilation=(2, 2), groups=3),
    "large": Conv(12, 31, 17, 17, (9, 9), padding=(4, 4, 4, 4), groups=17),
    "one pixel": Conv(1, 1, 40, 40, padding=SAME, groups=40),
    "batch": Conv(7, 7, 20, 20, padding=SAME, groups=20, images=2),
    "tiles of nothing but border": Conv(1, 2, 16, 16, (1, 1), padding=(16, 16, 16, 16), groups=16),
    "maps beyond the cache": Conv(83, 71, 19, 19, padding=SAME, groups=19),
    "stride 2 beyond the cache": Conv(83, 71, 19, 19, (5, 5), (2, 2), (2, 2, 2, 2), groups=19),
}


def _cases(conv: dict[str, Conv]) -> Callable[[Any], Any]:
    return pytest.mark.parametrize("conv", list(conv.values()), ids=list(conv))


@_cases(POINTWISE)
def test_pointwise(conv: Conv) -> None:
    found, rules = run(conv.expression, conv.input())
    assert rules == "pointwise"
    close(found, conv.reference(), TOLERANCE)


@_cases(SPATIAL)
def test_spatial(conv: Conv) -> None:
    found, rules = run(conv.expression, conv.input())
    assert rules == "spatial"
    close(found, conv.reference(), TOLERANCE)


@_cases(DEPTHWISE)
def test_depthwise(conv: Conv) -> None:
    found, rules = run(conv.expression, conv.input())
    assert rules == "depthwise"
    close(found, conv.reference(), TOLERANCE)


@pytest.mark.parametrize("mcpu", ["x86-64", "x86-64-v3"])
@pytest.mark.parametrize(
    "conv", [POINTWISE["prime"], SPATIAL["groups"], SPATIAL["255"], SPATIAL["13 columns"], DEPTHWISE["24"]]
)
def test_shorter_vectors(conv: Conv, mcpu: str) -> None:
    found, _ = run(conv.expression, conv.input(), mcpu=mcpu)
    close(found, conv.reference(), TOLERANCE)


@pytest.mark.parametrize("conv", [POINTWISE["prime"], SPATIAL["prime"], DEPTHWISE["24"]])
def test_what_follows_is_in_the_same_kernel(conv: Conv) -> None:
    """Bias, swish and a sum with another map, which also goes on by itself."""
    bias = np.linspace(-1, 1, conv.outputs, dtype=np.float32)
    wanted = conv.reference() + bias
    wanted = wanted / (1 + np.exp(-wanted))
    other = np.random.default_rng(3).standard_normal(wanted.shape).astype(np.float32)

    def build(x: Any, y: Any) -> Any:
        z = relax.op.add(conv.expression(x), relax.const(bias.reshape(1, 1, 1, -1)))
        return relax.op.add(relax.op.multiply(z, relax.op.sigmoid(z)), y)

    found, rules = run(build, conv.input(), other)
    assert rules.count(" ") == rules.count("+") == 0
    close(found, wanted + other, TOLERANCE)


@pytest.mark.parametrize("slope", [0.1, 1.5, -0.5])
def test_leaky(slope: float) -> None:
    """Which is a maximum for slopes from 0 to 1, and for no others."""
    conv = POINTWISE["prime"]
    wanted = conv.reference()
    found, rules = run(lambda x: relax.op.nn.leakyrelu(conv.expression(x), slope), conv.input())
    assert rules == "pointwise"
    close(found, np.where(wanted > 0, wanted, slope * wanted), TOLERANCE)
    module = legalized(lambda x: relax.op.nn.leakyrelu(x, slope), [(1, 3, 5, 8)])
    assert ("T.max(" in str(schedules.apply(module, machine().target))) is (0 <= slope <= 1)


@pytest.mark.parametrize(
    ("conv", "lines"),
    [
        (POINTWISE["prime"], False),
        (POINTWISE["maps beyond the cache"], True),
        (SPATIAL["maps beyond the cache"], True),
        (DEPTHWISE["24"], False),
        (DEPTHWISE["maps beyond the cache"], True),
    ],
)
def test_lines_of_large_maps_are_asked_for(conv: Conv, lines: bool) -> None:
    module = schedules.apply(legalized(conv.expression, [conv.input().shape]), machine().target)
    assert ("llvm.prefetch" in str(module)) is lines


def test_weights_that_are_no_constant() -> None:
    """Nothing can be packed beforehand: the loops stay, and it is said."""
    conv = POINTWISE["prime"]

    def build(x: Any, w: Any) -> Any:
        return relax.op.nn.conv2d(x, w, data_layout="NHWC", kernel_layout="HWIO")

    found, rules = run(build, conv.input(), conv.weights())
    assert "the weights are no constant" in rules
    close(found, conv.reference(), TOLERANCE)


def test_two_layers_of_one_shape_share_their_code() -> None:
    """But not their weights."""
    conv = Conv(5, 5, 8, 8, padding=SAME)
    second = np.random.default_rng(9).standard_normal((3, 3, 8, 8)).astype(np.float32)

    def build(x: Any) -> Any:
        return relax.op.nn.conv2d(
            conv.expression(x), relax.const(second), padding=SAME, data_layout="NHWC", kernel_layout="HWIO"
        )

    class Second(Conv):
        def input(self) -> Array:
            return conv.reference()

        def weights(self) -> Array:
            return second

    found, rules = run(build, conv.input())
    assert rules == "spatial"
    close(found, Second(*conv).reference(), TOLERANCE)


def test_the_same_module_every_time() -> None:
    from tvm.ir import assert_structural_equal

    conv = SPATIAL["prime"]
    target = machine().target
    first, second = (schedules.apply(legalized(conv.expression, [conv.input().shape]), target) for _ in range(2))
    assert_structural_equal(first, second)
