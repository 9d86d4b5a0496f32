"""Estimates for aarch64: the share of a processor's peak that the inner loops of target tvm's convolutions reach.

    python -m benchmarks.aarch64 NET… [--mcpu cortex-a72,neoverse-n1] [--llvm-mca llvm-mca-19]

NET is a .cfg file or the name of a network of cfg/. Nothing is measured: each network is compiled for each processor,
its machine code taken apart (aarch64-linux-gnu-objdump), and of every convolution the innermost loop with the most
multiply-adds given to LLVM's model of the processor (llvm-mca). The peak is what the same model says of independent
`fmla` alone. So the figures say what registers, loads and the order of instructions cost, as far as LLVM knows the
processor: everything is in the first-level cache, nothing is waited for, and what comes before and after the loop,
threads and borders cost nothing. Boards are slower.

Networks and kinds of convolutions add up as their multiply-adds do. Prints Markdown. LLVM 19 or newer knows
neoverse-n1, whose core cortex-a76's is; older ones, and all of them for cortex-a76, take a Cortex-A57 for it.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import dnc
from dnc.bench.prepare import weights_or_random
from dnc.darknet.cfg import find_cfg
from dnc.darknet.layers.convolutional import Convolutional
from dnc.darknet.network import Network
from dnc.graph.work import place_of

OBJDUMP = "aarch64-linux-gnu-objdump"
_ITERATIONS = 100
_FORMS = {"4s": 4, "2s": 2, "2d": 2}
_INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\s+(\S+)\s*(.*?)(?:\s*//.*)?$")
Code = Sequence[tuple[int, str, str]]
"""Address, mnemonic and operands."""


def functions(library: Path) -> Iterator[tuple[str, Code]]:
    """The functions of a library."""
    command = [OBJDUMP, "-d", "--no-show-raw-insn", str(library)]
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    for part in re.split(r"\n(?=[0-9a-f]{16} <)", text):
        title = re.match(r"[0-9a-f]{16} <(.+)>:", part)
        if title:
            found = map(_INSTRUCTION.match, part.splitlines()[1:])
            yield title[1], [(int(line[1], 16), line[2], line[3]) for line in found if line]


def loops(code: Code) -> Iterator[Code]:
    """The innermost loops: what lies between a branch back and where it goes, if no other such branch does."""
    back = []
    for address, name, operands in code:
        target = re.search(r"\b([0-9a-f]+) <", operands)
        if target and (name.startswith("b.") or name in ("b", "cbnz", "cbz", "tbnz", "tbz")):
            back += [(int(target[1], 16), address)] if int(target[1], 16) < address else []
    for start, end in back:
        if not any(start <= other_end < end for _, other_end in back):
            yield [line for line in code if start <= line[0] <= end]


def multiply_adds(code: Code) -> int:
    """Numbers that one pass multiplies and adds."""
    total = 0
    for _, name, operands in code:
        if name in ("fmla", "fmls"):
            form = re.match(r"v\d+\.(\w+)", operands)
            total += _FORMS.get(form[1], 0) if form else 1
        total += name in ("fmadd", "fmsub")
    return total


def cycles(instructions: Sequence[str], mcpu: str, mca: str) -> float:
    """Of one pass, repeated, by LLVM's model."""
    command = [mca, "-mtriple=aarch64-linux-gnu", f"-mcpu={mcpu}", f"-iterations={_ITERATIONS}"]
    done = subprocess.run(command, input="\n".join(instructions), check=True, capture_output=True, text=True)
    found = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    assert found is not None, done.stdout
    return int(found[1]) / _ITERATIONS


def peak(mcpu: str, mca: str) -> float:
    """Numbers that are multiplied and added in a cycle, by independent instructions alone."""
    count = 24
    return 4 * count / cycles([f"fmla v{number}.4s, v30.4s, v31.4s" for number in range(count)], mcpu, mca)


