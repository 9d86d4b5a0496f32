"""PyTorch's checkpoints, read without torch, and without running anything that they say.

Since 1.6 a checkpoint is a zip: ROOT/data.pkl is a pickle, ROOT/data/KEY the bytes of each storage. Before, it was five
pickles one after the other (a magic number, the version, the machine, the object, the storages' keys), then for each
key an int64 count of elements and the elements.

A pickle is a program, whose names are looked up and called. It is read as data instead (pickles.py): the names known
here are those that tensors are made of, and give a tuple that describes a tensor, or a dict. Any other name is refused.
"""

from __future__ import annotations

import io
import math
import mmap
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dnc.errors import WeightsError
from dnc.files.reading import open_regular
from dnc.typing import Array
from dnc.zoo.importer.pickles import Budget, Function, State, unpickle
from dnc.zoo.importer.tensors import FLOATS, MOST_AXES, SIZES, Tensor, checked_name

__all__ = ["read_legacy", "read_zip"]

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_LONGEST_PICKLE = 1 << 26
"""Bytes. A state_dict takes about 150 for each tensor."""
_MOST_INSTRUCTIONS = 500_000
"""Of all pickles of a file; a state_dict takes some 40 for each tensor. They take a second."""
_MOST_REPEATED = 1 << 24
"""Elements that a view may have which repeats those of a shorter storage, as `expand` does."""
_LARGEST_DIRECTORY = 1 << 22
"""Bytes of a zip's directory, which is read first: about 40,000 members."""
_MOST_UNPACKED = 1 << 32
"""Bytes that are inflated in all: torch.save deflates nothing."""
_STATES = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "state_dict_ema",
    "ema_state_dict",
    "model_ema",
    "ema",
)
"""Where training scripts put the state_dict; the first that is there counts."""
_SAVE = "save its model.state_dict(), with torch.save or as safetensors"
_DAMAGED = "the file is cut off or damaged; fetch it again"

_STORAGES = {
    **{"DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16"},
    **{"LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8"},
    **{"BoolStorage": "BOOL", "UntypedStorage": "U8"},
}


class _Storage(NamedTuple):
    """A storage by its persistent id; the view of a storage that files of before 0.4 may name starts at `offset`."""

    key: str
    dtype: str
    elements: int
    offset: int


class _Stored(NamedTuple):
    """A tensor as the pickle describes it, unchecked."""

    storage: Any
    offset: Any
    shape: Any
    stride: Any


class _StorageType(str):
    """A class of storages, of which the pickle gets no more than the type's name."""

    __slots__ = ()


def _rebuild_tensor(storage: object, offset: object, shape: object, stride: object, *_: object) -> _Stored:
    return _Stored(storage, offset, shape, stride)


def _rebuild_parameter(data: object, *_: object) -> object:
    return data


def _state(items: object = ()) -> State:
    state = State()
    for key, value in items if isinstance(items, list | tuple) else ():
        if not isinstance(key, str):
            raise TypeError
        state[key] = value
    return state


def _size(dims: object = ()) -> tuple[object, ...]:
    if not isinstance(dims, list | tuple):
        raise TypeError
    return tuple(dims)


_FUNCTIONS = {
    ("collections", "OrderedDict"): Function(_state),
    ("torch._utils", "_rebuild_tensor"): Function(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): Function(_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): Function(_rebuild_parameter),
    ("torch", "Size"): Function(_size),
    ("torch", "device"): Function(lambda *_: None),
}


def _load(file: IO[bytes], path: Path, budget: Budget) -> Any:
    """The object of the pickle that starts where the file stands; leaves the file after it."""

    def named(module: str, name: str) -> object:
        if (module, name) in _FUNCTIONS:
            return _FUNCTIONS[module, name]
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _StorageType(_STORAGES[name])
        shown = f"{module}.{name}"[:120]
        message = f"the checkpoint holds more than tensors: '{shown}', which was not run"
        raise WeightsError(message, path, _SAVE)

    def storage(pid: object) -> _Storage:
        match pid:
            case ("storage", _StorageType() as dtype, str() as key, str(), int() as count, *rest) if count >= 0:
                match rest:
                    case [] | [None]:
                        return _Storage(key, str(dtype), count, 0)
                    case [(str(), int() as offset, int())] if offset >= 0:
                        return _Storage(key, str(dtype), count, offset)
        raise WeightsError("the checkpoint refers to a storage in a way that torch never does", path, _DAMAGED)

    return unpickle(file, path, named, storage, budget, _SAVE)


