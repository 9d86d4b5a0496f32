"""What is left of an operation that is killed, or refused by the system, at a file operation: at each of them.

    python -m tests.faults material MATERIAL
    python -m tests.faults SCENARIO FAULT FOLDER MATERIAL

The first makes what scenarios begin with. The second runs a scenario in a child of its own, which is killed before the
first operation that changes files; then anew, killed before the second one; and so on, until it ends by itself. Each
time, what the scenario makes must be there as it was or as it should be, and one more run must leave nothing but that.
FAULT is

    kill        the process is killed
    ENOSPC, …   the operation fails with this error: then there is one DncError, and nothing is left at once
    full        files cannot grow beyond so many bytes: none, one, and so on

and with -aside behind it, there is no renameat2. Prints a line of JSON: how many faults there were.

Python tells of operations by audit events; what libraries do by themselves, they do in folders that these make.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import resource
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import numpy as np
import onnx
from PIL import Image

import dnc
from dnc import zoo
from dnc.compiler.source import preprocessing_for
from dnc.darknet.network import Network
from dnc.darknet.weights import write_weights
from dnc.errors import DncError
from dnc.files import writing
from dnc.files.places import cache_dir
from dnc.quantization.collecting import calibrate
from dnc.runtime.manifest import read_manifest, write_folder
from dnc.runtime.package import package, unpack
from dnc.runtime.runners.myriad import toolchain
from dnc.runtime.runners.onnx import import_onnxruntime
from dnc.targets.myriad import installing
from dnc.targets.tvm.target import Tvm
from tests.networks import NETWORKS

EVENTS = {
    *("os.chmod", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate"),
    *("os.utime", "exchange", "fsync"),
}
REMOVING = ("os.remove", "os.rmdir")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
LIMITS = (0, 1, 100, 1000, 3000, 10000)
"""Bytes."""


class Scenario:
    """An operation in a folder."""

    cached = False
    """Whether the cache is looked at as well."""
    was = "old"
    """What is there before."""
    ends: tuple[int, ...] = (signal.SIGKILL,)
    """As which the system may say that a child was ended, besides by itself."""

    def __init__(self, root: Path, material: Path) -> None:
        self.root, self.material = root, material

    def prepare(self) -> None:
        """What is there before."""

    def run(self) -> None:
        """The operation."""
        raise NotImplementedError

    def state(self) -> str:
        """What is there now: "old", "new" or ""; raises an error for what is damaged."""
        raise NotImplementedError

    def expected(self) -> set[str]:
        """What is in the folder after a run."""
        raise NotImplementedError

    def version(self, engine: Path) -> str:
        """Which of the two engines it is: runs it."""
        if not engine.exists():
            writing.put_back(engine)
        if not engine.exists():
            return ""
        with dnc.load(engine, threads=1) as opened:
            output = opened.forward(np.full((3, 16, 16), 0.5))[0]
        versions = np.load(self.material / "outputs.npz")
        return next(name for name in ("old", "new") if np.array_equal(versions[name], output))


class Engine(Scenario):
    """An engine that replaces another."""

    def prepare(self) -> None:
        shutil.copytree(self.material / "old.engine", self.root / "e")

    def run(self) -> None:
        new = self.material / "new.engine"
        with write_folder(self.root / "e") as writer:
            shutil.copyfile(new / "model.onnx", writer.folder / "model.onnx")
            writer.finish(read_manifest(new))

    def state(self) -> str:
        return self.version(self.root / "e")

    def expected(self) -> set[str]:
        return {"e", "e/engine.json", "e/labels.txt", "e/model.onnx"}


class FirstEngine(Engine):
    """An engine where there was none, nor a folder for it."""

    was = ""

    def prepare(self) -> None:
        pass

    def run(self) -> None:
        with write_folder(self.root / "a" / "b" / "e") as writer:
            shutil.copyfile(self.material / "new.engine" / "model.onnx", writer.folder / "model.onnx")
            writer.finish(read_manifest(self.material / "new.engine"))

    def state(self) -> str:
        return self.version(self.root / "a" / "b" / "e")

    def expected(self) -> set[str]:
        return {"a", "a/b", *(f"a/b/{name}" for name in super().expected())}


class Compile(Engine):
    """dnc.compile."""

    target = "onnx"

    def run(self) -> None:
        dnc.compile(self.material / "new.cfg", target=self.target, out=self.root / "e")

    def version(self, engine: Path) -> str:
        """Of other targets, outputs have other last bits."""
        with dnc.load(engine, threads=1) as opened:
            opened.forward(np.full((3, 16, 16), 0.5))
            # The new one has the weights of its own.
            return "new" if opened.manifest.name == "new" else "old"

    def expected(self) -> set[str]:
        listed = set(json.loads((self.root / "e" / "engine.json").read_text())["files"])
        return {"e", "e/engine.json", *(f"e/{name}" for name in listed)}


class CompileCpu(Compile):
    """The fastest of several engines."""

    target = "cpu"

    def run(self) -> None:
        # TVM's files are those of CompileTvm, and would take most of the time.
        with mock.patch.object(Tvm, "missing", return_value="TVM"):
            super().run()


class CompileOpenvino(Compile):
    """Two files."""

    target = "openvino"


class CompileTvm(Compile):
    """A library, by LLVM and a linker; LLVM ends the process where it cannot write."""

    target = "tvm"
    ends = (signal.SIGKILL, 1 << 8)


class Package(Scenario):
    """A package that replaces another."""

    def prepare(self) -> None:
        shutil.copyfile(self.material / "old.dnc", self.root / "p.dnc")

    def run(self) -> None:
        package(self.material / "new.engine", self.root / "p.dnc")

    def state(self) -> str:
        return self.version(self.root / "p.dnc")

    def expected(self) -> set[str]:
        return {"p.dnc"}


class Unpack(Engine):
    """A package that becomes a folder."""

    def run(self) -> None:
        unpack(self.material / "new.dnc", self.root / "e")


class Open(Scenario):
    """A package that is opened, out of the cache, where it lies damaged."""

    cached, was = True, "new"

    def prepare(self) -> None:
        self.run()
        (unpacked,) = (cache_dir() / "packages").iterdir()
        with (unpacked / "model.onnx").open("r+b") as file:
            file.write(b"\xff\xff")

    def run(self) -> None:
        assert self.version(self.material / "new.dnc") == "new"

    def state(self) -> str:
        return self.version(self.material / "new.dnc")

    def expected(self) -> set[str]:
        place = f"cache/packages/{json.loads((self.material / 'new.engine' / 'engine.json').read_text())['sha256']}"
        names = ("", "/engine.json", "/labels.txt", "/model.onnx")
        return {"cache", "cache/packages", *(f"{place}{name}" for name in names)}


class Export(Scenario):
    """An export in place of an earlier one."""

    def prepare(self) -> None:
        dnc.export(self.material / "old.engine", "ultralytics", self.root / "x")

    def run(self) -> None:
        dnc.export(self.material / "new.engine", "ultralytics", self.root / "x")

    def state(self) -> str:
        writing.put_back(self.root / "x")
        record = json.loads((self.root / "x" / "export.json").read_text())
        for name, digest in record["files"].items():
            assert hashlib.sha256((self.root / "x" / name).read_bytes()).hexdigest() == digest
        return str(record["network"])

    def expected(self) -> set[str]:
        network = self.state()
        return {"x", *(f"x/{name}" for name in ("README.md", "export.json", f"{network}.onnx"))}


class ExportFile(Scenario):
    """One file, of a cfg that is compiled on the way."""

    was = ""

    def run(self) -> None:
        dnc.export(self.material / "new.cfg", "yolov5", self.root / "x.onnx", verify=False)

    def state(self) -> str:
        file = self.root / "x.onnx"
        if not file.exists():
            return ""
        onnx.checker.check_model(onnx.load(file), full_check=True)
        return "new"

    def expected(self) -> set[str]:
        return {"x.onnx"}


class Install(Scenario):
    """A toolchain that replaces a damaged one."""

    cached = True

    name = "myriad"

    def prepare(self) -> None:
        self.run()
        (toolchain.folder(self.name) / "plugins.xml").write_text("damaged")

    def run(self) -> None:
        text = "<ie/>"
        file = toolchain.File("plugins.xml", len(text), dnc_sha(text), text=text)
        fake = toolchain.Toolchain(self.name, "fake", "", {}, (), (file,))
        proven = exchanged(vars(installing), "_prove", lambda *_: None)
        with exchanged(toolchain.TOOLCHAINS, self.name, fake), proven:
            installing.install(self.name)

    def state(self) -> str:
        place = toolchain.folder(self.name)
        writing.put_back(place)
        text = (place / "plugins.xml").read_text()
        return {"damaged": "old", "<ie/>": "new"}[text]

    def expected(self) -> set[str]:
        places = ("cache", "cache/toolchains", "cache/toolchains/myriad", "cache/toolchains/myriad/plugins.xml")
        return set(places)


class Remove(Install):
    """A toolchain that goes."""

    def prepare(self) -> None:
        Install.run(self)

    def run(self) -> None:
        installing.remove(self.name)

    def state(self) -> str:
        return "old" if toolchain.folder(self.name).exists() else "new"

    def expected(self) -> set[str]:
        return {"cache", "cache/toolchains"}


class Source(zoo.UrlSource):
    """Bytes without a server."""

    def chunks(self, size: int, scratch: Path) -> Iterator[bytes]:  # type: ignore[override]
        (scratch / "more").write_bytes(b"x")
        yield from (b"ne", b"w")


class Fetch(Scenario):
    """Weights that are fetched again."""

    cached = True

    file = "some.weights"

    def prepare(self) -> None:
        (self.root / "cache").mkdir()
        (self.root / "cache" / self.file).write_bytes(b"old")
        (self.root / "cache" / f"{self.file}.sha256").write_text(f"{dnc_sha('new')}  {self.file}\n")

    def run(self) -> None:
        source = Source("https://none.invalid/some.weights")
        entry = zoo.Entry("some", "some.cfg", self.file, 3, dnc_sha("new"), "coco", "", "", (source,), {"mean": [0.5]})
        with exchanged(vars(zoo), "find", lambda name: entry):
            zoo.fetch("some", force=True)

    def state(self) -> str:
        return (self.root / "cache" / self.file).read_text()

    def expected(self) -> set[str]:
        return {"cache", f"cache/{self.file}", f"cache/{self.file}.sha256", "cache/some.preprocess.json"}


class Table(Scenario):
    """A file that replaces another, as tables of ranges, weights, plots and caches of times do."""

    def prepare(self) -> None:
        (self.root / "table").write_bytes(b"old")

    def run(self) -> None:
        with writing.whole_file(self.root / "table") as file:
            file.write(b"new")

    def state(self) -> str:
        return (self.root / "table").read_text()

    def expected(self) -> set[str]:
        return {"table"}


class Calibrate(Table):
    """A table of ranges, for which a network runs out of a temporary file."""

    def run(self) -> None:
        weights = self.material / "new.weights"
        network = Network.load(self.material / "new.cfg", weights)
        images = [self.material / "image.png"]
        calibrate(network, preprocessing_for(network, weights), images).write(self.root / "table")

    def state(self) -> str:
        return "old" if (self.root / "table").read_bytes() == b"old" else "new"


class Scratch(Scenario):
    """A folder for temporary files."""

    was = ""

    def run(self) -> None:
        with writing.scratch_folder("some") as folder:
            try:
                (folder / "inner").mkdir()
                (folder / "inner" / "file").write_bytes(b"x")
            except OSError as error:
                raise DncError(str(error)) from error

    def state(self) -> str:
        return ""

    def expected(self) -> set[str]:
        return set()


SCENARIOS: dict[str, type[Scenario]] = {
    kind.__name__.lower(): kind
    for kind in (
        *(Engine, FirstEngine, Compile, CompileCpu, CompileOpenvino, CompileTvm, Package, Unpack, Open),
        *(Export, ExportFile, Install, Remove, Fetch, Table, Calibrate, Scratch),
    )
}


def dnc_sha(text: str) -> str:
    """Digest of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def exchanged(table: Any, key: str, value: object) -> Iterator[None]:
    """An entry has another value."""
    before = table[key]
    table[key] = value
    try:
        yield
    finally:
        table[key] = before


