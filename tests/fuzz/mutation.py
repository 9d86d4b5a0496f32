"""Changes of files: of bytes, and of lines, JSON, ONNX, pickles, archives and pictures by what they are made of.

Each function takes the content and a `random.Random`, and gives another content.
"""

from __future__ import annotations

import io
import json
import pickletools
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from random import Random
from typing import Any

__all__ = ["Case", "change", "change_bytes", "change_json", "change_lines", "interesting"]

Case = Mapping[str, bytes]
"""The files of a folder by their names."""

INTEGERS = (
    *range(-3, 9),
    *(16, 32, 127, 128, 255, 256, 1000, 32767, 32768, 65535, 65536, 65537, 100_000, 10**6, 2**24, 10**9, -(10**9)),
    *(2**power + more for power in (30, 31, 32, 62, 63, 64) for more in (-1, 0)),
)
WRITTEN = (
    *(str(number) for number in INTEGERS),
    *("1e999", "-1e999", "1e-999", "nan", "inf", "-inf", "0x10", "", "1.5", "1e3", "-0", "+1", "9" * 5000),
    *("1,2", "1,", ",", "0.5", "1e38", "4e38", "-1e38", "1e-45", "\uff11", "\xb2", "1_0", " 1 # 2", "a", "\0", "1;2"),
    *("#", "../../x", "/dev/zero", "\x1b[1m", "\u202e", "\ud7ff", "%s%n", "{}", "true", "null"),
)


def interesting(random: Random) -> int:
    """A number that programs get wrong."""
    return random.choice(INTEGERS) if random.random() < 0.8 else random.randint(-(2**33), 2**33)


def change_bytes(data: bytes, random: Random) -> bytes:
    """Up to six changes; headers, at the start, are hit as often as all the rest."""
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 3, 6))):
        near = min(len(out), random.choice((16, 64, 512, 1 << 40)))
        at = random.randrange(near) if near else 0
        kind = random.choice(("bit", "byte", "number", "number", "insert", "delete", "copy", "cut", "end"))
        if kind == "bit" and out:
            out[at] ^= 1 << random.randrange(8)
        elif kind == "byte" and out:
            out[at] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))
        elif kind == "number":
            size = random.choice((1, 2, 4, 8))
            number = interesting(random) % (1 << 8 * size)
            # An array of floats has these.
            special = random.choice((float("nan"), float("inf"), -7e-44, 3e38, -0.0))
            raw = number.to_bytes(size, random.choice(("little", "big")))
            raw = struct.pack("<f", special) if random.random() < 0.2 else raw
            out[at : at + len(raw)] = raw
        elif kind == "insert":
            out[at:at] = random.randbytes(random.choice((1, 2, 4, 100)))
        elif kind == "delete":
            del out[at : at + random.choice((1, 2, 4, 100))]
        elif kind == "copy" and out:
            start, size = random.randrange(len(out)), random.choice((1, 8, 64, 1024))
            out[at:at] = out[start : start + size] * random.choice((1, 1, 2, 50))
        elif kind == "cut":
            del out[at:]
        elif kind == "end":
            out += random.randbytes(random.choice((1, 4, 64)))
    return bytes(out)


