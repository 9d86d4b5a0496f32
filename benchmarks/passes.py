"""What each pass is worth: latency of a network before and after it, on every engine that is installed.

    python benchmarks/passes.py NET… [--targets onnx,…] [--threads 2] [--seconds 20] [--layers]

NET is a .cfg file or the name of a network of cfg/; without weights, random ones stand in, which take as long. For each
network the target's own list of passes is applied one by one, and the model after each is a candidate; further ones
rewrite every depthwise or grouped layer at once. All are run in turn, one image at a time; the ratios are medians over
the rounds, with 95 % intervals, to the graph as it was lowered. --layers adds what --autotune of dnc compile measures:
native, diagonalwise and dense forms of each grouped convolution, in place.
Prints Markdown.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import onnx_ir as ir

from dnc import zoo
from dnc.compiler.autotuning import autotune
from dnc.darknet.cfg import find_cfg
from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.graph.pipeline import Pipeline
from dnc.graph.verification import feeds_for
from dnc.passes import Pass, passes
from dnc.runtime.timing import Timings, device_name, interleave
from dnc.targets import Target, targets

MORE = ("diagonalwise", "grouped-to-dense")


def candidates(network: Network, target: Target) -> dict[str, ir.Model]:
    """The lowered graph, the graph after each pass that applied, and with further rewritings after them."""
    model = lower(network, batch=1)
    variants = {"as lowered": model.clone()}
    for step in target.optimizations():
        (applied,) = Pipeline([step]).run(model)
        if applied.count:
            variants[f"+ {step.name} x{applied.count}"] = model.clone()
    for name in MORE:
        copy = model.clone()
        cleanup: list[Pass] = [passes[name](), passes["eliminate-dead-code"]()]
        applied = Pipeline(cleanup).run(copy)[0]
        if applied.count:
            variants[f"all, and {name} x{applied.count}"] = copy
    return variants


def measure(models: dict[str, ir.Model], target: Target, threads: int, seconds: float) -> Timings:
    """Builds and opens every candidate, and runs them in turn."""
    with tempfile.TemporaryDirectory() as scratch:
        runs = {}
        for number, (name, model) in enumerate(models.items()):
            folder = Path(scratch) / str(number)
            folder.mkdir()
            target.build(model, folder)
            session = target.open(folder, threads)
            feeds = feeds_for(model, images=1)
            runs[name] = lambda session=session, feeds=feeds: session.run(feeds)
        return interleave(runs, seconds=seconds, rounds=(7, 400))


def main() -> None:
    """Prints a table for each network and engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+")
    parser.add_argument("--targets", default=",".join(name for name in targets if name not in ("cpu", "cuda")))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--layers", action="store_true")
    arguments = parser.parse_args()
    for name in arguments.targets.split(","):
        target = targets[name]().taking_turns()
        if target.missing():
            print(f"target {name}: {target.missing()} is not installed\n")
            continue
        for name in arguments.networks:
            cfg = find_cfg(name)
            weights = zoo.weights_for(cfg)
            network = Network.load(cfg, weights)
            if weights is None:
                network = network.with_random_weights()
            models = candidates(network, target)
            timings = measure(models, target, arguments.threads, arguments.seconds)
            flops = sum(layer.flops() for layer in network.layers) / 1e9
            print(f"### {cfg.stem} ({flops:.2f} BFLOPs), {target.engine()}, {timings.rounds} rounds\n")
            print("| graph | ms, median | of the time as lowered |\n| --- | --- | --- |")
            for candidate in models:
                ratio = timings.ratio(candidate, "as lowered")
                print(f"| {candidate} | {timings.median(candidate) * 1e3:.2f} | {ratio} |")
            print(flush=True)
            if arguments.layers:
                model = lower(network, batch=1)
                Pipeline(target.optimizations()).run(model)
                layers(model, target, arguments.threads)


def layers(model: ir.Model, target: Target, threads: int) -> None:
    """The alternatives of each grouped convolution; equal ones once."""
    tuned = autotune(model, target, threads=threads)
    if not tuned.layers:
        return
    names = list(dict.fromkeys(name for layer in tuned.layers for name in layer.seconds))
    print(f"Grouped convolutions with their surroundings, microseconds, {device_name()}:\n")
    print("| convolution | " + " | ".join(names) + " |\n| --- |" + " --- |" * len(names))
    for kind, seconds in {layer.kind: layer.seconds for layer in tuned.layers}.items():
        row = [f"{seconds[name] * 1e6:.0f}" if name in seconds else "" for name in names]
        print(f"| {kind} | " + " | ".join(row) + " |")
    print(f"\nThe whole network with the best of each: {tuned.network or 'native is best everywhere'}\n", flush=True)


if __name__ == "__main__":
    main()
