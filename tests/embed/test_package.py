"""Packages in C++: what Python opens, from memory or a file, without a file of its own; what it refuses is refused."""

from __future__ import annotations

import ctypes as c
import os
import random
import re
import shutil
import stat
import subprocess
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import dnc
from dnc.cli import embed
from dnc.errors import BundleError
from dnc.runtime.embedding import as_c, as_object
from dnc.runtime.manifest import write_folder
from dnc.runtime.package import package, read_package
from dnc.targets import targets
from tests import ROOT
from tests.embed import native
from tests.embed.native import EMBED, WARNINGS, Harness, NativeError, run
from tests.embed.test_engine import ENGINE, IMAGES, Build, Pixels, build
from tests.embed.test_engine import same as same_boxes
from tests.manifests import manifest
from tests.networks import NETWORKS

Write = Callable[..., Path]

pytestmark = pytest.mark.slow
"""They compile C++."""

_ = build
X = np.linspace(0, 1, 3 * 16 * 16, dtype=np.float32).reshape(1, 3, 16, 16)


@pytest.fixture
def engine(build: Build) -> dnc.Engine:
    return build(NETWORKS["tiny"], labels="cat\ndog\n")


@pytest.fixture
def data(engine: dnc.Engine, tmp_path: Path) -> bytes:
    return package(engine.folder, tmp_path / "net.dnc").read_bytes()


def same(engine: dnc.Engine, own: native.Engine) -> None:
    """The same boxes, and the same bits of an image and of a batch."""
    for x in (X, np.concatenate([X, 1 - X, X])):
        outputs = own.run({"input": x})
        for expected, array in zip(engine.forward(x), outputs.arrays().values(), strict=True):
            assert np.array_equal(expected, array)
        outputs.close()
    expected = engine(list(IMAGES), confidence=0.15)
    for found, boxes, image in zip(own.detect(IMAGES, 0.15), expected, IMAGES, strict=True):
        same_boxes(found, boxes, image)
    assert sum(map(len, expected)) > 0


def test_from_memory_and_a_file(lib: c.CDLL, engine: dnc.Engine, data: bytes, tmp_path: Path) -> None:
    """At any address, and of other tools; a stream of it too."""
    shifted = b"." + data
    place = c.cast(c.c_char_p(shifted), c.c_void_p).value or 0
    handle = c.c_void_p()
    assert lib.dnc_open_memory(place + 1, len(data), None, c.byref(handle)) == 0
    lib.dnc_close(handle)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        for name in sorted((path.name for path in engine.folder.iterdir()), reverse=True):
            archive.write(engine.folder / name, name)
    before = b"#!/bin/sh\n" + data
    for given in (data, before, (tmp_path / "other.zip").read_bytes(), tmp_path / "net.dnc"):
        own = native.Engine(lib, given)
        same(engine, own)
        stream = own.stream()
        own.close()
        same(engine, stream)
        stream.close()
    # The file is in memory.
    own = native.Engine(lib, tmp_path / "net.dnc")
    (tmp_path / "net.dnc").write_bytes(bytes(len(data)))
    same(engine, own)
    own.close()


def test_a_cache_that_is_asked_for(lib: c.CDLL, engine: dnc.Engine, data: bytes, tmp_path: Path) -> None:
    for _ in range(2):
        own = native.Engine(lib, data, options=[f"cache={tmp_path / 'cache'}"])
        same(engine, own)
        own.close()
    assert any((tmp_path / "cache").iterdir())


def test_arguments(lib: c.CDLL, data: bytes) -> None:
    handle = c.c_void_p(1)
    assert lib.dnc_open_memory(None, 5, None, c.byref(handle)) == 1
    assert handle.value is None
    assert lib.dnc_open_memory(data, len(data), None, None) == 1
    # A program of before, whose options end earlier.
    with pytest.raises(NativeError, match=r"(?s)a file that is no package.*the package in memory"):
        native.Engine(lib, b"")
    old = native._OpenOptions(native._OpenOptions.max_candidates.offset, 1)
    assert lib.dnc_open_memory(data, len(data), c.byref(old), c.byref(handle)) == 0
    lib.dnc_close(handle)


def test_machine_code_is_run_where_it_is_trusted(lib: c.CDLL, write: Write, tmp_path: Path) -> None:
    """From memory; of two engines each runs its own."""
    if targets["tvm"]().missing():
        pytest.skip("tvm is not installed")
    for seed in (1, 2):
        cfg = write("tiny", seed=seed)
        engine = dnc.compile(cfg, target="tvm", out=tmp_path / f"{seed}.engine", verify=False)
        packed = package(engine.folder, tmp_path / "tvm.dnc").read_bytes()
        for given in (packed, tmp_path / "tvm.dnc"):
            with pytest.raises(NativeError, match="machine code, which would run with all your rights") as caught:
                native.Engine(lib, given)
            assert caught.value.status == 1
            own = native.Engine(lib, given, trust=True)
            same(engine, own)
            own.close()


# What is refused.