def change_lines(data: bytes, random: Random, other: bytes = b"") -> bytes:
    """Lines, `key=value`, [sections], numbers; now and then one of `other`."""
    text = data.decode("utf-8", "surrogateescape")
    lines, foreign = text.split("\n"), other.decode("utf-8", "surrogateescape").split("\n")
    for _ in range(random.choice((1, 1, 2, 3, 4))):
        at = random.randrange(len(lines)) if lines else 0
        options = [place for place, line in enumerate(lines) if "=" in line]
        option = random.choice(options) if options else at
        kind = random.choice(
            ("number", "number", "key", "delete", "double", "swap", "bytes", "splice", "section", "many")
        )
        if not lines:
            lines = [""]
        if kind == "number":
            key, equals, value = lines[option].partition("=")
            parts = value.split(",") if equals else key.split(" ")
            parts[random.randrange(len(parts))] = random.choice((*WRITTEN, str(random.randint(-70, 70))))
            lines[option] = f"{key}={','.join(parts)}" if equals else " ".join(parts)
        elif kind == "key":
            stranger = random.choice(foreign)
            lines[option] = stranger if random.random() < 0.5 else f"{stranger.partition('=')[0]}={lines[option]}"
        elif kind == "delete":
            del lines[at : at + random.choice((1, 1, 2, 12))]
        elif kind == "double":
            lines[at:at] = lines[at : at + random.choice((1, 1, 5))]
        elif kind == "swap":
            place = random.randrange(len(lines))
            lines[at], lines[place] = lines[place], lines[at]
        elif kind == "bytes":
            lines[at] = change_bytes(lines[at].encode("utf-8", "surrogateescape"), random).decode("latin-1")
        elif kind == "splice":
            start = random.randrange(len(foreign))
            lines[at:at] = foreign[start : start + random.choice((1, 4, 12))]
        elif kind == "section":
            heads = [place for place, line in enumerate(foreign) if line.startswith("[")]
            if heads:
                start = random.choice(heads)
                end = next((place for place in heads if place > start), len(foreign))
                mine = [place for place, line in enumerate(lines) if line.startswith("[")] or [0]
                where = random.choice(mine)
                lines[where:where] = foreign[start:end]
        elif kind == "many" and random.random() < 0.1:
            lines[at:at] = lines[at : at + 1] * random.choice((50, 300))
    return "\n".join(lines).encode("utf-8", "surrogateescape")


def _value(random: Random) -> Any:
    floats = (0.5, -0.5, 1e38, 1e308, 1e-300, float("nan"), float("inf"))
    choice: Any = random.choice((*INTEGERS, *WRITTEN, *floats, None, True, False, [], {}, [[]]))
    return choice


def _places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Each container with each of its keys, all the way down."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        found.append((value, key))
        _places(value[key], found)
    return found


