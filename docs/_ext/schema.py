"""engine.json as a JSON schema, made from the types of `Manifest`, and a page with what each field says."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Mapping
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from dnc.runtime import decoding, manifest
from dnc.runtime.decoding import Head
from dnc.runtime.manifest import Manifest
from dnc.runtime.preprocessing import COLORS, INTERPOLATIONS, MODES, Preprocessing
from docs._ext.text import attribute_texts, code, definitions, prose

__all__ = ["pages", "schema"]

FOLDER = "reference/engine"
FILE = "engine.schema.json"
_SIMPLE: Mapping[Any, Mapping[str, Any]] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    NoneType: {"type": "null"},
    Any: {},
}
_DIGEST = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_FILES = {
    "description": "The engine's own files: the size and sha256 of each.",
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "properties": {"size": {"type": "integer", "minimum": 0}, "sha256": _DIGEST},
        "required": ["size", "sha256"],
    },
}
_WORDS = {
    "input_dtype": ("float32", "uint8"),
    "decode": ("host", "graph", "graph+nms"),
    "mode": MODES,
    "color": COLORS,
    "interpolation": INTERPOLATIONS,
}
"""The words that text may be."""


@cache
def schema() -> Mapping[str, Any]:
    """The schema, of draft 2020-12."""
    whole = _record(Manifest, without=("labels",))
    whole["properties"] = {
        "schema": {
            "description": "The version of this form; a higher one was written by a newer dnc.",
            "type": "integer",
            "maximum": manifest.SCHEMA,
        },
        **whole["properties"],
        "files": _FILES,
        "sha256": {"description": "Of all the rest, as JSON with sorted keys and no line breaks.", **_DIGEST},
    }
    missing = set(manifest._OPTIONAL)
    whole["required"] = ["schema", *(name for name in whole["required"] if name not in missing), "files", "sha256"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "engine.json",
        "description": "What a folder that `dnc compile` wrote says of its engine.",
        **whole,
    }


def _heads() -> list[type[Head]]:
    kinds = [kind for kind in vars(decoding).values() if inspect.isclass(kind) and issubclass(kind, Head)]
    return [kind for kind in kinds if "kind" in vars(kind)]


def _record(kind: type, *, without: tuple[str, ...] = (), fixed: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A frozen dataclass as an object; all of its fields are written, but those that may be left out by `to_json`."""
    hints = get_type_hints(kind)
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        if dataclasses.is_dataclass(base):
            texts |= attribute_texts(base)
    properties: dict[str, Any] = dict(fixed or {})
    for field in dataclasses.fields(kind):
        if field.name not in without:
            said = {"description": " ".join(texts[field.name].split())} if field.name in texts else {}
            properties[field.name] = said | _typed(hints[field.name], _WORDS.get(field.name))
    required = [field.name for field in dataclasses.fields(kind) if field.name in properties]
    return {"type": "object", "properties": properties, "required": [*(fixed or ()), *required]}


def _typed(hint: Any, words: tuple[str, ...] | None = None) -> dict[str, Any]:
    """What JSON has for a type."""
    if words:
        return {"enum": list(words)}
    if hint in _SIMPLE:
        return dict(_SIMPLE[hint])
    if hint is Preprocessing:
        optional = ("crop", "interpolation")
        record = _record(Preprocessing)
        return {**record, "required": [name for name in record["required"] if name not in optional]}
    if hint is Head:
        return {"oneOf": [_record(kind, fixed={"kind": {"const": kind.kind}}) for kind in _heads()]}
    origin, of = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return {"anyOf": [_typed(each) for each in of]}
    if origin is tuple:
        if of[-1] is Ellipsis:
            return {"type": "array", "items": _typed(of[0])}
        return {"type": "array", "prefixItems": [_typed(each) for each in of], "minItems": len(of), "maxItems": len(of)}
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _typed(of[1])}
    raise TypeError(f"{hint} has no JSON")


def pages() -> Mapping[str, str]:
    """The page, and the schema as a file beside it."""
    whole = schema()
    rows = []
    for name, value in whole["properties"].items():
        always = "" if name in whole["required"] else " May be missing."
        rows.append((code(name), f"{prose(value.get('description', ''))} *{_words(value)}.*{always}".strip()))
    heads = [f"### {kind.kind}\n\n{_fields(kind)}" for kind in _heads()]
    parts = [
        "# engine.json",
        prose(manifest.__doc__ or ""),
        f"[{FILE}]({FILE}) is the same as a JSON schema, for other programs.",
        "## Fields",
        definitions(rows),
        "## preprocessing",
        prose(Preprocessing.__doc__ or ""),
        _fields(Preprocessing),
        "## heads",
        *heads,
    ]
    return {
        f"{FOLDER}/index.md": "\n\n".join(parts) + "\n",
        f"{FOLDER}/{FILE}": json.dumps(whole, indent=1) + "\n",
    }


def _fields(kind: type) -> str:
    rows = [
        (code(name), f"{prose(value.get('description', ''))} *{_words(value)}.*".strip())
        for name, value in _record(kind)["properties"].items()
    ]
    return definitions(rows)


def _words(value: Mapping[str, Any]) -> str:
    """A type in words, which begin a sentence."""
    if "enum" in value:
        return f"One of {', '.join(map(code, value['enum']))}"
    if "anyOf" in value:
        first, *rest = (_words(each) for each in value["anyOf"])
        return " or ".join([first, *(each[:1].lower() + each[1:] for each in rest)])
    if value.get("type") == "array":
        return "A list"
    words = {"string": "Text", "integer": "A whole number", "number": "A number", "boolean": "true or false"}
    return words.get(value.get("type", ""), "An object" if value.get("type") == "object" else "null")
