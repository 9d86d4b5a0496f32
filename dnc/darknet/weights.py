"""Darknet's .weights files: a header, then the arrays of each layer as float32, one after the other.

    int32 major, minor, revision
    uint64 images seen        (uint32 where major * 10 + minor < 2)
    float32 ...               in the order of `Layer.weights`

major or minor over 1000 mean that the matrices of fully connected layers are stored as (inputs, outputs). Darknet takes
a file that is too short or too long without a word; here both are errors.

A trained variance may be a little below zero, by rounding. Darknet adds 1e-5 before it takes the root, in double for a
[convolutional], whose batch normalisation it folds, and in float32 elsewhere. What is positive then is taken, with a
warning for the file.
"""

from __future__ import annotations

import math
import mmap
import os
import shlex
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from dnc.darknet.layers.base import Array, Arrays, Layer
from dnc.darknet.layers.convolutional import BATCH_NORM_EPSILON, Convolutional
from dnc.errors import WeightsError, tolerate, warn
from dnc.files.reading import check_foreign, open_regular
from dnc.files.writing import whole_file

__all__ = ["Header", "count", "random_arrays", "read_weights", "write_partial", "write_weights"]

_BLOCK = 1 << 20
_MISSING = "check the path; published weights are listed by `dnc zoo list`, and fetched by `dnc zoo fetch NAME`"
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

    def misfit(self, length: int) -> str:
        """What is wrong with this header, if it would have to have `length` bytes for the file to fit; else nothing.

        A file that is cut off may have that length as well: then what stands here is a usual header.
        """
        version, own = f"version {self.major}.{self.minor}", len(self.pack())
        if length == 20 > own:
            return f"{version} has 4 bytes for the number of images seen, but here are 8"
        if length == 16 < own and self.seen >> 32:
            return f"{version} has 8 bytes for the number of images seen, but here are 4"
        if length == 12 < own == 20 and self.seen >> 48:
            return "it ends without the number of images seen"
        if length == 0 and not (0 <= self.major <= 2000 and 0 <= self.minor <= 2000):
            return "there is none, the floats begin at once"
        return ""

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
        with open_regular(path) as file:
            header = Header.read(file, path)
            size, start = os.fstat(file.fileno()).st_size, len(header.pack())
            if size - start < 4:
                return header, np.zeros(0, np.float32), size
            return header, np.memmap(file, "<f4", "r", start, ((size - start) // 4,)), size
    except OSError as error:
        raise WeightsError(f"cannot read the weights: {error.strerror or error}", path, _MISSING) from error


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
        WeightsError: the file cannot be read, is too short or too long, or holds NaN or variances of -1e-5 or less.
    """
    path = Path(path)
    check_foreign(path, WeightsError)
    header, floats, size = open_floats(path)
    # Before any value: those of another network's file make no sense anyway.
    _check_length(path, header, size, layers, lenient, partial)
    start = 0
    arrays: list[Arrays] = []
    below: list[tuple[Layer, int, float]] = []
    for layer in layers:
        own: dict[str, Array] = {}
        for name, shape in layer.weights().items():
            length = math.prod(shape)
            stored = floats[start : start + length]
            if len(stored) < length:
                # Pages of zeros that nobody writes to take no memory.
                rest_of_file, stored = stored, np.zeros(length, np.float32)
                stored[: len(rest_of_file)] = rest_of_file
            start += length
            _check_values(layer, name, stored, path, lenient, below)
            own[name] = layer.arrange(name, stored, shape, header.transposed)
        arrays.append(_completed(layer, own))
    if below:
        layer, _, smallest = below[0]
        number = sum(found for _, found, _ in below)
        verb = "s are" if number > 1 else " is"
        message = f"{number} variance{verb} below zero, in layer {layer.index} [{layer.name}] {smallest:.3g}"
        hint = "by rounding in training; Darknet adds 1e-5 and takes them, and so does dnc"
        warn(WeightsError(message, layer.where, hint))
    return tuple(arrays[layer.weights_of] for layer in layers)


def _check_length(path: Path, header: Header, size: int, layers: Sequence[Layer], lenient: bool, partial: bool) -> None:
    """Raises WeightsError for a file that is not as long as the cfg wants, or warns if `lenient`."""
    counts = [count(layer) for layer in layers]
    wanted, begin = 4 * sum(counts), len(header.pack())
    held = size - begin
    if held == wanted or (partial and held > wanted):
        return
    if not partial and (problem := _header_problem(path, header, size - wanted)):
        tolerate(problem, lenient)
        return
    if held < wanted:
        # The layer within which it ends, and what is left for it.
        left, ends = held // 4, 0
        while counts[ends] <= left:
            left -= counts[ends]
            ends += 1
        layer = layers[ends]
        how = f"{_times(wanted, held)} too short: they " if held and 1.5 * held < wanted else ""
        problem = WeightsError(
            f"the weights {'are ' + how if how else ''}end within layer {layer.index} [{layer.name}]: "
            f"it wants {counts[ends]} floats, {left} were left",
            layer.where,
            f"{path} holds {held // 4} floats, the cfg wants {wanted // 4}: weights of another network, or cut off",
        )
    else:
        rest, tail = divmod(held - wanted, 4)
        what = f"{rest} floats" if rest else f"{tail} bytes"
        how = f", the file is {_times(held, wanted)} too long" if held > 1.5 * wanted > 0 else ""
        problem = WeightsError(
            f"the weights go on after the last layer: {what} are left{how}",
            path,
            f"the cfg wants {wanted // 4} floats, the file holds {held // 4}: is it another network's? "
            "--cutoff N takes the first N layers, --lenient takes it as it is",
        )
    tolerate(problem, lenient)


def _times(large: int, small: int) -> str:
    ratio = large / max(1, small)
    return f"{ratio:,.0f} times" if ratio >= 10 else f"{ratio:.2g} times"


def _header_problem(path: Path, header: Header, length: int) -> WeightsError | None:
    """What is wrong with a header that would have to have `length` bytes for the file to fit, and how to mend it."""
    what = header.misfit(length)
    if not what:
        return None
    name = shlex.quote(path.name)
    usual = f"printf '{''.join(f'{chr(92)}{byte}' for byte in Header().pack())}'"
    mended = f"{usual}; tail -c +{length + 1} {name}"
    if length == 16:
        mended = f"head -c 16 {name}; head -c 4 /dev/zero; tail -c +17 {name}"
    more = length - len(header.pack())
    message = f"the weights are {abs(more)} bytes too {'long' if more > 0 else 'short'}, and fit but for their header"
    return WeightsError(f"{message}: {what}", path, f"write it anew: ({mended}) > mended.weights")


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


def _check_values(
    layer: Layer, name: str, values: Array, path: Path, lenient: bool, below: list[tuple[Layer, int, float]]
) -> None:
    """Raises WeightsError for what gives no numbers, or warns if `lenient`; notes variances below zero that do."""
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK]
        bad = ~np.isfinite(block)
        what = "not a finite number"
        if not bad.any() and name.endswith("variance"):
            exact = np.float64 if isinstance(layer, Convolutional) else np.float32
            bad = np.add(block, BATCH_NORM_EPSILON, dtype=exact) <= 0
            what = "a negative variance, which gives no number"
            if (negative := (block < 0) & ~bad).any():
                below.append((layer, int(negative.sum()), float(block[negative].min())))
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


def _branches(layers: Sequence[Layer]) -> set[int]:
    """The layers with weights that give what a [shortcut] adds: those before it, through what has none."""
    found: set[int] = set()
    for layer in layers:
        place = layer.sources[0] if layer.name == "shortcut" else -1
        while place >= 0 and layers[place].name != "shortcut":
            if layers[layers[place].weights_of].weights():
                found.add(layers[place].weights_of)
                break
            place = next(iter(layers[place].sources), -1)
    return found


def random_arrays(layers: Sequence[Layer], seed: int) -> tuple[Arrays, ...]:
    """Weights that keep the activations of a deep network near 1, within float16: for tests and benchmarks, where no
    weights exist.

    A convolution keeps the size of what comes in. A [shortcut] adds a branch to what it began with, which doubles the
    squares if both are as large: of n such branches each is made smaller by sqrt(n), so that all together make the
    squares e times as large at most, not 2 ** n times.
    """
    generator = np.random.default_rng(seed)
    arrays: list[Arrays] = []
    branches, sums = _branches(layers), sum(layer.name == "shortcut" for layer in layers)
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
                if layer.index in branches:
                    values /= math.sqrt(sums)
            own[name] = values.astype(np.float32)
        arrays.append(_completed(layer, own))
    return tuple(arrays[layer.weights_of] for layer in layers)
