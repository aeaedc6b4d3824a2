"""Why a layer can't be decomposed: what it is, and who else holds it or its weight."""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType

from torch import Tensor, nn
from torch.optim import Optimizer

from splore.design.low_rank_sparse import KINDS
from splore.design.own_forward import HOOKS, has_own_forward, oddity

_OWN = frozenset(vars(nn.Module()))
"""What every module has: its parameters and children among them, from which `decompose` replaces layers."""

OTHERS = (nn.RNNBase, nn.RNNCellBase, nn.Embedding, nn.EmbeddingBag, nn.Bilinear, nn.MultiheadAttention)
"""Layers with matrices of their own that are not decomposed, and are to be named; an attention that was opened is."""


class Uses:
    """Where a model holds its weights and modules, beside the places at which a layer can be replaced."""

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        parameters = [p for module in modules for p in module._parameters.values() if p is not None]
        self.owners = Counter(id(p) for p in parameters)
        self.memory = Counter(_memory(p) for p in {id(p): p for p in parameters}.values())
        kept = (each for module in modules for name, value in vars(module).items() if name not in _OWN
                for each in _held(value))  # fmt: skip
        buffers = (b for module in modules for b in module._buffers.values() if b is not None)
        self.kept = {_memory(each) if type(each) is Tensor else id(each) for each in (*kept, *buffers)}


def obstacle(module: nn.Module, uses: Uses) -> str:
    """Why a layer can't be decomposed; empty when it can."""
    if not isinstance(module, KINDS):
        return f"a {type(module).__name__}: only convolutions, linear layers and attention's projections are decomposed"
    kind = next(kind for kind in KINDS if isinstance(module, kind))
    if "forward" in vars(module):
        return f"{type(module).__name__} has a forward of its own, set on this one layer"
    groups = getattr(module, "groups", 1)
    if groups > 1 and (module.transposed or groups == module.in_channels):
        return (
            "a grouped transposed convolution"
            if module.transposed
            else "a depthwise convolution: filters of one channel"
        )
    if module._parameters.get("weight") is None or "bias" not in module._parameters:
        return "its weight or bias is parametrised"
    weight = module.weight
    if isinstance(weight, nn.UninitializedParameter):
        return "it is lazy: run the model once first"
    if not weight.is_floating_point():
        return f"its weight is {weight.dtype}"
    if has_own_forward(module, kind) and (odd := oddity(module)):
        return f"{type(module).__name__} has a forward of its own: {odd}"
    if uses.owners[id(weight)] > 1 or uses.memory[_memory(weight)] > 1:
        return "its weight is tied to another module's"
    if any(getattr(module, name) for name in HOOKS):
        return "it carries hooks"
    if weight._backward_hooks or weight._post_accumulate_grad_hooks:
        return "its weight carries hooks"
    if not uses.kept.isdisjoint((id(module), id(weight), _memory(weight))):
        return "a module keeps it in a list or an attribute too, and would go on with the dense layer"
    return ""


def _memory(parameter: Tensor) -> object:
    """The same for two parameters that begin at one place in memory; of its own for one that has none there."""
    if parameter.is_meta or isinstance(parameter, nn.UninitializedParameter) or not parameter.numel():
        return id(parameter)
    return parameter.device, parameter.data_ptr()


def _held(value: object, depth: int = 4) -> Iterator[object]:
    """The modules and tensors in a plain attribute: itself, or in collections, functions and objects."""
    if isinstance(value, nn.Module | Tensor):
        yield value
    elif depth and not isinstance(value, str | bytes | type | ModuleType | Optimizer):
        for each in _within(value):
            yield from _held(each, depth - 1)


def _within(value: object) -> Iterable[object]:
    """What an object has in it: a collection, a bound method, a function with its closure, a partial call, others."""
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, list | tuple | set | frozenset | deque):
        return value
    if isinstance(value, MethodType):
        return (value.__self__,)
    if isinstance(value, partial):
        return value.func, *value.args, *value.keywords.values()
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]
        return *cells, *(value.__defaults__ or ())
    return getattr(value, "__dict__", {}).values()
