"""NVIDIA's GPUs, as the schedules and the compilers see them.

An architecture is named sm_XY, X.Y being the compute capability of the CUDA programming guide. Code for one runs on
GPUs of the same X and a larger Y; code in PTX on all later ones, whose driver compiles it when the engine is opened.
Machine code for sm_90a has instructions that later GPUs do not have, and runs on 9.0 alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["ARCHITECTURES", "Device", "architectures", "is_alone", "runs_on"]

ARCHITECTURES = {
    "sm_75": ("Turing: T4, RTX 20, GTX 16", 40, 64),
    "sm_80": ("Ampere: A100", 108, 163),
    "sm_86": ("Ampere: A10, RTX 30", 72, 99),
    "sm_87": ("Ampere: Jetson Orin", 16, 163),
    "sm_88": ("Ampere: Jetson", 16, 99),
    "sm_89": ("Ada: L4, RTX 40", 60, 99),
    "sm_90": ("Hopper: H100, H200", 132, 227),
    "sm_100": ("Blackwell: B200", 148, 227),
    "sm_103": ("Blackwell: B300", 148, 227),
    "sm_110": ("Blackwell: Jetson Thor", 20, 227),
    "sm_120": ("Blackwell: RTX 50", 84, 99),
    "sm_121": ("Blackwell: DGX Spark", 48, 99),
}
"""What each is; how many multiprocessors a usual GPU of it has: the schedules want as many blocks at least; and how
many KB of shared memory a block gets there that asks for it when it is launched."""
_COPIES_FROM = 80
_ALONE = "a"
"""What is behind the name of an architecture whose code runs on no other."""


@dataclass(frozen=True)
class Device:
    """A GPU. The limits are those that every architecture of the table has without asking for more."""

    processors: int
    """Multiprocessors."""
    shared: int = 48 * 1024
    """Bytes of shared memory of a block."""
    large: int = 48 * 1024
    """Bytes that a block gets which asks for them when it is launched: TIR's scope shared.dyn."""
    threads: int = 1024
    """Of a block, at most."""
    warp: int = 32
    copies: bool = False
    """Whether it copies from memory to shared memory while threads go on: sm_80 and later."""
    tf32: bool = False
    """Whether products of float32 may be computed from 11 bits of their factors, which sm_80 and later do fast."""
    warpgroups: bool = False
    """Whether code is for sm_90 alone, whose instructions for 128 threads no other GPU has."""
    new: bool = False
    """Whether kinds of kernels that no GPU has run yet may be taken without `rank`."""
    rank: int = 0
    """Which form a kernel takes: 0 the best by the formulas of the schedules, 1 the next one, ...; the last one where
    there are fewer."""

    @classmethod
    def of(cls, archs: Sequence[str]) -> Device:
        """Model of the GPU that code for several aims at: the largest among them, with what all have."""
        copies = all(_number(arch) >= _COPIES_FROM for arch in archs)
        large = min(ARCHITECTURES[arch][2] for arch in archs) * 1024
        processors = max(ARCHITECTURES[arch][1] for arch in archs)
        return cls(processors, copies=copies, large=large, warpgroups=list(archs) == ["sm_90"])


def architectures(text: str) -> tuple[str, ...]:
    """Architectures from `sm_75,sm_87`, in order; for `Option.parse`: raises ValueError, which says what is allowed."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or any(name not in ARCHITECTURES for name in names):
        raise ValueError(f"one or more of {', '.join(ARCHITECTURES)}, with commas between")
    return tuple(sorted(set(names), key=_number))


def is_alone(arch: str) -> bool:
    """Whether code for an architecture, as sm_90a, runs on no other GPU, and has no PTX for later ones."""
    return arch.endswith(_ALONE)


def _number(arch: str) -> int:
    return int(arch.removeprefix("sm_").removesuffix(_ALONE))


def runs_on(archs: Sequence[str], ptx: str, capability: str, large: int = 0) -> bool:
    """Whether machine code for some architectures, or PTX of one, if any, runs on a GPU of a capability like 8.7.

    Args:
        large: bytes of shared memory that the blocks ask for. Of GPUs that are not known, it is not either.
    """
    major, _, minor = capability.partition(".")
    have = int(major) * 10 + int(minor or 0)
    known = ARCHITECTURES.get(f"sm_{have}")
    if known is not None and large > known[2] * 1024:
        return False
    if ptx and have >= _number(ptx):
        return True
    return any(
        have == _number(arch) if is_alone(arch) else have // 10 == _number(arch) // 10 and have >= _number(arch)
        for arch in archs
    )
