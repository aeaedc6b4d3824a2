"""The projections of `nn.MultiheadAttention` as layers.

PyTorch's attention holds the weights of its inputs' projections itself, as `in_proj_weight`, or `q_proj_weight` and two
more where keys or values have another width. Opened, it holds linear layers in their place, which can be decomposed as
others can; it computes as before, with the weights that it reads from them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

PROJECTIONS = ("in_proj", "q_proj", "k_proj", "v_proj")


class OpenAttention(nn.MultiheadAttention):
    """Attention whose projections are layers without biases: `in_proj` (3 E, E), or `q_proj`, `k_proj` and `v_proj`."""

    in_proj_weight = property(lambda self: self._weight_of("in_proj"))  # type: ignore[assignment]
    q_proj_weight = property(lambda self: self._weight_of("q_proj"))  # type: ignore[assignment]
    k_proj_weight = property(lambda self: self._weight_of("k_proj"))  # type: ignore[assignment]
    v_proj_weight = property(lambda self: self._weight_of("v_proj"))  # type: ignore[assignment]

    def _weight_of(self, name: str) -> Tensor | None:
        layer = self._modules.get(name)
        return None if layer is None else layer.weight  # type: ignore[return-value]

    def projected(self, args: tuple, kwargs: dict[str, Any]) -> Iterator[tuple[nn.Module, list[Tensor]]]:
        """Each projection when `forward` is called with these arguments, with an input for each E of its outputs."""
        given = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
        inputs = [given[name] for name in ("query", "key", "value")]
        if "in_proj" in self._modules:
            yield self.get_submodule("in_proj"), inputs
        else:
            yield from ((self.get_submodule(name), [x]) for name, x in zip(PROJECTIONS[1:], inputs, strict=True))


@contextmanager
def opened(model: nn.Module, chosen: Callable[[str], bool] = lambda name: True) -> Iterator[None]:
    """Opens attentions of a model in place; closes those again, at the end, of which no projection was decomposed.

    Opened are those `nn.MultiheadAttention` of which a projection is chosen by its name.
    """
    _open(model, chosen)
    try:
        yield
    finally:
        close_attentions(model)


def _open(model: nn.Module, chosen: Callable[[str], bool]) -> None:
    for path, module in model.named_modules(remove_duplicate=False):
        if type(module) is not nn.MultiheadAttention:  # a class of one's own may read its weights in any way
            continue
        weights = {name: module._parameters.get(f"{name}_weight") for name in PROJECTIONS}
        held = {name: weight for name, weight in weights.items() if weight is not None}
        if not held or not any(chosen(f"{path}.{name}".lstrip(".")) for name in held):
            continue
        for name in PROJECTIONS:
            del module._parameters[f"{name}_weight"]
        module.__class__ = OpenAttention  # type: ignore[assignment]
        for name, weight in held.items():
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            layer.weight = weight
            module.add_module(name, layer.train(module.training))


def close_attentions(model: nn.Module) -> None:
    """Makes those attentions PyTorch's own again, in place, of which no projection is decomposed."""
    for module in model.modules():
        if not isinstance(module, OpenAttention):
            continue
        held = {name: module.get_submodule(name) for name in PROJECTIONS if name in module._modules}
        if not all(isinstance(layer, nn.Linear) for layer in held.values()):
            continue
        for name in held:
            del module._modules[name]
        module.__class__ = nn.MultiheadAttention  # type: ignore[assignment]
        weights = {
            f"{name}_weight": held[name].get_parameter("weight") if name in held else None for name in PROJECTIONS
        }
        module._parameters = {**weights, **module._parameters}
