"""Which nodes of the graph each kernel computes: FuseOps joins operators, and keeps neither names nor order.

`dnc.targets.tvm.emit` calls every variable after the node that it is part of, and TVM's passes leave the names alone up
to FuseOps. What stands before it, and what stands behind it once the functions that it made are put back in their
places, are the same calls in another order; a call is known again by its function and by what its arguments are. What
is found is an attribute of the module, which lasts until the kernels are compiled.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator
from typing import Any

from tvm import ir, relax

from dnc.graph.work import place_of
from dnc.targets.tvm.emit.builder import MAIN, NODES, PREPARE, variable_name
from dnc.targets.tvm.schedules.rewriting import is_call

__all__ = ["kernels_of", "noted"]

_KERNELS = "dnc.kernels"
_NODE = re.compile(variable_name(0).replace("0", "([0-9]+)"))


class _Numbers:
    """A number for each value that is computed, the same for what is computed in the same way."""

    def __init__(self) -> None:
        self._known: dict[Hashable, int] = {}
        self._tuples: dict[int, list[int]] = {}
        """The numbers of what is in a tuple."""

    def of(self, expr: Any, variables: dict[Any, int]) -> int:
        """The number of an expression, of variables whose numbers are known."""
        known: int | None = variables.get(expr)
        if known is not None:
            return known
        key: Hashable
        if isinstance(expr, relax.Tuple):
            fields = [self.of(field, variables) for field in expr.fields]
            number = self._known.setdefault(("tuple", *fields), len(self._known))
            self._tuples[number] = fields
            return number
        if isinstance(expr, relax.TupleGetItem):
            given = self.of(expr.tuple_value, variables)
            if given in self._tuples:
                return self._tuples[given][int(expr.index)]
            key = ("item", expr.index, given)
        elif is_call(expr):
            key = (expr.args[0].name_hint, *(self.of(argument, variables) for argument in expr.args[1:]))
        elif isinstance(expr, relax.Call) and isinstance(expr.op, ir.Op):
            key = (expr.op.name, *(self.of(argument, variables) for argument in expr.args))
        elif isinstance(expr, relax.ShapeExpr):
            key = ("shape", str(expr))
        else:
            # Constants and inputs, which are equal only to themselves.
            key = expr
        return self._known.setdefault(key, len(self._known))

    def calls(self, module: Any) -> Iterator[tuple[int, str, int, str]]:
        """Number and variable of each call of loops, and place and function of the call that makes it, in what prepares
        images and then in `main`."""
        variables: dict[Any, int] = {}
        for place, binding in enumerate(_all_bindings(module)):
            value = binding.value
            if isinstance(value, relax.Call) and isinstance(value.op, ir.GlobalVar):
                function = module[value.op]
                own = {
                    parameter: self.of(given, variables)
                    for parameter, given in zip(function.params, value.args, strict=True)
                }
                for part in bindings(function):
                    own[part.var] = self.of(part.value, own)
                    yield own[part.var], part.var.name, place, value.op.name_hint
                variables[binding.var] = self.of(function.body.body, own)
            else:
                variables[binding.var] = self.of(value, variables)
                if is_call(value):
                    yield variables[binding.var], binding.var.name, place, value.args[0].name_hint


def _all_bindings(module: Any) -> Iterator[Any]:
    for name in (PREPARE, MAIN):
        if any(variable.name_hint == name for variable in module.get_global_vars()):
            yield from bindings(module[name])


def bindings(function: Any) -> Iterator[Any]:
    """Bindings of variables, in order."""
    for block in function.body.blocks:
        yield from block.bindings


def noted(before: Any, after: Any) -> Any:
    """`after` FuseOps, with what `before` it says of its kernels in an attribute, for `kernels_of`."""
    numbers = _Numbers()
    nodes = [str(name) for name in before.attrs[NODES]]
    names: dict[int, list[str]] = {}
    for number, variable, *_ in numbers.calls(before):
        match = _NODE.match(variable)
        names.setdefault(number, []).append(nodes[int(match[1])] if match else "")
    kernels: dict[int, list[str]] = {}
    for number, _, place, function in numbers.calls(after):
        known = names.get(number, [""])
        # Of those that are computed twice, one after the other.
        name = known.pop(0) if len(known) > 1 else known[0]
        kernels.setdefault(place, [function]).append(name)
    return after.with_attr(_KERNELS, list(kernels.values()))


def kernels_of(module: Any) -> list[tuple[str, str]]:
    """Lists for runners/tvm/instrument.py the kernels in the order of their calls, and a node of each section that they
    compute, joined by +."""
    kernels = []
    for function, *names in module.attrs[_KERNELS]:
        sections = {place_of(str(name)): str(name) for name in reversed(names)}
        sections.pop("", None)
        kernels.append((str(function), "+".join(reversed(sections.values()))))
    return kernels
