"""What a layer's own forward does with its weight, and the same with a composed one.

A class of one's own may pad an image to its stride, or cast a bias, before it multiplies: timm's layers do. Such a
forward computes with W = A·B + S as it does with W, and a zero of S is a zero of what it multiplies by. One that
standardises or drops weights is another matter. So a forward is watched while it runs, without storage: its weight may
reach nothing but one convolution or one matrix product, whose result is what it returns.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

_PRODUCTS = (F.linear, F.conv1d, F.conv2d, F.conv3d)
_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_CASTS = tuple(getattr(Tensor, name) for name in ("to", "type", "type_as", "float", "half", "bfloat16", "double",
                                                  "contiguous"))  # fmt: skip
_PADS = (F.pad, torch._C._nn.pad)
HOOKS = tuple(name for name in vars(nn.Module()) if "hook" in name)
"""The attributes in which a module has its hooks, and what they need to know of them."""


class Shell:
    """A dense layer without its weights: called with an input and weights, it does what the layer would do with them.

    Attributes:
        module: the layer, its parameters on 'meta'.
    """

    def __init__(self, dense: nn.Module) -> None:
        places = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in dense.parameters()}
        self.module = copy.deepcopy(dense, dict(places))

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if torch.compiler.is_compiling():
            return functional_call(self.module, {"weight": weight} | ({} if bias is None else {"bias": bias}), (x,))
        own = copy.copy(self.module)  # of this call: others may run at once
        own.__dict__["_parameters"] = {"weight": weight, "bias": bias}
        return own(x)

    def dense(self) -> nn.Module:
        """A dense layer of the same class, to be given weights."""
        return copy.deepcopy(self.module)


def has_own_forward(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer computes otherwise than by what this class of PyTorch's has."""
    return any(getattr(type(module), f, None) is not getattr(kind, f, None) for f in ("forward", "_conv_forward"))


def oddity(module: nn.Linear | _ConvNd) -> str:
    """What the layer's forward does beyond one product with its weight, of its input padded or cast; empty for none."""
    if list(module.children()) or set(module._parameters) != {"weight", "bias"} or module._buffers:
        return "it has more than a weight and a bias"
    shell = Shell(module).module
    x = torch.empty(_probe(module), device="meta", dtype=module.weight.dtype)
    for training in (False, True):
        watch = _Watch(shell.train(training), x)
        try:
            with torch.no_grad(), watch:
                result = shell(x)
        except Exception as error:  # of its own code: anything
            return f"it can't be followed: {' '.join(str(error).split())[:80]}"
        if watch.odd or watch.role.get(id(result)) != "output":
            return watch.odd or "it does not return what its weight gives"
    return ""


def product_input(module: nn.Module, x: Tensor) -> tuple[Tensor, Any]:
    """What a forward in which `oddity` finds none multiplies by its weight, for an input, and with which padding."""
    watch = _Watch(module, x)
    with torch.no_grad(), watch:
        module.forward(x)
    return watch.product["input"], watch.product.get("padding", 0)


def _probe(module: nn.Linear | _ConvNd) -> tuple[int, ...]:
    if isinstance(module, nn.Linear):
        return 2, module.in_features
    sizes = [2 * d * k + s for d, k, s in zip(module.dilation, module.kernel_size, module.stride, strict=True)]
    return 2, module.in_channels, *sizes


class _Watch(TorchFunctionMode):
    """Follows the input, the weight and the bias of a layer through its forward.

    Attributes:
        role: input, weight, bias or output, by the `id` of a tensor.
        product: the arguments of the product, by name.
        odd: what else was first done with one of them, but for casts, and padding of the input.
    """

    def __init__(self, module: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.module, self.odd, self.product = module, "", dict[str, Any]()
        known = {"input": x, "weight": module.weight, "bias": module.bias}
        self.role = {id(tensor): role for role, tensor in known.items() if tensor is not None}
        self.alive: list[object] = list(known.values())  # an `id` is one tensor's while it lives

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: Sequence = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        roles = [self.role[id(each)] for each in pytree.tree_leaves((args, kwargs)) if id(each) in self.role]
        if not roles or not isinstance(result, Tensor):
            return result
        product = dict(zip(_ARGUMENTS, args, strict=False)) | dict(kwargs)
        if func in _PRODUCTS and roles in (["input", "weight"], ["input", "weight", "bias"]) and self._as_ever(product):
            self.product = product
            return self._known(result, "output")
        if (func in _CASTS and len(roles) == 1) or (func in _PADS and roles == ["input"]):
            return self._known(result, roles[0])
        self.odd = self.odd or f"it does {getattr(func, '__name__', func)} with its {' and '.join(roles)}"
        return result

    def _known(self, result: Tensor, role: str) -> Tensor:
        self.alive.append(result)
        self.role[id(result)] = role
        return result

    def _as_ever(self, product: Mapping[str, Any]) -> bool:
        """Whether the product goes over the input as the layer's attributes say."""
        return all(
            set(pytree.tree_leaves(product.get(name, 1))) <= set(pytree.tree_leaves(getattr(self.module, name, 1)))
            for name in ("stride", "dilation", "groups")
        )
