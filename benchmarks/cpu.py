"""Latency on the CPU: dnc's engines against ONNX Runtime and OpenVINO by themselves, and other readers of Darknet.

    python benchmarks/cpu.py NET… [--threads 2] [--seconds 20] [--images FOLDER] [--opencv PYTHON] [--ncnn PYTHON]

NET is a .cfg file or the name of a network of cfg/; without weights, random ones stand in, which take as long.

    onnx, openvino, openvino bf16   dnc's engines, as `dnc compile --target … --precision …` makes them
    onnx int8, openvino int8        the same, calibrated on 20 images of --images
    plain ONNX Runtime, OpenVINO    on the ONNX of the graph as it was lowered, before any pass; float32, batch 1
    OpenCV                          readNetFromDarknet, in a process of its own (OpenCV 4: 5 has no such reader)
    ncnn                            pnnx on the same plain ONNX, in a process of its own

One image at a time, the same threads for all. All run in turn, round after round; each runs untimed for 20 ms before it
is timed, because threads of the one before it still spin. Ratios are medians over the rounds, to the fastest peer in
float32, with 95 % intervals. Prints Markdown.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import dnc
from dnc import zoo
from dnc.autotune import device_name
from dnc.calibration.collector import calibrate
from dnc.compiler import preprocessing_for
from dnc.dataset import images as find_images
from dnc.graph import serialize_to
from dnc.lower import lower
from dnc.network import Network
from dnc.targets import targets
from dnc.timing import Timings, interleave
from dnc.weights import write_weights

OURS = {"onnx": {"target": "onnx"}, "openvino": {"target": "openvino"}}
OURS |= {"openvino bf16": {"target": "openvino", "precision": "bf16"}}
EIGHT_BITS = {f"{target} int8": {"target": target, "precision": "int8"} for target in OURS if " " not in target}
CALIBRATED_ON = 20
SETTLE = 0.02

_SERVE = """
import sys, numpy as np
{setup}
x = np.load(sys.argv[-1])
for _ in range(2): run(x)
print("ready", flush=True)
for _ in sys.stdin:
    run(x)
    print("done", flush=True)
"""
OPENCV = """
import cv2
cv2.setNumThreads(int(sys.argv[3]))
net = cv2.dnn.readNetFromDarknet(sys.argv[1], sys.argv[2])
names = net.getUnconnectedOutLayersNames()
def run(x):
    net.setInput(x)
    return net.forward(names)
"""
NCNN = """
import importlib.util, ncnn, pathlib, subprocess
param = sys.argv[1].replace(".onnx", ".ncnn.param")
shape = str(list(np.load(sys.argv[-1]).shape)).replace(" ", "")
if not pathlib.Path(param).exists():
    # Importing pnnx would need torch.
    place = importlib.util.find_spec("pnnx").submodule_search_locations[0]
    subprocess.run([place + "/pnnx", sys.argv[1], "inputshape=" + shape], check=True, stdout=subprocess.DEVNULL)
net = ncnn.Net()
net.opt.num_threads = int(sys.argv[3])
assert net.load_param(param) == 0
assert net.load_model(param.replace(".param", ".bin")) == 0
def run(x):
    with net.create_extractor() as extractor:
        extractor.input(net.input_names()[0], ncnn.Mat(x[0]).clone())
        return [np.array(extractor.extract(name)[1]) for name in net.output_names()]
