"""Chooses how each grouped convolution is computed, by measuring the alternatives on the target's own engine.

    native             as it is
    diagonalwise W     a depthwise convolution as dense blocks of W channels (pass diagonalwise)
    groups G           a grouped one with fewer groups (pass grouped-to-dense)

1. Each convolution is timed in place, on a GPU by the time of the device (`Session.device_run`): with the convolution
   that feeds it, the activations around it and the convolutions that read it, cut out of the network, so that changes
   of layout and lost fusions count. Alternatives that could not win even at the speed of the fastest dense convolution
   seen on the machine are not tried.
2. The best alternative is kept where it is faster beyond the noise.
3. The network as a whole is timed both ways, and the choices are dropped unless it is faster, again beyond the noise:
   the result is never slower than doing nothing.

What was measured is kept in the cache folder by device, engine version, threads and the shapes of what was cut out; a
layer of another network with the same surroundings is not measured again.

"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.errors import DncError
from dnc.files.reading import read_json
from dnc.files.writing import scratch_folder, whole_file
from dnc.graph.builder import where_of
from dnc.graph.composites import is_composite
from dnc.graph.rewriting import attribute
from dnc.graph.serialization import check
from dnc.passes import Pass, passes
from dnc.runtime.inputs import noise
from dnc.runtime.timing import Ratio, Timings, device_name, interleave, processors
from dnc.targets import Target
from dnc.typing import Progress, silent

__all__ = ["NATIVE", "Measured", "Tuned", "autotune"]

NATIVE = "native"
WIDTHS = (8, 16, 32, 64, None)
"""Channels of a diagonalwise block; None is all of them."""
_GAIN = 0.98
"""An alternative is taken if it certainly takes less than this share of the native time: more than rounding."""
_CONFIDENCE = 0.99
_REACH = 6
"""Nodes that are cut out with a convolution, on either side, at most."""
_LEAF_SECONDS = 0.3
_NETWORK_SECONDS = 3.0
_PEAK_SECONDS = 0.5
_SCHEMA = 1

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Measured:
    """What the alternatives of one convolution took."""

    where: str
    kind: str
    """`depthwise 3x3/2, 96 channels, 56x56`."""
    seconds: Mapping[str, float]
    """Medians, by alternative; of the convolution with its surroundings."""
    skipped: Mapping[str, str]
    """Alternatives that were not tried, and why."""
    best: str


@dataclass(frozen=True)
class Tuned:
    """The result of tuning a network."""

    device: str
    layers: Sequence[Measured]
    choices: Mapping[str, str] = field(default_factory=dict)
    """The alternative of each convolution that is not to stay native, by node name."""
    network: Ratio | None = None
    """Time of the tuned network as a multiple of the untuned one's; None where no layer was to change."""
    kept: bool = False

    def passes(self) -> list[Pass]:
        """The passes that carry the choices out; none if they were dropped."""
        return _passes(self.choices) if self.kept else []

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        ratio = self.network and self.network.rounded()
        layers = [
            {
                "where": item.where,
                "kind": item.kind,
                "best": item.best,
                "microseconds": {name: round(seconds * 1e6, 1) for name, seconds in item.seconds.items()},
                "skipped": dict(item.skipped),
            }
            for item in self.layers
        ]
        return {"device": self.device, "kept": self.kept, "ratio": ratio, "layers": layers}


