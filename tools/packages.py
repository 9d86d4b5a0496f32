"""The distributions, each built from the files of the checkout that belong into it:

    python -m tools.packages [darknet-compiler darknet-runtime libdnc_runtime] [--out dist] [--arch x86_64]

`darknet-compiler` is all of dnc, as pyproject.toml has it. `darknet-runtime` is the part that runs engines, for
applications. `libdnc_runtime` is the library for C and C++, compiled for each `--arch` (tools/native.py).

The same files give the same bytes: what is packed has the time of the last commit, or SOURCE_DATE_EPOCH.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tools import native

ROOT = Path(__file__).resolve().parents[1]
RUNTIME = (
    *("dnc/__init__.py", "dnc/__main__.py", "dnc/py.typed"),
    *("dnc/errors.py", "dnc/files", "dnc/registry.py", "dnc/typing.py", "dnc/runtime"),
)
"""What darknet-runtime has of dnc: the runtime, the ground that it stands on, and what says what to install."""
_HIDDEN = (".ci", ".github")
"""Folders that begin with a dot and are part of the project, as MANIFEST.in has them."""
_MADE = ("build", "dist", "demo", "__pycache__", "*.egg-info", "*.engine")
"""What is no part of the project where there is no git to ask."""


def files() -> list[Path]:
    """The files of the checkout, relative to it: those that git knows; of an unpacked sdist, all."""
    if (ROOT / ".git").exists():
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
        ).stdout
        found = [Path(name) for name in listed.split("\0") if name]
        return sorted(path for path in found if (ROOT / path).is_file())
    found = [path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file()]
    left = [path for path in found if not any(part[0] == "." and part not in _HIDDEN for part in path.parts[:-1])]
    return sorted(path for path in left if not any(Path(part).match(x) for part in path.parts for x in _MADE))


def epoch() -> str:
    """The time of what is packed, in seconds."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given or not (ROOT / ".git").exists():
        return given or "1767225600"
    command = ["git", "log", "-1", "--format=%ct"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def _stage(paths: Iterable[Path], folder: Path, base: Path = Path()) -> None:
    """Copies of files, with the modes that they have in git."""
    for path in paths:
        copy = folder / path.relative_to(base)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, copy)
        copy.chmod(0o755 if os.access(ROOT / path, os.X_OK) else 0o644)


def stage_compiler(folder: Path) -> None:
    """All of the project."""
    _stage(files(), folder)


def stage_runtime(folder: Path) -> None:
    """The runtime's files, and a pyproject.toml that says of them what the compiler's says."""
    own = [path for path in files() if any(path.is_relative_to(part) for part in RUNTIME)]
    _stage([*own, Path("LICENSE")], folder)
    _stage([Path("packages/runtime/README.md")], folder, Path("packages/runtime"))
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (folder / "pyproject.toml").write_text(_runtime_project(whole), encoding="utf-8")


def _runtime_project(whole: Mapping[str, Any]) -> str:
    """Its pyproject.toml: name, files and extras are its own, the rest is the compiler's."""
    project = whole["project"]
    same = ("requires-python", "license", "keywords", "classifiers", "authors", "dependencies", "urls")
    fields: dict[str, Any] = {
        "name": "darknet-runtime",
        "description": "Runs engines that darknet-compiler made of Darknet networks: boxes and classes of images",
        "readme": "README.md",
        "license-files": ["LICENSE"],
        "dynamic": ["version"],
    } | {name: project[name] for name in same if name in project}
    fields["classifiers"] = [each for each in fields["classifiers"] if "Compilers" not in each]
    extras = {
        name.removeprefix("runtime-"): [
            each.replace("darknet-compiler[runtime-", "darknet-runtime[") for each in needed
        ]
        for name, needed in project["optional-dependencies"].items()
        if name.startswith("runtime-")
    }
    data = {name: what for name, what in whole["tool"]["setuptools"]["package-data"].items() if _is_runtime(name)}
    tables = {
        "build-system": whole["build-system"],
        "project": fields,
        "project.optional-dependencies": extras,
        "tool.setuptools.packages.find": {"include": ["dnc", "dnc.*"]},
        "tool.setuptools.package-data": data,
        "tool.setuptools.dynamic": {"version": {"attr": "dnc.__version__"}},
    }
    return "\n".join(f"[{name}]\n" + "".join(_lines(table)) for name, table in tables.items())


