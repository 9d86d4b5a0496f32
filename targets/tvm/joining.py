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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tvm import ir, relax, tirx

from dnc.targets.tvm.emit.builder import JOINS
from dnc.targets.tvm.provenance import bindings
from dnc.targets.tvm.schedules.rewriting import is_call

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
    main = module["main"]
    plans = _plans(module, main)
    if not plans:
        return module
    mutator = _Joining(module, plans)
    mutator.builder_.update_func(module.get_global_var("main"), mutator.visit_expr(main))
    return mutator.builder_.get()


def _plans(module: Any, main: Any) -> Mapping[Any, _Plan]:
    """Plans by the variables that are rounded."""
    made: dict[Any, Any] = {}
    plans: dict[Any, _Plan] = {}
    for binding in bindings(main):
        value = binding.value
        if is_call(value):
            if _joins(module[value.args[0]]) == "source" and value.args[1][0] in made:
                plans.setdefault(value.args[1][0], _Plan()).roundings.append(binding)
            made[binding.var] = binding
        elif isinstance(value, relax.Call) and isinstance(value.op, ir.GlobalVar):
            made[binding.var] = binding
    # What a rounding gives is not rounded again; if it is, that stays a function of its own.
    roundings = [binding.var for plan in plans.values() for binding in plan.roundings]
    plans = {source: plan for source, plan in plans.items() if source not in roundings}
    taken = {binding.var for plan in plans.values() for binding in plan.roundings}
    for binding in bindings(main):
        if binding.var not in taken:
            for used in _used(binding.value):
                if used in plans:
                    plans[used].kept = True
    return plans


def _used(value: Any) -> list[Any]:
    used: list[Any] = []
    relax.analysis.post_order_visit(value, lambda node: used.append(node) if isinstance(node, relax.Var) else None)
    return used


@relax.expr_functor.mutator
class _Joining(relax.PyExprMutator):  # type: ignore[misc]
    """Replaces calls by those of functions with several results."""

    def __init__(self, module: Any, plans: Mapping[Any, _Plan]) -> None:
        super().__init__(module)
        self._module, self._plans = module, plans
        self._taken = {binding.var for plan in plans.values() for binding in plan.roundings}

    def visit_var_binding_(self, binding: Any) -> None:
        if binding.var in self._taken:
            return
        plan = self._plans.get(binding.var)
        if plan is None:
            super().visit_var_binding_(binding)
            return
        function, given, name = _joined(self._module, binding.value, plan)
        variable = self.builder_.add_func(function, name)
        call = relax.Call(variable, [self.visit_expr(argument) for argument in given])
        results = [binding.var] if plan.kept else []
        results += [rounding.var for rounding in plan.roundings]
        value = self.builder_.emit(call)
        for place, result in enumerate(results):
            item = value if len(results) == 1 else self.builder_.emit(relax.TupleGetItem(value, place), result.name)
            self.set_var_remap(result, item)


def _joined(module: Any, value: Any, plan: _Plan) -> tuple[Any, list[Any], str]:
    """A primitive function that computes a value and its roundings; what it is given; and a name for it."""
    if isinstance(value.op, ir.GlobalVar):
        function = module[value.op]
        given, name = list(value.args), value.op.name_hint
        parts: Sequence[Any] = [(part.var, part.value) for part in bindings(function)]
        old, last = list(function.params), function.body.body
    else:
        given, name = list(value.args[1]), value.args[0].name_hint
        old = given
        last = None
        parts = [(None, value)]
    builder = relax.BlockBuilder()
    parameters = [relax.Var(f"p{place}", argument.ty) for place, argument in enumerate(given)]
    known = dict(zip(old, parameters, strict=True))

    def again(call: Any) -> Any:
        arguments = relax.Tuple([known.get(argument, argument) for argument in call.args[1]])
        return builder.emit(relax.Call(call.op, [call.args[0], arguments, *call.args[2:]], call.attrs, call.ty_args))

    with builder.function("main", parameters, attrs={"Primitive": True}, private=True):
        with builder.dataflow():
            for variable, call in parts:
                known[variable] = again(call)
            source = known[last]
            results = [source] if plan.kept else []
            for rounding in plan.roundings:
                known[rounding.value.args[1][0]] = source
                results.append(again(rounding.value))
            result = builder.emit_output(results[0] if len(results) == 1 else relax.Tuple(results))
        builder.emit_func_output(result)
    return builder.get()["main"], given, f"{name}_round"
