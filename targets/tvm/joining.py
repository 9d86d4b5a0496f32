"""Which functions become one, where TVM's analysis of their loops would not find it, or has no form for it.

`dnc.targets.tvm.emit.builder.JOINS` says of a function that it

    sums        adds up products, and what is computed element by element after it can be computed with it
    elements    computes element by element, though it reads a table at places that TVM cannot follow
    source      computes element by element from one input, with which it is computed whoever else reads that

FuseOps knows the first two by their number. It joins an operator with one that alone reads it: a value that is rounded
to 8 bits for some of its readers, and read as it is or rounded otherwise by others, would go through memory once more
for each of them. So `joined` puts each such rounding into the function that computes the value, which then gives
several results; the value itself is one of them only if it is still read. FuseTIR makes loops of that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tvm import relax, tirx

from dnc.targets.tvm.calls import Graph, Joining, Part, parts_of
from dnc.targets.tvm.emit.builder import JOINS

__all__ = ["annotated", "joined"]

_PATTERNS = {"elements": 0, "sums": 4, "source": 8}
"""Of FuseOps: element by element, a sum whose results can be computed with, and what joins nothing."""


def annotated(module: Any) -> Any:
    """The module after AnnotateTIROpPattern, with what `JOINS` says."""
    changed = {}
    for variable, function in module.functions.items():
        kind = _joins(function)
        if kind:
            changed[variable] = function.with_attr("op_pattern", _PATTERNS[kind])
    if changed:
        module = module.clone()
        module.update(changed)
    return module


def _joins(function: Any) -> str:
    if not isinstance(function, tirx.PrimFunc) or function.attrs is None:
        return ""
    return str(function.attrs[JOINS]) if JOINS in function.attrs else ""


@dataclass
class _Plan:
    """Results that a binding is to give."""

    roundings: list[Any] = field(default_factory=list)
    """Bindings."""
    kept: bool = False
    """Whether the value itself is read by others."""


def joined(module: Any) -> Any:
    """The module after FuseOps, with what joins its source in the functions that compute it."""
    plans = _plans(module, Graph(module["main"]))
    return _Rounding(module, plans).joined() if plans else module


def _plans(module: Any, graph: Graph) -> Mapping[Any, _Plan]:
    """Plans by the variables that are rounded."""
    plans: dict[Any, _Plan] = {}
    for binding in graph.made.values():
        parts = parts_of(module, binding)
        if len(parts) != 1 or _joins(module[parts[0].call.args[0]]) != "source":
            continue
        source = parts[0].given[0]
        if source in graph.made and parts_of(module, graph.made[source]):
            plans.setdefault(source, _Plan()).roundings.append(binding)
    # What a rounding gives is not rounded again; if it is, that stays a function of its own.
    roundings = [binding.var for plan in plans.values() for binding in plan.roundings]
    plans = {source: plan for source, plan in plans.items() if source not in roundings}
    for source, plan in plans.items():
        plan.kept = not graph.alone(source, *plan.roundings)
    return plans


@relax.expr_functor.mutator
class _Rounding(Joining):
    """Replaces calls by those of functions with several results."""

    def __init__(self, module: Any, plans: Mapping[Any, _Plan]) -> None:
        super().__init__(module)
        self._plans = plans
        self._taken = {binding.var for plan in plans.values() for binding in plan.roundings}

    def visit_var_binding_(self, binding: Any) -> None:
        if binding.var in self._taken:
            return
        plan = self._plans.get(binding.var)
        if plan is None:
            super().visit_var_binding_(binding)
            return
        parts: list[Part] = parts_of(self.module, binding)
        name = (parts[0].call.args[0] if len(parts) == 1 else binding.value.op).name_hint
        for rounding in plan.roundings:
            parts += parts_of(self.module, rounding)
        results = [binding.var] if plan.kept else []
        self.emit(parts, [*results, *(rounding.var for rounding in plan.roundings)], f"{name}_round")
