"""A diagnosis in a few sentences."""

from __future__ import annotations

from collections.abc import Sequence

from dnc.diagnosis.report import Diagnosis, Metric

__all__ = ["summary"]

_NAMED = 3
"""So many culprits are named."""


def summary(diagnosis: Diagnosis) -> list[str]:
    """What was compared, on which arithmetic, how much is lost, where most of it, and what helps."""
    engine, against = diagnosis.engine, diagnosis.against
    said = [
        f"{engine.title} ({engine.target}, {engine.precision}) is compared with {against.title} ({against.target}, "
        f"{against.precision}): what they find on {_count(diagnosis.compared, 'image')}, their layers on "
        f"{diagnosis.images} of {'them' if diagnosis.compared else 'these'}."
    ]
    if engine.arithmetic:
        said.append(f"8-bit arithmetic {engine.arithmetic}.")
    if diagnosis.metric is not None:
        said.append(_metric(diagnosis.metric, against.title))
    if diagnosis.boxes:
        said.append(
            f"Of {_count(diagnosis.boxes, 'result')} that {against.title} has with a confidence of "
            f"{diagnosis.confidence:.0%} or more, {diagnosis.gone} are gone; {diagnosis.come} have come."
        )
    worst = [diagnosis.layer(number) for number in diagnosis.culprits[:_NAMED]]
    if worst:
        names = [f"{layer.number} {layer.section}" if layer.number >= 0 else "the network's input" for layer in worst]
        kinds = [f" ({layer.kind})" if layer.kind else "" for layer in worst]
        said.append(f"Most is lost at {_listed([name + kind for name, kind in zip(names, kinds, strict=True)])}.")
    else:
        said.append("No layer loses anything that matters.")
    if diagnosis.keep and diagnosis.keep[-1].points > 0:
        best = diagnosis.keep[-1]
        known = "measured" if best.measured else "estimated"
        what = "layer" if len(best.layers) == 1 else "layers"
        said.append(
            f"With {what} {_listed(list(map(str, best.layers)))} in float32, {best.points:.2f} points are won "
            f"({known}): {best.option}"
        )
    return said


def _metric(metric: Metric, against: str) -> str:
    lost = (metric.against - metric.engine) * 100
    change = f"{abs(lost):.2f} points {'less' if lost > 0 else 'more'}" if f"{abs(lost):.2f}" != "0.00" else "the same"
    where = "on labels" if metric.labelled else "on what float32 finds"
    return (
        f"{metric.name} is {metric.engine:.2%}, that of {against} {metric.against:.2%}: {change}, {where} of "
        f"{_count(metric.images, 'image')}."
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
