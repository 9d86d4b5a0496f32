"""[history]: the last `history_size` frames, one after the other on the channels, the newest first (conv_lstm_layer.c).

    y(t) = [x(t), x(t - 1), ..., x(t - history_size + 1)]

Frames before the first are zero. This is what Darknet trains with (time_steps > 1). At inference, with one time step
per call, it does not shift: every call gives [x, 0, ..., 0]. So do engines on images (`Manifest.carried`); who runs the
network step by step, with own states, gets the frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from dnc.darknet.cfg import Section
from dnc.darknet.layers import layers
from dnc.darknet.layers.base import Array, Arrays, Builder, Context, Layer, Shape, States, Value, common

__all__ = ["History"]


@layers.register
class History(Layer):
    """A sliding window over the frames.

    Keys:
        history_size: how many frames, the newest included.
    """

    name = "history"

    frames: int

    @classmethod
    def parse(cls, section: Section, context: Context) -> Self:
        channels, height, width = context.image()
        frames = section.integer("history_size", 4, low=1)
        context.check_size((channels * frames, height, width), "history_size")
        return cls(**common(context, (channels * frames, height, width)), frames=frames)

    def states(self) -> dict[str, Shape]:
        """The output of the last step; nothing where one frame is all."""
        return {"frames": self.shape} if self.frames > 1 else {}

    def emit(self, b: Builder, inputs: Sequence[Value], arrays: Arrays) -> Value:
        if self.frames == 1:
            return b.op("Identity", inputs[0])
        kept = b.slice(b.states["frames"], 1, 0, self.shape[0] - self.input_shape[0])
        b.next_states["frames"] = b.op("Concat", inputs[0], kept, axis=1)
        return b.next_states["frames"]

    def reference(self, inputs: Sequence[Array], arrays: Arrays, states: States) -> Array:
        if self.frames == 1:
            return inputs[0]
        kept = states["frames"][:, : self.shape[0] - self.input_shape[0]]
        states["frames"] = np.concatenate([inputs[0], kept], axis=1)
        return states["frames"]

    def describe(self) -> str:
        return f"{self.frames} frames"
