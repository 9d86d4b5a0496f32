"""The weights of an ONNX model: its Conv, Gemm, MatMul and BatchNormalization nodes in the graph's order.

A node's weights are initializers, or constants behind Identity and Transpose. What follows a convolution or a product
alone and has one constant for each channel belongs to it: BatchNormalization is its partner; Add is its bias, Mul and
Div scale it, Sub lowers it, all computed in float64. A scalar there is an activation's (hard swish adds 3).

A unit's name is that of its weights less `.weight`, or the node's where an exporter numbered the weights.

What a model says of itself is not believed: graphs may have circles, attributes any type, tensors any shape, and the
files of their values may lie anywhere. Subgraphs are not looked into; protobuf itself nests 100 messages at most.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google.protobuf.message  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
import onnx
import onnx.external_data_helper
import onnx.helper
import onnx.numpy_helper

from dnc.errors import WeightsError
from dnc.files.reading import open_regular, read_bounded
from dnc.typing import Array
from dnc.zoo.importer.tensors import MOST_AXES, SIZES, Checkpoint, Pads, Tensor, Unit, checked_name

__all__ = ["read_onnx"]

_NAMES: dict[int, str] = {
    onnx.TensorProto.DOUBLE: "F64",
    onnx.TensorProto.FLOAT: "F32",
    onnx.TensorProto.FLOAT16: "F16",
    onnx.TensorProto.BFLOAT16: "BF16",
}
_HINT = "the file is cut off or damaged; export it again"
_LARGEST = 1 << 30
"""Bytes of a model; protobuf's own limit is 2 GiB, and values may lie beside it."""


def read_onnx(path: Path) -> Checkpoint:
    """The units of a model.

    Raises WeightsError if the file is no ONNX model or damaged, or a node's weights are not in it.
    """
    try:
        model = onnx.ModelProto.FromString(read_bounded(path, _LARGEST))
    except (google.protobuf.message.DecodeError, ValueError, RuntimeError, TypeError) as error:
        raise WeightsError(f"the source cannot be read as ONNX: {error!s:.200}", path, _HINT) from error
    # The last field of a model; a file cut off between two fields parses.
    if not model.graph.node or not model.opset_import:
        raise WeightsError(f"the ONNX model has no {'opset' if model.graph.node else 'nodes'}", path, _HINT)
    try:
        return _Reader(model.graph, path).read()
    except (ValueError, TypeError, IndexError, AttributeError, OverflowError) as error:
        # Nodes may lack inputs, and attributes have any type and length.
        raise WeightsError(f"a node of the ONNX model is damaged: {error!s:.100}", path, _HINT) from error


@dataclass(frozen=True)
class _Linear:
    """A convolution or a product with what was put into it; `scale` and `shift` in float64, or None."""

    node: onnx.NodeProto
    weights: Tensor
    bias: Tensor | None
    factor: float
    scale: npt.NDArray[np.float64] | None
    shift: npt.NDArray[np.float64] | None


