"""Latency on the CPU: dnc's engines against ONNX Runtime and OpenVINO by themselves, and other readers of Darknet.

    python -m benchmarks.cpu NET… [--isa avx2] [--seconds 22] [--images FOLDER] [--opencv PYTHON] [--ncnn PYTHON]
    python -m benchmarks.cpu --kind xnor [--darknet FOLDER]     # binary convolutions against those in float32
    python -m benchmarks.cpu NET… --kind batches                # one engine, runs of 1 and of 16 images
    python -m benchmarks.cpu --page FILE                        # FILE becomes benchmarks/cpu.md's tables

NET is a .cfg file or the name of a network of cfg/; without weights, random ones stand in, which take as long.

    onnx, openvino, tvm             dnc's engines, as `dnc compile --target … --precision …` makes them
    openvino bf16, tvm bf16         the same in bfloat16
    onnx, openvino, tvm int8        the same, calibrated on 20 images of --images
    plain ONNX Runtime, OpenVINO    on the ONNX of the graph as it was lowered, before any pass; float32
    OpenCV, ncnn                    see dnc.bench.peers; each in a process of its own
    Darknet                         its library, built on this machine: for binary convolutions

What is not installed, or what this CPU or another program cannot do, is left out, and the reason stands below the
table. --isa runs everything as on a CPU with fewer instruction sets (`benchmarks.held`), target tvm by its `mcpu`.

The same threads for all. All run in turn, round after round; each runs untimed for 20 ms before it is timed, because
threads of the one before it still spin. Ratios are medians over the rounds, to the fastest peer in float32, with 95 %
intervals. Prints Markdown; --results FILE keeps what was measured, and goes on where a run before was ended.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

import dnc
from benchmarks import held
from benchmarks.cpu import page, peers
from benchmarks.cpu.page import BATCH
from benchmarks.measured import read
from dnc.bench.peers import Peer, Plain
from dnc.bench.prepare import weights_or_random
from dnc.compiler.source import preprocessing_for
from dnc.darknet.cfg import find_cfg
from dnc.darknet.network import Network
from dnc.errors import DncError, TargetError
from dnc.evaluation.datasets import images as find_images
from dnc.quantization.collecting import calibrate
from dnc.runtime.arithmetic import this_isa
from dnc.runtime.runners.openvino import openvino_core, reason
from dnc.runtime.timing import Run, device_name, interleave
from dnc.targets import targets
from dnc.targets.tvm.compile import machine_for

TARGETS = ("onnx", "openvino", "tvm")
ENGINES = (
    *((name, "fp32") for name in TARGETS),
    *((name, "bf16") for name in ("openvino", "tvm")),
    *((name, "int8") for name in TARGETS),
)
MCPU = {"avx2": "x86-64-v3", "avx512": "x86-64-v4"}
"""LLVM's names of the CPUs that `benchmarks.held` makes."""
CALIBRATED_ON = 20
ROUNDS = (9, 400)
PEERS = {"opencv": "OpenCV", "ncnn": "ncnn"}
KINDS = ("networks", "xnor", "batches")
_CONVOLUTION = "[convolutional]\nfilters=256\nsize=3\nstride=1\npad=1\nactivation=linear\n"
_SMALL = "[net]\nwidth=26\nheight=26\nchannels=256\n"
XNOR = {
    "efficientnet-b0-xnor": ("efficientnet-b0-xnor", "efficientnet-b0"),
    "3x3, 256 to 256, 26x26": (_SMALL + _CONVOLUTION + "xnor=1\n", _SMALL + _CONVOLUTION),
    "four of these": (_SMALL + 4 * (_CONVOLUTION + "xnor=1\n"), _SMALL + 4 * _CONVOLUTION),
}
"""Networks with binary convolutions, and what they stand for in float32: names, or the cfg's text."""


