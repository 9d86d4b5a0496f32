"""Computes models on the GPU of emulator/driver.cpp: `python -m tests.targets.cuda.worker FOLDER`.

For each NAME.onnx of the folder, with its inputs in NAME.npz, writes its outputs in order to NAME.out.npz, and to
NAME.json which rules wrote its functions; for further inputs in NAME.1.npz and so on, to NAME.1.out.npz. In NAME.arch
may stand another GPU than sm_90, as sm_80, behind it tf32 or bf16, or new for kinds of kernels that no GPU has run; in
NAME.rank the rank that all functions take, in NAME.form the number of the tile that products take, and how many blocks
share it, and behind that mma, wgmma or bits where it is one of MMA_TILES, of WGMMA_TILES or of BIT_TILES.

Each tensor has memory of its own, of its exact size: an access outside of it is one outside of all memory. The driver
must be in LD_LIBRARY_PATH before this process starts.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from tests.targets.cuda.emulation import make_kernels


def _form(number: int, parts: int, kind: str, _: Any, tiles: Sequence[Any], *__: Any) -> list[tuple[float, Any]]:
    """In place of forms.py's `forms_of`."""
    from dnc.targets.cuda.schedules.bits import BIT_TILES
    from dnc.targets.cuda.schedules.forms import Form
    from dnc.targets.cuda.schedules.mma import MMA_TILES
    from dnc.targets.cuda.schedules.warpgroups import WGMMA_TILES

    if not tiles:
        return []
    if kind:
        tile = {"mma": MMA_TILES, "wgmma": WGMMA_TILES, "bits": BIT_TILES}[kind][number]
        # Of the other kinds one that is slower.
        return [(0.0, Form(tile, parts))] if tile in tiles else [(1.0, Form(tiles[0]))]
    return [(0.0, Form(tiles[number % len(tiles)], parts))]


def main(folder: Path) -> None:
    import tvm
    from tvm import relax

    from dnc.runtime.runners.cuda.device import Device
    from dnc.targets.cuda.emit import emit
    from dnc.targets.cuda.lowering import Network, fill_of
    from dnc.targets.cuda.schedules import bits, forms, tensors

    def told(path: Path, suffix: str, otherwise: str) -> str:
        file = path.with_suffix(suffix)
        return file.read_text() if file.exists() else otherwise

    usual = Device.of
    relax.transform.StaticPlanBlockMemory = lambda: tvm.transform.Sequential([])
    for path in sorted(folder.glob("*.onnx")):
        library = path.with_suffix(".so")
        (arch, *allowed), rank = told(path, ".arch", "sm_90").split(), int(told(path, ".rank", "0"))
        form = told(path, ".form", "")
        if form:
            number, parts, kind = (*form.split(), "")[:3]
            fixed = partial(_form, int(number), int(parts), kind)
            for module in (bits, forms, tensors):
                module.forms_of = fixed  # type: ignore[attr-defined]
        Device.of = lambda archs, rank=rank: dataclasses.replace(usual(archs), rank=rank)  # type: ignore
        model = ir.load(path)
        host = tvm.target.Target({"kind": "llvm"})
        compile_kernels = partial(make_kernels, library=library, driver=folder)
        switches = {name: name in allowed for name in ("tf32", "new")}
        module = emit(model, bfloat16="bf16" in allowed, fill=fill_of(usual([arch]), switches["new"]))
        network = Network(module, [arch], host, compile_kernels, **switches)
        lowered = network.lowered()
        machine = relax.VirtualMachine(lowered.executable, tvm.cuda(), "naive")
        pixels = [value.name for value in model.graph.inputs if value.dtype == ir.DataType.UINT8]
        for several in ("", *(f".{number}" for number in range(1, 100))):
            given = path.with_suffix(f"{several}.npz")
            if not given.exists():
                break
            feeds = {name: tvm.runtime.tensor(array, tvm.cuda()) for name, array in np.load(given).items()}
            for name in pixels:
                feeds[name] = machine["prepare"](feeds[name])
            outputs = machine["main"](*(feeds[value.name] for value in model.graph.inputs))
            np.savez(path.with_suffix(f"{several}.out.npz"), *(output.numpy() for output in outputs))
        path.with_suffix(".json").write_text(json.dumps(lowered.rules))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
