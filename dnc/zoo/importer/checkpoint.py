"""Weights of other frameworks: what `dnc import` reads, without their libraries and without running what a file says.

A source is told by its bytes, whatever its name:

    safetensors  uint64 length of a JSON header {name: {dtype, shape, data_offsets}}, the header, then the tensors'
                 bytes without holes; sorted by name or by type, so that the order says nothing
    PyTorch      a zip with a pickle, or the pickles of before 1.6 (pytorch.py); the order is that in which the modules
                 were registered
    ONNX         onnx_model.py; the order is that of the graph

Tensors become units by their names: MODULE.weight and MODULE.bias are a convolution (four axes) or a linear layer
(two), with MODULE.running_mean and MODULE.running_var a batch normalisation. Its partner is the convolution before it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dnc.errors import WeightsError
from dnc.files.reading import open_regular, parse_json
from dnc.typing import Array
from dnc.zoo.importer.onnx_model import read_onnx
from dnc.zoo.importer.pytorch import read_legacy, read_zip
from dnc.zoo.importer.tensors import FLOATS, MOST_AXES, SIZES, Checkpoint, Tensor, Unit, checked_name

__all__ = ["numeric_part", "open_checkpoint", "units_of"]

_LONGEST_HEADER = 1 << 24
"""Bytes of JSON, of which a tensor takes some 100; safetensors' own limit is six times as much."""
_MOST_UNITS = 5000
"""Layers with weights; that of a batch normalisation is looked for among those of its module."""
_WRAPPERS = ("module.", "model.", "_orig_mod.")
"""What DataParallel, Lightning and torch.compile put before every name."""
_FORMATS = "a PyTorch checkpoint, safetensors or ONNX"


@contextmanager
def open_checkpoint(path: str | PathLike[str]) -> Iterator[Checkpoint]:
    """Reads what a source says of its tensors; they themselves can be read while the block lasts. Raises WeightsError
    if the file cannot be read, is none of the formats, is damaged, or holds more than tensors."""
    path = Path(path)
    try:
        if path.is_dir():
            raise WeightsError("a folder is no checkpoint", path, f"name the file in it: {_FORMATS}")
        with open_regular(path) as file:
            start = file.read(64)
        if start.startswith(b"PK"):
            with read_zip(path) as (tensors, notes):
                yield _of_tensors(path, "PyTorch", tensors, notes)
        elif start.startswith(b"\x80"):
            tensors, notes = read_legacy(path)
            yield _of_tensors(path, "PyTorch, before 1.6", tensors, notes)
        elif len(start) >= 9 and start[8:9] == b"{":
            yield _of_tensors(path, "safetensors", _read_safetensors(path), [], ordered=False)
        elif (stranger := _stranger(start)) is not None:
            raise WeightsError(stranger[0], path, stranger[1])
        elif start.startswith(b"\x08") or path.suffix.lower() == ".onnx":
            yield read_onnx(path)
        else:
            formats = _FORMATS.replace(",", " nor").replace(" or ", " nor ")
            raise WeightsError(f"the source is neither {formats}", path, "check the path")
    except OSError as error:
        raise WeightsError(f"cannot read the source: {error.strerror or error}", path, "check the path") from error


def _stranger(start: bytes) -> tuple[str, str] | None:
    """Recognises a file of another known format: what is wrong with it, and what to do."""
    known = (
        (b"\x89HDF", 0, "Keras' HDF5", "convert the model to ONNX, with tf2onnx for instance"),
        (b"TFL3", 4, "TensorFlow Lite", "convert the model to ONNX, with tf2onnx for instance"),
        (b"version https://git-lfs", 0, "a pointer of git-lfs", "fetch the file itself: git lfs pull"),
        (b"\x93NUMPY", 0, "one array of numpy", f"give {_FORMATS}"),
    )
    if not start:
        return "the source is empty", "fetch it again"
    for magic, place, what, hint in known:
        if start[place:].startswith(magic):
            return f"the source is {what}, which dnc import does not read", hint
    return None


