"""Routes without detours: every case with its names, and what stays as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.graph.serialization import check
from dnc.passes import passes
from tests.models import model, ops, outputs, same

R = np.random.default_rng(0)
IN = "float[1,2,4,4] a, float[1,3,4,4] b, float[1,2,4,4] c"


def build(body: str, results: str, inputs: str = IN) -> ir.Model:
    arrays = {f"n{number}": np.array([number]) for number in range(9)} | {"minus2": np.array([-2])}
    used = {name: array for name, array in arrays.items() if f" {name}," in body or f" {name})" in body}
    return model(f"agraph ({inputs}) => ({results}) {{ {body} }}", **used)


def inputs_of(built: ir.Model, name: str) -> list[str | None]:
    """What the node that makes a value reads."""
    (node,) = (node for node in built.graph if any(value.name == name for value in node.outputs))
    return [value.name if value is not None else None for value in node.inputs]


def simplified(built: ir.Model, count: int) -> list[str]:
    """Runs the pass, compares to the bit, runs it again; returns the refusals."""
    before = outputs(built)
    optimization = passes["simplify-concat"]()
    remarks = optimization.rewrite(built)
    assert remarks.count == count
    check(built, "the pass")
    same(outputs(built), before, 0)
    assert optimization.rewrite(built).count == 0
    return [remark.text for remark in remarks.missed]


AB = "ab = Concat <axis=1> (a, b) "
Y7 = "float[1,7,4,4] y"

JOINS = {
    "first": (AB + "y = Concat <axis=1> (ab, c)", Y7, ["a", "b", "c"], 1),
    "last": (AB + "y = Concat <axis=1> (c, ab)", Y7, ["c", "a", "b"], 1),
    "counted from the end": (AB.replace("=1", "=-3") + "y = Concat <axis=1> (c, ab)", Y7, ["c", "a", "b"], 1),
    "twice": (
        AB + "abc = Concat <axis=1> (ab, c)  y = Concat <axis=1> (a, abc)", "float[1,9,4,4] y", ["a", "a", "b", "c"], 2
    ),
    "two": (
        AB + "ca = Concat <axis=1> (c, a)  y = Concat <axis=1> (ab, ca)", "float[1,9,4,4] y", ["a", "b", "c", "a"], 1
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", JOINS)
def test_concat_of_concat(name: str) -> None:
    """Case 1."""
    body, results, expected, count = JOINS[name]
    built = build(body, results)
    assert simplified(built, count) == []
    assert ops(built) == ["Concat"]
    assert inputs_of(built, "y") == expected


STAYS = {
    "another axis": (AB + "y = Concat <axis=2> (ab, ab)", "float[1,5,8,4] y", []),
    "read by others": (
        AB + "y = Concat <axis=1> (ab, c)  z = Abs(ab)", f"{Y7}, float[1,5,4,4] z", ["the inner one is read by others"]
    ),
    "an output": (AB + "y = Concat <axis=1> (ab, c)", f"{Y7}, float[1,5,4,4] ab", ["the inner one is read by others"]),
    "a slice across parts": (
        AB + "y = Slice(ab, n1, n4, n1)", "float[1,3,4,4] y", ["its ends lie within parts of the concatenation"]
    ),
    "a slice in steps": (AB + "y = Slice(ab, n0, n5, n1, n2)", "float[1,3,4,4] y", []),
    "a slice along another axis": (AB + "y = Slice(ab, n0, n2, n2)", "float[1,5,2,4] y", []),
    "a slice of no concatenation": ("d = Abs(b)  y = Slice(d, n0, n2, n1)", "float[1,2,4,4] y", []),
    "a slice whose ends are computed": (
        AB + "m = Abs( n2)  y = Slice(ab, n0, m, n1)  z = Abs(y)", "float[1,2,4,4] z", []
    ),
    "all, of an output": (
        "d = Abs(b)  y = Slice(d, n0, n3, n1)", "float[1,3,4,4] y", ["a graph output needs a name of its own"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STAYS)
def test_refuses(name: str) -> None:
    body, results, reasons = STAYS[name]
    built = build(body, results)
    text = str(built)
    assert simplified(built, 0) == reasons
    assert str(built) == text


ABC = "abc = Concat <axis=1> (a, b, c) "
SLICES = {
    # name: body, channels of s, operators left, what s's reader reads
    "one part": (ABC + "s = Slice(abc, n2, n5, n1)", 3, ["Abs"], ["b"]),
    "one part, from the end": (ABC + "s = Slice(abc, minus2, n7, n1)", 2, ["Abs"], ["c"]),
    "beyond the end": (ABC + "s = Slice(abc, n5, n8, n1, n1)", 2, ["Abs"], ["c"]),
    "two parts": (ABC + "s = Slice(abc, n0, n5, n1)", 5, ["Concat", "Abs"], None),
    "within a part": (ABC + "s = Slice(abc, n3, n4, n1)", 1, ["Slice", "Abs"], None),
    "within a part of a part": (
        AB + "abc = Concat <axis=1> (ab, c)  u = Neg(ab)  s = Slice(abc, n1, n2, n1)",
        1, ["Concat", "Neg", "Slice", "Abs"], None,
    ),
    "everything": (ABC + "s = Slice(abc, n0, n7, n1)", 7, ["Concat", "Abs"], None),
}  # fmt: skip


@pytest.mark.parametrize("name", SLICES)
def test_slice_of_concat(name: str) -> None:
    """Cases 2 and 3."""
    body, channels, left, reads = SLICES[name]
    results = f"float[1,{channels},4,4] y" + (", float[1,5,4,4] u" if "Neg" in left else "")
    built = build(f"{body} y = Abs(s)", results)
    assert simplified(built, 2 if name == "within a part of a part" else 1) == []
    assert ops(built) == left
    if reads is not None:
        assert inputs_of(built, "y") == reads


def test_a_part_that_is_an_output() -> None:
    """An output keeps a producer and a name of its own."""
    built = build(ABC + "y = Slice(abc, n2, n5, n1)", "float[1,3,4,4] y")
    simplified(built, 1)
    assert [value.name for value in built.graph.outputs] == ["y"]


def test_joining_lets_a_slice_see_the_parts() -> None:
    """The slice lies across the inner concatenation, but not across its parts."""
    body = AB + "abc = Concat <axis=1> (ab, c)  s = Slice(abc, n2, n7, n1)  y = Abs(s)"
    built = build(body, "float[1,5,4,4] y")
    simplified(built, 2)
    assert ops(built) == ["Concat", "Abs"]
    assert inputs_of(built, built.graph[0].outputs[0].name or "") == ["b", "c"]


UP = 'mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"'
UPSAMPLED = f"u = Resize <{UP}> (x, , f) "
CONV = "c = Conv(u, w, p) "


def upsampling(body: str, results: str = "float[1,4,6,9] y", factors: tuple[float, ...] = (1, 1, 2, 3)) -> ir.Model:
    arrays: dict[str, npt.NDArray[Any]] = {
        "f": np.array(factors, np.float32),
        "w": R.normal(0, 1, (4, 2, 1, 1)),
        "v": R.normal(0, 1, (4, 4, 1, 1)),
        "k": R.normal(0, 1, (4, 2, 3, 3)),
        "p": R.normal(0, 1, 4),
        "q": R.uniform(1, 2, 4),
        "s": np.array(0.5),
        "t": R.normal(0, 1, (1, 4, 1, 1)),
        "m": R.normal(0, 1, (1, 1, 6, 9)),
    }
    used = {name: array for name, array in arrays.items() if f" {name}," in body or f" {name})" in body}
    return model(f"agraph (float[1,2,3,3] x) => ({results}) {{ {body} }}", **used)


MOVES = {
    "conv": (UPSAMPLED + "y = Conv(u, w, p)", ["Conv"]),
    "activation": (UPSAMPLED + CONV + "y = LeakyRelu(c)", ["Conv", "LeakyRelu"]),
    "normalization": (UPSAMPLED + CONV + "y = BatchNormalization(c, q, p, p, q)", ["Conv", "BatchNormalization"]),
    "swish": (UPSAMPLED + CONV + "g = Sigmoid(c)  y = Mul(c, g)", ["Conv", "Sigmoid", "Mul"]),
    "mish": (
        UPSAMPLED + CONV + "g = Softplus(c)  h = Tanh(g)  y = Mul(c, h)", ["Conv", "Softplus", "Tanh", "Mul"]
    ),
    "two convolutions": (UPSAMPLED + CONV + "d = Relu(c)  y = Conv(d, v)", ["Conv", "Relu", "Conv"]),
    "two that meet": (UPSAMPLED + CONV + "d = Conv(u, w)  y = Add(c, d)", ["Conv", "Conv", "Add"]),
    "scale and shift": (UPSAMPLED + CONV + "d = Mul(c, s)  y = Add(d, t)", ["Conv", "Mul", "Add"]),
    "limits": (UPSAMPLED + CONV + "y = Clip(c, , s)", ["Conv", "Clip"]),
}  # fmt: skip


@pytest.mark.parametrize("name", MOVES)
def test_upsampling_moves_behind(name: str) -> None:
    """Case 4, over everything that acts on pixels."""
    body, before = MOVES[name]
    built = upsampling(body)
    simplified(built, 1)
    assert ops(built) == [*before, "Resize"]
    assert [value.name for value in built.graph.outputs] == ["y"]


@pytest.mark.parametrize(
    ("body", "left"),
    [
        # Up to where everything meets, and no further.
        (UPSAMPLED + CONV + "d = Relu(c)  y = Add(d, m)", ["Conv", "Relu", "Resize", "Add"]),
        (UPSAMPLED + CONV + "g = Sigmoid(c)  h = GlobalAveragePool(c)  y = Mul(h, g)",
         ["Conv", "Resize", "Sigmoid", "GlobalAveragePool", "Mul"]),
    ],
)  # fmt: skip
def test_upsampling_stops(body: str, left: list[str]) -> None:
    built = upsampling(body)
    simplified(built, 1)
    assert ops(built) == left


FIXED = {
    "3 x 3": (UPSAMPLED + "y = Conv <pads=[1,1,1,1]> (u, k)", "float[1,4,6,9] y", "read by Conv"),
    "padding": (UPSAMPLED + "y = Conv <pads=[1,1,1,1]> (u, w)", "float[1,4,8,11] y", "read by Conv"),
    "stride": (UPSAMPLED + "y = Conv <strides=[2,3]> (u, w)", "float[1,4,3,3] y", "read by Conv"),
    "concatenated": (UPSAMPLED + "y = Concat <axis=1> (u, u)", "float[1,4,6,9] y", "read by Concat"),
    "forks": (UPSAMPLED + "y = Conv(u, w)  z = Abs(u)", "float[1,4,6,9] y, float[1,2,6,9] z", "read by Abs, Conv"),
    "an output": (UPSAMPLED + "y = Conv(u, w)", "float[1,4,6,9] y, float[1,2,6,9] u", "read by Conv"),
    "the result alone": (UPSAMPLED, "float[1,2,6,9] u", "read by no node"),
    "with extent": (UPSAMPLED + "y = Mul(u, m)", "float[1,2,6,9] y", "read by Mul"),
    "linear": (
        UPSAMPLED.replace("nearest", "linear", 1) + "y = Conv(u, w)", "float[1,4,6,9] y", "does not repeat pixels"
    ),
    "other pixels": (
        UPSAMPLED.replace("floor", "ceil") + "y = Conv(u, w)", "float[1,4,6,9] y", "does not repeat pixels"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FIXED)
def test_upsampling_stays(name: str) -> None:
    body, results, reason = FIXED[name]
    assert simplified(upsampling(body, results), 0) == [reason]


def test_upsampling_by_a_fraction_stays() -> None:
    built = upsampling(UPSAMPLED + "y = Conv(u, w)", "float[1,4,4,9] y", (1, 1, 1.5, 3))
    assert simplified(built, 0) == ["does not repeat pixels"]


CFG = """[net]
width=8
height=6
channels=3
[convolutional]
batch_normalize=1
filters=6
size=3
pad=1
activation=mish
[upsample]
stride=2
scale=0.5
[convolutional]
batch_normalize=1
filters=4
activation=swish
[convolutional]
filters=4
size=3
pad=1
activation=leaky
[route]
layers=-1,-2
[route]
layers=-1,-3
[convolutional]
filters=4
activation=linear
"""


@pytest.mark.parametrize("keep", [(), range(7)])
def test_of_a_cfg(keep: tuple[int, ...]) -> None:
    """Routes of routes and upsampling as Darknet writes them; what must be an output does not move."""
    built = lower(Network.parse(CFG).with_random_weights(0), layers=keep)
    before = outputs(built)
    optimization = passes["simplify-concat"]()
    # With all layers kept, the scale of the upsampling layer, which is its last node, still comes first.
    assert optimization.rewrite(built).count == (1 if keep else 2)
    check(built, "the pass")
    same(outputs(built), before, 0)
    resize = next(node for node in built.graph if node.op_type == "Resize")
    assert resize.outputs[0].name == ("layer001" if keep else "layer002")
    assert optimization.rewrite(built).count == 0


def test_the_name_of_an_upsampled_layer_goes() -> None:
    """What was layer001 is nowhere in the graph any more, so nothing may have its name."""
    built = lower(Network.parse(CFG.replace("scale=0.5\n", "")).with_random_weights(0))
    passes["simplify-concat"]().rewrite(built)
    resize = next(node for node in built.graph if node.op_type == "Resize")
    assert resize.outputs[0].name == "layer002"
    assert "layer001" not in {value.name for node in built.graph for value in node.outputs}


@settings(max_examples=50)
@given(data=st.data())
def test_random_routes(data: st.DataObject) -> None:
    """Concatenations and slices of what came before, in any order; the last few values are outputs."""
    channels = {"a": 2, "b": 3, "c": 2}
    body = ""
    for number in range(data.draw(st.integers(1, 7))):
        name = f"v{number}"
        if data.draw(st.booleans()):
            parts = data.draw(st.lists(st.sampled_from(sorted(channels)), min_size=1, max_size=3))
            body += f"{name} = Concat <axis={data.draw(st.sampled_from([1, -3]))}> ({', '.join(parts)}) "
            channels[name] = sum(channels[part] for part in parts)
        else:
            source = data.draw(st.sampled_from(sorted(channels)))
            stop = data.draw(st.integers(1, min(8, channels[source])))
            start = data.draw(st.integers(0, stop - 1))
            body += f"{name} = Slice({source}, n{start}, n{stop}, n1) "
            channels[name] = stop - start
    wanted = sorted(set(channels) - {"a", "b", "c"})[-data.draw(st.integers(1, 3)) :]
    built = build(body, ", ".join(f"float[1,{channels[name]},4,4] {name}" for name in wanted))
    before = outputs(built)
    optimization = passes["simplify-concat"]()
    optimization.rewrite(built)
    check(built, "the pass")
    same(outputs(built), before, 0)
    assert optimization.rewrite(built).count == 0