@dataclass
class Bench:
    """What is open and is to be timed, and what is not and why."""

    arguments: argparse.Namespace
    folder: Path
    runs: dict[str, Run] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    """Of peers that say theirs."""

    @contextmanager
    def leaving_out(self, name: str) -> Iterator[None]:
        """Whatever this CPU, or what is installed, cannot do becomes a note."""
        try:
            yield
        except ImportError as error:
            self.notes.append(f"{name}: {error.name or error} is not installed")
        except (DncError, OSError, RuntimeError, ValueError) as error:
            text = error.message if isinstance(error, DncError) else reason(error)
            self.notes.append(f"{name}: {' '.join(text.split())}")

    def add(self, name: str, run: Run) -> None:
        """Times it, if it runs."""
        with self.leaving_out(name):
            run()
            self.runs[name] = run

    def engine(self, name: str, cfg: Path, weights: Path, target: str, **options: Any) -> dnc.Engine | None:
        """One of dnc's engines; None where it is left out."""
        with self.leaving_out(name):
            if lacking := targets[target]().missing():
                raise TargetError(f"{lacking} is not installed")
            if options.get("precision") == "bf16" and target == "openvino" and not _openvino_has_bf16():
                raise TargetError("this CPU does not compute in bfloat16, and OpenVINO takes float32 in its place")
            mcpu = MCPU.get(os.environ.get("DNC_ISA", ""))
            if target == "tvm" and mcpu is not None:
                options["options"] = {"mcpu": mcpu}
            built = dnc.compile(cfg, weights, target, self.folder / name, verify=False, **options).folder
            return dnc.load(built, threads=self.arguments.threads)
        return None

    def peers(self, files: Plain, x: Any) -> None:
        """ONNX Runtime and OpenVINO."""
        for title, peer in {"plain ONNX Runtime": peers.onnx_runtime, "plain OpenVINO": peers.openvino}.items():
            with self.leaving_out(title):
                self.add(title, peer(files.model, x, self.arguments.threads))

    def timed(self, reference: str = "") -> dict[str, Any]:
        """Times what is there: seconds, and ratios to the fastest peer, or to `reference`."""
        if not self.runs:
            return {"notes": self.notes, "versions": self.versions}
        timings = interleave(self.runs, seconds=self.arguments.seconds, rounds=ROUNDS, settle=peers.SETTLE)
        others = [name for name in self.runs if not name.startswith("dnc")] or list(self.runs)
        to = reference if reference in self.runs else min(others, key=timings.median)
        return {
            "rounds": timings.rounds,
            "to": to,
            "seconds": {name: float(f"{timings.median(name):.5g}") for name in self.runs},
            "ratios": {name: timings.ratio(name, to).rounded() for name in self.runs},
            "notes": self.notes,
            "versions": self.versions,
        }


def _openvino_has_bf16() -> bool:
    return "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def title(target: str, precision: str) -> str:
    """`dnc tvm`, `dnc tvm int8`."""
    return f"dnc {target}" + (f" {precision}" if precision != "fp32" else "")


