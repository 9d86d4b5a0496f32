"""What the commands show: tables, drawn by rich on a terminal and aligned with blanks elsewhere, and their JSON.

The table of a network is Darknet's own: a row for each layer with its filters, size and stride, input and output as
width x height x channels, and BFLOPs. These are Darknet's counts (`Layer.flops`): two for each multiply-add of a
convolution, the window for each pixel of a pool, one for each element of a shortcut, nothing for activations. Fully
connected and recurrent layers, for which Darknet's table has no count, have that of `darknet ops`. An operation of a
layer with xnor=1 is one on single bits, of which Darknet counts 32 as one; BOPs, billions of them, stand beside it, and
sums tell both apart.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnc.cli import print_json
from dnc.errors import BundleError, CalibrationError, printable
from dnc.tables import Column, Table

if TYPE_CHECKING:
    from dnc.darknet.layers.base import Layer, Shape
    from dnc.darknet.network import Network
    from dnc.evaluation.comparison import Comparison
    from dnc.graph.quantization import Range
    from dnc.quantization.calibration import Calibration
    from dnc.runtime.manifest import Manifest
    from dnc.runtime.options import Option
    from dnc.runtime.preprocessing import Preprocessing

__all__ = [
    "calibration_json",
    "calibration_table",
    "calibration_text",
    "comparison_json",
    "comparison_table",
    "dims",
    "eight_bits",
    "engine_json",
    "engine_text",
    "network_json",
    "network_table",
    "operations",
    "options_json",
    "show_options",
    "summary",
    "totals",
    "verdict",
]


def dims(shape: Shape) -> str:
    """A shape in Darknet's order: `416 x 416 x 3` for (3, 416, 416), `1000` for (1000,)."""
    return " x ".join(map(str, [*shape[1:][::-1], shape[0]]))


def network_table(network: Network) -> Table:
    """A row for each layer."""
    bits = any(layer.bit_operations() for layer in network.layers)
    titles = ["layer", "type", "filters", "size/stride", "input", "output", "BFLOPs"] + ["BOPs"] * bits
    left = ("type", "size/stride")
    columns = [Column(title, right=title not in left, folds=title == "size/stride") for title in titles]
    # What most layers read is the output of the one above.
    table = Table(columns, spare=["input"])
    for layer in network.layers:
        filters, settings = _settings(layer)
        read = dims(layer.input_shape) if layer.sources == (layer.index - 1,) else ""
        flops = f"{layer.flops() / 1e9:.3f}" if layer.flops() else ""
        single = [f"{layer.bit_operations() / 1e9:.3f}" if layer.bit_operations() else ""] * bits
        table.add(str(layer.index), layer.name, filters, settings, read, dims(layer.shape), flops, *single)
    return table


def _settings(layer: Layer) -> tuple[str, str]:
    """`Layer.describe` in two: the filters, where a size follows them, and the rest."""
    filters = re.match(r"(\d+(?:/\d+)?)  (\d+ x .+)", layer.describe())
    return (filters[1], filters[2]) if filters else ("", layer.describe())


def totals(network: Network, weights: str | Path | None = None) -> str:
    """Sums up layers, parameters, operations and bytes of the .weights file (of the usual header if none is given)."""
    flops = operations(_bflops(network), _bit_operations(network))
    return (
        f"{len(network.layers)} layers, {network.parameters():,} parameters, {flops}, "
        f"{_weights_bytes(network, weights):,} bytes of weights"
    )


def operations(bflops: float, bit_operations: float) -> str:
    """What is computed.

    Args:
        bflops: as Darknet counts, a 32nd of those on bits among them.
        bit_operations: those on bits.
    """
    if not bit_operations:
        return f"{bflops:.3f} BFLOPs"
    bops = bit_operations / 1e9
    return f"{bflops - bops / 32:.3f} BFLOPs + {bops:.3f} BOPs (for Darknet {bflops:.3f} BFLOPs)"


def _bflops(network: Network) -> float:
    return sum(layer.flops() for layer in network.layers) / 1e9


def _bit_operations(network: Network) -> float:
    return sum(layer.bit_operations() for layer in network.layers)


def _weights_bytes(network: Network, weights: str | Path | None) -> int:
    if weights is not None:
        return Path(weights).stat().st_size
    from dnc.darknet.weights import Header

    return len(Header().pack()) + 4 * network.parameters()


