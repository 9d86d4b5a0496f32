"""A fork waits for what is at work; what begins meanwhile waits for the fork."""

from __future__ import annotations

import threading

import pytest

from dnc.runtime.forking import _AtWork
from tests.patience import until


def test_a_fork_waits_and_is_waited_for() -> None:
    at_work, begun, go_on = _AtWork(), threading.Event(), threading.Event()
    order: list[str] = []

    def work() -> None:
        with at_work, at_work:
            begun.set()
            go_on.wait()
            with at_work:
                order.append("work")

    def fork() -> None:
        at_work.before_fork()
        order.append("fork")

    def late() -> None:
        with at_work:
            order.append("late")

    threads = [threading.Thread(target=task, daemon=True) for task in (work, fork, late)]
    threads[0].start()
    begun.wait()
    threads[1].start()
    until(lambda: at_work._forking == 1)
    threads[2].start()
    assert order == []
    go_on.set()
    threads[1].join()
    assert order == ["work", "fork"]
    at_work.after_fork_in_parent()
    for thread in threads:
        thread.join()
    assert order == ["work", "fork", "late"]


def test_who_forks_at_work_waits_for_the_others_alone() -> None:
    at_work = _AtWork()
    with at_work:
        at_work.before_fork()
        at_work.after_fork_in_child()
    with at_work:
        pass
    assert at_work._working == 0


def test_work_that_fails() -> None:
    at_work = _AtWork()
    with pytest.raises(ValueError), at_work:
        raise ValueError
    at_work.before_fork()


def test_what_is_called_at_rest() -> None:
    at_work, order = _AtWork(), list[str]()
    at_work.at_rest(lambda: order.append("rest"))
    begun, go_on = threading.Event(), threading.Event()

    def work() -> None:
        with at_work:
            begun.set()
            go_on.wait()
            order.append("work")

    threads = [threading.Thread(target=task, daemon=True) for task in (work, at_work.before_fork)]
    threads[0].start()
    begun.wait()
    threads[1].start()
    until(lambda: at_work._forking == 1)
    go_on.set()
    for thread in threads:
        thread.join()
    assert order == ["work", "rest"]