def autotune(
    model: ir.Model,
    target: Target,
    *,
    batch: int = 1,
    threads: int | None = None,
    cache: Path | None = None,
    feeds: Arrays | None = None,
    progress: Progress = silent,
) -> Tuned:
    """Measures the alternatives of every grouped convolution of a model that is ready for the target.

    Args:
        model: after the target's passes; it is not changed.
        target: builds and runs the candidates.
        batch: the batch size that the engine is tuned for.
        threads: as for `Target.open`.
        cache: the folder to keep measurements in; none are kept if not given.
        feeds: inputs for the network as a whole; noise if not given.

    Raises:
        TargetError: the engine does not run the network itself.
    """
    device = f"{device_name()}, {target.engine()}, {threads or processors()} threads"
    memory = _Cache(cache, device)
    sites = [node for node in model.graph if _kind(node)]
    bench = _Bench(target, threads, batch)
    layers: list[Measured] = []
    choices: dict[str, str] = {}
    known: dict[str, Measured] = {}
    try:
        for number, node in enumerate(sites, 1):
            region = _cut_out(model, node)
            key = _signature(region, batch)
            if key not in known:
                progress(f"tuning {number} of {len(sites)}: {_kind(node)}")
                found = memory.get(key)
                if found is None:
                    memory.peak = memory.peak or _peak(bench)
                    found = _measure(bench, region, node, memory.peak)
                known[key] = found
                memory.put(key, found)
            found = known[key]
            layers.append(Measured(where_of(node), found.kind, found.seconds, found.skipped, found.best))
            if found.best != NATIVE:
                choices[node.name or ""] = found.best
    finally:
        # What is stopped goes on from here the next time.
        memory.save()
    if not choices:
        return Tuned(device, layers)
    progress("timing the whole network")
    tuned = model.clone()
    for step in _passes(choices):
        step.rewrite(tuned)
    check(tuned, "tuning")
    timings = bench.compare({NATIVE: model, "tuned": tuned}, _NETWORK_SECONDS, feeds)
    ratio = timings.ratio("tuned", NATIVE, _CONFIDENCE)
    return Tuned(device, layers, choices, ratio, kept=ratio.high < _GAIN)


def _passes(choices: Mapping[str, str]) -> list[Pass]:
    """The alternatives as passes that rewrite these nodes alone."""
    widths: dict[str, int | None] = {}
    groups: dict[str, int] = {}
    for node, choice in choices.items():
        kind, _, number = choice.partition(" ")
        if kind == "diagonalwise":
            widths[node] = None if number == "all" else int(number)
        elif kind == "groups":
            groups[node] = int(number)
    found: list[Pass] = []
    if widths:
        found.append(passes["diagonalwise"](only=widths))
    if groups:
        found.append(passes["grouped-to-dense"](only=groups))
    return found


def _kind(node: ir.Node) -> str:
    """What a convolution with groups is, in words; empty for any other node."""
    groups = attribute(node, "group", 1) if node.op_type == "Conv" else 1
    weights, x = (node.inputs[1], node.inputs[0]) if groups > 1 else (None, None)
    if weights is None or weights.shape is None or x is None or x.shape is None:
        return ""
    filters, per_group, *kernel = weights.shape.numpy()
    what = "depthwise" if per_group == 1 else f"{groups} groups"
    strides = attribute(node, "strides", [1, 1])
    size = "x".join(str(side) for side in x.shape[2:])
    kernel_text = "x".join(map(str, kernel))
    return f"{what} {kernel_text}/{strides[0]}, {groups * per_group} to {filters} channels, {size}"


def _alternatives(node: ir.Node) -> list[str]:
    weights = node.inputs[1]
    assert weights is not None
    assert weights.shape is not None
    groups, per_group = attribute(node, "group", 1), int(weights.shape.numpy()[1])
    if per_group == 1:
        return [f"diagonalwise {width or 'all'}" for width in WIDTHS if width is None or width < groups]
    return [f"groups {fewer}" for fewer in range(1, groups) if groups % fewer == 0]


def _multiply_adds(node: ir.Node) -> float:
    """Of one image; 0 where the shape is unknown."""
    weights, shape = node.inputs[1], node.outputs[0].shape
    if weights is None or weights.shape is None or shape is None:
        return 0.0
    sides = [side for side in shape[2:] if isinstance(side, int)]
    return float(math.prod(weights.shape.numpy())) * math.prod(sides)


def _factor(node: ir.Node, alternative: str) -> float:
    """How many times the multiply-adds of the native form an alternative has."""
    groups = int(attribute(node, "group", 1))
    kind, _, number = alternative.partition(" ")
    if kind == "groups":
        return groups / int(number)
    return float(groups if number == "all" else int(number))