def rate(code: Code, mcpu: str, mca: str) -> float | None:
    """Numbers multiplied and added in a cycle of the innermost loop that does most of that; None without one."""
    # What divides or rounds computes an activation, and multiplies for its exp.
    sums = [body for body in loops(code) if not any(name.startswith(("fdiv", "frint", "fcvt")) for _, name, _ in body)]
    body = max(sums, key=multiply_adds, default=())
    done = multiply_adds(body)
    if not done:
        return None
    branches = ("b", "cbnz", "cbz", "tbnz", "tbz")
    lines = [f"{name} {operands}" for _, name, operands in body if not name.startswith("b.") and name not in branches]
    return done / cycles(lines, mcpu, mca)


def kinds(network: Network) -> dict[str, str]:
    """What each convolution is, by its place."""
    found = {}
    for layer in network.layers:
        if isinstance(layer, Convolutional):
            one = layer.convolution
            found[f"#{layer.index}"] = f"{one.size}x{one.size}" + (" depthwise" if one.groups > 1 else "")
    return found


def measure(cfg: Path, mcpu: str, mca: str, scratch: Path) -> dict[str, list[tuple[float, float]]]:
    """Of each kind of convolution, the multiply-adds and the share of the peak of each kernel."""
    weights = weights_or_random(cfg, scratch)
    options = {"triple": "aarch64-linux-gnu", "mcpu": mcpu, "runtime": "system"}
    folder = dnc.compile(cfg, weights, "tvm", scratch / mcpu, verify=False, batch=1, options=options).folder
    told = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    work = {entry["place"]: entry["operations"] / 2 for entry in told["work"]}
    of = kinds(Network.load(cfg, weights))
    codes = dict(functions(folder / "model.so"))
    most = peak(mcpu, mca)
    known: dict[str, float | None] = {}
    found: dict[str, list[tuple[float, float]]] = {}
    for name, nodes in told["kernels"]:
        places = [place for place in map(place_of, nodes.split("+")) if place in of]
        # What comes before a convolution in its section multiplies nothing.
        if not places or not re.search(r"conv|matmul|product|dense", name):
            continue
        if name not in known:
            rates = [
                rate(code, mcpu, mca) for title, code in codes.items() if re.match(rf"{name}(_compute_.*)?$", title)
            ]
            known[name] = max((one for one in rates if one is not None), default=None)
        share = known[name]
        if share is not None:
            found.setdefault(of[places[0]], []).append((work[places[0]], min(share / most, 1.0)))
    return found


def together(parts: Sequence[tuple[float, float]]) -> float:
    """The share of the peak of several kernels one after the other."""
    return sum(work for work, _ in parts) / sum(work / share for work, share in parts)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", metavar="NET")
    parser.add_argument("--mcpu", default="cortex-a72,neoverse-n1")
    parser.add_argument("--llvm-mca", default="llvm-mca")
    arguments = parser.parse_args()
    processors = arguments.mcpu.split(",")
    print("Estimates, not measurements. Share of the peak in the inner loops, by LLVM's models.\n")
    print(
        f"| network | convolutions | kernels | MMAC | {' | '.join(processors)} |\n"
        + "| --- " * (4 + len(processors))
        + "|"
    )
    for name in arguments.networks:
        cfg = find_cfg(name)
        with tempfile.TemporaryDirectory() as scratch:
            every: Mapping[str, dict[str, list[tuple[float, float]]]] = {
                mcpu: measure(cfg, mcpu, arguments.llvm_mca, Path(scratch)) for mcpu in processors
            }
        titles = sorted(every[processors[0]])
        for title in [*titles, "all"]:
            parts = [
                [one for key, of in found.items() if title in (key, "all") for one in of] for found in every.values()
            ]
            shares = " | ".join(f"{together(part):.0%}" for part in parts)
            total = sum(work for work, _ in parts[0]) / 1e6
            print(f"| {cfg.stem} | {title} | {len(parts[0])} | {total:.1f} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
