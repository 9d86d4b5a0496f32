"""The CUDA C++ of many networks, and whether NVIDIA's compiler takes it; no GPU is needed.

`python -m tests.targets.cuda.compiling [--arch sm_75,sm_90] [--precision fp16] [--new] [--jobs 2] [--to ptx]
[NETWORK…]` compiles the kernels of all golden networks and of all in cfg/, or of those that are named, says which ones
nvcc refuses, and ends with 1 if there are any. --new takes kinds of kernels that no GPU has run (option kernels=new).

Kernels of several networks are often the same text: each is compiled once, some hundred with each call of nvcc. The
source of a kernel differs between architectures by what `Device` says of them alone.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.graph.composites import inline_composites
from dnc.targets.base import UnsupportedError
from dnc.targets.cuda.source import checked, kernels_in
from dnc.targets.cuda.target import Cuda
from dnc.targets.cuda.toolkit import find_toolkit
from tests import ROOT

__all__ = ["ARCHS", "Kernels", "complaints", "gathered", "goldens", "network_of", "prepared", "zoo"]

ARCHS = ("sm_75", "sm_87", "sm_90", "sm_120")
_GOLDEN = ROOT / "tests" / "golden" / "micro"
_CFG = ROOT / "cfg"
_TOGETHER = 100
"""Kernels of one call."""


def goldens() -> list[str]:
    """The golden networks of one feature each."""
    return sorted(path.stem for path in _GOLDEN.glob("*.npz"))


def zoo() -> list[str]:
    """The networks of cfg/."""
    return sorted(path.stem for path in _CFG.glob("*.cfg"))


def network_of(name: str) -> Network:
    """A golden network, or one of cfg/ with random weights."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name in zoo():
            return Network.load(_CFG / f"{name}.cfg", None, lenient=True).with_random_weights()
        cfg = Path(folder) / f"{name}.cfg"
        with np.load(_GOLDEN / f"{name}.npz") as file:
            cfg.write_text(str(file["cfg"]))
            cfg.with_suffix(".weights").write_bytes(file["weights"].tobytes())
        return Network.load(cfg, cfg.with_suffix(".weights"), lenient=True)


def prepared(network: Network, arch: str, precision: str, new: bool = False) -> ir.Model | None:
    """A network as target cuda's back end tvm gets it; None if that cannot run it. `new` as for `source_of`."""
    model = lower(network, batch=1)
    kinds = "new" if new else "measured"
    target = Cuda({"backend": "tvm", "arch": arch, "precision": precision, "kernels": kinds}).candidates()[0]
    inline_composites(model, keep=target.composites | target.pipeline().expanded())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            target.pipeline().run(model)
        except UnsupportedError:
            return None
    return model


def source_of(name: str, arch: str, precision: str, new: bool) -> str:
    """The CUDA C++ of a network's kernels; empty if back end tvm cannot run it. Raises RuntimeError as `checked`.

    Args:
        new: with kinds of kernels that no GPU has run.
    """
    import tvm

    from dnc.runtime.runners.cuda.device import Device
    from dnc.targets.cuda.emit import emit
    from dnc.targets.cuda.lowering import Network as Lowering
    from dnc.targets.cuda.lowering import fill_of

    model = prepared(network_of(name), arch, precision, new)
    if model is None:
        return ""
    host = tvm.target.Target({"kind": "llvm"})
    module = emit(model, bfloat16=precision == "bf16", fill=fill_of(Device.of([arch]), new))
    lowered = Lowering(module, [arch], host, lambda _: b"", tf32=precision == "tf32", new=new).lowered()

    def sources(module: Any) -> Iterator[str]:
        if module.kind == "cuda":
            yield module.inspect_source()
        for imported in module.imports:
            yield from sources(imported)

    return checked("".join(sources(lowered.executable.mod)))


