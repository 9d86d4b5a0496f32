"""Engines of target tvm on a device behind TVM's RPC (`dnc.targets.tvm.remote`), as `dnc bench --remote` times them.

model.so is sent to the device anew for each opening. The device takes the time itself, so that the network between does
not count: what is reported of a call is the mean of some milliseconds of calls; of a batch of no fixed size, of which
each image runs by itself, as often as there are images. Start-up, memory and energy are not measured. The yardstick
runs here, where the engines do not: recordings of devices cannot be compared with `--diff`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dnc.bench.subject import Subject, feeds
from dnc.errors import TargetError
from dnc.runtime.runners.tvm.session import MODEL, MODEL_JSON
from dnc.runtime.timing import Run
from dnc.targets.tvm.remote import Device

__all__ = ["RemoteSubject"]


@dataclass
class RemoteSubject(Subject):
    """An engine folder to time on a device.

    Raises:
        TargetError: it is no engine of target tvm, or its code is for another architecture.
    """

    device: Device | None = None
    _description: dict[str, Any] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.manifest.target != "tvm":
            what = f"--remote runs engines of target tvm, and this is one of target {self.manifest.target}"
            raise TargetError(what, self.folder, "dnc compile --target tvm, with --option triple=… for another machine")
        try:
            self._description = json.loads((self.folder / MODEL_JSON).read_text(encoding="utf-8"))
            self._names = [input["name"] for input in self._description["inputs"]]
            self._machine = f"{self._description['triple']} {self._description['mcpu']}"
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise TargetError(f"cannot read {MODEL_JSON}: {error}", self.folder, "build the engine again") from error

    @contextmanager
    def open(self) -> Iterator[Run]:
        """Loads the library on the device; the function gives seconds."""
        assert self.device is not None
        module = self.device.load(self.folder / MODEL, self._machine)
        images = 1 if isinstance(self.manifest.batch, int) else self.batch
        given = self.feeds if images == 1 else feeds(self.manifest, 1)
        run, _ = self.device.network(module, [np.ascontiguousarray(given[name]) for name in self._names])
        yield lambda: images * run()
