"""The graph in Relax, TVM's representation: each operator as Relax has it, channels last.

A value of four axes (N, C, H, W) is held as (N, H, W, C) from the first operator that wants it so: convolutions and
pools run along the channels with whole vectors. Operators that work element by element keep the layout of what they
read; those along an axis count it in that layout; only what rearranges elements (Reshape, Transpose, ...) gets its
input in ONNX's order, through a transposition that is made once for each value. There is none between convolutions, and
nothing that cannot be laid out so. Weights are stored (H, W, I, O).

8-bit numbers are `dnc.targets.tvm.emit.integers`, convolutions in bfloat16 `dnc.targets.tvm.emit.halves`, and those of
signs, the composite `BinaryConvolution`, `dnc.targets.tvm.emit.binary`.

The composites `Preprocess` and `NonMaxSuppression` are `dnc.targets.tvm.emit.pixels` and
`dnc.targets.tvm.emit.suppression`.

What depends on weights and shapes alone is computed here, by ONNX's own reference.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from dnc.graph.builder import OPSET, where_of
from dnc.graph.composites import BINARY_CONVOLUTION, NON_MAX_SUPPRESSION, PREPROCESS, attributes_of, is_composite
from dnc.graph.preprocessing import Preprocess
from dnc.graph.rewriting import constant_array
from dnc.targets.tvm.emit import binary, halves
from dnc.targets.tvm.emit.builder import MAIN, NODES, PREPARE, Array, RelaxBuilder, Tensor, Value
from dnc.targets.tvm.emit.integers import QUANTIZING, Dequantized, Held, integers_of, real
from dnc.targets.tvm.emit.operators import OPERATORS, unsuitable
from dnc.targets.tvm.emit.pixels import preprocessed

__all__ = ["emit", "shared_outputs", "unsupported"]


class _Emitter:
    """Translates one graph. `_values` has what was translated so far, by name."""

    def __init__(self, eights: str, halves: Collection[ir.Node], b: RelaxBuilder, composites: Composites) -> None:
        self._b, gpu = b, b.gpu
        self._composites, self._apart = composites, gpu
        self._values: dict[str, Value | Dequantized] = {}
        self._reals: dict[str, Value] = {}
        self._eights = eights
        self._halves = halves
        self._rounded: dict[str, Tensor] = {}
        self._bits: dict[str, Tensor] = {}

    def module(self, graph: ir.Graph) -> Any:
        """The module whose `main` takes the graph's inputs and gives a tuple of its outputs."""
        inputs = [self._input(value) for value in graph.inputs]
        apart = next((node for node in graph if self._apart and is_composite(node, PREPROCESS)), None)
        if apart is not None:
            place = [value is apart.inputs[0] for value in graph.inputs].index(True)
            inputs[place] = self._prepared(apart, inputs[place])
        with self._b.block.function(MAIN, inputs):
            with self._b.block.dataflow():
                for node in graph:
                    if node is apart:
                        continue
                    if is_composite(node) and node.op_type in self._composites:
                        self._composite(node)
                    else:
                        self._node(node)
                outputs = [self._output(value) for value in graph.outputs]
                result = self._b.block.emit_output(self._b.relax.Tuple(outputs))
            self._b.block.emit_func_output(result)
        return self._b.block.finalize().with_attr(NODES, self._b.nodes)

    def _input(self, value: ir.Value) -> Any:
        assert value.shape is not None
        assert value.dtype is not None
        sides = [side if isinstance(side, int) else self._b.tir.Var(str(side), "int64") for side in value.shape]
        dtype = value.dtype.numpy().name
        variable = self._b.relax.Var(value.name, self._b.relax.TensorType(sides, dtype))
        shape = tuple(side if isinstance(side, int) else -1 for side in value.shape)
        self._values[value.name or ""] = Tensor(variable, shape, dtype)
        return variable

    def _prepared(self, call: ir.Node, pixels: Any) -> Any:
        """The variable by which `main` takes what a function of its own makes of pixels."""
        with self._b.block.function(PREPARE, [pixels]):
            with self._b.block.dataflow():
                self._composite(call)
                name = call.outputs[0].name or ""
                made = self._b.tensor_of(self._value(call.outputs[0]))
                result = self._b.block.emit_output(made.expr)
            self._b.block.emit_func_output(result)
        variable = self._b.relax.Var(pixels.name, made.expr.ty)
        self._values[name] = replace(made, expr=variable)
        return variable

    def _composite(self, call: ir.Node) -> None:
        # It is the whole of a section.
        self._b.nodes.append(f"{(call.name or '').partition('/')[0]}/")
        inputs = [self._b.tensor_of(self._value(value)) for value in call.inputs if value is not None]
        self._values[call.outputs[0].name or ""] = self._composites[call.op_type](self._b, call, inputs)

    def _node(self, node: ir.Node) -> None:
        self._b.nodes.append(node.name or "")
        held = [None if value is None else self._held(value) for value in node.inputs]
        for value, result in zip(node.outputs, self._results(node, held), strict=True):
            self._values[value.name or ""] = result

    def _results(self, node: ir.Node, held: Sequence[Held]) -> Sequence[Value | Dequantized]:
        found = integers_of(self._b, node, held, self._eights)
        if found is not None:
            return found
        inputs = [None if value is None else self._value(value) for value in node.inputs]
        if node in self._halves and isinstance(inputs[0], Tensor):
            return [halves.convolution(self._b, node, self._half(node, inputs[0]), inputs)]
        if is_composite(node, BINARY_CONVOLUTION):
            return [binary.convolution(self._b, node, self._signs(node, inputs[0]), inputs)]
        if node.op_type == "Shape":
            return [np.array(inputs[0].shape, np.int64)]  # type: ignore[union-attr]
        if all(not isinstance(value, Tensor) for value in inputs):
            return _evaluate(node, inputs)
        results = OPERATORS[node.op_type](self._b, node, inputs)
        return results if isinstance(results, list) else [results]

    def _held(self, value: ir.Value) -> Value | Dequantized:
        # Weights are computed when they are asked for, and not kept.
        tensor = constant_array(value)
        return self._values[value.name or ""] if tensor is None else tensor.numpy()

    def _value(self, value: ir.Value) -> Value:
        """In real numbers, which are computed once."""
        held = self._held(value)
        if not isinstance(held, Dequantized):
            return held
        name = value.name or ""
        if name not in self._reals:
            self._reals[name] = real(self._b, held)
        return self._reals[name]

    def _half(self, node: ir.Node, data: Tensor) -> Tensor:
        """What a node reads, in bfloat16."""
        return self._once(self._rounded, node, lambda: halves.rounded(self._b, data))

    def _signs(self, node: ir.Node, data: Value | None) -> Tensor:
        """The bits of the signs of what a node reads."""
        return self._once(self._bits, node, lambda: binary.signs(self._b, self._b.tensor_of(data)))

    def _once(self, known: dict[str, Tensor], node: ir.Node, compute: Callable[[], Tensor]) -> Tensor:
        """What is computed once of what a node reads, for all that read it."""
        value = node.inputs[0]
        name = "" if value is None else value.name or ""
        if name not in known:
            known[name] = compute()
        return known[name]

    def _output(self, value: ir.Value) -> Any:
        found, node = self._value(value), value.producer()
        self._b.nodes.append("" if node is None else node.name or "")
        return self._b.relax.const(found) if isinstance(found, np.ndarray) else self._b.first(found).expr


