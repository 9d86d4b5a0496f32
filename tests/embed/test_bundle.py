"""Reading engine folders in C++: what Python refuses is refused, with a message, and never with a crash."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dnc
from dnc.errors import BundleError, TargetError
from dnc.files.reading import read_json
from dnc.runtime import manifest as bundles
from dnc.runtime.arithmetic import ISAS, KINDS, loss, of_isa
from dnc.runtime.manifest import read_manifest
from dnc.runtime.preprocessing import Preprocessing
from tests.embed.conftest import Folder
from tests.embed.native import Harness, NativeError, build_harness
from tests.embed.test_decode import HEADS
from tests.networks import NETWORKS
from tests.runtime.test_manifest import written_in_a_loop

pytestmark = pytest.mark.slow
"""They compile C++."""

Write = Callable[..., Path]
Json = dict[str, Any]


def sign(place: Path, fields: Json, **style: Any) -> None:
    """Writes engine.json with the digest that belongs to it."""
    fields["sha256"] = bundles._digest_of(fields)
    (place / "engine.json").write_text(json.dumps(fields, **style))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network(name: str, write: Write, tmp_path: Path, harness: Harness) -> None:
    """As `dnc compile` writes them, in each form that the network can have; a field that is new has to be taught to
    manifest.cpp."""
    cfg = write(name)
    cfg.with_suffix(".names").write_text("cat\ndog\n")
    forms: tuple[Json, ...] = ({}, {"decode": "graph+nms"}, {"input": "u8"}, {"batch": 2})
    for number, options in enumerate(forms):
        try:
            engine = dnc.compile(cfg, target="onnx", out=tmp_path / str(number), verify=False, **options)
        except dnc.DncError:
            continue
        assert harness("bundle", engine.folder) == [f"{name} onnx {len(engine.manifest.heads)}"]


@pytest.mark.parametrize(
    "style", [{"indent": 1, "ensure_ascii": False}, {"separators": (",", ":")}, {"sort_keys": True}]
)
def test_text_of_any_kind(style: Json, harness: Harness, folder: Folder) -> None:
    """The digest is over what Python writes of it, whatever characters and numbers there are."""
    place = folder()
    fields = json.loads((place / "engine.json").read_text())
    fields["name"] = "".join(map(chr, (*range(0x300), 0x20AC, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x1F600, 0x10FFFF)))
    fields["tuning"] = {
        "numbers": [0, -1, 1.0, 1e-7, 1e22, 1.5e300, 5e-324, 0.1, -0.0, 2**63, -(10**400), float("inf"), float("nan")],
        **{key: key for key in ("é", "z", "Z", "", "\U0001f600", "\ufffd", '"\\/\b\f\n\r\t\x7f')},
    }
    sign(place, fields, **style)
    read_manifest(place)
    assert harness("bundle", place)


@given(value=st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists) | st.none())
@settings(max_examples=60)
def test_canonical_json(value: Any, tmp_path: Path, harness: Harness) -> None:
    """Every value that Python writes; lone surrogates, which it escapes, among them."""
    path = tmp_path / "x.json"
    expected = json.dumps({"b": value, "a": [value], "\ud800": {}, "": "\udc00\ud800"}, sort_keys=True)
    path.write_text(expected)
    assert harness("json", path) == [expected]


JSON = {
    "empty": b"",
    "blank": b" \n",
    "binary": b"\xff\xfe\x00",
    "word": b"hello",
    "two values": b"1 2",
    "deep list": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000,
    "just too deep": b"[" * 66 + b"]" * 66,
    "too many values": b"[" + b"0," * (1 << 20) + b"0]",
    "long number": b"9" * 100_000,
    "leading zero": b"01",
    "plus": b"+1",
    "point": b"1.",
    "no digits": b".5",
    "exponent": b"1e",
    "minus": b"-",
    "hexadecimal": b"0x10",
    "negative NaN": b"-NaN",
    "single quotes": b"'a'",
    "open string": b'"abc',
    "escape at the end": b'"\\',
    "short escape": b'"\\u12',
    "bad escape": b'"\\x41"',
    "bad digit": b'"\\u12g4"',
    "tab in a string": b'"\t"',
    "NUL in a string": b'"\0"',
    "overlong": b'"\xc0\x80"',
    "overlong of three": b'"\xe0\x80\x80"',
    "surrogate": b'"\xed\xa0\x80"',
    "beyond Unicode": b'"\xf4\x90\x80\x80"',
    "cut character": b'"\xe2\x82"',
    "BOM": b"\xef\xbb\xbf1",
    "comma at the end": b"[1,]",
    "comma in an object": b'{"a":1,}',
    "no colon": b'{"a" 1}',
    "no name": b"{1:2}",
    "twice": b'{"a":1,"a":2}',
    "half a word": b"tru",
}


@pytest.mark.parametrize("name", JSON)
def test_no_json(name: str, tmp_path: Path, harness: Harness, folder: Folder) -> None:
    """Refused, alone and as engine.json, as in Python."""
    path = tmp_path / "x.json"
    path.write_bytes(JSON[name])
    with pytest.raises(ValueError):
        read_json(path)
    with pytest.raises(NativeError, match=r"no JSON: .*, at byte \d+"):
        harness("json", path)
    place = folder()
    (place / "engine.json").write_bytes(JSON[name])
    with pytest.raises(
        NativeError, match=r"cannot read engine\.json: no JSON: .*hint: the engine is damaged: build it again"
    ):
        harness("bundle", place)


def test_sha256(tmp_path: Path, harness: Harness) -> None:
    """Of every length around the size of a block, and of a longer file."""
    path = tmp_path / "file"
    for size in (*range(130), 100_003):
        data = random.Random(size).randbytes(size)
        path.write_bytes(data)
        assert harness("sha256", path) == [hashlib.sha256(data).hexdigest()]


def refused(harness: Harness, place: object, *parts: str) -> None:
    with pytest.raises(NativeError) as caught:
        harness("bundle", place)
    assert caught.value.status == 2
    for part in parts:
        assert part in str(caught.value)


def test_no_engine(tmp_path: Path, harness: Harness) -> None:
    refused(harness, tmp_path / "missing", "not an engine: the folder does not exist", "make one with `dnc compile`")
    refused(harness, tmp_path, "not an engine: the folder has no engine.json")
    (tmp_path / "net.dnc").write_text("x")
    refused(harness, tmp_path / "net.dnc", "not an engine: a file that is no package", "`dnc package`")
    (tmp_path / "engine.json").mkdir()
    refused(harness, tmp_path, "cannot read engine.json")


def test_pipes_are_not_read(folder: Folder, harness: Harness) -> None:
    """Whoever reads one waits for somebody who writes."""
    place = folder()
    (place / "engine.json").unlink()
    os.mkfifo(place / "engine.json")
    refused(harness, place, "cannot read engine.json")


def test_too_long(folder: Folder, harness: Harness) -> None:
    place = folder()
    with (place / "engine.json").open("r+b") as file:
        file.truncate(1 << 40)
    refused(harness, place, "the file is too large")


def test_newer(folder: Folder, harness: Harness) -> None:
    place = folder()
    fields = json.loads((place / "engine.json").read_text())
    sign(place, {**fields, "schema": 3})
    refused(harness, place, "the engine has schema 3, this dnc reads up to 2", "update dnc")
    sign(place, {**fields, "later": 1})
    refused(harness, place, "engine.json has a field 'later'; a newer dnc made it")
    for schema in (0, -1, True, "1", 1.0, None, [1], 10**30):
        sign(place, {**fields, "schema": schema})
        refused(harness, place, "engine.json")


@pytest.fixture
def files(folder: Folder) -> Path:
    """An engine with three files."""
    place = folder(labels=("cat", "dog"))
    for name, data in (("model.xml", b"<x/>"), ("model.bin", bytes(100_000))):
        (place / name).write_bytes(data)
    fields = json.loads((place / "engine.json").read_text())
    for name in ("model.xml", "model.bin"):
        data = (place / name).read_bytes()
        fields["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    sign(place, fields)
    return place


@pytest.mark.parametrize("name", ["model.xml", "model.bin", "labels.txt"])
def test_files(name: str, files: Path, harness: Harness) -> None:
    """Longer, shorter, changed, missing, a folder."""
    harness("bundle", files)
    path = files / name
    data = path.read_bytes()
    path.write_bytes(data + b"x")
    refused(harness, files, f"{name} has {len(data) + 1} bytes, not {len(data)}", "build it again")
    path.write_bytes(data[:-1])
    refused(harness, files, f"{name} has {len(data) - 1} bytes, not {len(data)}")
    path.write_bytes(data[:-1] + b"x")
    refused(harness, files, f"the contents of {name} have changed")
    path.unlink()
    refused(harness, files, f"cannot read {name}: No such file")
    path.mkdir()
    refused(harness, files, f"cannot read {name}")


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/b", "..", ".", "", "..\\secret", "C:secret", "a\0b", "engine.json"]
)
def test_names_outside_the_folder(name: str, files: Path, harness: Harness) -> None:
    (files.parent / "secret").write_bytes(b"x")
    fields = json.loads((files / "engine.json").read_text())
    fields["files"][name] = {"size": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    sign(files, fields)
    refused(harness, files, "engine.json names a file outside the folder")


@pytest.mark.parametrize(
    "entry", [None, 1, [], {}, {"size": 4}, {"size": "4", "sha256": ""}, {"size": -1, "sha256": ""}]
)
def test_entries_that_say_nothing(entry: Any, files: Path, harness: Harness) -> None:
    fields = json.loads((files / "engine.json").read_text())
    fields["files"]["model.xml"] = entry
    sign(files, fields)
    refused(harness, files, "model.xml")


def test_labels_that_are_no_text(files: Path, harness: Harness) -> None:
    data = b"cat\n\xff\n"
    (files / "labels.txt").write_bytes(data)
    fields = json.loads((files / "engine.json").read_text())
    fields["files"]["labels.txt"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    sign(files, fields)
    refused(harness, files, "cannot read the labels: they are no UTF-8")


def test_bit_flips(files: Path, harness: Harness) -> None:
    """One bit anywhere in engine.json: what is read nevertheless says the same to Python."""
    data = (files / "engine.json").read_bytes()
    whole = read_manifest(files)
    generator = random.Random(0)
    for place in generator.sample(range(len(data)), 400):
        damaged = bytearray(data)
        damaged[place] ^= 1 << generator.randrange(8)
        (files / "engine.json").write_bytes(damaged)
        refusal = harness.refusal("bundle", files)
        assert refusal.status == 2 if refusal else read_manifest(files) == whole


# Changed with the right digest

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 255, 2**31 - 1, 2**31, 2**53, 2**64, -(2**63), 10**400),
    *(0.0, -0.0, 0.5, 1.0, 1.5, -1.5, 1e-320, 1e308, float("inf"), float("-inf"), float("nan")),
    *("", "x", "input", "layer002", "yolo", "graph", "graph+nms", "uint8", "default", "\0", "\ud800", "x" * 5000),
    *([], [1], [1, 2], [0, 0], [[1, 2]], [[]], ["x"], [-1] * 3, list(range(-1, 6)), [[1, 2]] * 2000, [1] * 40),
    *({}, {"x": 1}, {"x": [1]}, {"x": "y"}),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something can be changed."""
    yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*path, key))