def _is_runtime(package: str) -> bool:
    return package == "dnc" or package.replace(".", "/").startswith(("dnc/runtime", "dnc/files"))


def _lines(table: Mapping[str, Any]) -> Iterable[str]:
    return (f"{json.dumps(name)} = {_toml(value)}\n" for name, value in table.items())


def _toml(value: Any) -> str:
    """Texts, lists and tables: Python has no writer of TOML."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(name)} = {_toml(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def stage_native(folder: Path) -> None:
    """The library's sources, and what makes a wheel of them."""
    known = files()
    _stage([path for path in known if path.is_relative_to("embed")] + [Path("LICENSE")], folder)
    _stage([path for path in known if path.is_relative_to("packages/native")], folder, Path("packages/native"))


STAGES: Mapping[str, Callable[[Path], None]] = {
    "darknet-compiler": stage_compiler,
    "darknet-runtime": stage_runtime,
    "libdnc_runtime": stage_native,
}


def build(names: Sequence[str], out: Path, archs: Sequence[str] = ()) -> list[Path]:
    """Builds an sdist and, from it, wheels.

    Args:
        names: distributions, of STAGES.
        out: a folder for them.
        archs: for which processors the library is compiled; none: its sdist alone.

    Returns:
        The files, by name.

    Raises:
        subprocess.CalledProcessError: a build failed; what it printed says why.
    """
    os.umask(0o022)
    time = epoch()
    environment = {**os.environ, "SOURCE_DATE_EPOCH": time, "PYTHONHASHSEED": "0"}
    made: set[Path] = set()
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            staged, fresh = Path(scratch, name), Path(scratch, "out")
            STAGES[name](staged)
            what = ["--sdist"] if name == "libdnc_runtime" else []
            command = [*native.BUILD, "--outdir", str(fresh), *what, str(staged)]
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
            for archive in fresh.glob("*.tar.gz"):
                _repack(archive, int(time))
            if name == "libdnc_runtime":
                for arch in archs:
                    native.wheel(staged, fresh, arch, environment)
            out.mkdir(parents=True, exist_ok=True)
            for path in fresh.iterdir():
                made.add(Path(shutil.move(path, out / path.name)))
    return sorted(made)


def _repack(archive: Path, time: int) -> None:
    """Setuptools writes into an sdist who made it, and when."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.mtime, member.uid, member.gid, member.uname, member.gname = time, 0, 0, "", ""
        member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
        member.pax_headers = {}
        return member

    again = archive.with_suffix(".again")
    with (
        tarfile.open(archive) as read,
        again.open("wb") as file,
        gzip.GzipFile("", "wb", 9, file, mtime=time) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as write,
    ):
        for member in sorted(read.getmembers(), key=lambda each: each.name):
            write.addfile(plain(member), read.extractfile(member) if member.isfile() else None)
    again.replace(archive)


def main(arguments: Sequence[str] | None = None) -> None:
    """Builds what is named, and prints the files."""
    parser = argparse.ArgumentParser(description="Build the distributions.")
    parser.add_argument("names", nargs="*", choices=[[], *STAGES], metavar="NAME", help=", ".join(STAGES))
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--arch", action="append", choices=sorted(native.ARCHS), help="of libdnc_runtime")
    given = parser.parse_args(arguments)
    for path in build(given.names or list(STAGES), given.out, given.arch or sorted(native.ARCHS)):
        print(path)


if __name__ == "__main__":
    main()
