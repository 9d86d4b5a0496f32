"""Latency of dnc's target tvm: against TVM as its manual shows it, ONNX Runtime and OpenVINO; what compiling costs.

    python -m benchmarks.tvm_engines NET… [--threads 2] [--seconds 20] [--cpu] [--mcpu host] [--precisions]

NET is a .cfg file or the name of a network of cfg/; without weights, random ones stand in, which take as long.

    dnc tvm                         `dnc compile --target tvm`, nothing tuned
    plain TVM                       the ONNX importer and relax's default pipelines, for the same processor
    plain ONNX Runtime, OpenVINO    as their manuals show them

All four read the graph as it was lowered; float32, batch 1.

All run in turn, round after round; ratios are medians over the rounds, with 95 % intervals. With --cpu it is not the
time but the processor's time that counts, on one thread: what else the machine does then matters less. Compiling is
measured in a process of its own: its processor time, its time by the clock, and the most memory it ever had. Prints
Markdown.

With --precisions, dnc's engines of target tvm in bfloat16 and 8 bits are measured instead, where --mcpu computes with
these, against that in float32 and against dnc's other engines for CPUs, which `benchmarks.held` holds to older
instruction sets. The ranges of 8 bits are those of a photograph: the time does not depend on them.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import dnc
from benchmarks.compile import measure as measure_process
from benchmarks.cpu.peers import SETTLE, onnx_runtime, openvino
from dnc.bench.prepare import weights_or_random
from dnc.darknet.cfg import find_cfg
from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.graph.serialization import serialize_to
from dnc.graph.verification import photograph
from dnc.runtime.engine import load
from dnc.runtime.timing import Timings, device_name, interleave
from dnc.targets import targets

PRECISIONS = ("tvm fp32", "tvm bf16", "tvm int8", "openvino bf16", "openvino int8", "onnx int8")
OURS, TVM, PEERS = "dnc tvm", "plain TVM", ("plain ONNX Runtime", "plain OpenVINO")


def compiled(cfg: Path, weights: Path, mcpu: str, out: Path) -> tuple[float, float, float]:
    """Compiles in a process of its own: seconds of the processor, by the clock, and MiB."""
    command = [sys.executable, "-m", "dnc", "compile", str(cfg), "--weights", str(weights), "--target", "tvm"]
    result = measure_process([*command, "--no-verify", "--option", f"mcpu={mcpu}", "-o", str(out)], out.parent)
    if isinstance(result, str):
        raise SystemExit(f"{' '.join(command)} {result}")
    return result


def plain_tvm(path: Path, x: Any, mcpu: str) -> Callable[[], object]:
    """TVM as its manual shows it."""
    import onnx
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    from dnc.targets.tvm.compile import machine_for

    target = machine_for("", mcpu).target
    module = from_onnx(onnx.load(path), keep_params_in_input=False)
    with target, tvm.transform.PassContext(opt_level=3):
        module = relax.transform.DecomposeOpsForInference()(module)
        executable = tvm.compile(relax.get_pipeline("zero")(module), target)
    main = relax.VirtualMachine(executable, tvm.cpu())["main"]
    given = tvm.runtime.tensor(x)
    return lambda: main(given)


def bfloat16(mcpu: str) -> bool:
    """Whether the processor multiplies in bfloat16; other programs compute in float32 where it does not."""
    from dnc.targets.tvm.compile import machine_for

    return "avx512bf16" in machine_for("", mcpu).features


def measure_precisions(cfg: Path, arguments: argparse.Namespace, folder: Path) -> Timings:
    """Timings of dnc's engines."""
    from dnc.compiler.source import preprocessing_for
    from dnc.quantization.collecting import calibrate

    weights = weights_or_random(cfg, folder)
    network = Network.load(cfg, weights)
    Image.fromarray(photograph()).save(folder / "photograph.png")
    paths = [folder / "photograph.png"]
    table = calibrate(network, preprocessing_for(network, weights), paths, symmetric=False, source=str(folder))
    table.write(folder / "calibration.json")
    x = np.random.default_rng(0).random((1, *network.input_shape), np.float32)
    runs: dict[str, Callable[[], object]] = {}
    for name in PRECISIONS:
        target, precision = name.split()
        if precision == "bf16" and not bfloat16(arguments.mcpu):
            continue
        dnc.compile(
            cfg,
            weights,
            target,
            folder / name,
            batch=1,
            verify=False,
            precision=precision,
            calibration=folder / "calibration.json" if precision == "int8" else None,
            options={"mcpu": arguments.mcpu} if target == "tvm" else None,
        )
        runs[name] = partial(load(folder / name, threads=arguments.threads).forward, x)
    clock = time.process_time if arguments.cpu else time.perf_counter
    return interleave(runs, seconds=arguments.seconds, rounds=(9, 400), settle=SETTLE, clock=clock)