def mutate(fields: Json, generator: random.Random) -> Json:
    """One to three values replaced, removed or added."""
    changed = copy.deepcopy(fields)
    for _ in range(generator.choice((1, 1, 1, 2, 3))):
        path = generator.choice([path for path in places(changed) if path and path[0] not in ("files", "sha256")])
        holder: Any = changed
        for key in path[:-1]:
            holder = holder[key]
        kind = generator.randrange(10)
        if kind == 0:
            del holder[path[-1]]
        elif kind == 1 and isinstance(holder, dict):
            holder[generator.choice(("classes", "tree", "map", "anchors", "new", "crop", "side"))] = generator.choice(
                VALUES
            )
        elif kind == 2 and isinstance(holder, list):
            holder.insert(path[-1], copy.deepcopy(generator.choice(VALUES)))
        else:
            holder[path[-1]] = copy.deepcopy(generator.choice(VALUES))
    return changed


def fuzz(harness: Harness, folder: Folder, seeds: range) -> tuple[int, int]:
    """How many mutations were read, and how many refused. What Python refuses has to be; what Python finds out only
    when it runs, or has no limit for, may be."""
    read = wrong = 0
    names = sorted(HEADS)
    for seed in seeds:
        generator = random.Random(seed)
        head, shape = HEADS[generator.choice(names)]
        prepared = generator.choice(
            (None, Preprocessing(48, 32), Preprocessing(48, 32, mode="center-crop", crop=0.875))
        )
        decode = generator.choice(("host", "host", "graph", "graph+nms"))
        place = folder(
            heads=(head,),
            outputs=("out", "more"),
            output_shapes=(shape, (4,)),
            preprocessing=prepared,
            decode=decode,
            extra_inputs=("confidence", "iou") if decode == "graph+nms" else (),
            states={"state": (3, 4, 5)},
        )
        fields = json.loads((place / "engine.json").read_text())
        for _ in range(20):
            sign(place, mutate(fields, generator))
            text = ""
            try:
                read_manifest(place)
            except BundleError as error:
                text = str(error)
            refusal = harness.refusal("bundle", place)
            if refusal is not None:
                wrong += 1
                assert refusal.status == 2
                continue
            read += 1
            assert not text, (text, place)
            (place / "numbers").write_bytes(bytes(1 << 16))
            refusal = harness.refusal("detect", place, place / "numbers", 0.1, 0.5, 90, 40)
            assert refusal is None or refusal.status in (1, 2)
    return read, wrong


