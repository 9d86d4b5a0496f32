"""Darknet's .weights files: a header, then the arrays of each layer as float32, one after the other.

    int32 major, minor, revision
    uint64 images seen        (uint32 where major * 10 + minor < 2)
    float32 ...               in the order of `Layer.weights`

major or minor over 1000 mean that the matrices of fully connected layers are stored as (inputs, outputs). Darknet takes
a file that is too short or too long without a word; here both are errors.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from dnc.darknet.layers.base import Array, Arrays, Layer
from dnc.errors import WeightsError, tolerate
from dnc.files import whole_file

__all__ = ["Header", "count", "random_arrays", "read_weights", "write_partial", "write_weights"]

_BLOCK = 1 << 20
"""Floats that are checked at a time, so that checking takes no memory of the file's size."""


@dataclass(frozen=True)
class Header:
    """The header, which stands before the floats."""

    major: int = 0
    minor: int = 2
    revision: int = 5
    seen: int = 0

    @property
    def wide(self) -> bool:
        """Whether `seen` takes eight bytes."""
        return self.major * 10 + self.minor >= 2

    @property
    def transposed(self) -> bool:
        """Whether matrices of fully connected layers are stored transposed."""
        return self.major > 1000 or self.minor > 1000

    def pack(self) -> bytes:
        """The bytes that stand at the start of the file."""
        return struct.pack("<3iQ" if self.wide else "<3iI", self.major, self.minor, self.revision, self.seen)

    @classmethod
    def read(cls, file: IO[bytes], path: Path) -> Header:
        """Reads the header; raises WeightsError where the file is shorter than one."""
        start = file.read(12)
        if len(start) == 12 and start.isascii() and start.decode().isprintable():
            hint = "a download that failed, or a pointer of git-lfs?"
            raise WeightsError(f"the file is text, not weights: it starts with '{start.decode()}'", path, hint)
        try:
            major, minor, revision = struct.unpack("<3i", start)
            wide = cls(major, minor).wide
            (seen,) = struct.unpack("<Q" if wide else "<I", file.read(8 if wide else 4))
        except struct.error:
            hint = "the file is empty or cut off; fetch it again"
            raise WeightsError("the file is too short for Darknet's header", path, hint) from None
        return cls(major, minor, revision, seen)


