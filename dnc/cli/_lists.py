"""What several commands' options take: numbers in a range, and several values in one word, separated by commas; and an
option that they share."""

from __future__ import annotations

import click

__all__ = ["POSITIVE", "SHARE", "WHOLE", "exif_option", "names", "numbers"]

POSITIVE, WHOLE, SHARE = click.FloatRange(min=0, min_open=True), click.IntRange(min=1), click.FloatRange(0, 1)
exif_option = click.option(
    "--exif/--no-exif", default=None, help="Turn images as their EXIF says, which Darknet does not."
)


def numbers(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """A callback: numbers separated by commas, each of which may be a fraction, 127/255; None as it is."""
    if value is None:
        return None
    try:
        pairs = [item.partition("/") for item in value.split(",")]
        return tuple(float(number) / float(divisor) if slash else float(number) for number, slash, divisor in pairs)
    except (ValueError, ZeroDivisionError):
        raise click.BadParameter("one number, or one per channel separated by commas; 127/255 is a number") from None


def names(context: click.Context, parameter: click.Parameter, value: str | None) -> list[str] | None:
    """A callback: names separated by commas; None as it is."""
    return None if value is None else [name.strip() for name in value.split(",") if name.strip()]
