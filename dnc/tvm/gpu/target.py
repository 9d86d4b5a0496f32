"""Back end `tvm` of target `cuda`: what `dnc.targets.cuda` asks of it.

The engine's folder holds

    model.so                  the network: kernels, weights, and what launches the kernels
    model.json                the GPUs and the machine that it is for; inputs and outputs
    libtvm_runtime.so         TVM's runtime, and
    libtvm_runtime_cuda.so    its part for NVIDIA's GPUs (4 MB together), unless --option runtime=system
    LICENSE-tvm               TVM's licence

To run it takes numpy, apache-tvm-ffi, NVIDIA's driver and its libcudart.so.13 (PyPI: nvidia-cuda-runtime).
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dnc.errors import TargetError
from dnc.gpu import gpus
from dnc.targets import Option, Session, Target
from dnc.targets.base import one_of
from dnc.targets.onnx import optimizations
from dnc.targets.tvm import FFI, described

if TYPE_CHECKING:
    import onnx_ir as ir

    from dnc.bundle import Bundle
    from dnc.passes import Pass

__all__ = ["OPTIONS", "TvmGpu"]

OPTIONS: Sequence[Option] = (
    Option("compiler", "", "tvm: nvcc, nvrtc, or the path of either; the first that is found if not given"),
    Option("triple", "", "tvm: the machine with the GPU, as aarch64-linux-gnu; this one's if not given"),
    Option("cc", "", "tvm: the C++ compiler that links for it; g++, or aarch64-linux-gnu-g++, if not given"),
    Option(
        "runtime",
        "bundled",
        "tvm: bundled: TVM's runtime is in the engine; system: an installed TVM's is used",
        one_of("bundled", "system"),
    ),
)
"""Its own; the others are those of target cuda."""
_PRECISIONS = ("fp32", "fp16")
_FOREIGN = ("provider", "layout", "graphs", "cache", "fallback")
"""Options of target cuda that are ONNX Runtime's."""


class TvmGpu(Target):
    """Kernels compiled ahead of time by TVM and NVIDIA's compilers."""

    name: ClassVar[str] = "cuda"
    summary: ClassVar[str] = "kernels compiled ahead of time"
    extra: ClassVar[str] = "tvm"
    batch: ClassVar[int | None] = 1

    def __init__(self, given: Mapping[str, str] | None = None) -> None:
        super().__init__(given)
        precision = self.options["precision"]
        if precision not in _PRECISIONS:
            what = f"precision {precision} is none of back end tvm's: {', '.join(_PRECISIONS)}"
            raise TargetError(what, hint="leave out backend=tvm")
        foreign = [name for name in _FOREIGN if self.given.get(name, "off") != "off"]
        if foreign:
            raise TargetError(f"back end tvm has no {', '.join(foreign)}", hint="leave it out, or backend=onnxruntime")

    def missing(self) -> str:
        """TVM, with its part for CUDA, and its interface for Python."""
        from dnc.tvm.gpu.process import cuda_runtime

        packages = {"apache-tvm": cuda_runtime() is not None, FFI: bool(importlib.util.find_spec("tvm_ffi"))}
        return " ".join(name for name, found in packages.items() if not found)

    def missing_to_open(self) -> str:
        """The interface for Python alone."""
        return "" if importlib.util.find_spec("tvm_ffi") else FFI

    def remedy(self) -> str:
        """TVM; NVIDIA's compilers are asked for when they are wanted."""
        return 'pip install "darknet-compiler[tvm]"'

    def passes(self) -> Sequence[Pass]:
        """Activations as ONNX has them: they are computed with what is before them."""
        return optimizations("onnx", "bits")

    def final_passes(self) -> Sequence[Pass]:
        """What stores another precision."""
        from dnc.passes import passes

        half = self.options["precision"] == "fp16"
        return [passes["to-float16"](), passes["eliminate-dead-code"]()] if half else []

    def unsupported(self, model: ir.Model) -> list[str]:
        """See `dnc.tvm.emit`."""
        from dnc.tvm.emit import unsupported

        return unsupported(model)

    def architectures(self) -> tuple[str, ...]:
        """The GPUs that are compiled for.

        Raises:
            TargetError: none is named, and this machine has none; or one is not known.
        """
        from dnc.tvm.gpu.device import architectures

        given = self.options["arch"] or next((gpu.arch for gpu in gpus()[self.options["device"] :]), "")
        hint = "--option arch=sm_87 names one, arch=sm_75,sm_87 several"
        if not given:
            raise TargetError("which GPU is to be compiled for is unknown: this machine has none", hint=hint)
        try:
            return architectures(given)
        except ValueError as error:
            raise TargetError(f"option arch={given} of target cuda is not {error}", hint=hint) from error

    def build(self, model: ir.Model, folder: Path, about: Bundle | None = None) -> Mapping[str, str]:
        """Compiles model.so and writes what stands beside it."""
        from dnc.tvm.compile import machine_for
        from dnc.tvm.gpu.process import Job, make_library
        from dnc.tvm.session import ABOUT, MODEL

        archs = self.architectures()
        options = self.options
        job = Job(archs, options["triple"], linker=options["cc"], compiler=options["compiler"])
        machine = machine_for(job.triple, job.mcpu)
        preprocessing = None if about is None else about.preprocessing
        reply = make_library(model, preprocessing, job, folder / MODEL)
        record = {
            "triple": machine.triple,
            "archs": reply["archs"],
            "ptx": reply["ptx"],
            "inputs": described(model.graph.inputs),
            "outputs": described(model.graph.outputs),
            "versions": self.versions(),
        }
        (folder / ABOUT).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        report = {
            "device": f"{_forms(reply)}, by {reply['compiler']}; nothing was timed or tried on a GPU",
            "kernels": _summary(reply),
            "runtime": self._bundle_runtime(folder, machine.is_host),
        }
        return {key: value for key, value in report.items() if value}

    def _bundle_runtime(self, folder: Path, here: bool) -> str:
        from dnc.tvm.gpu.process import cuda_runtime
        from dnc.tvm.session import runtime_library

        if self.options["runtime"] == "system" or not here:
            return "of an apache-tvm installed there"
        libraries = [library for library in (runtime_library(), cuda_runtime()) if library is not None]
        for library in libraries:
            shutil.copyfile(library, folder / library.name)
        licence = libraries[0].parent.parent / "LICENSE"
        if licence.is_file():
            shutil.copyfile(licence, folder / "LICENSE-tvm")
        size = sum((folder / library.name).stat().st_size for library in libraries)
        return f"bundled ({size / 1e6:.1f} MB); NVIDIA's libcudart.so.13 is not"

    def versions(self) -> dict[str, str]:
        """TVM's compiler, and the interface that the engine is called by."""
        from importlib.metadata import version

        return {name: version(name) for name in ("apache-tvm", "apache-tvm-ffi")}

    def engine(self) -> str:
        """TVM, and the GPU."""
        from importlib.metadata import version

        gpu = next((f"{gpu.name}, driver {gpu.driver}" for gpu in gpus()[self.options["device"] :]), "no GPU")
        return f"TVM {version('apache-tvm')} {self.options['precision']} on {gpu}"

    def open(self, folder: Path, threads: int | None = None) -> Session:
        """A session on the GPU."""
        from dnc.tvm.gpu.session import GpuSession

        return GpuSession(folder, self.options["device"])


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
