"""The kinds of 8-bit arithmetic that CPUs have: what an int8 engine computes depends on them.

    kind       how products of 8-bit numbers are added up           instruction sets
    vnni       four at a time, in 32 bits: exactly                   avx512vnni, avxvnni, amx
    pairs      two at a time, in 16 bits, which end at 32767         avx2, avx512, sse
    dotprod    four at a time, in 32 bits: exactly                   dotprod
    i8mm       eight at a time, in 32 bits: exactly                  i8mm
    neon       one by one, in 16 and then in 32 bits: exactly        neon
    words      two at a time, held in 16 bits, in 32 bits: exactly   what target tvm compiles where there are pairs

A pair of u8 x s8 products reaches 2 x 255 x 127 = 64770. On CPUs with pairs, what is beyond 32767 is lost (`vpmaddubsw`
saturates), in whichever library that chooses its kernels by the CPU; and nothing says so. Quantization therefore goes
by the arithmetic that an engine is made for (`Target.arithmetic`), the engine keeps it (`Manifest.arithmetic`), and
what opens it compares it with what there is (`Runner.arithmetic`, `loss`; `embed/src/arithmetic.cpp` in C++).

This machine's instruction set is what the processor says (`dnc.runtime.processor`), or DNC_ISA in the environment, one
of `ISAS`: for what runs as on another CPU, as `benchmarks.held` makes it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from dnc.errors import TargetError, close_match
from dnc.runtime.options import Option, one_of
from dnc.runtime.processor import architecture, has

__all__ = ["HOST", "ISAS", "KINDS", "OPTION", "UNKNOWN", "Arithmetic", "loss", "of_features", "of_isa", "this_isa"]

HOST = "host"
"""This machine's instruction set, as an option's value."""


@dataclass(frozen=True)
class Arithmetic:
    """A kind of 8-bit arithmetic."""

    name: str
    """As in engine.json."""
    saturates: bool
    """Whether sums of products may be cut off: of two products, at -32768 and 32767."""
    summary: str
    """What it does, and what that means for engines with precision int8."""

    def __str__(self) -> str:
        return f"8-bit arithmetic {self.name}: {self.summary}"


_EXACT = "sums are exact, and precision int8 is as fast as it can be"
KINDS: Mapping[str, Arithmetic] = {
    kind.name: kind
    for kind in (
        Arithmetic("vnni", False, _EXACT),
        Arithmetic("dotprod", False, _EXACT),
        Arithmetic("i8mm", False, _EXACT),
        Arithmetic("neon", False, "sums are exact, and precision int8 gains little, as there is no dotprod"),
        Arithmetic("words", False, "sums are exact, of numbers held in 16 bits, as there is no VNNI"),
        Arithmetic(
            "pairs",
            True,
            "products are added in pairs that saturate at 16 bits, as there is no VNNI: precision int8 is made so that "
            "none of them does",
        ),
    )
}
"""By name."""
UNKNOWN = Arithmetic("unknown", True, "the system does not say: precision int8 is made so that it is right on any CPU")
"""Taken for one that saturates, which is right on all."""

_X86 = {
    **{"amx": ("amx-int8", "vnni"), "avx512vnni": ("avx512vnni", "vnni"), "avxvnni": ("avxvnni", "vnni")},
    **{"avx512": ("avx512f", "pairs"), "avx2": ("avx2", "pairs"), "sse": ("", "pairs")},
}
_ARM = {"i8mm": ("i8mm", "i8mm"), "dotprod": ("dotprod", "dotprod"), "neon": ("", "neon")}
_BY_ARCHITECTURE: Mapping[str, Mapping[str, tuple[str, str]]] = {"x86_64": _X86, "aarch64": _ARM}
"""Instruction sets, the best ones first: LLVM's name of the extension that they need, and their kind."""
ISAS: Mapping[str, Arithmetic] = {
    isa: KINDS[kind] for known in _BY_ARCHITECTURE.values() for isa, (_, kind) in known.items()
}
"""The kind of each instruction set, by the name that users give it."""

OPTION = Option(
    "isa",
    HOST,
    f"the CPU that precisions int8 and mixed are made for, by its instruction set: host, {', '.join(ISAS)}",
    one_of(HOST, *ISAS),
)
"""Of targets whose engine chooses its kernels by the CPU that it runs on."""


def this_isa() -> str:
    """The instruction set of this machine, one of `ISAS`; "unknown" where the system does not say.

    Raises:
        TargetError: DNC_ISA is none of them.
    """
    told = os.environ.get("DNC_ISA")
    if told:
        if told not in ISAS:
            hint = close_match(told, ISAS) or f"one of {', '.join(ISAS)}"
            raise TargetError(f"DNC_ISA={told} is no instruction set that dnc knows of", hint=hint)
        return told
    machine = architecture()
    for isa, (extension, _) in _BY_ARCHITECTURE.get(machine, {}).items():
        found = has(extension, machine) if extension else True
        if found is None:
            break
        if found:
            return isa
    return UNKNOWN.name


def of_isa(isa: str = HOST) -> Arithmetic:
    """The arithmetic of an instruction set; of this machine's if it is "host".

    Raises:
        TargetError: as `this_isa`.
    """
    return ISAS.get(this_isa() if isa == HOST else isa, UNKNOWN)


def of_features(features: Collection[str], machine: str) -> Arithmetic:
    """The arithmetic of a processor of the architecture `machine` with these extensions, by LLVM's names."""
    known = _BY_ARCHITECTURE.get(machine, {})
    return next((ISAS[isa] for isa, (name, _) in known.items() if not name or name in features), UNKNOWN)


def loss(made_for: str, here: Arithmetic) -> str:
    """What is lost where an engine with 8-bit numbers runs on another arithmetic than it was made for, in a sentence;
    empty if nothing is.

    Args:
        made_for: the kind that engine.json names; empty where an older dnc made it, which knew of none.
        here: that of this machine.
    """
    if here is UNKNOWN or made_for == UNKNOWN.name:
        return ""
    saturated = made_for in KINDS and KINDS[made_for].saturates
    if here.saturates and not saturated:
        return (
            "the engine was made for CPUs that add up 8-bit products exactly, and this one cuts sums off at 16 bits "
            "(there is no VNNI): what it finds may be wrong"
        )
    if saturated and not here.saturates:
        return (
            "the engine was made for CPUs that cut sums of 8-bit products off at 16 bits, and this one adds them up "
            "exactly: it is right, but its weights are coarser than they have to be"
        )
    return ""
