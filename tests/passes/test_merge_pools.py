"""Large max-pools are made of smaller ones, to the bit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.graph.serialization import check
from dnc.passes import merge_pools, passes
from dnc.passes.merge_pools import Window
from tests import ROOT
from tests.models import model, outputs, same


def pool(size: int, pads: str = "", *, source: str = "x", result: str = "y", more: str = "") -> str:
    half = size // 2
    padding = pads or f"{half},{half},{size - 1 - half},{size - 1 - half}"
    return f"{result} = MaxPool <kernel_shape=[{size},{size}], pads=[{padding}]{more}> ({source}) "


def build(body: str, outputs: str = "float[1,2,11,12] y") -> ir.Model:
    return model(f"agraph (float[1,2,11,12] x) => ({outputs}) {{ {body} }}")


def windows(built: ir.Model) -> list[tuple[str, str, list[int], list[int]]]:
    """Of each pool: result, what it reads, kernel_shape, pads."""
    found = []
    for node in built.graph:
        assert node.inputs[0] is not None
        sizes, pads = (list(node.attributes[name].as_ints()) for name in ("kernel_shape", "pads"))
        found.append((node.outputs[0].name or "", node.inputs[0].name or "", sizes, pads))
    return found


def test_spp() -> None:
    """5, 9 and 13 of one input: three 5s, each of the one before."""
    sides = ", ".join(f"float[1,2,11,12] {name}" for name in "abc")
    built = build(pool(5, result="a") + pool(9, result="b") + pool(13, result="c"), sides)
    before = outputs(built)
    remarks = passes["merge-pools"]().rewrite(built)
    assert sorted(text for _, text in remarks.applied) == [f"made of the pool of {n}x{n} beside it" for n in (5, 9)]
    assert windows(built) == [(r, s, [5, 5], [2, 2, 2, 2]) for r, s in ("ax", "ba", "cb")]
    same(outputs(built), before, 0)


@pytest.mark.parametrize("order", [(13, 9, 5), (9, 13, 5), (13, 5, 9)])
def test_the_order_of_the_cfg_does_not_matter(order: tuple[int, ...]) -> None:
    """A pool that stands before the smaller one moves behind it, and its readers stay behind it."""
    body = "".join(pool(size, result=f"p{size}") + f"q{size} = Abs(p{size}) " for size in order)
    built = build(body, ", ".join(f"float[1,2,11,12] q{size}" for size in order))
    before = outputs(built)
    assert passes["merge-pools"]().rewrite(built).count == 2
    check(built, "the pass")
    same(outputs(built), before, 0)
    pools = [node for node in built.graph if node.op_type == "MaxPool"]
    assert [list(node.attributes["kernel_shape"].as_ints()) for node in pools] == [[5, 5]] * 3


LONE = {
    9: [[5, 5], [5, 5]],
    10: [[5, 5], [5, 5], [2, 2]],
    13: [[5, 5], [5, 5], [5, 5]],
}


@pytest.mark.parametrize("size", LONE)
def test_alone(size: int) -> None:
    built = build(pool(size))
    before = outputs(built)
    optimization = passes["merge-pools"]()
    assert optimization.rewrite(built).count == 1
    assert [sizes for _, _, sizes, _ in windows(built)] == LONE[size]
    same(outputs(built), before, 0)
    assert optimization.rewrite(built).count == 0


ONE, TWO = "float[1,2,11,12] y", "float[1,2,11,12] a, float[1,2,11,12] y"
REFUSES = {
    "strides": (pool(9, more=", strides=[2,2]"), "float[1,2,6,6] y", ["it skips pixels"]),
    "dilations": (pool(9, "8,8,8,8", more=", dilations=[2,2]"), ONE, ["it skips pixels"]),
    "indices": (
        pool(9).replace("y =", "y, i ="), f"{ONE}, int64[1,2,11,12] i", ["it gives the places of the maxima as well"]
    ),
    "auto_pad": (
        'y = MaxPool <kernel_shape=[9,9], auto_pad="SAME_UPPER"> (x)', ONE, ["the engine chooses its padding"]
    ),
    "no padding": (pool(9, "0,0,0,0"), "float[1,2,3,4] y", ["its padding changes the size of the map"]),
    "small": (pool(7), ONE, []),
    "of different inputs": ("z = Abs(x) " + pool(3, result="a") + pool(5, source="z"), TWO, []),
    "other padding": (pool(3, "2,2,0,0", result="a") + pool(5, "1,1,3,3"), TWO, []),
    "of one size": (pool(5, result="a") + pool(5), TWO, []),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSES)
def test_refuses(name: str) -> None:
    body, results, reasons = REFUSES[name]
    built = build(body, results)
    remarks = passes["merge-pools"]().rewrite(built)
    assert remarks.count == 0
    assert [remark.text for remark in remarks.missed] == reasons


def test_refuses_more_padding_than_the_window() -> None:
    """A graph may say so, though engines do not take it; the proof does not hold for it."""
    built = build(pool(3, "3,3,0,0", result="a") + pool(9), "float[1,2,12,13] a, float[1,2,11,12] y")
    remarks = passes["merge-pools"]().rewrite(built)
    assert [remark.text for remark in remarks.applied] == ["a chain of smaller pools"]


def test_names_and_places_stay() -> None:
    text = "[net]\nwidth=12\nheight=10\nchannels=2\n[maxpool]\nsize=13\nstride=1\n"
    built = lower(Network.parse(text).with_random_weights(0))
    passes["merge-pools"]().rewrite(built)
    assert [value.name for value in built.graph.outputs] == ["layer000"]
    assert len({node.metadata_props["dnc.where"] for node in built.graph}) == 1


@settings(max_examples=60)
@given(data=st.data(), height=st.integers(1, 12))
def test_random_pools(data: st.DataObject, height: int) -> None:
    """Any two windows with any padding that ONNX Runtime takes, maps smaller than the window included."""
    sizes = [(data.draw(st.integers(1, 13)), data.draw(st.integers(1, 13))) for _ in range(3)]
    body, results = "", []
    for number, (k, k1) in enumerate(sizes):
        pads = [data.draw(st.integers(0, side - 1)) for side in (k, k1, k, k1)]
        sides = (height + pads[0] + pads[2] - k + 1, 9 + pads[1] + pads[3] - k1 + 1)
        assume(min(sides) > 0)
        body += f"y{number} = MaxPool <kernel_shape=[{k},{k1}], pads=[{','.join(map(str, pads))}]> (x) "
        results.append(f"float[1,2,{sides[0]},{sides[1]}] y{number}")
    built = model(f"agraph (float[1,2,{height},9] x) => ({', '.join(results)}) {{ {body} }}")
    before = outputs(built)
    optimization = passes["merge-pools"]()
    optimization.rewrite(built)
    check(built, "the pass")
    same(outputs(built), before, 0)
    assert optimization.rewrite(built).count == 0


CFG = ROOT / "cfg"


@pytest.mark.parametrize("name", ["yolov3-spp", "yolov4", "yolov7-tiny"])
def test_real_networks(name: str) -> None:
    """Their SPP becomes three 5s, once the layers that do nothing are gone. The weights are not looked at."""
    network = Network.load(CFG / f"{name}.cfg")
    nothing = ({key: np.zeros(shape, np.float32) for key, shape in layer.weights().items()} for layer in network.layers)
    built = lower(network.with_arrays(tuple(nothing)))
    passes["eliminate-identity"]().rewrite(built)
    assert passes["merge-pools"]().rewrite(built).count == 2
    pools = [node for node in built.graph if node.op_type == "MaxPool"]
    sizes = [list(node.attributes["kernel_shape"].as_ints()) for node in pools]
    assert [size for size in sizes if size != [2, 2]] == [[5, 5]] * 3


def test_a_chain_has_an_end() -> None:
    """A window as long as two lines of 300 pixels would be 150 pools."""
    body = "y = MaxPool <kernel_shape=[1,599], pads=[0,299,0,299]> (x)"
    built = model(f"agraph (float[1,1,1,300] x) => (float[1,1,1,300] y) {{ {body} }}")
    remarks = passes["merge-pools"]().rewrite(built)
    assert [text for _, text in remarks.missed] == ["so many smaller pools would take no less time"]
    assert len(windows(built)) == 1


def test_pools_that_are_alike_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hundred beside each other, of two sizes."""
    count, looked = 200, []

    def rest(large: Sequence[Window], small: Sequence[Window]) -> list[Window] | None:
        looked.append(1)
        return compute(large, small)

    compute = merge_pools._rest
    monkeypatch.setattr(merge_pools, "_rest", rest)
    body = " ".join(pool(5 if number % 2 else 3, result=f"y{number}") for number in range(count))
    built = build(body, ", ".join(f"float[1,2,11,12] y{number}" for number in range(count)))
    before = outputs(built)
    assert passes["merge-pools"]().rewrite(built).count == count // 2
    assert len(looked) <= 3 * count
    same(outputs(built), before, 0)
