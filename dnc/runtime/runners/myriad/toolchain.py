"""Toolchains: compilers that no package installs in a usable form, fetched from the package index into the cache.

    myriad    the last compiler for Intel's Myriad X that was published for Linux. OpenVINO dropped it after 2022.3, and
              its own wheels never had it; onnxruntime-openvino 1.12.0 carries that of OpenVINO 2022.1, beside a Python
              extension that is not needed. Its Myriad plugin wants libusb, from the wheel libusb-package.

A toolchain is a folder of $DNC_CACHE/toolchains (else ~/.cache/dnc/toolchains) with single files out of wheels, which
`pip download` gets from the index that the user's pip is set up for, whatever Python it is that the wheels are for; no
line of them is executed as Python. Each wheel and each file has a sha256 here. `dnc.targets.myriad.installing` puts it
together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dnc.errors import TargetError, close_match
from dnc.files import cache_dir

__all__ = ["TOOLCHAINS", "File", "Toolchain", "check_files", "damage", "find", "folder", "missing"]


@dataclass(frozen=True)
class File:
    """A file of a toolchain."""

    name: str
    size: int
    sha256: str
    wheel: str = ""
    """The wheel that it comes from, as NAME==VERSION; "" where `text` is all of it."""
    member: str = ""
    text: str = ""


@dataclass(frozen=True)
class Toolchain:
    """The parts of a toolchain."""

    name: str
    title: str
    """What messages call it."""
    summary: str
    wheels: Mapping[str, str]
    """NAME==VERSION and the sha256 of the wheel."""
    pip_options: tuple[str, ...]
    files: tuple[File, ...]

    @property
    def size(self) -> int:
        """Bytes that it takes in the cache."""
        return sum(file.size for file in self.files)


_OPENVINO, _LIBUSB = "onnxruntime-openvino==1.12.0", "libusb-package==1.0.30.0"
_PLUGINS = """<ie>
    <plugins>
        <plugin name="CPU" location="libopenvino_intel_cpu_plugin.so"/>
        <plugin name="MYRIAD" location="libopenvino_intel_myriad_plugin.so"/>
    </plugins>
</ie>
"""
_LIBRARIES = {
    "libopenvino.so": (18409624, "67fa7944e6aeb3197823515dc9e4e91fa2c8b65fc8a24bbf09ceec8d4d447f48"),
    "libopenvino_c.so": (348160, "938660ac9d1ca540f96635937cdef84d3daa70525534d99fbe1f99ffeb1ab513"),
    "libopenvino_intel_cpu_plugin.so": (37022000, "52dfc38c4424e7a20a5c91e40c68da35a8989d3156700c38c9be7c41f065fd06"),
    "libopenvino_intel_myriad_plugin.so": (
        10194880,
        "6cfb9294a58962e380b06edcdc68e2092ed17f06679cc3bfb36804ecef61f0f3",
    ),
    "libopenvino_onnx_frontend.so": (4905824, "6da827df3d52580fd60a9f915767d638299ed99bb657b6c827c04dd7576dacba"),
    "libtbb.so.2": (438832, "a7f70e3f6acbec4884bebff619359866e24cf42beae604a860b28f9d4c66700f"),
    "libtbbmalloc.so.2": (244688, "98cea22a8a53c141cdbdcb40ab9981f5a7a7d1804b4c8a4e77782ac3688d1da6"),
}


def _written(name: str, text: str) -> File:
    data = text.encode()
    return File(name, len(data), hashlib.sha256(data).hexdigest(), text=text)


TOOLCHAINS: dict[str, Toolchain] = {
    "myriad": Toolchain(
        name="myriad",
        title="Myriad X",
        summary="the Myriad X compiler of OpenVINO 2022.1, and its CPU plugin",
        wheels={
            _OPENVINO: "d1b3df0ea13456cd84bd72171badb2adad2db327a25753ec151ead24ea7e8a68",
            _LIBUSB: "f502ad5a0527b8c0431de817662325c88a1bba2cc334173665b04ad168d7b6d3",
        },
        pip_options=(
            "--python-version=3.9",
            "--implementation=cp",
            "--abi=cp39",
            "--abi=none",
            "--platform=manylinux2014_x86_64",
        ),
        files=(
            *(
                File(name, size, digest, _OPENVINO, f"onnxruntime/capi/{name}")
                for name, (size, digest) in _LIBRARIES.items()
            ),
            # Under the name that the Myriad plugin looks for.
            File(
                "libusb-1.0.so.0",
                149280,
                "a400da39c85672e81978adca7d5edf96b0403a0f93be9f976f1f2de59cf43b6d",
                _LIBUSB,
                "libusb_package/libusb-1.0.so",
            ),
            File(
                "LICENSE-onnxruntime",
                1073,
                "2f07c72751aed99790b8a4869cf2311df85a860b22ded05fa22803587a48922c",
                _OPENVINO,
                "onnxruntime/LICENSE",
            ),
            File(
                "ThirdPartyNotices.txt",
                242271,
                "82eda7fda7b5ae4616364e50272c9abfcbb87f1440d86c018286c71d371bc839",
                _OPENVINO,
                "onnxruntime/ThirdPartyNotices.txt",
            ),
            File(
                "LICENSE-libusb-package",
                10173,
                "a6cba85bc92e0cff7a450b1d873c0eaa2e9fc96bf472df0247a26bec77bf3ff9",
                _LIBUSB,
                f"libusb_package-{_LIBUSB.partition('==')[2]}.dist-info/licenses/LICENSE",
            ),
            _written("plugins.xml", _PLUGINS),
        ),
    )
}


def find(name: str) -> Toolchain:
    """The toolchain of this name; raises TargetError if there is none."""
    if name not in TOOLCHAINS:
        hint = close_match(name, TOOLCHAINS) or f"there is {', '.join(TOOLCHAINS)}"
        raise TargetError(f"unknown toolchain '{name}'", hint=hint)
    return TOOLCHAINS[name]


def folder(name: str) -> Path:
    """Path of the toolchain, installed or not."""
    return cache_dir() / "toolchains" / name


def damage(name: str, *, thorough: bool = False) -> str | None:
    """Damage of an installed toolchain in words: "" if it is whole, None if it is not there at all.

    Args:
        thorough: compares the files' sha256, not only their sizes.
    """
    place = folder(name)
    return check_files(find(name), place, thorough) if place.is_dir() else None


def missing(name: str) -> str:
    """Names what has to be installed of a toolchain, as far as file sizes tell; empty if nothing."""
    damaged = damage(name)
    what = f"{find(name).title} toolchain"
    return f"the {what}" if damaged is None else damaged and f"the whole {what} ({damaged})"


def check_files(toolchain: Toolchain, place: Path, thorough: bool) -> str:
    """Damage of a toolchain's files in a folder, in words; empty if there is none."""
    for file in toolchain.files:
        path = place / file.name
        try:
            if path.stat().st_size != file.size or (thorough and _digest(path) != file.sha256):
                return f"{file.name} in {place} is not what it was"
        except FileNotFoundError:
            return f"{file.name} in {place} is gone"
        except OSError as error:
            return f"{file.name} in {place} cannot be read: {error.strerror or error}"
    return ""


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
