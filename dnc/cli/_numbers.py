"""Options that take numbers."""

from __future__ import annotations

import click

__all__ = ["numbers"]


def numbers(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """A callback: numbers separated by commas, each of which may be a fraction, 127/255; None as it is."""
    if value is None:
        return None
    try:
        pairs = [item.partition("/") for item in value.split(",")]
        return tuple(float(number) / float(divisor) if slash else float(number) for number, slash, divisor in pairs)
    except (ValueError, ZeroDivisionError):
        raise click.BadParameter("one number, or one per channel separated by commas; 127/255 is a number") from None
