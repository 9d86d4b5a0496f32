"""Functions that are no list of stages of known form: their loops as TVM wrote them, shared among the threads, and
vectorized where the last of them computes one element each time and its extent is a multiple of a vector."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import s_tir, tirx

from dnc.targets.tvm.schedules.machine import Machine

__all__ = ["fallback"]


def fallback(function: Any, machine: Machine) -> tuple[Any, str]:
    """The function, and what was done with it."""
    if not isinstance(function.body, s_tir.SBlockRealize):
        return function, "as it is"
    schedule = s_tir.Schedule(tvm.IRModule({"main": function}))
    root = schedule.get_sblock("root")
    done = set()
    for block in schedule.get_child_blocks(root):
        try:
            done |= _schedule(schedule, block, machine)
        except s_tir.ScheduleError:
            # A loop that carries something from one turn to the next.
            continue
    return schedule.mod["main"].with_attrs(dict(function.attrs or {})), ", ".join(sorted(done)) or "as it is"


def _schedule(schedule: Any, block: Any, machine: Machine) -> set[str]:
    kinds = [variable.iter_type for variable in schedule.get(block).iter_vars]
    loops = schedule.get_loops(block)
    if not loops or len(loops) != len(kinds):
        return set()
    free = next((place for place, kind in enumerate(kinds) if kind != tirx.IterVar.DataPar), len(kinds))
    done = set()
    last = schedule.get(loops[-1]).extent
    if free == len(kinds) > 1 and isinstance(last, tirx.IntImm) and int(last) % machine.lanes == 0:
        loops[-1], inner = schedule.split(loops[-1], [None, machine.lanes])
        schedule.vectorize(inner)
        done.add("vectorized")
    if free:
        schedule.parallel(schedule.fuse(*loops[:free]))
        done.add("parallel")
    return done
