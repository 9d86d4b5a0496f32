"""Target `openvino`: OpenVINO on CPUs, and on Intel's GPUs and NPUs. The engine is IR: model.xml and model.bin.

What each precision stores and computes with is in `dnc.runtime.runners.openvino`.

Preprocessing (--input u8) and decoding are part of the graph as for every target, in Darknet's own arithmetic, which
OpenVINO's PrePostProcessor does not have. What OpenVINO's own tools want to know is in model.xml under rt_info /
model_info: in the names and units of its Model API (labels, mean_values, scale_values, resize_type,
reverse_input_channels) where that has them, and the heads as in engine.json.
"""

from __future__ import annotations

import errno
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from dnc.errors import TargetError
from dnc.graph.builder import where_of
from dnc.graph.pairs import Pairing
from dnc.graph.pipeline import Step
from dnc.graph.quantization import DATA_MOVEMENT, QuantSpec
from dnc.graph.rewriting import add_node, attribute, shared_constant
from dnc.graph.serialization import serialize
from dnc.runtime.arithmetic import OPTION as ISA
from dnc.runtime.arithmetic import Arithmetic, of_isa
from dnc.runtime.manifest import Manifest
from dnc.runtime.options import Option
from dnc.runtime.runners import Runner
from dnc.runtime.runners.openvino import MODEL, OpenvinoRunner, import_openvino, openvino_core, reason
from dnc.targets import Target, targets
from dnc.targets.onnx import optimizations
from dnc.typing import Progress, silent

__all__ = ["Openvino", "read_graph", "save_graph"]

_END = np.iinfo(np.int32).max
"""Of a Slice that goes to the end."""


@targets.register
class Openvino(Target):
    """OpenVINO."""

    name: ClassVar[str] = "openvino"
    summary: ClassVar[str] = "OpenVINO on CPUs, and on Intel's GPUs and NPUs; model.xml is its IR"
    extra: ClassVar[str] = "openvino"
    faster: ClassVar[Sequence[str]] = ("bf16", "mixed")
    runs: ClassVar[type[Runner]] = OpenvinoRunner
    known_options: ClassVar[Sequence[Option]] = (*OpenvinoRunner.known_options, ISA)

    def optimizations(self) -> Sequence[Step]:
        """What OpenVINO profits from: see benchmarks/passes.md. It fuses activations that stand as one operator."""
        return optimizations("openvino", "bits")

    @property
    def arithmetic(self) -> Arithmetic | None:
        """As named, where a CPU computes its engines."""
        return None if self.runner().arithmetic is None else of_isa(self.options["isa"])

    def quantization(self) -> QuantSpec | None:
        """It joins convolutions with what follows them, so their inputs alone say that they are to have 8 bits."""
        operators = frozenset({"Conv", "Gemm", "Concat"}) | DATA_MOVEMENT
        arithmetic = self.arithmetic
        # oneDNN takes channels together; with several groups it has kernels that take rows, or it is not known what.
        orders = (Pairing.CHANNELS, Pairing.ROWS, Pairing.PLACES)
        pairs = orders if arithmetic is not None and arithmetic.saturates else ()
        return QuantSpec(operators, unified_concat=True, pairs=pairs)

    def build(
        self, model: ir.Model, folder: Path, manifest: Manifest | None = None, progress: Progress = silent
    ) -> Mapping[str, str]:
        graph = read_graph(model)
        if manifest is not None:
            for key, text in _model_info(manifest).items():
                graph.set_rt_info(text, ["model_info", key])
        save_graph(graph, folder / MODEL, half=self.options["precision"] == "fp16")
        return {}

    def versions(self) -> dict[str, str]:
        from importlib.metadata import version

        return {"openvino": version("openvino")}

    def engine(self) -> str:
        from importlib.metadata import version

        return f"OpenVINO {version('openvino')} {self.options['precision']}"


