"""What a target's processor has that the schedules depend on.

    lanes       float32 numbers in a vector register: 16 with AVX-512, 8 with AVX, 4 with SSE and NEON
    registers   vector registers: 32 with AVX-512 and on aarch64, 16 on other x86
    cache       bytes of a core's second-level cache that a kernel may count on

LLVM knows the first two of every `mcpu`. Nobody knows the third: it is chosen so small that most processors have it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Machine"]

_CACHE = 384 * 1024


@dataclass(frozen=True)
class Machine:
    """A processor, as the schedules see it."""

    lanes: int = 16
    registers: int = 32
    cache: int = _CACHE
    rank: int = 0
    """Which tile convolutions take: 0 the best by the count of tiles.py, 1 the next one, ...: see `dnc.tvm.tuning`."""

    @classmethod
    def of(cls, target: Any) -> Machine:
        """The processor of a `tvm.target.Target` of kind llvm."""
        from tvm.target import codegen

        features = set(codegen.llvm_get_cpu_features(target))
        if "avx512f" in features:
            return cls(16, 32)
        if "avx" in features:
            return cls(8, 16)
        return cls(4, 32 if "neon" in features else 16)
