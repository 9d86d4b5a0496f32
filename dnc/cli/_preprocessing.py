"""Options that say how images become a network's input, where that is not as recorded or as Darknet does it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from dnc.cli._lists import numbers

__all__ = ["preprocessing_options"]

_OPTIONS = (
    click.option(
        "--preprocess",
        type=click.Choice(["resize", "resize-half-pixel", "letterbox", "center-crop"]),
        help="How images become the input; else as recorded beside the weights or as the cfg says: letterbox, "
        "center-crop (classifiers) or resize.",
    ),
    click.option(
        "--color", type=click.Choice(["rgb", "bgr", "gray"]), help="Order of the channels; else as recorded, or rgb."
    ),
    click.option("--mean", callback=numbers, help="The input is (pixel / 255 - mean) / std; else as recorded, or 0."),
    click.option("--std", callback=numbers, help="One number, or one per channel, as --mean; else as recorded, or 1."),
    click.option(
        "--crop", type=float, help="The share of the short side that center-crop keeps; else as recorded, or 1."
    ),
    click.option(
        "--interpolation",
        type=click.Choice(["bilinear", "bicubic"]),
        help="How center-crop resizes; else as recorded, or bilinear.",
    ),
)


def preprocessing_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command --preprocess, --color, --mean, --std, --crop and --interpolation, with the names of the
    arguments of `dnc.compile`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