def read_graph(model: ir.Model) -> Any:
    """The model as an openvino.Model: with its names, the same ones in every process, and with what ONNX promises and
    OpenVINO does not. Raises TargetError with the places in the cfg that OpenVINO names."""
    graph = _read(_strides_apart(model))
    for port, value in zip(graph.inputs, model.graph.inputs, strict=True):
        # An output that is an input unchanged has taken its name.
        port.add_names({value.name})
        port.node.friendly_name = value.name
    for place, op in enumerate(graph.get_ordered_ops()):
        # Nodes that OpenVINO made are numbered by how many this process has made so far.
        if re.fullmatch(rf"{op.get_type_name()}_\d+", op.friendly_name):
            op.friendly_name = f"{op.get_type_name()}/{place}"
        # ONNX gives equal scores in their order, and so does Darknet; there are many where a letterbox is gray.
        if op.get_type_name() == "TopK":
            op.set_attribute("stable", True)
    return graph


def save_graph(graph: Any, path: Path, half: bool = False) -> None:
    """Writes an openvino.Model, its weights beside it as .bin, in float16 if `half`; raises OSError."""
    try:
        import_openvino().save_model(graph, str(path), compress_to_fp16=half)
    except RuntimeError as error:
        raise OSError(errno.EIO, f"OpenVINO: {reason(error)}", str(path.parent)) from error


def _strides_apart(model: ir.Model) -> ir.Model:
    """The model with Pad and Slice in place of the padding and strides of what has one tap: OpenVINO moves the strides
    of such into the operators before, as if there were no padding (StridesOptimization)."""
    copy = model.clone()
    for node in list(copy.graph):
        pads, strides = attribute(node, "pads", []), attribute(node, "strides", [1])
        weights = node.inputs[1] if node.op_type == "Conv" else None
        if not any(pads) or set(strides) == {1} or weights is None or set((weights.shape or ())[2:]) != {1}:
            continue
        numbers = ([0, 0, *pads[:2], 0, 0, *pads[2:]], [0, 0], [_END, _END], [2, 3], strides)
        borders, *sliced = (shared_constant(copy.graph, np.array(each, np.int64)) for each in numbers)
        x = add_node(copy.graph, node, "Pad", [node.inputs[0], borders]).outputs[0]
        node.replace_input_with(0, add_node(copy.graph, node, "Slice", [x, *sliced]).outputs[0])
        node.attributes.update({"pads": ir.AttrInt64s("pads", [0] * 4), "strides": ir.AttrInt64s("strides", [1, 1])})
    return copy


def _read(model: ir.Model) -> Any:
    """The model in OpenVINO; raises TargetError with the places in the cfg that OpenVINO names."""
    buffer = io.BytesIO()
    buffer.writelines(serialize(model))
    try:
        return openvino_core().read_model(buffer.getvalue())
    except RuntimeError as error:
        said = reason(error)
        words = set(re.findall(r"[\w./:#]+", said))
        named = [node for node in model.graph if node.name in words or node.op_type in words]
        places = "".join(f"\n    {where_of(node)}: {node.op_type}" for node in named)
        raise TargetError(f"OpenVINO refuses the model: {said}{places}") from error


def _model_info(manifest: Manifest) -> dict[str, str]:
    """What stands in rt_info / model_info; in Model API's units, pixels are 0 to 255."""
    info = {"model_name": manifest.name, "darknet_network": json.dumps(manifest.network)}
    if manifest.heads:
        kinds = {head.kind for head in manifest.heads}
        info["model_type"] = "Classification" if kinds == {"classifier"} else f"darknet-{manifest.heads[-1].kind}"
        info["heads"] = json.dumps([head.to_json() for head in manifest.heads])
        info["classes"] = str(manifest.heads[-1].classes)
        anchors = [side for head in manifest.heads for pair in getattr(head, "anchors", ()) for side in pair]
        if anchors:
            info |= {"anchors": " ".join(map(str, anchors)), "iou_threshold": "0.45", "confidence_threshold": "0.25"}
    if manifest.labels:
        info["labels"] = " ".join(label.replace(" ", "_") for label in manifest.labels)
    prepared = manifest.preprocessing
    if prepared is not None and manifest.input_dtype == "float32":
        modes = {"letterbox": "fit_to_window_letterbox", "center-crop": "crop"}
        info["resize_type"] = modes.get(prepared.mode, "standard")
        for key, numbers in (("mean_values", prepared.mean), ("scale_values", prepared.std)):
            per_channel = numbers * (prepared.channels // len(numbers))
            info[key] = " ".join(f"{number / prepared.scale:.9g}" for number in per_channel)
        info["reverse_input_channels"] = str(prepared.color == "rgb" and prepared.channels in (3, 4))
    return info
