"""What must stay in float32 where a network is computed, or stored, in 16 bits: for `to-float16` and `to-bfloat16`.

Products are Conv, ConvTranspose, Gemm, MatMul and the composite BinaryConvolution: nearly all of the work and of the
weights. Float32 stay:

1. What was asked for: layers of the cfg by their numbers, operators by their type.
2. What no product comes before (preprocessing of pixels) and what none comes after (a head's activation, the decoding
   of boxes, softmax, suppression). It is little work, and coordinates need more than 11 bits: in float16 the last of
   76 columns is right to 1/32 of a cell.
3. What a comparison (Greater, Sign, a cast to integers) that a product comes after depends on: all of it. The least
   change may turn such a result, and then the output is another one. The signs that BinaryConvolution takes are such
   results, too.
4. Sections with Exp, Pow or Softmax: e^11.1 and 256^2 are more than float16 holds. BatchNormalization, by itself: a
   small variance is nothing in float16; fold-batchnorm leaves few of them.
5. What is computed with 8 bits (`dnc.passes.quantize`), and what is computed element by element of one such product
   alone: engines do that with the sums while they are in registers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any, ClassVar

import onnx.defs
import onnx_ir as ir

from dnc.errors import PassError, close_match
from dnc.graph.builder import WHERE
from dnc.graph.composites import BINARY_CONVOLUTION
from dnc.graph.rewriting import Pass
from dnc.runtime.options import Option

__all__ = ["PRODUCTS", "Keep", "ReducedPrecision", "around_products", "float32_nodes", "layer_of"]

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", BINARY_CONVOLUTION})
_SECTIONS = ("Exp", "Pow", "Softmax")
_STATISTICS = "BatchNormalization"
_MEASURES = frozenset({"Shape", "Size", "QuantizeLinear"})
"""They read floats and give integers: not from what the floats are, or only nearly the same ones, of which floats are
made again."""
_ELEMENTWISE = frozenset(
    {
        *("Abs", "Add", "Clip", "Div", "Elu", "Exp", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Max", "Min"),
        *("Mul", "Neg", "PRelu", "Relu", "Selu", "Sigmoid", "Softplus", "Sub", "Tanh"),
    }
)

_KEEP = Option(
    "keep",
    "",
    "what stays in float32 besides what must: layers (36), ranges of them (30-36), operators (Sigmoid), joined by +",
    lambda text: text.split("+") if text else [],
)


class Keep:
    """A keep-in-float32 list.

    Args:
        entries: layer numbers of the cfg ("36"), ranges of them ("30-36", both ends belong to it), types of operators
            ("Sigmoid").

    Raises:
        PassError: an entry is none of these.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        self.ranges: list[tuple[int, int]] = []
        self.types: set[str] = set()
        for entry in entries:
            if match := re.fullmatch(r"(\d+)(?:-(\d+))?", entry.strip()):
                first, last = int(match[1]), int(match[2] or match[1])
                if last < first:
                    raise PassError(f"keep={entry}: the range is empty", hint=f"write {last}-{first}")
                self.ranges.append((first, last))
            elif onnx.defs.has(entry.strip()):
                self.types.add(entry.strip())
            else:
                known = {schema.name for schema in onnx.defs.get_all_schemas()}
                hint = close_match(entry, known) or "layer numbers (36, 30-36), or operators of ONNX (Sigmoid)"
                raise PassError(f"keep={entry}: neither a layer nor an operator", hint=hint)

    def reason(self, node: ir.Node) -> str:
        """Why the node is kept; empty if it is not."""
        layer = layer_of(node)
        if layer is not None and any(first <= layer <= last for first, last in self.ranges):
            return f"layer {layer} is kept in float32"
        return f"{node.op_type} is kept in float32" if node.op_type in self.types else ""


class ReducedPrecision(Pass):
    """A pass that rounds weights or values, with the option `keep`.

    Raises:
        PassError: an entry of `keep` is neither a layer, a range of them nor an operator.
    """

    known_options: ClassVar[Sequence[Option]] = (_KEEP,)

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self.kept()

    def kept(self) -> Keep:
        """What stays in float32, as the option says."""
        return Keep(self.options["keep"])


