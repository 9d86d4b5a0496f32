"""Target `tvm`: machine code for one kind of CPU, compiled here by Apache TVM, for this machine or for another.

The folder holds

    model.so              the network: code and weights
    model.json            what it was compiled for: triple, processor, extensions; inputs and outputs
    libtvm_runtime.so     TVM's runtime (3 MB), unless --option runtime=system
    LICENSE-tvm           TVM's licence

An application needs no TVM: numpy and apache-tvm-ffi from Python, tvm_ffi's headers and library from C++.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dnc.errors import TargetError
from dnc.targets import Option, Session, Target, targets
from dnc.tvm.processor import architecture

if TYPE_CHECKING:
    import onnx_ir as ir

    from dnc.bundle import Bundle
    from dnc.passes import Pass
    from dnc.tvm.compile import Machine

__all__ = ["FFI", "PRECISIONS", "Tvm", "described"]

FFI = "apache-tvm-ffi==0.1.14.post1"
"""The interface for Python, in the version that fits."""
PRECISIONS = ("fp32", "fp16")
_HALF = {"x86_64": "avx512fp16", "aarch64": "fullfp16"}
"""The extension that computes with float16, by architecture."""


def _precision(text: str) -> str:
    if text in ("int8", "mixed"):
        raise ValueError("one of fp32, fp16: with 8 bits TVM would round to them, and then compute in float32")
    if text not in PRECISIONS:
        raise ValueError("one of fp32, fp16")
    return text


def _runtime(text: str) -> str:
    if text not in ("bundled", "system") and not Path(text).is_file():
        raise ValueError("one of bundled, system, or a libtvm_runtime.so to bundle")
    return text


@targets.register
class Tvm(Target):
    """Apache TVM on CPUs."""

    name: ClassVar[str] = "tvm"
    summary: ClassVar[str] = "machine code by Apache TVM, for this CPU or another (aarch64); model.so needs no compiler"
    extra: ClassVar[str] = "tvm"
    batch: ClassVar[int | None] = 1
    tunes: ClassVar[bool] = True
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
        Option("precision", "fp32", "fp16: half precision, for processors that compute with it", _precision),
    )

    def missing(self) -> str:
        """TVM, and its interface for Python in the version that fits."""
        from dnc.tvm.session import runtime_library

        packages = {"apache-tvm": runtime_library() is not None, FFI: bool(importlib.util.find_spec("tvm_ffi"))}
        return " ".join(name for name, found in packages.items() if not found)

    def missing_to_open(self) -> str:
        """The interface for Python alone."""
        return "" if importlib.util.find_spec("tvm_ffi") else FFI

    def remedy(self) -> str:
        """The extra to compile with, and that to run with."""
        return 'pip install "darknet-compiler[tvm]"; to run engines, "darknet-compiler[runtime-tvm]" is enough'

    def passes(self) -> Sequence[Pass]:
        """Those of other readers of ONNX; mish and elu by exp, which is fast here."""
        from dnc.targets.onnx import optimizations

        return optimizations("onnxruntime", "bits")

    def final_passes(self) -> Sequence[Pass]:
        """What stores another precision."""
        from dnc.passes import passes

        half = self.options["precision"] == "fp16"
        return [passes["to-float16"](), passes["eliminate-dead-code"]()] if half else []

    def unsupported(self, model: ir.Model) -> list[str]:
        """See `dnc.tvm.emit`; and float16 where the processor has none."""
        from dnc.tvm.emit import unsupported

        found = unsupported(model)
        if self.options["precision"] == "fp16":
            machine = self._machine()
            extension = _HALF.get(machine.architecture, "")
            if extension not in machine.features:
                found.append(f"precision fp16: {machine.mcpu} does not compute with it ({extension})")
        return found

    def _machine(self) -> Machine:
        from dnc.tvm.compile import machine_for

        return machine_for(self.options["triple"], self.options["mcpu"])

    def build(self, model: ir.Model, folder: Path, about: Bundle | None = None) -> Mapping[str, str]:
        """Compiles model.so and writes what stands beside it."""
        from dnc.tvm.compile import build, find_linker
        from dnc.tvm.emit import emit
        from dnc.tvm.session import MODEL

        machine = self._machine()
        linker = find_linker(self.options["cc"], machine)
        preprocessing = about.preprocessing if about is not None else None
        rules = build(partial(emit, model, preprocessing), machine, linker, folder / MODEL)
        return self._finish(model, folder, machine, rules)

    def build_tuned(
        self,
        model: ir.Model,
        folder: Path,
        about: Bundle,
        trials: int,
        *,
        remote: str = "",
        cache: Path | None = None,
        progress: Callable[[str], None] = lambda _: None,
    ) -> tuple[Mapping[str, str], Mapping[str, Any]]:
        """The same with kernels chosen by measuring, here or there: see `dnc.tvm.tuning` and `dnc.tvm.remote`."""
        from dnc.tvm.compile import find_linker
        from dnc.tvm.emit import emit
        from dnc.tvm.remote import Address, connect, here
        from dnc.tvm.session import MODEL
        from dnc.tvm.tuning import build
        from dnc.verify import feeds_for

        machine = self._machine()
        linker = find_linker(self.options["cc"], machine)
        if not remote and not machine.is_host:
            hint = "measure on one behind TVM's RPC: --remote HOST:PORT"
            raise TargetError(f"nothing can be tuned for {machine.architecture} on {architecture()}", hint=hint)
        with connect(Address.parse(remote), progress) if remote else here() as device:
            rules, found = build(
                partial(emit, model, about.preprocessing),
                machine,
                linker,
                folder / MODEL,
                model=model,
                feeds=feeds_for(model, about.preprocessing, images=1),
                trials=trials,
                device=device,
                cache=cache,
                progress=progress,
            )
        won = [kernel for kernel in found["kernels"] if kernel["best"] != "rule"]
        tiles = sum(kernel["best"] != "MetaSchedule" for kernel in won)
        text = f"of {len(found['kernels'])} kernels {tiles} are faster with other tiles, "
        text += f"{len(won) - tiles} by MetaSchedule"
        if found["ratio"] is not None:
            value, low, high = found["ratio"]
            text += f"; network {value:.3f} ({low:.3f} to {high:.3f}) of its time"
        text += ", kept" if found["kept"] else f"; nothing is changed: {found['dropped']}"
        return {**self._finish(model, folder, machine, rules), "kernels": text}, found

    def _finish(self, model: ir.Model, folder: Path, machine: Machine, rules: Mapping[str, int]) -> dict[str, str]:
        """Writes what stands beside model.so; what there is to say."""
        from dnc.tvm.emit import shared_outputs
        from dnc.tvm.processor import linux_names
        from dnc.tvm.session import ABOUT

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
        }
        (folder / ABOUT).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        counts = sorted(rules.items(), key=lambda item: (-item[1], item[0]))
        return {
            "processor": f"{machine.architecture} {machine.mcpu}",
            "functions": ", ".join(f"{count} {rule or 'without a schedule of its own'}" for rule, count in counts),
            "runtime": self._bundle_runtime(machine, folder),
        }

    def _bundle_runtime(self, machine: Machine, folder: Path) -> str:
        from dnc.tvm.session import RUNTIME, runtime_library

        chosen = self.options["runtime"]
        if chosen == "system":
            return "of an installed apache-tvm"
        if chosen == "bundled" and not machine.is_host:
            return f"of an apache-tvm installed there: name one for {machine.architecture} with --option runtime=FILE"
        library = runtime_library() if chosen == "bundled" else Path(chosen)
        if library is None:
            raise TargetError(f"there is no {RUNTIME} to bundle", hint=self.remedy())
        shutil.copyfile(library, folder / RUNTIME)
        licence = library.parent.parent / "LICENSE"
        if licence.is_file():
            shutil.copyfile(licence, folder / "LICENSE-tvm")
        return f"bundled ({(folder / RUNTIME).stat().st_size / 1e6:.1f} MB)"

    def versions(self) -> dict[str, str]:
        """TVM's compiler, and the interface that the engine is called by."""
        from importlib.metadata import version

        return {name: version(name) for name in ("apache-tvm", "apache-tvm-ffi")}

    def engine(self) -> str:
        """TVM, and what it compiles for."""
        from importlib.metadata import version

        return f"TVM {version('apache-tvm')} {self._machine().mcpu} {self.options['precision']}"

    def open(self, folder: Path, threads: int | None = None) -> Session:
        """A session on this machine's CPU."""
        from dnc.tvm.session import TvmSession

        return TvmSession(folder, threads)


def described(values: Sequence[ir.Value]) -> list[dict[str, Any]]:
    return [
        {
            "name": value.name,
            "shape": [side if isinstance(side, int) else None for side in value.shape or ()],
            "dtype": "float32" if value.dtype is None else value.dtype.numpy().name,
        }
        for value in values
    ]
