"""Arrays in the memory of a GPU: engines take them where they lie, and leave their outputs there if that is asked for.

PyTorch, CuPy, JAX and others exchange such arrays by DLPack (`__dlpack__`), Numba by `__cuda_array_interface__`; both
say on which stream of CUDA their numbers are computed. Engines read and write on the legacy default stream. So whoever
gives an array makes that stream wait for its own, and who takes one has its stream wait for that one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from dnc.errors import DncError
from dnc.typing import Array

__all__ = ["LEGACY", "DeviceArray", "Lent", "borrow", "is_on_device", "shape_there"]

LEGACY = 1
"""How both protocols call CUDA's legacy default stream."""
_CUDA = 2
"""DLPack's type of device."""
_KINDS = {0: "i", 1: "u", 2: "f", 6: "b"}
"""DLPack's types of numbers that numpy has as well."""
_UNTOLD = (AttributeError, BufferError, TypeError, ValueError, LookupError, RuntimeError)
"""What is raised where an owner does not say what the protocols ask for."""


class DeviceArray:
    """An output that stays in the memory of a GPU: `torch.from_dlpack(x)`, `cupy.asarray(x)`, `numpy.asarray(x)`.

    Its memory is used again when the last of those that share it is no more; whoever reads it on a stream of their own
    keeps it until then.

    Args:
        tensor: what has the memory, and exports it by DLPack.
        address: of the first number; they lie in C order, without gaps.
        device: the number of the GPU.
        wait: makes a stream, by its number, wait until the numbers are there.
        fetch: copies them into memory of the host.
    """

    def __init__(
        self,
        tensor: Any,
        address: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        device: int,
        wait: Callable[[int], None],
        fetch: Callable[[], Array],
    ) -> None:
        self.shape, self.dtype, self.device = shape, dtype, device
        self._tensor, self._address, self._wait, self._fetch = tensor, address, wait, fetch

    def __repr__(self) -> str:
        return f"<dnc.DeviceArray {self.shape} of {self.dtype} on GPU {self.device}>"

    @property
    def ndim(self) -> int:
        """How many axes it has."""
        return len(self.shape)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self._address, False),
            "strides": None,
            "version": 3,
            "stream": LEGACY,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CUDA, self.device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError("it is given where it lies, without a copy; numpy() makes one on the host")
        # Nothing is the legacy stream, and -1 asks not to wait.
        if stream not in (None, -1, LEGACY):
            self._wait(int(stream))
        return self._tensor.__dlpack__()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("it is in the memory of a GPU: there is no array of numpy's without a copy")
        return self.numpy() if dtype is None else self.numpy().astype(dtype)

    def numpy(self) -> Array:
        """A copy in memory of the host."""
        return self._fetch()


class Lent(NamedTuple):
    """An array of somebody else's in the memory of a GPU, in C order."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    device: int | None
    """The number of the GPU, where that is told."""
    owner: Any
    """What keeps the memory."""
    capsule: bool
    """Whether `owner` exports it by DLPack, once."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    @property
    def ndim(self) -> int:
        """How many axes it has."""
        return len(self.shape)


def is_on_device(value: object) -> bool:
    """Whether it is an array in the memory of an NVIDIA GPU."""
    told = getattr(value, "__dlpack_device__", None)
    if told is not None:
        return bool(told()[0] == _CUDA)
    return hasattr(value, "__cuda_array_interface__")


def shape_there(value: Any) -> tuple[int, ...]:
    """The shape of an array of which `is_on_device` is true; neither protocol asks for an attribute of that name.

    Raises:
        DncError: its owner does not tell it.
    """
    shape = getattr(value, "shape", None)
    try:
        if shape is None:
            told = getattr(value, "__cuda_array_interface__", None)
            shape = told["shape"] if told is not None else _described(value.__dlpack__(stream=LEGACY)).shape
        return tuple(int(side) for side in shape)
    except _UNTOLD as error:
        raise _cannot_take(error) from error


def borrow(value: Any, wait_for: Callable[[int], None]) -> Lent:
    """An array of which `is_on_device` is true, whose numbers will be there for the legacy default stream.

    Args:
        wait_for: makes that stream wait for another one, by its number.

    Raises:
        DncError: its numbers do not lie one behind the other, are of a type that numpy has not, or its owner does not
            give it.
    """
    try:
        if hasattr(value, "__dlpack__"):
            capsule = value.__dlpack__(stream=LEGACY)
            lent = _described(capsule)
        else:
            told = value.__cuda_array_interface__
            dtype = np.dtype(told["typestr"])
            shape = tuple(int(side) for side in told["shape"])
            strides = told.get("strides")
            _check_order(shape, strides and [step // dtype.itemsize for step in strides])
            lent = Lent(int(told["data"][0] or 0), shape, dtype, None, value, False)
            if told.get("stream") not in (None, LEGACY):
                wait_for(int(told["stream"]))
    except _UNTOLD as error:
        raise _cannot_take(error) from error
    return lent


def _cannot_take(error: Exception) -> DncError:
    return DncError(f"the array on the GPU cannot be taken: {error}", hint="PyTorch: x.detach().contiguous()")


def _check_order(shape: tuple[int, ...], strides: Any) -> None:
    """Raises ValueError if numbers do not lie in C order, without gaps; strides count numbers."""
    wanted = 1
    for side, step in zip(reversed(shape), reversed(strides or ()), strict=False):
        if side > 1 and step != wanted:
            raise ValueError("its numbers do not lie one behind the other")
        wanted *= side


class _Tensor(ctypes.Structure):
    """DLPack's DLTensor, with which a DLManagedTensor begins."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("offset", ctypes.c_uint64),
    )


_NAME = b"dltensor"
_pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def _described(capsule: Any) -> Lent:
    """What a capsule holds, which goes on to hold it."""
    tensor = ctypes.cast(_pointer_of(capsule, _NAME), ctypes.POINTER(_Tensor)).contents
    if tensor.device_type != _CUDA:
        raise ValueError("it is not in the memory of a CUDA device")
    if tensor.lanes != 1 or tensor.code not in _KINDS:
        raise ValueError("numpy has no such type of numbers")
    shape = tuple(tensor.shape[: tensor.ndim])
    _check_order(shape, tensor.strides[: tensor.ndim] if tensor.strides else None)
    dtype = np.dtype(f"{_KINDS[tensor.code]}{tensor.bits // 8}")
    return Lent(
        (tensor.data or 0) + tensor.offset, shape, dtype, tensor.device, _Exporter(capsule, tensor.device), True
    )


class _Exporter:
    """Gives a capsule away, once."""

    def __init__(self, capsule: Any, device: int) -> None:
        self._capsule, self._device = capsule, device

    def __dlpack__(self, **_: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CUDA, self._device