class _Archive:
    """A file for zipfile, of which one read is limited: that of the directory, each entry of which takes memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.limit: int | None = _LARGEST_DIRECTORY
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        if self.limit is not None and size > self.limit:
            raise zipfile.BadZipFile(f"its directory has more than {self.limit >> 20} MiB")
        return self._file.read(size)


@contextmanager
def read_zip(path: Path) -> Iterator[tuple[list[Tensor], list[str]]]:
    """The tensors of a zip checkpoint, in the pickle's order, and notes; they can be read while the block lasts.

    Raises WeightsError if the file is damaged, no checkpoint, or holds more than tensors.
    """
    with open_regular(path) as raw:
        file = _Archive(raw)
        try:
            zipped = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, struct.error, OverflowError) as error:
            raise WeightsError(f"the zip is damaged: {error}", path, _DAMAGED) from error
        file.limit = None
        members = {info.filename: info for info in zipped.infolist()}
        pickles = [name for name in members if name.rpartition("/")[2] == "data.pkl" and name.count("/") < 2]
        if len(pickles) != 1:
            hint = "dnc import reads what torch.save wrote"
            raise WeightsError(f"the zip is no PyTorch checkpoint: it has {len(pickles)} data.pkl", path, hint)
        root = pickles[0].removesuffix("data.pkl")
        if root + "constants.pkl" in members or any(name.startswith(root + "code/") for name in members):
            hint = f"load it with torch.jit.load and {_SAVE}"
            raise WeightsError("the source is TorchScript, a program and not only weights", path, hint)
        if (order := members.get(root + "byteorder")) and _read(zipped, order, 0, 16, path) != b"little":
            raise WeightsError("the checkpoint was written on a big-endian machine", path, _SAVE)
        info = members[pickles[0]]
        if info.file_size > _LONGEST_PICKLE:
            raise WeightsError(f"the checkpoint's pickle takes {info.file_size:,} bytes", path, _SAVE)
        pickled = io.BytesIO(_read(zipped, info, 0, info.file_size, path))
        loaded = _load(pickled, path, Budget(_MOST_INSTRUCTIONS))
        unpacked = 0

        def fetch(storage: _Storage, start: int, length: int) -> bytes:
            nonlocal unpacked
            member = members[f"{root}data/{storage.key}"]
            if member.compress_type != zipfile.ZIP_STORED:
                # All of it is inflated up to the end of these bytes.
                unpacked += start + length
                if unpacked > _MOST_UNPACKED:
                    message = f"the zip is a bomb: more than {_MOST_UNPACKED >> 30} GiB are deflated in it"
                    raise WeightsError(message, path, "torch.save deflates nothing; save it again with torch.save")
            return _read(zipped, member, start, length, path)

        def size_of(storage: _Storage) -> int:
            member = members.get(f"{root}data/{storage.key}")
            return -1 if member is None else member.file_size

        yield _tensors(loaded, fetch, size_of, path)


def _read(zipped: zipfile.ZipFile, info: zipfile.ZipInfo, start: int, length: int, path: Path) -> bytes:
    """Bytes of a member; never more than are asked for, whatever it unpacks to."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # For LZMA, the file says how much memory it takes: up to 4 GiB.
        raise WeightsError(f"'{info.filename}' in the zip is packed by another method than deflate", path, _SAVE)
    try:
        with zipped.open(info) as member:
            member.seek(start)
            return member.read(length)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        raise WeightsError(f"'{info.filename}' in the zip is damaged: {error}", path, _DAMAGED) from error


