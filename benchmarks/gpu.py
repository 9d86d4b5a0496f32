"""Latency on an NVIDIA GPU: ONNX Runtime's providers against PyTorch, and native against diagonalwise convolutions.

    python benchmarks/gpu.py [NET…] [--precisions fp16,fp32] [--batches 1,16] [--engines cuda,…] [--minutes 8.5]
    python benchmarks/gpu.py [NET…] --only layers
    python benchmarks/gpu.py efficientnet-b0 --provider cpu --batches 1 --seconds 0.5 --minutes 2      # to try it

NET is a .cfg file or the name of a network of cfg/; without weights, random ones stand in, which take as long.

    CUDA, CUDA nhwc, CUDA graphs    dnc's target cuda, by the CUDA provider; graphs: a run is one CUDA graph
    TensorRT                        the same by the TensorRT provider, where there is one
    TVM kernels, TVM graphs         the same by back end tvm, where that is installed: one by one, and as CUDA graphs
    TVM tuned                       as graphs, with kernels chosen by measuring --trials of them
    PyTorch, PyTorch compiled       the same graph in torch.fx, channels_last, eager and by torch.compile; needs torch

Every run takes an array on the host and gives arrays on the host, so that it ends when the GPU is done. Float32 is
float32: TF32 is off for all. The engines of a network run in turn (`dnc.runtime.timing.interleave`); a cell has the
median in milliseconds, and the median ratio to the first column with the half of its 95 % interval. Below stands by how
much the outputs are off those of ONNX Runtime on the CPU in float32, relative to the largest, for the first image.

The second part is what --autotune of `dnc compile` measures, each depthwise layer in place. What was measured is kept
in dnc's cache, so that a part that the time did not suffice for goes on where it stopped. Whatever takes long to open
is left out when there is too little time for it.

Needs no network access. Prints Markdown.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# Before any of NVIDIA's libraries reads it.
os.environ["NVIDIA_TF32_OVERRIDE"] = "0"

import numpy as np
import onnx_ir as ir

from dnc import zoo
from dnc.compiler.autotuning import NATIVE, Tuned, autotune
from dnc.darknet.cfg import find_cfg
from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.errors import DncError, TargetError
from dnc.files.places import cache_dir
from dnc.graph.pipeline import Pipeline
from dnc.graph.rewriting import attribute
from dnc.graph.verification import error_between
from dnc.runtime.gpus import gpus
from dnc.runtime.timing import Timings, device_name, interleave
from dnc.targets import Target, targets
from dnc.targets.base import Tuning

NETWORKS = ("efficientnet-b0", "enet-coco", "yolov4-tiny", "yolov3")
ENGINES: Mapping[str, Mapping[str, str]] = {
    "CUDA": {"provider": "cuda"},
    "CUDA nhwc": {"provider": "cuda", "layout": "nhwc"},
    "CUDA graphs": {"provider": "cuda", "graphs": "on"},
    "TensorRT": {"provider": "tensorrt"},
    "TVM kernels": {"backend": "tvm", "graphs": "off"},
    "TVM graphs": {"backend": "tvm", "graphs": "on"},
    "TVM tuned": {"backend": "tvm", "graphs": "on"},
}
TUNED = "TVM tuned"
TORCH = ("PyTorch", "PyTorch compiled")
SLOW = {
    "TensorRT": 60.0,
    "TVM kernels": 60.0,
    "TVM graphs": 60.0,
    TUNED: 300.0,
    "PyTorch compiled": 45.0,
    "a network": 20.0,
    "layers": 90.0,
}
"""Seconds that things are expected to take, until one was measured: opening an engine; the rest of a network's row; the
layers of a network in one precision and batch."""
SHARE = 0.6
"""Of the time, that the first part may take."""
ROUNDS = (7, 400)

Run = Callable[[], list[Any]]


class OutOfTime(Exception):
    """Raised when the time is used up."""


class Clock:
    """Watches the time that is left."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes
        self._taken = dict(SLOW)

    def allows(self, what: str) -> bool:
        """Whether there is time for something that took so long before."""
        return time.monotonic() + self._taken.get(what, 5.0) < self._end

    def took(self, what: str, start: float) -> None:
        """Notes how long something took that began at `start`."""
        if what in self._taken:
            self._taken[what] = time.monotonic() - start

    def check(self, _: str = "") -> None:
        """Raises OutOfTime at the end."""
        if time.monotonic() > self._end:
            raise OutOfTime


def target_for(place: str, precision: str, /, **options: str) -> Target:
    """Target cuda, or for trying the script target onnx, which has none of its options."""
    if place == "cpu":
        return targets["onnx"]({"precision": precision}).taking_turns()
    return targets["cuda"]({"precision": precision, **options})


