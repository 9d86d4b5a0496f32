"""Puts the kernels of the rules into a module."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import tvm
from tvm import ir, relax, s_tir, tirx

from dnc.targets.tvm.schedules.binary import binary
from dnc.targets.tvm.schedules.dense import product
from dnc.targets.tvm.schedules.depthwise import depthwise
from dnc.targets.tvm.schedules.fallback import fallback
from dnc.targets.tvm.schedules.injective import injective
from dnc.targets.tvm.schedules.kernel import Kernel, Packed
from dnc.targets.tvm.schedules.loops import STACK, Stmt, sequence
from dnc.targets.tvm.schedules.machine import Machine
from dnc.targets.tvm.schedules.pointwise import pointwise
from dnc.targets.tvm.schedules.reduction import reduction
from dnc.targets.tvm.schedules.signs import MASKS, Signed, importing, signed, signs
from dnc.targets.tvm.schedules.spatial import spatial
from dnc.targets.tvm.schedules.stages import Segment, Stage, Unmatched, inlined, read, segments, with_maximum
from dnc.targets.tvm.schedules.window import match
from dnc.targets.tvm.schedules.winograd import winograd

__all__ = [
    "RULE",
    "Choice",
    "Rule",
    "apply",
    "calls",
    "is_call",
    "is_fixed",
    "report",
    "rewrite",
    "scheduled",
    "written",
]

RULE = "dnc.rule"
"""The attribute of a function that names the rules that wrote it."""


def report(module: Any) -> dict[str, str]:
    """The rules of each function, by its name."""
    return {
        name.name_hint: str(function.attrs[RULE])
        for name, function in module.functions.items()
        if isinstance(function, tirx.PrimFunc) and function.attrs is not None and RULE in function.attrs
    }


_CALL = "relax.call_tir"


@dataclass(frozen=True)
class _Written:
    """A function written anew, and which of its parameters it wants in another form."""

    function: Any
    packed: Mapping[int, Packed]
    variable: Any = None
    """What calls name it by."""


Rule = Callable[[Segment, Sequence[Stage]], Kernel]
"""Writes the kernel of a segment among the stages of a function; raises Unmatched if it knows none."""


Choice = int | Any
"""How a function is written in place of the usual way: with the tile of a rank (`Machine.rank`), or as this function,
which is scheduled already."""


def apply(module: Any, target: Any, chosen: Mapping[str, Choice] | None = None) -> Any:
    """The module with every function scheduled for a target of kind llvm, some of them as is chosen, by their names."""
    machine = Machine.of(target)
    own = {
        name: _rule(replace(machine, rank=given)) if isinstance(given, int) else given
        for name, given in (chosen or {}).items()
    }
    return rewrite(module, _rule(machine), lambda function: fallback(function, machine), own, packs=True)


def _rule(machine: Machine) -> Rule:
    def rule(segment: Segment, stages: Sequence[Stage]) -> Kernel:
        anchor, *rest = (with_maximum(stage) for stage in (segment.anchor, *segment.rest))
        kernel = _kernel(replace(segment, anchor=anchor, rest=rest, scope=STACK), stages, machine)
        return replace(kernel, body=importing(MASKS, kernel.body)) if isinstance(segment, Signed) else kernel

    return rule


def scheduled(module: Any, name: str, target: Any, rank: int) -> Any:
    """Writes a function of a module with the tile of this rank; None if no rule matches it."""
    return written(module, name, _rule(replace(Machine.of(target), rank=rank)), packs=True)


def written(module: Any, name: str, rule: Rule, further: bool = False, packs: bool = False) -> Any:
    """Writes a function of a module by a rule; None if the rule does not match it."""
    constant = _constant_arguments(calls(module)).get(name, frozenset())
    try:
        return _write(module[name], rule, constant, further, packs).function
    except Unmatched:
        return None


def packed(module: Any, name: str, rule: Rule, further: bool = False) -> Mapping[int, Packed]:
    """The parameters that `written` wants in another form, by their places."""
    constant = _constant_arguments(calls(module)).get(name, frozenset())
    try:
        return _write(module[name], rule, constant, further).packed
    except Unmatched:
        return {}


def rewrite(
    module: Any,
    rule: Rule,
    other: Callable[[Any], tuple[Any, str]] | None = None,
    own: Mapping[str, Rule | Any] | None = None,
    further: bool = False,
    packs: bool = False,
) -> Any:
    """The module with every function as a rule writes it.

    Args:
        rule: what writes a kernel.
        other: what is done with a function for which there is no rule, and what to say of it; if not given, nothing.
        own: rules of single functions, or what takes their places as it is, with the same parameters; by name.
        further: see `inlined`.
        packs: whether bits of numbers are packed by the kernels that compute these, where they can: see signs.py.
    """
    constant = _constant_arguments(calls(module))
    builder = relax.BlockBuilder()
    written: dict[str, _Written] = {}
    for variable, function in module.functions.items():
        if isinstance(function, tirx.PrimFunc):
            name = variable.name_hint
            mine = (own or {}).get(name, rule)
            try:
                if function.attrs is not None and RULE in function.attrs:
                    one = _Written(function, {})
                elif isinstance(mine, tirx.PrimFunc):
                    one = _Written(mine.with_attr(RULE, "MetaSchedule"), {})
                else:
                    one = _write(function, mine, constant.get(name, frozenset()), further, packs)
            except Unmatched as error:
                plain, done = (function, "as it is") if other is None else other(function)
                one = _Written(plain.with_attr(RULE, f"none, {done}: {error}"), {})
            # A variable knows the types of its function's parameters.
            written[name] = replace(one, variable=builder.add_func(one.function, name))
    result = builder.get()
    for variable, function in module.functions.items():
        if isinstance(function, relax.Function):
            result.update_func(variable, _Arguments(written).visit_expr(function))
    return result.with_attrs(module.attrs) if module.attrs else result


def calls(module: Any) -> list[Any]:
    """Finds all calls of functions of the module."""
    expressions: list[Any] = []

    def visit(expr: Any) -> None:
        if is_call(expr):
            expressions.append(expr)

    for function in module.functions.values():
        if isinstance(function, relax.Function):
            relax.analysis.post_order_visit(function, visit)
    return expressions


def is_call(expr: Any) -> bool:
    """Whether an expression calls a function of loops."""
    return isinstance(expr, relax.Call) and isinstance(expr.op, ir.Op) and expr.op.name == _CALL


def is_fixed(function: Any) -> bool:
    """Whether all dims of a function's parameters are numbers."""
    return all(isinstance(dim, tirx.IntImm) for parameter in function.params for dim in parameter.shape)


