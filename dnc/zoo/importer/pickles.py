"""A pickle read as data: a machine for those of its instructions that a state_dict takes, of which none runs anything.

pickletools takes the instructions apart; what they make is here: None, numbers, text, bytes, lists, tuples, dicts, and
what a table gives for a name. Whatever a pickle says, its work is bounded:

    instructions   a number of them; pickletools reads no argument that is longer than the pickle
    keys of dicts  text, bytes, numbers, None: nothing whose hash walks through tuples within tuples
    sets           lists, which are enough for what nobody reads, and which hash nothing
    functions      what they are given is counted as instructions, so that none copies one list again and again
    numbers        127 bits, which are enough for torch's magic number; nobody multiplies longer ones
    values         may be deep or shared without end: who walks through them must keep in mind where it was
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from dnc.errors import WeightsError

__all__ = ["Budget", "Function", "State", "unpickle"]

_DAMAGED = "the file is cut off or damaged; fetch it again"
_KEYS = (str, bytes, int, float, type(None))
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
_TEXTS = (
    "UNICODE",
    "BINUNICODE",
    "BINUNICODE8",
    "SHORT_BINUNICODE",
    "STRING",
    "BINBYTES",
    "BINBYTES8",
    "SHORT_BINBYTES",
)
_LITERALS = frozenset((*_NUMBERS, *_TEXTS))
_EMPTY: dict[str, Callable[[], object]] = {
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Budget:
    """How many instructions may still be read, of one pickle or of several."""

    def __init__(self, instructions: int) -> None:
        self.instructions = self.left = instructions

    def spend(self, instructions: int) -> None:
        """Takes some off; raises _Unbounded where fewer are left."""
        self.left -= instructions
        if self.left < 0:
            raise _Unbounded(f"{self.instructions:,}")


class Function:
    """What a name stands for that a pickle may call."""

    def __init__(self, call: Callable[..., object]) -> None:
        self.call = call


class State(dict[Any, Any]):
    """An OrderedDict, whose attributes (`_metadata`) are passed over."""


class _Damage(Exception):
    """The instructions make no sense; in words."""


class _Machine:
    def __init__(
        self, names: Callable[[str, str], object], storage: Callable[[object], object], budget: Budget
    ) -> None:
        self._names, self._storage, self._budget = names, storage, budget
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, object] = {}

    def step(self, name: str, argument: Any) -> None:
        """Executes one instruction; raises _Damage, or IndexError where the stack has too little."""
        stack = self._stack
        if name in _LITERALS:
            if isinstance(argument, int) and argument.bit_length() > 127:
                raise _Damage("a number of more than 127 bits")
            stack.append(argument)
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            if argument not in self._memo:
                raise _Damage(f"it has no object {argument}")
            stack.append(self._memo[argument])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self._memo[len(self._memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name == "MARK":
            self._marks.append(stack)
            self._stack = []
        elif name in _TUPLES:
            items = stack[-_TUPLES[name] :]
            if len(items) < _TUPLES[name]:
                raise _Damage("too few values for a tuple")
            stack[-len(items) :] = [tuple(items)]
        elif name == "TUPLE":
            self._push(tuple(self._marked()))
        elif name in ("LIST", "FROZENSET"):
            self._push(self._marked())
        elif name == "DICT":
            self._push(_filled({}, self._marked()))
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "APPEND":
            item = stack.pop()
            self._top(list).append(item)
        elif name in ("APPENDS", "ADDITEMS"):
            marked = self._marked()
            self._top(list).extend(marked)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._marked() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            _filled(self._top(dict), items)
        elif name in ("BINSTRING", "SHORT_BINSTRING"):
            # Bytes of Python 2.
            stack.append(argument.encode("latin-1").decode("utf-8"))
        elif name in ("GLOBAL", "INST"):
            value = self._names(*argument.split(" ", 1))
            if name == "INST":
                raise _Damage("it makes an instance")
            stack.append(value)
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            if not isinstance(attribute, str) or not isinstance(module, str):
                raise _Damage("a name is no text")
            stack.append(self._names(module, attribute))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(self._called(function, arguments))
        elif name == "BUILD":
            stack.pop()
            self._top(State)
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name == "PERSID":
            stack.append(self._storage(argument))
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "POP":
            if stack:
                stack.pop()
            else:
                self._marked()
        elif name == "POP_MARK":
            self._marked()
        elif name not in ("PROTO", "FRAME"):
            raise _Unknown(name)

    def result(self) -> object:
        """What STOP finds."""
        return self._stack.pop()

    def _push(self, value: object) -> None:
        # After _marked, which changes the stack.
        self._stack.append(value)

    def _marked(self) -> list[Any]:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _called(self, function: object, arguments: object) -> object:
        if not isinstance(function, Function) or not isinstance(arguments, tuple):
            raise _Damage("it calls what is no function")
        self._budget.spend(sum(len(item) for item in (arguments, *arguments) if isinstance(item, list | tuple)))
        try:
            return function.call(*arguments)
        except (TypeError, ValueError) as error:
            raise _Damage(f"{type(error).__name__} in a call") from error

    def _top(self, kind: type[Any]) -> Any:
        value = self._stack[-1]
        if not isinstance(value, kind):
            raise _Damage(f"it changes what is no {kind.__name__.lower()}")
        return value


class _Unknown(Exception):
    """An instruction that no state_dict takes, by its name."""


class _Unbounded(Exception):
    """More instructions than this number."""


def _filled(items: dict[Any, Any], flat: Sequence[Any]) -> dict[Any, Any]:
    keys, values = flat[::2], flat[1::2]
    if len(keys) != len(values):
        raise _Damage("a key has no value")
    for key in keys:
        if not isinstance(key, _KEYS):
            raise _Damage("a key is neither text nor a number")
    items.update(zip(keys, values, strict=True))
    return items


def unpickle(
    file: IO[bytes],
    path: Path,
    names: Callable[[str, str], object],
    storage: Callable[[object], object],
    budget: Budget,
    hint: str,
) -> object:
    """The object of the pickle that starts where the file stands; leaves the file after it.

    Args:
        file: the bytes; no more than these are ever held.
        path: for messages.
        names: gives what a module's name stands for; refuses others by a WeightsError.
        storage: gives what a persistent id stands for, likewise.
        budget: instructions that are left; those read are taken off.
        hint: on what to do about a pickle of other things.

    Raises:
        WeightsError: the pickle is damaged, too long, or holds what no state_dict does.
    """
    machine = _Machine(names, storage, budget)
    try:
        for instruction, argument, _ in pickletools.genops(file):
            if instruction.name == "STOP":
                break
            budget.spend(1)
            machine.step(instruction.name, argument)
        return machine.result()
    except _Unknown as error:
        message = f"the checkpoint's pickle uses {error}, which no state_dict does; it was not run"
        raise WeightsError(message, path, hint) from error
    except _Unbounded as error:
        message = f"the checkpoint's pickle has more than {error} instructions"
        raise WeightsError(message, path, f"names and shapes of tensors never take that much; {hint}") from error
    except (_Damage, ValueError, EOFError) as error:
        raise WeightsError(f"the checkpoint's pickle is damaged: {error!s:.100}", path, _DAMAGED) from error
    except IndexError as error:
        raise WeightsError("the checkpoint's pickle is damaged: its stack is empty", path, _DAMAGED) from error
