"""NVIDIA's compilers: which is found, and what is read of their logs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dnc.errors import TargetError
from dnc.targets.cuda import toolkit
from dnc.targets.cuda.toolkit import Resources, Toolkit, find_toolkit

_LOG = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'conv_kernel' for 'sm_75'
ptxas info    : Function properties for conv_kernel
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 83 registers, used 1 barriers, 10496 bytes smem, 400 bytes cmem[0]
ptxas info    : Compiling entry function 'conv_kernel' for 'sm_90'
ptxas info    : Function properties for conv_kernel
    16 bytes stack frame, 24 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 10496 bytes smem
ptxas info    : Compiling entry function 'add_kernel' for 'sm_75'
ptxas info    : Function properties for add_kernel
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers, 376 bytes cmem[0]
"""


def _make(path: Path, text: str = "#!/bin/sh\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_resources() -> None:
    """The most of all architectures."""
    assert toolkit._resources(_LOG) == {"conv_kernel": Resources(83, 10496, 24), "add_kernel": Resources(12)}


def test_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nvcc on the PATH, of CUDA_HOME, of PyPI; NVRTC of PyPI with its headers; none."""
    wheel = tmp_path / "nvidia" / "cu13"
    monkeypatch.setattr(toolkit, "_wheels", lambda: [wheel])
    monkeypatch.setattr(toolkit, "_SYSTEM", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    with pytest.raises(TargetError, match="neither nvcc nor NVRTC") as caught:
        find_toolkit()
    assert "darknet-compiler[nvcc]" in caught.value.hint
    library = _make(wheel / "lib" / "libnvrtc.so.13")
    with pytest.raises(TargetError):
        find_toolkit()
    for folder in ("include", "include/cccl"):
        (wheel / folder).mkdir(parents=True)
    assert find_toolkit() == Toolkit(library, (wheel / "include", wheel / "include" / "cccl"))
    with pytest.raises(TargetError, match="there is no nvcc"):
        find_toolkit("nvcc")
    for place in (wheel / "bin" / "nvcc", tmp_path / "home" / "bin" / "nvcc", tmp_path / "bin" / "nvcc"):
        _make(place)
        assert find_toolkit() == Toolkit(place)
    assert find_toolkit("nvrtc").path == library
    assert find_toolkit(str(wheel / "bin" / "nvcc")) == Toolkit(wheel / "bin" / "nvcc")
    with pytest.raises(TargetError, match="there is no such compiler"):
        find_toolkit(str(tmp_path / "nvcc"))


def test_forms() -> None:
    """nvcc's fat binary has PTX of the last; NVRTC gives one piece of code."""
    nvcc, nvrtc = Toolkit(Path("/x/nvcc")), Toolkit(Path("/x/libnvrtc.so.13"))
    assert nvcc.forms(["sm_75", "sm_90"]) == (["sm_75", "sm_90"], "sm_90")
    assert nvrtc.forms(["sm_75"]) == (["sm_75"], "")
    assert nvrtc.forms(["sm_75", "sm_90"]) == ([], "sm_75")


def test_for_one_alone(tmp_path: Path) -> None:
    """Code with instructions of sm_90 alone is for that one, and has no PTX for later ones, by either compiler."""
    assert Toolkit.compiled_for('asm("wgmma.mma_async.sync")', ["sm_90"]) == ["sm_90a"]
    assert Toolkit.compiled_for("", ["sm_75", "sm_90"]) == ["sm_75", "sm_90"]
    assert Toolkit(Path("/x/libnvrtc.so.13")).forms(["sm_90a"]) == (["sm_90a"], "")
    script = '#!/bin/sh\necho "$@" >&2\nfor last; do :; done\ncp "$last" "${last%.cu}.fatbin"\n'
    nvcc = Toolkit(_make(tmp_path / "nvcc", script))
    assert nvcc.forms(["sm_90a"]) == (["sm_90a"], "")
    _, log = nvcc._nvcc("", ["sm_90a"], tmp_path)
    assert re.findall(r"-gencode (\S+)", log) == ["arch=compute_90a,code=sm_90a"]


def test_failure(tmp_path: Path) -> None:
    """The compiler's first error, not all that follows from it."""
    script = '#!/bin/sh\necho "kernels.cu(3): warning: x" >&2\necho "kernels.cu(7): error: expected a ;" >&2\nexit 2\n'
    with pytest.raises(TargetError, match=r"nvcc failed: kernels.cu\(7\): error: expected a ;"):
        Toolkit(_make(tmp_path / "nvcc", script)).compile("", ["sm_75"], tmp_path)
