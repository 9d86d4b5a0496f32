"""What a pass may remark, read from its source: the texts that it gives to `Remarks.apply`, `miss` and `tell`, and the
reasons that its functions return."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from types import ModuleType

__all__ = ["remarks_of"]


def remarks_of(module: ModuleType) -> tuple[list[str], list[str]]:
    """What it says of what it did, and of what it left, in the order of the source; what is computed is …"""
    tree = ast.parse(inspect.getsource(module))
    named: dict[str, list[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            named.setdefault(node.targets[0].id, []).extend(_texts(node.value, {}))
    done: list[str] = []
    left: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and len(node.args) >= 2:
            kinds = {"apply": [done], "miss": [left], "tell": [done, left]}.get(node.func.attr, [])
            for texts, argument in zip(kinds, node.args[1:], strict=False):
                texts += _texts(argument, named)
        elif isinstance(node, ast.FunctionDef) and isinstance(node.returns, ast.Name) and node.returns.id == "str":
            # Functions that look whether a rewriting is possible return the reason against it.
            returned = [each.value for each in ast.walk(node) if isinstance(each, ast.Return) and each.value]
            if any(isinstance(value, ast.Constant) and value.value == "" for value in returned):
                left += [text for value in returned for text in _texts(value, {})]
    return list(dict.fromkeys(done)), list(dict.fromkeys(left))


def _texts(node: ast.expr, named: Mapping[str, list[str]]) -> list[str]:
    """The texts that an expression may be; `named` has those of names."""
    if isinstance(node, ast.Name):
        return named.get(node.id, [])
    if isinstance(node, ast.IfExp):
        return [*_texts(node.body, named), *_texts(node.orelse, named)]
    if isinstance(node, ast.BoolOp):
        return [text for value in node.values for text in _texts(value, named)]
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) and node.value else []
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
        return ["".join(map(str, parts))]
    return []
