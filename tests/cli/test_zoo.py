"""dnc zoo: what is listed, and that fetching prints paths. The zoo itself is tested in tests/test_zoo.py."""

from __future__ import annotations

import hashlib
import json
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from dnc import zoo
from tests import ROOT
from tests.conftest import Result

Command = Callable[..., Result]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("DNC_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def source(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> zoo.Entry:
    """The only entry, `net`, whose source is a file."""
    path = tmp_path_factory.mktemp("source") / "net.weights"
    path.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    sources = (zoo.UrlSource(path.as_uri()),)
    entry = zoo.Entry("net", "net.cfg", "net.weights", 7, digest, "coco", "MIT", "a note", sources)
    monkeypatch.setattr(zoo, "entries", lambda: [entry])
    # The zoo's own opens no files.
    monkeypatch.setattr("dnc.zoo.sources._opener", urllib.request.build_opener)
    return entry


def test_list(command: Command, cache: Path, source: zoo.Entry) -> None:
    result = command("zoo", "list")
    assert result.code == 0
    assert [line.split() for line in result.out.splitlines()] == [
        ["name", "cfg", "MB", "here", "labels", "license"],
        ["net", "net.cfg", "0.0", "no", "coco", "MIT"],
    ]
    assert result.err == f"dnc: the cache is {cache}\n"
    (cache / "net.weights").write_bytes(b"weights")
    assert " yes " in command("zoo", "list").out


def test_list_json(command: Command, cache: Path) -> None:
    listed = json.loads(command("zoo", "list", "--json").out)
    assert [item["name"] for item in listed] == [entry.name for entry in zoo.entries()]
    keys = {"name", "cfg", "file", "size", "sha256", "labels", "license", "note", "preprocessing", "path"}
    assert set(listed[0]) == keys
    assert {item["path"] for item in listed} == {None}


def test_networks(command: Command, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every network of cfg/, by name, with what it is in one whole sentence of its own."""
    titles = json.loads(command("zoo", "networks", "--json").out)
    assert list(titles) == sorted(path.stem for path in (ROOT / "cfg").glob("*.cfg"))
    assert [name for name, title in titles.items() if not title.endswith(".")] == []
    lines = command("zoo", "networks").out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(titles)
    assert any(line.split(maxsplit=4)[:4] == ["yolov4-tiny", "dnc", "zoo", "fetch"] for line in lines)
    monkeypatch.setattr(zoo, "cached", lambda entry: cache / entry.file)
    assert ["yolov4-tiny", "here"] in [line.split()[:2] for line in command("zoo", "networks").out.splitlines()]


def test_fetch_prints_the_path(command: Command, cache: Path, source: zoo.Entry) -> None:
    result = command("zoo", "fetch", "net")
    assert (result.code, result.out) == (0, f"{cache / 'net.weights'}\n")
    assert result.err == "dnc: fetching net.weights, 0.0 MB\n"
    (cache / "net.weights").write_bytes(b"changed")
    result = command("zoo", "fetch", "net")
    assert result.code == 0
    assert "warning: what is in the cache is not used: its sha256 is" in result.err
    assert (cache / "net.weights").read_bytes() == b"weights"
    used = (cache / "net.weights").stat().st_mtime_ns
    assert command("zoo", "fetch", "net").err == ""
    assert (cache / "net.weights").stat().st_mtime_ns == used
    result = command("zoo", "fetch", "net", "--force", "--json")
    assert json.loads(result.out) == [{"name": "net", "path": str(cache / "net.weights"), "bytes": 7}]
    assert (cache / "net.weights").read_bytes() == b"weights"


def test_a_wrong_name_stops_before_the_first_fetch(command: Command, cache: Path, source: zoo.Entry) -> None:
    result = command("zoo", "fetch", "net", "nett")
    assert (result.code, result.out) == (1, "")
    assert "no published weights called 'nett'" in result.err
    assert "did you mean 'net'?" in result.err
    assert list(cache.iterdir()) == []
