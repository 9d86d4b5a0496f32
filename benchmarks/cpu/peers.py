"""Other programs on the same network: ONNX Runtime and OpenVINO as their manuals show them, Darknet's own library."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dnc.errors import TargetError

__all__ = ["SETTLE", "darknet", "onnx_runtime", "openvino"]

SETTLE = 0.02
"""Seconds that each runs untimed before it is timed, because threads of the one before it still spin."""

_SHIM = """
#include "darknet.h"
#undef load_network_custom
network *opened(char *cfg, char *weights) {
    network *net = load_network_custom(cfg, weights, 0, 1);
    calculate_binary_weights(*net);
    return net;
}
"""


def onnx_runtime(path: Path, x: Any, threads: int) -> Callable[[], object]:
    """ONNX Runtime on the plain ONNX of a network."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"input": x})


def openvino(path: Path, x: Any, threads: int) -> Callable[[], object]:
    """OpenVINO on the plain ONNX of a network, in float32."""
    import openvino as library

    config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = library.Core().compile_model(str(path), "CPU", config).create_infer_request()
    return lambda: request.infer({"input": x})


def darknet(
    home: Path, cfg: Path, weights: Path, x: npt.NDArray[np.float32], threads: int, scratch: Path
) -> Callable[[], object]:
    """Darknet, prepared as `darknet detector test` prepares a network: weights of XNOR layers become bits.

    Args:
        home: Darknet's folder, with libdarknet.so: `make LIBSO=1 AVX=1 OPENMP=1 libdarknet.so`.
        scratch: a folder for what calls it.

    Raises:
        TargetError: it is not built, or there is no gcc.
    """
    # OpenMP reads these when it is loaded. Its threads would spin in the way of whoever has the next turn.
    os.environ |= {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    source, built = scratch / "darknet.c", scratch / "libopened.so"
    source.write_text(_SHIM, encoding="utf-8")
    library = home.absolute() / "libdarknet.so"
    command = ["gcc", "-w", "-shared", "-fPIC", f"-I{home / 'include'}", f"-I{home / '3rdparty/stb/include'}"]
    command += ["-o", str(built), str(source), str(library), f"-Wl,-rpath,{library.parent}"]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        last = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1]
        raise TargetError(f"Darknet's library cannot be called: {last}") from error
    opened = ctypes.CDLL(str(built))
    opened.opened.restype = opened.network_predict_ptr.restype = ctypes.c_void_p
    net = ctypes.c_void_p(opened.opened(os.fsencode(cfg), os.fsencode(weights)))
    given = np.ascontiguousarray(x).ctypes.data_as(ctypes.c_void_p)
    # `x` is kept, whose memory it reads.
    return lambda x=x: opened.network_predict_ptr(net, given)  # type: ignore[misc]
