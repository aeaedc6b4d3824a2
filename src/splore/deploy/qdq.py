"""A program in bytes as an ONNX file: QuantizeLinear and DequantizeLinear around operations on floats.

That is how ONNX says what is in eight bits. A runtime joins each operation with what is around it to one on bytes.
"""

import json
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from splore.deploy.eight_bits import InBytes
from splore.engine.integer import Convert, Quant, Table
from splore.engine.integer_reference import compose
from splore.engine.program import Act, Activate, Add, Affine, Concat, Conv, Flatten, IntConv, Mul, Op, Pool
from splore.engine.reference import compose as compose_floats
from splore.engine.weight import Floats
from splore.task import Task

OPSET, IR_VERSION = 20, 9
LARGEST_BIAS = 1 << 28
"""Of a bias in steps of the sums, which with the sums has to fit 32 bits."""

ACTIVATIONS: dict[Act, tuple[str, dict[str, Any]]] = {
    Act.RELU: ("Relu", {}), Act.SIGMOID: ("Sigmoid", {}), Act.HARDSWISH: ("HardSwish", {}),
    Act.HARDSIGMOID: ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}), Act.GELU: ("Gelu", {}),
    Act.GELU_TANH: ("Gelu", {"approximate": "tanh"}), Act.TANH: ("Tanh", {}), Act.EXP: ("Exp", {}),
    Act.SQRT: ("Sqrt", {}), Act.RECIPROCAL: ("Reciprocal", {}), Act.ABS: ("Abs", {}), Act.ELU: ("Elu", {}),
    Act.MISH: ("Mish", {}),
}  # fmt: skip