def _suppress(b: RelaxBuilder, call: ir.Node, inputs: Sequence[Tensor]) -> Tensor:
    from dnc.targets.tvm.emit.suppression import suppressed

    return suppressed(b, inputs, **attributes_of(call))


Composites = Mapping[str, Callable[[RelaxBuilder, ir.Node, Sequence[Tensor]], Tensor]]
"""What writes a composite of each kind."""
_COMPOSITES: Composites = {
    PREPROCESS: lambda b, call, inputs: preprocessed(b, Preprocess.of(call), inputs[0].expr),
    NON_MAX_SUPPRESSION: _suppress,
}


def _evaluate(node: ir.Node, inputs: Sequence[Any]) -> list[Array]:
    """What a node makes of constants."""
    names = ["" if value is None else f"x{place}" for place, value in enumerate(inputs)]
    attributes = {key: ir.to_proto(item) for key, item in node.attributes.items()}
    proto = onnx.helper.make_node(node.op_type, names, [f"y{place}" for place in range(len(node.outputs))])
    proto.attribute.extend(attributes.values())
    runner = ReferenceEvaluator(proto, opsets={"": OPSET})
    feeds = {name: value for name, value in zip(names, inputs, strict=True) if name}
    return [np.asarray(value) for value in runner.run(None, feeds)]


