"""The JSON schema of engine.json, against engines."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dnc.compiler.compiling import compile as compile_network
from dnc.runtime.manifest import MANIFEST
from docs._ext.schema import schema

Check = Callable[[Any], list[str]]
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def check() -> Check:
    """The places that are wrong in an engine.json."""
    jsonschema: Any = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(schema())
    validator = jsonschema.Draft202012Validator(schema())
    return lambda value: [error.json_path for error in validator.iter_errors(value)]


def _written(cfg: Path, **options: Any) -> Any:
    """What engine.json of a network says."""
    compile_network(cfg, target="onnx", out=cfg.with_suffix(".engine"), verify=False, **options)
    return json.loads((cfg.with_suffix(".engine") / MANIFEST).read_text("utf-8"))


@pytest.mark.parametrize(
    ("network", "options"),
    [("yolo", {}), ("yolo2", {"decode": "graph+nms"}), ("classifier", {"input": "u8"}), ("crnn", {}), ("vector", {})],
)
def test_engines_are_as_the_schema_says(network: str, options: dict[str, Any], check: Check, write: Write) -> None:
    written = _written(write(network), **options)
    assert check(written) == []
    assert set(schema()["properties"]) >= set(written)


def test_what_no_engine_says_is_found(check: Check, write: Write) -> None:
    whole = _written(write("yolo"))
    wrong: list[tuple[list[Any], Any, str]] = [
        (["decode"], "elsewhere", "$.decode"),
        (["heads", 0, "kind"], "yolo99", "$.heads[0]"),
        (["outputs"], None, "$.outputs"),
        (["files", "model.onnx", "sha256"], "x", "$.files['model.onnx'].sha256"),
        (["preprocessing", "width"], "wide", "$.preprocessing"),
    ]
    for keys, value, place in wrong:
        fields = inner = copy.deepcopy(whole)
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        assert check(fields) == [place]
    del whole["outputs"]
    assert check(whole) == ["$"]
