"""Checkpoints of PyTorch and safetensors, written without their libraries: for the tests of `dnc import`."""

from __future__ import annotations

import json
import math
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dnc.typing import Array

__all__ = ["Raw", "Stored", "WRITERS", "legacy", "pickled", "safetensors", "stored_bytes", "zipped"]


_STORAGES = {"F64": "Double", "F32": "Float", "F16": "Half", "BF16": "BFloat16", "I64": "Long", "I8": "Char"}
_TYPES = {"f8": "F64", "f4": "F32", "f2": "F16", "i8": "I64", "i1": "I8"}


@dataclass(frozen=True)
class Stored:
    """A tensor on a storage of its own, or within a larger one: `offset` and `stride` count elements."""

    storage: Array
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0
    dtype: str = ""
    """BF16 for uint16; else the storage's own."""

    @property
    def type(self) -> str:
        """By the names of safetensors."""
        return self.dtype or _TYPES[self.storage.dtype.str[1:]]


@dataclass(frozen=True)
class Raw:
    """Instructions of a pickle that leave one value on its stack."""

    code: bytes


def _stored(value: Array | Stored) -> Stored:
    if isinstance(value, Stored):
        return value
    steps = tuple(math.prod(value.shape[axis + 1 :]) for axis in range(value.ndim))
    return Stored(value.reshape(-1), value.shape, steps)


def _encoded(value: Any, storages: list[Array], legacy: bool) -> bytes:
    def every(items: Sequence[Any]) -> bytes:
        return b"".join(_encoded(item, storages, legacy) for item in items)

    match value:
        case Raw():
            return value.code
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(data)]) + data
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + every(value) + b"t"
        case list():
            return b"](" + every(value) + b"e"
        case dict():
            flat = [part for item in value.items() for part in item]
            return b"ccollections\nOrderedDict\n)R(" + every(flat) + b"u"
        case np.ndarray() | Stored():
            stored = _stored(value)
            key = next((n for n, storage in enumerate(storages) if storage is stored.storage), len(storages))
            if key == len(storages):
                storages.append(stored.storage)
            name = Raw(b"ctorch\n" + _STORAGES[stored.type].encode() + b"Storage\n")
            view = (None,) if legacy else ()
            pid = every([("storage", name, str(key), "cpu", stored.storage.size, *view)])
            rest = every([stored.offset, stored.shape, stored.stride, False, {}])
            return b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + b"Q" + rest + b"tR"
    raise TypeError(type(value))


def pickled(value: Any, storages: list[Array] | None = None, *, legacy: bool = False) -> bytes:
    """The pickle of a state_dict, or of anything around it; `storages` gets what it refers to."""
    return b"\x80\x02" + _encoded(value, [] if storages is None else storages, legacy) + b"."


def stored_bytes(storage: Array) -> bytes:
    """The elements, little-endian."""
    return storage.astype(storage.dtype.newbyteorder("<")).tobytes()


def zipped(
    path: Path, value: Any, *, members: Mapping[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED
) -> Path:
    """A checkpoint as torch.save writes it since 1.6; `value` may be the pickle itself."""
    storages: list[Array] = []
    data = value if isinstance(value, bytes) else pickled(value, storages)
    files = {"data.pkl": data, "byteorder": b"little", "version": b"3\n"}
    files.update({f"data/{key}": stored_bytes(storage) for key, storage in enumerate(storages)})
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in {**files, **(members or {})}.items():
            archive.writestr(f"archive/{name}", content)
    return path


def legacy(path: Path, value: Any) -> Path:
    """A checkpoint as torch.save wrote it before 1.6; `value` may be the pickle itself."""
    storages: list[Array] = []
    data = value if isinstance(value, bytes) else pickled(value, storages, legacy=True)
    machine = Raw(b"}X\x0d\x00\x00\x00little_endian\x88s")
    start = [pickled(0x1950A86A20F9469CFC6C), pickled(1001), pickled(machine), data]
    keys = pickled([str(key) for key in range(len(storages))])
    contents = [struct.pack("<q", storage.size) + stored_bytes(storage) for storage in storages]
    path.write_bytes(b"".join([*start, keys, *contents]))
    return path


def safetensors(path: Path, value: Mapping[str, Array | Stored], **header: Any) -> Path:
    """A safetensors file, sorted by name; `header` replaces what it says of a tensor."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name in sorted(value):
        stored = _stored(value[name])
        content = stored_bytes(stored.storage)
        entries[name] = {
            "dtype": stored.type,
            "shape": stored.shape,
            "data_offsets": [len(data), len(data) + len(content)],
        }
        data += content
    text = json.dumps({**entries, **header}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


WRITERS: dict[str, Callable[[Path, Any], Path]] = {"zip": zipped, "legacy": legacy, "safetensors": safetensors}
