"""A page of the package's extras, made from pyproject.toml: what each is for, and what it installs."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

from docs._ext.text import code, definitions

__all__ = ["FOR", "pages"]

ROOT = Path(__file__).resolve().parents[2]
FOR = {
    "compiler": "The commands and the compiler, without an engine's library.",
    "onnx": "Compile for ONNX Runtime on CPUs, and run it.",
    "openvino": "Compile for OpenVINO, and run it.",
    "tvm": "Compile for CPUs by Apache TVM, and run it.",
    "cuda": "Compile for NVIDIA's GPUs by ONNX Runtime, and run it with TensorRT or CUDA.",
    "cuda-tvm": "Compile for NVIDIA's GPUs by Apache TVM, and run it.",
    "nvcc": "NVIDIA's compiler, where there is no CUDA toolkit.",
    "myriad": "Compile for the Myriad X; its compiler comes by `dnc toolchain install myriad`.",
    "runtime-onnx": "Only run engines for ONNX Runtime.",
    "runtime-openvino": "Only run engines for OpenVINO.",
    "runtime-tvm": "Only run engines of target tvm.",
    "runtime-cuda": "Only run engines of target cuda, back end onnxruntime.",
    "runtime-cuda-tvm": "Only run engines of target cuda, back end tvm.",
    "cluster": "`--workers` and `--scheduler` of `dnc eval` and `dnc calibrate`.",
    "eval": "`dnc eval` with COCO's own figures.",
    "plot": "`dnc bench --plot`.",
    "video": "Videos and cameras.",
    "all": "ONNX Runtime and OpenVINO.",
    "docs": "What `make docs` takes.",
    "dev": "What developing dnc takes.",
    "release": "What makes the distributions, and looks them over.",
}
"""What each extra is for; a test holds the names to those of pyproject.toml."""


def pages() -> Mapping[str, str]:
    """The page by its place."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras: Mapping[str, list[str]] = project["optional-dependencies"]
    rows = [
        (code(f"[{name}]"), f"{FOR.get(name, '')} Installs {', '.join(map(code, extras[name]))}.".strip())
        for name in sorted(extras, key=list(FOR).index if set(extras) <= set(FOR) else None)
    ]
    parts = [
        "# Extras of the package",
        f"The package is called `{project['name']}`. It is not on PyPI yet: from a checkout, "
        '`pip install ".[onnx]"` installs it with the extra `onnx`; several are separated by commas. '
        f"Without an extra it has what runs engines, and no engine's library: "
        f"{', '.join(map(code, project['dependencies']))}.",
        definitions(rows),
    ]
    return {"reference/extras/index.md": "\n\n".join(parts) + "\n"}
