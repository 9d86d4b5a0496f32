"""Which functions become one so that a convolution writes its results where others want them, and nobody moves them:
`placed` joins it

    with a concatenation that alone reads its results, of these and others of as many channels, or a multiple
    with what takes some of its channels apart

(dnc.targets.cuda.schedules.joint). No GPU has run such kernels yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm import relax

from dnc.targets.tvm.calls import Graph, Joining, parts_of, shape_of

__all__ = ["placed"]

_EVEN = 8
"""What numbers of channels are multiples of."""


def placed(module: Any) -> Any:
    """The module after FuseOps with such functions joined."""
    concatenations, slices = _found(module, Graph(module["main"]))
    if not concatenations and not slices:
        return module
    return _Placing(module, concatenations, slices).joined()


def _found(module: Any, graph: Graph) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """Convolutions by their concatenations; what takes a part of the results of others, by these."""
    concatenations: dict[Any, Any] = {}
    slices: dict[Any, Any] = {}
    order = list(graph.made)
    for binding in graph.made.values():
        parts = parts_of(module, binding)
        if len(parts) != 1 or len(parts[0].shape) != 4 or parts[0].shape[3] % _EVEN:
            continue
        name, shape = parts[0].call.args[0].name_hint, parts[0].shape
        shapes = [shape_of(given) for given in parts[0].given]
        if any(len(each) != 4 or each[:3] != shape[:3] or each[3] % _EVEN for each in shapes):
            continue
        if name.startswith("concatenate") and sum(each[3] for each in shapes) == shape[3]:
            given = [each for each in parts[0].given if each in graph.made]
            last = max(given, key=order.index, default=None)
            own = shape_of(last)
            if last is None or any(each[3] % own[3] for each in shapes) or not graph.alone(last, binding):
                continue
            if _is_convolution(module, graph.made[last]) and given.count(last) == 1:
                concatenations[binding.var] = graph.made[last]
        elif name.startswith("strided_slice") and len(shapes) == 1:
            source = parts[0].given[0]
            if source in graph.made and _is_convolution(module, graph.made[source]):
                slices.setdefault(source, binding)
    taken = {binding.var for binding in concatenations.values()}
    return concatenations, {source: binding for source, binding in slices.items() if source not in taken}


def _is_convolution(module: Any, binding: Any) -> bool:
    """Whether a function begins with a convolution and goes on; all that it makes are maps of one shape and type."""
    parts = parts_of(module, binding)
    if len(parts) < 2 or len(parts[0].given) != 2:
        return False
    data, weight = (shape_of(each) for each in parts[0].given)
    same = all(part.shape == parts[0].shape for part in parts)
    dtypes = {str(part.call.ty.dtype) for part in parts} | {str(parts[0].given[0].ty.dtype)}
    floats = len(dtypes) == 1 and dtypes <= {"float16", "float32"}
    return len(data) == 4 and len(weight) == 4 and weight[3] == parts[0].shape[3] and same and floats


@relax.expr_functor.mutator
class _Placing(Joining):
    def __init__(self, module: Any, concatenations: Mapping[Any, Any], slices: Mapping[Any, Any]) -> None:
        super().__init__(module)
        self._concatenations, self._slices = concatenations, slices
        bindings = [*concatenations.values(), *slices.values()]
        self._left_out = {binding.var for binding in bindings}

    def visit_var_binding_(self, binding: Any) -> None:
        before, behind = self._concatenations.get(binding.var), self._slices.get(binding.var)
        if before is not None:
            parts = [*parts_of(self.module, before), *parts_of(self.module, binding)]
            self.emit(parts, [binding.var], f"{before.value.op.name_hint}_concatenate")
        elif behind is not None:
            parts = [*parts_of(self.module, binding), *parts_of(self.module, behind)]
            self.emit(parts, [binding.var, behind.var], f"{binding.value.op.name_hint}_slice")
        elif binding.var not in self._left_out:
            super().visit_var_binding_(binding)
