"""Relax -> model.so: TVM's passes in the order that this target needs.

    legalize, fold constants, fuse, schedule, compile, link

Operators become loops, with exp and its like as intrinsics; what depends on constants alone is computed; what works
element by element joins the convolution or product before it; `dnc.targets.tvm.schedules` says how the loops run; LLVM
makes machine code with `dnc.targets.tvm.functions` in place of libm; a C++ compiler links it.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from dnc.errors import TargetError, close_match, how_to_report
from dnc.files.places import cache_dir, home
from dnc.files.writing import scratch_folder
from dnc.runtime.processor import architecture, extensions
from dnc.targets.tvm.functions import lowered
from dnc.typing import Progress, silent

__all__ = ["Built", "Machine", "build", "find_linker", "fused", "import_tvm", "link_with", "machine_for"]

_LINKERS = {"aarch64": "aarch64-linux-gnu-g++", "arm": "arm-linux-gnueabihf-g++", "riscv64": "riscv64-linux-gnu-g++"}
_PACKAGES = {
    "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu",
    "arm-linux-gnueabihf-g++": "g++-arm-linux-gnueabihf",
    "riscv64-linux-gnu-g++": "g++-riscv64-linux-gnu",
}
"""Of Debian."""


@dataclass(frozen=True)
class Machine:
    """The machine to compile for."""

    target: Any
    """tvm.target.Target."""
    triple: str
    mcpu: str
    features: frozenset[str]
    """As LLVM names them."""

    @property
    def architecture(self) -> str:
        """`x86_64`, `aarch64`, ..."""
        return architecture(self.triple)

    @property
    def extensions(self) -> list[str]:
        """Extensions that the code may use and the processor must have: see `dnc.runtime.processor`."""
        return extensions(self.features, self.architecture)

    @property
    def eights(self) -> str:
        """The type in which 8-bit numbers are held, so that several are multiplied at once; "" if none are."""
        from dnc.targets.tvm import schedules

        return schedules.Machine.of(self.target).eights

    @property
    def floats(self) -> bool:
        """Whether it computes with floats, not by functions; of architectures that need not, as LLVM's features say."""
        return self.architecture in ("x86_64", "aarch64") or bool(self.features & {"f", "vfp2", "vfp2sp"})

    @property
    def is_host(self) -> bool:
        """Whether it is this machine's architecture."""
        return self.architecture == architecture()


@dataclass(frozen=True)
class Built:
    """A library that was built, and what there is to say of it."""

    rules: Mapping[str, int]
    """Number of functions that each rule of `dnc.targets.tvm.schedules` wrote; "" for those that none did."""
    kernels: Sequence[tuple[str, str]]
    """See `dnc.targets.tvm.provenance.kernels_of`."""


def import_tvm() -> tuple[ModuleType, ModuleType]:
    """tvm and tvm_ffi; raises TargetError where they are installed but do not load, or do not fit together."""
    if home() is None:
        # While it is imported it looks for a place that it never writes to.
        os.environ.setdefault("XDG_CACHE_HOME", str(cache_dir()))
    try:
        return importlib.import_module("tvm"), importlib.import_module("tvm_ffi")
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        hint = "install apache-tvm and apache-tvm-ffi again, in the versions of darknet-compiler[tvm]"
        raise TargetError(f"tvm cannot be loaded: {error}", hint=hint) from error


def machine_for(triple: str, mcpu: str) -> Machine:
    """The machine of these options.

    Args:
        triple: as aarch64-linux-gnu, or its first word; "" for this machine.
        mcpu: a processor by LLVM's name; "host" for this machine's, as LLVM detects it, or for another architecture
            what all its processors have.

    Raises:
        TargetError: LLVM knows no such architecture or processor.
    """
    tvm, tvm_ffi = import_tvm()

    def llvm(name: str) -> Any:
        return tvm_ffi.get_global_func(f"target.llvm_{name}")

    if triple and "-" not in triple:
        triple = f"{triple}-linux-gnu"
    known = sorted(map(str, llvm("get_targets")()))
    if triple and architecture(triple) not in known:
        hint = close_match(architecture(triple), known) or "as aarch64-linux-gnu"
        raise TargetError(f"LLVM knows no architecture '{triple.partition('-')[0]}'", hint=hint)
    settings: dict[str, Any] = {"kind": "llvm"}
    native = not triple or architecture(triple) == architecture()
    if triple:
        settings["mtriple"] = triple
    absent: list[str] = []
    if mcpu == "host" and native:
        mcpu = str(llvm("get_system_cpu")())
        detected = tvm_ffi.get_global_func(_HOST_FEATURES)()
        host = {str(name): bool(have) for name, have in detected.items()} if detected is not None else {}
        # A virtual machine may hide what processors of this name have.
        usual = _features(llvm, tvm.target.Target({**settings, "mcpu": mcpu}))
        absent = sorted(name for name, have in host.items() if not have and name in usual)
        if absent:
            settings["mattr"] = [f"-{name}" for name in absent]
    elif mcpu == "host":
        mcpu = "generic"
    settings["mcpu"] = mcpu
    triple = triple or str(llvm("get_system_triple")())
    names = sorted(map(str, llvm("get_cpu_archlist")(tvm.target.Target({"kind": "llvm", "mtriple": triple}))))
    if mcpu not in names and mcpu != "generic":
        hint = close_match(mcpu, names) or f"as {', '.join(names[:3])}; host for this machine's"
        raise TargetError(f"LLVM knows no processor '{mcpu}' of {architecture(triple)}", hint=hint)
    target = tvm.target.Target(settings)
    features = frozenset(_features(llvm, target) - set(absent))
    return Machine(target, triple, mcpu, features)


