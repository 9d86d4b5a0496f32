"""Images, one after the other, through something that looks at each: here, or on workers elsewhere.

    Task      looks at images in their order: at each by itself, or with what it remembers of those before
    Work      opens a task, from files: what is sent to a worker, and opened there once
    Workers   those to whom a work's images are given, a few at a time: `dnc.evaluation.cluster`

What comes of it does not depend on who did it, or on how many there were, to the bit: each image gives the same result
wherever it is looked at, results come in the order of the images with their warnings and errors, and what is gathered
over all images (`Task.rest`) is whole numbers, lowest and highest ones, which can be added up in any order.

The next image is read while one is looked at.
"""

from __future__ import annotations

import itertools
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from dnc.errors import DncError, Heard, ImageError, listening, warn
from dnc.runtime.images import Pixels, read_content, read_image
from dnc.runtime.memory import States

__all__ = ["Each", "Outcome", "Part", "Picture", "Task", "Work", "Workers", "each", "part"]

_AHEAD = 2
"""Images in memory: one that is looked at, and one that is read."""


class Picture:
    """An image: a file, or what is in it."""

    def __init__(self, path: Path, content: bytes | None = None) -> None:
        self.path = path
        if content is not None:
            self.content = content

    @cached_property
    def content(self) -> bytes:
        """The file's bytes, kept from then on; raises ImageError as `read_content`."""
        return read_content(self.path)

    def pixels(self, channels: int, exif: bool | None) -> Pixels:
        """As `read_image`."""
        return read_image(vars(self).get("content", self.path), channels, exif=exif, where=self.path)


class Task(ABC):
    """Looks at images, in their order."""

    states: States
    """What the network remembers of the images so far."""

    @abstractmethod
    def read(self, picture: Picture) -> Any:
        """What `see` takes of an image; called ahead, in a thread of its own. Raises ImageError for an image that
        cannot be read."""

    @abstractmethod
    def see(self, read: Any) -> Any:
        """The result for an image. Raises DncError where there is none, and nothing can be said of later ones."""

    def rest(self) -> Any:
        """What is gathered over all images so far; None for most."""
        return None


class Work(ABC):
    """What opens a task. It is sent to workers, so that it can be pickled, and is small: all else is in files."""

    folder: Path
    """Where the files are; a worker has copies elsewhere."""
    files: tuple[str, ...]
    """Their names."""
    in_order: bool
    """Whether an image needs what the task remembers of the one before."""

    @abstractmethod
    def open(self, folder: Path, threads: int | None) -> Callable[[States], Task]:
        """Opens the files.

        Args:
            folder: where they are.
            threads: how many of them look at an image; as many as in one process if not given.

        Returns:
            What makes a task that begins with the given states (none are those before the first image). Tasks may be
            used in several threads, each in one.
        """


Each = Iterator[tuple[Picture, Callable[[], Any]]]
"""Each image, and what gives its result, once: it issues the image's warnings, and raises the task's errors."""


def each(task: Task, pictures: Iterable[Picture]) -> Each:
    """Looks at images here."""
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[tuple[Picture, Future[Outcome]]] = deque()
        rest = iter(pictures)
        try:
            while True:
                following = itertools.islice(rest, _AHEAD - len(waiting))
                waiting.extend((picture, pool.submit(_outcome, task.read, picture)) for picture in following)
                if not waiting:
                    return
                # Nothing of an image is held here while the caller has it.
                yield _seen(task, *waiting.popleft())
        finally:
            for _, future in waiting:
                future.cancel()


class Outcome(NamedTuple):
    """What a call gave, or what it raised; and its warnings."""

    value: Any
    error: DncError | None
    heard: Heard

    def give(self) -> Any:
        """Issues the warnings, and gives or raises the rest."""
        for warning, once in self.heard:
            warn(warning, once)
        if self.error is not None:
            raise self.error
        return self.value


def _outcome(function: Callable[..., Any], *arguments: Any) -> Outcome:
    with listening() as heard:
        try:
            return Outcome(function(*arguments), None, heard)
        except DncError as error:
            return Outcome(None, error, heard)


def _seen(task: Task, picture: Picture, read: Future[Outcome]) -> tuple[Picture, Callable[[], Any]]:
    return picture, lambda: task.see(read.result().give())


class Part(NamedTuple):
    """What came of some images that follow each other."""

    outcomes: list[Outcome]
    """Of each image, up to one after which nothing can be said."""
    rest: Any
    states: States


def part(task: Task, pictures: Sequence[Picture]) -> Part:
    """Looks at images for somebody else."""
    outcomes = []
    for _, result in each(task, pictures):
        outcomes.append(_outcome(result))
        error = outcomes[-1].error
        if error is not None and not isinstance(error, ImageError):
            break
    return Part(outcomes, task.rest(), task.states)


class Workers(ABC):
    """Those who look at images elsewhere."""

    @abstractmethod
    def each(self, work: Work, paths: Sequence[str | os.PathLike[str]], gather: Callable[[Any], None]) -> Each:
        """Has images looked at.

        Args:
            work: what is done with them.
            paths: the images.
            gather: is given each `Task.rest`.

        Raises:
            DncError: there is nobody who does it any more.
        """