"""


class Peer:
    """A process that runs once for each line that it is given."""

    def __init__(self, python: str, setup: str, arguments: list[str]) -> None:
        self._process = subprocess.Popen(
            [python, "-c", _SERVE.format(setup=setup), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.ready = self._process.stdout.readline().strip() == "ready"

    def __call__(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self._process.stdout.readline()

    def close(self) -> str:
        """Ends it; the last line of what it complained of."""
        _, errors = self._process.communicate()
        return errors.strip().splitlines()[-1][:100] if errors.strip() else "no message"


def plain(path: Path, x: Any, threads: int) -> dict[str, Callable[[], object]]:
    """ONNX Runtime and OpenVINO as their manuals show them."""
    import onnxruntime
    import openvino

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(str(path), "CPU", config).create_infer_request()
    return {
        "plain ONNX Runtime": lambda: session.run(None, {"input": x}),
        "plain OpenVINO": lambda: request.infer({"input": x}),
    }


def measure(cfg: Path, arguments: argparse.Namespace, folder: Path) -> tuple[Timings, list[str]]:
    """Timings of everything that runs, and what does not."""
    found = zoo.weights_for(cfg)
    network = Network.load(cfg, found)
    weights = found or folder / "random.weights"
    if found is None:
        network = network.with_random_weights()
        with weights.open("wb") as file:
            write_weights(file, network.layers, network.arrays)
        # A calibration knows its network by the file's digest.
        network = Network.load(cfg, weights)
    shape = (1, *network.input_shape)
    x = np.random.default_rng(0).random(shape, np.float32)
    np.save(folder / "x.npy", x)
    runs: dict[str, Callable[[], object]] = {}
    ours: dict[str, dict[str, Any]] = dict(OURS)
    if arguments.images is not None:
        images = find_images([arguments.images], limit=CALIBRATED_ON)
        table = folder / "calibration.json"
        calibrate(network, preprocessing_for(network, weights), images).write(table)
        ours |= {name: {**options, "calibration": table} for name, options in EIGHT_BITS.items()}
    for name, options in ours.items():
        engine = dnc.compile(cfg, weights, out=folder / name, verify=False, **options)
        session = targets[engine.bundle.target](engine.bundle.options).open(engine.folder, arguments.threads)
        runs[f"dnc {name}"] = lambda session=session: session.run({"input": x})  # type: ignore[misc]
    model = folder / "plain.onnx"
    serialize_to(lower(network, batch=1), model)
    runs |= plain(model, x, arguments.threads)
    notes, peers = [], []
    for name, python, setup, files in (
        ("OpenCV", arguments.opencv, OPENCV, [str(cfg), str(weights)]),
        ("ncnn", arguments.ncnn, NCNN, [str(model), ""]),
    ):
        if python is None:
            continue
        peer = Peer(python, setup, [*files, str(arguments.threads), str(folder / "x.npy")])
        if peer.ready:
            runs[name] = peer
            peers.append(peer)
        else:
            notes.append(f"{name} does not run it: {peer.close()}")
    timings = interleave(runs, seconds=arguments.seconds, rounds=(9, 400), settle=SETTLE)
    for peer in peers:
        peer.close()
    return timings, notes


def main() -> None:
    """One table for each network, and the geometric means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--images", metavar="FOLDER")
    parser.add_argument("--opencv", metavar="PYTHON")
    parser.add_argument("--ncnn", metavar="PYTHON")
    arguments = parser.parse_args()
    speeds: dict[str, list[float]] = {}
    print(f"{device_name()}, {arguments.threads} threads\n")
    for each in arguments.networks:
        cfg = zoo.find_cfg(each)
        with tempfile.TemporaryDirectory() as scratch:
            timings, notes = measure(cfg, arguments, Path(scratch))
        best = min((name for name in timings.seconds if not name.startswith("dnc")), key=timings.median)
        print(f"### {cfg.stem}, {timings.rounds} rounds\n")
        print(f"| engine | ms, median | of the time of {best} |\n| --- | --- | --- |")
        for name in timings.seconds:
            ratio = timings.ratio(name, best)
            speeds.setdefault(name, []).append(1 / ratio.value)
            print(f"| {name} | {timings.median(name) * 1e3:.2f} | {ratio} |")
        print("".join(f"\n{note}\n" for note in notes), flush=True)
    print("| engine | speed against the best peer of each network, geometric mean |\n| --- | --- |")
    for name, values in speeds.items():
        count = "" if len(values) == len(arguments.networks) else f" (of {len(values)})"
        print(f"| {name} | {np.exp(np.mean(np.log(values))):.2f}{count} |")


if __name__ == "__main__":
    main()