class _Fault:
    """Counts operations, and lets one fail."""

    def __init__(self, number: int, kind: str) -> None:
        self.left, self.kind, self.event = number, kind, ""

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS and not (event == "open" and (arguments[2] or 0) & WRITING):
            return
        if event == "open" and str(arguments[0]).startswith("/dev/"):
            return
        self.left -= 1
        if self.left == 0:
            self.event = event
            if self.kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            code = getattr(errno, self.kind)
            raise OSError(code, os.strerror(code))


def in_child(task: Callable[[], str]) -> tuple[int, str]:
    """How a child ended that does something, and what it said."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        _be_child(task, send)
    os.close(send)
    with os.fdopen(receive) as said:
        text = said.read()
    return os.waitpid(child, 0)[1], text


def _be_child(task: Callable[[], str], send: int) -> NoReturn:
    code = 1
    try:
        os.write(send, task().encode())
        code = 0
    except BaseException:
        import traceback

        os.write(send, traceback.format_exc().encode())
    finally:
        os._exit(code)


def faulty(scenario: Scenario, number: int, kind: str) -> str:
    """Runs with a fault; returns "" if it was not reached, else what came of it."""
    if kind == "full":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMITS[number - 1], resource.RLIM_INFINITY))
        try:
            scenario.run()
        except DncError:
            return "refused"
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return "done"
    fault = _Fault(number, kind)
    exchange, fsync = writing._exchange, os.fsync

    def exchange_(one: Path, other: Path) -> None:
        fault("exchange", ())
        exchange(one, other)

    def fsync_(fd: Any) -> None:
        fault("fsync", ())
        fsync(fd)

    writing._exchange, os.fsync = exchange_, fsync_
    sys.addaudithook(fault)
    try:
        scenario.run()
    except DncError as error:
        fault.left = -1
        return f"{fault.event} refused" if "\n" not in error.message else f"several errors: {error}"
    fault.left, reached = -1, fault.left <= 0
    return f"{fault.event} done" if reached else ""


def names(root: Path) -> set[str]:
    """All that is in a folder."""
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def _no_exchange(one: Path, other: Path) -> None:
    raise OSError(errno.ENOSYS, "no renameat2")


def examine(kind: type[Scenario], fault: str, folder: Path, material: Path) -> int:
    """The number of faults of a scenario, each of which was survived."""
    fault, _, aside = fault.partition("-")
    if aside:
        # What all other systems have.
        writing._exchange = _no_exchange
    number = 0
    while True:
        number += 1
        if fault == "full" and number > len(LIMITS):
            return number - 1
        root = folder / f"{kind.__name__}-{fault}{number}"
        root.mkdir()
        os.environ.update(
            DNC_CACHE=str((root if kind.cached else folder) / "cache"), HOME=str(folder), TMPDIR=str(root)
        )
        scenario = kind(root, material)

        def said(task: Callable[[], object], where: str = f"{kind.__name__} {fault} {number}") -> str:
            status, text = in_child(lambda: str(task()))
            assert status == 0, f"{where}: {text}"
            return text

        said(scenario.prepare)
        before = names(root)
        status, text = in_child(partial(faulty, scenario, number, fault))
        where = f"{kind.__name__} {fault} {number}: {text}"
        assert status in (0, *kind.ends), (status, where)
        if status == 0 and text == "":
            shutil.rmtree(root)
            return number - 1
        found = names(root)
        assert said(scenario.state, where) in (kind.was, "new"), where
        if text == "refused" or (text.endswith("refused") and not text.startswith(REMOVING)):
            left = found - before - scenario.expected() if found != before else set()
            assert not left, f"{where}: left {left}"
        said(scenario.run, where)
        if kind is not Scratch:
            assert said(scenario.state, where) == "new", where
        assert names(root) == scenario.expected(), f"{where}: {names(root) ^ scenario.expected()}"
        shutil.rmtree(root)


def make_material(folder: Path) -> None:
    """Two engines, their packages, and what they give."""
    outputs: dict[str, Any] = {}
    for seed, name in enumerate(("old", "new")):
        cfg = folder / f"{name}.cfg"
        cfg.write_text(NETWORKS["tiny"])
        cfg.with_suffix(".names").write_text("cat\ndog\n")
        network = Network.load(cfg).with_random_weights(seed)
        with cfg.with_suffix(".weights").open("wb") as file:
            write_weights(file, network.layers, network.arrays)
        with dnc.compile(cfg, target="onnx", out=folder / f"{name}.engine") as engine:
            outputs[name] = engine.forward(np.full((3, 16, 16), 0.5))[0]
        package(folder / f"{name}.engine", folder / f"{name}.dnc")
    np.savez(folder / "outputs.npz", **outputs)
    Image.new("RGB", (16, 16), "red").save(folder / "image.png")


def main(name: str, *arguments: str) -> None:
    """Makes the material, or prints how many faults there were."""
    sys.dont_write_bytecode = True
    warnings.simplefilter("ignore")
    if name == "material":
        make_material(Path(arguments[0]))
        return
    fault, folder, material = arguments
    # What every child would import; children that were forked where libraries have threads would wait for these, but
    # importing this one starts none.
    import_onnxruntime()
    print(json.dumps({"faults": examine(SCENARIOS[name], fault, Path(folder), Path(material))}))


if __name__ == "__main__":
    main(*sys.argv[1:])