def _of_tensors(
    path: Path, kind: str, tensors: Sequence[Tensor], notes: Sequence[str], *, ordered: bool = True
) -> Checkpoint:
    prefix = ""
    while wrapper := next((w for w in _WRAPPERS if all(t.name.startswith(prefix + w) for t in tensors)), ""):
        if not tensors:
            break
        prefix += wrapper
    if prefix:
        tensors = [Tensor(t.name.removeprefix(prefix), t.shape, t.dtype, t.fetch) for t in tensors]
        notes = [*notes, f"'{prefix}' before every name is passed over"]
    units, rest = units_of(tensors, path)
    if not units:
        raise WeightsError(
            f"none of the source's {len(tensors)} tensors are weights that dnc import knows",
            path,
            "it knows convolutions, linear layers and batch normalisations; is it the state_dict of a network?",
        )
    if len(units) > _MOST_UNITS:
        raise WeightsError(f"the source has more than {_MOST_UNITS:,} layers with weights: {len(units):,}", path)
    norms = _partners(units) if ordered else {}
    return Checkpoint(path, kind, tuple(units), ordered, norms, tuple(rest), prefix, tuple(notes))


def units_of(tensors: Iterable[Tensor], path: Path) -> tuple[list[Unit], list[str]]:
    """Groups tensors by module, in the order of each module's first; also the names of what is no unit.

    Raises WeightsError for half a module, or one whose weights are no floats.
    """
    modules: dict[str, dict[str, Tensor]] = {}
    for tensor in tensors:
        module, _, leaf = tensor.name.rpartition(".")
        modules.setdefault(module, {})[leaf] = tensor
    units: list[Unit] = []
    rest: list[str] = []
    for name, leaves in modules.items():
        unit = _unit(name, leaves, path)
        used = set() if unit is None else {tensor.name for tensor in unit.tensors()}
        units += [] if unit is None else [unit]
        rest += [t.name for leaf, t in leaves.items() if t.name not in used and leaf != "num_batches_tracked"]
    return units, rest


def _unit(name: str, leaves: Mapping[str, Tensor], path: Path) -> Unit | None:
    weights, bias = leaves.get("weight"), leaves.get("bias")
    mean, variance = leaves.get("running_mean"), leaves.get("running_var")
    kind: Literal["convolution", "linear", "batchnorm"]
    if mean is not None or variance is not None:
        if mean is None or variance is None:
            has, lacks = ("mean", "var") if variance is None else ("var", "mean")
            hint = "the file holds half of a network"
            raise WeightsError(f"'{name}' of the source has running_{has} but no running_{lacks}", path, hint)
        kind, length = "batchnorm", mean.shape
    elif weights is not None and len(weights.shape) in (2, 4):
        kind, length = "convolution" if len(weights.shape) == 4 else "linear", weights.shape[:1]
    else:
        return None
    unit = Unit(name, kind, weights, bias, mean, variance)
    for tensor in unit.tensors():
        if tensor.dtype not in FLOATS:
            hint = "quantized weights cannot be imported; give the floats they were made of"
            raise WeightsError(f"'{tensor.name}' of the source is {tensor.dtype}, not floats", path, hint)
        if tensor.shape != length and not (tensor is weights and kind != "batchnorm"):
            raise WeightsError(f"'{tensor.name}' of the source has shape {tensor.shape}, not {length}", path)
    return unit


def numeric_part(name: str) -> tuple[str, int | None]:
    """The last part of a module's name in two: ("conv", 2) of `block.conv2`; None where no number ends it."""
    last = name.rpartition(".")[2]
    stem = last.rstrip("0123456789")
    digits = last[len(stem) :]
    # int() refuses thousands of digits.
    return stem, int(digits) if 0 < len(digits) < 20 else None