class _Reader:
    """A walk along the values of one graph."""

    def __init__(self, graph: onnx.GraphProto, path: Path) -> None:
        self._graph, self._path = graph, path
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._producers: dict[str, onnx.NodeProto] = {}
        self._consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in (node.name, node.op_type, *node.output):
                checked_name(name, path)
            value = _attributes(node).get("value")
            if node.op_type == "Constant" and isinstance(value, onnx.TensorProto):
                self._constants[node.output[0]] = value
            for name in filter(None, node.output):
                if name in self._producers:
                    raise WeightsError(f"two nodes of the ONNX model compute '{name[:60]}'", path, _HINT)
                self._producers[name] = node
            for name in node.input:
                self._consumers.setdefault(name, []).append(node)
        self._outputs = {value.name for value in graph.output}
        self._tensors: dict[str, tuple[Tensor, tuple[int, ...]] | None] = {}
        self._used: set[str] = set()
        self._notes: list[str] = []

    def read(self) -> Checkpoint:
        units: list[Unit] = []
        norms: dict[str, str] = {}
        of_norm: dict[int, str] = {}
        taken: dict[str, int] = {}

        def unique(name: str) -> str:
            free = checked_name(name, self._path)
            while free in taken:
                taken[name] += 1
                free = f"{name}#{taken[name]}"
            taken[free] = 1
            return free

        for node in self._graph.node:
            if node.op_type == "BatchNormalization":
                unit = self._norm(node, unique(self._name(node, node.input[1], "BatchNormalization")))
                units.append(unit)
                if id(node) in of_norm:
                    norms[of_norm[id(node)]] = unit.name
            elif node.op_type in ("Conv", "Gemm", "MatMul") and (linear := self._linear(node)) is not None:
                linear, norm = self._followed(linear)
                name = unique(self._name(node, linear.weights.name, node.op_type))
                units.append(self._unit(linear, name))
                if norm is not None:
                    of_norm[id(norm)] = name
            elif node.op_type in ("ConvTranspose", "ConvInteger", "QLinearConv", "QLinearMatMul", "LSTM", "GRU", "RNN"):
                self._notes.append(f"{node.op_type} {node.name or node.output[0]} is not imported")
        if not units:
            raise WeightsError("the ONNX model has no convolution or product with weights of its own", self._path)
        rest = [tensor.name for tensor in self._graph.initializer if tensor.name not in self._used and _sized(tensor)]
        notes = [*self._preprocessing(), *self._notes]
        return Checkpoint(self._path, "ONNX", tuple(units), True, norms, tuple(rest), "", tuple(notes))

    def _name(self, node: onnx.NodeProto, weights: str, kind: str) -> str:
        if weights.endswith(".weight"):
            return weights.removesuffix(".weight")
        return node.name.removesuffix(f"/{kind}").strip("/").replace("/", ".") or weights

    def _linear(self, node: onnx.NodeProto) -> _Linear | None:
        """Reads a product; None if both of its factors are computed."""
        attributes = _attributes(node)
        if node.op_type == "Conv":
            weights = self._tensor(node.input[1])
        else:
            if node.op_type == "Gemm" and attributes.get("transA"):
                return None
            weights = self._tensor(node.input[1])
            if weights is not None and len(weights.shape) != 2:
                return None
            if weights is not None and not attributes.get("transB"):
                weights = _derived(weights, weights.shape[::-1], lambda array: array.T)
        if weights is None:
            if node.op_type == "MatMul":
                return None
            made = self._producers.get(node.input[1])
            how = f"computed by {made.op_type}" if made is not None else "an input of the model"
            hint = "give the model before it was quantized" if made is not None and "Quantize" in made.op_type else ""
            name = node.name or node.output[0]
            raise WeightsError(f"the weights of {node.op_type} '{name}' are {how}", self._path, hint)
        bias = self._tensor(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        factor = 1.0
        if node.op_type == "Gemm":
            factor = float(attributes.get("alpha", 1.0))
            beta = float(attributes.get("beta", 1.0))
            if bias is not None and (beta != 1.0 or bias.shape != weights.shape[:1]):
                if math.prod(bias.shape) not in (1, weights.shape[0]):
                    raise WeightsError(f"the bias of '{weights.name}' has shape {bias.shape}", self._path, _HINT)
                bias = _spread(bias, weights.shape[0], beta)
        if bias is not None and bias.shape != weights.shape[:1]:
            raise WeightsError(f"the bias of '{weights.name}' has shape {bias.shape}", self._path, _HINT)
        return _Linear(node, weights, bias, factor, None, None)

    def _followed(self, linear: _Linear) -> tuple[_Linear, onnx.NodeProto | None]:
        """Unit with what the nodes behind it make of it, and the batch normalisation that follows."""
        value, channels = linear.node.output[0], linear.weights.shape[0]
        passed: set[str] = set()
        scale: npt.NDArray[np.float64] | None = None
        shift: npt.NDArray[np.float64] | None = None
        norm = None
        while value not in self._outputs and len(consumers := self._consumers.get(value, [])) == 1:
            node = consumers[0]
            if value in passed:
                raise WeightsError(f"the ONNX model goes in a circle through '{value[:60]}'", self._path, _HINT)
            passed.add(value)
            if node.op_type == "BatchNormalization" and node.input[0] == value:
                norm = node
                break
            if node.op_type not in ("Add", "Sub", "Mul", "Div") or len(node.input) != 2:
                break
            other = node.input[1] if node.input[0] == value else node.input[0]
            constant = self._per_channel(other, channels, linear.node.op_type == "Conv")
            if constant is None or (node.op_type in ("Sub", "Div") and node.input[0] != value):
                break
            self._used.add(other)
            shift = np.zeros(channels) if shift is None else shift
            if node.op_type in ("Mul", "Div"):
                by = constant if node.op_type == "Mul" else 1 / constant
                scale, shift = by if scale is None else scale * by, shift * by
            else:
                shift = shift + (constant if node.op_type == "Add" else -constant)
            value = node.output[0]
        return _Linear(linear.node, linear.weights, linear.bias, linear.factor, scale, shift), norm

    def _per_channel(self, name: str, channels: int, convolution: bool) -> npt.NDArray[np.float64] | None:
        """The constant as one number for each channel; None if it is anything else."""
        tensor = self._constants.get(name)
        dims = tuple(tensor.dims) if tensor is not None else ()
        wanted = (channels, 1, 1) if convolution else (channels,)
        if tensor is None or len(dims) < len(wanted) or dims[-len(wanted) :] != wanted:
            return None
        if any(dim != 1 for dim in dims[: -len(wanted)]) or tensor.data_type not in _NAMES:
            return None
        return self._of_proto(tensor).unchecked().astype(np.float64).reshape(channels)

    def _unit(self, linear: _Linear, name: str) -> Unit:
        node, weights, bias = linear.node, linear.weights, linear.bias
        if linear.factor != 1.0 or linear.scale is not None:
            scale = linear.factor * (np.ones(weights.shape[0]) if linear.scale is None else linear.scale)
            weights = _scaled(weights, scale)
        if linear.shift is not None:
            bias = _shifted(bias, linear.scale, linear.shift, f"{name}.bias")
        if node.op_type != "Conv":
            return Unit(name, "linear", weights, bias)
        attributes = _attributes(node)
        spatial = len(weights.shape) - 2
        if spatial != 2:
            raise WeightsError(f"Conv '{name}' has {spatial} spatial axes, Darknet's have 2", self._path)
        rows, columns = self._integers(attributes, "strides", [1, 1])
        says = attributes.get("auto_pad", b"NOTSET")
        if not isinstance(says, bytes):
            raise WeightsError(f"auto_pad of Conv '{name}' is {says!s:.60}, no text", self._path, _HINT)
        auto: Any = says.decode()
        pads: Pads
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            pads = auto
        else:
            top, left, bottom, right = [0] * 4 if auto == "VALID" else self._integers(attributes, "pads", [0] * 4)
            before = self._padded(node.input[0], name)
            pads = "COMPUTED"
            if before is not None:
                pads = (top + before[0], left + before[1], bottom + before[2], right + before[3])
        vertical, horizontal = self._integers(attributes, "dilations", [1, 1])
        return Unit(
            name, "convolution", weights, bias, pads=pads, strides=(rows, columns), dilations=(vertical, horizontal)
        )

    def _integers(self, attributes: Mapping[str, Any], name: str, usual: list[int]) -> list[int]:
        """An attribute of as many numbers, 0 at least, as its usual value has."""
        numbers = attributes.get(name, usual)
        if not isinstance(numbers, list) or len(numbers) != len(usual) or not all(map(_is_size, numbers)):
            raise WeightsError(f"'{name}' of a node is {numbers!s:.60}, not {len(usual)} numbers", self._path, _HINT)
        return numbers

    def _padded(self, value: str, name: str) -> tuple[int, int, int, int] | None:
        """Padding that a Pad node puts around the input of a Conv; None where the model computes it."""
        node = self._producers.get(value)
        if node is None or node.op_type != "Pad":
            return (0, 0, 0, 0)
        attributes = _attributes(node)
        fill = self._constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        filled = attributes.get("value", 0.0) if fill is None else self._values(fill).item()
        if attributes.get("mode", b"constant") != b"constant" or filled != 0 or (len(node.input) > 3 and node.input[3]):
            raise WeightsError(f"the input of Conv '{name}' is padded otherwise than by zeros", self._path)
        amounts = attributes.get("pads")
        if amounts is None:
            if node.input[1] not in self._constants:
                return None
            amounts = self._values(self._constants[node.input[1]]).tolist()
        if not isinstance(amounts, list) or len(amounts) != 8 or not all(isinstance(amount, int) for amount in amounts):
            raise WeightsError(f"the input of Conv '{name}' is padded by {amounts!s:.60}", self._path, _HINT)
        if any(amounts[axis] for axis in (0, 1, 4, 5)) or min(amounts) < 0:
            raise WeightsError(f"the input of Conv '{name}' is padded by {amounts}, which no layer does", self._path)
        return amounts[2], amounts[3], amounts[6], amounts[7]

    def _norm(self, node: onnx.NodeProto, name: str) -> Unit:
        tensors = [self._tensor(value) for value in node.input[1:5]]
        if len(tensors) != 4 or any(tensor is None for tensor in tensors):
            message = f"BatchNormalization '{name}' has no constant statistics"
            raise WeightsError(message, self._path, "export the model for inference")
        scale, bias, mean, variance = tensors
        if any(tensor is not None and tensor.shape != mean.shape[:1] for tensor in tensors if mean is not None):
            raise WeightsError(f"BatchNormalization '{name}' has statistics of several shapes", self._path, _HINT)
        epsilon = float(_attributes(node).get("epsilon", 1e-5))
        # The attribute is a float32; nobody meant 9.99999974e-06.
        epsilon = float(f"{epsilon:.7g}")
        return Unit(name, "batchnorm", scale, bias, mean, variance, epsilon)

    def _tensor(self, name: str) -> Tensor | None:
        """The constant that a value is; None where it is computed."""
        passed: list[tuple[str, list[int] | None]] = []
        while name not in self._tensors:
            node = self._producers.get(name)
            if name in self._constants:
                tensor = self._of_proto(self._constants[name])
                self._tensors[name] = (tensor, tuple(range(len(tensor.shape))))
            elif node is None or node.op_type not in ("Identity", "Transpose"):
                self._tensors[name] = None
            else:
                # What is found of those behind it; a circle finds this.
                self._tensors[name] = None
                passed.append((name, _attributes(node).get("perm", []) if node.op_type == "Transpose" else None))
                name = node.input[0]
                self._used.add(name)
        found = self._tensors[name]
        self._used.add(name)
        for name, order in reversed(passed):
            if found is not None and order is not None:
                tensor, axes = found
                order = order or list(range(len(axes)))[::-1]
                if sorted(order) != list(range(len(axes))):
                    raise WeightsError(f"'{name[:60]}' is transposed by {order!s:.60}", self._path, _HINT)
                found = (tensor, tuple(axes[axis] for axis in order))
            self._tensors[name] = found
            self._used.add(name)
        if found is None:
            return None
        tensor, axes = found
        if axes == tuple(range(len(axes))):
            return tensor
        return _derived(tensor, tuple(tensor.shape[axis] for axis in axes), lambda array: array.transpose(axes))

    def _of_proto(self, proto: onnx.TensorProto) -> Tensor:
        if proto.data_type not in _NAMES:
            kind = next((name for name, number in onnx.TensorProto.DataType.items() if number == proto.data_type), "?")
            raise WeightsError(f"'{proto.name}' of the source is {kind}, not floats", self._path, "quantized weights?")
        shape = tuple(proto.dims)
        if len(shape) > MOST_AXES or not all(map(_is_size, shape)):
            raise WeightsError(f"'{proto.name}' of the source has shape {shape!s:.60}", self._path, _HINT)
        stored, wanted = self._stored(proto), math.prod(shape) * SIZES[_NAMES[proto.data_type]]
        if stored != wanted:
            message = f"the values of '{proto.name}' are damaged: {stored:,} bytes of {wanted:,}"
            raise WeightsError(message, self._path, _HINT)

        def values() -> Array:
            array = self._values(proto)
            return array if array.dtype == np.float64 else array.astype(np.float32)

        # bfloat16 has been widened by then.
        name = checked_name(proto.name, self._path)
        return Tensor(name, shape, "F64" if _NAMES[proto.data_type] == "F64" else "F32", values)

    def _stored(self, proto: onnx.TensorProto) -> int:
        """Number of bytes that the values of floats take, wherever they stand."""
        if onnx.external_data_helper.uses_external_data(proto):
            return self._beside(proto)[2]
        if proto.HasField("raw_data"):
            return len(proto.raw_data)
        # Halves stand in integers.
        return 2 * len(proto.int32_data) + 4 * len(proto.float_data) + 8 * len(proto.double_data)

    def _beside(self, proto: onnx.TensorProto) -> tuple[Path, int, int]:
        """The file that has the values, which is beside the model or in a folder there, where they begin, and bytes."""
        info = onnx.external_data_helper.ExternalDataInfo(proto)
        folder, offset = self._path.resolve().parent, int(info.offset or 0)
        place = folder / info.location
        try:
            place = place.resolve()
            size = place.stat().st_size
        except (OSError, ValueError, RuntimeError) as error:
            message = f"the values of '{proto.name}' are in the file '{info.location[:60]}', which cannot be read"
            raise WeightsError(message, self._path, "it belongs beside the model") from error
        if not place.is_relative_to(folder) or Path(info.location).is_absolute() or ".." in Path(info.location).parts:
            message = f"the values of '{proto.name}' are outside of the model's folder: '{info.location[:60]}'"
            raise WeightsError(message, self._path, "put the file beside the model, if you trust it")
        length = int(info.length) if info.length is not None else size - offset
        if offset < 0 or length < 0 or offset + length > size:
            message = f"the values of '{proto.name}' end behind the end of {place.name}"
            raise WeightsError(message, self._path, _HINT)
        return place, offset, length

    def _values(self, proto: onnx.TensorProto) -> Array:
        """Reads a tensor. Raises WeightsError if it is damaged."""
        try:
            if onnx.external_data_helper.uses_external_data(proto):
                place, offset, length = self._beside(proto)
                with open_regular(place) as file:
                    file.seek(offset)
                    content = file.read(length)
                proto = onnx.TensorProto(name=proto.name, data_type=proto.data_type, dims=proto.dims, raw_data=content)
            array: Array = onnx.numpy_helper.to_array(proto)
        except (ValueError, TypeError, RuntimeError, OverflowError, MemoryError) as error:
            message = f"the values of '{proto.name}' are damaged: {error!s:.100}"
            raise WeightsError(message, self._path, _HINT) from error
        return array

    def _preprocessing(self) -> Iterator[str]:
        """A note where the graph computes something on its input before the first convolution."""
        constants = self._constants.keys()
        value = next((value.name for value in self._graph.input if value.name not in constants), "")
        operators: list[str] = []
        passed: set[str] = set()
        while value not in passed and len(consumers := self._consumers.get(value, [])) == 1:
            node = consumers[0]
            if node.op_type not in ("Sub", "Add", "Mul", "Div", "Transpose", "Identity", "Cast", "BatchNormalization"):
                break
            operators += [] if node.op_type in ("Identity", "Cast") else [node.op_type]
            passed.add(value)
            value = node.output[0]
        if operators:
            names = ", ".join(operators[:8]) + (", …" if len(operators) > 8 else "")
            yield f"the model begins with {names} on its input, which is not imported: see --mean and --std"


def _attributes(node: onnx.NodeProto) -> Mapping[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _is_size(number: object) -> bool:
    """Whether it is a number that a shape or a stride may be."""
    return type(number) is int and 0 <= number < 1 << 31


def _sized(tensor: onnx.TensorProto) -> bool:
    """Whether it is an array of floats, and no shape or scalar."""
    return tensor.data_type in _NAMES and len(tensor.dims) > 0 and any(dim > 1 for dim in tensor.dims)


def _derived(tensor: Tensor, shape: Sequence[int], change: Any) -> Tensor:
    return Tensor(tensor.name, tuple(shape), "F64", lambda: change(tensor.unchecked().astype(np.float64)))


def _spread(bias: Tensor, channels: int, beta: float) -> Tensor:
    """Gemm's C, which may have the axis of the batch or be a scalar, times beta."""
    return _derived(bias, (channels,), lambda array: beta * np.broadcast_to(array.reshape(-1), (channels,)))


def _scaled(weights: Tensor, scale: npt.NDArray[np.float64]) -> Tensor:
    by = scale.reshape(-1, *[1] * (len(weights.shape) - 1))
    return _derived(weights, weights.shape, lambda array: array * by)


def _shifted(
    bias: Tensor | None, scale: npt.NDArray[np.float64] | None, shift: npt.NDArray[np.float64], name: str
) -> Tensor:
    if bias is None:
        return Tensor(name, shift.shape, "F64", lambda: shift)
    return _derived(bias, bias.shape, lambda array: (array if scale is None else array * scale) + shift)
