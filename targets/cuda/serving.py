"""The loop of a process that answers requests, each a line of JSON: the other end of `dnc.targets.cuda.process.Child`.

Before the reply to a request there may be lines {"stage": ...}, that say what happens now. A reply may be {"error",
"where", "hint"}. What libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from dnc.errors import TargetError

__all__ = ["Answer", "serve"]

Answer = Callable[[dict[str, Any]], dict[str, Any]]
"""The reply to a request; raises TargetError if something is refused."""


def serve(start: Callable[[Callable[[str], None]], Answer]) -> None:
    """Answers until there are no more requests.

    Args:
        start: gives what answers; it may tell what happens now.
    """
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as replies:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

        def say(line: dict[str, Any]) -> None:
            replies.write(json.dumps(line) + "\n")
            replies.flush()

        answer = start(lambda stage: say({"stage": stage}))
        for line in sys.stdin:
            try:
                say(answer(json.loads(line)))
            except TargetError as error:
                where = None if error.where is None else str(error.where)
                say({"error": error.message, "where": where, "hint": error.hint})