def _partners(units: Sequence[Unit]) -> dict[str, str]:
    """The convolution that each batch normalisation follows: the last before it in the same module.

    Where a module registers several convolutions first, their numbers decide: bn1 is conv1's. A bn1 that comes before
    conv1 follows what is before it (pre-activation).
    """
    norms: dict[str, str] = {}
    before: dict[str, list[Unit]] = {}
    for unit in units:
        if unit.kind != "batchnorm":
            before.setdefault(unit.parent, []).append(unit)
            continue
        fitting = [u for u in before.get(unit.parent, []) if u.channels == unit.channels and u.name not in norms]
        if not fitting:
            continue
        (_, number), (stem, last) = numeric_part(unit.name), numeric_part(fitting[-1].name)
        numbered = [u for u in fitting if stem and last is not None and numeric_part(u.name) == (stem, number)]
        norms[(numbered or fitting)[-1].name] = unit.name
    return norms


def _read_safetensors(path: Path) -> list[Tensor]:
    """The tensors of a safetensors file, mapped into memory, in the order of their bytes."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if length > min(_LONGEST_HEADER, size - 8):
            hint = "it is cut off; fetch it again" if length <= _LONGEST_HEADER else "is it safetensors at all?"
            raise WeightsError(f"the header of {length:,} bytes does not fit the file's {size:,}", path, hint)
        text = file.read(length)
        data = np.memmap(file, np.uint8, "r", 8 + length) if size > 8 + length else np.zeros(0, np.uint8)
    try:
        header = parse_json(text)
    except ValueError as error:
        raise WeightsError(f"the header is no JSON: {error}", path, "fetch it again") from error
    header.pop("__metadata__", None)
    entries = [_entry(checked_name(name, path), item, size - 8 - length, path) for name, item in header.items()]
    entries.sort(key=lambda entry: (entry[1], entry[0].shape))
    end = 0
    tensors = []
    for tensor, begin, stop in entries:
        if begin != end:
            what = "overlaps the tensor before it" if begin < end else "leaves a hole before it"
            raise WeightsError(f"'{tensor.name}' {what}", path, "the file is damaged; fetch it again")
        end = stop
        tensors.append(_mapped(tensor, data[begin:stop]))
    if end != len(data):
        raise WeightsError(f"{len(data) - end:,} bytes are left after the last tensor", path, "the file is damaged")
    return tensors


def _entry(name: str, item: Any, available: int, path: Path) -> tuple[Tensor, int, int]:
    """A tensor without its values, and where they begin and end."""
    hint = "the file is damaged; fetch it again"
    try:
        dtype, shape, (begin, end) = item["dtype"], tuple(item["shape"]), item["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise WeightsError(f"the header says nothing useful about '{name}'", path, hint) from None
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise WeightsError(f"'{name}' has the unknown type {dtype!r:.40}", path, f"known: {', '.join(SIZES)}")
    if len(shape) > MOST_AXES or not all(type(n) is int and 0 <= n < 1 << 63 for n in (*shape, begin, end)):
        raise WeightsError(f"shape and offsets of '{name}' must be whole numbers", path, hint)
    if end > available:
        raise WeightsError(f"'{name}' ends at byte {end:,} of {available:,}", path, "it is cut off; fetch it again")
    if end - begin != math.prod(shape) * SIZES[dtype]:
        raise WeightsError(f"'{name}' is {dtype} of shape {shape}, but takes {end - begin:,} bytes", path, hint)
    return Tensor(name, shape, dtype, _unread), begin, end


def _unread() -> Array:
    raise AssertionError("the values of this type are never read")


def _mapped(tensor: Tensor, data: npt.NDArray[np.uint8]) -> Tensor:
    if tensor.dtype not in FLOATS:
        return tensor
    return Tensor(
        tensor.name, tensor.shape, tensor.dtype, lambda: data.view(FLOATS[tensor.dtype]).reshape(tensor.shape)
    )
