"""Destination `triton`: a model repository of NVIDIA's Triton Inference Server.

    NAME_ensemble       an image (height, width, channels) of any size  -->  boxes, scores, classes; or probabilities
      NAME_preprocess     the image  -->  the network's input; the image's size
      NAME                the engine as it was compiled, whose inputs Triton joins to batches
      NAME_postprocess    the heads' maps, the size  -->  boxes on the image in pixels, suppressed

No batch holds images of different sizes. So the ensemble, and what is before and after the network, take one image a
request (max_batch_size 0). The network's inputs are all of one size: where a tensor goes on to it, Triton adds the axis
of the batch, and behind it takes it away, so that the images of several requests become one batch there. A network of
--batch N is fed N images of one size by each request, and `images` says which of them each box is in.

What is before and after the network is dnc's own arithmetic in ONNX, on the CPU, where images and answers are.

Sources: docs/user_guide/model_configuration.md, model_repository.md and ensemble_models.md of Triton's repository
`server`; the READMEs of its repositories `onnxruntime_backend` and `openvino_backend`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from dnc.destinations import destinations
from dnc.destinations.base import Demand, Destination, Export, Form, no_machine_code
from dnc.destinations.readme import README, readme
from dnc.errors import DestinationError
from dnc.graph.boxes import emit_scores
from dnc.graph.builder import Builder
from dnc.graph.composites import inline_composites
from dnc.graph.preprocessing import emit_on_image, emit_prepared
from dnc.graph.suppression import MAX_CANDIDATES, emit_suppressed
from dnc.runtime.options import CALIBRATED, Option, one_of, whole
from dnc.runtime.runners.onnx import MODEL

__all__ = ["Triton", "Word", "text_format"]

Fields = dict[str, Any]

_FILES = {"onnx": (MODEL,), "cuda": (MODEL,), "openvino": ("model.xml", "model.bin")}
"""The files of each runner's engines, which Triton's backends look for under the same names."""
_VERSION, _LABELS, _CLIENT = "1", "labels.txt", "client.py"
_CONTAINER = "nvcr.io/nvidia/tritonserver:26.07-py3"
_LINE = 100
"""As long may a message be that stands in one line of config.pbtxt."""
_ENCODED = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
"""What Pillow calls images of so many channels."""


class Word(str):
    """A word of protobuf's text format that takes no quotes: a value of an enumeration."""

    __slots__ = ()