def _cut_out(model: ir.Model, node: ir.Node) -> ir.Model:
    """The convolution with its surroundings, as a model of its own."""
    graph = model.graph
    chosen: set[ir.Node] = {node}
    _spread(chosen, [value.producer() for value in node.inputs[:1] if value is not None], backwards=True)
    _spread(chosen, [use.node for use in node.outputs[0].uses()], backwards=False)
    order = [item for item in graph if item in chosen]
    made = {value for item in order for value in item.outputs}
    inputs: dict[ir.Value, None] = {}
    for item in order:
        for value in item.inputs:
            if value is not None and value not in made and value.const_value is None:
                inputs[value] = None
    outputs = [
        value
        for item in order
        for value in item.outputs
        if value.is_graph_output() or not value.uses() or any(use.node not in chosen for use in value.uses())
    ]
    part = ir.Model(
        ir.convenience.extract(graph, list(inputs), [value for value in outputs if value.uses() or value in outputs]),
        ir_version=model.ir_version,
        producer_name="dnc",
    )
    check(part, "cutting out a layer")
    return part


def _spread(chosen: set[ir.Node], start: Sequence[ir.Node | None], *, backwards: bool) -> None:
    """Adds what lies around, up to and with the next convolution, nearest first."""
    waiting = [item for item in start if item is not None]
    added = 0
    while waiting and added < _REACH:
        nearest = waiting.pop(0)
        inner = any(attr.type == ir.AttributeType.GRAPH for attr in nearest.attributes.values())
        if nearest in chosen or inner or is_composite(nearest):
            continue
        chosen.add(nearest)
        added += 1
        if nearest.op_type == "Conv":
            continue
        if backwards:
            waiting += [producer for value in nearest.inputs if value is not None and (producer := value.producer())]
        else:
            waiting += [use.node for value in nearest.outputs for use in value.uses()]


def _signature(region: ir.Model, batch: int) -> str:
    """Equal for regions that take equally long: operators, attributes, shapes, but neither names nor weights."""
    numbers: dict[ir.Value, int] = {}
    lines = [f"batch {batch}"]
    for value in region.graph.inputs:
        numbers[value] = len(numbers)
        lines.append(f"{value.dtype} {value.shape}")
    for node in region.graph:
        reads = []
        for read in node.inputs:
            if read is None:
                reads.append("-")
            elif read.const_value is not None:
                tensor = read.const_value
                small = tensor.numpy().tolist() if tensor.size <= 8 and tensor.dtype.is_integer() else ""
                reads.append(f"{tensor.dtype} {tensor.shape} {small}")
            else:
                reads.append(f"%{numbers[read]}")
        for value in node.outputs:
            numbers[value] = len(numbers)
        attributes = sorted(f"{name}={attr.value}" for name, attr in node.attributes.items())
        lines.append(f"{node.domain}{node.op_type} {reads} {attributes}")
    lines.append(str([numbers[value] for value in region.graph.outputs]))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


class _Bench:
    """Builds models for a target and times them in turn."""

    def __init__(self, target: Target, threads: int | None, batch: int) -> None:
        self._target, self._threads, self._batch = target, threads, batch

    def compare(self, models: Mapping[str, ir.Model], seconds: float, feeds: Arrays | None = None) -> Timings:
        """Interleaved timings of models with the same inputs."""
        with scratch_folder("tune") as scratch:
            sessions = {}
            for number, (name, model) in enumerate(models.items()):
                folder = scratch / str(number)
                folder.mkdir()
                self._target.build(model, folder)
                sessions[name] = self._target.runner().taking_turns().open(folder, self._threads)
            inputs = dict(feeds) if feeds is not None else self.noise(next(iter(models.values())))
            runs = {name: session.device_run(inputs) for name, session in sessions.items()}
            return interleave(runs, seconds=seconds)

    def noise(self, model: ir.Model) -> dict[str, npt.NDArray[Any]]:
        """Random inputs of a model."""
        generator = np.random.default_rng(0)
        feeds: dict[str, npt.NDArray[Any]] = {}
        for value in model.graph.inputs:
            assert value.shape is not None
            assert value.dtype is not None
            sides = [side if isinstance(side, int) else self._batch for side in value.shape]
            feeds[value.name or ""] = noise(sides, value.dtype.numpy(), generator)
        return feeds