@dataclass
class Kernels:
    """Kernels of several networks, the same text once."""

    texts: dict[str, dict[str, str]] = field(default_factory=dict)
    """By what stands before them, and the digest of their text."""
    users: dict[str, list[str]] = field(default_factory=dict)
    """The networks and their names of a kernel, by its digest."""

    def add(self, network: str, source: str) -> None:
        """Takes the kernels of a network."""
        head = re.split(r'extern "C" __global__', source, maxsplit=1)[0]
        for name, text in kernels_in(source):
            digest = "k" + hashlib.sha256(re.sub(rf"\b{name}\b", "kernel", text).encode()).hexdigest()[:20]
            # What is declared before the next one belongs to that.
            whole = re.sub(rf"\b{name}\b", digest, re.split(r'\nextern "C" __global__', text)[0])
            self.texts.setdefault(head, {})[digest] = whole
            self.users.setdefault(digest, []).append(f"{network}: {name}")

    def files(self) -> Iterator[str]:
        """Sources of some kernels each."""
        for head, texts in self.texts.items():
            bodies = list(texts.values())
            for start in range(0, len(bodies), _TOGETHER):
                yield head + "\n".join(bodies[start : start + _TOGETHER])

    def refused(self, arch: str, to: str, jobs: int = 2) -> list[str]:
        """What nvcc says of those that it refuses, with who uses them.

        Args:
            to: ptx, or cubin.
        """
        with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
            given = [(Path(folder) / f"{place}.cu", text) for place, text in enumerate(self.files())]
            found = list(pool.map(lambda each: complaints(each[0], each[1], arch, to), given))
        return [self._named(line) for lines in found for line in lines]

    def _named(self, line: str) -> str:
        known = [user for digest in set(re.findall(r"k[0-9a-f]{20}", line)) for user in self.users[digest][:3]]
        return f"{line} ({', '.join(known)})" if known else line


def complaints(file: Path, text: str, arch: str, to: str) -> list[str]:
    """What nvcc says against a source, which is written to a file: its errors, and the lines that they are about."""
    file.write_text(text)
    kind = f"-arch={arch}" if to == "cubin" else f"-arch={arch.replace('sm_', 'compute_')}"
    command = [str(find_toolkit("nvcc").path), f"-{to}", "-std=c++17", "-diag-suppress=177", kind]
    done = subprocess.run([*command, "-o", str(file.with_suffix(f".{to}")), str(file)], capture_output=True, text=True)
    if not done.returncode:
        return []
    lines, found = text.splitlines(), []
    for match in re.finditer(r"\((\d+)\): (error.*)", done.stderr):
        before = "\n".join(lines[: int(match[1])])
        found.append(f"{re.findall('k[0-9a-f]{20}', before)[-1:]} {lines[int(match[1]) - 1].strip()[:120]}: {match[2]}")
    return found or [done.stderr[-500:]]


def gathered(
    names: Iterable[str], arch: str, precision: str, jobs: int, *, new: bool = False
) -> tuple[Kernels, Mapping[str, str]]:
    """The kernels of networks, and what is wrong with those that have none; `new` as for `source_of`."""
    kernels, wrong = Kernels(), {}
    with ProcessPoolExecutor(jobs, max_tasks_per_child=20) as pool:
        tasks = {name: pool.submit(source_of, name, arch, precision, new) for name in names}
        for name, task in tasks.items():
            try:
                kernels.add(name, task.result())
            except Exception as error:
                wrong[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return kernels, wrong


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*")
    parser.add_argument("--arch", default=",".join(ARCHS))
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--new", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--to", default="cubin", choices=("ptx", "cubin"))
    given = parser.parse_args()
    names, failed = given.networks or [*goldens(), *zoo()], False
    say = partial(print, flush=True)
    for arch in given.arch.split(","):
        began = time.perf_counter()
        kernels, wrong = gathered(names, arch, given.precision, given.jobs, new=given.new)
        lowered = time.perf_counter()
        count = sum(map(len, kernels.texts.values()))
        say(f"{arch} {given.precision}: {count} kernels of {sum(map(len, kernels.users.values()))} in {len(names)}")
        complaints = [
            *(f"{name}: {what}" for name, what in wrong.items()),
            *kernels.refused(arch, given.to, given.jobs),
        ]
        for line in complaints:
            say("  ", line)
        say(f"  lowered in {lowered - began:.0f} s, compiled in {time.perf_counter() - lowered:.0f} s")
        failed |= bool(complaints)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
