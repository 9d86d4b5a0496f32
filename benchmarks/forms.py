"""What the formula of `dnc.targets.cuda.schedules.forms` says of kernels, against what a GPU took for them.

    python benchmarks/forms.py PROFILE.jsonl… [--weights FOLDER] [--clock 1.755] [--refit]

A line of a profile is the kernels of an engine of back end tvm, in the order in which they run:

    {"tag": "efficientnet-b0.fp16.1", "rows": [[name, microseconds, grid, block, registers, shared], ...], "gpu": "…"}

The tag is the network, the precision and the images; behind a dot may follow `new`, for kinds of kernels that no GPU
had run. Other lines are left out, and so are engines whose kernels this version of dnc writes no more. `gpu` may be
left out.

Of convolutions and connected layers grid and threads tell the form, of which the formula says how many cycles it takes;
--clock is how many there are in a nanosecond. Of other kernels there is no formula: they are compared with

    microseconds = launch + bytes / bandwidth

whose two numbers are fitted here, rule by rule, and so are about the GPU, not about dnc. Prints Markdown: how many
times what was predicted was measured (geometric mean, standard deviation as a factor, extremes).

--refit fits the formula's numbers (`Costs`, and the rate of each kind) to the profiles, by least squares of logarithms,
each network counting the same; says how far off the formula is for a network that it was not fitted to; and what it
would choose instead of what was measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from dnc.darknet.cfg import find_cfg
from dnc.darknet.lower import lower
from dnc.darknet.network import Network as Darknet
from dnc.runtime.runners.cuda.device import Device
from dnc.targets.cuda.lowering import Network
from dnc.targets.cuda.schedules import tensors, tiled
from dnc.targets.cuda.schedules.forms import Costs, Form, Tile, cycles, forms_of
from dnc.targets.cuda.target import Cuda
from dnc.targets.tvm.emit import emit
from dnc.targets.tvm.provenance import kernels_of
from dnc.targets.tvm.schedules.dense import product
from dnc.targets.tvm.schedules.stages import inlined, read, segments
from dnc.targets.tvm.schedules.window import Window, match
from dnc.typing import Array

KINDS: Mapping[str, tuple[Sequence[Tile], float]] = {
    "product": (tiled.SCALAR_TILES, tiled._RATE),
    "tensor-product": (tensors._TILES, tensors._RATE),
    "tf32-product": (tensors._TF32_TILES, tensors._TF32_RATE),
}
"""Tiles and rate of each rule that the formula is for."""
ARCH = "sm_90"
DEVICE = Device.of([ARCH])
WEAK = 0.05
"""Weight of what the numbers were, against what kernels say."""


@dataclass(frozen=True)
class Measured:
    """A kernel."""

    engine: str
    name: str
    rule: str
    microseconds: float
    bytes: int
    """Of its parameters."""
    window: Window | None = None
    form: Form | None = None
    """If there is a formula for it."""


def compiled(tag: str, folder: Path) -> Network:
    """The network of a tag."""
    name, precision, images = tag.removesuffix(".new").rsplit(".", 2)
    own = folder / f"{name}.cfg"
    path = own if own.is_file() else find_cfg(name)
    weights = path.with_suffix(".weights")
    darknet = Darknet.load(path, weights) if weights.is_file() else Darknet.load(path, None).with_random_weights()
    target = Cuda({"backend": "tvm", "arch": ARCH, "precision": precision}).candidates()[0]
    model = lower(darknet, batch=int(images))
    target.pipeline().run(model)
    host = tvm.target.Target({"kind": "llvm"})
    switches = {"tf32": precision == "tf32", "new": tag.endswith(".new")}
    return Network(emit(model), [ARCH], host, lambda _: b"", **switches)


def kernels(tag: str, rows: Sequence[Any], folder: Path) -> list[Measured]:
    """The kernels of an engine; raises ValueError if this version of dnc writes others."""
    network = compiled(tag, folder)
    functions = network.functions()
    left = iter(rows)
    found = []
    for name, _ in kernels_of(network.loops):
        if name not in functions:
            # It is a view.
            continue
        rules = functions[name][1].split("+")
        given = network.loops[name].params
        stages = inlined(read(network.loops[name]), given)
        parts = segments(stages, given)
        size = sum(math.prod(map(int, each.shape)) * int(each.dtype.bits) // 8 for each in given)
        # What a kernel replaces comes before it.
        for rule, part in zip(rules, parts[-len(rules) :], strict=True):
            title, microseconds, grid, block, *_ = next(left, ["", 0, (), ()])
            if not title.startswith(f"{name}_kernel"[: len(title)]) or not title:
                raise ValueError(f"{name} was {title or 'not there'}")
            measured = Measured(tag, name, rule, microseconds, size)
            if rule in KINDS:
                window = match(part, stages) or product(part)
                assert window is not None
                measured = replace(measured, window=window, form=form_of(window, rule, grid, block[0]))
            found.append(measured)
    if next(left, None) is not None:
        raise ValueError("there were more")
    return found


def form_of(window: Window, rule: str, grid: Sequence[int], threads: int) -> Form:
    """The form that a grid tells; of several, that which the formula likes best."""
    pixels, channels = math.prod(window.output[:3]), window.output[3] // window.groups
    for _, form in forms_of(window, *KINDS[rule], DEVICE):
        tile = form.tile
        wanted = (-(-pixels // tile.rows), -(-channels // tile.columns), window.groups * form.parts)
        if wanted == tuple(grid) and tile.threads == threads:
            return form
    raise ValueError(f"no tile of {rule} has a grid of {grid}")


def profiled(paths: Sequence[Path], folder: Path) -> Iterator[tuple[str, list[Measured]]]:
    """GPUs, and kernels of an engine."""
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            tag = row["tag"]
            if not row.get("rows") or not tag.removesuffix(".new").rpartition(".")[2].isdigit():
                continue
            try:
                yield row.get("gpu", ""), kernels(tag, row["rows"], folder)
            except ValueError as error:
                print(f"{tag} is left out: {error}\n")


def line(title: str, ratios: Sequence[float], names: Sequence[str]) -> str:
    """A row of the tables: how many times the prediction is measured."""
    logs = np.log(ratios)
    worst = names[int(np.abs(logs).argmax())]
    numbers = f"{math.exp(logs.mean()):.2f} | {math.exp(logs.std()):.2f} | {min(ratios):.2f} - {max(ratios):.2f}"
    return f"| {title} | {len(ratios)} | {numbers} | {worst} |"


def head(title: str) -> None:
    """The head of a table."""
    print(f"| {title} | kernels | measured / predicted | deviation, as a factor | extremes | the worst |")
    print("| --- | --- | --- | --- | --- | --- |")


def least_squares(residuals: Callable[[Array], Array], start: Array) -> Array:
    """The numbers that make the sum of squares least (Levenberg and Marquardt), by differences."""
    at, damping = start, 1.0
    here = residuals(at)
    for _ in range(100):
        slopes = np.stack([(residuals(at + step) - here) / 0.02 for step in 0.02 * np.eye(len(at))], 1)
        square = slopes.T @ slopes
        step = np.linalg.solve(square + damping * np.diag(np.diag(square) + 1e-9), -slopes.T @ here)
        there = residuals(at + step)
        if there @ there < here @ here:
            at, here, damping = at + step, there, damping / 3
        else:
            damping *= 4
    return at


class Fit:
    """The formula with numbers of its own.

    Args:
        known: kernels with forms.
        clock: cycles in a microsecond.
    """

    def __init__(self, known: Sequence[Measured], clock: float) -> None:
        self._clock = clock
        self._fields = [field.name for field in dataclasses.fields(Costs)]
        self._rules = sorted({each.rule for each in known})
        usual = [*dataclasses.astuple(Costs()), *(KINDS[rule][1] for rule in self._rules)]
        start = np.log(usual)
        engines = [each.engine for each in known]
        weights = np.array([engines.count(engine) ** -0.5 for engine in engines])

        def residuals(logs: Array) -> Array:
            off = [math.log(self.microseconds(each, logs) / each.microseconds) for each in known]
            # An outlier counts less than its square.
            return np.concatenate([weights * 4 * np.arctan(np.array(off) / 2) / 2, WEAK * (logs - start)])

        self.logs = least_squares(residuals, start) if known else start

    def microseconds(self, each: Measured, logs: Array | None = None, form: Form | None = None) -> float:
        """What the formula says of a kernel, or of it in another form."""
        numbers = np.exp(self.logs if logs is None else logs)
        count = len(self._fields)
        rates = dict(zip(self._rules, numbers[count:], strict=True))
        costs = Costs(*map(float, numbers[:count]))
        assert each.window is not None
        wanted = form or each.form
        assert wanted is not None
        return cycles(each.window, wanted, rates[each.rule], DEVICE, costs) / self._clock

    def choice(self, each: Measured) -> Form:
        """The form that it would take."""
        forms = [form for _, form in forms_of(each.window, *KINDS[each.rule], DEVICE)]
        return min(forms, key=lambda form: self.microseconds(each, form=form))

    def __str__(self) -> str:
        names = [*self._fields, *(f"rate of {rule}" for rule in self._rules)]
        return ", ".join(f"{name} {value:.4g}" for name, value in zip(names, np.exp(self.logs), strict=True))


def refit(known: Sequence[Measured], clock: float) -> None:
    """Prints what fits better, and what comes of it."""
    fit = Fit(known, clock)
    print(f"\nFitted: {fit}\n")
    engines = sorted({each.engine for each in known})
    head("engine, fitted without it")
    for engine in engines:
        own = [each for each in known if each.engine == engine]
        # A rule of which nothing else is known keeps its rate.
        other = Fit([each for each in known if each.engine != engine], clock)
        seen = [each for each in own if any(each.rule == more.rule for more in known if more.engine != engine)]
        if seen:
            print(line(engine, [each.microseconds / other.microseconds(each) for each in seen], [e.name for e in seen]))
    print("\n| engine | kernels | measured | fitted, as measured | with what the fit chooses | other forms |")
    print("| --- | --- | --- | --- | --- | --- |")
    for engine in engines:
        own = [each for each in known if each.engine == engine]
        chosen = [fit.choice(each) for each in own]
        sums = [
            sum(each.microseconds for each in own),
            sum(fit.microseconds(each) for each in own),
            sum(fit.microseconds(each, form=form) for each, form in zip(own, chosen, strict=True)),
        ]
        changed = sum(form != each.form for each, form in zip(own, chosen, strict=True))
        print(f"| {engine} | {len(own)} | {' | '.join(f'{total:.1f}' for total in sums)} | {changed} |")


def simple(found: Sequence[Measured]) -> tuple[list[float], str]:
    """Microseconds by launch and bandwidth, and what these are."""

    def predicted(logs: Array) -> Array:
        return np.exp(logs[0]) + np.array([each.bytes for each in found]) / (1e3 * np.exp(logs[1]))

    taken = np.array([each.microseconds for each in found])
    logs = least_squares(lambda logs: np.log(predicted(logs) / taken), np.log([2.0, 1000.0]))
    return [float(time) for time in predicted(logs)], f"{np.exp(logs[0]):.1f} us, {np.exp(logs[1]):.0f} GB/s"


def main() -> None:
    """Reads profiles and prints tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profiles", nargs="+", type=Path)
    parser.add_argument("--weights", type=Path, default=Path(), help="a folder with cfgs and weights of networks")
    parser.add_argument("--clock", type=float, default=1.755, help="cycles in a nanosecond")
    parser.add_argument("--refit", action="store_true", help="fit the formula to the profiles")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    clock = given.clock * 1000
    by_gpu: dict[str, list[Measured]] = {}
    for gpu, found in profiled(given.profiles, given.weights):
        by_gpu.setdefault(gpu, []).extend(found)
    for gpu, found in by_gpu.items():
        print(f"## {gpu or 'GPU'}\n")
        head("rule")
        for rule in sorted({each.rule for each in found}):
            own = [each for each in found if each.rule == rule]
            if rule in KINDS:
                times = [cycles(each.window, each.form, KINDS[rule][1], DEVICE) / clock for each in own]
                title = rule
            else:
                times, numbers = simple(own)
                title = f"{rule}: {numbers}"
            ratios = [each.microseconds / time for each, time in zip(own, times, strict=True)]
            print(line(title, ratios, [f"{each.engine} {each.name}" for each in own]))
        if given.refit:
            refit([each for each in found if each.form is not None], clock)


if __name__ == "__main__":
    main()
