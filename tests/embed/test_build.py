"""Building with libdnc_runtime: C and C++ programs, one line of g++, CMake, and what valgrind and sanitizers say."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import dnc
from dnc.cli import embed
from dnc.darknet.network import Network
from dnc.darknet.weights import write_weights
from dnc.targets import targets
from tests import ROOT
from tests.embed import test_bundle, test_decode, test_package, test_preprocess
from tests.embed.conftest import Folder
from tests.embed.native import EMBED, TYPES, WARNINGS, Harness, NativeError, build_harness, run
from tests.networks import REMEMBERING, TINY, write_network

pytestmark = pytest.mark.slow
"""They compile C++."""

Pixels = npt.NDArray[np.uint8]

EXAMPLE = ROOT / "examples" / "cpp" / "detect.cpp"


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes with names."""
    cfg = write_network(tmp_path_factory.mktemp("network"), "net", TINY, seed=3)
    cfg.with_suffix(".names").write_text("cat\ndog\n")
    return cfg


@pytest.fixture(scope="module")
def engine(cfg: Path) -> dnc.Engine:
    pytest.importorskip("openvino", exc_type=ImportError)
    return dnc.compile(cfg, target="openvino", out=cfg.with_name("e"))


@pytest.fixture(scope="module")
def tvm_engine(cfg: Path) -> dnc.Engine:
    """Of target tvm, in instructions that valgrind knows, and with an output that has another size for each image."""
    if targets["tvm"]().missing():
        pytest.skip("tvm is not installed")
    old = {"mcpu": "x86-64-v2"} if platform.machine() == "x86_64" else {}
    return dnc.compile(cfg, target="tvm", out=cfg.with_name("t"), decode="graph+nms", options=old, verify=False)


@pytest.fixture
def image(tmp_path: Path) -> Pixels:
    """Pixels, which a.ppm has too; and a.pgm their red."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    (tmp_path / "a.ppm").write_bytes(b"P6\n# by hand\n50 40\n# again\n255\n" + pixels.tobytes())
    (tmp_path / "a.pgm").write_bytes(b"P5 50 40 255 " + pixels[:, :, 0].tobytes())
    return pixels


def lines(engine: dnc.Engine, image: Pixels, confidence: float) -> list[str]:
    """What the example prints."""
    height, width = image.shape[:2]
    return [
        f"{box.label} {box.confidence:g} {' '.join(map(str, box.pixels(width, height)))}"
        for box in engine(image, confidence=confidence)
    ]


def link(library: Path) -> list[str]:
    return [f"-I{EMBED / 'include'}", f"-L{library.parent}", "-ldnc_runtime", f"-Wl,-rpath,{library.parent}"]


def test_version() -> None:
    header = (EMBED / "include" / "dnc.h").read_text()
    assert f'#define DNC_VERSION "{dnc.__version__}"\n' in header


def test_symbols(library_file: Path) -> None:
    """The library shows what the header declares and nothing else of its own."""
    header = (EMBED / "include" / "dnc.h").read_text()
    declared = set(re.findall(r"^DNC_API [^;(]*?\**(dnc_\w+)\(", header, re.MULTILINE))
    listed = run(["nm", "-D", "--defined-only", library_file])
    shown = {line.split()[2] for line in listed.splitlines() if line.split()[1] == "T"}
    assert shown == declared
    assert len(declared) > 25
    # Templates of std are weak and shown, whatever they are of.
    assert not [name for name in listed.split() if name.startswith("_ZN11dnc_runtime")]


@pytest.mark.parametrize("standard", ["c89", "c99", "c17"])
def test_header_is_c(standard: str, compiler: None, tmp_path: Path) -> None:
    source = tmp_path / "a.c"
    source.write_text("#include <dnc.h>\nsize_t any(void);\nsize_t any(void) { return DNC_ANY; }\n")
    warnings = ["-Wall", "-Wextra", "-pedantic-errors", "-Wconversion", "-Wstrict-prototypes", "-Werror"]
    run(["gcc", f"-std={standard}", *warnings, "-fsyntax-only", f"-I{EMBED / 'include'}", source])


def example_of_the_header() -> str:
    """The program in the comment that dnc.h begins with."""
    comment = (EMBED / "include" / "dnc.h").read_text().split("*/")[0]
    code = [line[7:] for line in comment.splitlines() if line.startswith(" *     ") or line == " *"]
    text = "\n".join(code)
    return text[text.index("#include") : text.rindex("\n}\n") + 3]


def test_example_of_the_header(library_file: Path, engine: dnc.Engine, image: Pixels, tmp_path: Path) -> None:
    """It compiles as C without a warning, and finds Python's boxes."""
    code = example_of_the_header()
    assert len(code.splitlines()) < 22
    pixels = ", ".join(map(str, image.reshape(-1)))
    code += f"static const unsigned char pixels[] = {{{pixels}}};\nint main(void) {{ return show(pixels, 50, 40); }}\n"
    source = tmp_path / "a.c"
    source.write_text(code.replace("yolov4-tiny.engine", str(engine.folder)).replace("0.25f", "0.15f"))
    run(
        [
            "gcc",
            "-std=c99",
            "-Wall",
            "-Wextra",
            "-pedantic",
            "-Werror",
            source,
            "-o",
            tmp_path / "a",
            *link(library_file),
        ]
    )
    expected = []
    for box in engine(image, confidence=0.15):
        expected.append(f"{box.label} {box.confidence:.2f} at {' '.join(map(str, box.pixels(50, 40)))}")
    assert run([tmp_path / "a"]).splitlines() == expected
    assert len(expected) > 5
    source.write_text(code)
    run(["gcc", "-std=c99", source, "-o", tmp_path / "a", *link(library_file)])
    result = subprocess.run([tmp_path / "a"], cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stderr.splitlines()[0]) == (1, "not an engine: the folder does not exist")