def network_json(network: Network, weights: str | Path | None = None) -> dict[str, Any]:
    """The table and the totals; shapes are (channels, height, width)."""
    from dnc.darknet.weights import count

    return {
        "cfg": network.file,
        "weights": network.weights or None,
        "digest": network.digest,
        "input": list(network.input_shape),
        "layers": [
            {
                "index": layer.index,
                "type": layer.name,
                "line": layer.where.line,
                "settings": layer.describe(),
                "sources": list(layer.sources),
                "output": list(layer.shape),
                "parameters": count(layer),
                "bflops": layer.flops() / 1e9,
                "bit_operations": layer.bit_operations(),
            }
            for layer in network.layers
        ],
        "outputs": [layer.index for layer in network.outputs],
        "parameters": network.parameters(),
        "bflops": _bflops(network),
        "bit_operations": _bit_operations(network),
        "float_operations": _bflops(network) * 1e9 - _bit_operations(network) / 32,
        "weights_bytes": _weights_bytes(network, weights),
    }


def listed_labels(manifest: Manifest) -> str:
    """How many names of classes there are, and the first three; empty if there are none."""
    first = ", ".join(manifest.labels[:3]) + (", ..." if len(manifest.labels) > 3 else "")
    return f"{len(manifest.labels)}: {first}" if manifest.labels else ""


def engine_json(manifest: Manifest, folder: Path) -> dict[str, Any]:
    """engine.json's contents, the labels, and what the folder, or the package, takes."""
    labels = list(manifest.labels)
    return {"folder": str(folder), **manifest.to_json(), "labels": labels, "bytes": _folder_bytes(folder)}


def _folder_bytes(folder: Path) -> int:
    files = [folder] if folder.is_file() else folder.iterdir()
    return sum(path.stat().st_size for path in files if path.is_file())


def engine_text(manifest: Manifest, folder: Path) -> str:
    """Describes an engine, a folder or a package, by its engine.json, a line or a few for each entry."""
    network = manifest.network
    outputs = [f"{name} {_array(shape)}" for name, shape in zip(manifest.outputs, manifest.output_shapes, strict=True)]
    shape = manifest.input_shape
    if manifest.input_dtype == "uint8":
        taken = f"uint8 ({manifest.batch}, height, width, {shape[0]}), pixels of an image of any size"
    else:
        taken = f"float32 ({', '.join(map(str, (manifest.batch, *shape)))})"
    heads = [
        f"{output['kind']}: {output['classes']} classes, {output['where']}"
        for output in (head.to_json() for head in manifest.heads)
    ]
    applied = [f"{item['name']} x{item['applied']}" for item in manifest.passes if item["applied"]]
    facts: list[tuple[str, Sequence[str]]] = [
        ("engine", [f"{folder}, {_folder_bytes(folder) / 1e6:.1f} MB"]),
        ("target", [manifest.target]),
        (
            "network",
            [
                f"{network['cfg']}, {network['layers']} layers, {network['parameters']:,} parameters, "
                f"{operations(network['bflops'], network.get('bit_operations', 0))}",
                f"sha256 {network['digest']}",
            ],
        ),
        ("input", [taken, *manifest.extra_inputs]),
        ("preprocessing", [_preprocessing(manifest.preprocessing)]),
        ("outputs", outputs),
        ("states", [f"{name} {_array(state)}" for name, state in manifest.states.items()]),
        ("decoding", [manifest.decode] if heads else []),
        ("heads", heads),
        ("labels", [listed_labels(manifest) or "none"]),
        ("passes", [", ".join(applied) or "none applied"]),
        *((topic, [text]) for topic, text in eight_bits(manifest)),
        ("made with", [", ".join(f"{name} {version}" for name, version in manifest.tools.items())]),
    ]
    return _facts(facts)


def _facts(facts: Sequence[tuple[str, Sequence[str]]]) -> str:
    """A line for each value, the title before the first of its own."""
    width = max(len(title) for title, _ in facts)
    lines = []
    for title, values in facts:
        for number, value in enumerate(values):
            lines.append(f"{'' if number else title:<{width}}  {printable(value)}")
    return "\n".join(lines)


def eight_bits(manifest: Manifest) -> list[tuple[str, str]]:
    """What there is to say of an engine's 8-bit numbers, by topic."""
    from dnc.runtime.arithmetic import KINDS, UNKNOWN

    said = []
    if manifest.arithmetic:
        said.append(("made for", f"CPUs with {KINDS.get(manifest.arithmetic, UNKNOWN)}"))
    if manifest.deviation:
        said.append(("8 bits", str(manifest.deviation.get("text"))))
    return said


