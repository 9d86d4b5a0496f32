"""A process that has one alternative at a time open: `python -m benchmarks.gpu.peer < requests.jsonl > replies.jsonl`.

    do      more                                        the reply
    open    peer, engine: a folder, or cfg and          {"seconds": how long that took, "off": largest difference from
            weights; precision, expected: a .npz        the right values by the largest of them, of the first image}
    device  runs                                        {"seconds"}: a run's on the device, of so many
    host                                                {"seconds"}: a run from an array of the host to arrays there
    close                                               {}

A process of its own for each, so that one that fails takes nothing of the others with it. What a request raises is the
reply {"error": …}.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import dnc
from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.errors import TargetError
from dnc.graph.pipeline import Pipeline
from dnc.graph.verification import error_between
from dnc.targets.cuda.serving import serve
from dnc.targets.onnx import optimizations

_WARM_UP = 3


class _Engine:
    """One of dnc's."""

    def __init__(self, folder: str, options: Mapping[str, str], x: Any) -> None:
        self._engine = dnc.load(folder, **options)
        self._x = x
        self._feeds = self._engine.inputs.feeds(x)

    def run(self) -> list[Any]:
        return list(self._engine.forward(self._x))

    def device(self, runs: int) -> float:
        return self._engine.session.device_seconds(self._feeds, runs)

    def close(self) -> None:
        self._engine.close()


class _Boxes:
    """An image goes in as bytes, boxes come out: an engine with all of that on the GPU, or not."""

    def __init__(self, folder: str, x: Any) -> None:
        self._engine = dnc.load(folder)
        generator = np.random.default_rng(0)
        # Of another size than the network's, so that they are resized.
        self._images = [generator.integers(0, 256, (480, 640, 3), np.uint8) for _ in x]

    def run(self) -> list[Any]:
        self._engine(self._images)
        return []

    def device(self, runs: int) -> float:
        raise TargetError("it is timed from the image to the boxes")

    def close(self) -> None:
        self._engine.close()


class _Torch:
    """PyTorch in a CUDA graph, with copies through pinned memory; eager, or compiled in one of its modes."""

    def __init__(self, network: Network, precision: str, x: Any, mode: str) -> None:
        import torch

        from benchmarks.gpu.translated import Torch, translate

        self._torch = torch
        place = "cuda" if torch.cuda.is_available() else "cpu"
        kind = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
        call = translate(_model(network, len(x)), Torch(place, kind))
        self._host = torch.from_numpy(x)
        self._there = self._host.to(place, kind).to(memory_format=torch.channels_last)
        # Dynamo would guard each of a few hundred closures.
        module = torch.fx.symbolic_trace(_module(torch, call))
        self._call = torch.compile(module, mode=mode) if mode != "eager" else module
        with torch.inference_mode():
            for _ in range(_WARM_UP):
                self._call(self._there)
            self._replay = self._recorded() if place == "cuda" else self._plain
            self._replay()
        self._pinned = [output.float().cpu() for output in self._outputs]
        if place == "cuda":
            self._source = self._host.pin_memory()
            self._pinned = [output.pin_memory() for output in self._pinned]

    def _plain(self) -> None:
        self._outputs = self._call(self._there)

    def _recorded(self) -> Any:
        torch = self._torch
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                self._call(self._there)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._outputs = self._call(self._there)
        return graph.replay

    def run(self) -> list[Any]:
        torch = self._torch
        with torch.inference_mode():
            if self._there.is_cuda:
                self._source.copy_(self._host)
                self._there.copy_(self._source, non_blocking=True)
            self._replay()
            for pinned, output in zip(self._pinned, self._outputs, strict=True):
                # Float16 becomes float32 on the device.
                pinned.copy_(output.float(), non_blocking=True)
            if self._there.is_cuda:
                torch.cuda.synchronize()
        return [pinned.numpy().copy() for pinned in self._pinned]

    def device(self, runs: int) -> float:
        torch = self._torch
        with torch.inference_mode():
            if not self._there.is_cuda:
                return _wall(self._replay, runs)
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(runs):
                self._replay()
            stop.record()
            stop.synchronize()
            return start.elapsed_time(stop) / 1e3 / runs

    def close(self) -> None:
        self._torch._dynamo.reset()
        # Graphs and what they wrote into go before the cache is emptied.
        vars(self).clear()
        gc.collect()
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class _Jax:
    """JAX, compiled by XLA. Runs are queued and waited for once: it has no events."""

    def __init__(self, network: Network, precision: str, x: Any) -> None:
        import jax

        from benchmarks.gpu.translated import Jax, translate

        self._jax = jax
        kind = {"fp16": np.float16, "bf16": jax.numpy.bfloat16}.get(precision, np.float32)
        jax.config.update("jax_default_matmul_precision", "tensorfloat32" if precision == "tf32" else "highest")
        self._x, self._kind = x, kind
        self._call = jax.jit(translate(_model(network, len(x)), Jax(kind)))
        self._there = jax.device_put(jax.numpy.asarray(x, kind))
        for _ in range(_WARM_UP):
            jax.block_until_ready(self._call(self._there))

    def run(self) -> list[Any]:
        outputs = self._call(self._jax.numpy.asarray(self._x, self._kind))
        return [np.asarray(output, np.float32) for output in outputs]

    def device(self, runs: int) -> float:
        def all_of_them() -> None:
            for _ in range(runs):
                outputs = self._call(self._there)
            self._jax.block_until_ready(outputs)

        return _wall(all_of_them, 1) / runs

    def close(self) -> None:
        self._call = None
        self._jax.clear_caches()


