"""Destination `deepstream`: a folder for NVIDIA's DeepStream, whose element Gst-nvinfer builds a TensorRT engine of it.

    model.onnx                  its output (N, K, 6): left, top, right, bottom in pixels of the input, the score of the
                                best class, and that class, as DeepStream-Yolo has it; of a classifier (N, classes)
    config_infer_primary.txt    for Gst-nvinfer: preprocessing, precision, thresholds, suppression
    deepstream_app_config.txt   a pipeline for deepstream-app
    nvdsinfer_dnc.cpp, Makefile the parser of the boxes
    labels.txt                  a class a line; of a classifier all in one line, with semicolons between
    calib.table                 for 8 bits with TensorRT up to 10

Gst-nvinfer computes net-scale-factor * (pixel - offset), with an offset for each channel and one factor for all: where
the network's std differs from channel to channel, its mean and std go into the graph.

Precision is a mode of TensorRT up to 10, network-mode here. 8 bits Gst-nvinfer takes with a calibration alone; TensorRT
reads that where the model has no QuantizeLinear. TensorRT 11 has neither modes nor calibrations: its models are
strongly typed, for which Gst-nvinfer has a key since DeepStream 9.1.

Source: NVIDIA's documentation of Gst-nvinfer and the sources of DeepStream 9.1; DeepStream-Yolo for its layout.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import ClassVar

import onnx_ir as ir

from dnc.compiler.options import CompileOptions
from dnc.destinations import destinations
from dnc.destinations.base import Demand, Destination, Export, Form, no_machine_code
from dnc.destinations.readme import README, readme
from dnc.destinations.ultralytics import pixels
from dnc.errors import CalibrationError, DestinationError, warn
from dnc.graph.builder import where_of
from dnc.graph.extension import Extension
from dnc.quantization.calibration import Calibration
from dnc.quantization.tables import TENSORRT, tensorrt_cache
from dnc.runtime.options import CALIBRATED, Option
from dnc.runtime.preprocessing import Preprocessing
from dnc.runtime.runners.onnx import MODEL
from dnc.runtime.suppression import exponent_of

__all__ = ["DeepStream"]

CONFIG, APPLICATION, LABELS = "config_infer_primary.txt", "deepstream_app_config.txt", "labels.txt"
TABLE, SOURCE, LIBRARY = "calib.table", "nvdsinfer_dnc.cpp", "libnvdsinfer_dnc.so"
PARSER = "NvDsInferParseDnc"
OUTPUT = "output"
_COLORS = {"rgb": 0, "bgr": 1, "gray": 2}
_MODES = {"fp32": 0, "int8": 1, "fp16": 2}
_FRAME = 1280, 720
"""Pixels that the pipeline makes of any source's frames, those of DeepStream's sample among them."""
_SAMPLE = "file:///opt/nvidia/deepstream/deepstream/samples/streams/sample_720p.mp4"

Groups = Mapping[str, Mapping[str, object]]


def _version(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d{1,3}\.\d{1,3}\.\d{1,3}", text, re.ASCII):
        raise ValueError(f"three numbers, for instance {TENSORRT}")
    return tuple(map(int, text.split(".")))


@destinations.register
class DeepStream(Destination):
    """DeepStream 6 and newer."""

    name: ClassVar[str] = "deepstream"
    summary: ClassVar[str] = "NVIDIA DeepStream: Gst-nvinfer's configuration, [N, K, 6] as DeepStream-Yolo, a parser"
    target: ClassVar[str] = "cuda"
    runners: ClassVar[frozenset[str]] = frozenset({"cuda", "onnx"})
    calibrated: ClassVar[bool] = True
    known_options: ClassVar[Sequence[Option]] = (
        Option(
            "tensorrt",
            TENSORRT,
            "the version of TensorRT: 8.6.1 in DeepStream 6.4 and 7.0, 10.3.0 in 7.1, 10.9.0 in 8.0, 10.16.0 in 9.2",
            _version,
        ),
    )

    demands: ClassVar[Sequence[Demand]] = (
        *Destination.demands,
        no_machine_code("the engine has no ONNX"),
        Demand("precision", ("fp32", "tf32", "fp16", *CALIBRATED), "Gst-nvinfer has no mode for {}", "fp16"),
    )

    def prepared(self, options: CompileOptions) -> CompileOptions:
        """Of target cuda the back end that writes ONNX."""
        if options.target != "cuda":
            return options
        return dataclasses.replace(options, options={"backend": "onnxruntime", **options.options})

    def check_form(self, form: Form) -> None:
        super().check_form(form)
        if form.calibration is None or form.precision in CALIBRATED:
            return
        if self._is_typed:
            what = f"TensorRT {self._version} reads no calibrations"
            raise DestinationError(what, form.calibration, "--precision int8 puts its ranges into the model")
        if form.precision == "fp16":
            # Gst-nvinfer sets either flag.
            what = "a calibration is for a model of float32, not of float16"
            raise DestinationError(what, form.calibration, "leave --precision out")

    def check(self, export: Export) -> None:
        super().check(export)
        if export.is_classifier:
            export.classifier()
        else:
            export.box_heads()
        channels = export.preprocessing().channels
        if channels not in (1, 3):
            what = f"Gst-nvinfer makes images of 1 or 3 channels, the network takes {channels}"
            raise export.refusal(what, hint="Gst-nvdspreprocess can feed it, with a library of your own")
        _check_numbers(export)
        self._table(export)

    def write(self, export: Export, folder: Path) -> None:
        table = self._table(export)
        files = {
            CONFIG: _text(self._config(export, bool(table))),
            APPLICATION: _text(_application(_batch(export))),
            LABELS: _labels(export),
            TABLE: table,
        }
        if not export.is_classifier:
            sources = resources.files("dnc.destinations") / "deepstream_parser"
            files |= {source.name: source.read_text("utf-8") for source in sources.iterdir()}
            files["Makefile"] = files["Makefile"].replace("NMS ?=", f"NMS ?= {_suppression(export)}".rstrip())
        written = {name: text for name, text in files.items() if text}
        written[README] = self._readme(export, written)
        for name, text in written.items():
            (folder / name).write_text(text, encoding="utf-8")
        export.save(_model(export), folder / MODEL)

    @property
    def _version(self) -> str:
        return ".".join(map(str, self.options["tensorrt"]))

    @property
    def _is_typed(self) -> bool:
        """Whether TensorRT knows precisions by the model alone."""
        return bool(self.options["tensorrt"] >= (11,))

    def _table(self, export: Export) -> str:
        """The calibration; empty where there is none.

        Raises:
            CalibrationError: it cannot be read, or belongs to another network.
        """
        if export.manifest.precision in CALIBRATED:
            return "" if self._is_typed else tensorrt_cache(Calibration("", "", True, {}, {}, {}), self._version)
        if export.calibration is None:
            return ""
        calibration = Calibration.read(export.calibration)
        if calibration.digest != export.manifest.network.get("digest"):
            what, hint = "the calibration belongs to another network", "measure it again with `dnc calibrate`"
            raise CalibrationError(what, export.calibration, hint)
        if not calibration.symmetric:
            what = "its ranges are not symmetric: TensorRT gets the farther end of each on both sides"
            warn(CalibrationError(what, export.calibration, "`dnc calibrate --symmetric` chooses better ones"))
        return tensorrt_cache(calibration, self._version)

    def _config(self, export: Export, table: bool) -> Groups:
        p, batch = export.preprocessing(), _batch(export)
        half = export.manifest.precision == "fp16"
        mode = "fp32" if self._is_typed else "int8" if table else "fp16" if half else "fp32"
        keys: dict[str, object] = {
            "gpu-id": 0,
            "gie-unique-id": 1,
            "process-mode": 1,
            "onnx-file": MODEL,
            "model-engine-file": f"{MODEL}_b{batch}_gpu0_{mode}.engine",
            "labelfile-path": LABELS,
            "batch-size": batch,
            "network-mode": _MODES[mode],
            **({"int8-calib-file": TABLE} if table else {}),
            **({"strongly-typed": 1} if self._is_typed else {}),
            "infer-dims": f"{p.channels};{p.height};{p.width}",
            **_scaling(p),
            "maintain-aspect-ratio": int(p.mode == "letterbox"),
            "symmetric-padding": int(p.mode == "letterbox"),
            "output-blob-names": OUTPUT,
        }
        if export.is_classifier:
            return {"property": {**keys, "network-type": 1, "classifier-threshold": 0}}
        boxes: dict[str, object] = {
            "network-type": 0,
            "num-detected-classes": len(export.labels),
            "parse-bbox-func-name": PARSER,
            "custom-lib-path": LIBRARY,
            "cluster-mode": 4 if _suppression(export) else 2,
            # What rounding puts a hair beyond the frame is dropped otherwise.
            "crop-objects-to-roi-boundary": 1,
        }
        hidden = [str(number) for number, name in enumerate(export.labels) if name.startswith("dont_show")]
        if hidden:
            boxes["filter-out-class-ids"] = ";".join(hidden)
        suppression = {
            "pre-cluster-threshold": export.confidence,
            **({} if _suppression(export) else {"nms-iou-threshold": export.iou}),
            # No limit, as in Darknet.
            "topk": export.box_count(),
        }
        return {"property": keys | boxes, "class-attrs-all": suppression}

    def _readme(self, export: Export, files: Mapping[str, str]) -> str:
        known = {
            CONFIG: "Gst-nvinfer's configuration",
            APPLICATION: "a pipeline for deepstream-app",
            LABELS: "the names of the classes",
            TABLE: f"a calibration, for TensorRT {'.'.join(map(str, self.options['tensorrt']))} alone",
            SOURCE: "the parser of the boxes; `Makefile` builds it against DeepStream's header",
        }
        p, batch = export.preprocessing(), _batch(export)
        launch = (
            f"gst-launch-1.0 uridecodebin uri={_SAMPLE} {_crop(p)}! m.sink_0 nvstreammux name=m batch-size={batch} "
            f"width={_FRAME[0]} height={_FRAME[1]} ! nvinfer config-file-path={CONFIG} ! nvvideoconvert ! nvdsosd ! "
            "nveglglessink"
        )
        notes = [
            f"Without deepstream-app: `{launch}`.",
            "The first start builds a TensorRT engine and keeps it beside the model.",
            "Gst-nvinfer scales frames in its own way: numbers differ a little from `dnc detect`'s.",
        ]
        if isinstance(export.manifest.batch, str):
            notes.append(f"For N streams, N is batch-size in {CONFIG}, batch-size and num-sources in {APPLICATION}.")
        if p.mode == "letterbox":
            notes.append("Gst-nvinfer pads with black; the network was trained with gray.")
        if p.mode == "center-crop":
            notes.append("Gst-nvinfer stretches what it gets; the crop is left to the pipeline (`src-crop` above).")
        if export.is_classifier:
            notes.append("For a detector's objects: process-mode=2, gie-unique-id=2 and operate-on-gie-id=1.")
            return readme(export, "DeepStream", self._listed(known, files), f"deepstream-app -c {APPLICATION}", notes)
        notes.append("Of each box DeepStream keeps the best class; Darknet lists every class over the threshold.")
        yolo = "DeepStream-Yolo's parser, NvDsInferParseYolo, reads the same output"
        if _suppression(export):
            kind = export.box_heads()[-1].nms[0]
            notes.append(
                f"The parser suppresses boxes, as nms_kind={kind} of the cfg wants it; `make NMS=` leaves it out."
            )
            yolo += f"; then, as without NMS, cluster-mode=2 and nms-iou-threshold={export.iou:g}"
        notes.append(f"{yolo}.")
        return readme(export, "DeepStream", self._listed(known, files), f"make\ndeepstream-app -c {APPLICATION}", notes)

    @staticmethod
    def _listed(known: Mapping[str, str], files: Mapping[str, str]) -> dict[str, str]:
        return {MODEL: "the network", **{name: text for name, text in known.items() if name in files}}


def _suppression(export: Export) -> str:
    """What the parser is compiled with to suppress boxes as the last head says, by an overlap that Gst-nvinfer does not
    have; empty if it has, the IoU."""
    exponent = exponent_of(*export.box_heads()[-1].nms)
    return "" if exponent is None else f"-DDNC_IOU={float(export.iou)}f -DDNC_EXPONENT={exponent}"


def _batch(export: Export) -> int:
    return export.manifest.batch if isinstance(export.manifest.batch, int) else 1


def _check_numbers(export: Export) -> None:
    """Raises DestinationError for numbers and operators that TensorRT does not take."""
    hint = "name the cfg, or an engine of --target cuda --option backend=onnxruntime"
    for node in export.model().graph:
        if node.op_type == "ConvInteger":
            raise export.refusal("TensorRT has no ConvInteger", where_of(node), hint)
        zero = node.inputs[2] if node.op_type == "QuantizeLinear" and len(node.inputs) > 2 else None
        if zero is not None and zero.dtype != ir.DataType.INT8:
            raise export.refusal("TensorRT takes signed 8-bit numbers alone", where_of(node), hint)


def _model(export: Export) -> ir.Model:
    """The graph with the output that Gst-nvinfer reads."""
    model = export.model()
    if _is_by_channel(export.preprocessing()):
        export.take_plain(model, "image")
    if export.is_classifier:
        output, row = export.scores(model), [len(export.labels)]
        b = Extension(model)
    else:
        found, row = export.boxes(model), [export.box_count(), 6]
        b = Extension(model)
        b.enter("export")
        boxes, scores = pixels(b, found.boxes, export), b.op("Mul", found.objectness, found.classes)
        best = b.op("ReduceMax", scores, axes=[2], keepdims=1)
        number = b.op("Cast", b.op("ArgMax", scores, axis=2, keepdims=1), to=int(ir.DataType.FLOAT))
        centers, half = b.slice(boxes, 2, 0, 2), b.op("Mul", b.slice(boxes, 2, 2, 4), b.constant(0.5))
        output = b.op("Concat", b.op("Sub", centers, half), b.op("Add", centers, half), best, number, axis=2)
    model.graph.outputs.clear()
    b.output(output, OUTPUT, [b.batch, *row])
    return model


def _is_by_channel(p: Preprocessing) -> bool:
    """Whether there is no one factor for all channels."""
    return len(set(p.std)) > 1


def _scaling(p: Preprocessing) -> dict[str, object]:
    """How pixels become numbers; BGR and all is in the graph where `_model` puts it there."""
    if _is_by_channel(p):
        return {"model-color-format": _COLORS["rgb"], "net-scale-factor": 1 / 255}
    keys: dict[str, object] = {
        "model-color-format": _COLORS[p.color],
        "net-scale-factor": p.scale / p.std[0],
    }
    if any(p.mean):
        means = p.mean if len(p.mean) > 1 else p.mean * p.channels
        keys["offsets"] = ";".join(str(mean / p.scale) for mean in means)
    return keys


def _labels(export: Export) -> str:
    """Gst-nvinfer parts a line at semicolons, and passes over empty ones."""
    names = [name.replace(";", ",").strip() or str(number) for number, name in enumerate(export.labels)]
    return (";" if export.is_classifier else "\n").join(names) + "\n"


def _application(batch: int) -> Groups:
    """The groups of deepstream-app's configuration: the sample, as often as the batch has images, in one picture."""
    rows = math.isqrt(batch)
    size = {"width": _FRAME[0], "height": _FRAME[1]}
    return {
        "application": {"enable-perf-measurement": 1, "perf-measurement-interval-sec": 5},
        "tiled-display": {"enable": 1, "rows": rows, "columns": -(-batch // rows), **size},
        "source0": {"enable": 1, "type": 3, "uri": _SAMPLE, "num-sources": batch},
        "streammux": {"batch-size": batch, "batched-push-timeout": 40000, "live-source": 0, **size},
        "primary-gie": {"enable": 1, "gie-unique-id": 1, "batch-size": batch, "config-file": CONFIG},
        "osd": {"enable": 1, "border-width": 2, "text-size": 15},
        "sink0": {"enable": 1, "type": 2, "sync": 0},
    }


def _crop(p: Preprocessing) -> str:
    """What cuts the sample's frames as center-crop does, for gst-launch."""
    if p.mode != "center-crop":
        return ""
    scale = min(_FRAME) / p.short_side
    width, height = (min(round(side * scale), most) for side, most in zip((p.width, p.height), _FRAME, strict=True))
    left, top = ((most - side) // 2 for side, most in zip((width, height), _FRAME, strict=True))
    return f"! nvvideoconvert src-crop={left}:{top}:{width}:{height} "


def _text(groups: Groups) -> str:
    lines = [[f"[{name}]", *(f"{key}={value}" for key, value in keys.items())] for name, keys in groups.items()]
    return "\n\n".join("\n".join(group) for group in lines) + "\n"
