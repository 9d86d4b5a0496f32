"""Target `myriad`: Intel's Movidius Myriad X, in the Neural Compute Stick 2 and in OAK cameras.

The engine is a .blob, compiled on this machine, without a device, by the last compiler there is: `dnc toolchain install
myriad` fetches it. The folder holds

    model.blob     what a device loads: an image of bytes (1, C, H, W) as the camera gives it, outputs in float16
    model.json     names, shapes and precisions of its inputs and outputs; how bytes become the network's input
    model.onnx     the same network, weights in float16, for anything else that reads ONNX
    stages.json    which part of the device runs each section of the cfg
    yolo.json      for DepthAI's YoloDetectionNetwork, which decodes on the device

No runtime for the device is needed here: an application loads model.blob with DepthAI. Opened by dnc, the engine runs
on the toolchain's CPU plugin, from model.onnx, with the image rounded to bytes: the device's weights and inputs, but
float32 between them.
"""

from __future__ import annotations

import errno
import json
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import onnx_ir as ir

from dnc.errors import PassError, TargetError
from dnc.graph.builder import where_of
from dnc.graph.composites import NON_MAX_SUPPRESSION, PREPROCESS
from dnc.graph.pipeline import Step
from dnc.graph.running import available, run
from dnc.graph.serialization import check, serialize_to
from dnc.graph.verification import Verifier, error_between, feeds_for
from dnc.passes import passes
from dnc.runtime.manifest import Manifest
from dnc.runtime.options import Option, one_of, whole
from dnc.runtime.runners import Runner
from dnc.runtime.runners.myriad import BLOB, MODEL, MODEL_JSON, MyriadRunner, toolchain
from dnc.runtime.runners.myriad.pixels import IMAGE, Pixels
from dnc.runtime.runners.myriad.process import CompilerError, Job, Limits, compile_blob, infer
from dnc.targets import Target, targets
from dnc.targets.myriad.graph import pixels_for, prepare, tensors, unsupported
from dnc.targets.myriad.report import Layers, in_short, read_stages, yolo_config
from dnc.targets.onnx import optimizations
from dnc.typing import Progress, silent

__all__ = ["Myriad"]

STAGES, YOLO = "stages.json", "yolo.json"
_NAME = "myriad"
_SWITCHES = {
    "MYRIAD_ENABLE_HW_ACCELERATION": "convolutions on the neural compute engine",
    "MYRIAD_HW_DILATION": "dilated convolutions there too",
    "MYRIAD_HW_POOL_CONV_MERGE": "a pooling joins the convolution before it",
    "MYRIAD_HW_INJECT_STAGES": "software runs while the hardware works",
    "MYRIAD_HW_EXTRA_SPLIT": "cuts hardware stages further",
    "MYRIAD_COPY_OPTIMIZATION": "leaves copies out",
    "MYRIAD_PACK_DATA_IN_CMX": "keeps values in the on-chip memory",
    "MYRIAD_ENABLE_PERMUTE_MERGING": "joins transpositions",
    "MYRIAD_ENABLE_REPL_WITH_SCRELU": "leaky ReLU as scale and ReLU",
    "MYRIAD_ENABLE_EARLY_ELTWISE_RELU_FUSION": "a ReLU joins the addition before it",
    "MYRIAD_ENABLE_WEIGHTS_ANALYSIS": "scales weights to float16's range",
    "MYRIAD_DISABLE_REORDER": "no changes of layout",
}
_TEXTS = {
    "MYRIAD_TILING_CMX_LIMIT_KB": "on-chip memory that tiles may take, in kB",
    "MYRIAD_HW_BLACK_LIST": "layers that are not to run on the neural compute engine, separated by commas",
}


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError("a positive number")
    return number


def _switch(text: str) -> str:
    if text not in ("", "YES", "NO"):
        raise ValueError("YES or NO")
    return text


def _share(text: str) -> float:
    number = _positive(text)
    if number > 1:
        raise ValueError("a number up to 1")
    return number