def qdq(net: InBytes, task: Task | None) -> onnx.ModelProto:
    """The ONNX model, with an open batch size, of `images` and `outputs`; its metadata has the task as JSON.

    Raises:
        ValueError: an operation that is not written in this form yet.
    """
    program = net.program
    writer = _Writer(net)
    given, gets = program.caller_shapes
    writer.reals[0] = "images" if given == program.input else writer.reshaped("images", program.input, "input")
    for index, op in enumerate(program.ops):
        writer.write(op, index + 1)
    result = writer.reals[len(program.ops)]
    if gets == program.output:
        writer.node("Identity", [result], "outputs")
    else:
        writer.reshaped(result, gets, "outputs")
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *dims])
        for name, dims in (("images", given), ("outputs", gets))
    ]
    graph = helper.make_graph(writer.nodes, "splore", ends[:1], ends[1:], writer.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    if task is not None:
        helper.set_model_props(model, {"splore.task": json.dumps(task.to_json())})
    onnx.checker.check_model(model)
    return model


class _Writer:
    """Writes nodes; `reals` has the name of the tensor of floats that a value of the program is."""

    def __init__(self, net: InBytes) -> None:
        self.program, self.activations = net.program, net.activations
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.reals: dict[int, str] = {}

    def node(self, kind: str, inputs: list[str], output: str, attributes: dict[str, Any] | None = None) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes or {}))
        return output

    def constant(self, name: str, values: NDArray) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(values, order="C"), name))
        return name

    def reshaped(self, x: str, dims: tuple[int, ...], output: str) -> str:
        return self.node("Reshape", [x, self.constant(f"{output}.shape", np.array([-1, *dims], np.int64))], output)

    def write(self, op: Op, value: int) -> None:
        inputs = [self.reals[each] for each in op.inputs]
        quant = getattr(op, "quant", None)
        y = inputs[0] if isinstance(op, Convert) else self.result(op, inputs)
        name = f"{op.name}/table" if isinstance(op, Table) else op.name  # it has that of what it is applied to
        self.reals[value] = y if quant is None else self.rounded(name, y, quant)

    def result(self, op: Op, inputs: list[str]) -> str:
        """What the operation gives before it is rounded."""
        if isinstance(op, Conv):
            y = self.convolution(op, inputs[0])
            if len(inputs) == 2:
                y = self.node("Add", [y, inputs[1]], f"{op.name}/sum")
            return self.activated(op.name, y, op.act)
        if isinstance(op, Pool):
            window: dict[str, Any] = {"kernel_shape": op.kernel, "strides": op.stride, "pads": op.pad}
            if op.mode == "max":
                return self.node("MaxPool", inputs, f"{op.name}/max", window)
            return self.node(
                "AveragePool", inputs, f"{op.name}/mean", window | {"count_include_pad": op.count_include_pad}
            )
        if isinstance(op, Add | Mul):
            return self.activated(
                op.name, self.node(type(op).__name__, inputs, f"{op.name}/{type(op).__name__}"), op.act
            )
        if isinstance(op, Activate | Table):
            return self.activated(op.name, inputs[0], self.activations[op.name])
        if isinstance(op, Affine):
            scale, shift = (a[:, None, None] for a in (op.factors.scale, op.factors.shift))
            y = self.node("Mul", [*inputs, self.constant(f"{op.name}.factor", scale)], f"{op.name}/scaled")
            y = self.node("Add", [y, self.constant(f"{op.name}.shift", shift)], f"{op.name}/shifted")
            return self.activated(op.name, y, op.act)
        if isinstance(op, Concat):
            return self.node("Concat", inputs, f"{op.name}/all", {"axis": 1})
        if isinstance(op, Flatten):
            size = self.program.shapes[op.inputs[0]]
            return self.reshaped(inputs[0], (int(np.prod(size)), 1, 1), f"{op.name}/flat")
        raise ValueError(
            f"int8 files have convolutions, pools, sums, products, activations, found {type(op).__name__} {op.name!r}"
        )

    def convolution(self, op: Conv, x: str) -> str:
        channels = self.program.shapes[op.inputs[0]][0] // op.groups
        shape = (op.bias.size, channels, *op.kernel)
        if isinstance(op, IntConv):
            at = self.program.quants[op.inputs[0]]
            assert at is not None
            q, scale, bias = _in_steps(op, channels, at)
            weight = self.real(f"{op.name}.weight", q.reshape(shape), scale)
            terms = [weight, self.real(f"{op.name}.bias", bias, scale * np.float32(at.scale))]
        else:
            matrix = compose_floats(op.weight, channels * op.kernel[0] * op.kernel[1])
            terms = [
                self.constant(f"{op.name}.weight", matrix.reshape(shape)),
                self.constant(f"{op.name}.bias", op.bias),
            ]
        window = {"kernel_shape": op.kernel, "strides": op.stride, "pads": op.pad, "dilations": op.dilation}
        return self.node("Conv", [x, *terms], f"{op.name}/conv", window | {"group": op.groups})

    def real(self, name: str, q: NDArray, scale: Floats) -> str:
        """Constants in integers, with a scale for each output channel, as floats."""
        terms = [self.constant(name, q), self.constant(f"{name}.scale", scale)]
        return self.node("DequantizeLinear", terms, f"{name}/real", {"axis": 0})

    def rounded(self, name: str, x: str, quant: Quant) -> str:
        terms = [
            self.constant(f"{name}.scale", np.array(quant.scale, np.float32)),
            self.constant(f"{name}.zero", np.array(quant.zero, np.uint8)),
        ]
        return self.node("DequantizeLinear", [self.node("QuantizeLinear", [x, *terms], f"{name}/bytes"), *terms], name)

    def activated(self, name: str, x: str, act: Act) -> str:
        if act is Act.NONE:
            return x
        if act is Act.RELU6:
            limits = [self.constant(f"{name}.{end}", np.array(end, np.float32)) for end in (0, 6)]
            return self.node("Clip", [x, *limits], f"{name}/act")
        if act is Act.SILU:
            return self.node("Mul", [x, self.node("Sigmoid", [x], f"{name}/sigmoid")], f"{name}/act")
        kind, attributes = ACTIVATIONS[act]
        return self.node(kind, [x], f"{name}/act", attributes)


def _in_steps(op: IntConv, channels: int, at: Quant) -> tuple[NDArray[np.int8], Floats, NDArray[np.int32]]:
    """The weight (n, k) in signed bytes, its scales (n), and the bias in steps of the sums.

    The scale of a row of zeros is one that the bias fits; so is that of a row of next to nothing.
    """
    q = compose(op.weight, channels, op.kernel[0] * op.kernel[1])
    least = np.abs(op.bias) / np.float32(at.scale * LARGEST_BIAS)
    own = np.where(q.any(1), op.weight.scale, 0)
    scale = np.maximum(own, least)
    scale[scale == 0] = 1
    weight = np.rint(q * (own / scale)[:, None]).astype(np.int8)
    bias = np.rint(op.bias / (scale.astype(np.float64) * at.scale)).astype(np.int32)
    return weight, scale.astype(np.float32), bias
