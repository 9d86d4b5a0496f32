"""The process in which the toolchain's libraries run: compiles a model to a blob, or computes its outputs.

    python child.py < request.json > reply.json

It imports nothing of dnc and may end in any way: the libraries abort on what they do not like, and the limits below end
what takes too long. The request:

    libraries   the folder with the libraries and plugins.xml
    model       an .onnx file
    device      "MYRIAD" or "CPU"
    config      {key: value} for the device's plugin
    blob        the file to write the compiled network to, and
    precisions  {input or output: "U8", "FP16" or "FP32"}: what it takes and gives (MYRIAD)
    feeds       {input: file with its float32 numbers}, and
    results     {output: file to write them to} (CPU)
    memory      bytes of address space

and the reply: {"peak": bytes of memory, "shapes": {output: [...]}}, or {"errno", "error"} where a file cannot be
written.

OpenVINO 2022.1's C interface hides why something failed. Its C++ interface throws, which nothing here can catch: the
runtime then prints the exception's message and aborts, so for the two calls that fail for a network's sake, reading and
loading, the C++ functions are called by their mangled names. That works because a handle of the C interface points to a
structure whose only member is the C++ object. Strings are those of the old ABI of libstdc++: a pointer to characters,
before which stand length, capacity and a reference count, here -1 for "not to be shared". Objects are returned in
memory of the caller's, whose address comes before the other arguments (Itanium C++ ABI).
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PRECISIONS = {"FP32": 10, "FP16": 11, "U8": 40}
_READ = "_ZNK15InferenceEngine4Core11ReadNetworkERKSsS2_"
_LOAD = "_ZN15InferenceEngine4Core11LoadNetworkERKNS_10CNNNetworkERKSsRKSt3mapISsSsSt4lessISsESaISt4pairIS4_SsEEE"
_OBJECT = 256
"""Bytes for a C++ object; the largest, a network, has less than 100."""


class _Config(ctypes.Structure):
    """A linked list of settings."""


_Config._fields_ = [("name", ctypes.c_char_p), ("value", ctypes.c_char_p), ("next", ctypes.POINTER(_Config))]


class _Dimensions(ctypes.Structure):
    """dimensions_t."""

    _fields_ = [("count", ctypes.c_size_t), ("sizes", ctypes.c_size_t * 8)]


class _String:
    """A std::string of the old ABI."""

    def __init__(self, text: str) -> None:
        data = os.fsencode(text)
        header = struct.pack("<QQi4x", len(data), len(data), -1)
        self._memory = ctypes.create_string_buffer(header + data + b"\0")
        self._pointer = ctypes.c_void_p(ctypes.addressof(self._memory) + len(header))

    @property
    def reference(self) -> Any:
        """The pointer that a `const std::string&` is."""
        return ctypes.byref(self._pointer)


def _empty_map() -> Any:
    """A std::map without elements: a red-black tree whose header is its own leftmost and rightmost node."""
    memory = ctypes.create_string_buffer(48)
    header = ctypes.addressof(memory) + 8
    struct.pack_into("<QiiQQQQ", memory, 0, 0, 0, 0, 0, header, header, 0)
    return memory


class _Engine:
    """The libraries, and a core that knows the plugins of plugins.xml."""

    def __init__(self, folder: Path) -> None:
        # The Myriad plugin asks for libusb by a name that the wheel's file does not have; one that is loaded serves it.
        usb = folder / "libusb-1.0.so.0"
        if usb.exists():
            ctypes.CDLL(str(usb), mode=ctypes.RTLD_GLOBAL)
        self.cpp = ctypes.CDLL(str(folder / "libopenvino.so"), mode=ctypes.RTLD_GLOBAL)
        self.c = ctypes.CDLL(str(folder / "libopenvino_c.so"))
        self.core = ctypes.c_void_p()
        self.call("ie_core_create", os.fsencode(folder / "plugins.xml"), ctypes.byref(self.core))

    def call(self, name: str, *arguments: Any) -> None:
        """Calls a function of the C interface; ends the process where it fails."""
        status = getattr(self.c, name)(*arguments)
        if status:
            raise SystemExit(f"{name} failed with status {status}")

    def configure(self, device: str, config: dict[str, str]) -> None:
        """Settings of a plugin."""
        first = None
        for name, value in config.items():
            first = _Config(name.encode(), value.encode(), ctypes.pointer(first) if first else None)
        if first is not None:
            self.call("ie_core_set_config", self.core, ctypes.byref(first), device.encode())

    def read(self, model: str) -> Any:
        """A network."""
        network = ctypes.create_string_buffer(_OBJECT)
        read = getattr(self.cpp, _READ)
        read.restype = None
        path, weights = _String(model), _String("")
        read(network, self.core, path.reference, weights.reference)
        return network

    def load(self, network: Any, device: str) -> Any:
        """The network, compiled for a device."""
        executable = ctypes.create_string_buffer(_OBJECT)
        load = getattr(self.cpp, _LOAD)
        load.restype = None
        name, config = _String(device), _empty_map()
        load(executable, self.core, network, name.reference, config)
        return executable

    def names(self, network: Any, side: str) -> list[str]:
        """The names of the inputs or outputs."""
        count = ctypes.c_size_t()
        self.call(f"ie_network_get_{side}s_number", network, ctypes.byref(count))
        names = []
        for number in range(count.value):
            name = ctypes.c_char_p()
            self.call(f"ie_network_get_{side}_name", network, ctypes.c_size_t(number), ctypes.byref(name))
            names.append(os.fsdecode(name.value or b""))
        return names

    def infer(self, executable: Any, feeds: dict[str, str], results: dict[str, str]) -> dict[str, list[int]]:
        """Runs once, from files to files; returns the shapes of the outputs."""
        request = ctypes.c_void_p()
        self.call("ie_exec_network_create_infer_request", executable, ctypes.byref(request))
        for name, file in feeds.items():
            data = Path(file).read_bytes()
            memory, _ = self._blob(request, name, len(data))
            ctypes.memmove(memory, data, len(data))
        self.call("ie_infer_request_infer", request)
        shapes = {}
        for name, file in results.items():
            memory, shapes[name] = self._blob(request, name, None)
            Path(file).write_bytes(memory)
        return shapes

    def _blob(self, request: Any, name: str, size: int | None) -> tuple[Any, list[int]]:
        blob, memory, length, dimensions = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_int(), _Dimensions()
        self.call("ie_infer_request_get_blob", request, os.fsencode(name), ctypes.byref(blob))
        self.call("ie_blob_get_buffer", blob, ctypes.byref(memory))
        self.call("ie_blob_byte_size", blob, ctypes.byref(length))
        self.call("ie_blob_get_dims", blob, ctypes.byref(dimensions))
        if size not in (None, length.value):
            raise SystemExit(f"input {name} takes {length.value} bytes, not {size}")
        return (ctypes.c_char * length.value).from_address(memory.value or 0), list(
            dimensions.sizes[: dimensions.count]
        )


def _through_memory(write: Callable[[str], None], file: str) -> None:
    """Writes a file by way of memory: the libraries do not notice that a disk is full."""
    descriptor = os.memfd_create("dnc")
    write(f"/proc/self/fd/{descriptor}")
    with os.fdopen(descriptor, "rb") as memory:
        Path(file).write_bytes(memory.read())


def _run(request: dict[str, Any]) -> dict[str, Any]:
    engine = _Engine(Path(request["libraries"]))
    device = request["device"]
    engine.configure(device, request["config"])
    network = engine.read(request["model"])
    for side in ("input", "output"):
        for name in engine.names(network, side):
            if "precisions" in request:
                precision = _PRECISIONS[request["precisions"][name]]
                engine.call(f"ie_network_set_{side}_precision", network, os.fsencode(name), precision)
    executable = engine.load(network, device)
    shapes: dict[str, list[int]] = {}
    if request.get("blob"):
        _through_memory(
            lambda path: engine.call("ie_core_export_network", executable, os.fsencode(path)), request["blob"]
        )
    if request.get("results"):
        shapes = engine.infer(executable, request["feeds"], request["results"])
    return {"peak": _peak(), "shapes": shapes}


def _peak() -> int:
    # Not getrusage, which counts what the parent had when it forked.
    match = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    return int(match[1]) * 1024 if match else 0


_SET_PDEATHSIG = 1


def _main() -> None:
    # Nobody waits for the result any more when the parent is gone.
    ctypes.CDLL(None).prctl(_SET_PDEATHSIG, signal.SIGKILL)
    request = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (request["memory"], resource.getrlimit(resource.RLIMIT_AS)[1]))
    try:
        reply = _run(request)
    except OSError as error:
        reply = {"errno": error.errno, "error": error.strerror or str(error)}
    json.dump(reply, sys.stdout)
    sys.stdout.flush()
    # Without the libraries' own ending, which waits for devices.
    os._exit(0)


if __name__ == "__main__":
    _main()
