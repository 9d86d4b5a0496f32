"""The process that compiles for GPUs: `python -m dnc.tvm.gpu.child < request.json > reply.jsonl`.

TVM keeps compiled kernels in a module of its CUDA runtime, and otherwise their source alone. That runtime links with
NVIDIA's driver, which is not there where there is no GPU. So `dnc.tvm.gpu.process` starts this process with libraries
in its path that have the driver's names, and functions that say that there is no GPU. Nothing of that gets into the
process that the user runs.

The request:

    model           an .onnx file, ready for the target
    preprocessing   what `dnc.bundle` writes of it, for a model that takes pixels, or null
    archs           ["sm_75", ...]
    triple, mcpu    the machine that launches the kernels: see `dnc.tvm.compile.machine_for`
    linker          a C++ compiler for that machine
    compiler        see `dnc.tvm.gpu.toolkit.find_toolkit`
    library         the file to write

and the lines of the reply: {"stage": ...} as it goes on; at the end {"compiler", "archs", "ptx", "rules",
"resources"}, or {"error", "where", "hint"}.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dnc.errors import TargetError
from dnc.tvm.gpu.device import Device
from dnc.tvm.gpu.toolkit import Resources, find_toolkit

__all__ = ["lowered", "main"]

_MOST_REGISTERS = 255


def _tell(**line: Any) -> None:
    print(json.dumps(line), flush=True)


def compile_to(request: dict[str, Any]) -> dict[str, Any]:
    """Does what the request says, and gives the last line of the reply.

    Raises:
        TargetError: something refuses the network.
    """
    import onnx_ir as ir

    from dnc.preprocess import Preprocessing
    from dnc.tvm.compile import link_with, machine_for
    from dnc.tvm.emit import emit

    archs = list(request["archs"])
    toolkit = find_toolkit(request["compiler"])
    machine = machine_for(request["triple"], request["mcpu"])
    resources: dict[str, Resources] = {}

    def compile_kernels(source: str) -> bytes:
        _tell(stage=f"compiling the kernels for {', '.join(archs)}")
        with tempfile.TemporaryDirectory(prefix="dnc-cuda-") as scratch:
            code, taken = toolkit.compile(source, archs, Path(scratch))
        resources.update(taken)
        return code

    _tell(stage="scheduling")
    given = request["preprocessing"]
    module = emit(ir.load(request["model"]), None if given is None else Preprocessing.from_json(given))
    executable, rules = lowered(module, archs, machine.target, compile_kernels)
    _tell(stage="linking")
    executable.export_library(request["library"], fcompile=link_with(request["linker"], machine))
    _check(resources)
    found = {name: dataclasses.asdict(taken) for name, taken in resources.items()}
    binary, ptx = toolkit.forms(archs)
    return {"compiler": toolkit.version(), "archs": binary, "ptx": ptx, "rules": rules, "resources": found}


def lowered(
    module: Any, archs: Sequence[str], host: Any, compile_kernels: Callable[[str], bytes]
) -> tuple[Any, dict[str, str]]:
    """A Relax module as executable of TVM's, and which rules wrote each function.

    Args:
        module: as `dnc.tvm.emit` gives it.
        archs: the GPUs; the first has the fewest instructions.
        host: the tvm.target.Target of the processor that launches kernels.
        compile_kernels: makes of CUDA C++ what the driver loads.
    """
    import tvm
    import tvm_ffi
    from tvm.relax.backend.cuda import pipeline

    from dnc.tvm.compile import fused
    from dnc.tvm.gpu import schedules

    device = Device.of(archs)
    target = tvm.target.Target(
        {
            "kind": "cuda",
            "arch": archs[0],
            "max_shared_memory_per_block": device.shared,
            "max_threads_per_block": device.threads,
            "thread_warp_size": device.warp,
        },
        host=host,
    )
    config = {
        # What is unrolled is left to NVIDIA's compilers.
        "tirx.UnrollLoop": {"explicit_unroll": False},
        # It would let buffers of different types share memory, which fragments cannot be loaded from.
        "tirx.disable_storage_rewrite": True,
    }
    tvm_ffi.register_global_func("tvm_callback_cuda_compile", compile_kernels, override=True)
    with target, tvm.transform.PassContext(opt_level=3, config=config):
        module = schedules.apply(fused(module), device)
        rules = schedules.report(module)
        passes = [*pipeline.dataflow_lower_passes(target), *pipeline.finalize_passes(target)]
        return tvm.compile(module, target, relax_pipeline=tvm.transform.Sequential(passes)), rules


def _check(resources: dict[str, Resources]) -> None:
    """Raises TargetError if a kernel cannot be launched."""
    for name, taken in resources.items():
        if taken.registers > _MOST_REGISTERS or taken.shared > Device.shared:
            raise TargetError(
                f"kernel {name} takes {taken.registers} registers and {taken.shared} bytes of shared memory"
            )


def main() -> None:
    """Reads the request, and writes the reply."""
    request = json.load(sys.stdin)
    try:
        reply = compile_to(request)
    except TargetError as error:
        reply = {"error": error.message, "where": None if error.where is None else str(error.where), "hint": error.hint}
    except subprocess.CalledProcessError as error:
        reply = {"error": f"{request['linker']} cannot link: {str(error.stderr).strip()}", "where": None, "hint": ""}
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        reply = {"error": f"TVM cannot compile the network: {reason[0]}", "where": None, "hint": "please report it"}
    _tell(**reply)


if __name__ == "__main__":
    main()