def float32_nodes(model: ir.Model, keep: Keep, *, wide: bool = False) -> dict[ir.Node, str]:
    """The nodes that stay in float32, and why.

    Args:
        keep: what was asked for.
        wide: the 16 bits have the range of float32, so that case 4 is none.

    Raises:
        PassError: `keep` names a layer after the network's last.
    """
    nodes = list(model.graph)
    _check_layers(keep.ranges, nodes)
    after, before, deciding = around_products(nodes)
    sections: dict[str, str] = {}
    for node in nodes:
        if not wide and node.op_type in _SECTIONS and node in after and node in before:
            sections.setdefault(node.metadata_props.get(WHERE, ""), node.op_type)
    sections.pop("", None)
    eights = _eights(nodes)
    reasons = {}
    for node in nodes:
        product = node.op_type in PRODUCTS
        if reason := keep.reason(node) or eights.get(node, ""):
            reasons[node] = reason
        elif node in deciding:
            reasons[node] = "a comparison depends on it"
        elif not product and node not in after:
            reasons[node] = "it comes before all products"
        elif not product and node not in before:
            reasons[node] = "it comes after all products"
        elif wide:
            continue
        elif node.op_type == _STATISTICS:
            reasons[node] = "a small variance is nothing in float16"
        elif node.op_type in _SECTIONS:
            reasons[node] = f"{node.op_type} may leave the range of float16"
        elif (other := sections.get(node.metadata_props.get(WHERE, ""))) is not None:
            reasons[node] = f"its section has {other}, which may leave the range of float16"
    return reasons


def _eights(nodes: Iterable[ir.Node]) -> dict[ir.Node, str]:
    """Case 5."""
    reasons: dict[ir.Node, str] = {}
    products: dict[ir.Node, ir.Node] = {}
    for node in nodes:
        makers = [value.producer() for value in node.inputs if value is not None]
        if any(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers):
            reasons[node] = "it is computed with 8 bits"
            if node.op_type in PRODUCTS:
                products[node] = node
        elif node.op_type in _ELEMENTWISE:
            roots = {products.get(maker) for maker in makers if maker is not None and maker.op_type != "Constant"}
            root = roots.pop() if len(roots) == 1 else None
            if root is not None:
                products[node] = root
                reasons[node] = "it is computed with the sums of an 8-bit product"
    return reasons


def layer_of(node: ir.Node) -> int | None:
    """Darknet's number of the node's layer."""
    match = re.search(r"#(\d+)$", node.metadata_props.get(WHERE, ""))
    return int(match[1]) if match else None


def _check_layers(ranges: Collection[tuple[int, int]], nodes: Iterable[ir.Node]) -> None:
    if not ranges:
        return
    end = max((layer for node in nodes if (layer := layer_of(node)) is not None), default=-1)
    last = max(last for _, last in ranges)
    if last > end:
        raise PassError(f"keep names layer {last}, but the network's last is {end}", hint="layers count from 0")


def around_products(nodes: Collection[ir.Node]) -> tuple[set[ir.Node], set[ir.Node], set[ir.Node]]:
    """Nodes with a product before them, with one after them, and those that a comparison with one after it reads."""
    # A node that only an inner graph reads has its reader in no list: what a loop does is no product.
    following = {node: list(node.successors()) for node in nodes}
    after: set[ir.Node] = set()
    for node in nodes:
        if node.op_type in PRODUCTS or node in after:
            after.update(following[node])
    before: set[ir.Node] = set()
    deciding: set[ir.Node] = set()
    for node in reversed(list(nodes)):
        if any(other.op_type in PRODUCTS or other in before for other in following[node] if other in following):
            before.add(node)
        signs = any(other.op_type == BINARY_CONVOLUTION or other in deciding for other in following[node])
        if signs or (node in before and _compares(node)):
            deciding.add(node)
    return after, before, deciding


def _compares(node: ir.Node) -> bool:
    if node.op_type == "Sign":
        return True
    reads, gives = ([value.dtype for value in values if value is not None] for values in (node.inputs, node.outputs))
    if node.op_type in _MEASURES or not any(dtype is not None and dtype.is_floating_point() for dtype in reads):
        return False
    return any(dtype is not None and not dtype.is_floating_point() for dtype in gives)
