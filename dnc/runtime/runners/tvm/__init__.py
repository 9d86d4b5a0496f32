"""Runs what target `tvm` compiled: model.so, on TVM's runtime."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import ClassVar

from dnc.files.installed import is_whole, to_install
from dnc.runtime.runners import Runner, Session, runners

__all__ = ["FFI", "TvmRunner"]

FFI = "apache-tvm-ffi==0.1.14.post1"
"""TVM's interface for Python, in the version that fits."""


@runners.register
class TvmRunner(Runner):
    """TVM's runtime on CPUs."""

    name: ClassVar[str] = "tvm"
    extra: ClassVar[str] = "tvm"
    runs_code: ClassVar[bool] = True

    def missing(self) -> str:
        return "" if importlib.util.find_spec("tvm_ffi") else FFI

    def remedy(self) -> str:
        less = '; to run engines, "darknet-compiler[runtime-tvm]" is enough' if is_whole() else ""
        return to_install(self.extra) + less

    def open(self, folder: Path, threads: int | None = None) -> Session:
        from dnc.runtime.runners.tvm.session import TvmSession

        return TvmSession(folder, threads)
