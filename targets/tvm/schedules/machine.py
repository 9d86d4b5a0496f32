"""What a target's processor has that the schedules depend on.

    lanes       float32 numbers in a vector register: 16 with AVX-512, 8 with AVX, 4 with SSE and NEON
    registers   vector registers: 32 with AVX-512 and on aarch64, 16 on other x86
    dots        instructions that add up several products of small numbers at once: see dot.py
    shuffles    instructions that look bytes up in a table of 16: see tables.py
    counts      bits of the numbers in vectors whose bits it counts, 0 if it counts none: see binary.py
    cache       bytes of a core's second-level cache that a kernel may count on
    near        bytes of its first-level cache that weights may take
    loads       loads that it starts in a cycle: 2, on aarch64 1, which is all that Cortex-A53 to A72 do

LLVM knows all but the last three of every `mcpu`. Those are so small that most processors have them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Machine", "dots"]

_CACHE = 384 * 1024
_NEAR = 16 * 1024
_EIGHTS = ("uint8", "int8", "int16")
"""Types that 8-bit numbers can be held in, the best first."""


@dataclass(frozen=True)
class Machine:
    """A processor, as the schedules see it."""

    lanes: int = 16
    registers: int = 32
    cache: int = _CACHE
    near: int = _NEAR
    loads: int = 2
    rank: int = 0
    """Which tile convolutions take: 0 the best by the count of tiles.py, 1 the next one, ...: see tuning.py."""
    dots: Mapping[tuple[str, int], str] = field(default_factory=dict)
    """LLVM's intrinsics, by the type of the data and the lanes of the sums."""
    shuffles: Mapping[int, str] = field(default_factory=dict)
    """LLVM's intrinsics, by the bytes of a vector."""
    counts: int = 0
    """Bits of the numbers in vectors whose bits it counts at once; 0 if it counts none."""

    @property
    def eights(self) -> str:
        """The type in which 8-bit numbers are held to be multiplied; "" where that would gain nothing."""
        return next((dtype for dtype in _EIGHTS if (dtype, self.lanes) in self.dots), "")

    @classmethod
    def of(cls, target: Any) -> Machine:
        """The processor of a `tvm.target.Target` of kind llvm."""
        from tvm.target import codegen

        features = set(codegen.llvm_get_cpu_features(target))
        lanes, registers = 4, 32 if "neon" in features else 16
        if "avx512f" in features:
            lanes, registers = 16, 32
        elif "avx" in features:
            lanes, registers = 8, 16
        shuffles = {size: name for extension, size, name in _SHUFFLES if extension in features}
        counts = 32 if "avx512vpopcntdq" in features else 8 if "neon" in features else 0
        loads = 1 if "neon" in features else 2
        return cls(lanes, registers, loads=loads, dots=dots(features), shuffles=shuffles, counts=counts)


_SHUFFLES = (
    ("ssse3", 16, "x86.ssse3.pshuf.b.128"),
    ("avx2", 32, "x86.avx2.pshuf.b"),
    ("avx512bw", 64, "x86.avx512.pshuf.b.512"),
)
"""The extension, the bytes of a vector and LLVM's name."""
_TWOS = {4: ("sse2", "sse2.pmadd.wd"), 8: ("avx2", "avx2.pmadd.wd"), 16: ("avx512bw", "avx512.pmaddw.d.512")}
"""By lanes, the extension and LLVM's name."""


def dots(features: Collection[str]) -> dict[tuple[str, int], str]:
    """The instructions for several products at once of a processor with these features, by LLVM's names."""
    instructions = {}
    long, short = "avx512vnni" in features, "avx512vl" in features and "avx512vnni" in features
    for lanes, able in ((16, long), (8, short or "avxvnni" in features), (4, short or "avxvnni" in features)):
        if able:
            instructions["uint8", lanes] = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
        if "avx512bf16" in features and (lanes == 16 or "avx512vl" in features):
            instructions["uint16", lanes] = f"llvm.x86.avx512bf16.dpbf16ps.{32 * lanes}"
    for lanes, (extension, name) in _TWOS.items():
        if extension in features:
            instructions["int16", lanes] = f"llvm.x86.{name}"
    if "dotprod" in features:
        instructions["int8", 4] = "llvm.aarch64.neon.sdot"
    return instructions