def _measure(bench: _Bench, region: ir.Model, node: ir.Node, fastest: float) -> Measured:
    name = node.name or ""
    models: dict[str, ir.Model] = {NATIVE: region}
    skipped: dict[str, str] = {}
    alone = bench.compare(models, _LEAF_SECONDS / 4).median(NATIVE)
    for alternative in _alternatives(node):
        least = 2 * _multiply_adds(node) * _factor(node, alternative) / fastest
        if least > alone:
            skipped[alternative] = f"{least / alone:.1f} times as long even at the machine's best speed"
            continue
        candidate = region.clone()
        (rewriting,) = _passes({name: alternative})
        remarks = rewriting.rewrite(candidate)
        if not remarks.count:
            skipped[alternative] = remarks.missed[0].text if remarks.missed else "does not apply"
            continue
        check(candidate, rewriting.name)
        models[alternative] = candidate
    timings = bench.compare(models, _LEAF_SECONDS * len(models))
    best = timings.fastest()
    if best != NATIVE and timings.ratio(best, NATIVE, _CONFIDENCE).high > _GAIN:
        best = NATIVE
    return Measured(where_of(node), _kind(node), {form: timings.median(form) for form in models}, skipped, best)


_DENSE = "[net]\nwidth=28\nheight=28\nchannels=256\n[convolutional]\nfilters=256\nsize=3\npad=1\nactivation=linear\n"


def _peak(bench: _Bench) -> float:
    """The most floating-point operations a second that a dense convolution of the target gets."""
    model = lower(Network.parse(_DENSE).with_random_weights(0), batch=1)
    seconds = bench.compare({"dense": model}, _PEAK_SECONDS).seconds["dense"].min()
    # A margin: another shape may be even faster.
    return float(1.5 * 2 * 256 * 256 * 9 * 28 * 28 / seconds)


_LARGEST_CACHE = 1 << 26
"""Bytes; a region takes some 300."""


class _Cache:
    """Measurements of one device, in one JSON file of the cache folder. A damaged one counts as empty."""

    def __init__(self, folder: Path | None, device: str) -> None:
        digest = hashlib.sha256(device.encode()).hexdigest()[:16]
        self._path = None if folder is None else folder / "autotune" / f"{digest}.json"
        self._device = device
        self._found: dict[str, dict[str, Any]] = {}
        self.peak: float | None = None
        """Operations a second of the machine, once measured."""
        try:
            content = read_json(self._path, _LARGEST_CACHE) if self._path is not None else {}
            if content.get("schema") == _SCHEMA and content.get("device") == device:
                self._found, known = dict(content["layers"]), content["peak"]
                self.peak = known if isinstance(known, float) else None
        except (OSError, ValueError, AttributeError, KeyError, TypeError):
            self._found = {}

    def get(self, key: str) -> Measured | None:
        """What was measured of a region; None if nothing."""
        item = self._found.get(key)
        try:
            return None if item is None else Measured(where="", **item)
        except TypeError:
            return None

    def put(self, key: str, measured: Measured) -> None:
        """Remembers a measurement."""
        self._found[key] = {name: value for name, value in vars(measured).items() if name != "where"}

    def save(self) -> None:
        """Writes the file anew; a cache that cannot be written is no error."""
        if self._path is None:
            return
        content = {"schema": _SCHEMA, "device": self._device, "peak": self.peak, "layers": self._found}
        with suppress(OSError, DncError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(self._path) as file:
                file.write(json.dumps(content, indent=1, sort_keys=True).encode())
