"""Latency on an NVIDIA GPU: target cuda beside ONNX Runtime, TensorRT, PyTorch and XLA.

    python -m benchmarks.gpu [NET…] [--precisions fp16,tf32,fp32] [--images 1,16] [--minutes 9.5]
    python -m benchmarks.gpu --check            # does the GPU compute what Darknet does? (checking.py)
    python -m benchmarks.gpu --tune 3m yolov4-tiny efficientnet-b0 yolov3 --precisions fp16 --images 1
    python -m benchmarks.gpu --page             # writes benchmarks/gpu.md again

NET is a .cfg file or the name of a network of cfg/; without weights random ones stand in, which take as long.
--trained names a folder with NET.cfg and NET.weights of trained ones.

    dnc, dnc single kernels    back end tvm, as CUDA graphs and one kernel after the other
    dnc new, dnc tuned         with kinds of kernels that no GPU has run yet; after --tune
    dnc boxes                  images of 640 x 480 as bytes in, boxes out, all of it on the GPU
    ONNX Runtime, … graphs, … nhwc, TensorRT    dnc's back end onnxruntime, by provider and option
    PyTorch, … compiled, … max-autotune         the same graph, channels last, each replayed as a CUDA graph
    XLA                        the same graph in JAX; queued runs, by the clock

Engines are built first, by as many processes as there are processors; then the alternatives of a row, each in a process
of its own and all of them open, are asked in turn, round after round. Counted apart: the device, by CUDA's events, with
inputs and outputs there; and the way from an array of the host to arrays there, through pinned memory. Float32 is
float32: only precision tf32 may use TF32. The first image's outputs are compared with those of ONNX Runtime on the CPU
in float32: the largest difference by the largest value.

What was measured is in --folder, as are the engines: the next call goes on where the time was over. What is not
installed is left out. At the end benchmarks/gpu.md is written, of this run and those before (benchmarks/gpu/*.jsonl).
Fetches nothing.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.gpu import building, checking, page
from benchmarks.measured import read
from dnc.errors import TargetError
from dnc.runtime.gpus import gpus
from dnc.runtime.timing import device_name, interleave
from dnc.targets.cuda.process import Child

NETWORKS = (
    "efficientnet-b0",
    "yolov4-tiny",
    "yolov3",
    "enet-coco",
    "yolo-fastest-1.1",
    "yolov3-tiny",
    "MobileNetV2-YOLOv3-Nano-coco",
    "yolo-fastest-1.1-xl",
)
ENGINES = {
    "dnc": "measured",
    "dnc new": "new",
    "dnc tuned": "tuned",
    "dnc single kernels": "measured",
    "dnc boxes": "boxes",
    "ONNX Runtime": "onnxruntime",
    "ONNX Runtime graphs": "onnxruntime",
    "ONNX Runtime nhwc": "onnxruntime",
    "TensorRT": "onnxruntime",
}
"""The kind of engine (`building.KINDS`) of those alternatives that have one."""
NEEDS = {
    "ONNX Runtime": "onnxruntime",
    "ONNX Runtime graphs": "onnxruntime",
    "ONNX Runtime nhwc": "onnxruntime",
    "TensorRT": "tensorrt_libs",
    "PyTorch": "torch",
    "PyTorch compiled": "torch",
    "PyTorch max-autotune": "torch",
    "XLA": "jax",
}
"""Modules without which one is left out."""
ALONE = ("int8", "mixed")
"""Precisions that dnc and TensorRT alone have."""
SLOW = {"TensorRT": 60.0, "PyTorch compiled": 40.0, "PyTorch max-autotune": 60.0, "XLA": 20.0}
"""Seconds that opening one is expected to take, until one was measured; others 10."""
BUILDING = 0.45
"""The share of the time in which engines are built; what is not there then is for the next call."""
ROUNDS = (7, 60)
BLOCK = 0.01
"""Seconds of the device that one measurement takes, about."""
PATIENCE = 180.0


class Clock:
    """The time that is left, and what takes how long."""

    def __init__(self, minutes: float) -> None:
        self._start, self.seconds = time.monotonic(), 60 * minutes
        self._taken = dict(SLOW)

    def share(self, part: float) -> float:
        """When a part of the time is over, as `time.monotonic` says it."""
        return self._start + part * self.seconds

    def allows(self, peer: str) -> bool:
        """Whether there is time to open one, and to measure it."""
        return time.monotonic() + self._taken.get(peer, 10.0) < self._start + self.seconds

    def took(self, peer: str, seconds: float) -> None:
        """Notes how long opening took, the longest time counting."""
        self._taken[peer] = max(seconds, self._taken.get(peer, 0.0) if peer not in SLOW else 0.0)


def tell(text: str) -> None:
    """Progress, away from what is written."""
    print(f"{datetime.datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


def cases(arguments: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    """Rows of the table, one image before several."""
    for images, precision, network in itertools.product(arguments.images, arguments.precisions, arguments.networks):
        yield network, precision, images


def jobs(place: building.Place, arguments: argparse.Namespace, peers: Sequence[str]) -> list[building.Job]:
    """What is to be built, but for what all else needs."""
    target = ["--target", "cuda", *(["--arch", arguments.arch] if arguments.arch else [])]
    found = [
        building.expected_job(place, network, images)
        for images, network in itertools.product(arguments.images, arguments.networks)
    ]
    kinds = dict.fromkeys(ENGINES[peer] for peer in peers if peer in ENGINES and ENGINES[peer] != "tuned")
    for (network, precision, images), kind in itertools.product(cases(arguments), kinds):
        found.append(building.engine_job(place, network, precision, images, kind, target))
    return found


def tuned(place: building.Place, arguments: argparse.Namespace, wrong: dict[Path, str]) -> None:
    """Tunes engines, one after the other: each has the GPU and all processors for itself."""
    target = ["--target", "cuda", *(["--arch", arguments.arch] if arguments.arch else [])]
    for network, precision, images in cases(arguments):
        tell(f"tuning {network} {precision} {images}")
        job = building.engine_job(place, network, precision, images, "tuned", target, arguments.tune)
        wrong |= building.build([job], 1, time.monotonic() + 1200, lambda _: None)


class Peers:
    """The processes that measure: a context, which ends them. One that went wrong is started anew."""

    def __init__(self) -> None:
        self._children: dict[tuple[str, bool], Child] = {}

    def __enter__(self) -> Peers:
        return self

    def __exit__(self, *_: object) -> None:
        for key in list(self._children):
            self.end(*key)

    def end(self, peer: str, tf32: bool) -> None:
        """Ends one, if it is there."""
        if child := self._children.pop((peer, tf32), None):
            child.__exit__()

    def ask(self, peer: str, tf32: bool, request: Mapping[str, Any], patience: float = PATIENCE) -> dict[str, Any]:
        """The reply; raises TargetError, after which the process is another one."""
        if (peer, tf32) not in self._children:
            # ONNX Runtime cannot tell TensorRT, which reads this when it is loaded.
            switch = {} if tf32 else {"NVIDIA_TF32_OVERRIDE": "0"}
            before = dict(os.environ)
            os.environ.update(switch)
            try:
                self._children[peer, tf32] = Child("benchmarks.gpu.peer", peer, None, lambda _: None)
            finally:
                os.environ.clear()
                os.environ.update(before)
        try:
            return self._children[peer, tf32].ask(request, patience)
        except TargetError:
            self.end(peer, tf32)
            raise


def measure(
    peers: Peers, names: Sequence[str], place: building.Place, case: tuple[str, str, int], clock: Clock,
    seconds: float, wrong: Mapping[Path, str],
) -> list[dict[str, Any]]:  # fmt: skip
    """What the alternatives of a row take, in turn; those that there was no time for are not in it."""
    network, precision, images = case
    tf32 = precision == "tf32"
    rows: dict[str, dict[str, Any]] = {}
    device: dict[str, int] = {}
    for name in names:
        row = {"network": network, "precision": precision, "images": images, "peer": name}
        engine = place.engine(network, precision, images, ENGINES.get(name, ""))
        if name == "CPU":
            engine = place.engine(network, "fp32", 1, "cpu")
        if (name in ENGINES or name == "CPU") and not engine.exists():
            if engine in wrong and wrong[engine] != "no time left":
                rows[name] = {**row, "wrong": wrong[engine]}
            continue
        if not clock.allows(name):
            continue
        tell(f"{network} {precision} {images}: opening {name}")
        request = {
            "do": "open", "peer": name, "engine": str(engine), "cfg": str(place.cfg(network)),
            "weights": str(place.weights(network)), "precision": precision,
            "expected": str(place.expected(network, images)),
        }  # fmt: skip
        try:
            opened = peers.ask(name, tf32, request)
            clock.took(name, opened["seconds"])
            rows[name] = {**row, "error": opened["off"]}
            if name != "dnc boxes":
                once = peers.ask(name, tf32, {"do": "device", "runs": 3})["seconds"]
                device[name] = max(1, min(200, round(BLOCK / max(once, 1e-7))))
        except TargetError as error:
            rows[name] = {**row, "wrong": error.message}
    working = [name for name, row in rows.items() if "wrong" not in row]
    try:
        runs = {
            name: lambda name=name: float(peers.ask(name, tf32, {"do": "device", "runs": device[name]})["seconds"])
            for name in working
            if name in device
        }
        if runs:
            timings = interleave(runs, seconds=seconds * len(runs), rounds=ROUNDS)
            for name in runs:
                rows[name]["device"] = timings.median(name)
                if name != working[0]:
                    rows[name]["ratio"] = timings.ratio(name, working[0]).rounded()
        hosts = {name: lambda name=name: float(peers.ask(name, tf32, {"do": "host"})["seconds"]) for name in working}
        if hosts:
            timings = interleave(hosts, seconds=seconds * len(hosts), rounds=ROUNDS)
            for name in hosts:
                rows[name]["host"] = timings.median(name)
    except TargetError as error:
        tell(f"{network} {precision} {images}: {error.message}")
        return [row for row in rows.values() if "device" in row or "wrong" in row]
    finally:
        for name in working:
            with suppress(TargetError):
                peers.ask(name, tf32, {"do": "close"})
    return list(rows.values())


def machine(command: Sequence[str]) -> dict[str, Any]:
    """The GPU, the libraries and the command."""
    names = (
        "darknet-compiler",
        "apache-tvm",
        "onnxruntime-gpu",
        "torch",
        "jax",
        "tensorrt",
        "nvidia-cudnn-cu13",
        "nvidia-cuda-nvcc",
    )
    versions = {}
    for name in names:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    gpu = gpus()[0] if gpus() else None
    return {
        "gpu": f"{gpu.name} ({gpu.arch}), driver {gpu.driver}" if gpu else f"no GPU: {device_name()}",
        "host": f"{device_name()}, {len(os.sched_getaffinity(0))} processors",
        "date": str(datetime.date.today()),
        "versions": versions,
        "command": shlex.join(["python", "-m", "benchmarks.gpu", *command]),
    }


def words(text: str) -> list[str]:
    """Splits an argument at commas."""
    return text.split(",")


def main() -> None:
    """Builds, measures, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help="with --check, of tests/golden")
    parser.add_argument(
        "--precisions", type=words, default=["fp16", "fp32", "tf32"], metavar="P,…", help="int8, bf16 too"
    )
    parser.add_argument(
        "--images", type=lambda text: [int(word) for word in words(text)], default=[1, 16], metavar="N,…"
    )
    parser.add_argument("--peers", type=words, metavar="NAME,…", help="else all that is installed")
    parser.add_argument("--arch", default="", help="the GPU, where there is none to build engines on")
    parser.add_argument("--minutes", type=float, default=9.5, help="for all; the next call goes on")
    parser.add_argument("--seconds", type=float, default=0.25, help="for each number")
    parser.add_argument("--processes", type=int, default=max(1, len(os.sched_getaffinity(0)) - 2), help="that build")
    parser.add_argument("--folder", type=Path, default=Path("build/gpu"))
    parser.add_argument("--trained", type=Path)
    parser.add_argument("--calibrate-on", nargs="*", default=[], metavar="SOURCE", help="for int8; else one photograph")
    parser.add_argument("--tune", default="", metavar="TIME", help="tune each row so long, and measure dnc tuned")
    parser.add_argument("--cpu", action="store_true", help="try the script: engines of target onnx, PyTorch and JAX")
    parser.add_argument("--check", action="store_true", help="only compare numbers: see checking.py")
    parser.add_argument("--sanitizer", action="store_true", help="--check under compute-sanitizer")
    parser.add_argument("--page", action="store_true", help="only write the page")
    arguments = parser.parse_args()
    if arguments.page:
        page.write()
        return
    if arguments.check:
        sys.exit(
            checking.check(
                arguments.folder, arguments.networks, arguments.arch, sanitizer=arguments.sanitizer, tell=tell
            )
        )
    arguments.networks = arguments.networks or list(NETWORKS)
    clock = Clock(arguments.minutes)
    place = building.Place(arguments.folder.absolute(), arguments.trained and arguments.trained.absolute())
    known = ["CPU"] if arguments.cpu else [name for name in ENGINES if name != "dnc tuned" or arguments.tune]
    installed = [name for name in NEEDS if name not in known and find_spec(NEEDS[name])]
    known = [name for name in known if find_spec(NEEDS.get(name, "dnc"))] + installed
    if arguments.cpu:
        known = [name for name in known if name not in ENGINES]
    peers = arguments.peers or known
    if unknown := set(peers) - set(known):
        parser.error(f"{', '.join(unknown)}: not there; there is {', '.join(known)}")
    rows_file = place.folder / "rows.jsonl"
    place.folder.mkdir(parents=True, exist_ok=True)
    rows = read(rows_file)
    done = {(row["network"], row["precision"], row["images"], row["peer"]) for row in rows if "network" in row}
    with rows_file.open("a", encoding="utf-8") as file:

        def note(row: Mapping[str, Any]) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()

        note({"machine": machine(sys.argv[1:])})
        until = clock.share(BUILDING)
        first = [building.ground_job(place, network, arguments.calibrate_on) for network in arguments.networks]
        wrong = building.build(first, arguments.processes, until, tell)
        wrong |= building.build(jobs(place, arguments, peers), arguments.processes, until, tell)
        for result, reason in wrong.items():
            tell(f"{result.name}: {reason}")
        if arguments.tune:
            tuned(place, arguments, wrong)
        with ExitStack() as stack:
            processes = stack.enter_context(Peers())
            for case in cases(arguments):
                names = [name for name in peers if name in ENGINES or case[1] not in ALONE]
                names = [name for name in names if (*case, name) not in done]
                if names and place.expected(case[0], case[2]).exists():
                    for row in measure(processes, names, place, case, clock, arguments.seconds, wrong):
                        note(row)
    if not arguments.cpu:
        page.keep(rows_file)
        page.write()


if __name__ == "__main__":
    main()
