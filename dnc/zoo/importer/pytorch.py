"""PyTorch's checkpoints, read without torch, and without running anything that they say.

Since 1.6 a checkpoint is a zip: ROOT/data.pkl is a pickle, ROOT/data/KEY the bytes of each storage. Before, it was five
pickles one after the other (a magic number, the version, the machine, the object, the storages' keys), then for each
key an int64 count of elements and the elements.

A pickle is a program, whose names are looked up and called. The names known here are those that tensors are made of;
what they give is a tuple that describes a tensor, or a dict. Any other name is refused before anything is looked up.
Every instruction is looked at first: those that a state_dict never holds (extension codes, buffers) are refused, and so
are memo numbers and lengths beyond the pickle's own, for which the unpickler would take memory, and endless tuples.
"""

from __future__ import annotations

import io
import math
import mmap
import pickle
import pickletools
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dnc.errors import WeightsError
from dnc.typing import Array
from dnc.zoo.importer.tensors import FLOATS, SIZES, Tensor

__all__ = ["read_legacy", "read_zip"]

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_LONGEST_PICKLE = 1 << 28
"""Bytes. A state_dict takes about 150 for each tensor."""
_MOST_TUPLES = 50_000
"""A state_dict takes four for each tensor. Python's hash of tuples within tuples ends the process at some 200,000."""
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

_NAMES_OF_INSTRUCTIONS = """
    PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT
    BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES BINBYTES8 SHORT_BINBYTES UNICODE BINUNICODE BINUNICODE8
    SHORT_BINUNICODE EMPTY_LIST APPEND APPENDS LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM
    SETITEMS EMPTY_SET ADDITEMS FROZENSET GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL
    REDUCE BUILD INST OBJ NEWOBJ NEWOBJ_EX PERSID BINPERSID
"""
_INSTRUCTIONS = frozenset(_NAMES_OF_INSTRUCTIONS.split())


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


