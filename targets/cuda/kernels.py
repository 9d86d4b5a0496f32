"""Back end `tvm` of target `cuda`: kernels compiled ahead of time, for the GPUs that option `arch` names.

The engine's folder holds

    model.so                  the network: kernels, weights, and what launches the kernels
    model.json                the GPUs and the machine that it is for; inputs and outputs; of an engine that prepares
                              images, what function `prepare` makes of them; of one that suppresses boxes, the number
                              that the row behind the last detection begins with, as "end"
    libtvm_runtime.so         TVM's runtime, and
    libtvm_runtime_cuda.so    its part for NVIDIA's GPUs (4 MB together), unless --option runtime=system
    LICENSE-tvm               TVM's licence

To run it takes numpy, apache-tvm-ffi, NVIDIA's driver and its libcudart.so.13 (PyPI: nvidia-cuda-runtime).
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import onnx_ir as ir

from dnc.errors import TargetError
from dnc.files.writing import scratch_folder
from dnc.graph.composites import BINARY_CONVOLUTION, NON_MAX_SUPPRESSION, PREPROCESS, is_composite
from dnc.graph.pipeline import Step
from dnc.graph.preprocessing import Preprocess
from dnc.graph.verification import feeds_for
from dnc.graph.work import described_work
from dnc.runtime.gpus import gpus
from dnc.runtime.manifest import Manifest
from dnc.runtime.options import CALIBRATED, Option
from dnc.runtime.processor import architecture
from dnc.runtime.runners import Runner
from dnc.runtime.runners.cuda import KernelsRunner
from dnc.runtime.runners.cuda.device import Device, architectures, runs_on
from dnc.runtime.runners.tvm.session import MODEL, MODEL_JSON, runtime_library
from dnc.targets.base import Target, Tuning
from dnc.targets.cuda.options import OPTIONS
from dnc.targets.cuda.process import Compiler, Job, cuda_runtime
from dnc.targets.cuda.toolkit import find_toolkit
from dnc.targets.cuda.tuning import GpuTuner, Measurer
from dnc.targets.onnx import optimizations, rounded
from dnc.targets.tvm.common import TvmTarget, described
from dnc.targets.tvm.compile import find_linker, machine_for
from dnc.targets.tvm.emit import unsupported
from dnc.targets.tvm.tuning import summary
from dnc.typing import Array, Progress, silent

__all__ = ["CudaKernels"]


class CudaKernels(TvmTarget):
    """Kernels compiled ahead of time by TVM and NVIDIA's compilers."""

    name: ClassVar[str] = "cuda"
    summary: ClassVar[str] = "kernels compiled ahead of time"
    extra: ClassVar[str] = "tvm"
    runs: ClassVar[type[Runner]] = KernelsRunner
    builds_apart: ClassVar[bool] = True
    batch: ClassVar[int | None] = 1
    known_options: ClassVar[Sequence[Option]] = OPTIONS

    def __init__(self, given: Mapping[str, str] | None = None) -> None:
        super().__init__(given)
        self.runner()  # Refuses what is not for it.
        if self.options["kernels"] == "new":
            self.composites |= {BINARY_CONVOLUTION}

    @property
    def title(self) -> str:
        return f"{super().title} by tvm" + (", new kernels" if self.options["kernels"] == "new" else "")

    def proven(self) -> Target | None:
        """The kinds of kernels that were right and fast on a GPU."""
        if self.options["kernels"] != "new":
            return None
        return type(self)({name: text for name, text in self.given.items() if name != "kernels"})

    def unproven(self) -> Target | None:
        return None if "kernels" in self.given else type(self)({**self.given, "kernels": "new"})

    def replaces(
        self, folder: Path, proven: Path, feeds: Mapping[str, Array], progress: Progress = silent
    ) -> tuple[bool, str]:
        with Measurer(self.options["device"], progress) as measurer:
            return measurer.try_new(folder, proven, feeds, self.options["precision"], self.options["graphs"])

    def lacking(self) -> str:
        """What of it cannot be found here, in words; empty if it can compile."""
        missing = self.missing()
        if missing:
            return f"{missing} is not installed"
        try:
            find_toolkit(self.options["compiler"])
            find_linker(self.options["cc"], machine_for(self.options["triple"], "generic"))
        except TargetError as error:
            return error.message
        return ""

    def library(self) -> Path | None:
        """TVM's runtime for CUDA, which not all wheels have."""
        return cuda_runtime()

    def remedy(self) -> str:
        """TVM, with NVIDIA's compiler; what runs engines is less."""
        return self.runner().remedy()

    def optimizations(self) -> Sequence[Step]:
        """Activations as ONNX has them: they are computed with what is before them."""
        return optimizations("onnx", "" if BINARY_CONVOLUTION in self.composites else "bits")

    def storage(self, keep: Collection[str] = ()) -> Sequence[Step]:
        """What is not of 8 bits is in float16."""
        return rounded("to-float16", keep) if self.options["precision"] in ("fp16", *CALIBRATED) else []

    def unsupported(self, model: ir.Model) -> list[str]:
        return unsupported(model)

    def architectures(self) -> tuple[str, ...]:
        """The GPUs that are compiled for.

        Raises:
            TargetError: none is named, and this machine has none; or one is not known.
        """
        given = self.options["arch"] or next((gpu.arch for gpu in gpus()[self.options["device"] :]), "")
        hint = "--option arch=sm_87 names one, arch=sm_75,sm_87 several"
        if not given:
            raise TargetError("which GPU is to be compiled for is unknown: this machine has none", hint=hint)
        try:
            return architectures(given)
        except ValueError as error:
            raise TargetError(f"option arch={given} of target cuda is not {error}", hint=hint) from error

    def build(
        self, model: ir.Model, folder: Path, manifest: Manifest | None = None, progress: Progress = silent
    ) -> Mapping[str, str]:
        with Compiler(model, self._job(), progress) as compiler:
            reply = compiler.network(folder / MODEL).result()
        kinds = "of 8 bits" if self.needs_calibration else "for bfloat16" if self.options["precision"] == "bf16" else ""
        unseen = f", and no GPU has run kernels {kinds} yet" if kinds else ""
        return self._finish(model, folder, manifest, reply, f"nothing was timed or tried on a GPU{unseen}")

    def build_tuned(
        self,
        model: ir.Model,
        folder: Path,
        manifest: Manifest | None,
        tuning: Tuning,
        progress: Progress = silent,
        unproven: ir.Model | None = None,
    ) -> tuple[Mapping[str, str], Mapping[str, Any]]:
        """The same with kernels chosen by measuring on a GPU of this machine: see `dnc.targets.tvm.tuning`."""
        if tuning.remote:
            raise TargetError("a GPU is tuned on the machine that has it", hint="leave out --remote")
        deadline = tuning.deadline()
        with Measurer(self.options["device"], progress) as measurer:
            here = f"sm_{measurer.capability.replace('.', '')}"
            job = self._job(here)
            if not runs_on(job.archs, job.archs[-1], measurer.capability):
                what = f"nothing can be tuned for {', '.join(job.archs)} here: the {measurer.name} is {here}"
                raise TargetError(what, hint=f"--option arch={here}")
            jobs, models = {self.options["kernels"]: job}, {self.options["kernels"]: model}
            if self.unproven() is not None:
                jobs["new"] = dataclasses.replace(job, new=True)
                models["new"] = model if unproven is None else unproven
            with ExitStack() as stack:
                scratch = stack.enter_context(scratch_folder("tune"))
                tuner = GpuTuner(
                    {kinds: stack.enter_context(Compiler(models[kinds], one, progress)) for kinds, one in jobs.items()},
                    measurer,
                    models,
                    feeds_for(model, None if manifest is None else manifest.preprocessing, images=1),
                    archs=[*job.archs, *(["in TF32"] if job.tf32 else [])],
                    graphs=self.options["graphs"],
                    precision=self.options["precision"],
                    record=partial(self._record, model, manifest),
                    scratch=scratch,
                    cache=tuning.cache,
                    progress=progress,
                )
                tuned = tuner.tune(folder / MODEL, scratch, tuning.trials, deadline)
        report = self._finish(model, folder, manifest, tuned.built, f"kernels were timed on the {measurer.name}")
        tried = {} if not tuner.trial else {"new kernels": tuner.trial}
        return {**report, **tried, "tuning": summary(tuned.record)}, {**tuned.record, **tried}

    def _job(self, otherwise: str = "") -> Job:
        """What is compiled for; a GPU of the architecture `otherwise` where none is named."""
        options = self.options
        archs = self.architectures() if options["arch"] or not otherwise else architectures(otherwise)
        precision = options["precision"]
        asked = {"tf32": "TF32", "bf16": "bfloat16"}.get(precision)
        if asked is not None and not Device.of(archs).copies:
            raise TargetError(f"{archs[0]} has no {asked}", hint=f"precision {precision} is for sm_80 and later")
        compilers = {"linker": options["cc"], "compiler": options["compiler"]}
        halves = {"tf32": precision == "tf32", "bfloat16": precision == "bf16"}
        return Job(archs, options["triple"], **compilers, **halves, new=options["kernels"] == "new")

    def _record(self, model: ir.Model, manifest: Manifest | None, reply: Mapping[str, Any]) -> Mapping[str, Any]:
        """model.json."""
        return {
            "triple": machine_for(self.options["triple"], "generic").triple,
            "archs": reply["archs"],
            "ptx": reply["ptx"],
            "large": reply["large"],
            "inputs": described(model.graph.inputs),
            "outputs": _outputs(model),
            **_prepared(model),
            "versions": self.versions(),
            "kernels": reply["kernels"],
            "work": [] if manifest is None else described_work(model, manifest),
        }

    def _finish(
        self, model: ir.Model, folder: Path, manifest: Manifest | None, reply: Mapping[str, Any], tried: str
    ) -> dict[str, str]:
        """Writes what stands beside model.so; what there is to say."""
        record = self._record(model, manifest, reply)
        (folder / MODEL_JSON).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        report = {
            "device": f"{_forms(reply)}, by {reply['compiler']}; {tried}",
            "kernels": _summary(reply),
            "runtime": self._bundle_runtime(folder, architecture(record["triple"]) == architecture()),
        }
        return {key: value for key, value in report.items() if value}

    def _bundle_runtime(self, folder: Path, here: bool) -> str:
        if self.options["runtime"] == "system" or not here:
            return "of an apache-tvm installed there"
        paths = (runtime_library(), self.library())
        libraries = {library.name: library for library in paths if library is not None}
        return f"{self.bundle(libraries, folder)}; NVIDIA's libcudart.so.13 is not"

    def engine(self) -> str:
        from importlib.metadata import version

        gpu = next((f"{gpu.name}, driver {gpu.driver}" for gpu in gpus()[self.options["device"] :]), "no GPU")
        return f"TVM {version('apache-tvm')} {self.options['precision']} on {gpu}"


