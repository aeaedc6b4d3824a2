"""Parameters, gradients and momentum cut into shards over processes, by PyTorch's FSDP2 (`fully_shard`).

Each process holds some rows of every parameter as a `DTensor`; a layer's whole parameters are gathered for its forward
and its backward pass. What works on single entries (the proximal step, the masks) works on the `local` part of a
tensor; a tensor that is not sharded is its own part, so that the same code serves both.
"""

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from splore.design.layers import decomposed_layers

OWN_GATHER = 1 << 20
"""A module with this many parameters of its own is gathered by itself; smaller ones together with the whole net."""


def is_sharded(tensor: Tensor) -> bool:
    """Whether a process holds only its part of the tensor; without an import of torch.distributed."""
    return hasattr(tensor, "placements")


def local(tensor: Any) -> Tensor:  # noqa: ANN401
    """This process's part of a tensor, in the same memory."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def whole(tensor: Any) -> Tensor:  # noqa: ANN401
    """The tensor gathered from all processes, which must all ask for it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def shard_like(tensor: Tensor, like: Any) -> Tensor:  # noqa: ANN401
    """A whole tensor, the same on all processes, sharded as `like` is. No process sends anything."""
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def total(value: Tensor, like: Any) -> Tensor:  # noqa: ANN401
    """The sum over the processes that share `like` of a value that each has of its part; without a gradient then."""
    if not is_sharded(like):
        return value
    value = value.detach().clone()
    torch.distributed.all_reduce(value, group=like.device_mesh.get_group())
    return value


class Shards:
    """The shards of a model in training.

    The model itself stays whole in every process, to be measured, cut and written; `gather` brings it up to date.

    Attributes:
        net: the model as it is to be trained, with sharded parameters and the model's own buffers, masks among them.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self.model = model
        masks = [layer.mask for layer in decomposed_layers(model).values() if layer.mask is not None]
        self.net = copy.deepcopy(model, {id(shared): shared for shared in (*model.buffers(), *masks)})
        for parameter in self.net.parameters():
            parameter.data = parameter.data.contiguous()
        mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
        owners = Counter(p for module in self.net.modules() for p in module.parameters(recurse=False))
        for module in self.net.modules():
            own = list(module.parameters(recurse=False))
            tied = any(owners[parameter] > 1 for parameter in own)
            if module is not self.net and sum(p.numel() for p in own) >= OWN_GATHER and not tied:
                fully_shard(module, mesh=mesh)
        fully_shard(self.net, mesh=mesh)

    @torch.no_grad()
    def gather(self) -> None:
        """Sets the parameters of the model to those of the shards. All processes must call it."""
        shards = dict(self.net.named_parameters())
        for name, parameter in self.model.named_parameters():
            parameter.copy_(whole(shards[name]))

    @torch.no_grad()
    def scatter(self) -> None:
        """Sets the shards to the parameters of the model."""
        shards = dict(self.net.named_parameters())
        for name, parameter in self.model.named_parameters():
            local(shards[name]).copy_(local(shard_like(parameter.detach(), shards[name])))


@torch.no_grad()
def optimizer_state(optimizer: Optimizer) -> dict:
    """The state dict of an optimiser as one process alone would have it. Of shards, all processes must ask for it."""
    state = optimizer.state_dict()
    wholes = {
        number: {name: whole(value).cpu() if is_sharded(value) else value for name, value in values.items()}
        for number, values in state["state"].items()
    }
    return state | {"state": wholes}


@torch.no_grad()
def set_optimizer_state(optimizer: Optimizer, state: dict) -> None:
    """Gives an optimiser the state that `optimizer_state` took, of shards or not."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    parts = {
        number: {
            name: shard_like(value, parameters[number])
            if isinstance(value, Tensor) and value.shape == parameters[number].shape
            else value
            for name, value in values.items()
        }
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict(state | {"state": parts})
