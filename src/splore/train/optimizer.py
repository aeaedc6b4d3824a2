"""What splore asks of an optimiser: steps that run hooks, and the parameters that the model has now."""

from torch import nn
from torch.optim import Optimizer

from splore.design.layers import decomposed_layers


def hooked(optimizer: object) -> Optimizer:
    """The optimiser itself within wrappers, such as Accelerate's or Lightning's, that have it as `.optimizer`.

    Raises:
        ValueError: there is none whose steps run hooks.
    """
    found = optimizer
    while not _runs_hooks(found):
        if not hasattr(found, "optimizer"):
            raise ValueError(
                "expected a torch.optim.Optimizer, or one wrapped as `.optimizer`, whose steps run the hooks that are "
                f"registered on it, found {type(optimizer).__name__}: give the optimiser within"
            )
        found = found.optimizer
    assert isinstance(found, Optimizer)
    return found


def _runs_hooks(optimizer: object) -> bool:
    """Whether hooks of it would be run: an optimiser that skips the constructor of its class takes them and is mute."""
    return hasattr(optimizer, "_optimizer_step_pre_hooks") and getattr(
        getattr(type(optimizer), "step", None), "hooked", False
    )


class Present:
    """Whether an optimiser holds the present parameters of a model's decomposed layers, as a hook before its steps.

    They change where a rank does: by a cut, or by a state that is loaded. An optimiser that holds the old ones would
    never move the new ones, and would not say so. Frozen parameters and dense layers are left out. Where layers are
    themselves replaced, what was hung on the optimiser for the old ones would go on with these.

    Raises:
        ValueError: it lacks some, or there are other layers; when built, and before a step when they have changed.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.layers, self._places = decomposed_layers(model), _places(model)
        self._check()

    def __call__(self, *_: object) -> None:
        if any(children.get(name) is not child for children, name, child in self._places):
            self._check_layers()
        if any(now is not then for now, then in zip(self._parts(), self._seen, strict=True)):
            self._check()

    def _parts(self) -> list[nn.Parameter | None]:
        return [part for layer in self.layers.values() for part in (layer.A, layer.B, layer.S)]

    def _check_layers(self) -> None:
        """Raises ValueError unless the model has the decomposed layers that it had, whatever else was replaced."""
        before, self._places = set(map(id, self.layers.values())), _places(self.model)
        layers = decomposed_layers(self.model)
        changed = [name for name, layer in self.layers.items() if layers.get(name) is not layer]
        changed += [name for name, layer in layers.items() if id(layer) not in before]
        if set(map(id, layers.values())) != before:
            raise ValueError(
                f"layers were decomposed or replaced after this optimiser was prepared, {changed[0]!r} among them: "
                "call remove() on what attach or hold_masks returned, build the optimiser anew, and attach it again"
            )

    def _check(self) -> None:
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        lacking = [
            f"{part} of {name!r}"
            for name, layer in self.layers.items()
            for part, p in {"A": layer.A, "B": layer.B, "S": layer.S}.items()
            if p is not None and p.requires_grad and id(p) not in held
        ]
        if lacking:
            more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
            raise ValueError(
                f"the optimiser does not hold the model's present parameters: it lacks {', '.join(lacking[:3])}{more}. "
                "Where ranks change, A and B are new: build the optimiser after cuts, loaded states and wrappers that "
                "replace parameters; freeze what is not to be trained with requires_grad_(False)"
            )
        self._seen = self._parts()


def _places(model: nn.Module) -> list[tuple[dict[str, nn.Module | None], str, nn.Module | None]]:
    """Where each module is held: the children of another, its name there, and itself."""
    return [(module._modules, name, child) for module in model.modules() for name, child in module._modules.items()]