@targets.register
class Myriad(Target):
    """Intel Movidius Myriad X."""

    name: ClassVar[str] = _NAME
    summary: ClassVar[str] = "Myriad X: Neural Compute Stick 2, OAK cameras; model.blob, compiled on this machine"
    extra: ClassVar[str] = _NAME
    runs: ClassVar[type[Runner]] = MyriadRunner
    batch: ClassVar[int | None] = 1
    composites: frozenset[str] = frozenset({PREPROCESS, NON_MAX_SUPPRESSION})
    """It refuses both, each as what it is."""
    known_options: ClassVar[Sequence[Option]] = (
        Option("shaves", "6", "vector processors, and slices of on-chip memory, that the network uses", whole(1, 16)),
        Option("input", "u8", "what the blob's image is: u8, or fp16 preprocessed by you", one_of("u8", "fp16")),
        Option(
            "color",
            "bgr",
            "the order of the blob's channels: bgr, as OAK cameras give it, or rgb",
            one_of("bgr", "rgb"),
        ),
        Option("confidence", "0.25", "the threshold in yolo.json", _share),
        Option("iou", "0.45", "the threshold of non-maximum suppression in yolo.json", _share),
        Option("numerics", "yes", "compare with float32 on the CPU", one_of("yes", "no")),
        Option("seconds", "600", "how long the compiler may take", _positive),
        Option("memory", "0", "how many MB the compiler may take; 0: what the machine has", whole(0, 10**9)),
        *(Option(name, "", f"YES or NO: {text}", _switch) for name, text in _SWITCHES.items()),
        *(Option(name, "", text) for name, text in _TEXTS.items()),
    )

    def missing(self) -> str:
        """The toolchain, as far as file sizes tell; `build` looks closer."""
        return toolchain.missing(_NAME)

    def remedy(self) -> str:
        return self.runner().remedy()

    def optimizations(self) -> Sequence[Step]:
        """Passes as for other readers of ONNX, in the forms that the compiler knows."""
        return optimizations("myriad", "bits")

    def unsupported(self, model: ir.Model) -> list[str]:
        return unsupported(model)

    def versions(self) -> dict[str, str]:
        return dict(requirement.split("==") for requirement in toolchain.TOOLCHAINS[_NAME].wheels)

    def engine(self) -> str:
        """Names the CPU plugin, which is what runs here."""
        return "OpenVINO 2022.1's CPU plugin"

    def build(
        self, model: ir.Model, folder: Path, manifest: Manifest | None = None, progress: Progress = silent
    ) -> Mapping[str, str]:
        preprocessing = manifest.preprocessing if manifest is not None else None
        bytes_in = preprocessing is not None and self.options["input"] == "u8"
        pixels = pixels_for(preprocessing, self.options["color"]) if bytes_in and preprocessing is not None else None
        job, layers = self.write_blob(prepare(model, pixels), folder, pixels)
        _write(folder / STAGES, {"layers": layers})
        return self._report(model, folder, manifest, pixels, job, layers)

    def write_blob(self, prepared: ir.Model, folder: Path, pixels: Pixels | None) -> tuple[Job, Layers]:
        """Compiles a graph that `prepare` made, and writes model.onnx, model.blob and model.json.

        Args:
            pixels: what makes the network's image of bytes, in the graph already; None where it takes no bytes.

        Raises:
            TargetError: the toolchain is damaged, or does not take the graph.
            OSError: something cannot be written.
        """
        damage = toolchain.damage(_NAME, thorough=True)
        if damage:
            raise TargetError(f"the Myriad X toolchain is damaged: {damage}", hint=f"{self.remedy()} again")
        serialize_to(prepared, folder / MODEL)
        precisions = {value.name or "": "FP16" for value in (*prepared.graph.inputs, *prepared.graph.outputs)}
        if pixels is not None:
            precisions[IMAGE] = "U8"
        megabytes = self.options["memory"]
        limits = Limits(self.options["seconds"], megabytes << 20) if megabytes else Limits(self.options["seconds"])
        job = Job(toolchain.folder(_NAME), folder / MODEL, limits)
        layers = self._compile(job, prepared, precisions, folder / BLOB)
        _write(folder / MODEL_JSON, self._description(prepared, precisions, pixels))
        return job, layers

    def _compile(self, job: Job, prepared: ir.Model, precisions: Mapping[str, str], blob: Path) -> Layers:
        places = {value.name or "": where_of(node) for node in prepared.graph for value in node.outputs}
        config = {name: self.options[name] for name in (*_SWITCHES, *_TEXTS) if self.options[name]}
        with tempfile.TemporaryDirectory(prefix="dnc-myriad-", dir=blob.parent) as scratch:
            dump = Path(scratch) / "stages.dot"
            try:
                compile_blob(job, blob, precisions, shaves=self.options["shaves"], config=config, dump=dump)
                return read_stages(dump.read_text(encoding="utf-8"), places)
            except CompilerError as error:
                named = [name for name in places if re.search(rf"(?<![\w/.]){re.escape(name)}(?![\w/])", error.message)]
                where = places[max(named, key=len)] if named else None
                raise TargetError(error.message, where or error.where, error.hint) from error
            except ValueError as error:
                raise OSError(errno.ENOSPC, str(error)) from error

    def _description(self, prepared: ir.Model, precisions: Mapping[str, str], pixels: Pixels | None) -> dict[str, Any]:
        same = tensors(prepared)

        def described(values: Sequence[ir.Value]) -> list[dict[str, Any]]:
            return [
                {
                    "name": value.name,
                    "tensor": same.get(value.name or "", value.name),
                    "shape": [side if isinstance(side, int) else None for side in value.shape or ()],
                    "precision": precisions[value.name or ""],
                }
                for value in values
            ]

        return {
            "shaves": self.options["shaves"],
            "color": self.options["color"] if pixels is not None and len(pixels.order) > 1 else None,
            "inputs": described(prepared.graph.inputs),
            "outputs": described(prepared.graph.outputs),
            "pixels": None if pixels is None else pixels._asdict(),
        }

    def _report(
        self, model: ir.Model, folder: Path, manifest: Manifest | None, pixels: Pixels | None, job: Job, layers: Layers
    ) -> dict[str, str]:
        size = (folder / BLOB).stat().st_size / 1e6
        image = "bytes, " + self.options["color"] if pixels is not None else "float16"
        report = {
            "blob": f"{size:.1f} MB for {self.options['shaves']} shaves; image in {image}",
            "stages": f"{in_short(layers)}; see {STAGES}",
        }
        if manifest is None:
            return report
        try:
            config = yolo_config(manifest, self.options["confidence"], self.options["iou"])
            if config:
                (folder / YOLO).write_text(config, encoding="utf-8")
                report["boxes"] = f"{YOLO} is for DepthAI's YoloDetectionNetwork"
        except ValueError as error:
            report["boxes"] = f"no {YOLO}: {error}"
        if self.options["numerics"] == "yes":
            report["numerics"] = _numerics(model, manifest, pixels, job)
        return report


