"""Fewer groups for a convolution, by block-diagonal weights: what `diagonalwise` and `grouped-to-dense` share.

A convolution of G groups has weights (M, C/G, ...): output i is of group i // (M/G), and reads the C/G input channels
of that group alone. Let r = G/g neighbouring groups become one, for any g that divides G. A new group has r * C/G input
channels, of which output i reads those of the p-th old group in it:

    W'[i, p * C/G : (p + 1) * C/G] = W[i],    p = (i // (M/G)) mod r,    and 0 elsewhere

Strides, pads, dilations and biases stay. The result is the same but for added zeros, in whichever order the engine sums
them; an Inf or NaN in one channel, however, reaches every output of its new group (0 * Inf is NaN). The weights grow
r-fold, and so do the multiplications.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from dnc.errors import PassError
from dnc.graph.builder import lazy
from dnc.graph.rewriting import add_initializer, attribute, constant_array

__all__ = ["LIMIT", "channels_of", "check_names", "chosen", "groups_of", "merge_groups"]

LIMIT = 64 << 20
"""Bytes that the new weights of one layer may have: with all channels of a late layer in one block they would outgrow
the whole network (1152 channels, 5 x 5: 133 MB)."""


def groups_of(node: ir.Node) -> int:
    """The group count of a convolution."""
    return int(attribute(node, "group", 1))


def channels_of(node: ir.Node) -> int:
    """The input channels of a convolution, 0 where its weights have no known shape."""
    weights = node.inputs[1]
    per_group = weights.shape[1] if weights is not None and weights.shape is not None else 0
    return groups_of(node) * per_group if isinstance(per_group, int) else 0


def merge_groups(node: ir.Node, groups: int, graph: ir.Graph) -> str:
    """Gives a convolution `groups` groups, a divisor of those it has, in place; returns why not.

    The weights are computed when they are written, and are new ones: others may read the old, which eliminate-dead-code
    removes if not.
    """
    value = node.inputs[1]
    weights = constant_array(value)
    if value is None or weights is None:
        return "the weights are computed"
    old = groups_of(node)
    filters, channels, *kernel = weights.shape.numpy()
    merged = old // groups
    shape = (filters, merged * channels, *kernel)
    size = math.prod(shape) * weights.dtype.itemsize
    if size > LIMIT:
        return f"the weights would take {size / 1e6:.0f} MB, more than {LIMIT / 1e6:.0f} MB"

    def dense() -> npt.NDArray[Any]:
        plain = weights.numpy()
        blocks = plain.reshape(groups, merged, filters // old, channels, *kernel)
        wide = np.zeros((groups, merged, filters // old, merged, channels, *kernel), plain.dtype)
        for position in range(merged):
            wide[:, position, :, position] = blocks[:, position]
        return wide.reshape(shape)

    node.replace_input_with(1, add_initializer(graph, lazy(dense, weights, f"{value.name}.blocks", shape=shape)))
    node.attributes["group"] = ir.AttrInt64("group", groups)
    return ""


def chosen(model: ir.Model, only: Collection[str] | None) -> list[ir.Node]:
    """The nodes to look at: those of these names, or all; raises PassError if the model has none of a name."""
    if only is None:
        return list(model.graph)
    check_names(only, model)
    return [node for node in model.graph if node.name in only]


def check_names(names: Collection[str], model: ir.Model) -> None:
    """Raises PassError if the model has no nodes of these names."""
    unknown = sorted(set(names) - {node.name for node in model.graph})
    if unknown:
        raise PassError(f"the graph has no node {unknown[0]}", hint="it was chosen for another graph")