def change_json(data: bytes, random: Random) -> bytes:
    """Values, keys, kinds and depths; bytes now and then, and where it is no JSON."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return change_bytes(data, random)
    if random.random() < 0.1:
        return change_bytes(data, random)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        places = _places(value, [])
        if not places:
            value = _value(random)
            continue
        container, key = random.choice(places)
        kind = random.choice(("value", "value", "near", "near", "delete", "rename", "copy", "wrap", "deep", "long"))
        old = container[key]
        if kind == "value":
            container[key] = _value(random)
        elif kind == "near":
            if type(old) is int:
                container[key] = random.choice((old + 1, old - 1, -old, old * 2, old * 1000, float(old), str(old)))
            elif isinstance(old, str):
                container[key] = random.choice((old + "x", old[:-1], old[:1] * 10_000, old.upper(), [old], "\0" + old))
            else:
                container[key] = _value(random)
        elif kind == "delete":
            del container[key]
        elif kind == "rename" and isinstance(container, dict):
            container[random.choice((f"{key}x", "", "schema", "sha256", *map(str, WRITTEN)))] = container.pop(key)
        elif kind == "copy":
            other, place = random.choice(places)
            # Not into itself.
            container[key] = json.loads(json.dumps(other[place])) if place in other or isinstance(other, list) else 0
        elif kind == "wrap":
            many = [old] * (1000 if len(json.dumps(old)) < 100 else 2)
            container[key] = random.choice(([old], {"x": old}, [old, old], many))
        elif kind == "deep":
            for _ in range(random.choice((1, 3, 400))):
                old = [old]
            container[key] = old
        elif kind == "long":
            container[key] = random.choice(("x" * 100_000, [0] * 10_000, {str(number): 0 for number in range(3000)}))
        value = json.loads(json.dumps(value))
    return json.dumps(value, indent=random.choice((None, 1))).encode()


def change_onnx(data: bytes, random: Random) -> bytes:
    """Nodes, what they read, attributes, tensors; bytes now and then."""
    import onnx

    if random.random() < 0.2:
        return change_bytes(data, random)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception:
        return change_bytes(data, random)
    graph = model.graph
    for _ in range(random.choice((1, 1, 2, 4))):
        kind = random.choice(("operator", "input", "output", "attribute", "tensor", "double", "delete", "many"))
        names = [name for each in graph.node for name in (*each.input, *each.output)] or [""]
        node = random.choice(graph.node) if graph.node else graph.node.add()
        if kind == "operator":
            node.op_type = random.choice((*(each.op_type for each in graph.node), "Identity", "If", "Loop", "x", ""))
            node.domain = random.choice(("", "", "", "com.microsoft", "x"))
        elif kind == "input" and node.input:
            node.input[random.randrange(len(node.input))] = random.choice(names)
        elif kind == "output" and node.output:
            node.output[random.randrange(len(node.output))] = random.choice(names)
        elif kind == "attribute" and node.attribute:
            attribute = random.choice(node.attribute)
            attribute.type = random.choice((attribute.type, attribute.type, *range(12)))
            attribute.i = interesting(random) % 2**63
            if attribute.ints:
                attribute.ints[random.randrange(len(attribute.ints))] = interesting(random) % 2**63
        elif kind == "tensor" and graph.initializer:
            tensor = random.choice(graph.initializer)
            what = random.choice(("dims", "type", "data", "name", "more"))
            if what == "dims" and tensor.dims:
                tensor.dims[random.randrange(len(tensor.dims))] = interesting(random) % 2**63
            elif what == "more":
                tensor.dims.append(interesting(random) % 2**63)
            elif what == "type":
                tensor.data_type = random.choice((*range(26), 2**31 - 1))
            elif what == "name":
                tensor.name = random.choice(names)
            else:
                tensor.raw_data = change_bytes(tensor.raw_data, random)
        elif kind == "double":
            graph.node.add().CopyFrom(node)
        elif kind == "delete" and graph.node:
            del graph.node[random.randrange(len(graph.node))]
        elif kind == "many" and graph.node and node.input and random.random() < 0.2:
            source = node.input[0]
            for number in range(random.choice((20, 3000))):
                more = graph.node.add(op_type=random.choice(("Identity", node.op_type)), input=[source])
                more.output.append(source := f"many{number}")
            node.input[0] = source
    content: bytes = model.SerializeToString()
    return content


_OPCODES = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]


def change_pickle(data: bytes, random: Random) -> bytes:
    """Instructions: left out, twice, in another place, other ones, with other numbers."""
    try:
        places = [place for _, _, place in pickletools.genops(data) if place is not None]
    except Exception:
        return change_bytes(data, random)
    parts = [data[start:end] for start, end in zip(places, [*places[1:], len(data)], strict=True)]
    for _ in range(random.choice((1, 1, 2, 5))):
        at = random.randrange(len(parts)) if parts else 0
        kind = random.choice(("delete", "double", "swap", "insert", "number", "bytes", "many"))
        if kind == "delete":
            del parts[at : at + 1]
        elif kind == "double":
            parts[at:at] = parts[at : at + random.choice((1, 4, 20))]
        elif kind == "swap" and parts:
            other = random.randrange(len(parts))
            parts[at], parts[other] = parts[other], parts[at]
        elif kind == "insert":
            known = (b"cos\nsystem\n", b"c__builtin__\neval\n", b"r\xff\xff\xff\x7f", b"j\xff\xff\xff\x7f")
            parts.insert(at, random.choice((*known, *_OPCODES)))
        elif kind == "number":
            size = random.choice((1, 2, 8, 255))
            raw = (interesting(random) % (1 << 8 * min(size, 8))).to_bytes(size, "little")
            short, long = b"J" + raw.ljust(4, b"\0")[:4], b"\x8a" + bytes([size]) + raw
            parts.insert(at, random.choice((short, long, b"N", b"K\xff")))
        elif kind == "bytes" and parts:
            parts[at] = change_bytes(parts[at], random)
        elif kind == "many":
            parts.insert(at, random.choice((b"(", b"]", b"(t", b"}", b"]q\x00h\x00a")) * random.choice((3, 2000)))
    return b"".join(parts)


def change_zip(data: bytes, random: Random) -> bytes:
    """Members: changed by what they are, renamed, twice, packed, many; what is said of them; bytes."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    except Exception:
        return change_bytes(data, random)
    if random.random() < 0.3:
        return change_bytes(data, random)
    for _ in range(random.choice((1, 1, 2, 3))):
        at = random.randrange(len(members)) if members else 0
        kind = random.choice(("content", "content", "content", "name", "double", "delete", "add", "many"))
        if kind == "content" and members:
            members[at] = members[at][0], change(*members[at], random)
        elif kind == "name" and members:
            members[at] = (
                random.choice((*(name for name, _ in members), "../x", "/x", "", "a/b", "x\\y", "é")),
                members[at][1],
            )
        elif kind == "double":
            members[at:at] = members[at : at + 1]
        elif kind == "delete":
            del members[at : at + 1]
        elif kind == "add":
            members.append(
                (random.choice(("x", "../x", "data.pkl", "engine.json/")), bytes(random.choice((0, 9, 1 << 20))))
            )
        elif kind == "many" and random.random() < 0.1:
            members += [(f"x{number}", b"") for number in range(random.choice((100, 6000)))]
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", random.choice((0, 0, 0, 8, 12, 14))) as archive:
        warnings.simplefilter("ignore")
        for name, content in members:
            # A date of its own would make each run another.
            archive.writestr(zipfile.ZipInfo(name or "_"), content)
    content = out.getvalue()
    central = content.find(b"PK\1\2")
    if random.random() < 0.2 and central >= 0:
        # What the directory says: flags, method, digest, sizes, place.
        at = central + random.choice((8, 10, 16, 20, 24, 28, 42))
        raw = (interesting(random) % 2**32).to_bytes(4, "little")
        content = content[:at] + raw + content[at + 4 :]
    return content


