"""Pools, products, reductions and what computes each element by itself: numpy's numbers, whatever the shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm.relax", exc_type=ImportError)

from tvm import relax, te

from dnc.targets.tvm import schedules
from dnc.typing import Array
from tests.targets.tvm.schedules.harness import close, legalized, machine, run
from tests.thinning import crossed

ROUNDING = 1e-6
"""Of the largest number: some additions of float32."""
SUM = 1e-5
"""The same for sums of up to some thousand terms, in another order."""
LAST = {"layout": "NHWC"}


def image(*shape: int) -> Array:
    """Random numbers, (N, H, W, C) or what is asked for; most maxima are below zero."""
    return np.random.default_rng(4).standard_normal(shape).astype(np.float32) - 3


def pooled(x: Array, size: int, stride: int, before: int, after: int, reduce: Any, fill: float) -> Array:
    """A pool with a border, in numpy."""
    padded = np.pad(x, ((0, 0), (before, after), (before, after), (0, 0)), constant_values=fill)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))[:, ::stride, ::stride]
    return np.asarray(reduce(windows, axis=(-1, -2)))


@pytest.mark.parametrize(
    ("shape", "size", "stride", "before", "after"),
    [
        ((1, 13, 11, 24), 2, 2, 0, 1),
        ((2, 13, 13, 7), 2, 1, 0, 1),
        ((1, 17, 19, 255), 3, 2, 1, 1),
        ((1, 10, 13, 33), 13, 1, 6, 6),
        ((1, 1, 1, 3), 5, 1, 2, 2),
    ],
)
def test_maximum_pool(shape: tuple[int, ...], size: int, stride: int, before: int, after: int) -> None:
    x = image(*shape)
    padding = (before, before, after, after)
    found, rules = run(lambda v: relax.op.nn.max_pool2d(v, (size, size), (stride, stride), padding, **LAST), x)
    assert rules == "pool"
    np.testing.assert_array_equal(found, pooled(x, size, stride, before, after, np.max, -np.inf))


@pytest.mark.parametrize("shape", [(1, 12, 10, 24), (1, 6, 8, 7)])
def test_average_pool(shape: tuple[int, ...]) -> None:
    """With a border that counts as zeros."""
    x = image(*shape)
    found, rules = run(
        lambda v: relax.op.nn.avg_pool2d(v, (3, 3), (2, 2), (1, 1, 1, 1), count_include_pad=True, **LAST), x
    )
    assert rules == "pool"
    close(found, pooled(x, 3, 2, 1, 1, np.mean, 0.0), ROUNDING)


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 37, 1000), (1, 7, 3), (13, 24, 255)])
def test_product(rows: int, inputs: int, outputs: int) -> None:
    x, weights = image(rows, inputs), image(inputs, outputs)
    bias = np.linspace(0, 1, outputs, dtype=np.float32)
    found, rules = run(
        lambda v: relax.op.nn.relu(relax.op.add(relax.op.matmul(v, relax.const(weights)), relax.const(bias))), x
    )
    assert rules == "pointwise"
    close(found, np.maximum(x.astype(np.float64) @ weights + bias, 0), SUM)


@pytest.mark.parametrize(
    ("shape", "axes"),
    crossed([(1, 7, 7, 1280), (2, 13, 11, 7), (1, 1, 1, 24)], [(1, 2), (3,), (1, 2, 3), (1,)], every=2),
)
def test_mean(shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    x = image(*shape)
    found, rules = run(lambda v: relax.op.mean(v, axes, keepdims=True), x)
    assert "none" not in rules
    close(found, x.mean(axis=axes, keepdims=True, dtype=np.float64), SUM)


@pytest.mark.parametrize(("name", "axis"), crossed(["max", "min", "sum", "prod"], [1, 2], every=2))
def test_extremes_and_products(name: str, axis: int) -> None:
    x = image(3, 19, 23) * np.float32(0.3)
    found, rules = run(lambda v: getattr(relax.op, name)(v, axis), x)
    assert "reduction" in rules
    close(found, getattr(np, name)(x.astype(np.float64), axis=axis), SUM)


def test_softmax() -> None:
    x = image(5, 1001)
    found, rules = run(lambda v: relax.op.nn.softmax(v, -1), x)
    assert "none" not in rules
    power = np.exp(x - x.max(axis=-1, keepdims=True).astype(np.float64))
    close(found, power / power.sum(axis=-1, keepdims=True), SUM)


@pytest.mark.parametrize("shape", [(1, 13, 11, 7), (1, 3, 5, 64), (17,), (2, 1, 1, 1), (129, 257)])
def test_element_by_element(shape: tuple[int, ...]) -> None:
    x, y = image(*shape), image(*shape) + 1
    found, rules = run(lambda v, w: relax.op.nn.relu(relax.op.multiply(relax.op.add(v, w), v)), x, y)
    assert rules == "injective"
    close(found, np.maximum((x + y) * x, 0), ROUNDING)


@pytest.mark.parametrize("channels", [(24, 7, 1), (16, 16), (3, 255)])
def test_concatenation(channels: tuple[int, ...]) -> None:
    """Each part is a loop of its own: nothing is compared for each element."""
    parts = [image(1, 5, 7, count) * np.float32(place + 1) for place, count in enumerate(channels)]
    found, rules = run(lambda *v: relax.op.nn.relu(relax.op.negative(relax.op.concat(v, axis=3))), *parts)
    assert rules == "injective"
    np.testing.assert_array_equal(found, np.maximum(-np.concatenate(parts, axis=3), 0))
    where = machine()
    with where.target:
        module = schedules.apply(
            legalized(lambda *v: relax.op.concat(v, axis=3), [part.shape for part in parts]), where.target
        )
    assert "if_then_else" not in module.script()


@pytest.mark.parametrize("shape", [(1, 13, 11, 3), (1, 7, 5, 255), (2, 4, 4, 16)])
def test_change_of_layout(shape: tuple[int, ...]) -> None:
    x = image(*shape)
    found, rules = run(lambda v: relax.op.permute_dims(v, (0, 3, 1, 2)), x)
    assert rules == "injective"
    np.testing.assert_array_equal(found, x.transpose(0, 3, 1, 2))


def test_moves_are_computed_where_they_are_read() -> None:
    """As in a head: parts of the channels through a sigmoid, and back into one map."""
    x = image(1, 10, 10, 255)

    def build(v: Any) -> Any:
        boxes = relax.op.reshape(relax.op.permute_dims(v, (0, 3, 1, 2)), (1, 3, 85, 10, 10))
        first = relax.op.strided_slice(boxes, [2], [0], [2])
        middle = relax.op.strided_slice(boxes, [2], [2], [4])
        last = relax.op.strided_slice(boxes, [2], [4], [85])
        parts = [relax.op.sigmoid(first), middle, relax.op.sigmoid(last)]
        return relax.op.reshape(relax.op.concat(parts, axis=2), (1, 255, 10, 10))

    wanted = x.transpose(0, 3, 1, 2).reshape(1, 3, 85, 10, 10).astype(np.float64)
    for part in (wanted[:, :, :2], wanted[:, :, 4:]):
        part[...] = 1 / (1 + np.exp(-part))
    found, rules = run(build, x)
    assert set(rules.split("+")) == {"injective"}
    close(found, wanted.reshape(1, 255, 10, 10), ROUNDING)


@pytest.mark.parametrize("size", [10, 21, 255])
def test_no_element_is_computed_twice_where_memory_is_shared(size: int) -> None:
    """TVM lets a stage write into what it reads if nothing else does; a tail that overlaps would be computed twice."""
    x = image(3, size)

    def build(v: Any) -> Any:
        def stages(a: Any) -> Any:
            turned = te.compute((3, size), lambda i, j: a[i, size - 1 - j] * 2.0, name="turned")
            total = te.compute((3, size), lambda i, j: turned[i, j] + turned[i, size - 1 - j], name="total")
            return te.compute((3, size), lambda i, j: turned[i, j] * 3.0 + total[2 - i, j], name="result")

        return relax.BlockBuilder.current().emit_te(stages, v)

    found, rules = run(build, x)
    assert set(rules.split("+")) == {"injective"}
    turned = x[:, ::-1] * 2
    close(found, turned * 3 + (turned + turned[:, ::-1])[::-1], ROUNDING)


def test_what_no_rule_knows() -> None:
    """The place of the largest number is two results at once: the loops stay, shared among the threads."""
    x = image(3, 37)
    found, rules = run(lambda v: relax.op.argmax(v, axis=1), x)
    assert rules.startswith("none, parallel")
    np.testing.assert_array_equal(found, x.argmax(axis=1))


def test_views_stay_views() -> None:
    """TVM makes a view of a reshape, if the function still looks like one."""
    where = machine()
    with where.target:
        module = legalized(lambda v: relax.op.nn.relu(relax.op.reshape(relax.op.exp(v), (6, 4))), [(2, 3, 4)])
        report = schedules.report(schedules.apply(module, where.target))
    assert all(rule in ("injective", "view") for rule in report.values())
