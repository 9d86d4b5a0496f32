"""Runs what target `myriad` compiled, where there is no device: on the CPU plugin of its toolchain."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, NamedTuple

from dnc.errors import TargetError, warn
from dnc.files.reading import read_json
from dnc.runtime.runners import Runner, Session, runners
from dnc.runtime.runners.myriad import toolchain
from dnc.runtime.runners.myriad.pixels import IMAGE, Pixels
from dnc.runtime.runners.myriad.process import Job, infer
from dnc.typing import Array

__all__ = ["BLOB", "MODEL", "MODEL_JSON", "Description", "MyriadRunner", "read_description"]

BLOB, MODEL, MODEL_JSON = "model.blob", "model.onnx", "model.json"
_NAME = "myriad"


class Description(NamedTuple):
    """What model.json says."""

    tensors: Mapping[str, str]
    """For each output of the network the name of the blob's tensor."""
    pixels: Pixels | None
    """What makes the network's image of bytes; None where it takes no bytes."""
    color: str | None
    """The order of the channels of its image: bgr or rgb; None if it has fewer than two, or takes no bytes."""


def read_description(folder: Path) -> Description:
    """Reads model.json of an engine folder; raises TargetError if it is not what target `myriad` writes."""
    try:
        description = read_json(folder / MODEL_JSON)
        tensors = {output["name"]: output["tensor"] for output in description["outputs"]}
        given, color = description["pixels"], description["color"]
        pixels = None if given is None else Pixels(*(tuple(given[key]) for key in Pixels._fields))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise TargetError(f"cannot read {MODEL_JSON}: {error}", folder, "build the engine again") from error
    return Description(tensors, pixels, color)


class PluginSession(Session):
    """The toolchain's CPU plugin, in a process of its own for each run."""

    device = "CPU plugin of the Myriad X toolchain"

    def __init__(self, folder: Path) -> None:
        self._outputs, self._pixels, _ = read_description(folder)
        self._model = folder / MODEL

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """The outputs in the model's order. An image is rounded to bytes first, as the device takes it."""
        feeds = dict(inputs)
        if self._pixels is not None:
            feeds[IMAGE] = self._pixels.bytes_of(feeds[IMAGE])
        job = Job(toolchain.folder(_NAME), self._model)
        with self.opening():
            return list(infer(job, feeds, self._outputs).values())


@runners.register
class MyriadRunner(Runner):
    """The toolchain's CPU plugin."""

    name: ClassVar[str] = _NAME
    extra: ClassVar[str] = _NAME

    def missing(self) -> str:
        """Nothing to compile with; what running takes, `open` says."""
        return ""

    def remedy(self) -> str:
        return "`dnc toolchain install myriad` fetches it (40 MB) into your cache"

    def open(self, folder: Path, threads: int | None = None) -> Session:
        """A session on the CPU plugin, with a warning that it is no device. The plugin chooses its threads itself.
        Raises TargetError if there is no toolchain."""
        if toolchain.missing(_NAME):
            hint = f"on a device, load {BLOB} with DepthAI: dai.OpenVINO.Blob(path); here, {self.remedy()}"
            raise TargetError(f"running a Myriad X engine needs a device, or {toolchain.missing(_NAME)}", folder, hint)
        warn(TargetError("no Myriad X: running on the toolchain's CPU plugin", folder, f"a device loads {BLOB}"))
        return PluginSession(folder)