def change_png(data: bytes, random: Random) -> bytes:
    """Chunks, with digests that are right."""
    if not data.startswith(b"\x89PNG") or random.random() < 0.3:
        return change_bytes(data, random)
    chunks, at = [], 8
    while at + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    for _ in range(random.choice((1, 1, 2))):
        place = random.randrange(len(chunks)) if chunks else 0
        kind = random.choice(("size", "content", "double", "delete", "name", "inner"))
        if kind == "size" and chunks and len(chunks[0][1]) >= 13:
            head = bytearray(chunks[0][1])
            at = random.choice((0, 4))
            head[at : at + 4] = (interesting(random) % 2**32).to_bytes(4, "big")
            chunks[0] = chunks[0][0], bytes(head)
        elif kind == "content" and chunks:
            chunks[place] = chunks[place][0], change_bytes(chunks[place][1], random)
        elif kind == "inner" and chunks:
            inner = random.choice((bytes(10**6), b"\xff" * 1000, b""))
            chunks[place] = chunks[place][0], zlib.compress(inner)
        elif kind == "double":
            chunks[place:place] = chunks[place : place + 1]
        elif kind == "delete":
            del chunks[place : place + 1]
        elif kind == "name" and chunks:
            chunks[place] = random.choice((b"tRNS", b"PLTE", b"iCCP", b"IDAT", b"acTL", b"IEND")), chunks[place][1]
    out = [b"\x89PNG\r\n\x1a\n"]
    for name, content in chunks:
        out.append(struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content)))
    return b"".join(out)


def change_safetensors(data: bytes, random: Random) -> bytes:
    """The header, with a length that is right; or bytes."""
    if len(data) < 8 or random.random() < 0.3:
        return change_bytes(data, random)
    (size,) = struct.unpack_from("<Q", data)
    if size > len(data):
        return change_bytes(data, random)
    header = change_json(data[8 : 8 + size], random)
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


_LINES = {".cfg", ".data", ".list", ".names", ".txt", ".cache", ".jsonl", ".xml"}
_OTHERS = {
    ".json": change_json,
    ".onnx": change_onnx,
    ".pkl": change_pickle,
    ".pth": lambda data, random: (change_zip if data.startswith(b"PK") else change_pickle)(data, random),
    ".dnc": change_zip,
    ".png": change_png,
    ".safetensors": change_safetensors,
}


def change(name: str, data: bytes, random: Random, other: bytes = b"") -> bytes:
    """The content of a file after some changes that suit what it is; `other` is one of its kind, to take parts of."""
    suffix = "." + name.rpartition(".")[2]
    if suffix in _LINES:
        return change_lines(data, random, other)
    return _OTHERS.get(suffix, change_bytes)(data, random)
