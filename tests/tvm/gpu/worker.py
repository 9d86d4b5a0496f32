"""Computes models on the GPU of emulator/driver.cpp: `python -m tests.tvm.gpu.worker FOLDER`.

For each NAME.onnx of the folder, with its inputs in NAME.npz, writes its outputs in order to NAME.out.npz, and to
NAME.json which rules wrote its functions. NAME.tile, if there is one, has the number of the tile to take.

The driver must be in LD_LIBRARY_PATH before this process starts.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir

from tests.tvm.gpu.emulation import make_kernels


def main(folder: Path) -> None:
    import tvm
    from tvm import relax

    from dnc.tvm.emit import emit
    from dnc.tvm.gpu.child import lowered
    from dnc.tvm.gpu.schedules import tensors, tiled

    for path in sorted(folder.glob("*.onnx")):
        sources: list[str] = []

        def compile_kernels(source: str, sources: list[str] = sources) -> bytes:
            sources.append(source)
            return b"emulated"

        chosen = path.with_suffix(".tile")
        for module in (tiled, tensors) if chosen.exists() else ():
            number = int(chosen.read_text())
            module.best_tile = lambda tiles, *_, number=number: tiles[number]  # type: ignore[attr-defined]
        model = ir.load(path)
        host = tvm.target.Target({"kind": "llvm"})
        executable, rules = lowered(emit(model), ["sm_75"], host, compile_kernels)
        os.environ["EMULATED_KERNELS"] = str(make_kernels(sources[0], path.with_suffix(".so"), folder))
        machine = relax.VirtualMachine(executable, tvm.cuda())
        feeds = np.load(path.with_suffix(".npz"))
        given = [tvm.runtime.tensor(feeds[value.name], tvm.cuda()) for value in model.graph.inputs]
        outputs = [output.numpy() for output in machine["main"](*given)]
        np.savez(path.with_suffix(".out.npz"), *outputs)
        path.with_suffix(".json").write_text(json.dumps(rules))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
