"""Which functions become one around squeeze and excitation, where a GPU is to run as few kernels as possible:

    d = f(depthwise convolution of x)      mean over the map      a product, g      a product, h: s      d * s      a
    convolution of one pixel

TVM makes six functions of that. `squeezed` makes two of them,

    d, s    the depthwise convolution, and the numbers of the channels: the blocks add up what they compute, and the
            last one to arrive goes on with it (dnc.targets.cuda.schedules.squeezing)
    y       the convolution, whose data are scaled as they are brought (dnc.targets.cuda.schedules.tiled)

Where what is before is no depthwise convolution, the first one reads d; where what is after is none that scales its
data, or is not alone in reading them, d * s stays a function of its own. No GPU has run such kernels yet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import relax

from dnc.targets.tvm.calls import Graph, Joining, Part, parts_of, shape_of

__all__ = ["squeezed"]

_FEW = 8
"""Pixels, inputs and outputs of a convolution that scales its data, at least."""


@dataclass(frozen=True)
class _Block:
    """Squeeze and excitation: bindings of `main`."""

    before: Any | None
    """The depthwise convolution."""
    numbers: tuple[Any, ...]
    """The mean, and the first product."""
    scaling: Any
    """The second product and what scales the map."""
    after: Any | None
    """The convolution that reads what is scaled."""


def squeezed(module: Any) -> Any:
    """The module after FuseOps with such functions joined."""
    blocks = _blocks(module, module["main"])
    if not blocks:
        return module
    return _Squeezing(module, blocks).joined()


def _is_small(shape: Sequence[int]) -> bool:
    return len(shape) == 4 and tuple(shape[1:3]) == (1, 1)


def _blocks(module: Any, main: Any) -> list[_Block]:
    graph = Graph(main)
    made, readers, alone = graph.made, graph.readers, graph.alone
    blocks: list[_Block] = []
    taken: list[Any] = []
    for binding in made.values():
        split = _split(parts_of(module, binding))
        if split is None:
            continue
        small, large = split
        product = next((made[given] for given in small[0].given if given in made and given not in taken), None)
        if product is None or not _is_product(parts_of(module, product)):
            continue
        mean = next((made[given] for given in parts_of(module, product)[0].given if given in made), None)
        if mean is None:
            continue
        means = parts_of(module, mean)
        if len(means) != 1 or not _is_mean(means[0]) or not alone(mean.var, product) or not alone(product.var, binding):
            continue
        source = means[0].given[0]
        if not any(source is given or source.same_as(given) for given in large[0].given):
            continue
        before = made.get(source)
        if before is None or not _is_depthwise(parts_of(module, before)) or not alone(source, mean, binding):
            before = None
        after = readers.get(binding.var, [None])[0]
        parts = parts_of(module, after) if after is not None else []
        once = [given for part in parts for given in part.given].count(binding.var) == 1 and alone(binding.var, after)
        if len(large) != 1 or not once or not _is_pointwise(parts[0], binding.var):
            after = None
        blocks.append(_Block(before, (mean, product), binding, after))
        taken += [mean.var, product.var]
    return blocks


def _split(parts: Sequence[Part]) -> tuple[list[Part], list[Part]] | None:
    """The calls that compute a number for each channel, and those that scale a map with it; None for others."""
    small = [part for part in parts if _is_small(part.shape)]
    large = parts[len(small) :]
    if not small or not large or any(_is_small(part.shape) or not part.shape for part in large):
        return None
    if not _is_product(small) or large[0].shape[3] != small[-1].shape[3] or large[0].shape[0] != small[-1].shape[0]:
        return None
    inside = [part.made for part in small]
    used = [given for part in large for given in part.given if given in inside]
    # The map and the numbers, and nothing else.
    if len(large[0].given) != 2 or used != [inside[-1]] or inside[-1] not in large[0].given:
        return None
    return small, list(large)


def _is_product(parts: Sequence[Part]) -> bool:
    """Whether it begins with a product of one pixel, and is one."""
    if not parts or not all(_is_small(part.shape) for part in parts):
        return False
    given = [shape_of(each) for each in parts[0].given]
    return len(given) == 2 and _is_small(given[0]) and given[1] == (1, 1, given[0][3], parts[0].shape[3])


def _is_mean(part: Part) -> bool:
    given = [shape_of(each) for each in part.given]
    if not _is_small(part.shape) or len(given) != 1 or len(given[0]) != 4 or _is_small(given[0]):
        return False
    return given[0][3] == part.shape[3] and given[0][0] == part.shape[0] and "mean" in part.call.args[0].name_hint


def _is_depthwise(parts: Sequence[Part]) -> bool:
    if not parts or len(parts[0].given) != 2:
        return False
    data, weight = (shape_of(each) for each in parts[0].given)
    shape = parts[0].shape
    # A map of one image as any other.
    return len(data) == 4 and len(weight) == 4 and weight[2:] == (1, data[3]) and shape[3:] == data[3:] and data[3] > 1


def _is_pointwise(part: Part, source: Any) -> bool:
    """Whether it is a convolution of one pixel that scales its data, which some products do."""
    if len(part.given) != 2 or isinstance(part.given[0], tuple) or not part.given[0].same_as(source):
        return False
    data, weight = (shape_of(each) for each in part.given)
    if len(weight) != 4 or weight[:3] != (1, 1, data[3]) or part.shape[:3] != data[:3]:
        return False
    fits = min(math.prod(data[:3]), *weight[2:]) >= _FEW
    return fits and str(part.call.ty.dtype) == str(part.given[0].ty.dtype)


@relax.expr_functor.mutator
class _Squeezing(Joining):
    """Replaces calls by those of the new functions."""

    def __init__(self, module: Any, blocks: Sequence[_Block]) -> None:
        super().__init__(module)
        self._at = {block.scaling.var: block for block in blocks}
        self._after = {block.after.var: block for block in blocks if block.after is not None}
        left_out = [binding for block in blocks for binding in (block.before, *block.numbers) if binding is not None]
        self._left_out = {binding.var for binding in left_out}

    def visit_var_binding_(self, binding: Any) -> None:
        if binding.var in self._left_out:
            return
        if binding.var in self._at:
            self._squeeze(self._at[binding.var])
        elif binding.var in self._after:
            block = self._after[binding.var]
            split = _split(parts_of(self.module, block.scaling))
            assert split is not None
            parts = [*split[1], *parts_of(self.module, binding)]
            self.emit(parts, [binding.var], "fused_scale_" + parts[-1].call.args[0].name_hint)
        else:
            super().visit_var_binding_(binding)

    def _squeeze(self, block: _Block) -> None:
        split = _split(parts_of(self.module, block.scaling))
        assert split is not None
        small, large = split
        parts = [] if block.before is None else parts_of(self.module, block.before)
        results = [] if block.before is None else [block.before.var]
        for binding in block.numbers:
            parts += parts_of(self.module, binding)
        self.emit([*parts, *small], [*results, small[-1].made], "fused_squeeze")
        if block.after is None:
            self.emit(large, [block.scaling.var], "fused_scale")