@destinations.register
class Triton(Destination):
    """NVIDIA's Triton Inference Server."""

    name: ClassVar[str] = "triton"
    summary: ClassVar[str] = "Triton Inference Server: a model repository with an ensemble from images to answers"
    runners: ClassVar[frozenset[str]] = frozenset(_FILES)
    demands: ClassVar[Sequence[Demand]] = (
        *Destination.demands,
        no_machine_code("the engine is machine code by TVM, for which Triton has no backend"),
    )
    known_options: ClassVar[Sequence[Option]] = (
        Option("max_batch", "8", "how many requests run together at most, where the batch is free", whole(1, 1024)),
        Option(
            "kind", "auto", "where the network runs: cpu, gpu, or auto: on GPUs if any", one_of("auto", "cpu", "gpu")
        ),
        Option("instances", "1", "as many copies of the network run at once, on each GPU", whole(1, 64)),
        Option(
            "accelerator",
            "none",
            "what ONNX Runtime hands the network to: tensorrt on GPUs, openvino on CPUs",
            one_of("none", "tensorrt", "openvino"),
        ),
    )

    def check(self, export: Export) -> None:
        super().check(export)
        if export.is_classifier:
            export.classifier()
        else:
            export.box_heads()

    def check_form(self, form: Form) -> None:
        super().check_form(form)
        kind, accelerator, runner = self.options["kind"], self.options["accelerator"], form.runner
        if runner == "openvino" and (kind == "gpu" or accelerator != "none"):
            what = "kind=gpu and accelerator are for ONNX Runtime, and this is an engine of target openvino"
            raise DestinationError(what, form.where, "leave them out, or take an engine of target onnx")
        if runner == "cuda" and (kind == "cpu" or accelerator == "openvino"):
            what = "the engine is for NVIDIA's GPUs, and kind=cpu and accelerator=openvino are for CPUs"
            raise DestinationError(what, form.where, "leave them out, or take an engine of target onnx")
        if (accelerator, kind) in (("tensorrt", "cpu"), ("openvino", "gpu")):
            what = f"accelerator={accelerator} contradicts kind={kind}"
            raise DestinationError(what, form.where, "tensorrt is for GPUs, openvino for CPUs")
        if accelerator == "tensorrt" and runner == "onnx" and form.precision in CALIBRATED:
            what = "TensorRT takes 8-bit numbers that are symmetric about 0, and those of target onnx are not"
            hint = "--target cuda --option backend=onnxruntime, from a symmetric calibration"
            raise DestinationError(what, form.where, hint)

    def write(self, export: Export, folder: Path) -> None:
        name = export.name
        _put(export, folder, "", self._network(export))
        _put(export, folder, "_preprocess", _config_before(export), _preprocess(export))
        if not export.is_classifier:
            _put(export, folder, "_postprocess", _config_after(export), _postprocess(export))
        _put(export, folder, "_ensemble", _ensemble(export))
        with export.engine.reading() as engine:
            for file in _FILES[export.manifest.runner_name]:
                shutil.copyfile(engine / file, folder / name / _VERSION / file)
        # An ensemble has no model, but a version, and stores like S3 have no empty folders.
        (folder / f"{name}_ensemble" / _VERSION / ".keep").touch()
        (folder / name / _LABELS).write_bytes("".join(f"{label}\n" for label in export.labels).encode())
        (folder / _CLIENT).write_bytes(_client(export).encode())
        (folder / README).write_bytes(self._readme(export).encode())

    def _network(self, export: Export) -> Fields:
        """config.pbtxt of the network."""
        manifest, lead = export.manifest, _lead(export)
        outputs = []
        for name, shape in export.shapes.items():
            if export.is_classifier and name == manifest.heads[-1].output:
                # Triton counts the labels through the whole tensor, but for an axis of the batch that is its own.
                named = {} if _several(export) else {"label_filename": _LABELS}
                shaped = {"reshape": {"shape": [*lead, *shape]}} if len(shape) > 1 else {}
                outputs.append(_tensor(name, "FP32", [*lead, manifest.heads[-1].classes], **shaped, **named))
            else:
                outputs.append(_tensor(name, "FP32", [*lead, *shape]))
        most = 0 if lead else self.options["max_batch"]
        kind = self._kind(export)
        return {
            "backend": "openvino" if export.manifest.runner_name == "openvino" else "onnxruntime",
            "max_batch_size": most,
            "input": [_tensor("input", "FP32", [*lead, *manifest.input_shape])],
            "output": outputs,
            **({"dynamic_batching": {}} if most > 1 else {}),
            "instance_group": [{"count": self.options["instances"], "kind": Word(f"KIND_{kind.upper()}")}],
            **self._backend(export, most),
        }

    def _kind(self, export: Export) -> str:
        kind: str = self.options["kind"]
        if kind != "auto":
            return kind
        runner, accelerator = export.manifest.runner_name, self.options["accelerator"]
        if runner == "cuda" or accelerator == "tensorrt":
            return "gpu"
        # Triton's OpenVINO backend takes no other, on whatever device OpenVINO then computes.
        return "cpu" if "openvino" in (runner, accelerator) else "auto"

    def _backend(self, export: Export, most: int) -> Fields:
        """What Triton's backend is told: to compute as dnc's runner of the engine does."""
        precision, runner = export.manifest.precision, export.manifest.runner_name
        if runner == "openvino":
            device = export.manifest.options.get("device", "CPU")
            told = {"HINT_BF16": "YES"} if precision in ("bf16", "int8") else {}
            told |= {} if device == "CPU" else {"TARGET_DEVICE": device}
            return {"parameters": _map({key: {"string_value": value} for key, value in told.items()})} if told else {}
        if self.options["accelerator"] == "openvino":
            return {"optimization": {"execution_accelerators": {"cpu_execution_accelerator": [{"name": "openvino"}]}}}
        if self._kind(export) == "cpu":
            return {}
        # Left to itself, ONNX Runtime rounds the factors of products to TF32.
        accelerators = [{"name": "cuda", "parameters": _map({"use_tf32": str(int(precision == "tf32"))})}]
        warmup: list[Fields] = []
        if self.options["accelerator"] == "tensorrt" or (runner == "cuda" and precision in CALIBRATED):
            mode = {"fp16": "FP16", "int8": "INT8", "mixed": "INT8"}.get(precision, "FP32")
            sides = list(export.manifest.input_shape)
            settings = {"precision_mode": mode}
            for which, size in (("min", 1), ("opt", most), ("max", most)) if most else ():
                # Else TensorRT builds another engine whenever a batch is larger than those before.
                settings[f"trt_profile_{which}_shapes"] = f"input:{'x'.join(map(str, [size, *sides]))}"
            accelerators.insert(0, {"name": "tensorrt", "parameters": _map(settings)})
            # It builds when it first runs, which may take minutes: not while a client waits.
            zeros = {"data_type": Word("TYPE_FP32"), "dims": [*_lead(export), *sides], "zero_data": True}
            warmup = [{"name": "build", "batch_size": max(most, 1), "inputs": _map({"input": zeros})}]
        given = {"execution_accelerators": {"gpu_execution_accelerator": accelerators}}
        return {"optimization": given, **({"model_warmup": warmup} if warmup else {})}

    def _readme(self, export: Export) -> str:
        name, count = export.name, _count(export)
        answer = (
            "probabilities of the classes" if export.is_classifier else "boxes (left, top, right, bottom in pixels)"
        )
        files = {
            f"{name}_ensemble": f"from images to {answer}: what applications ask",
            f"{name}_preprocess": "makes the network's input of an image",
            name: "the network, and labels.txt",
            f"{name}_postprocess": "decodes the heads, maps boxes to the image and suppresses those that overlap",
            _CLIENT: "asks the server, and prints what images show",
        }
        if export.is_classifier:
            del files[f"{name}_postprocess"]
        gpus = "" if self._kind(export) == "cpu" else "--gpus all "
        docker = f'docker run --rm {gpus}-p 8000:8000 -v "$PWD":/models {_CONTAINER} \\'
        command = f"""{docker}
    tritonserver --model-repository=/models
pip install "tritonclient[http]" pillow
python {_CLIENT} dog.jpg"""
        channels = export.preprocessing().channels
        sides = ", ".join([*map(str, _several(export)), "height", "width", str(channels)])
        colors = {1: " of gray", 3: " of RGB"}.get(channels, "")
        sent = f"A request has `image`: uint8 ({sides}){colors}, of any size, which the ensemble prepares."
        if count > 1:
            sent += f" A request has {count} images of one size."
        notes = [sent]
        thresholds = (
            f"Thresholds: confidence {export.confidence:g}, IoU {export.iou:g}. They are part of {name}_postprocess, "
            "which suppresses boxes as the cfg says: export again for others. Of the scores over the confidence, the "
            f"best {MAX_CANDIDATES:,} count."
        )
        if not _lead(export):
            notes.append(f"Triton runs up to {self.options['max_batch']} requests as one batch (--option max_batch).")
        if self._kind(export) == "auto":
            notes.append("Leave out `--gpus all` where there is no GPU.")
        if export.manifest.runner_name == "openvino":
            notes.append("On CPUs with bfloat16, OpenVINO computes in it, which Triton's backend cannot turn off.")
        return readme(
            export,
            "Triton Inference Server",
            files,
            command,
            notes,
            thresholds="" if export.is_classifier else thresholds,
        )