def measure(cfg: Path, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All engines and all peers on one image."""
    bench = Bench(arguments, folder)
    weights = weights_or_random(cfg, folder)
    network = Network.load(cfg, weights)
    x = np.random.default_rng(0).random((1, *network.input_shape), np.float32)
    precisions = ["fp32", "bf16"]
    if arguments.images is not None:
        with bench.leaving_out("dnc int8"):
            images = find_images([arguments.images], limit=CALIBRATED_ON)
            calibrate(network, preprocessing_for(network, weights), images).write(folder / "calibration.json")
            precisions.append("int8")
    for target, precision in ENGINES:
        if precision not in precisions:
            continue
        name, calibration = title(target, precision), {"calibration": folder / "calibration.json"}
        engine = bench.engine(
            name, cfg, weights, target, precision=precision, **(calibration if precision == "int8" else {})
        )
        if engine is not None:
            with bench.leaving_out(name):
                bench.add(name, partial(engine.session.run, {"input": x}))
    files = Plain.write(network, weights, x, folder)
    bench.peers(files, x)
    with ExitStack() as stack:
        for name, text in PEERS.items():
            python = getattr(arguments, name)
            if python is None:
                continue
            with bench.leaving_out(text):
                peer = Peer(name, files, arguments.threads, folder / "peers", python)
                bench.add(text, stack.enter_context(peer.open()))
                bench.versions[text] = peer.told["version"]
        return bench.timed()


def measure_xnor(networks: tuple[str, str], arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every engine, and Darknet, on a network of binary convolutions and on that in float32."""
    bench = Bench(arguments, folder)
    for kind, text in zip(("xnor", "float32"), networks, strict=True):
        place = folder / kind
        place.mkdir()
        cfg = place / f"{kind}.cfg" if text.startswith("[") else find_cfg(text)
        if text.startswith("["):
            cfg.write_text(text, encoding="utf-8")
        weights = weights_or_random(cfg, place)
        network = Network.load(cfg, weights)
        x = np.random.default_rng(0).standard_normal((1, *network.input_shape), np.float32)
        for target in TARGETS:
            name = f"dnc {target} {kind}"
            engine = bench.engine(name, cfg, weights, target)
            if engine is not None:
                with bench.leaving_out(name):
                    bench.add(name, partial(engine.session.run, {"input": x}))
        if arguments.darknet is not None:
            with bench.leaving_out(f"Darknet {kind}"):
                run = peers.darknet(Path(arguments.darknet), cfg, weights, x, arguments.threads, place)
                bench.add(f"Darknet {kind}", run)
    return bench.timed("dnc tvm float32")


def measure_batches(cfg: Path, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One engine of each target, and peers: runs of one image and of 16."""
    bench = Bench(arguments, folder)
    weights = weights_or_random(cfg, folder)
    network = Network.load(cfg, weights)
    x = np.random.default_rng(0).random((BATCH, *network.input_shape), np.float32)
    for target in TARGETS:
        name = title(target, "fp32")
        engine = bench.engine(name, cfg, weights, target)
        if engine is None:
            continue
        if isinstance(engine.manifest.batch, int):
            bench.notes.append(f"{name}: one engine takes batches of {engine.manifest.batch} alone")
            continue
        with bench.leaving_out(name):
            for count in (1, BATCH):
                bench.add(f"{name}, {count}", partial(engine.session.run, {"input": x[:count]}))
    bench.peers(Plain.write(network, weights, x, folder), x)
    return bench.timed()


def rows(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What is asked for and is not among the results yet, each measured when it is its turn."""
    isa = this_isa()
    known = {(row.get("isa"), row.get("kind"), row.get("network")) for row in read(arguments.results)}
    jobs: dict[str, Any] = {}
    if arguments.kind == "xnor":
        jobs = {name: partial(measure_xnor, networks) for name, networks in XNOR.items()}
    else:
        measured = measure if arguments.kind == "networks" else measure_batches
        jobs = {find_cfg(name).stem: partial(measured, find_cfg(name)) for name in arguments.networks}
    for name, job in jobs.items():
        if (isa, arguments.kind, name) in known:
            continue
        print(f"{isa}, {arguments.kind}: {name}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            yield {"isa": isa, "kind": arguments.kind, "network": name, **job(arguments, Path(scratch))}


def machine(arguments: argparse.Namespace) -> dict[str, Any]:
    """On what, and with which versions, it is measured."""
    found = {}
    for name, distribution in {"ONNX Runtime": "onnxruntime", "OpenVINO": "openvino", "TVM": "apache-tvm"}.items():
        try:
            found[name] = version(distribution)
        except PackageNotFoundError:
            continue
    told = {"cpu": _processor(), "threads": arguments.threads, "date": str(datetime.date.today()), "versions": found}
    return {**told, "isa": this_isa(), "held": os.environ.get("HELD_ISA", "")}


def _processor() -> str:
    """The processor's name, and LLVM's, which says more: what its maker sells under one name may differ by half."""
    if targets["tvm"]().missing():
        return device_name()
    return f"{device_name()} ({machine_for('', 'host').mcpu})"


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", metavar="NET")
    parser.add_argument("--kind", choices=KINDS, default="networks")
    parser.add_argument("--isa", choices=held.KINDS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=22.0)
    parser.add_argument("--images", metavar="FOLDER")
    parser.add_argument("--opencv", metavar="PYTHON")
    parser.add_argument("--ncnn", metavar="PYTHON")
    parser.add_argument("--darknet", metavar="FOLDER")
    parser.add_argument("--results", type=Path, metavar="FILE")
    parser.add_argument("--page", type=Path, metavar="FILE")
    arguments = parser.parse_args(words)
    if arguments.page is None and arguments.kind != "xnor" and not arguments.networks:
        parser.error("name networks")
    return arguments


def main() -> None:
    """Measures, or writes the page."""
    arguments = parse(sys.argv[1:])
    if arguments.page is not None:
        page.write(arguments.page)
        return
    if arguments.isa is not None and os.environ.get("HELD_ISA") != arguments.isa:
        others = [python for python in (arguments.opencv, arguments.ncnn) if python is not None]
        os.environ |= held.environment(arguments.isa, others)
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.cpu", *sys.argv[1:]])
    # Libraries print what they like.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory() as scratch:
        arguments.results = arguments.results or Path(scratch) / "results.jsonl"
        told = {"machine": machine(arguments)}
        for row in rows(arguments):
            page.append(arguments.results, told, row)
        print(page.tables(read(arguments.results)), file=answers, flush=True)


if __name__ == "__main__":
    main()
