"""Whether a GPU computes what Darknet does: each network of tests/golden/, by single kernels and by CUDA graphs.

    python -m benchmarks.gpu --check [--sanitizer]

Compared are the heads, with the kernels that are the default and with `kernels=new`: the largest difference by the
largest value, of each network once in each precision. Two runs must be equal to the bit, and so must the two ways to
launch. With --sanitizer a dozen networks run under compute-sanitizer instead, for memory and for races.

Engines are built by many processes, and kept in the folder; a process of its own runs them, and another one goes on
where a kernel has ended it. `python -m benchmarks.gpu.checking build|run FOLDER …` is either process.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["check"]

BOUNDS = {"fp32": 1e-5, "tf32": 1e-2, "fp16": 5e-3}
"""Sums of float32 in another order; 11 bits of factors; float16 between layers."""
KINDS = ("measured", "new")
SANITIZED = 12
"""Networks that run under compute-sanitizer, spread over all."""


def check(folder: Path, networks: Sequence[str], arch: str, *, sanitizer: bool, tell: Callable[[str], None]) -> int:
    """Builds what is not there, runs all, prints a line for each that is off; the number of those.

    Args:
        networks: of tests/golden/; all if empty.
    """
    from tests import goldens

    folder = (folder / "golden").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    cases = [
        f"{name}.{precision}.{kind}" for kind in KINDS for precision in BOUNDS for name in networks or goldens.MICRO
    ]
    count = max(1, len(os.sched_getaffinity(0)) - 1)
    tell(f"building {len(cases)} engines")
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(lambda part: _child("build", folder, cases[part::count], [f"--arch={arch}"]), range(count)))
    if sanitizer:
        chosen = cases[:: max(1, len(cases) // SANITIZED)]
        return sum(_sanitized(tool, folder, chosen, tell) for tool in ("memcheck", "racecheck"))
    results = folder / "results.jsonl"
    results.unlink(missing_ok=True)
    todo = list(cases)
    while todo:
        _child("run", folder, todo)
        done = {row["case"] for row in _read(results)}
        todo = [case for case in todo if case not in done]
        if todo:
            # The first that is not there ended the process.
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"case": todo.pop(0), "wrong": "it ended the process"}) + "\n")
    return _report(_read(results))


def _report(rows: Sequence[dict[str, Any]]) -> int:
    """Prints what is off, and the largest differences."""
    off = 0
    for precision, bound in BOUNDS.items():
        for kind in KINDS:
            own = [row for row in rows if row["case"].endswith(f".{precision}.{kind}")]
            wrong = [row for row in own if "wrong" in row or not row["off"] <= bound or not row["same"]]
            right = [row["off"] for row in own if row not in wrong]
            print(
                f"{precision} {kind}: {len(right)} of {len(own)} within {bound:g}, at most {max(right, default=0):.1e}"
            )
            for row in wrong:
                said = row.get("wrong") or f"off by {row['off']:.2e}, repeats equal: {row['same']}"
                print(f"  {row['case']}: {said}")
            off += len(wrong)
    return off


def _sanitized(tool: str, folder: Path, cases: Sequence[str], tell: Callable[[str], None]) -> int:
    """How many of them compute-sanitizer complains about."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    complaints = 0
    for case in cases:
        tell(f"{tool} {case}")
        command = [program, "--tool", tool, "--error-exitcode", "9", *_command("run", folder, [case])]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            complaints += 1
            print(f"{tool} {case}: {' '.join(done.stdout.splitlines()[-3:])}")
    print(f"{tool}: {len(cases) - complaints} of {len(cases)} clean")
    return complaints


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def _command(what: str, folder: Path, cases: Sequence[str], more: Sequence[str] = ()) -> list[str]:
    return [sys.executable, "-m", "benchmarks.gpu.checking", what, str(folder), *more, *cases]


def _child(what: str, folder: Path, cases: Sequence[str], more: Sequence[str] = ()) -> None:
    # What it could not do is missing among the results.
    subprocess.run(_command(what, folder, cases, more), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _build(folder: Path, arch: str, cases: Sequence[str]) -> None:
    import dnc
    from dnc.errors import DncError
    from tests import goldens

    for case in cases:
        name, precision, kind = case.rsplit(".", 2)
        if (folder / case).exists():
            continue
        work = folder / f"{case}.cfg"
        work.mkdir(exist_ok=True)
        cfg, weights = goldens.micro(name).write(work)
        options = {"backend": "tvm", "kernels": kind, **({"arch": arch} if arch else {})}
        try:
            dnc.compile(
                cfg,
                weights,
                out=folder / case,
                target="cuda",
                precision=precision,
                batch=1,
                options=options,
                verify=False,
            )
        except DncError as error:
            (work / "wrong").write_text(str(error), encoding="utf-8")


def _run(folder: Path, cases: Sequence[str]) -> None:
    import dnc
    from dnc.errors import DncError
    from tests import goldens

    for case in cases:
        golden = goldens.micro(case.rsplit(".", 2)[0])
        row: dict[str, Any] = {"case": case}
        refused = folder / f"{case}.cfg" / "wrong"
        try:
            if refused.is_file():
                raise DncError(refused.read_text(encoding="utf-8"))
            found = {}
            for graphs in ("off", "on"):
                with dnc.load(folder / case, graphs=graphs) as engine:
                    names = engine.manifest.outputs
                    found[graphs] = engine.forward(golden.input[None])
                    again = engine.forward(golden.input[None])
                    same = all(np.array_equal(a, b, equal_nan=True) for a, b in zip(found[graphs], again, strict=True))
                    row["same"] = row.get("same", True) and same
            pairs = zip(found["off"], found["on"], strict=True)
            row["same"] &= all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)
            outputs = dict(zip((int(name.removeprefix("layer")) for name in names), found["on"], strict=True))
            differences = [
                goldens.difference(y[0], golden.layers[index].reshape(y[0].shape))
                for index, y in outputs.items()
                if (golden.name, index) not in goldens.INVERTED and golden.layers[index].size == y[0].size
            ]
            row["off"] = max(differences, default=0.0)
        except (DncError, AssertionError, ValueError) as error:
            row["wrong"] = (str(error).splitlines() or ["?"])[0]
        with (folder / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    kind, place, *rest = sys.argv[1:]
    if kind == "build":
        _build(Path(place), rest[0].removeprefix("--arch="), rest[1:])
    else:
        _run(Path(place), rest)