def _put(export: Export, repository: Path, suffix: str, config: Fields, model: ir.Model | None = None) -> None:
    """A model of the repository: config.pbtxt, and the folder of its version, with the model in it if there is one."""
    name = f"{export.name}{suffix}"
    version = repository / name / _VERSION
    version.mkdir(parents=True)
    (repository / name / "config.pbtxt").write_bytes(text_format({"name": name, **config}).encode())
    if model is not None:
        inline_composites(model)
        export.save(model, version / MODEL)


def _count(export: Export) -> int:
    """Images of a request."""
    return export.manifest.batch if isinstance(export.manifest.batch, int) else 1


def _lead(export: Export) -> list[int]:
    """The batch as the network's tensors spell it out; nothing where Triton adds it, which is for a free batch alone.
    Its OpenVINO backend would fix that at max_batch_size, and fill it up with zeros."""
    if isinstance(export.manifest.batch, int):
        return [export.manifest.batch]
    return [-1] if export.manifest.runner_name == "openvino" else []


def _several(export: Export) -> list[int]:
    """The axis that an image has of its own where a request has several."""
    return [_count(export)] if _count(export) > 1 else []


def _input(export: Export) -> Fields:
    return _tensor("image", "UINT8", [*_several(export), -1, -1, export.preprocessing().channels])