@pytest.fixture(scope="module")
def exercise(library_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("exercise") / "exercise"
    source = Path(__file__).with_name("exercise.cpp")
    run(["g++", "-std=c++17", "-O1", "-g", *WARNINGS, source, "-o", program, "-pthread", *link(library_file)])
    return program


def test_threads_of_cpp(exercise: Path, engine: dnc.Engine) -> None:
    """Eight threads on one engine, with every call of dnc.hpp."""
    assert run([exercise, engine.folder, 20, "latency"]) == "same 2\n"


def test_threads_of_cpp_on_tvm(exercise: Path, tvm_engine: dnc.Engine) -> None:
    assert run([exercise, tvm_engine.folder, 20]) == "same 2\n"


@pytest.mark.slow
@pytest.mark.parametrize("compiler_name", ["g++", "clang++"])
def test_one_line(compiler_name: str, engine: dnc.Engine, image: Pixels, tmp_path: Path) -> None:
    """The example as its first comment builds it."""
    if shutil.which(compiler_name) is None:
        pytest.skip(f"there is no {compiler_name}")
    (line,) = re.findall(r"^//     (g\+\+ .*)$", EXAMPLE.read_text(), re.MULTILINE)
    flags = " ".join(embed._flags(EMBED, embed._libraries()))
    line = line.replace("g++", compiler_name).replace("detect.cpp", str(EXAMPLE)).replace("$(dnc embed --flags)", flags)
    run(["sh", "-c", line], cwd=tmp_path)
    program = tmp_path / "detect"
    assert run([program, engine.folder, tmp_path / "a.ppm", 0.15]).splitlines() == lines(engine, image, 0.15)
    gray = image[:, :, :1].repeat(3, axis=2)
    assert run([program, engine.folder, tmp_path / "a.pgm"]).splitlines() == lines(engine, gray, 0.25)
    wrong: dict[str, tuple[object, ...]] = {
        "usage: ": (engine.folder,),
        "not an engine": (tmp_path, tmp_path / "a.ppm"),
        "no binary PPM": (engine.folder, EXAMPLE),
    }
    for message, arguments in wrong.items():
        result = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
        assert result.returncode in (1, 2)
        assert message in result.stderr


CONSUMER = """cmake_minimum_required(VERSION 3.16)
project(consumer CXX)
find_package(dnc_runtime 0.1 REQUIRED)
add_executable(detect {example})
target_link_libraries(detect PRIVATE dnc::runtime)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shared", "back_end"), [("ON", "openvino"), ("OFF", "openvino"), ("ON", "tvm"), ("OFF", "tvm")]
)
def test_cmake(
    shared: str, back_end: str, compiler: None, image: Pixels, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Built, installed, and found by another project, without a warning: with all back ends, and with tvm alone."""
    if shutil.which("cmake") is None:
        pytest.skip("there is no cmake")
    engine: dnc.Engine = request.getfixturevalue("engine" if back_end == "openvino" else "tvm_engine")
    libraries = [library for library in embed._libraries() if back_end in ("openvino", library.target)]
    prefix = ";".join(str(library.cmake) for library in libraries)
    options = ["-DCMAKE_BUILD_TYPE=Release", f"-DBUILD_SHARED_LIBS={shared}", f"-DCMAKE_CXX_FLAGS={' '.join(WARNINGS)}"]
    configured = run(["cmake", "-S", EMBED, "-B", tmp_path / "build", *options, f"-DCMAKE_PREFIX_PATH={prefix}"])
    assert f"back ends: {';'.join(library.target for library in libraries)}\n" in configured
    run(["cmake", "--build", tmp_path / "build", "--parallel", "2"])
    run(["cmake", "--install", tmp_path / "build", "--prefix", tmp_path / "installed"])
    installed = {path.name for path in (tmp_path / "installed").rglob("*") if not path.is_dir()}
    assert {"dnc.h", "dnc.hpp", "dnc_runtimeConfig.cmake"} < installed
    assert ("libdnc_runtime.so.1" in installed) == (shared == "ON")
    consumer = tmp_path / "consumer"
    consumer.mkdir()
    (consumer / "CMakeLists.txt").write_text(CONSUMER.format(example=EXAMPLE))
    found = f"-DCMAKE_PREFIX_PATH={tmp_path / 'installed'}" + (f";{prefix}" if shared == "OFF" else "")
    run(["cmake", "-S", consumer, "-B", consumer / "build", found])
    run(["cmake", "--build", consumer / "build"])
    program = consumer / "build" / "detect"
    assert run([program, engine.folder, tmp_path / "a.ppm", 0.15]).splitlines() == lines(engine, image, 0.15)


SUPPRESSIONS = """{
   the loader compares paths eight bytes at a time
   Memcheck:Addr8
   ...
   obj:*/ld-linux*
}
{
   thread-local storage of a worker of oneTBB that is still about to end
   Memcheck:Leak
   match-leak-kinds: possible
   ...
   obj:*/ld-linux*
}
"""


@pytest.mark.slow
@pytest.mark.parametrize("back_end", ["openvino", "tvm"])
def test_valgrind(exercise: Path, back_end: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """No leak of ours, and no access to what is not ours, with eight threads."""
    if shutil.which("valgrind") is None:
        pytest.skip("there is no valgrind")
    engine: dnc.Engine = request.getfixturevalue("engine" if back_end == "openvino" else "tvm_engine")
    (tmp_path / "suppressions").write_text(SUPPRESSIONS)
    options = [
        "--leak-check=full",
        "--num-callers=40",
        "--error-exitcode=99",
        "--errors-for-leak-kinds=definite,possible",
    ]
    hint = ["latency"] if back_end == "openvino" else []
    command = ["valgrind", *options, f"--suppressions={tmp_path / 'suppressions'}", exercise, engine.folder, 2, *hint]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "same 2\n"), result.stderr
    assert "ERROR SUMMARY: 0 errors" in result.stderr


@pytest.mark.slow
def test_thread_sanitizer(tvm_engine: dnc.Engine, tmp_path: Path) -> None:
    """No data race of ours with eight threads; TVM's own libraries are not looked into."""
    if run(["sh", "-c", "command -v setarch || true"]) == "":
        pytest.skip("the sanitizer wants addresses that are not random: there is no setarch")
    libraries = [library for library in embed._libraries() if library.target == "tvm"]
    flags = [*embed._flags(EMBED, libraries), "-std=c++17", "-g", "-fsanitize=thread"]
    program = tmp_path / "exercise"
    run(["g++", Path(__file__).with_name("exercise.cpp"), *flags, "-o", program])
    # What they lock by themselves the sanitizer does not see: what they free would count as a race.
    ignored = tmp_path / "ignored"
    ignored.write_text("".join(f"race:{name}\n" for name in ("libtvm_runtime.so", "libtvm_ffi.so", "model.so")))
    environment = {**os.environ, "TSAN_OPTIONS": f"suppressions={ignored}"}
    command = ["setarch", "-R", str(program), str(tvm_engine.folder), "10"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "same 2\n", "")


@pytest.mark.slow
def test_address_and_undefined_sanitizers(cfg: Path, tvm_engine: dnc.Engine, tmp_path: Path) -> None:
    """All calls with eight threads, and enums that are none, of a network with a memory too. OpenVINO opens its plugins
    in a way that the sanitizer does not allow; leaks are for valgrind, which knows those that are not ours."""
    remembering = cfg.with_name("remembering.cfg")
    remembering.write_text(REMEMBERING["detector"])
    remembering.with_suffix(".names").write_text("cat\ndog\n")
    network = Network.load(remembering).with_random_weights(1)
    with remembering.with_suffix(".weights").open("wb") as file:
        write_weights(file, network.layers, network.arrays)
    other = dnc.compile(remembering, target="tvm", out=tmp_path / "e", decode="graph+nms", verify=False)
    libraries = [library for library in embed._libraries() if library.target == "tvm"]
    # Without optimization compiling takes a quarter of the time, and no access is optimized away.
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O0", "-g", "-std=c++17"]
    program = tmp_path / "exercise"
    flags = [*embed._flags(EMBED, libraries), *flags]
    run(["g++", Path(__file__).with_name("exercise.cpp"), *flags, "-o", program])
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    for folder in (tvm_engine.folder, other.folder):
        result = subprocess.run([program, folder, "3"], env=environment, capture_output=True, text=True)
        assert (result.returncode, result.stdout, result.stderr) == (0, "same 2\n", "")


@pytest.fixture(scope="module")
def sanitized(compiler: None) -> Iterator[Harness]:
    """The parsers, preprocessing and decoders under ASan and UBSan; what they find ends the program."""
    program = build_harness("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
    running = Harness(program, {"ASAN_OPTIONS": "detect_leaks=1:detect_stack_use_after_return=1"})
    yield running
    running.close()


@pytest.mark.slow
def test_sanitized_folders(sanitized: Harness, folder: Folder, tmp_path: Path) -> None:
    read, wrong = test_bundle.fuzz(sanitized, folder, range(100, 400))
    assert (read > 150, wrong > 4000) == (True, True)
    path = tmp_path / "x.json"
    generator = np.random.default_rng(0)
    text = (folder(heads=(test_decode.HEADS["region tree, map"][0],)) / "engine.json").read_bytes()
    for data in (*test_bundle.JSON.values(), *(text[: len(text) * part // 200] for part in range(200))):
        path.write_bytes(data)
        with pytest.raises(NativeError):
            sanitized("json", path)
    for _ in range(3000):
        damaged = bytearray(text)
        for place in generator.integers(0, len(text), generator.integers(1, 5)):
            damaged[place] = generator.integers(0, 256)
        path.write_bytes(damaged)
        refusal = sanitized.refusal("json", path)
        assert refusal is None or refusal.status == 2
    test_bundle.test_sha256(tmp_path, sanitized)
    test_package.hold_refusals(sanitized, test_package.small(tmp_path), tmp_path / "x.dnc", 4000, 1)
    (tmp_path / "other").mkdir()
    test_package.test_what_is_no_package_of_ours(sanitized, tmp_path / "other")


@pytest.mark.slow
def test_sanitized_decoders(sanitized: Harness, folder: Folder) -> None:
    for name in test_decode.HEADS:
        test_decode.test_heads(name, sanitized, folder)
        test_decode.test_what_is_no_number(name, sanitized, folder)
    test_decode.test_several_heads(sanitized, folder)
    test_decode.test_classes(test_decode.TREE, sanitized, folder)


@pytest.mark.slow
def test_sanitized_preprocessing(sanitized: Harness, folder: Folder) -> None:
    for kind in TYPES:
        for wishes in test_preprocess.MODES:
            test_preprocess.test_modes(wishes, kind, sanitized, folder)
        for channels, color in ((1, "gray"), (3, "bgr"), (4, "rgb")):
            test_preprocess.test_colors(channels, color, kind, sanitized, folder)
        test_preprocess.test_any_number_of_channels(5, kind, sanitized, folder)
    test_preprocess.test_what_fits_no_network(sanitized, folder)
