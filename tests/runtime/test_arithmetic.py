"""Which 8-bit arithmetic a processor has, by what the system says of it, by DNC_ISA, and as a target is told."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import dnc
from dnc.darknet.network import Network
from dnc.errors import DncWarning, TargetError
from dnc.graph.quantization import Range
from dnc.quantization.calibration import Calibration
from dnc.runtime import arithmetic, processor
from dnc.runtime import manifest as bundles
from dnc.runtime.arithmetic import ISAS, KINDS, UNKNOWN, of_features, of_isa, this_isa
from dnc.runtime.manifest import read_manifest
from dnc.targets import find

_AVX2 = "flags : fpu ssse3 avx avx2 fma"


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that stands for /proc/cpuinfo."""
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(processor, "_CPUINFO", path)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("DNC_ISA", raising=False)
    return path


@pytest.mark.parametrize(("machine", "text", "isa", "kind"), [
    ("x86_64", "flags : fpu ssse3", "sse", "pairs"),
    ("x86_64", _AVX2, "avx2", "pairs"),
    ("x86_64", f"{_AVX2} avx512f avx512bw", "avx512", "pairs"),
    ("x86_64", f"{_AVX2} avx512f avx512_vnni", "avx512vnni", "vnni"),
    ("x86_64", f"{_AVX2} avx_vnni", "avxvnni", "vnni"),
    ("x86_64", f"{_AVX2} avx512f avx512_vnni avx_vnni amx_tile amx_int8", "amx", "vnni"),
    ("x86_64", "vendor_id : nobody", "unknown", "unknown"),
    ("aarch64", "Features : fp asimd", "neon", "neon"),
    ("aarch64", "Features : fp asimd asimddp", "dotprod", "dotprod"),
    ("aarch64", "Features : fp asimd asimddp i8mm", "i8mm", "i8mm"),
    ("riscv64", "isa : rv64imafdcv", "unknown", "unknown"),
])  # fmt: skip
def test_of_this_machine(
    machine: str, text: str, isa: str, kind: str, cpuinfo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo.write_text(text)
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert (this_isa(), of_isa().name) == (isa, kind)


def test_unknown_is_taken_for_one_that_saturates(cpuinfo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no /proc/cpuinfo."""
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert of_isa() is UNKNOWN
    assert UNKNOWN.saturates
    assert "8-bit arithmetic unknown: the system does not say" in str(UNKNOWN)


@pytest.mark.parametrize(("system", "machine", "present", "isa"), [
    ("darwin", "arm64", {"dotprod"}, "dotprod"),
    ("darwin", "arm64", {"dotprod", "i8mm"}, "i8mm"),
    ("darwin", "x86_64", {"avx2"}, "avx2"),
    ("darwin", "x86_64", {"avx2", "avx512f"}, "avx512"),
    ("darwin", "x86_64", {"avx2", "avx512f", "avx512vnni"}, "avx512vnni"),
    ("win32", "ARM64", {"dotprod"}, "dotprod"),
    ("win32", "AMD64", set[str](), "sse"),
    # Windows does not say whether there is VNNI.
    ("win32", "AMD64", {"avx2"}, "unknown"),
    ("win32", "AMD64", {"avx2", "avx512f"}, "unknown"),
])  # fmt: skip
def test_elsewhere(
    system: str, machine: str, present: set[str], isa: str, cpuinfo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What macOS and Windows are asked, with answers that are given here."""

    def sysctl(name: bytes, number: object, *_: object) -> int:
        known = {key for key, value in processor._MACOS.items() if value.encode() == name}
        if known & present:
            number._obj.value = 1  # type: ignore[attr-defined]
        return 0 if known else -1

    class Library:
        sysctlbyname = staticmethod(sysctl)

        @staticmethod
        def IsProcessorFeaturePresent(number: int) -> int:
            return int(any(processor._WINDOWS[name] == number for name in present))

    monkeypatch.setattr("sys.platform", system)
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("ctypes.CDLL", lambda _: Library)
    monkeypatch.setattr("ctypes.WinDLL", lambda _: Library, raising=False)
    assert this_isa() == isa


@pytest.mark.parametrize("isa", ISAS)
def test_told_by_the_environment(isa: str, cpuinfo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNC_ISA", isa)
    assert this_isa() == isa
    assert of_isa() is ISAS[isa] is of_isa(isa)
    assert ISAS[isa] in KINDS.values()


def test_told_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNC_ISA", "avx512vni")
    with pytest.raises(TargetError, match="DNC_ISA=avx512vni is no instruction set") as caught:
        this_isa()
    assert "avx512vnni" in caught.value.hint


def test_of_a_processor_that_llvm_knows() -> None:
    assert of_features({"avx2", "avx512f", "avx512vnni"}, "x86_64") is KINDS["vnni"]
    assert of_features({"avx2"}, "x86_64") is KINDS["pairs"]
    assert of_features(set(), "aarch64") is KINDS["neon"]
    assert of_features(set(), "riscv64") is UNKNOWN


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_of_a_target(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's, or what is named."""
    monkeypatch.setenv("DNC_ISA", "avx512")
    (plain,), (named,) = find(target)().candidates(), find(target)({"isa": "amx"}).candidates()
    assert plain.arithmetic is KINDS["pairs"]
    assert named.arithmetic is KINDS["vnni"]
    with pytest.raises(TargetError, match="option isa=avx3 of target"):
        find(target)({"isa": "avx3"})


def test_of_targets_that_no_cpu_computes() -> None:
    assert find("openvino")({"device": "GPU"}).candidates()[0].arithmetic is None
    assert find("cuda")({"backend": "onnxruntime"}).candidates()[0].arithmetic is None


def test_of_the_choice_among_targets() -> None:
    """TVM writes code for the CPU of `mcpu` and has no isa."""
    assert [offer.name for offer in find("cpu")({"isa": "host"}).candidates()] == ["onnx", "openvino", "tvm"]
    named = find("cpu")({"isa": "avx2"}).candidates()
    assert [(offer.name, offer.arithmetic) for offer in named] == [
        (name, KINDS["pairs"]) for name in ("onnx", "openvino")
    ]


def test_of_tvm(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tvm")
    monkeypatch.setenv("DNC_ISA", "avx2")
    for mcpu, kind in {"x86-64-v3": "words", "x86-64-v4": "words", "cascadelake": "vnni", "alderlake": "vnni"}.items():
        (found,) = find("tvm")({"mcpu": mcpu, "triple": "x86_64-linux-gnu"}).candidates()
        assert found.arithmetic is KINDS[kind]
    (found,) = find("tvm")({"triple": "aarch64", "mcpu": "cortex-a76"}).candidates()
    assert found.arithmetic is KINDS["dotprod"]


def test_names_are_llvms() -> None:
    """One table of extensions: what an instruction set needs is in it."""
    for machine, known in arithmetic._BY_ARCHITECTURE.items():
        assert {name for name, _ in known.values() if name} <= processor._FLAGS[machine].keys()


@pytest.fixture
def eight(write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Compiles a tiny network to 8 bits on a CPU with VNNI, whatever this one is."""
    cfg = write("tiny")
    ranges = {name: Range(-2, 2, -2, 2) for name in ("input", "layer000", "layer001", "layer002")}
    table = tmp_path / "tiny.calibration.json"
    digest = Network.load(cfg, cfg.with_suffix(".weights")).digest
    Calibration(digest, "minmax", False, {}, {}, ranges).write(table)

    def make(target: str = "onnx", **options: str) -> Path:
        monkeypatch.setenv("DNC_ISA", "avx512vnni")
        out = tmp_path / "e"
        told = {"precision": "int8", **options}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DncWarning)
            return dnc.compile(cfg, target=target, out=out, calibration=table, verify=False, options=told).folder

    return make


def opened(folder: Path) -> list[str]:
    """What opening an engine warns of; it is run twice."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with dnc.load(folder) as engine:
            for _ in range(2):
                engine.forward(np.zeros((3, 16, 16), np.float32))
            engine.turn()
    return [str(each.message) for each in told if issubclass(each.category, DncWarning)]


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_an_engine_for_another_cpu_warns(
    target: str, eight: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, where something is lost."""
    folder = eight(target)
    assert read_manifest(folder).arithmetic == "vnni"
    for isa in ("avx512vnni", "amx", "dotprod"):
        monkeypatch.setenv("DNC_ISA", isa)
        assert opened(folder) == []
    monkeypatch.setenv("DNC_ISA", "avx2")
    (said,) = opened(folder)
    assert "this one cuts sums off at 16 bits" in said
    assert str(folder) in said
    assert said.endswith("hint: compile it again here, or elsewhere with --option isa=avx2")


def test_an_engine_for_lesser_cpus_warns(eight: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """By its isa; on those it is silent."""
    folder = eight(isa="avx2")
    assert read_manifest(folder).arithmetic == "pairs"
    monkeypatch.setenv("DNC_ISA", "avx512")
    assert opened(folder) == []
    monkeypatch.setenv("DNC_ISA", "amx")
    (said,) = opened(folder)
    assert "it is right, but its weights are coarser" in said


def test_an_engine_in_float32_is_silent(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNC_ISA", "avx2")
    cfg = write("tiny")
    folder = dnc.compile(cfg, target="onnx", out=cfg.with_name("e"), verify=False).folder
    assert read_manifest(folder).arithmetic == ""
    assert opened(folder) == []


def test_an_engine_of_an_older_dnc_warns(eight: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """It knew of one arithmetic alone; it opens as before."""
    folder = eight()
    fields = json.loads((folder / "engine.json").read_text())
    for key in ("arithmetic", "deviation"):
        del fields[key]
    fields["sha256"] = bundles._digest_of(fields)
    (folder / "engine.json").write_text(json.dumps(fields))
    assert opened(folder) == []
    monkeypatch.setenv("DNC_ISA", "avx2")
    assert len(opened(folder)) == 1