def precisions(arguments: argparse.Namespace) -> None:
    """Prints a line for each network, and the geometric means."""
    first, *others = PRECISIONS
    print(f"Milliseconds, and in brackets multiples of {first}.\n")
    print(f"| network | {' | '.join(PRECISIONS)} |\n" + "| --- " * (len(PRECISIONS) + 1) + "|")
    ratios: dict[str, list[float]] = {name: [] for name in others}
    for network in arguments.networks:
        cfg = find_cfg(network)
        with tempfile.TemporaryDirectory() as scratch:
            timings = measure_precisions(cfg, arguments, Path(scratch))
        cells = [f"{timings.median(first) * 1e3:.2f}"]
        for name in others:
            if name not in timings.seconds:
                cells.append("")
                continue
            ratio = timings.ratio(name, first)
            ratios[name].append(ratio.value)
            cells.append(f"{timings.median(name) * 1e3:.2f} ({ratio.value:.3f})")
        print(f"| {cfg.stem} | {' | '.join(cells)} |", flush=True)
    means = [f"({np.exp(np.mean(np.log(values))):.3f})" if values else "" for values in ratios.values()]
    print(f"| geometric mean | | {' | '.join(means)} |")


def measure(cfg: Path, arguments: argparse.Namespace, folder: Path) -> tuple[Timings, tuple[float, float, float]]:
    """Timings of all four, and what compiling cost."""
    weights = weights_or_random(cfg, folder)
    network = Network.load(cfg, weights)
    x = np.random.default_rng(0).random((1, *network.input_shape), np.float32)
    model = folder / "plain.onnx"
    serialize_to(lower(network, batch=1), model)
    cost = compiled(cfg, weights, arguments.mcpu, folder / "engine")
    manifest = load(folder / "engine", threads=arguments.threads).manifest
    session = targets["tvm"](manifest.options).runner().open(folder / "engine", arguments.threads)
    runs: dict[str, Callable[[], object]] = {OURS: lambda: session.run({"input": x})}
    runs |= {
        name: peer(model, x, arguments.threads) for name, peer in zip(PEERS, (onnx_runtime, openvino), strict=True)
    }
    if not arguments.without_plain:
        runs[TVM] = plain_tvm(model, x, arguments.mcpu)
    clock = time.process_time if arguments.cpu else time.perf_counter
    return interleave(runs, seconds=arguments.seconds, rounds=(9, 400), settle=SETTLE, clock=clock), cost


def main() -> None:
    """Prints a line for each network, and the geometric means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--mcpu", default="host")
    parser.add_argument("--without-plain", action="store_true", help="leave out plain TVM, which takes longest")
    parser.add_argument("--precisions", action="store_true", help="measure dnc's engines in several precisions instead")
    arguments = parser.parse_args()
    if arguments.cpu:
        arguments.threads = 1
    # Of plain TVM, which runs in this thread.
    os.environ["TVM_NUM_THREADS"] = str(arguments.threads)
    others = [name for name in (*PEERS, TVM) if name != TVM or not arguments.without_plain]
    speeds: dict[str, list[float]] = {name: [] for name in others}
    what = "processor time, 1 thread" if arguments.cpu else f"{arguments.threads} threads"
    print(f"{device_name()}, {arguments.mcpu}, {what}\n")
    if arguments.precisions:
        precisions(arguments)
        return
    print("Times of dnc's target tvm, as multiples of those of the others.\n")
    print(f"| network | ms | {' | '.join(others)} | compiled in s (of the processor) | MB |")
    print("| --- " * (len(others) + 4) + "|")
    for network in arguments.networks:
        cfg = find_cfg(network)
        with tempfile.TemporaryDirectory() as scratch:
            timings, (busy, elapsed, memory) = measure(cfg, arguments, Path(scratch))
        cells = [cfg.stem, f"{timings.median(OURS) * 1e3:.2f}"]
        for name in others:
            ratio = timings.ratio(OURS, name)
            speeds[name].append(ratio.value)
            cells.append(str(ratio))
        print(f"| {' | '.join(cells)} | {elapsed:.1f} ({busy:.1f}) | {memory:.0f} |", flush=True)
    means = [f"{np.exp(np.mean(np.log(values))):.3f}" for values in speeds.values()]
    print(f"| geometric mean | | {' | '.join(means)} | | |")


if __name__ == "__main__":
    main()