def load(name: str) -> Network:
    """A network with its weights, or random ones."""
    cfg = find_cfg(name)
    weights = zoo.weights_for(cfg)
    network = Network.load(cfg, weights)
    return network if weights is not None else network.with_random_weights()


def prepare(network: Network, target: Target, batch: int) -> ir.Model:
    """The graph after the target's passes, in float32."""
    model = lower(network, batch=batch)
    Pipeline(target.optimizations()).run(model)
    return model


def open_engine(network: Network, target: Target, folder: Path, x: Any, trials: int = 0) -> Run:
    """Builds and opens one of dnc's engines, tuned with so many trials."""
    if missing := target.missing():
        raise TargetError(f"{missing} is not installed")
    folder.mkdir()
    model = prepare(network, target, len(x))
    Pipeline(target.storage()).run(model)
    if trials:
        target.build_tuned(model, folder, None, Tuning(trials, cache=cache_dir()))
    else:
        target.build(model, folder)
    session = target.open(folder)
    return lambda: session.run({"input": x})


def to_torch(model: ir.Model) -> Any:
    """The graph as a torch.fx.GraphModule of the operators that these networks have; raises KeyError for others."""
    import operator

    import torch
    from torch.nn import functional

    graph, root = torch.fx.Graph(), torch.nn.Module()
    values: dict[Any, Any] = {value: graph.placeholder(f"x{n}") for n, value in enumerate(model.graph.inputs)}

    def constant(value: Any) -> Any:
        return value.const_value.numpy()

    def fetch(value: Any) -> Any:
        if value not in values:
            name = f"c{len(values)}"
            root.register_buffer(name, torch.from_numpy(np.array(constant(value))))
            values[value] = graph.get_attr(name)
        return values[value]

    def padded(node: Any, fill: float) -> tuple[Any, list[int]]:
        top, left, bottom, right = attribute(node, "pads", [0, 0, 0, 0])
        x = fetch(node.inputs[0])
        if (top, left) == (bottom, right):
            return x, [top, left]
        return graph.call_function(functional.pad, (x, [left, right, top, bottom], "constant", fill)), [0, 0]

    def convolution(node: Any) -> Any:
        x, pads = padded(node, 0.0)
        bias = fetch(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
        strides, dilations = (list(attribute(node, name, [1, 1])) for name in ("strides", "dilations"))
        arguments = (x, fetch(node.inputs[1]), bias, strides, pads, dilations, attribute(node, "group", 1))
        return graph.call_function(functional.conv2d, arguments)

    def pool(node: Any) -> Any:
        x, pads = padded(node, float("-inf"))
        dims, strides = (list(attribute(node, name, [1, 1])) for name in ("kernel_shape", "strides"))
        return graph.call_function(functional.max_pool2d, (x, dims, strides, pads))

    def part(node: Any) -> Any:
        starts, ends, axes, steps = (constant(value).tolist() for value in node.inputs[1:])
        places = [slice(None)] * len(node.inputs[0].shape)
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            places[axis] = slice(start, end, step)
        return graph.call_function(operator.getitem, (fetch(node.inputs[0]), tuple(places)))

    def reshape(node: Any) -> Any:
        before = node.inputs[0].shape
        shape = [before[n] if side == 0 else side for n, side in enumerate(constant(node.inputs[1]).tolist())]
        return graph.call_function(torch.reshape, (fetch(node.inputs[0]), shape))

    def resize(node: Any) -> Any:
        scales = constant(node.inputs[2]).tolist()[2:]
        options = {"scale_factor": scales, "mode": "nearest"}
        return graph.call_function(functional.interpolate, (fetch(node.inputs[0]),), options)

    def plain(function: Any, **options: Any) -> Callable[[Any], Any]:
        return lambda node: graph.call_function(function, tuple(fetch(value) for value in node.inputs), options)

    table: dict[str, Callable[[Any], Any]] = {
        "Conv": convolution,
        "MaxPool": pool,
        "Slice": part,
        "Reshape": reshape,
        "Resize": resize,
        "Add": plain(torch.add),
        "Sub": plain(torch.sub),
        "Mul": plain(torch.mul),
        "Sigmoid": plain(torch.sigmoid),
        "Relu": plain(torch.relu),
        "GlobalAveragePool": plain(torch.mean, dim=(2, 3), keepdim=True),
        "LeakyRelu": lambda node: plain(functional.leaky_relu, negative_slope=attribute(node, "alpha", 0.01))(node),
        "Softmax": lambda node: plain(torch.softmax, dim=attribute(node, "axis", -1))(node),
        "Concat": lambda node: graph.call_function(
            torch.cat, ([fetch(value) for value in node.inputs], attribute(node, "axis", 1))
        ),
    }
    for node in model.graph:
        values[node.outputs[0]] = table[node.op_type](node)
    graph.output([values[value] for value in model.graph.outputs])
    return torch.fx.GraphModule(root, graph).eval()


def open_torch(model: ir.Model, precision: str, device: str, x: Any, compiled: bool) -> Run:
    """The graph in PyTorch: arrays in, arrays out."""
    import torch

    torch.backends.cudnn.benchmark = True
    kind = torch.float16 if precision == "fp16" else torch.float32
    module = to_torch(model).to(device=device, dtype=kind, memory_format=torch.channels_last)
    call = torch.compile(module, mode="max-autotune-no-cudagraphs") if compiled else module
    host = torch.from_numpy(x)

    def run() -> list[Any]:
        with torch.inference_mode():
            there = host.to(device=device, dtype=kind).to(memory_format=torch.channels_last)
            return [output.float().cpu().numpy() for output in call(there)]

    return run


def torch_device(provider: str) -> str:
    """Device of PyTorch; empty where it is not installed, or sees no GPU."""
    try:
        import torch
    except ImportError:
        return ""
    if provider == "cpu":
        return "cpu"
    return "cuda" if torch.cuda.is_available() else ""


def reference(network: Network, x: Any) -> list[Any]:
    """Outputs of ONNX Runtime on the CPU in float32."""
    target = targets["onnx"]()
    with tempfile.TemporaryDirectory() as scratch:
        return open_engine(network, target, Path(scratch) / "reference", x)()


def measure(
    network: Network, precision: str, batch: int, arguments: argparse.Namespace, clock: Clock
) -> tuple[Timings | None, dict[str, float], dict[str, str]]:
    """Timings of what opens, how far its outputs are off, and why the rest does not."""
    x = np.random.default_rng(0).random((batch, *network.input_shape), np.float32)
    device = torch_device(arguments.provider)
    expected = reference(network, x[:1])
    runs: dict[str, Run] = {}
    off: dict[str, float] = {}
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number, name in enumerate(arguments.engines):
            if name in TORCH and not device:
                missing[name] = "torch is not installed, or sees no GPU"
                continue
            if not clock.allows(name):
                missing[name] = "no time left"
                continue
            start = time.monotonic()
            try:
                if name in TORCH:
                    model = prepare(network, target_for(arguments.provider, precision), batch)
                    runs[name] = open_torch(model, precision, device, x, name != TORCH[0])
                else:
                    target = target_for(arguments.provider, precision, cache="off", **ENGINES.get(name, {}))
                    trials = arguments.trials if name == TUNED else 0
                    runs[name] = open_engine(network, target, Path(scratch) / str(number), x, trials)
                outputs = runs[name]()
            except Exception as error:
                # Whatever is the matter with one of them must not cost the figures of the others.
                runs.pop(name, None)
                missing[name] = str(error).splitlines()[0] if isinstance(error, DncError) else repr(error)[:200]
                continue
            clock.took(name, start)
            off[name] = max(error_between(a[:1], b) for a, b in zip(outputs, expected, strict=True))
        timings = interleave(runs, seconds=arguments.seconds, rounds=ROUNDS) if runs else None
        # A GPU's memory goes back before the next ones are opened.
        runs.clear()
        gc.collect()
    return timings, off, missing


def cell(timings: Timings | None, name: str, base: str) -> str:
    """Milliseconds, and their ratio to the first column."""
    if timings is None or name not in timings.seconds:
        return ""
    text = f"{timings.median(name) * 1e3:.2f}"
    if name != base:
        ratio = timings.ratio(name, base)
        text += f" ({ratio.value:.2f} ±{(ratio.high - ratio.low) / 2:.2f})"
    return text


def engines(networks: Mapping[str, Network], arguments: argparse.Namespace, clock: Clock) -> None:
    """The first part: a table for each precision and batch."""
    names = arguments.engines
    for precision in arguments.precisions:
        for batch in arguments.batches:
            print(f"### {precision}, batch {batch}\n")
            print("| network | " + " | ".join(names) + " |\n| --- |" + " --- |" * len(names))
            notes: dict[str, list[str]] = {}
            for title, network in networks.items():
                if not clock.allows("a network"):
                    notes.setdefault("no time left", []).append(title)
                    continue
                start = time.monotonic()
                timings, off, missing = measure(network, precision, batch, arguments, clock)
                base = next(iter(timings.seconds)) if timings is not None else ""
                cells = [cell(timings, name, base) for name in names]
                print(f"| {title} | {' | '.join(cells)} |", flush=True)
                clock.took("a network", start)
                for name, reason in missing.items():
                    notes.setdefault(f"{name}: {reason}", []).append(title)
                if off:
                    errors = ", ".join(f"{name} {error:.1e}" for name, error in off.items())
                    notes.setdefault(f"off by {errors}", []).append(title)
            print("".join(f"\n- {', '.join(titles)}: {note}" for note, titles in notes.items()) + "\n", flush=True)


def layers(networks: Mapping[str, Network], arguments: argparse.Namespace, clock: Clock) -> None:
    """The second part."""
    for title, network in networks.items():
        for precision in arguments.precisions:
            for batch in arguments.batches:
                # The layout is the usual one; TensorRT would build engines for hours.
                target = target_for(arguments.provider, precision, provider="cuda")
                if not clock.allows("layers"):
                    print(f"{title}, {precision}, batch {batch}: no time left\n")
                    continue
                start = time.monotonic()
                try:
                    model = prepare(network, target, batch)
                    tuned = autotune(model, target, batch=batch, cache=cache_dir(), progress=clock.check)
                except OutOfTime:
                    print(f"{title}, {precision}, batch {batch}: not finished; it goes on the next time\n")
                    continue
                except DncError as error:
                    print(f"{title}, {precision}, batch {batch}: {error.message}\n")
                    continue
                if not tuned.layers:
                    break
                clock.took("layers", start)
                show(tuned, f"{title}, {precision}, batch {batch}")


def show(tuned: Tuned, title: str) -> None:
    """Microseconds of each form; equal layers once."""
    names = list(dict.fromkeys(name for layer in tuned.layers for name in layer.seconds))
    print(f"#### {title}: convolutions with their surroundings, microseconds\n")
    print("| convolution | " + " | ".join(names) + " | best |\n| --- |" + " --- |" * (len(names) + 1))
    for kind, layer in {layer.kind: layer for layer in tuned.layers}.items():
        row = [f"{layer.seconds[name] * 1e6:.1f}" if name in layer.seconds else "" for name in names]
        print(f"| {kind} | " + " | ".join(row) + f" | {layer.best} |")
    changed = sum(layer.best != NATIVE for layer in tuned.layers)
    whole = f"the whole network with the best of each: {tuned.network}" if tuned.network else ""
    print(f"\n{changed} of {len(tuned.layers)} are faster otherwise{'; ' * bool(whole)}{whole}\n", flush=True)


def about(provider: str) -> str:
    """Names the GPU, the libraries and the date."""
    versions = []
    for name in (
        "onnxruntime-gpu",
        "onnxruntime",
        "torch",
        "tensorrt-cu13",
        "tensorrt-cu12",
        "tensorrt",
        "nvidia-cudnn-cu13",
    ):
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    place = device_name()
    if provider != "cpu" and gpus():
        place = f"{gpus()[0].name} ({gpus()[0].arch}, driver {gpus()[0].driver}), {place}"
    return f"{place}; {', '.join(versions)}; {datetime.date.today()}"


def words(text: str) -> list[str]:
    """Splits an argument at commas."""
    return text.split(",")


def main() -> None:
    """Prints both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--provider", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--engines", type=words, metavar="NAME,…", help="CUDA, TensorRT, PyTorch, …; else all")
    parser.add_argument("--precisions", type=words, default=["fp16", "fp32"], metavar="P,…")
    parser.add_argument(
        "--batches", type=lambda text: [int(word) for word in words(text)], default=[1, 16], metavar="N,…"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="for each network, precision and batch")
    parser.add_argument("--trials", type=int, default=100, help="for TVM tuned, of each network")
    parser.add_argument("--minutes", type=float, default=8.5, help="for all; what is left out says so")
    parser.add_argument("--only", choices=["engines", "layers"])
    arguments = parser.parse_args()
    known = ["CPU", *TORCH] if arguments.provider == "cpu" else [*ENGINES, *TORCH]
    arguments.engines = arguments.engines or [name for name in known if name != TUNED]
    if unknown := set(arguments.engines) - set(known):
        parser.error(f"no engine {', '.join(unknown)}; there is {', '.join(known)}")
    clock = Clock(arguments.minutes)
    first = Clock(arguments.minutes * (1 if arguments.only else SHARE))
    print(
        f"{about(arguments.provider)}\n\n`{shlex.join(['python', 'benchmarks/gpu.py', *sys.argv[1:]])}`\n", flush=True
    )
    networks = {name: load(name) for name in arguments.networks}
    if arguments.only != "layers":
        engines(networks, arguments, first)
    if arguments.only != "engines":
        layers(networks, arguments, clock)


if __name__ == "__main__":
    main()
