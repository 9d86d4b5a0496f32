"""Computes large max-pools from smaller ones.

With stride 1, and padding that counts as -inf and is smaller than the window, pools compose, along each axis by itself:

    pool(k1, begin1, end1) then pool(k2, begin2, end2)  =  pool(k1 + k2 - 1, begin1 + begin2, end1 + end2)

because a window of windows is a window, and the inner windows that the outer padding leaves out hold nothing inside
the map that the first (last) inner window does not hold as well: it reaches back to the first (on to the last) pixel.
A maximum has no rounding, so the results are equal to the bit.

1. A pool beside a smaller one of the same input takes that one's result, with the window that is missing. SPP's 5, 9
   and 13 become three chained 5s: on ONNX Runtime's CPU, whose cost is the window's area, 2.5 to 4 times faster.
2. A pool of 9 or more with no smaller one beside it becomes a chain of 5s and a rest, where its padding keeps the size
   of the map: 9 twice, 13 three times as fast. Below that it does not pay; windows of more than 64, which are lowered
   one axis at a time (dnc/darknet/layers/maxpool.py), would be long chains for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir

from dnc.graph.rewriting import Remarks, add_node, attribute
from dnc.passes import Pass, passes

_STEP = 5
_LONE = 9
"""The smallest window that case 2 splits: 7 as 5 and 3 gains nothing worth a node."""
_LARGEST = 64
"""The largest one."""


@passes.register
class MergePools(Pass):
    """MaxPool of a large window -> MaxPool of the result of a smaller one."""

    name: ClassVar[str] = "merge-pools"
    tolerance: ClassVar[float] = 0.0

    applies_to: ClassVar[str] = "MaxPool with stride 1 beside a smaller one, or of 9 x 9 and more"

    def rewrite(self, model: ir.Model) -> Remarks:
        """Applies case 1 until it applies nowhere, then case 2 to what is left; its parts may serve others in turn."""
        remarks = Remarks()
        graph = model.graph
        applied = True
        while applied:
            applied = False
            while _share(graph, remarks):
                pass
            remarks.missed.clear()
            for node in list(graph):
                if node.op_type != "MaxPool" or max(attribute(node, "kernel_shape", [0])) < _LONE:
                    continue
                applied |= remarks.tell(node, "a chain of smaller pools", _split(node, graph))
        return remarks


def _share(graph: ir.Graph, remarks: Remarks) -> bool:
    """Applies case 1 once to every pool that has a smaller one beside it; whether there was any."""
    beside: dict[ir.Value, list[ir.Node]] = {}
    for node in graph:
        if node.op_type == "MaxPool" and not _unsuitable(node) and node.inputs[0] is not None:
            beside.setdefault(node.inputs[0], []).append(node)
    found = False
    for nodes in beside.values():
        # From the largest to the smallest: what a pool is made of then still has its own window.
        falling = sorted(nodes, key=lambda node: _area(_windows(node)), reverse=True)
        # Of those that are alike, the first will do for all.
        kinds: dict[tuple[Window, ...], ir.Node] = {}
        for node in falling:
            kinds.setdefault(tuple(_windows(node)), node)
        places = {windows: place for place, windows in enumerate(kinds)}
        each = list(kinds.items())
        shared = False
        for node in falling:
            for windows, smaller in each[places[tuple(_windows(node))] + 1 :]:
                rest = _rest(_windows(node), windows)
                if rest is not None:
                    remarks.apply(node, f"made of the pool of {_text(windows)} beside it")
                    node.replace_input_with(0, smaller.outputs[0])
                    _set_windows(node, rest)
                    shared = True
                    break
        if shared:
            _sort(graph, nodes[0], falling[::-1])
        found |= shared
    return found


def _sort(graph: ir.Graph, first: ir.Node, wanted: Sequence[ir.Node]) -> None:
    """Puts the pools of one input in the wanted order, where the first of them stands in the graph."""
    place = wanted.index(first)
    for node in wanted:
        if node is not first:
            graph.remove(node)
    graph.insert_before(first, wanted[:place])
    graph.insert_after(first, wanted[place + 1 :])


def _split(node: ir.Node, graph: ir.Graph) -> str:
    """Case 2; returns why not."""
    reason = _unsuitable(node)
    if reason:
        return reason
    windows = _windows(node)
    if any(begin + end != size - 1 for size, begin, end in windows):
        return "its padding changes the size of the map"
    if max(size for size, _, _ in windows) > _LARGEST:
        return "so many smaller pools would take no less time"
    while max(size for size, _, _ in windows) > _STEP:
        step = [_part(window) for window in windows]
        rest = _rest(windows, step)
        assert rest is not None
        attributes = {**node.attributes, **_attributes(step)}
        inner = add_node(graph, node, "MaxPool", [node.inputs[0]], attributes)
        inner.outputs[0].shape, inner.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
        node.replace_input_with(0, inner.outputs[0])
        windows = rest
    _set_windows(node, windows)
    return ""


Window = tuple[int, int, int]
"""Size and padding, at the beginning and at the end, along one axis."""


def _part(window: Window) -> Window:
    """A window of at most _STEP with its share of the padding, which keeps the size of the map."""
    size, begin, _ = window
    step = min(_STEP, size)
    share = begin * (step - 1) // (size - 1) if size > 1 else 0
    return step, share, step - 1 - share


def _rest(large: Sequence[Window], small: Sequence[Window]) -> list[Window] | None:
    """The windows that make `large` of `small`; None where there are none."""
    rest = [(k - k0 + 1, b - b0, e - e0) for (k, b, e), (k0, b0, e0) in zip(large, small, strict=True)]
    return rest if _area(rest) > 1 and all(0 <= b < k and 0 <= e < k for k, b, e in rest) else None


def _unsuitable(node: ir.Node) -> str:
    """Why a pool does not compose; empty where it does."""
    if max(attribute(node, "strides", [1])) > 1 or max(attribute(node, "dilations", [1])) > 1:
        return "it skips pixels"
    if len(node.outputs) > 1:
        return "it gives the places of the maxima as well"
    if attribute(node, "auto_pad", "NOTSET") != "NOTSET":
        return "the engine chooses its padding"
    return "" if all(max(begin, end) < size for size, begin, end in _windows(node)) else "it pads more than its window"


def _windows(node: ir.Node) -> list[Window]:
    sizes = attribute(node, "kernel_shape", [])
    pads = attribute(node, "pads", [0] * 2 * len(sizes))
    return list(zip(sizes, pads[: len(sizes)], pads[len(sizes) :], strict=True))


def _attributes(windows: Sequence[Window]) -> dict[str, ir.Attr]:
    sizes, begins, ends = zip(*windows, strict=True)
    return {"kernel_shape": ir.AttrInt64s("kernel_shape", sizes), "pads": ir.AttrInt64s("pads", [*begins, *ends])}


def _set_windows(node: ir.Node, windows: Sequence[Window]) -> None:
    node.attributes.update(_attributes(windows))


def _area(windows: Sequence[Window]) -> int:
    return math.prod(size for size, _, _ in windows)


def _text(windows: Sequence[Window]) -> str:
    return "x".join(str(size) for size, _, _ in windows)