def emit(
    model: ir.Model,
    *,
    eights: str = "uint8",
    bfloat16: bool = False,
    gpu: bool = False,
    fill: int = 0,
    fences: bool = True,
    composites: Composites = _COMPOSITES,
) -> Any:
    """The tvm.IRModule of a model in which `unsupported` finds nothing. The model stays as it is.

    Args:
        eights: the type that 8-bit numbers are held in: see `dnc.targets.tvm.emit.integers`.
        bfloat16: convolutions multiply in it where that pays: see `dnc.targets.tvm.emit.halves`.
        gpu: it is for a GPU, which holds 8-bit numbers in int8; what makes the network's input of images is a function
            of its own, `prepare`.
        fill: convolutions of float16 that read fewer channels than these, an odd number of them, read zeros behind
            them, so that a pixel's can be copied at once; 0 for none.
        fences: LLVM can keep a product and a sum apart for the processor: one without floats has none.
        composites: what writes them.
    """
    chosen = halves.convolutions(model.graph) if bfloat16 else ()
    return _Emitter("int8" if gpu else eights, chosen, RelaxBuilder(gpu, fill, fences), composites).module(model.graph)


def shared_outputs(model: ir.Model) -> list[str]:
    """The outputs that may be no memory of their own, but that of an input, a constant or another output."""
    views = ("Identity", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand")
    sources = []
    for output in model.graph.outputs:
        value: ir.Value | None = output
        while value is not None and (node := value.producer()) is not None and node.op_type in views:
            value = node.inputs[0]
        sources.append(value)
    return [
        output.name or ""
        for output, source in zip(model.graph.outputs, sources, strict=True)
        if source is None or source.producer() is None or sources.count(source) > 1
    ]


def unsupported(model: ir.Model) -> list[str]:
    """Everything that cannot be compiled, each with its place in the cfg."""
    found: dict[str, None] = {}
    for value in model.graph.inputs:
        sides = list(value.shape or ())
        if not all(isinstance(side, int) for side in (sides[:1] if value.dtype == ir.DataType.UINT8 else sides)):
            shape = ", ".join(map(str, sides))
            found[f"input {value.name}: its shape ({shape}) is not fixed: --batch 1 fixes it"] = None
    known = {value for value in model.graph.initializers.values() if constant_array(value) is not None}
    for node in model.graph:
        if is_composite(node) and node.op_type in (*_COMPOSITES, BINARY_CONVOLUTION):
            continue
        if node.op_type == "Shape" or all(value is None or value in known for value in node.inputs):
            known.update(node.outputs)
        elif node.domain or node.op_type not in (*OPERATORS, *QUANTIZING):
            found[f"{where_of(node)}: {node.op_type}: dnc does not write it for TVM"] = None
        elif why := unsuitable(node, known):
            found[f"{where_of(node)}: {node.op_type}: {why}"] = None
    return list(found)