def _answers(export: Export) -> list[Fields]:
    """What the ensemble gives."""
    if export.is_classifier:
        one = [_count(export)] if _lead(export) else []
        return [_tensor("probabilities", "FP32", [*one, len(export.labels)])]
    found = [_tensor("boxes", "FP32", [-1, 4]), _tensor("scores", "FP32", [-1]), _tensor("classes", "INT64", [-1])]
    return [*found, _tensor("images", "INT64", [-1])] if _several(export) else found


def _beside(inputs: Sequence[Fields], outputs: Sequence[Fields]) -> Fields:
    """config.pbtxt of what is before or after the network."""
    group = [{"kind": Word("KIND_CPU")}]
    ends = {"input": list(inputs), "output": list(outputs), "instance_group": group}
    return {"backend": "onnxruntime", "max_batch_size": 0, **ends}


def _config_before(export: Export) -> Fields:
    prepared = _tensor("input", "FP32", [_count(export), *export.manifest.input_shape])
    sizes = [] if export.is_classifier else [_tensor("size", "INT64", [2])]
    return _beside([_input(export)], [prepared, *sizes])


def _config_after(export: Export) -> Fields:
    maps = [_tensor(name, "FP32", [_count(export), *shape]) for name, shape in _maps(export).items()]
    return _beside([*maps, _tensor("size", "INT64", [2])], _answers(export))


def _maps(export: Export) -> dict[str, tuple[int, ...]]:
    """The outputs of a detector's heads, and their shapes."""
    return {head.output: export.shapes[head.output] for head in export.box_heads()}


def _ensemble(export: Export) -> Fields:
    name, outputs = export.name, [field["name"] for field in _answers(export)]
    size = {} if export.is_classifier else {"size": "size"}
    steps = [_step(f"{name}_preprocess", {"image": "image"}, {"input": "input", **size})]
    if export.is_classifier:
        steps.append(_step(name, {"input": "input"}, {export.classifier().output: "probabilities"}))
    else:
        # Maps by the names that the network gives them, which are none of the answers': layer082.
        maps = {output: output for output in _maps(export)}
        steps.append(_step(name, {"input": "input"}, maps))
        steps.append(_step(f"{name}_postprocess", {**maps, **size}, {output: output for output in outputs}))
    ends = {"input": [_input(export)], "output": _answers(export)}
    return {"platform": "ensemble", "max_batch_size": 0, **ends, "ensemble_scheduling": {"step": steps}}