def _preprocessing(preprocessing: Preprocessing | None) -> str:
    if preprocessing is None:
        return "none: the network takes no images"
    mode = preprocessing.mode if preprocessing.crop == 1 else f"{preprocessing.mode} of {preprocessing.crop:g}"
    if preprocessing.interpolation != "bilinear":
        mode = f"{preprocessing.interpolation} {mode}"
    color = preprocessing.color if preprocessing.channels in (1, 3, 4) else f"{preprocessing.channels} channels"
    size = f"{mode} to {preprocessing.width} x {preprocessing.height}, {color}"
    mean, std = (", ".join(f"{number:g}" for number in numbers) for numbers in (preprocessing.mean, preprocessing.std))
    return f"{size}, pixel / {1 / preprocessing.scale:g}" + (
        "" if (mean, std) == ("0", "1") else f", less mean {mean}, over std {std}"
    )


def _array(shape: Shape) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})" if shape else ""


def calibration_json(calibration: Calibration, file: str, network: Network | None) -> dict[str, Any]:
    """The file's contents, and whether they belong to the network: None where that is not known."""
    return {"file": file, "belongs": _belongs(calibration, network), **calibration.to_json()}


def _belongs(calibration: Calibration, network: Network | None) -> bool | None:
    # A table of another program names no network: it has the digest that it was read for.
    return calibration.digest == network.digest if network is not None and calibration.preprocessing else None


def calibration_text(calibration: Calibration, file: str, network: Network | None) -> str:
    """Describes a calibration, but for its ranges; raises CalibrationError for a preprocessing that is none."""
    from dnc.runtime.preprocessing import Preprocessing

    images, skipped = calibration.images, calibration.images.get("skipped")
    source = f" of {images['source']}" if images.get("source") else ""
    drawn = f", drawn with seed {images['seed']}" if images.get("seed") is not None else ""
    left = f"; {len(skipped)} could not be read" if isinstance(skipped, list) and skipped else ""
    belongs = _belongs(calibration, network)
    verdict = [] if network is None or belongs is None else [f"{'that' if belongs else 'not that'} of {network.file}"]
    try:
        measured = Preprocessing.from_json(calibration.preprocessing) if calibration.preprocessing else None
    except BundleError as error:
        raise CalibrationError(error.message, file, "measure it again with `dnc calibrate`") from error
    return _facts(
        [
            ("calibration", [f"{file}, {len(calibration.ranges)} ranges"]),
            ("method", [f"{calibration.method}, {'symmetric' if calibration.symmetric else 'asymmetric'}"]),
            ("images", [f"{images.get('count')}{source}{drawn}{left}"] if images else []),
            ("preprocessing", [] if measured is None else [_preprocessing(measured)]),
            ("network", ["the table names none"] if measured is None else [f"sha256 {calibration.digest}", *verdict]),
        ]
    )


def calibration_table(calibration: Calibration, network: Network | None) -> Table:
    """A row for each range: its ends, what was seen, the share of the values beyond the ends, and on a terminal how the
    values lie, with brackets where the range ends."""
    from dnc.darknet.layers.base import layer_value

    kinds = {} if network is None else {layer_value(layer.index): layer.name for layer in network.layers}
    sketched = sys.stdout.isatty() and _encodes(_LEVELS)
    numbers = ["low", "high", "lowest seen", "highest seen", "cut"]
    table = Table.of("value", *["type"] * bool(kinds), *numbers, *["values"] * sketched, right=numbers)
    for name, known in calibration.ranges.items():
        found = calibration.histograms.get(name)
        histogram = found if isinstance(found, dict) else {}
        # A table of another program does not say what was seen.
        seen = (known.minimum, known.maximum) if calibration.preprocessing else ("", "")
        # Without the sign of 0.
        ends = [end if isinstance(end, str) else f"{end + 0.0:.5g}" for end in (known.low, known.high, *seen)]
        sketch = [_sketch(histogram, known)] * sketched
        table.add(name, *[kinds.get(name, "")] * bool(kinds), *ends, _cut(histogram), *sketch)
    return table


_LEVELS = " ▁▂▃▄▅▆▇█"


