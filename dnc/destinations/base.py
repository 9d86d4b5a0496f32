"""What every destination is: which engines a program takes, and the files that are written for it.

    NET.cfg ──compile──▶ Engine ──Destination.write──▶ a model in the layout that the program reads, its
                                                       configuration, labels and README.md

The decoding of boxes is added to the engine's graph from the heads in its manifest: a destination goes on from
`Export.boxes` to its own layout.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import onnx_ir as ir

from dnc.compiler.options import CompileOptions
from dnc.errors import BundleError, DestinationError, DncError
from dnc.graph.boxes import Boxes, count_of, emit_boxes, undecodable
from dnc.graph.builder import where_of
from dnc.graph.extension import Extension
from dnc.graph.serialization import check, serialize_to
from dnc.passes import passes
from dnc.runtime.decoding import BoxHead, ClassifierHead, label_of
from dnc.runtime.engine import Engine
from dnc.runtime.manifest import Manifest
from dnc.runtime.options import Configured
from dnc.runtime.preprocessing import Preprocessing
from dnc.runtime.runners import find as find_runner
from dnc.runtime.runners.onnx import MODEL
from dnc.targets import Target

__all__ = ["FLOATS", "MAPS", "Demand", "Destination", "Export", "Form", "no_machine_code", "one_image"]

_AGAIN = "build the engine again"


class Form(NamedTuple):
    """What an engine is like whatever the network is: one that is there, or one that is to be compiled."""

    runner: str
    machine_code: bool
    """Whether it holds kernels of TVM's, and no graph that another program could read."""
    batch: int | None
    """None for any."""
    precision: str
    input: str
    decode: str
    where: object
    """The cfg, for messages."""
    is_engine: bool
    calibration: Path | None
    """See `Export.calibration`."""

    @classmethod
    def of_engine(cls, manifest: Manifest, where: object, calibration: Path | None) -> Form:
        """That of an engine."""
        batch = manifest.batch if isinstance(manifest.batch, int) else None
        given = "u8" if manifest.input_dtype == "uint8" else "f32"
        code = find_runner(manifest.runner_name, manifest.options).runs_code
        name, precision = manifest.runner_name, manifest.precision
        return cls(name, code, batch, precision, given, manifest.decode, where, True, calibration)

    @classmethod
    def of_cfg(cls, options: CompileOptions, offer: Target, where: object, calibration: Path | None) -> Form:
        """That of the engine that such options give for a target."""
        batch = offer.batch if options.batch is None else options.batch
        precision = offer.options.get("precision", "fp32")
        code, given, decode = offer.runs.runs_code, options.input, options.decode
        return cls(offer.runs.name, code, batch, precision, given, decode, where, False, calibration)

    def refusal(self, message: str, option: str, instead: str = "") -> DestinationError:
        """The error of an engine that is compiled with what the program does not take.

        Args:
            option: of `dnc compile`, by which it came to be.
            instead: what to give it, if not its default.
        """
        hint = f"compile it with --{option} {instead}" if instead else f"compile it without --{option}"
        if self.is_engine:
            hint += ", or name the cfg in place of the engine"
        elif not instead:
            hint = f"leave --{option} out"
        return DestinationError(message, self.where, hint)


class Demand(NamedTuple):
    """What a program takes of one of the options that engines are compiled with."""

    name: str
    """Of a field of `Form`."""
    taken: Collection[Any]
    message: str
    """For the error: `{}` stands for what is not taken."""
    instead: str = ""
    """What the option is to be, if not its default."""
    option: str = ""
    """Of `dnc compile`, if not of the field's name."""

    def check(self, form: Form) -> None:
        """Raises DestinationError for what is not taken."""
        found = getattr(form, self.name)
        if found not in self.taken:
            raise form.refusal(self.message.format(found), self.option or self.name, self.instead)


FLOATS = Demand("input", ("f32",), "the engine takes pixels, and this program feeds float32 (N, C, H, W)")
MAPS = Demand(
    "decode", ("host",), "the engine gives what --decode {} made of its heads, and this program needs their maps"
)