def open_floats(path: Path) -> tuple[Header, npt.NDArray[np.float32], int]:
    """Maps a .weights file into memory: its header, its whole floats, and its length in bytes. Raises WeightsError if
    there is no such file, or not even a header in it."""
    try:
        with path.open("rb") as file:
            header = Header.read(file, path)
        size, start = path.stat().st_size, len(header.pack())
        if size - start < 4:
            return header, np.zeros(0, np.float32), size
        return header, np.memmap(path, "<f4", "r", start, ((size - start) // 4,)), size
    except OSError as error:
        raise WeightsError(f"cannot read the weights: {error.strerror or error}", path, "check the path") from error


def count(layer: Layer) -> int:
    """Number of floats in the .weights file for a layer."""
    return sum(math.prod(shape) for shape in layer.weights().values())


def read_weights(
    path: str | Path, layers: Sequence[Layer], *, lenient: bool = False, partial: bool = False
) -> tuple[Arrays, ...]:
    """Maps the file into memory and hands each layer its arrays, read-only and not copied.

    Args:
        lenient: warn about a wrong length or values that are not finite; missing floats are zero then.
        partial: more floats than the layers want are fine: they are a longer network's.

    Raises:
        WeightsError: the file cannot be read, is too short or too long, or holds NaN or negative variances.
    """
    path = Path(path)
    header, floats, size = open_floats(path)
    wanted = sum(count(layer) for layer in layers)
    start = 0
    arrays: list[Arrays] = []
    short = False
    for layer in layers:
        need, left = count(layer), len(floats) - start
        if need > left and not short:
            short = True
            problem = WeightsError(
                f"the weights end within layer {layer.index} [{layer.name}]: it wants {need} floats, {left} were left",
                layer.where,
                f"{path} holds {len(floats)} floats, the cfg wants {wanted}: weights of another network, or cut off",
            )
            tolerate(problem, lenient)
        own: dict[str, Array] = {}
        for name, shape in layer.weights().items():
            length = math.prod(shape)
            stored = floats[start : start + length]
            if len(stored) < length:
                # Pages of zeros that nobody writes to take no memory.
                rest_of_file, stored = stored, np.zeros(length, np.float32)
                stored[: len(rest_of_file)] = rest_of_file
            start += length
            _check_values(layer, name, stored, path, lenient)
            own[name] = layer.arrange(name, stored, shape, header.transposed)
        arrays.append(_completed(layer, own))
    rest, tail = len(floats) - start, (size - len(header.pack())) % 4
    if (rest > 0 or tail) and not partial and not short:
        what = f"{rest} floats" if rest else f"{tail} bytes"
        problem = WeightsError(
            f"the weights go on after the last layer: {what} are left",
            path,
            f"the cfg wants {wanted} floats, the file holds {len(floats)}: is it another network's? "
            "--cutoff N takes the first N layers, --lenient takes it as it is",
        )
        tolerate(problem, lenient)
    return tuple(arrays[layer.weights_of] for layer in layers)


def release_pages(arrays: Sequence[Arrays]) -> None:
    """Gives back the memory of mapped weights that were read; they are read from the file again where they are needed.

    The pages are the system's to take back anyway, but count as this process's until it does.
    """
    maps = set()
    for own in arrays:
        for array in own.values():
            base: object = array
            while isinstance(base, np.ndarray):
                base = base.base
            if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                maps.add(base)
    for mapped in maps:
        mapped.madvise(mmap.MADV_DONTNEED)


def _completed(layer: Layer, own: dict[str, Array]) -> dict[str, Array]:
    """The arrays of a layer and those that no file holds, which are as long as its biases."""
    filled = {name: np.full(own["biases"].shape, value, np.float32) for name, value in layer.defaults().items()}
    return {**own, **filled}


def _check_values(layer: Layer, name: str, values: Array, path: Path, lenient: bool) -> None:
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK]
        bad = ~np.isfinite(block)
        what = "not a finite number"
        if not bad.any() and name.endswith("variance"):
            bad, what = block < 0, "a negative variance"
        if not bad.any():
            continue
        index = start + int(np.argmax(bad))
        problem = WeightsError(
            f"'{name}' of layer {layer.index} [{layer.name}] holds {values[index]} at position {index}: {what}",
            layer.where,
            f"{path} is damaged, comes from a training run that diverged, or belongs to another network",
        )
        tolerate(problem, lenient)
        return


def write_weights(
    file: IO[bytes], layers: Sequence[Layer], arrays: Sequence[Arrays], header: Header | None = None
) -> None:
    """Writes the layers' arrays as Darknet's save_weights does; what a layer shares is written by its owner.

    With a header that says so, and for flipped=1, matrices are stored transposed: `read_weights` gives the same arrays.
    """
    header = header or Header()
    file.write(header.pack())
    for layer, own in zip(layers, arrays, strict=True):
        for name, shape in layer.weights().items():
            array = own[name]
            if array.shape != shape:
                raise WeightsError(f"'{name}' has shape {array.shape}, not {shape}", layer.where)
            # Where each stored float belongs, by `arrange` itself.
            places: npt.NDArray[np.intp] = layer.arrange(  # type: ignore[assignment]
                name,
                np.arange(array.size),  # type: ignore[arg-type]
                shape,
                header.transposed,
            )
            stored = np.empty(array.size, "<f4")
            stored[places.ravel()] = array.ravel()
            file.write(stored.data)


def write_partial(
    path: str | Path, layers: Sequence[Layer], out: str | Path, count: int, *, lenient: bool = False
) -> None:
    """Writes the first `count` layers' arrays as a file of their own, to start a training from: `darknet partial`.

    As there, the new file has the usual header and no images seen, whatever the old one had, and what stands behind
    those layers is not read.

    Raises:
        WeightsError: `count` is not from 1 to the number of layers, the weights cannot be read up to there, or `out` is
            the file that they are read from.
        DncError: `out` cannot be written.
    """
    if not 1 <= count <= len(layers):
        raise WeightsError(f"the first {count} layers: the cfg has {len(layers)}", layers[0].where.file)
    first = layers[:count]
    arrays = read_weights(path, first, lenient=lenient, partial=True)
    if Path(out).exists() and Path(out).samefile(path):
        raise WeightsError("this would replace the weights by a part of them", out, "choose another name")
    with whole_file(out) as file:
        write_weights(file, first, arrays)


def random_arrays(layers: Sequence[Layer], seed: int) -> tuple[Arrays, ...]:
    """Weights that keep the activations of a deep network near 1: for tests and benchmarks, where no weights exist."""
    generator = np.random.default_rng(seed)
    arrays: list[Arrays] = []
    for layer in layers:
        own: dict[str, Array] = {}
        for name, shape in layer.weights().items():
            kind = name.rpartition(".")[2]
            if kind == "variance":
                values = generator.uniform(0.5, 1.5, shape)
            elif kind == "scales":
                values = generator.uniform(0.8, 1.2, shape)
            elif kind in ("biases", "mean"):
                values = generator.normal(0, 0.1, shape)
            else:
                fan_in = max(1, math.prod(shape[1:])) if len(shape) > 1 else 1
                values = generator.normal(0, math.sqrt(2 / fan_in), shape)
            own[name] = values.astype(np.float32)
        arrays.append(_completed(layer, own))
    return tuple(arrays[layer.weights_of] for layer in layers)
