"""Functions that FuseOps made, taken apart into their calls of loops, of which others are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import ir, relax, tirx

from dnc.targets.tvm.provenance import bindings
from dnc.targets.tvm.schedules.rewriting import is_call

__all__ = ["Graph", "Joining", "Part", "parts_of", "shape_of"]


@dataclass(frozen=True)
class Part:
    """A call of loops: what it makes, and what it is given, by variables of `main` or of one of its functions."""

    made: Any
    call: Any
    given: tuple[Any, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what it makes; () if it is not fixed."""
        return shape_of(self.call)


class Graph:
    """Who makes and who reads the variables of `main`."""

    def __init__(self, main: Any) -> None:
        self.made = {binding.var: binding for binding in bindings(main)}
        """The binding of each."""
        self.readers: dict[Any, list[Any]] = {}
        """The bindings that read each."""
        for binding in self.made.values():
            for variable in _used(binding.value):
                self.readers.setdefault(variable, []).append(binding)
        self._results = _used(main.body.body)

    def alone(self, variable: Any, *known: Any) -> bool:
        """Whether some bindings read a variable, and nobody else does."""
        own = self.readers.get(variable, [])
        return variable not in self._results and len(own) == len(known) and all(each in known for each in own)


def _used(expr: Any) -> list[Any]:
    used: dict[Any, None] = {}

    def visit(node: Any) -> None:
        if isinstance(node, relax.Var):
            used[node] = None

    relax.analysis.post_order_visit(expr, visit)
    return list(used)


def parts_of(module: Any, binding: Any) -> list[Part]:
    """The calls of loops that a binding of `main` makes; what the last one makes is the binding's variable."""
    value = binding.value
    if is_call(value):
        return [Part(binding.var, value, tuple(value.args[1]))]
    if not isinstance(value, relax.Call) or not isinstance(value.op, ir.GlobalVar):
        return []
    function = module[value.op]
    inner = list(bindings(function))
    if not inner or not all(is_call(part.value) for part in inner) or not inner[-1].var.same_as(function.body.body):
        return []
    known: dict[Any, Any] = dict(zip(function.params, value.args, strict=True))
    # A function may be called more than once: what it makes is told apart by the call.
    known |= {part.var: (binding.var, part.var) for part in inner[:-1]}
    known[inner[-1].var] = binding.var
    return [
        Part(known[part.var], part.value, tuple(known.get(given, given) for given in part.value.args[1]))
        for part in inner
    ]


def shape_of(expr: Any) -> tuple[int, ...]:
    """The shape of an expression; () if it is not fixed, or of a variable of a function."""
    sides = getattr(getattr(expr, "ty", None), "shape", None)
    if sides is None or not all(isinstance(side, tirx.IntImm) for side in sides):
        return ()
    return tuple(int(side) for side in sides)


class Joining(relax.PyExprMutator):  # type: ignore[misc]
    """Replaces calls by those of new functions."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.module = module
        self._made: dict[Any, Any] = {}
        """What inner variables have become."""

    def joined(self) -> Any:
        """The module with `main` rewritten."""
        self.builder_.update_func(self.module.get_global_var("main"), self.visit_expr(self.module["main"]))
        return self.builder_.get()

    def emit(self, parts: Sequence[Part], results: Sequence[Any], name: str) -> None:
        """Calls a new function of some calls, whose results are known by these variables from then on."""
        inside = {part.made for part in parts}
        given = list(dict.fromkeys(each for part in parts for each in part.given if each not in inside))
        arguments = [self._made[each] if each in self._made else self.visit_expr(each) for each in given]
        parameters = [relax.Var(f"p{place}", argument.ty) for place, argument in enumerate(arguments)]
        function = _primitive(parts, dict(zip(given, parameters, strict=True)), parameters, results)
        value = self.builder_.emit(relax.Call(self.builder_.add_func(function, name), arguments))
        for place, result in enumerate(results):
            item = value if len(results) == 1 else self.builder_.emit(relax.TupleGetItem(value, place))
            if isinstance(result, tuple):
                self._made[result] = item
            else:
                self.set_var_remap(result, item)


def _primitive(parts: Sequence[Part], known: dict[Any, Any], parameters: Sequence[Any], results: Sequence[Any]) -> Any:
    """A function that makes some calls."""
    builder = relax.BlockBuilder()
    with builder.function("main", parameters, attrs={"Primitive": True}, private=True):
        with builder.dataflow():
            for part in parts:
                arguments = relax.Tuple([known[given] for given in part.given])
                call = relax.Call(
                    part.call.op,
                    [part.call.args[0], arguments, *part.call.args[2:]],
                    part.call.attrs,
                    part.call.ty_args,
                )
                known[part.made] = builder.emit(call)
            made = [known[result] for result in results]
            result = builder.emit_output(made[0] if len(made) == 1 else relax.Tuple(made))
        builder.emit_func_output(result)
    return builder.get()["main"]