def _step(model: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> Fields:
    return {"model_name": model, "model_version": -1, "input_map": _map(inputs), "output_map": _map(outputs)}


def _preprocess(export: Export) -> ir.Model:
    """image -> input (N, C, H, W); and, for a detector, the width and the height of the image."""
    prepared, count = export.preprocessing(), _count(export)
    b = Builder(count)
    sides: list[int | str] = [*_several(export), "height", "width", prepared.channels]
    pixels = ir.Value(name="image", shape=ir.Shape(sides), type=ir.TensorType(ir.DataType.UINT8))
    b.inputs.append(pixels)
    b.enter("image")
    if len(sides) == 3:
        pixels = b.op("Unsqueeze", pixels, b.constant(np.array([0], np.int64)))
    b.output(emit_prepared(b, prepared, pixels), "input", [count, *export.manifest.input_shape])
    if not export.is_classifier:
        size = b.op("Gather", b.op("Shape", pixels), b.constant(np.array([2, 1], np.int64)))
        size.type = ir.TensorType(ir.DataType.INT64)
        b.output(size, "size", [2])
    return b.model("preprocess", {})


def _postprocess(export: Export) -> ir.Model:
    """The heads' maps and the size of the image -> boxes, scores and classes, best first: what `dnc detect` lists."""
    b = Builder(_count(export))
    inputs = {name: b.input(name, shape) for name, shape in _maps(export).items()}
    size = ir.Value(name="size", shape=ir.Shape([2]), type=ir.TensorType(ir.DataType.INT64))
    b.inputs.append(size)
    parts = []
    for head in export.box_heads():
        b.enter(f"{head.output}/boxes")
        parts.append(emit_scores(b, head, inputs[head.output], _maps(export)[head.output]))
    b.enter("postprocess")
    boxes, scores = (b.op("Concat", *values, axis=1) for values in zip(*parts, strict=True))
    width, height = (b.op("Gather", size, b.constant(np.array(place, np.int64))) for place in (0, 1))
    boxes = emit_on_image(b, export.preprocessing(), boxes, width, height)
    shown = np.array([not label.startswith("dont_show") for label in export.labels], np.float32)
    if not shown.all():
        # Classes that are suppressed by themselves alone, and never listed: see dnc.runtime.postprocessing.
        scores = b.op("Mul", scores, b.constant(shown, "shown"))
    confidence, iou = (b.constant(np.array([value], np.float32)) for value in (export.confidence, export.iou))
    rows = emit_suppressed(b, boxes, scores, confidence, iou, *export.box_heads()[-1].nms)
    numbers = {"classes": 1, "images": 0} if _several(export) else {"classes": 1}
    b.output(_corners(b, rows, size), "boxes", ["detections", 4])
    b.output(_column(b, rows, 2), "scores", ["detections"])
    for name, place in numbers.items():
        column = b.op("Cast", _column(b, rows, place), to=int(ir.DataType.INT64))
        column.type = ir.TensorType(ir.DataType.INT64)
        b.output(column, name, ["detections"])
    return b.model("postprocess", {})


def _column(b: Builder, rows: ir.Value, place: int) -> ir.Value:
    return b.op("Reshape", b.slice(rows, 1, place, place + 1), b.constant(np.array([-1], np.int64)))


def _corners(b: Builder, rows: ir.Value, size: ir.Value) -> ir.Value:
    """(D, 4): left, top, right, bottom in pixels, clipped to the image and not rounded: `Detection.box`."""
    double, one = int(ir.DataType.DOUBLE), b.constant(np.array([2.0], np.float32))
    size = b.op("Cast", size, to=double)
    rows = b.op("Cast", rows, to=double)
    centers, half = b.slice(rows, 1, 3, 5), b.op("Div", b.slice(rows, 1, 5, 7), b.op("Cast", one, to=double))
    zero = b.op("Cast", b.constant(np.array([0.0], np.float32)), to=double)
    corners = []
    for operator in ("Sub", "Add"):
        corner = b.op("Mul", b.op(operator, centers, half), size)
        corners.append(b.op("Min", b.op("Max", corner, zero), size))
    return b.op("Cast", b.op("Concat", *corners, axis=1), to=int(ir.DataType.FLOAT))


def _tensor(name: str, kind: str, dims: Sequence[int], **more: Any) -> Fields:
    return {"name": name, "data_type": Word(f"TYPE_{kind}"), "dims": list(dims), **more}


def _map(values: Mapping[str, Any]) -> list[Fields]:
    """A map of protobuf's."""
    return [{"key": key, "value": value} for key, value in values.items()]


def text_format(fields: Mapping[str, Any], indent: str = "") -> str:
    """A protobuf message as text: its fields are numbers, strings, `Word`s, messages as mappings, and lists of them.

    What is not printable ASCII is escaped.
    """
    return "".join(_field(name, value, indent) for name, value in fields.items())


def _field(name: str, value: Any, indent: str) -> str:
    if isinstance(value, Mapping):
        text = text_format(value, f"{indent}  ")
        line = f"{indent}{name} {' '.join(['{', *map(str.strip, text.splitlines()), '}'])}\n"
        return line if len(line) <= _LINE else f"{indent}{name} {{\n{text}{indent}}}\n"
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return "".join(_field(name, each, indent) for each in value)
    if isinstance(value, list):
        return f"{indent}{name}: [ {', '.join(map(_literal, value))} ]\n"
    return f"{indent}{name}: {_literal(value)}\n"


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and not isinstance(value, Word):
        letters = (chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03o}" for byte in value.encode())
        return f'"{"".join(letters)}"'
    return str(value)


_SCRIPT = '''"""Asks Triton what images show: python client.py dog.jpg [cat.jpg ...] [-u HOST:8000]

It needs: pip install "tritonclient[http]" pillow
"""

import argparse
from pathlib import Path

import numpy as np
import tritonclient.http as triton
from PIL import Image

MODEL = "@NAME@_ensemble"
LABELS = Path(__file__).with_name("@NAME@") / "labels.txt"
COUNT = @COUNT@  # images of a request, all of one size


def read(path):
    """Pixels (height, width, @CHANNELS@) of uint8; @COLORS@."""
    if path.endswith(".npy"):
        return np.load(path)
    return np.asarray(Image.open(path)@CONVERT@)


parser = argparse.ArgumentParser(description="Asks Triton what images show.")
parser.add_argument("images", nargs="+", help="image files, or .npy of uint8 (height, width, @CHANNELS@)")
parser.add_argument("-u", "--url", default="localhost:8000", help="the server's HTTP address")
given = parser.parse_args()
labels = LABELS.read_text(encoding="utf-8").split("\\n")
client = triton.InferenceServerClient(given.url)
for start in range(0, len(given.images), COUNT):
    paths = given.images[start : start + COUNT]
    pixels = [read(path) for path in (paths + paths[-1:] * COUNT)[:COUNT]]
    image = np.stack(pixels) if COUNT > 1 else pixels[0]
    tensor = triton.InferInput("image", image.shape, "UINT8")
    tensor.set_data_from_numpy(np.ascontiguousarray(image))
    answer = client.infer(MODEL, [tensor])
@PRINT@'''

_PRINT_BOXES = """    boxes, scores, classes = (answer.as_numpy(name) for name in ("boxes", "scores", "classes"))
    images = answer.as_numpy("images") if COUNT > 1 else np.zeros(len(boxes), int)
    for place, path in enumerate(paths):
        print(f"Image '{path}':")
        for box, score, number in zip(*(each[images == place] for each in (boxes, scores, classes))):
            sides = " ".join(f"{side:.1f}" for side in box)
            print(f"    {score:.6f} ({number}) = {labels[number]} [{sides}]")
"""

_PRINT_CLASSES = """    for path, values in zip(paths, answer.as_numpy("probabilities").reshape(COUNT, -1)):
        print(f"Image '{path}':")
        for number in np.argsort(-values, kind="stable")[:5]:
            print(f"    {values[number]:.6f} ({number}) = {labels[number]}")
"""


def _client(export: Export) -> str:
    """client.py: in the form of Triton's image_client, with the corners of boxes besides."""
    channels = export.preprocessing().channels
    mode = _ENCODED.get(channels)
    values = {
        "NAME": export.name,
        "COUNT": _count(export),
        "CHANNELS": channels,
        "COLORS": mode or "an .npy file",
        "CONVERT": f'.convert("{mode}")' if mode else "",
        "PRINT": _PRINT_CLASSES if export.is_classifier else _PRINT_BOXES,
    }
    text = _SCRIPT
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    return text
