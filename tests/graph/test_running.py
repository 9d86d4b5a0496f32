"""Models that are run on the way to an engine."""

from __future__ import annotations

import numpy as np
import pytest

from dnc.graph.running import Running
from tests.models import model


def test_memory_that_is_not_there_is_said_as_such() -> None:
    """2^50 numbers: more than any machine has addresses for in one piece."""
    built = model("agraph (int64[2] x) => (float[N,M] y) { y = ConstantOfShape (x) }")
    with pytest.raises(MemoryError):
        Running(built)({"x": np.array([1 << 25, 1 << 25], np.int64)})
    small = Running(built)({"x": np.array([2, 3], np.int64)})
    assert small["y"].shape == (2, 3)
