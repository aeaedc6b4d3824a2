"""A network as a file of another runtime. Each function writes one, and returns what runs it, read back from there.

The networks come from `splore.deploy.cheapest`, but for the compact ONNX file; `x` is an example batch (2, C, H, W).
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from splore.capture.compile import compile
from splore.capture.export import densified
from splore.capture.onnx_segment import quiet_exporters
from splore.deploy.cheapest import cheapest
from splore.deploy.eight_bits import InBytes
from splore.deploy.runtimes import Run, executorch_program, onnx_session, openvino_model, torch_program
from splore.design.layers import decomposed_layers
from splore.engine.engine import Engine, run_torch
from splore.modelfile.structure import join
from splore.task import task_of
from splore.tensors import load_tensors
from splore.vision import read_weights

SPARSE_BELOW = 1 / 3
"""Density below which a sparse initialiser is smaller: an entry takes 12 bytes there, and 4 in a dense one."""


def to_onnx(model: nn.Module, x: Tensor, path: Path, threads: int) -> Run:
    """An ONNX file with an open batch size; its metadata has the task as JSON."""
    _onnx(cheapest(model), x, path, model, optimised=True)
    return onnx_session(path, threads)


def to_onnx_in_bytes(net: InBytes, model: nn.Module, path: Path, threads: int) -> Run:
    """An ONNX file in eight bits, see `splore.deploy.qdq`."""
    import onnx

    from splore.deploy.qdq import qdq

    onnx.save(qdq(net, task_of(model)), path)
    return onnx_session(path, threads)


def to_compact_onnx(model: nn.Module, x: Tensor, path: Path, threads: int) -> Run:
    """An ONNX file that holds A, B and S apart, S as a sparse initialiser: the reader puts W together as it opens it.

    ONNX Runtime reads it; OpenVINO doesn't know sparse initialisers.
    """
    import onnx

    _onnx(model, x, path, model, optimised=False)  # the optimiser would multiply A and B
    proto = onnx.load(path)
    sparse = {join(name, "S") for name in decomposed_layers(model)}
    for tensor in [each for each in proto.graph.initializer if each.name in sparse]:
        values = onnx.numpy_helper.to_array(tensor)
        places = np.flatnonzero(values)
        if len(places) < SPARSE_BELOW * values.size:
            entries = onnx.numpy_helper.from_array(values.reshape(-1)[places], tensor.name)
            indices = onnx.numpy_helper.from_array(places.astype(np.int64), f"{tensor.name}.places")
            proto.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(entries, indices, values.shape))
            proto.graph.initializer.remove(tensor)
    onnx.save(proto, path)
    return onnx_session(path, threads)


def to_openvino(model: nn.Module, x: Tensor, path: Path, threads: int) -> Run:
    """An OpenVINO IR: `path` (.xml) and the weights next to it (.bin), in float32, with an open batch size."""
    with tempfile.TemporaryDirectory() as folder:
        _onnx(cheapest(model), x, Path(folder) / "net.onnx", model, optimised=True)
        return _openvino(Path(folder) / "net.onnx", model, path, threads)


def to_openvino_in_bytes(net: InBytes, model: nn.Module, path: Path, threads: int) -> Run:
    """An OpenVINO IR in eight bits: that of the ONNX file."""
    import onnx

    from splore.deploy.qdq import qdq

    with tempfile.TemporaryDirectory() as folder:
        onnx.save(qdq(net, task_of(model)), Path(folder) / "net.onnx")
        return _openvino(Path(folder) / "net.onnx", model, path, threads)


def to_pt2(model: nn.Module, x: Tensor, path: Path, threads: int) -> Run:
    """A program of `torch.export`, with an open batch size."""
    task = task_of(model)
    with quiet_exporters():
        program = torch.export.export(cheapest(model), (x,), dynamic_shapes=_open_batch())
        torch.export.save(program, path, extra_files={"task.json": "" if task is None else json.dumps(task.to_json())})
    return torch_program(path)


def to_executorch(model: nn.Module, x: Tensor, path: Path, threads: int) -> Run:
    """A program for ExecuTorch with XNNPACK's kernels, for one image at a time."""
    with quiet_exporters():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        program = torch.export.export(cheapest(model), (x[:1],))
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    path.write_bytes(lowered.buffer)
    run = executorch_program(path)
    return lambda images: np.concatenate([run(image[None]) for image in images])


def to_dense(model: nn.Module, x: Tensor, path: Path, threads: int) -> Run:
    """The state dict of the dense net that the model stands for, under the names of the original code: safetensors, or
    what torch.load reads where the path ends in .pt or .pth."""
    net = densified(model)[0].eval()
    state = {name: value.detach().clone().contiguous() for name, value in net.state_dict().items()}
    if path.suffix in (".pt", ".pth"):
        torch.save(state, path)
    else:
        task = task_of(model)
        save_file(state, path, {"format": "pt"} | ({} if task is None else {"task": json.dumps(task.to_json())}))
    load_tensors(net, read_weights(path))
    return lambda images: run_torch(net, [images])[0]


def to_engine(model: nn.Module, x: Tensor, path: Path, threads: int) -> Run:
    """A program of splore's own engine, see `splore.compile`; it runs the zeros as zeros."""
    compile(model, x[:1], threads).save(path)
    return Engine.load(path, threads)


def _openvino(source: Path, model: nn.Module, path: Path, threads: int) -> Run:
    """The IR of an ONNX file."""
    import openvino

    found = openvino.convert_model(source)
    task = task_of(model)
    if task is not None:
        found.set_rt_info(json.dumps(task.to_json()), ["splore", "task"])
    openvino.save_model(found, path, compress_to_fp16=False)
    return openvino_model(path, threads)


def _onnx(net: nn.Module, x: Tensor, path: Path, model: nn.Module, optimised: bool) -> None:
    task = task_of(model)
    with quiet_exporters():
        program = torch.onnx.export(
            net,
            (x,),
            dynamo=True,
            dynamic_shapes=_open_batch(),
            input_names=["images"],
            output_names=["outputs"],
            external_data=False,
            optimize=optimised,
            verbose=False,
        )
    assert program is not None
    if task is not None:
        program.model.metadata_props["splore.task"] = json.dumps(task.to_json())
    program.save(path)


def _open_batch() -> tuple:
    return ({0: torch.export.Dim("batch", min=1)},)
