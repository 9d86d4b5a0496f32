"""What a shell completes besides commands and options: the values of options, and networks by name.

click has the machinery for bash, zsh and fish; docs/guides/terminal.md says how it is switched on. A shell waits for
the answer at every press of the key, so that names of plug-ins are those of their files: nothing is imported for them.
"""

from __future__ import annotations

import glob
import importlib.util
import pkgutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
)

__all__ = ["Complete", "complete_networks", "complete_plugins", "complete_published", "complete_value", "plugins"]

Completed = list[CompletionItem]
Complete = Callable[[click.Context, click.Parameter, str], Completed]


class _Joined(ShellComplete):
    """Of shells that ask for --target=open as one word, and so have to be answered."""

    def get_completions(self, args: list[str], incomplete: str) -> Completed:
        option, equals, _ = incomplete.partition("=")
        items = super().get_completions(args, incomplete)
        if equals and option.startswith("--"):
            for item in items:
                item.value = f"{option}={item.value}"
        return items


@add_completion_class
class Zsh(_Joined, ZshComplete):
    """Zsh's."""


@add_completion_class
class Fish(_Joined, FishComplete):
    """Fish's."""


@add_completion_class
class Bash(BashComplete):
    """Bash's, which parts words at `=`, so that --target=open comes as three."""

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the one that is completed, and that one."""
        words, incomplete = super().get_completion_args()
        return [word for word in words if word != "="], incomplete


_HELPERS = ("base", "shared", "exporting", "readme", "ovms-client")
"""Modules beside the plug-ins that are none."""


def plugins(package: str) -> list[str]:
    """The names of dnc's targets, passes or destinations."""
    spec = importlib.util.find_spec(f"dnc.{package}")
    places = spec.submodule_search_locations if spec is not None else None
    names = (module.name.replace("_", "-") for module in pkgutil.iter_modules(places))
    return sorted(name for name in names if name not in _HELPERS)


def _items(words: Iterable[str], incomplete: str, before: str = "") -> Completed:
    return [CompletionItem(before + word) for word in words if word.startswith(incomplete)]


def _targets(context: click.Context) -> list[str]:
    return [*plugins("targets"), "aarch64"]


def _target_options(context: click.Context) -> list[Any]:
    from dnc.targets import targets

    name = context.params.get("target") or "cpu"
    return list(targets[name].known_options) if name in targets else []


def _keys(context: click.Context) -> list[str]:
    words = [f"{option.name}=" for option in _target_options(context)]
    if context.params.get("name") in plugins("destinations"):
        from dnc.destinations import destinations

        words += [f"{option.name}=" for option in destinations[context.params["name"]].known_options]
    return words


def _precisions(context: click.Context) -> list[str]:
    allowed = []
    for option in _target_options(context):
        if option.name == "precision":
            # The words that are allowed follow the sentence that says so.
            try:
                option.parse("?")
            except ValueError as error:
                allowed = [str(word) for word in error.args[1:]]
    return allowed or ["fp32", "fp16", "bf16", "int8", "mixed"]


def _peers(context: click.Context) -> list[str]:
    from dnc.bench.peer_child import NAMES

    return list(NAMES)


_VALUES: dict[str, Callable[[click.Context], list[str]]] = {
    "target": _targets,
    "targets": _targets,
    "skip": lambda _: plugins("passes"),
    "passes": lambda _: plugins("passes"),
    "only": lambda _: plugins("passes"),
    "options": _keys,
    "precision": _precisions,
    "precisions": _precisions,
    "peers": _peers,
}
"""By the name of the parameter."""


def complete_value(name: str) -> Complete | None:
    """What completes a parameter of this name; None where nothing is known of it. Of several values with commas between
    them, the last one is completed."""
    if name not in _VALUES:
        return None

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> Completed:
        before, comma, last = incomplete.rpartition(",")
        return _items(_VALUES[name](context), last, before + comma)

    return complete


def complete_plugins(package: str) -> Complete:
    """What completes the name of a plug-in."""
    return lambda context, parameter, incomplete: _items(plugins(package), incomplete)


def complete_networks(context: click.Context, parameter: click.Parameter, incomplete: str) -> Completed:
    """Files; where none begins so, networks whose cfg dnc has."""
    from dnc.darknet.cfg import bundled_cfgs

    path = Path(incomplete)
    if not incomplete or any(path.parent.glob(f"{glob.escape(path.name)}*")):
        return [CompletionItem(incomplete, type="file")]
    return _items(bundled_cfgs(), incomplete)


def complete_published(context: click.Context, parameter: click.Parameter, incomplete: str) -> Completed:
    """Weights that the zoo can fetch."""
    from dnc import zoo

    return _items((entry.name for entry in zoo.entries()), incomplete)
