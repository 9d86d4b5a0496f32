"""libdnc_runtime: CMake compiles it (embed/CMakeLists.txt) and installs it into a package of Python, which pip brings.

CMake's own variables say what else it takes: CXX, and CMAKE_ARGS, one argument a line.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sysconfig
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
HEADER = (HERE / "embed" / "include" / "dnc.h").read_text(encoding="utf-8")
BACK_ENDS = {"openvino": "openvino/cmake", "tvm_ffi": "tvm_ffi"}
"""Packages of Python, and where CMake finds their libraries."""


def prefix_path() -> str:
    """Where the back ends lie that are installed for this build."""
    found = {folder: importlib.util.find_spec(name) for name, folder in BACK_ENDS.items()}
    places = {folder: spec.submodule_search_locations or () for folder, spec in found.items() if spec}
    return ";".join(str(Path(place).parent / folder) for folder, within in places.items() for place in within)


class BuildLibrary(build_py):
    """Puts include/ and lib/ into the package."""

    def run(self) -> None:
        super().run()
        build, package = HERE / "build" / sysconfig.get_platform(), Path(self.build_lib).resolve() / "libdnc_runtime"
        # The libraries of the back ends lie beside the package.
        beside = "$ORIGIN/../../openvino/libs;$ORIGIN/../../tvm_ffi/lib"
        options = [f"-DCMAKE_INSTALL_RPATH={beside}", "-DCMAKE_INSTALL_RPATH_USE_LINK_PATH=OFF"]
        # Linked with it at once: where the back ends lie now would be in the build ID.
        options.append("-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON")
        options += ["-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_INSTALL_LIBDIR=lib"]
        # A wheel has no symbolic links: one file, by one name.
        options.append("-DCMAKE_PLATFORM_NO_VERSIONED_SONAME=ON")
        given = os.environ.get("CMAKE_ARGS", "").splitlines() or [f"-DCMAKE_PREFIX_PATH={prefix_path()}"]
        subprocess.run(["cmake", "-S", str(HERE / "embed"), "-B", str(build), *options, *given], check=True)
        subprocess.run(["cmake", "--build", str(build), "--parallel", str(os.cpu_count())], check=True)
        subprocess.run(["cmake", "--install", str(build), "--prefix", str(package)], check=True)


class AnyPython(bdist_wheel):
    """A wheel for one processor and every Python."""

    def get_tag(self) -> tuple[str, str, str]:
        platform = self.plat_name or sysconfig.get_platform()
        return "py3", "none", platform.replace("-", "_").replace(".", "_")


class Compiled(Distribution):
    """Not the same for every processor."""

    def has_ext_modules(self) -> bool:
        return True


setup(
    version=re.findall(r'define DNC_VERSION "([^"]+)"', HEADER)[0],
    packages=["libdnc_runtime"],
    distclass=Compiled,
    cmdclass={"build_py": BuildLibrary, "bdist_wheel": AnyPython},
)
