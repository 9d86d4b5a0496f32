"""The loop of a process that answers requests: the other end of `dnc.targets.cuda.process.Child`.

Both ways go lines of JSON, [number, request] and [number, reply]. Before the reply to a request there may be lines
[number, {"stage": ...}], that say what happens now. A reply may be {"error", "where", "hint"}. What libraries print
goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dnc.errors import TargetError

__all__ = ["Answer", "serve"]

Answer = Callable[[dict[str, Any]], dict[str, Any]]
"""The reply to a request; raises TargetError if something is refused."""


def serve(start: Callable[[Callable[[str], None]], Answer], threads: int = 1) -> None:
    """Answers until there are no more requests.

    Args:
        start: gives what answers; it may tell what happens now.
        threads: how many requests are answered at once.
    """
    lock = threading.Lock()
    current = threading.local()
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as replies, ThreadPoolExecutor(threads) as pool:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

        def say(line: dict[str, Any]) -> None:
            with lock:
                replies.write(json.dumps([current.number, line]) + "\n")
                replies.flush()

        answer = start(lambda stage: say({"stage": stage}))

        def reply(number: int, request: dict[str, Any]) -> None:
            current.number = number
            try:
                say(answer(request))
            except TargetError as error:
                where = None if error.where is None else str(error.where)
                say({"error": error.message, "where": where, "hint": error.hint})
            except BaseException:
                # A bug, or nobody reads any more: the process ends, and its last words are told.
                traceback.print_exc()
                os._exit(1)

        for line in sys.stdin:
            number, request = json.loads(line)
            # A thread of its own always: what CUDA and TVM keep, they keep by thread.
            pool.submit(reply, number, request)