def read_legacy(path: Path) -> tuple[list[Tensor], list[str]]:
    """The tensors of a checkpoint from before 1.6, mapped into memory, and notes; raises as `read_zip` does."""
    budget = Budget(_MOST_INSTRUCTIONS)
    with open_regular(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        position = 0

        def load() -> Any:
            nonlocal position
            window = io.BytesIO(mapped[position : position + _LONGEST_PICKLE])
            value = _load(window, path, budget)
            position += window.tell()
            return value

        if load() != _MAGIC:
            raise WeightsError("the source is a pickle, but no PyTorch checkpoint", path, _SAVE)
        version, machine = load(), load()
        if version != _VERSION or not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise WeightsError("the checkpoint is of another version, or of a big-endian machine", path, _SAVE)
        loaded, keys = load(), load()
        storages = {storage.key: storage for storage in _storages(loaded)}
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise WeightsError("the checkpoint's list of storages is damaged", path, _DAMAGED)
        places: dict[str, tuple[int, int]] = {}
        for key in keys:
            storage = storages.get(key)
            if storage is None:
                raise WeightsError(f"no tensor uses the storage '{key:.40}', so its size is unknown", path, _SAVE)
            count = int.from_bytes(mapped[position : position + 8], "little", signed=True)
            length = count * SIZES[storage.dtype]
            position += 8
            if count < 0 or length > len(mapped) - position:
                raise WeightsError(f"the file ends within storage '{key:.40}' of {count:,} elements", path, _DAMAGED)
            places[key] = (position, length)
            position += length
        data = np.memmap(file, np.uint8, "r")

    def fetch(storage: _Storage, start: int, length: int) -> npt.NDArray[np.uint8]:
        begin = places[storage.key][0] + start
        return data[begin : begin + length]

    return _tensors(loaded, fetch, lambda storage: places.get(storage.key, (0, -1))[1], path)


def _storages(loaded: object) -> Iterator[_Storage]:
    """Finds the storages that anything in the object uses."""
    left, seen = [loaded], set()
    while left:
        value = left.pop()
        if isinstance(value, _Storage):
            yield value
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            left += value.values() if isinstance(value, dict) else value


def _tensors(
    loaded: object,
    fetch: Callable[[_Storage, int, int], bytes | npt.NDArray[np.uint8]],
    size_of: Callable[[_Storage], int],
    path: Path,
) -> tuple[list[Tensor], list[str]]:
    """The tensors of the state_dict within the object, and what to note about finding it."""
    state, notes = _state_dict(loaded, path)
    tensors = []
    for name, stored in state.items():
        if isinstance(stored, _Stored):
            tensors.append(_tensor(checked_name(str(name), path), stored, fetch, size_of, path))
    return tensors, notes


def _state_dict(loaded: object, path: Path) -> tuple[Mapping[object, object], list[str]]:
    keys: list[str] = []
    while isinstance(loaded, dict):
        if any(isinstance(value, _Stored) for value in loaded.values()):
            return loaded, [f"the state_dict is '{'.'.join(keys)}' of the checkpoint"] if keys else []
        inner = [key for key, value in loaded.items() if isinstance(value, dict)]
        chosen = next((key for key in _STATES if key in inner), inner[0] if len(inner) == 1 else None)
        if chosen is None or len(keys) > 3:
            break
        keys.append(str(chosen))
        loaded = loaded[chosen]
    raise WeightsError("the checkpoint has no dict of tensors", path, _SAVE)


def _tensor(
    name: str,
    stored: _Stored,
    fetch: Callable[[_Storage, int, int], bytes | npt.NDArray[np.uint8]],
    size_of: Callable[[_Storage], int],
    path: Path,
) -> Tensor:
    storage, offset, shape, stride = stored
    dims = [*shape, *stride] if isinstance(shape, tuple) and isinstance(stride, tuple) else [None]
    whole = len(dims) <= 2 * MOST_AXES and all(type(number) is int and number >= 0 for number in (*dims, offset))
    if not isinstance(storage, _Storage) or not whole or len(shape) != len(stride):
        raise WeightsError(f"the checkpoint describes '{name}' in a way that torch never does", path, _DAMAGED)
    itemsize = SIZES[storage.dtype]
    first = storage.offset + offset
    # One past the last element that the tensor reaches.
    length = 0 if 0 in shape else 1 + sum((side - 1) * step for side, step in zip(shape, stride, strict=True))
    if first + length > storage.elements:
        what = f"element {first + length:,} of a storage of {storage.elements:,}"
        raise WeightsError(f"'{name}' reaches to {what}", path, _DAMAGED)
    if math.prod(shape) > max(storage.elements, _MOST_REPEATED):
        repeated = f"{storage.elements:,} elements to {math.prod(shape):,}"
        raise WeightsError(f"'{name}' repeats {repeated}", path, _SAVE)
    size = size_of(storage)
    if size != storage.elements * itemsize:
        wants = f"{storage.elements * itemsize:,} bytes"
        message = f"'{name}' is in a storage of {wants}, the file has {'none' if size < 0 else f'{size:,}'}"
        raise WeightsError(message, path, _DAMAGED)

    def values() -> Array:
        flat = np.frombuffer(fetch(storage, first * itemsize, length * itemsize), FLOATS[storage.dtype])
        if len(flat) != length:
            raise WeightsError(f"the values of '{name}' are cut off", path, _DAMAGED)
        if math.prod(shape) == 0:
            return flat.reshape(shape)
        # A step that is never taken may be any number.
        steps = [step * itemsize if side > 1 else 0 for side, step in zip(shape, stride, strict=True)]
        return np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False)

    return Tensor(name, tuple(shape), storage.dtype, values)