def _wall(run: Any, runs: int) -> float:
    start = time.perf_counter()
    for _ in range(runs):
        run()
    return (time.perf_counter() - start) / runs


def _model(network: Network, images: int) -> Any:
    model = lower(network, batch=images)
    Pipeline(optimizations("onnx", "bits")).run(model)
    return model


def _module(torch: Any, call: Any) -> Any:
    class Translated(torch.nn.Module):  # type: ignore[misc,name-defined]
        def forward(self, x: Any) -> Any:
            return call(x)

    return Translated().eval()


OPEN = {
    "dnc": lambda r, x: _Engine(r["engine"], {"graphs": "on"}, x),
    "dnc new": lambda r, x: _Engine(r["engine"], {"graphs": "on"}, x),
    "dnc tuned": lambda r, x: _Engine(r["engine"], {"graphs": "on"}, x),
    "dnc single kernels": lambda r, x: _Engine(r["engine"], {"graphs": "off"}, x),
    "dnc boxes": lambda r, x: _Boxes(r["engine"], x),
    "ONNX Runtime": lambda r, x: _Engine(r["engine"], {"provider": "cuda"}, x),
    "ONNX Runtime graphs": lambda r, x: _Engine(r["engine"], {"provider": "cuda", "graphs": "on"}, x),
    "ONNX Runtime nhwc": lambda r, x: _Engine(r["engine"], {"provider": "cuda", "graphs": "on", "layout": "nhwc"}, x),
    "TensorRT": lambda r, x: _Engine(r["engine"], {"provider": "tensorrt"}, x),
    "PyTorch": lambda r, x: _Torch(_network(r), r["precision"], x, "eager"),
    "PyTorch compiled": lambda r, x: _Torch(_network(r), r["precision"], x, "default"),
    "PyTorch max-autotune": lambda r, x: _Torch(_network(r), r["precision"], x, "max-autotune-no-cudagraphs"),
    "XLA": lambda r, x: _Jax(_network(r), r["precision"], x),
    "CPU": lambda r, x: _Engine(r["engine"], {}, x),
}
"""By their names: what opens each, from a request and the input."""


def _network(request: Mapping[str, Any]) -> Network:
    return Network.load(Path(request["cfg"]), Path(request["weights"]))


class _Peer:
    """Answers the requests."""

    def __init__(self) -> None:
        self._open: Any = None

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to a request; raises TargetError with whatever went wrong."""
        try:
            return dict(getattr(self, f"_do_{request['do']}")(request))
        except TargetError:
            raise
        except Exception as error:
            line = (str(error).strip().splitlines() or [""])[0]
            raise TargetError(f"{type(error).__name__}: {line}"[:300]) from error

    def _do_open(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._do_close(request)
        start = time.perf_counter()
        with np.load(request["expected"]) as file:
            x = file["x"]
            expected = [file[f"y{place}"] for place in range(len(file.files) - 1)]
        self._open = OPEN[request["peer"]](request, x)
        outputs = self._open.run()
        error = max((error_between(a[:1], b) for a, b in zip(outputs, expected, strict=False)), default=None)
        return {"seconds": time.perf_counter() - start, "off": None if error is None else float(error)}

    def _do_device(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return {"seconds": self._open.device(request["runs"])}

    def _do_host(self, _: Mapping[str, Any]) -> dict[str, Any]:
        return {"seconds": _wall(self._open.run, 1)}

    def _do_close(self, _: Mapping[str, Any]) -> dict[str, Any]:
        if self._open is not None:
            self._open.close()
        self._open = None
        gc.collect()
        return {}


if __name__ == "__main__":
    serve(lambda _: _Peer().answer)