def _outputs(model: ir.Model) -> list[dict[str, Any]]:
    """Outputs for model.json; detections as many as there can be, before a row that begins with "end"."""
    entries = described(model.graph.outputs)
    for value, entry in zip(model.graph.outputs, entries, strict=True):
        node = value.producer()
        if node is not None and is_composite(node, NON_MAX_SUPPRESSION):
            entry["end"] = -1.0
    return entries


def _prepared(model: ir.Model) -> dict[str, Any]:
    """What of the inputs are images, and what `prepare` makes of them for the network."""
    for node in model.graph:
        if is_composite(node, PREPROCESS):
            pixels, p = node.inputs[0], Preprocess.of(node)
            assert pixels is not None
            assert pixels.shape is not None
            shape = [pixels.shape[0], p.height, p.width, p.channels]
            return {"prepare": {"input": pixels.name, "shape": shape, "dtype": "float32"}}
    return {}


def _forms(reply: Mapping[str, Any]) -> str:
    code = [", ".join(reply["archs"])] if reply["archs"] else []
    return " and ".join([*code, *([f"PTX of {reply['ptx']} for later ones"] if reply["ptx"] else [])])


def _summary(reply: Mapping[str, Any]) -> str:
    """The rules that wrote the kernels, the most frequent first, and what is wrong with some."""
    # A function that is a view is none when it runs.
    counts = Counter(rules.partition(":")[0] for rules in reply["rules"].values() if rules != "view")
    text = ", ".join(f"{count} {rules}" for rules, count in counts.most_common())
    spilled = [name for name, taken in reply["resources"].items() if taken["spilled"]]
    return f"{text}; registers of {', '.join(spilled)} are in memory" if spilled else text