def _numerics(model: ir.Model, manifest: Manifest, pixels: Pixels | None, job: Job) -> str:
    """How far the network is from float32: its weights in float16 in the toolchain's CPU plugin, and, in ONNX Runtime,
    every value in float16 as well."""
    if not available():
        return "not measured: it needs onnxruntime"
    feeds = feeds_for(model, manifest.preprocessing, images=1)
    given = dict(feeds)
    if pixels is not None:
        given[IMAGE] = pixels.bytes_of(feeds[IMAGE])
        feeds[IMAGE] = pixels.input_of(given[IMAGE])
    names = tensors(model)
    expected = run(model, feeds, optimize=True)
    found = infer(job, given, names)
    errors = [error_between(found[name], expected[name]) for name in names]
    # On channels that it adds to fill a vector the plugin may divide by zero, and lets that reach others.
    finite = all(math.isfinite(error) for error in errors)
    weights = f"within {max(errors):.2%} of float32's" if finite else "not finite in the CPU plugin"
    verifier = Verifier(feeds)
    verifier.start(model)
    rounded = model.clone()
    passes["to-float16"]().rewrite(rounded)
    check(rounded, "to-float16")
    try:
        values = f"within {verifier.compare(rounded, math.inf):.2%}"
    except PassError:
        values = "not finite: they exceed its range"
    return f"with float16 weights outputs are {weights}, with float16 values {values}"


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
