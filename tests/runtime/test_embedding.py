"""Packages as C source and as object files."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dnc.errors import BundleError, DncError
from dnc.runtime.embedding import Embedded, _c, as_c, as_object
from dnc.runtime.manifest import write_folder
from dnc.runtime.package import package
from tests.manifests import manifest


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    with write_folder(tmp_path / "some-net.engine") as writer:
        (writer.folder / "model.bin").write_bytes(bytes(range(256)) * 3)
        writer.finish(manifest())
    return tmp_path / "some-net.engine"


def bytes_of(source: str) -> bytes:
    """Those of the literals of C source."""
    text = "".join(re.findall(r'^    "(.*)"$', source, re.MULTILINE))
    assert re.fullmatch(r"(\\[0-7]{3}|[ -~])*", text)
    assert not re.search(r'(?<!\\)"|\?', text)
    return re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), text.encode())


def test_c_has_the_package(engine: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    made = as_c(engine, tmp_path / "a" / "some-net.c")
    data = package(engine, tmp_path / "x.dnc").read_bytes()
    assert made == Embedded(tmp_path / "a" / "some-net.c", tmp_path / "a" / "some-net.h", "dnc_some_net", len(data))
    source, header = made.source.read_text(), made.header.read_text()
    assert bytes_of(source) == data
    assert f"const size_t dnc_some_net_bytes = {len(data)};" in source
    assert "extern const unsigned char dnc_some_net[];" in header
    assert max(map(len, source.splitlines())) < 210
    again = as_c(engine, tmp_path / "some-net.c")
    assert (again.source.read_text(), again.header.read_text()) == (source, header)


def test_a_package_becomes_the_same(engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = package(engine, tmp_path / "net.dnc")
    file.write_bytes(file.read_bytes() + b"\n")
    expected = as_c(engine, tmp_path / "net.c").source.read_bytes()
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    assert as_c(file).source == Path("net.c")
    assert Path("net.c").read_bytes() == expected
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DncError, match=r"no package|cut off"):
        as_c(file, "other.c")
    assert not Path("other.c").exists()


def test_any_bytes_are_escaped() -> None:
    generator = random.Random(0)
    for data in (b"", bytes(range(256)), b'\0001\x7f9"\\??=\n%', generator.randbytes(5000)):
        assert bytes_of(b"".join(_c(data, "x.h", "x")).decode()) == data


@pytest.mark.parametrize("compiler", ["cc", "clang", "aarch64-linux-gnu-gcc", "gcc -m32 -O2"])
def test_objects(compiler: str, engine: Path, tmp_path: Path) -> None:
    if shutil.which(compiler.split()[0]) is None or shutil.which("nm") is None:
        pytest.skip(f"there is no {compiler}")
    made = as_object(engine, tmp_path / "some-net.o", compiler)
    content = made.source.read_bytes()
    data = package(engine, tmp_path / "x.dnc").read_bytes()
    assert data in content
    assert content.index(data) % 64 == 0
    named = subprocess.run(["nm", made.source], capture_output=True, text=True, check=True).stdout
    assert re.search(r"^0+ R dnc_some_net$", named, re.MULTILINE)
    assert "R dnc_some_net_bytes" in named
    # Nothing of this place is in it.
    assert str(tmp_path).encode() not in content
    (tmp_path / "b").mkdir()
    assert as_object(engine, tmp_path / "b" / "some-net.o", compiler).source.read_bytes() == content


def test_what_is_refused_leaves_nothing(engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "out"
    place.mkdir()
    monkeypatch.chdir(place)
    # dnc_detect and dnc_engine_name are functions of dnc.h, DNC_OK a value.
    for name in ("detect.c", "engine-name.c", "engine.c"):
        with pytest.raises(DncError, match=r"dnc\.h has another thing of the name dnc_"):
            as_c(engine, name)
    for name in ("dnc.c", "DNC.c", 'a"b.c', "a\nb.c"):
        with pytest.raises(DncError, match="no header can have this name"):
            as_c(engine, name)
    for name in ("net", "net.h", "net.cpp", ".c"):
        with pytest.raises(DncError, match=r"does not end in \.c"):
            as_c(engine, name)
    with pytest.raises(DncError, match=r"cannot be run(.|\n)*--cc"):
        as_object(engine, "net.o", "no-such-compiler")
    with pytest.raises(DncError, match="the C compiler fails"):
        as_object(engine, "net.o", "false")
    with pytest.raises(DncError, match="cannot be run"):
        as_object(engine, "net.o", "'open quote")
    with pytest.raises(DncError, match="cannot be run"):
        as_object(engine, "net.o", "")
    with pytest.raises(BundleError, match="not an engine"):
        as_c(tmp_path / "out", "net.c")
    with pytest.raises(DncError, match="cannot write the file"):
        as_c(engine, "absent/net.c")
    (engine / "model.bin").write_bytes(b"changed")
    with pytest.raises(BundleError, match=r"model\.bin has 7 bytes"):
        as_c(engine, "net.c")
    assert list(place.iterdir()) == []
    (place / "net.h").mkdir()
    with pytest.raises(DncError, match="something that is no file stands in the way"):
        as_c(engine, "net.c")
    assert [path.name for path in place.iterdir()] == ["net.h"]
