"""A page for each target, destination and pass: the docstring of its module, and the options that it declares."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping

from dnc.destinations import destinations
from dnc.destinations.base import Destination
from dnc.graph.pipeline import Step
from dnc.graph.rewriting import Pass
from dnc.passes import passes
from dnc.targets import Target, targets
from dnc.targets.base import Selectable
from docs._ext.remarks import remarks_of
from docs._ext.text import allowed, code, definitions, options, prose, toctree

__all__ = ["pages"]

Page = Callable[[str], Iterator[str]]


def pages() -> Mapping[str, str]:
    """The pages by their places, and a list of each kind."""
    kinds: dict[str, tuple[Mapping[str, type], str, str, Page, Callable[[str], str]]] = {
        "targets": (
            targets,
            "Targets",
            "What `dnc compile --target NAME` compiles for, and what `--option KEY=VALUE` tells it.",
            _target,
            lambda name: _capital(targets[name].summary),
        ),
        "destinations": (
            destinations,
            "Destinations",
            "Programs that `dnc export --for NAME` writes networks for, in a form of their own.",
            _destination,
            lambda name: destinations[name].summary,
        ),
        "passes": (
            passes,
            "Passes",
            "Rewritings of the graph. Each target runs some, in an order of its own; `--passes NAME:KEY=VALUE,…` runs "
            "others, `--skip NAME` leaves one out, and `dnc explain` shows what each did at which section.",
            _pass,
            lambda name: _first(passes[name]).partition(". ")[0].rstrip("."),
        ),
    }
    made = {}
    for folder, (registry, title, text, page, summary) in kinds.items():
        rows = [(f"[`{name}`]({name}.md)", prose(summary(name))) for name in registry]
        index = [f"# {title}", text, definitions(rows), toctree(registry, hidden="")]
        made[f"reference/{folder}/index.md"] = "\n\n".join(index) + "\n"
        for name in registry:
            made[f"reference/{folder}/{name}.md"] = "\n\n".join(page(name)) + "\n"
    return made


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _first(kind: type) -> str:
    """The first paragraph of a class's docstring."""
    return " ".join((kind.__doc__ or "").partition("\n\n")[0].split())


def _module_text(kind: type) -> str:
    return prose(importlib.import_module(kind.__module__).__doc__ or "")


def _options(kind: type[Selectable | Destination | Pass], how: str) -> Iterator[str]:
    if kind.known_options:
        yield "## Options"
        yield how
        yield options(kind.known_options)


def _target(name: str) -> Iterator[str]:
    kind = targets[name]
    yield f"# Target {name}"
    yield prose(f"{_capital(kind.summary)}.")
    yield f'`pip install ".[{kind.extra}]"`, from a checkout, has [what it takes](../extras/index.md).'
    yield "## How it works"
    yield _module_text(kind)
    yield from _options(kind, f"`dnc compile NET.cfg --target {name} --option KEY=VALUE`:")
    if issubclass(kind, Target):
        yield "## Passes"
        pipelines = _pipelines(kind)
        usual = pipelines.pop("")
        yield "In this order, unless told otherwise:"
        yield _listed(usual)
        for precision, steps in pipelines.items():
            more = [step for step in steps if step.name not in {each.name for each in usual}]
            if more:
                yield f"With `precision={precision}` besides:"
                yield _listed(more)


def _listed(steps: list[Step]) -> str:
    return definitions((f"[`{step.name}`](../passes/{step.name}.md)", f"{prose(step.why)}.") for step in steps)


def _pipelines(kind: type[Target]) -> dict[str, list[Step]]:
    """The passes of a target by its precision, "" without one."""
    told = next((allowed(option)[1:] for option in kind.known_options if option.name == "precision"), ())
    given = {"": {}, **{precision: {"precision": precision} for precision in told}}
    return {
        name: [step for step in kind(options).pipeline() if isinstance(step, Step)] for name, options in given.items()
    }


def _destination(name: str) -> Iterator[str]:
    kind = destinations[name]
    yield f"# Destination {name}"
    yield prose(f"{kind.summary}.")
    engines = ", ".join(code(each) for each in sorted(kind.runners))
    yield f"It takes engines of {engines}; a cfg is compiled for target `{kind.target}` unless told otherwise."
    if kind.suffix:
        yield f"`-o` may name the one file, `{kind.suffix}`, in place of a folder."
    yield "## What is written"
    yield _module_text(kind)
    yield from _options(kind, f"`dnc export NET.cfg --for {name} --option KEY=VALUE`; others go to the target:")


def _pass(name: str) -> Iterator[str]:
    kind = passes[name]
    yield f"# Pass {name}"
    tolerance = f"by {kind.tolerance:g} of the largest value at most" if kind.tolerance else "not at all: it is exact"
    if kind.tolerance >= 1:
        tolerance = "as far as rounding does: [what quantization does](../../explanation/quantization.md)"
    rows = [("What it does", prose(_first(kind))), ("Changes outputs", tolerance)]
    rows += [("Applies to", prose(kind.applies_to))] * bool(kind.applies_to)
    rows += [("An error where there is no", prose(kind.needs))] * bool(kind.needs)
    users = [
        user for each, target in targets.items() if issubclass(target, Target) for user in _user(each, target, name)
    ]
    rows.append(("Run by targets", ", ".join(users) or "none unasked"))
    yield definitions(rows)
    yield "## Algebra"
    yield _module_text(kind)
    yield from _options(kind, f"`dnc compile NET.cfg --passes {name}:KEY=VALUE`:")
    done, left = remarks_of(importlib.import_module(kind.__module__))
    if done or left:
        yield "## Remarks"
        yield "What `dnc explain` may say of a node; … stands for what depends on it."
        yield definitions(
            (term, "\n".join(f"- {prose(text)}" for text in texts))
            for term, texts in (("Done", done), ("Left as it is", left))
            if texts
        )


def _user(name: str, target: type[Target], of: str) -> Iterator[str]:
    """A target that runs a pass, and with which precisions if not always."""
    precisions = [each for each, steps in _pipelines(target).items() if any(step.name == of for step in steps)]
    if precisions:
        only = "" if "" in precisions else f" with {', '.join(map(code, precisions))}"
        yield f"[`{name}`](../targets/{name}.md){only}"