class _State(dict[Any, Any]):
    """An OrderedDict, whose attributes (`_metadata`) are passed over."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


class _Function:
    """A function that a name in the pickle stands for. It has no attribute that a pickle could set."""

    __slots__ = ("_call",)
    _call: Callable[..., object]

    def __init__(self, call: Callable[..., object]) -> None:
        object.__setattr__(self, "_call", call)

    def __call__(self, *arguments: object) -> object:
        return self._call(*arguments)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)


def _rebuild_tensor(storage: object, offset: object, shape: object, stride: object, *_: object) -> _Stored:
    return _Stored(storage, offset, shape, stride)


def _rebuild_parameter(data: object, *_: object) -> object:
    return data


def _state(items: Any = ()) -> _State:
    return _State(items)


_FUNCTIONS: dict[tuple[str, str], Callable[..., object]] = {
    ("collections", "OrderedDict"): _state,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch", "Size"): lambda dims=(): tuple(dims),
    ("torch", "device"): lambda *_: None,
}


class _Unpickler(pickle.Unpickler):
    """Makes dicts, lists, numbers, text, and descriptions of tensors; nothing else."""

    def __init__(self, data: bytes, path: Path) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self._path = path

    def find_class(self, module: str, name: str) -> object:
        if (module, name) in _FUNCTIONS:
            return _Function(_FUNCTIONS[module, name])
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _StorageType(_STORAGES[name])
        shown = f"{module}.{name}"[:120]
        message = f"the checkpoint holds more than tensors: '{shown}', which was not run"
        raise WeightsError(message, self._path, _SAVE)

    def persistent_load(self, pid: object) -> _Storage:
        match pid:
            case ("storage", _StorageType() as dtype, str() as key, str(), int() as count, *rest) if count >= 0:
                match rest:
                    case [] | [None]:
                        return _Storage(key, str(dtype), count, 0)
                    case [(str(), int() as offset, int())] if offset >= 0:
                        return _Storage(key, str(dtype), count, offset)
        raise WeightsError("the checkpoint refers to a storage in a way that torch never does", self._path, _DAMAGED)


def _load(file: IO[bytes] | mmap.mmap, path: Path) -> Any:
    """The object of the pickle that starts where the file stands; leaves the file after it."""
    start, largest, tuples = file.tell(), 0, 0
    try:
        for instruction, argument, _ in pickletools.genops(file):  # type: ignore[arg-type]
            if instruction.name not in _INSTRUCTIONS:
                message = f"the checkpoint's pickle uses {instruction.name}, which no state_dict does; it was not run"
                raise WeightsError(message, path, _SAVE)
            if instruction.name in ("PUT", "BINPUT", "LONG_BINPUT"):
                largest = max(largest, int(str(argument)))
            tuples += instruction.name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET")
            if tuples > _MOST_TUPLES:
                raise WeightsError(f"the checkpoint's pickle makes more than {_MOST_TUPLES:,} tuples", path, _SAVE)
            if file.tell() - start > _LONGEST_PICKLE:
                hint = f"the tensors' names and shapes never take that much; {_SAVE}"
                raise WeightsError(f"the checkpoint's pickle is longer than {_LONGEST_PICKLE >> 20} MiB", path, hint)
    except (ValueError, EOFError) as error:
        raise WeightsError(f"the checkpoint's pickle is damaged: {error!s:.100}", path, _DAMAGED) from error
    length = file.tell() - start
    if largest > length:
        raise WeightsError(f"the checkpoint's pickle is damaged: it has no {largest:,} objects", path, _DAMAGED)
    file.seek(start)
    try:
        return _Unpickler(file.read(length), path).load()
    except WeightsError:
        raise
    except Exception as error:
        # Instructions in a senseless order raise nearly anything.
        message = f"the checkpoint's pickle is damaged: {type(error).__name__}: {error!s:.100}"
        raise WeightsError(message, path, _DAMAGED) from error


@contextmanager
def read_zip(path: Path) -> Iterator[tuple[list[Tensor], list[str]]]:
    """The tensors of a zip checkpoint, in the pickle's order, and notes; they can be read while the block lasts.

    Raises WeightsError if the file is damaged, no checkpoint, or holds more than tensors.
    """
    try:
        zipped = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        raise WeightsError(f"the zip is damaged: {error}", path, _DAMAGED) from error
    with zipped:
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
        loaded = _load(io.BytesIO(_read(zipped, info, 0, info.file_size, path)), path)

        def fetch(storage: _Storage, start: int, length: int) -> bytes:
            return _read(zipped, members[f"{root}data/{storage.key}"], start, length, path)

        def size_of(storage: _Storage) -> int:
            member = members.get(f"{root}data/{storage.key}")
            return -1 if member is None else member.file_size

        yield _tensors(loaded, fetch, size_of, path)


def _read(zipped: zipfile.ZipFile, info: zipfile.ZipInfo, start: int, length: int, path: Path) -> bytes:
    """Bytes of a member; never more than are asked for, whatever it unpacks to."""
    try:
        with zipped.open(info) as member:
            member.seek(start)
            return member.read(length)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        raise WeightsError(f"'{info.filename}' in the zip is damaged: {error}", path, _DAMAGED) from error


def read_legacy(path: Path) -> tuple[list[Tensor], list[str]]:
    """The tensors of a checkpoint from before 1.6, mapped into memory, and notes; raises as `read_zip` does."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        if _load(mapped, path) != _MAGIC:
            raise WeightsError("the source is a pickle, but no PyTorch checkpoint", path, _SAVE)
        version, machine = _load(mapped, path), _load(mapped, path)
        if version != _VERSION or not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise WeightsError(f"the checkpoint is of version {version!r:.40}, or big-endian", path, _SAVE)
        loaded, keys = _load(mapped, path), _load(mapped, path)
        storages = {storage.key: storage for storage in _storages(loaded)}
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise WeightsError("the checkpoint's list of storages is damaged", path, _DAMAGED)
        places: dict[str, tuple[int, int]] = {}
        position = mapped.tell()
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
    data = np.memmap(path, np.uint8, "r")

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
        elif isinstance(value, dict | list | tuple | set | frozenset) and id(value) not in seen:
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
            tensors.append(_tensor(str(name), stored, fetch, size_of, path))
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
    whole = all(type(number) is int and number >= 0 for number in (*dims, offset))
    if not isinstance(storage, _Storage) or not whole or len(shape) != len(stride):
        raise WeightsError(f"the checkpoint describes '{name}' in a way that torch never does", path, _DAMAGED)
    itemsize = SIZES[storage.dtype]
    first = storage.offset + offset
    # One past the last element that the tensor reaches.
    length = 0 if 0 in shape else 1 + sum((side - 1) * step for side, step in zip(shape, stride, strict=True))
    if first + length > storage.elements:
        what = f"element {first + length:,} of a storage of {storage.elements:,}"
        raise WeightsError(f"'{name}' reaches to {what}", path, _DAMAGED)
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