def _encodes(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _cut(histogram: Mapping[str, Any]) -> str:
    """The share of values beyond the range; nothing where an older calibration does not say it."""
    from dnc.typing import is_number

    cut, values = histogram.get("cut"), histogram.get("values")
    if not is_number(cut) or not is_number(values) or not 0 <= cut <= values or not values:
        return ""
    return f"{cut / values * 100:.4f} %" if cut else "0"


def _sketch(histogram: Mapping[str, Any], known: Range) -> str:
    """The histogram in a line: the logarithm of each part's count. Nothing where an older calibration has none."""
    from dnc.typing import is_number

    below, above = histogram.get("below", 0), histogram.get("above", histogram.get("bins"))
    width, counts = histogram.get("width"), str(histogram.get("sketch", "")).split()
    numbers = all(map(is_number, (below, above, width))) and all(re.fullmatch("[0-9]{1,18}", text) for text in counts)
    if not numbers or not any(map(int, counts)) or not (below + above) * width > 0:
        return ""
    most = math.log1p(max(map(int, counts)))
    drawn = [_LEVELS[math.ceil(math.log1p(int(count)) / most * (len(_LEVELS) - 1))] for count in counts]
    part = (below + above) * width / len(counts)
    places = (min(max((end + below * width) / part, 0), len(drawn)) for end in (known.low, known.high))
    first, last = map(round, places)
    return "".join([*drawn[:first], "[", *drawn[first:last], "]", *drawn[last:]])


def comparison_table(comparison: Comparison) -> Table:
    """A row for each layer that was compared; those that differ are red on a terminal."""
    several = len({row.sample for row in comparison.rows}) > 1
    noted = any(row.note for row in comparison.rows)
    titles = ["input"] * several + ["output", "section", "shape", "max error", "relative"] + ["note"] * noted
    table = Table.of(*titles, right=["max error", "relative"], folds=["section", "note"], spare=["shape"])
    for row in comparison.rows:
        errors = ("", "") if row.skipped else (f"{row.absolute:.2e}", f"{row.relative:.2e}")
        cells = [row.sample] * several + [row.name, row.where, _array(row.shape), *errors] + [row.note] * noted
        table.add(*cells, style="red" if comparison.differs(row) else "")
    return table


def verdict(comparison: Comparison) -> str:
    """Names, in a line, the first output that differs, or says how well all agree."""
    first = comparison.first
    if first is not None:
        sample = f" for input {first.sample}" if first.sample else ""
        place = f", {first.where}" if first.where else ""
        return (
            f"first difference{sample}: {first.name}{place}: relative error {first.relative:.2e} "
            f"exceeds {comparison.tolerance:g}"
        )
    compared = [row for row in comparison.rows if not row.skipped]
    worst = max(compared, key=lambda row: row.relative)
    count = f"{len(compared)} of {len(compared)} outputs"
    if worst.relative == 0:
        return f"{count} are equal"
    largest = f"the largest relative error is {worst.relative:.2e}, of {worst.name}"
    return f"{count} agree within {comparison.tolerance:g}: {largest}"


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """The rows; errors that are not finite are null."""
    first = comparison.first
    return {
        "actual": comparison.actual,
        "expected": comparison.expected,
        "files": [dict(files) for files in comparison.files],
        "tolerance": comparison.tolerance,
        "agrees": first is None,
        "first": None if first is None else {"input": first.sample, "output": first.name, "section": first.where},
        "outputs": [
            {
                "input": row.sample,
                "output": row.name,
                "section": row.where,
                "shape": list(row.shape),
                "max_error": _finite(row.absolute),
                "relative": _finite(row.relative),
                "differs": comparison.differs(row),
                "skipped": row.skipped,
                "note": row.note,
            }
            for row in comparison.rows
        ],
    }


def _finite(number: float) -> float | None:
    # JSON has neither infinities nor NaN.
    return number if abs(number) < float("inf") else None


def options_json(options: Sequence[Option]) -> list[dict[str, str]]:
    """Options of a target or a pass as JSON values."""
    return [{"key": option.name, "default": option.default, "summary": option.summary} for option in options]


def show_options(options: Sequence[Option], as_json: bool) -> None:
    """Prints what a target or a pass can be told."""
    if as_json:
        print_json(options_json(options))
        return
    table = Table.of("key", "default", "what it is", folds=["what it is"])
    for option in options:
        table.add(option.name, option.default, option.summary)
    table.show()


def summary(plugin: type) -> str:
    """The first sentence of the docstring of the plug-in's module, which states its rule."""
    text = sys.modules[plugin.__module__].__doc__ or plugin.__doc__ or ""
    paragraph = " ".join(text.strip().split("\n\n")[0].split())
    return re.split(r"(?<=\.) ", paragraph)[0]