_HOST_FEATURES = "tvm.codegen.llvm.GetHostCPUFeatures"


def _features(llvm: Any, target: Any) -> set[str]:
    return {str(name) for name in llvm("get_cpu_features")(target)}


def find_linker(given: str, machine: Machine) -> str:
    """The C++ compiler that links for a machine: the one that is named, else the usual one. Raises TargetError if there
    is none."""
    usual = ("g++", "c++", "clang++", "gcc", "cc") if machine.is_host else (_LINKERS.get(machine.architecture, ""),)
    names: Sequence[str] = (given,) if given else usual
    linker = next((path for path in map(shutil.which, filter(None, names)) if path is not None), None)
    if linker is None:
        name = names[0]
        package = _PACKAGES.get(name, "g++" if machine.is_host else "")
        hint = f"apt-get install {package}; or name one with --option cc=…" if package else "name one that is installed"
        raise TargetError(f"there is no C++ compiler {name or f'for {machine.architecture}'} to link with", hint=hint)
    return linker


def build(
    emit: Callable[[], Any],
    machine: Machine,
    linker: str,
    path: Path,
    chosen: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> Built:
    """Writes the shared library of the Relax module that `emit` makes, of which nothing is kept meanwhile.

    Args:
        emit: makes the module.
        chosen: functions that are written in another way than usual (`dnc.targets.tvm.schedules.apply`).

    Raises:
        TargetError: TVM or the linker fails.
    """
    import tvm

    from dnc.targets.tvm import schedules
    from dnc.targets.tvm.provenance import kernels_of

    try:
        with machine.target, tvm.transform.PassContext(opt_level=3):
            progress("scheduling")
            module = schedules.apply(fused(emit()), machine.target, chosen)
            functions = [name for name, function in module.functions_items() if isinstance(function, tvm.tirx.PrimFunc)]
            rules, kernels = schedules.report(module), kernels_of(module)
            progress("compiling the kernels")
            with lowered():
                executable = tvm.compile(module, machine.target)
        del module
        progress("linking")
        # TVM would make a folder of its own, which nobody removes when the process is killed.
        with scratch_folder("link") as work:
            executable.export_library(str(path), fcompile=link_with(linker, machine), workspace_dir=str(work))
        return Built(Counter(rules.get(name.name_hint, "") for name in functions), kernels)
    except subprocess.CalledProcessError as error:
        raise TargetError(f"{linker} cannot link: {error.stderr.strip()}", path) from error
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        remedy = f"try --target onnx; {how_to_report('the cfg')}"
        raise TargetError(f"TVM cannot compile the network: {error}", hint=remedy) from error


def fused(module: Any, also: Callable[[Any], Any] | None = None) -> Any:
    """The Relax module as functions of loops, each with what works element by element after it;
    `dnc.targets.tvm.provenance` knows what they compute.

    Args:
        also: joins more of the functions that FuseOps made.
    """
    import tvm
    from tvm import relax

    from dnc.targets.tvm.joining import annotated, joined
    from dnc.targets.tvm.provenance import noted

    passes = relax.transform
    steps = [passes.LegalizeOps(), passes.AnnotateTIROpPattern(), passes.FoldConstant()]
    loops = annotated(tvm.transform.Sequential(steps)(module))
    functions = joined(passes.FuseOps()(loops))
    return passes.FuseTIR()(noted(loops, functions if also is None else also(functions)))


def link_with(linker: str, machine: Machine) -> Any:
    """The linker for a machine, as `Executable.export_library` calls it."""

    def link(output: str, objects: Any, options: Any = None) -> None:
        files = [objects] if isinstance(objects, str) else list(objects)
        command = [linker, "-shared", "-fPIC", "-o", output, *files, "-lm", *(options or [])]
        # Its own temporary files beside the objects: nobody else removes them when it is killed.
        environment = {**os.environ, "TMPDIR": str(Path(files[0]).absolute().parent)}
        subprocess.run(command, check=True, capture_output=True, text=True, env=environment)

    def triple() -> str:
        return machine.triple

    link.get_target_triple = triple  # type: ignore[attr-defined]
    return link
