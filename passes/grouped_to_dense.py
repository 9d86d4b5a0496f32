"""Grouped convolutions as ones of fewer groups, by block-diagonal weights.

The algebra is that of `block_diagonal`: r = G / groups neighbouring groups become one, and their weights the blocks of
its diagonal. That is r times the arithmetic, in matrix products r times as wide: it pays where the groups are so narrow
that an engine's grouped kernel is idle most of the time.

Applies to 1 < G < C. G = C is depthwise, which is for `diagonalwise`. Refuses counts that do not divide G, weights that
are computed, and weights that would become larger than `block_diagonal.LIMIT`. An Inf or NaN in one channel reaches
every output of its new group.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import onnx_ir as ir

from dnc.errors import DncError
from dnc.graph.rewriting import Remarks
from dnc.passes import Pass, passes
from dnc.passes.block_diagonal import channels_of, chosen, groups_of, merge_groups


@passes.register
class GroupedToDense(Pass):
    """Grouped Conv -> Conv of fewer groups, block-diagonal weights.

    Args:
        groups: how many groups are left.
        only: the groups that are left of each of these nodes, by name; no other node is rewritten then, and `groups` is
            not used.

    Raises:
        DncError: a group count is below 1.
    """

    name: ClassVar[str] = "grouped-to-dense"
    tolerance: ClassVar[float] = 1e-5
    """As `diagonalwise`'s: some 1e-7 a layer, which depth adds up."""

    applies_to: ClassVar[str] = "grouped Conv that is not depthwise"

    def __init__(self, *, groups: int = 1, only: Mapping[str, int] | None = None) -> None:
        for each in (groups, *(only or {}).values()):
            if each < 1:
                raise DncError(f"groups={each} must be at least 1", hint="1 makes the convolution dense")
        self.groups = groups
        self.only = only

    def rewrite(self, model: ir.Model) -> Remarks:
        """Rewrites every grouped convolution, or those of `only`."""
        remarks = Remarks()
        for node in chosen(model, self.only):
            groups = groups_of(node) if node.op_type == "Conv" else 1
            wanted = self.groups if self.only is None else self.only[node.name or ""]
            if groups == 1:
                if self.only is not None:
                    remarks.miss(node, "no grouped convolution")
            elif reason := _refusal(node, groups, wanted) or merge_groups(node, wanted, model.graph):
                remarks.miss(node, reason)
            else:
                remarks.apply(node, f"{groups} groups -> {wanted}")
        return remarks


def _refusal(node: ir.Node, groups: int, wanted: int) -> str:
    if groups == channels_of(node):
        return "depthwise, which is for diagonalwise"
    if groups <= wanted:
        return f"it has no more than {groups} groups"
    return f"{wanted} does not divide {groups} groups" if groups % wanted else ""
