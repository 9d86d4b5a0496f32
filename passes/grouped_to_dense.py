"""Grouped convolutions as ones of fewer groups, by block-diagonal weights.

The algebra is that of `block_diagonal`: r = G / groups neighbouring groups become one, and their weights the blocks of
its diagonal. That is r times the arithmetic, in matrix products r times as wide: it pays where the groups are so narrow
that an engine's grouped kernel is idle most of the time.

Applies to 1 < G < C. G = C is depthwise, which is for `diagonalwise`. Refuses counts that do not divide G, weights that
are computed, and weights that would become larger than `block_diagonal.LIMIT`. An Inf or NaN in one channel reaches
every output of its new group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import onnx_ir as ir

from dnc.errors import PassError
from dnc.graph.rewriting import Remarks
from dnc.passes import Pass, passes
from dnc.passes.shared.block_diagonal import channels_of, chosen, groups_of, merge_groups
from dnc.runtime.options import Option, whole


@passes.register
class GroupedToDense(Pass):
    """Grouped Conv -> Conv of fewer groups, block-diagonal weights.

    Args:
        only: the groups that are left of each of these nodes, by name; no other node is rewritten then, and `groups` is
            not used.

    Raises:
        PassError: a group count is below 1.
    """

    name: ClassVar[str] = "grouped-to-dense"
    tolerance: ClassVar[float] = 1e-5
    """As `diagonalwise`'s: some 1e-7 a layer, which depth adds up."""

    applies_to: ClassVar[str] = "grouped Conv that is not depthwise"
    known_options: ClassVar[Sequence[Option]] = (Option("groups", "1", "how many groups are left", whole(1, 1 << 16)),)
    needs: ClassVar[str] = "grouped convolution"

    def __init__(self, *, only: Mapping[str, int] | None = None, **values: Any) -> None:
        super().__init__(**values)
        self.only = only
        for groups in (self.options["groups"], *(only or {}).values()):
            if groups < 1:
                raise PassError(f"groups={groups} must be at least 1", hint="1 makes the convolution dense")

    def rewrite(self, model: ir.Model) -> Remarks:
        remarks = Remarks()
        for node in chosen(model, self.only):
            groups = groups_of(node) if node.op_type == "Conv" else 1
            wanted = self.options["groups"] if self.only is None else self.only[node.name or ""]
            if groups == 1:
                if self.only is not None:
                    remarks.miss(node, "no grouped convolution")
            else:
                reason = _refusal(node, groups, wanted) or merge_groups(node, wanted, model.graph)
                remarks.tell(node, f"{groups} groups -> {wanted}", reason)
        return remarks


def _refusal(node: ir.Node, groups: int, wanted: int) -> str:
    if groups == channels_of(node):
        return "depthwise, which is for diagonalwise"
    if groups <= wanted:
        return f"it has no more than {groups} groups"
    return f"{wanted} does not divide {groups} groups" if groups % wanted else ""
