"""What several commands' options take: numbers in a range, and several values in one word, separated by commas; and an
option that they share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import click

__all__ = ["POSITIVE", "SHARE", "WHOLE", "Number", "exif_option", "names", "numbers", "workers_options"]


class Number(click.FloatRange):
    """A number in a range. Neither nan, which click finds in every range, nor infinite."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number.", param, ctx)
        return number


POSITIVE, WHOLE, SHARE = Number(min=0, min_open=True), click.IntRange(min=1), Number(0, 1)
exif_option = click.option(
    "--exif/--no-exif", default=None, help="Turn images as their EXIF says, which Darknet does not."
)


def workers_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command `--scheduler` and `--workers`: the arguments of `dnc.evaluation.cluster.cluster`."""
    scheduler = click.option(
        "--scheduler",
        metavar="tcp://HOST:PORT",
        help="Let the workers of a Dask cluster look at the images; results are the same, to the bit.",
    )
    return scheduler(
        click.option("--workers", type=WHOLE, metavar="N", help="Let N processes of this machine look at the images.")(
            command
        )
    )


def numbers(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """A callback: numbers separated by commas, each of which may be a fraction, 127/255; None as it is."""
    if value is None:
        return None
    try:
        pairs = [item.partition("/") for item in value.split(",")]
        found = tuple(float(number) / float(divisor) if slash else float(number) for number, slash, divisor in pairs)
        if not all(map(math.isfinite, found)):
            raise ValueError
        return found
    except (ValueError, ZeroDivisionError):
        raise click.BadParameter("one number, or one per channel separated by commas; 127/255 is a number") from None


def names(context: click.Context, parameter: click.Parameter, value: str | None) -> list[str] | None:
    """A callback: names separated by commas; None as it is."""
    return None if value is None else [name.strip() for name in value.split(",") if name.strip()]
