"""Opens an engine in a fresh process and says how long that took and how much memory: `python -m dnc.bench.child`.

    arguments   FOLDER INPUTS.npz THREADS RUNS
    stdout      one line of JSON: seconds of importing the runtime, of loading and opening the engine, of the first
                result, and of the runs after it; peak memory in bytes; the device

Only the runtime's modules are imported, as in an application that embeds the engine.
"""

from __future__ import annotations

import sys
import time

__all__: list[str] = []


def _memory() -> int | None:
    """Bytes that this process held at most; None where the system does not say, as Windows.

    The maximum that getrusage gives would not do: of a process that was started by a large one, it is that one's.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as file:  # noqa: PTH123
            return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM:"))
    except (OSError, StopIteration, ValueError):
        try:
            import resource
        except ImportError:
            return None
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most << 10


def main() -> None:
    """See the module."""
    folder, inputs, threads, runs = sys.argv[1:]
    start = time.perf_counter()
    from dnc.runtime.engine import load

    imported = time.perf_counter()
    import numpy as np

    with np.load(inputs) as file:
        feeds = dict(file)
    ready = time.perf_counter()
    session = load(folder, threads=int(threads)).session
    opened = time.perf_counter()
    session.run(feeds)
    first = time.perf_counter()
    for _ in range(int(runs) - 1):
        session.run(feeds)
    last = time.perf_counter()

    import json

    seconds = {"import": imported - start, "open": opened - ready, "first": first - opened, "rest": last - first}
    print(json.dumps({**seconds, "memory": _memory(), "device": session.device}))


if __name__ == "__main__":
    main()