def mutated(data: bytes, generator: random.Random) -> bytes:
    """A package with a few bytes changed, mostly those of its directory and headers; cut off, or longer."""
    content = bytearray(data)
    marks = [at for at in range(len(data)) if data[at : at + 2] == b"PK"]
    for _ in range(generator.randint(1, 3)):
        mark = generator.choice(marks)
        at = min(len(content) - 1, mark + generator.randrange(50)) if generator.random() < 0.9 else 0
        content[at] = generator.choice((0, 1, 0xFF, content[at] ^ 1 << generator.randrange(8)))
    if generator.random() < 0.1:
        del content[generator.randrange(len(content)) :]
    return bytes(content) + (b"more" if generator.random() < 0.05 else b"")


def hold_refusals(harness: Harness, data: bytes, path: Path, count: int, seed: int) -> int:
    """What Python refuses is refused; how many are read. Python looks at the archive's own checksums as well, which the
    digests make needless, and at extra fields, which nobody needs."""
    generator, read, others = random.Random(seed), 0, list[str]()
    for _ in range(count):
        content = mutated(data, generator)
        path.write_bytes(content)
        refusal = harness.refusal("package", path)
        read += refusal is None
        assert refusal is None or refusal.status == ENGINE
        if refusal is None:
            try:
                read_package(content)
            except BundleError as error:
                others.append(str(error))
    assert not [error for error in others if not re.search("Bad CRC-32|Overlapped|Corrupt extra field", error)]
    return read


def test_damage(harness: Harness, tmp_path: Path) -> None:
    assert 10 < hold_refusals(harness, small(tmp_path), tmp_path / "x.dnc", 1500, 0) < 1400


def small(folder: Path) -> bytes:
    """A package without a model."""
    with write_folder(folder / "small.engine") as writer:
        (writer.folder / "model.xml").write_text("no model")
        writer.finish(manifest(labels=("cat", "dog")))
    return package(folder / "small.engine", folder / "small.dnc").read_bytes()