def _constant_arguments(several: Sequence[Any]) -> dict[str, frozenset[int]]:
    """Finds the parameters of each function that every call gives a constant."""
    constants: dict[str, frozenset[int]] = {}
    for call in several:
        name = call.args[0].name_hint
        here = frozenset(place for place, given in enumerate(call.args[1]) if isinstance(given, ir.GenericConst))
        constants[name] = constants[name] & here if name in constants else here
    return constants


@relax.expr_functor.mutator
class _Arguments(relax.PyExprMutator):  # type: ignore[misc]
    """Gives each function its constants in the form that it wants."""

    def __init__(self, written: Mapping[str, _Written]) -> None:
        super().__init__()
        self._written = written

    def visit_call_(self, call: Any) -> Any:
        call = self.visit_expr_post_order(call)
        if not is_call(call) or call.args[0].name_hint not in self._written:
            return call
        written = self._written[call.args[0].name_hint]
        given = list(call.args[1])
        for place, wanted in written.packed.items():
            given[place] = relax.const(wanted.pack(given[place].value.numpy()))
        return relax.Call(call.op, [written.variable, relax.Tuple(given), *call.args[2:]], call.attrs, call.ty_args)


def _write(function: Any, rule: Rule, constant: frozenset[int], further: bool, packs: bool = False) -> _Written:
    """A function by the rules; raises Unmatched if they do not match."""
    if isinstance(function.body, s_tir.SBlockRealize) and relax.analysis.has_reshape_pattern(function):
        # TVM makes a view of it later, if it still knows it.
        return _Written(function.with_attr(RULE, "view"), {})
    stages = inlined(read(function), function.params, further)
    parts, kernels = _kernels(stages, function.params, rule, packs)
    parameters = list(function.params)
    packed: dict[int, Packed] = {}
    statements: list[Stmt] = []
    allocated: list[Any] = []
    rules: list[str] = []
    left_out = [buffer for kernel in kernels for buffer in kernel.replaces]
    for part, kernel in zip(parts, kernels, strict=True):
        if any(part.anchor.buffer.same_as(buffer) for buffer in left_out):
            continue
        for wanted in kernel.packed:
            place = next(i for i, buffer in enumerate(function.params) if buffer.same_as(wanted.given))
            if place not in constant:
                raise Unmatched(f"{kernel.rule}: the weights are no constant")
            parameters[place] = wanted.wanted
            packed[place] = wanted
        for buffer in part.kept:
            if not any(buffer.same_as(other) for other in (*function.params, *left_out)):
                allocated.append(buffer)
        statements.append(kernel.body)
        rules.append(kernel.rule)
    attributes = {"tirx.noalias": True, "s_tir": True, RULE: "+".join(rules)}
    root = s_tir.SBlock([], [], [], "root", sequence(*statements), alloc_buffers=allocated)
    body = s_tir.SBlockRealize([], True, root)
    return _Written(tirx.PrimFunc(parameters, body, attrs=tvm.ir.make_node("ir.DictAttrs", **attributes)), packed)


def _kernels(
    stages: Sequence[Stage], given: Sequence[Any], rule: Rule, packs: bool
) -> tuple[Sequence[Segment], Sequence[Kernel]]:
    """The segments and what a rule makes of them."""
    parts = segments(stages, given)
    if packs and len(signing := signed(parts, given)) < len(parts):
        with contextlib.suppress(Unmatched):
            return signing, [rule(part, stages) for part in signing]
    return parts, [rule(part, stages) for part in parts]


def _kernel(segment: Segment, stages: Sequence[Stage], machine: Machine) -> Kernel:
    """Kernel that the first matching rule makes of a segment; raises Unmatched if no rule matches."""
    kernel = signs(segment) or binary(segment, stages, machine)
    if kernel is not None:
        return kernel
    window = match(segment, stages) or product(segment)
    if window is not None:
        for rule in (winograd, depthwise, pointwise, spatial):
            kernel = rule(segment, window, machine)
            if kernel is not None:
                return kernel
    kernel = injective(segment, machine) or reduction(segment, machine)
    if kernel is not None:
        return kernel
    raise Unmatched(f"no rule for block {segment.anchor.name}")
