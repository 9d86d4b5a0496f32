"""Target `tvm`: machine code for one kind of CPU, compiled here by Apache TVM, for this machine or for another.

The folder holds

    model.so              the network: code and weights
    model.json            what it was compiled for: triple, processor, extensions; inputs and outputs; what each kernel
                          computes, and each section of the cfg (`dnc.runtime.runners.tvm.instrument`, `dnc.graph.work`)
    libtvm_runtime.so     TVM's runtime (3 MB), unless --option runtime=system
    LICENSE-tvm           TVM's licence

Where the batch is free, the code is for one image, and the runner runs as many as there are; a batch of a fixed size
has code of its own.

An application needs no TVM: numpy and apache-tvm-ffi from Python, tvm_ffi's headers and library from C++.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import onnx_ir as ir

from dnc.errors import TargetError
from dnc.files.writing import scratch_folder
from dnc.graph.composites import BINARY_CONVOLUTION
from dnc.graph.pipeline import Step
from dnc.graph.rewriting import for_one_image
from dnc.graph.running import available
from dnc.graph.verification import feeds_for
from dnc.graph.work import described_work
from dnc.runtime.arithmetic import KINDS, Arithmetic, of_features
from dnc.runtime.manifest import Manifest
from dnc.runtime.options import Option, one_of
from dnc.runtime.processor import architecture, linux_names
from dnc.runtime.runners import Runner
from dnc.runtime.runners.tvm import TvmRunner
from dnc.runtime.runners.tvm.session import MODEL, MODEL_JSON, RUNTIME, runtime_library
from dnc.targets import targets
from dnc.targets.base import Tuning
from dnc.targets.onnx import optimizations
from dnc.targets.tvm.common import TvmTarget, described
from dnc.targets.tvm.compile import Built, Machine, build, find_linker, machine_for
from dnc.targets.tvm.emit import emit, shared_outputs, unsupported
from dnc.targets.tvm.remote import Address, connect, here
from dnc.targets.tvm.tuning import summary
from dnc.targets.tvm.winograd import OFF, ChooseWinograd, allowed
from dnc.typing import Progress, silent

__all__ = ["PRECISIONS", "Tvm"]

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "mixed")
_EIGHT = {"x86_64": ("avx2", "avx512bw"), "aarch64": ("dotprod",)}
_NEEDS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "fp16": {"x86_64": ("avx512fp16",), "aarch64": ("fullfp16",)},
    "bf16": {"x86_64": ("avx512bf16",)},
    "int8": _EIGHT,
    "mixed": _EIGHT,
}
"""The extensions that compute in a precision, one of which is needed, by architecture."""


def _runtime(text: str) -> str:
    if text not in ("bundled", "system") and not Path(text).is_file():
        raise ValueError("one of bundled, system, or a libtvm_runtime.so to bundle")
    return text


@targets.register
class Tvm(TvmTarget):
    """Apache TVM on CPUs."""

    name: ClassVar[str] = "tvm"
    summary: ClassVar[str] = "machine code by Apache TVM, for this CPU or another (aarch64); model.so needs no compiler"
    extra: ClassVar[str] = "tvm"
    runs: ClassVar[type[Runner]] = TvmRunner
    faster: ClassVar[Sequence[str]] = ("bf16", "mixed")
    composites = TvmTarget.composites | {BINARY_CONVOLUTION}
    known_options: ClassVar[Sequence[Option]] = (
        Option("mcpu", "host", "the processor, as LLVM names it: host, znver4, x86-64-v3, cortex-a72, …"),
        Option("triple", "", "the machine, as aarch64-linux-gnu, or aarch64; this one if not given"),
        Option("cc", "", "the C++ compiler that links; g++, or aarch64-linux-gnu-g++ for aarch64, if not given"),
        Option(
            "runtime",
            "bundled",
            "bundled: TVM's runtime is in the engine; system: an installed TVM's is used; or a file to bundle",
            _runtime,
        ),
        Option(
            "precision",
            "fp32",
            "fp16, bf16: half precision, for processors that compute with it; int8, mixed: 8 bits for convolutions of "
            "all channels, all over or where they cost little, for x86 (with VNNI they gain most) and for dotprod",
            one_of(*PRECISIONS),
        ),
        Option(
            "winograd",
            OFF,
            "the error that 3x3 convolutions of float32 may have for speed, each of its largest output, as 1e-5: "
            "Winograd's form is taken where it stays within that and is faster; weights take 1.8 or 4 times the space",
            allowed,
        ),
    )

    def library(self) -> Path | None:
        return runtime_library()

    def remedy(self) -> str:
        return self.runner().remedy()

    def optimizations(self) -> Sequence[Step]:
        """Passes as for other readers of ONNX; mish and elu by exp, which is fast here. Signs stay bits."""
        return optimizations("onnxruntime", "")

    def storage(self, keep: Collection[str] = ()) -> Sequence[Step]:
        steps = super().storage(keep)
        error = self.options["winograd"]
        if not error:
            return steps
        if not available():
            raise TargetError("option winograd: errors are measured with ONNX Runtime", hint="pip install onnxruntime")
        from dnc.targets.tvm import schedules

        machine = schedules.Machine.of(self._machine().target)
        chosen = ChooseWinograd(error, machine, self.options["precision"] == "bf16")
        return [*steps, Step(chosen, "last: it measures what runs")]

    @property
    def arithmetic(self) -> Arithmetic:
        """What the machine code multiplies with, which runs on no other kind of processor."""
        machine = self._machine()
        if machine.eights == "int16":
            return KINDS["words"]
        return of_features(machine.features, machine.architecture)

    def unsupported(self, model: ir.Model) -> list[str]:
        """See `dnc.targets.tvm.emit`; and precisions in which the processor does not compute."""
        found = unsupported(for_one_image(model))
        precision = self.options["precision"]
        if precision in _NEEDS:
            machine = self._machine()
            names = _NEEDS[precision].get(machine.architecture, ())
            able = machine.eights if _NEEDS[precision] is _EIGHT else machine.features.intersection(names)
            if not able:
                what = " or ".join(names) or machine.architecture
                found.append(f"precision {precision}: {machine.mcpu} does not compute with it ({what})")
        return found

    def _emit(self, model: ir.Model, machine: Machine) -> Callable[[], Any]:
        """Writes the model in Relax when it is called."""
        # No number is of 8 bits where the processor does not multiply them.
        eights = machine.eights or "uint8"
        return partial(
            emit,
            for_one_image(model),
            eights=eights,
            bfloat16=self.options["precision"] == "bf16",
            fences=machine.floats,
        )

    def _machine(self) -> Machine:
        return machine_for(self.options["triple"], self.options["mcpu"])

    def build(
        self, model: ir.Model, folder: Path, manifest: Manifest | None = None, progress: Progress = silent
    ) -> Mapping[str, str]:
        machine = self._machine()
        linker = find_linker(self.options["cc"], machine)
        built = build(self._emit(model, machine), machine, linker, folder / MODEL, progress=progress)
        return self._finish(model, folder, machine, built, manifest)

    def build_tuned(
        self,
        model: ir.Model,
        folder: Path,
        manifest: Manifest | None,
        tuning: Tuning,
        progress: Progress = silent,
        unproven: ir.Model | None = None,
    ) -> tuple[Mapping[str, str], Mapping[str, Any]]:
        """Builds with kernels chosen by measuring, here or on a device: see tuning.py and remote.py."""
        from dnc.targets.tvm.cpu_tuning import CpuTuner

        deadline = tuning.deadline()
        machine = self._machine()
        linker = find_linker(self.options["cc"], machine)
        if not tuning.remote and not machine.is_host:
            hint = "measure on one behind TVM's RPC: --remote HOST:PORT"
            raise TargetError(f"nothing can be tuned for {machine.architecture} on {architecture()}", hint=hint)
        feeds = feeds_for(model, None if manifest is None else manifest.preprocessing, images=1)
        with (
            scratch_folder("tune") as scratch,
            connect(Address.parse(tuning.remote), progress) if tuning.remote else here(scratch) as device,
        ):
            emitter, place, precision = self._emit(model, machine), scratch, self.options["precision"]
            tuner = CpuTuner(emitter, machine, linker, model, feeds, precision, device, place, tuning.cache, progress)
            tuned = tuner.tune(folder / MODEL, place, tuning.trials, deadline)
        text = summary(tuned.record)
        return {**self._finish(model, folder, machine, tuned.built, manifest), "kernels": text}, tuned.record

    def _finish(
        self, model: ir.Model, folder: Path, machine: Machine, built: Built, manifest: Manifest | None
    ) -> dict[str, str]:
        """Writes what stands beside model.so; what there is to say."""
        record = {
            "triple": machine.triple,
            "mcpu": machine.mcpu,
            "architecture": machine.architecture,
            "extensions": machine.extensions,
            "cpuinfo": linux_names(machine.extensions, machine.architecture),
            "inputs": described(model.graph.inputs),
            "outputs": described(model.graph.outputs),
            "shared": shared_outputs(model),
            "versions": self.versions(),
            "kernels": built.kernels,
            "work": [] if manifest is None else described_work(model, manifest),
        }
        (folder / MODEL_JSON).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        counts = sorted(built.rules.items(), key=lambda item: (-item[1], item[0]))
        return {
            "processor": f"{machine.architecture} {machine.mcpu}",
            "functions": ", ".join(f"{count} {rule or 'without a schedule of its own'}" for rule, count in counts),
            "runtime": self._bundle_runtime(machine, folder),
        }

    def _bundle_runtime(self, machine: Machine, folder: Path) -> str:
        chosen = self.options["runtime"]
        if chosen == "system":
            return "of an installed apache-tvm"
        if chosen == "bundled" and not machine.is_host:
            return f"of an apache-tvm installed there: name one for {machine.architecture} with --option runtime=FILE"
        library = self.library() if chosen == "bundled" else Path(chosen)
        if library is None:
            raise TargetError(f"there is no {RUNTIME} to bundle", hint=self.remedy())
        return self.bundle({RUNTIME: library}, folder)

    def engine(self) -> str:
        from importlib.metadata import version

        return f"TVM {version('apache-tvm')} {self._machine().mcpu} {self.options['precision']}"