def test_what_is_no_package_of_ours(harness: Harness, tmp_path: Path) -> None:
    """In the words of package.py, whose checks these are."""
    data, path = small(tmp_path), tmp_path / "x.dnc"
    with zipfile.ZipFile(tmp_path / "small.dnc") as archive:
        good = [(info, archive.read(info)) for info in archive.infolist()]
    link = zipfile.ZipInfo("labels.txt")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16

    def written(*entries: tuple[zipfile.ZipInfo | str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
        with warnings.catch_warnings(), zipfile.ZipFile(path, "w", method) as archive:
            # Of names that are there twice.
            warnings.simplefilter("ignore")
            for name, content in entries:
                info = name if isinstance(name, zipfile.ZipInfo) else zipfile.ZipInfo(name)
                info.compress_type = method
                archive.writestr(info, content)
        return path.read_bytes()

    by_name = {info.filename: content for info, content in good}
    plain = list(by_name.items())
    at = data.rfind(b"PK\1\2")
    cases = {
        "a file that is no package": b"text",
        "the package is cut off": data[:-30],
        "it has no engine.json": written(*plain[1:]),
        "model.xml is missing": written(*plain[:-1]),
        "more.bin is not listed in engine.json": written(*plain, ("more.bin", b"")),
        "is there twice": written(*plain, plain[-1], plain[-1]),
        "is a folder, a link or a device": written(plain[0], (link, b"x"), plain[2]),
        "is encrypted": data[: at + 8] + bytes([data[at + 8] | 1]) + data[at + 9 :],
        "has 4 bytes, not 8": written(*plain[:-1], ("model.xml", b"no m")),
        "the contents of model.xml have changed": written(*plain[:-1], ("model.xml", b"no modem")),
        "deflated, which this library does not unpack": written(*plain, method=zipfile.ZIP_DEFLATED),
        "packed by another method than deflate": written(*plain, method=zipfile.ZIP_LZMA),
        "too large to be an engine": written(*plain, *((f"{number:060000d}", b"") for number in range(75))),
    }
    for message, content in cases.items():
        path.write_bytes(content)
        for command in ("package", "bundle"):
            refusal = harness.refusal(command, path)
            assert refusal is not None, message
            assert message in str(refusal)
            assert refusal.status == ENGINE
    os.mkfifo(tmp_path / "pipe")
    assert "it is a pipe or a device" in str(harness.refusal("bundle", tmp_path / "pipe"))
    path.write_bytes(data)
    assert harness("bundle", path) == harness("package", path) == ["net openvino 0"]


# As part of a program.

EXAMPLE = ROOT / "examples" / "cpp" / "embedded.cpp"
CMAKE = """cmake_minimum_required(VERSION 3.16)
project(embedded C CXX)
find_package(dnc_runtime 0.1 REQUIRED)
add_executable(embedded {example} net.c)
target_include_directories(embedded PRIVATE .)
target_link_libraries(embedded PRIVATE dnc::runtime)
"""
IN_C = r"""#include <stdio.h>
#include <string.h>
#include <dnc.h>
#include "net.h"

int main(void)
{
    static unsigned char pixels[1 << 16];
    unsigned long width, height;
    dnc_engine* engine = NULL;
    dnc_results* results = NULL;
    dnc_open_options options = DNC_OPEN_OPTIONS_INIT;
    dnc_image image = DNC_IMAGE_INIT;
    dnc_detection box = DNC_DETECTION_INIT;
    size_t i;
    if (scanf("P6 %lu %lu 255%*c", &width, &height) != 2) return 2;
    image.bytes = fread(pixels, 1, sizeof pixels, stdin);
    image.data = pixels, image.width = width, image.height = height;
    options.trust = 1;
    if (dnc_open_memory(dnc_net, dnc_net_bytes, &options, &engine) ||
        dnc_detect(engine, &image, 1, 0.15f, 0.45f, &results)) {
        fprintf(stderr, "%s\n", dnc_last_error());
        return 1;
    }
    for (i = 0; dnc_results_detection(results, 0, i, &box) == DNC_OK; i++)
        printf("%s %g %d %d %d %d\n", box.label, box.confidence, box.left, box.top, box.right, box.bottom);
    dnc_results_free(results);
    dnc_close(engine);
    return memcmp(dnc_net, "PK", 2);
}
"""


def expected_lines(engine: dnc.Engine, image: Pixels) -> list[str]:
    height, width = image.shape[:2]
    return [
        f"{box.label} {box.confidence:g} {' '.join(map(str, box.pixels(width, height)))}"
        for box in engine(image, confidence=0.15)
    ]


def hold_program(program: Path, engine: dnc.Engine, tmp_path: Path) -> None:
    """It finds Python's boxes in an empty folder, and writes no file."""
    image = IMAGES[0]
    ppm = f"P6\n{image.shape[1]} {image.shape[0]}\n255\n".encode() + image.tobytes()
    home = tmp_path / "home"
    home.mkdir()
    places = {name: str(home) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")}
    command: list[str] = [str(program)]
    if shutil.which("strace"):
        command = ["strace", "-f", "-o", str(tmp_path / "calls"), "-e", "trace=file,memfd_create", *command]
    done = subprocess.run(command, input=ppm, cwd=home, env={"PATH": os.environ["PATH"], **places}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().splitlines() == expected_lines(engine, image)
    assert done.stdout
    assert list(home.iterdir()) == []
    if shutil.which("strace"):
        calls = (tmp_path / "calls").read_text()
        assert str(engine.folder) not in calls
        opened = [line for line in calls.splitlines() if re.search(r"O_WRONLY|O_RDWR|O_CREAT|mkdir|rename", line)]
        assert [line for line in opened if '"/dev/' not in line and '"/proc/' not in line] == []
    shutil.rmtree(home)


@pytest.mark.parametrize("form", ["c", "object"])
@pytest.mark.parametrize("target", ["openvino", "tvm"])
def test_in_a_program(form: str, target: str, library_file: Path, build: Build, tmp_path: Path) -> None:
    """In C, where the library is shared."""
    if targets[target]().missing():
        pytest.skip(f"{target} is not installed")
    engine = build(NETWORKS["tiny"], labels="cat\ndog\n", target=target)
    made = (as_c if form == "c" else as_object)(engine.folder, tmp_path / ("net.c" if form == "c" else "net.o"))
    assert (made.symbol, made.header.name) == ("dnc_net", "net.h")
    (tmp_path / "main.c").write_text(IN_C)
    link = [f"-I{EMBED / 'include'}", f"-L{library_file.parent}", "-ldnc_runtime", f"-Wl,-rpath,{library_file.parent}"]
    strict = ["-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror"]
    run(["gcc", *strict, tmp_path / "main.c", made.source, "-o", tmp_path / "main", *link])
    folder = engine.folder.rename(tmp_path / "away")
    try:
        hold_program(tmp_path / "main", dnc.load(folder), tmp_path)
    finally:
        folder.rename(engine.folder)


def test_the_example_by_cmake(engine: dnc.Engine, compiler: None, tmp_path: Path) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("there is no cmake")
    libraries = [library for library in embed._libraries() if library.target == "openvino"]
    prefix = ";".join(str(library.cmake) for library in libraries)
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DDNC_TVM=OFF", f"-DCMAKE_CXX_FLAGS={' '.join(WARNINGS)}"]
    run(["cmake", "-S", EMBED, "-B", tmp_path / "build", *options, f"-DCMAKE_PREFIX_PATH={prefix}"])
    run(["cmake", "--build", tmp_path / "build", "--parallel", "2"])
    run(["cmake", "--install", tmp_path / "build", "--prefix", tmp_path / "installed"])
    as_c(engine.folder, tmp_path / "net.c")
    (tmp_path / "CMakeLists.txt").write_text(CMAKE.format(example=EXAMPLE))
    run(["cmake", "-S", tmp_path, "-B", tmp_path / "own", f"-DCMAKE_PREFIX_PATH={tmp_path / 'installed'}"])
    run(["cmake", "--build", tmp_path / "own"])
    hold_program(tmp_path / "own" / "embedded", engine, tmp_path)
    done = subprocess.run([tmp_path / "own" / "embedded"], input=b"P5", capture_output=True)
    assert (done.returncode, done.stderr) == (1, b"no binary PPM of 8 bits on stdin\n")