def test_mutations(harness: Harness, folder: Folder) -> None:
    read, wrong = fuzz(harness, folder, range(25))
    assert read > 15
    assert wrong > 250


def test_more_files_than_an_engine_has(harness: Harness, folder: Folder) -> None:
    """Each of which would be opened and checked."""
    place = folder()
    fields = json.loads((place / "engine.json").read_text())
    fields["files"] = {f"file{number}": {"size": 0, "sha256": ""} for number in range(1001)}
    sign(place, fields)
    with pytest.raises(BundleError, match="lists more than 1000 files"):
        read_manifest(place)
    with pytest.raises(NativeError, match="lists more than 1000 files"):
        harness("bundle", place)


@pytest.mark.parametrize("way", ["exchange", "aside"])
def test_readers_see_one_engine_or_the_other(way: str, write: Write, tmp_path: Path, harness: Harness) -> None:
    with written_in_a_loop(write, tmp_path, way, 400) as (place, process):
        count = 0
        while process.poll() is None or count == 0:
            assert harness("bundle", place)
            count += 1


def test_what_stepped_aside_is_put_back(harness: Harness, folder: Folder) -> None:
    place = folder()
    aside = place.parent / f".{place.name}.0123abcd.dnc-part" / "old" / place.name
    aside.parent.mkdir(parents=True)
    (aside.parent.parent / "lock").touch()
    place.rename(aside)
    assert harness("bundle", place)
    assert not aside.exists()


@pytest.mark.parametrize("isa", ISAS)
def test_arithmetic(isa: str, folder: Folder, compiler: None) -> None:
    """What is lost on a CPU is what Python says; of an engine of an older dnc, by its precision alone."""
    own = Harness(build_harness(), {"DNC_ISA": isa})
    hint = f"compile it again here, or elsewhere with --option isa={isa}"
    for arithmetic in ("", *KINDS, "unknown", "newer"):
        place = folder(arithmetic=arithmetic, options={"precision": "int8"})
        lost = loss(arithmetic, ISAS[isa])
        assert "\n".join(own("loss", place)) == (str(TargetError(lost, place, hint)) if lost else "")
    assert own("loss", folder()) == [""]
    own.close()


def test_arithmetic_of_this_cpu(folder: Folder, harness: Harness) -> None:
    """By the instruction cpuid, and by what the system says."""
    assert bool(harness("loss", folder(arithmetic="vnni"))[0]) == bool(loss("vnni", of_isa()))
    own = Harness(build_harness(), {"DNC_ISA": "mmx"})
    with pytest.raises(NativeError, match="DNC_ISA=mmx is no instruction set"):
        own("loss", folder(arithmetic="vnni"))
    own.close()