def no_machine_code(message: str) -> Demand:
    """The demand of a program that reads ONNX, of target cuda as well: `message` is the error's."""
    return Demand("machine_code", (False,), message, "backend=onnxruntime", "option")


def one_image(why: str) -> Demand:
    """The demand of a program that runs images one by one.

    Args:
        why: the end of the message.
    """
    return Demand("batch", (None, 1), f"the engine takes batches of {{}}, and {why}")


@dataclass(frozen=True)
class Export:
    """An engine, and what was asked for."""

    engine: Engine
    confidence: float = 0.25
    """From which score on the program shall report a box."""
    iou: float = 0.45
    """From which overlap on a box suppresses another one."""
    told: Mapping[str, Any] = field(default_factory=dict)
    """The destination's options by name, parsed."""
    calibration: Path | None = None
    """What --calibration named, for destinations that write one beside the model (`Destination.calibrated`)."""

    @property
    def manifest(self) -> Manifest:
        """engine.json."""
        return self.engine.manifest

    @property
    def name(self) -> str:
        """The network's name, in letters, digits and `_.-` alone, and like no file's (client.py): files, folders and
        models are called by it."""
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", self.manifest.name).lstrip(".-") or "network"
        return re.sub(r"\.(?=[A-Za-z]\w*$)", "_", name)

    @property
    def labels(self) -> tuple[str, ...]:
        """The name of each class; its number where there are no labels. Empty for a network without heads."""
        heads = self.manifest.heads
        return tuple(label_of(self.manifest.labels, number) for number in range(heads[-1].classes if heads else 0))

    @property
    def is_classifier(self) -> bool:
        """Whether the network gives classes of whole images, and no boxes."""
        return bool(self.manifest.heads) and isinstance(self.manifest.heads[-1], ClassifierHead)

    def preprocessing(self) -> Preprocessing:
        """How images become the input; raises DestinationError if the network takes none."""
        found = self.manifest.preprocessing
        if found is None:
            raise self.refusal("the network takes no images", hint="it can be run by `dnc.load(…).forward`")
        return found

    def box_heads(self) -> tuple[BoxHead, ...]:
        """The heads of a detector, in the order of the cfg.

        Raises:
            DestinationError: the network has others, none, or such as cannot be decoded in one graph.
            BundleError: one does not fit its output.
        """
        heads = self.manifest.heads
        boxes = tuple(head for head in heads if isinstance(head, BoxHead))
        if len(boxes) < len(heads) or not boxes:
            other = next((head.where for head in heads if not isinstance(head, BoxHead)), None)
            raise self.refusal("the network gives no boxes, or more than boxes", other, "it is for detectors")
        self.check_maps()
        found = undecodable(boxes)
        if found is not None:
            raise self.refusal(found[1], found[0].where, "no layout of one tensor holds them; `dnc detect` runs it")
        return boxes

    def box_count(self) -> int:
        """How many boxes K `boxes` gives; raises DestinationError as `box_heads`."""
        return sum(count_of(head, self.shapes[head.output]) for head in self.box_heads())

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each output of the engine by its name, without the batch."""
        return dict(zip(self.manifest.outputs, self.manifest.output_shapes, strict=True))

    def classifier(self) -> ClassifierHead:
        """The head of a classifier; raises DestinationError if the network is none, or has a class tree."""
        heads = self.manifest.heads
        head = heads[-1] if len(heads) == 1 else None
        if not isinstance(head, ClassifierHead):
            raise self.refusal(
                "the network is no classifier", heads[0].where if heads else None, "it is for classifiers"
            )
        if head.tree:
            what = "the class tree of [softmax] cannot be read as one list of classes"
            raise self.refusal(what, head.where, "`dnc classify` reads it")
        return head

    def check_maps(self) -> None:
        """Raises BundleError where a map does not fit its head."""
        for head in self.manifest.heads:
            if isinstance(head, BoxHead):
                # Which raises BundleError for a head that does not fit.
                head.candidates(np.zeros(self.shapes[head.output], np.float32), np.inf)

    @property
    def form(self) -> Form:
        """What the engine is like."""
        return Form.of_engine(self.manifest, self._cfg, self.calibration)

    @property
    def _cfg(self) -> str:
        return str(self.manifest.network.get("cfg", self.name))

    def refusal(self, message: str, where: object | None = None, hint: str = "") -> DestinationError:
        """The error of something that the destination cannot hold: at a section of the cfg, or at the engine."""
        return DestinationError(message, self._cfg if where is None else where, hint)

    def model(self) -> ir.Model:
        """The graph of the engine's model.onnx, a new one each time, with the outputs that it was compiled with.

        Raises:
            BundleError: it is damaged, or was replaced meanwhile.
        """
        with self.engine.reading() as folder:
            try:
                model = ir.load(folder / MODEL)
                if any(isinstance(value.const_value, ir.ExternalTensor) for value in model.graph.initializers.values()):
                    raise ValueError("it names files outside of the engine")
                check(model, "reading it")
                self._compare(model)
            except MemoryError:
                raise
            except Exception as raised:
                # Protobuf, onnx_ir and ONNX's checker raise whatever they meet first in what is no model.
                error: BaseException = raised
                while error.__cause__ is not None and not isinstance(error, DncError):
                    error = error.__cause__
                said = error.message if isinstance(error, DncError) else str(error) or repr(error)
                message = said.strip().splitlines()[0]
                raise BundleError(f"{MODEL} cannot be read: {message}", folder / MODEL, _AGAIN) from raised
        return model

    def _compare(self, model: ir.Model) -> None:
        """Raises ValueError for a model whose input or outputs are not those that the manifest names."""
        given = {value.name: list(value.shape or ())[1:] for value in (*model.graph.inputs, *model.graph.outputs)}
        expected = {"input": self.manifest.input_shape, **self.shapes} if self.manifest.decode == "host" else {}
        for name, shape in expected.items():
            sides = list(shape)
            if self.manifest.input_dtype == "uint8" and name == "input":
                sides = [*shape[1:], shape[0]]
            if given.get(name) != sides:
                raise ValueError(f"{name} has the shape {given.get(name)}, and not {sides}")

    def take_plain(self, model: ir.Model, name: str) -> None:
        """Calls the input of a model of `model()` by this name, and lets it be RGB, or gray, pixels / 255: a mean, a
        std and BGR move into the graph, for programs whose configuration has no place for them."""
        p, b = self.preprocessing(), Extension(model)
        [entry] = [value for value in model.graph.inputs if value.name == "input"]
        readers = list(entry.uses())
        entry.name = name
        b.enter("export/input")
        value = entry
        if p.color == "bgr":
            value = b.op("Gather", value, b.constant(np.array([2, 1, 0, *range(3, p.channels)], np.int64)), axis=1)
        if (p.scale, set(p.mean), set(p.std)) != (1 / 255, {0.0}, {1.0}):
            mean, std = (np.array(numbers, np.float32).reshape(1, -1, 1, 1) for numbers in (p.mean, p.std))
            value = b.op("Mul", value, b.constant(np.float32(255 * p.scale)))
            value = b.op("Div", b.op("Sub", value, b.constant(mean)), b.constant(std))
        if value is not entry:
            # Of which a calibration has the range.
            value.name = "input"
            for node, index in readers:
                node.replace_input_with(index, value)
            model.graph.sort()

    def boxes(self, model: ir.Model) -> Boxes:
        """Adds the decoding of all heads to a model of `model()`, and gives all their boxes in the order of the cfg.
        The model's outputs stay as they are; what goes on from the boxes is an `Extension` of the model.

        Raises:
            DestinationError: as `box_heads`.
        """
        maps = {value.name: value for value in model.graph.outputs}
        b = Extension(model)
        parts = []
        for head in self.box_heads():
            b.enter(f"{head.output}/boxes", head.where)
            parts.append(emit_boxes(b, head, maps[head.output], self.shapes[head.output]))
        b.enter("export")
        if len(parts) == 1:
            return parts[0]
        boxes, objectness, classes = (b.op("Concat", *values, axis=1) for values in zip(*parts, strict=True))
        return Boxes(boxes, objectness, classes)

    def scores(self, model: ir.Model) -> ir.Value:
        """What a classifier gives in a model of `model()`, as (N, classes). The model's outputs stay as they are.

        Raises:
            DestinationError: as `classifier`.
        """
        head = self.classifier()
        [values] = [value for value in model.graph.outputs if value.name == head.output]
        b = Extension(model)
        b.enter("export")
        return b.reshape(values, [head.classes])

    def save(self, model: ir.Model, path: Path, metadata: Mapping[str, str] | None = None) -> None:
        """Writes a model, without what its outputs do not need.

        Args:
            model: with the outputs that the program reads.
            path: the .onnx file.
            metadata: for the model's `metadata_props`.

        Raises:
            DncError: the graph is invalid, or over 2 GiB.
            OSError: it cannot be written.
        """
        passes["eliminate-dead-code"]().rewrite(model)
        model.metadata_props.update(metadata or {})
        check(model, "exporting")
        serialize_to(model, path)


class Destination(Configured, ABC):
    """A program that runs engines in a form of its own. Its only state is its options: its own, given as --option
    KEY=VALUE; others go to the target of a cfg."""

    kind = "destination"
    failure = DestinationError
    summary: ClassVar[str]
    """One line for `dnc export --list`: who reads it, and what is written."""
    target: ClassVar[str] = "onnx"
    """What a cfg is compiled for where --target is not given."""
    runners: ClassVar[frozenset[str]] = frozenset({"onnx"})
    """Whose engines it takes, by the names of runners."""
    suffix: ClassVar[str] = ""
    """Of the one file that -o may name in place of a folder; empty if it is always a folder."""
    demands: ClassVar[Sequence[Demand]] = (FLOATS, MAPS)
    """What it takes of the options that engines are compiled with: they are checked before a cfg is compiled."""
    overlap: ClassVar[str] = ""
    """Where the program suppresses boxes by IoU alone, whatever the cfg says: what can be done about it. Empty where it
    goes by the cfg, or a program of the user's own suppresses."""
    calibrated: ClassVar[bool] = False
    """Whether it writes the calibration that --calibration names, which then need not be for the compiler."""

    def prepared(self, options: CompileOptions) -> CompileOptions:
        """The options that a cfg is compiled with: as given, but for what the program needs."""
        return options

    def check_form(self, form: Form) -> None:
        """Raises DestinationError for what it takes of no network, of an engine and before one is compiled. This checks
        `demands`; what derives from it goes on from there."""
        for demand in self.demands:
            demand.check(form)

    def check(self, export: Export) -> None:
        """Raises DestinationError for what it cannot hold, before anything is written. This refuses networks that have
        a memory, and such as take no images, and calls `check_form`; what derives from it goes on from there."""
        states = list(export.manifest.states)
        if states:
            hint = "programs that run images one by one forget it; `dnc.load` carries it on"
            raise export.refusal("the network remembers what it saw", _reader(export, states[0]), hint)
        export.preprocessing()
        self.check_form(export.form)

    @abstractmethod
    def write(self, export: Export, folder: Path) -> None:
        """Writes all files into an empty folder, README.md among them, which appears whole or not at all.

        Raises:
            OSError: something cannot be written.
        """


def _reader(export: Export, state: str) -> str | None:
    """The section of the cfg that reads a state, as far as the engine says it."""
    if (export.engine.folder / MODEL).is_file():
        for value in export.model().graph.inputs:
            if value.name == state and value.uses():
                return where_of(next(iter(value.uses())).node)
    return None
