"""All that the method adds to somebody's training, hung on their optimiser by one line before the loop."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import LBFGS, Optimizer

from splore.design.layers import decomposed_layers
from splore.train.masks import MaskHold
from splore.train.optimizer import Present, hooked
from splore.train.penalties import L1, FrobeniusDecay, NuclearDecay, Scaling
from splore.train.rate import Rate, rate
from splore.train.straight_through import StraightThrough


class Attached:
    """What `attach` has hung on an optimiser; `remove` takes it down again.

    Attributes:
        l1, frobenius, nuclear: the penalties; their `strength` may be changed on the way.
        masks: the hold of the masks, or None.
        straight_through: the threshold on S, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        l1: float,
        frobenius: float,
        nuclear: float,
        scaling: Scaling,
        proximal: bool,
        masks: bool,
        density: float,
        steps: int | None,
    ) -> None:
        self.optimizer = hooked(optimizer)
        if not decomposed_layers(model):
            raise ValueError("the model has no layer with W = A·B + S: decompose it first")
        if isinstance(self.optimizer, LBFGS):
            raise ValueError(
                "LBFGS searches along the loss, of which the penalties must be a part: add FrobeniusDecay.penalty() "
                "and L1.penalty() to it, and call hold_masks"
            )
        if l1 and proximal and rate.dispatch(type(self.optimizer)) is rate.dispatch(object):
            rate(self.optimizer, {}, {})
        self.l1, self.proximal = L1(model, l1, scaling), proximal
        self.frobenius, self.nuclear = FrobeniusDecay(model, frobenius), NuclearDecay(model, nuclear)
        self.straight_through = self._threshold(density, steps)
        self._stepping = False
        present = Present(model, self.optimizer)
        self._check_once()
        self._handles = [
            self.optimizer.register_step_pre_hook(present),
            self.optimizer.register_step_pre_hook(self._before),
            self.optimizer.register_step_post_hook(self._after),
        ]
        self.masks = MaskHold(model, optimizer) if masks else None

    def _check_once(self) -> None:
        """Raises ValueError for a penalty on parts that have it already: each step would take it twice."""
        for hook in self.optimizer._optimizer_step_pre_hooks.values():
            other = getattr(hook, "__self__", None)
            if not isinstance(other, Attached) or not {*map(id, self.l1.parts)} & {*map(id, other.l1.parts)}:
                continue
            for name in ("l1", "frobenius", "nuclear"):
                if getattr(self, name).strength and getattr(other, name).strength:
                    raise ValueError(f"the model has the {name} on this optimiser already: remove() that first")
            if self.straight_through and other.straight_through:
                raise ValueError("the model has a threshold on this optimiser already: remove() that first")

    def _threshold(self, density: float, steps: int | None) -> StraightThrough | None:
        if not 0 < density <= 1:
            raise ValueError(f"density must be above 0 and at most 1, found {density}")
        if density == 1:
            return None
        if steps is None or steps < 1:
            raise ValueError(
                f"a density below 1 is reached step by step: give steps=, those of the whole training, found {steps}"
            )
        return StraightThrough(self.optimizer, self.l1.parts, self.l1.blocks, density, steps)

    def remove(self) -> None:
        """Leaves the optimiser as it was found; S stays what is above its threshold, if it has one."""
        for handle in self._handles:
            handle.remove()
        if self.masks:
            self.masks.remove()
        if self.straight_through:
            self.straight_through.remove()

    def state_dict(self) -> dict[str, Any]:
        """The strengths; and the random numbers, where parts are in half precision. The masks are the model's."""
        generator = self.l1.generator
        strengths = {"l1": self.l1.strength, "frobenius": self.frobenius.strength, "nuclear": self.nuclear.strength}
        return strengths | {"random": None if generator is None else generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on as `state_dict` found it."""
        self.l1.strength, self.frobenius.strength = state["l1"], state["frobenius"]
        self.nuclear.strength = state["nuclear"]
        if state["random"] is not None and self.l1.parts:
            self.l1.generator = torch.Generator(self.l1.parts[0].device)
            self.l1.generator.set_state(state["random"].cpu())

    def _before(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Adds gradients to those of the loss; where a closure is to make these within the step, after it has."""
        if self._stepping:  # a step within a step, of a subclass that goes on to its class's
            return None
        self._stepping = True
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._add_gradients()
            return None
        if len(args) > 1:
            return (args[0], self._with_gradients(closure), *args[2:]), kwargs
        return args, kwargs | {"closure": self._with_gradients(closure)}

    def _with_gradients(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def both() -> Any:  # noqa: ANN401
            loss = closure()
            self._add_gradients()
            return loss

        return both

    def _add_gradients(self) -> None:
        if self.straight_through:
            self.straight_through.restore()
        scale = getattr(self.optimizer, "grad_scale", None)  # of a fused step, which divides the gradients by it
        scale = 1.0 if scale is None else float(scale)
        if any(group.get("maximize") for group in self.optimizer.param_groups):  # penalties are to fall even so
            scale = -scale
        self.frobenius.add_gradients(scale)
        self.nuclear.add_gradients(scale)
        if not self.proximal:
            self.l1.add_gradients(scale)

    def _after(self, *_: object) -> None:
        if self._stepping and self.proximal and self.l1.strength:
            overflow = getattr(self.optimizer, "found_inf", None)  # of a fused step, which then leaves all as it was
            if overflow is None or not overflow.item():
                self.l1.shrink(self._rates())
        if self._stepping and self.straight_through:
            self.straight_through.apply()
        self._stepping = False

    def _rates(self) -> list[Rate]:
        """The rates of the sparse parts; 0 where the step has left one alone, for want of a gradient."""
        groups = {id(p): group for group in self.optimizer.param_groups for p in group["params"]}
        return [
            0.0 if S.grad is None else rate(self.optimizer, groups[id(S)], self.optimizer.state.get(S, {}))
            for S in self.l1.parts
        ]


def attach(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    l1: float = 0.0,
    frobenius: float = 0.0,
    nuclear: float = 0.0,
    scaling: Scaling = Scaling.PCA,
    proximal: bool = True,
    masks: bool = True,
    density: float = 1.0,
    steps: int | None = None,
) -> Attached:
    """Hangs the method on a training loop: from now on each step of `optimizer` learns W = A·B + S.

        attached = splore.attach(model, optimizer, l1=1e-3, frobenius=5e-4)

    Nothing else in the loop changes, with gradient accumulation, clipping, a gradient scaler (a step that it skips is
    none), closures, and wrappers such as Accelerate's, Lightning's or a Hugging Face Trainer's. What is added to the
    gradients is added after clipping, as weight decay is. A deep copy of the optimiser has none of it: attach it anew.

    Args:
        model: a decomposed network; DDP, FSDP2 and `torch.compile` may have wrapped it.
        optimizer: the one that trains it, or a wrapper that has it as `.optimizer`.
        l1: the strength of the l1 on S, as in `L1`. Its proximal step follows the optimiser's, with the learning rate
            and momentum that S's parameter group has at that step: for SGD the threshold is strength * lr / (1 - m);
            for Adam, AdamW, NAdam, RAdam, Adamax, RMSprop and Adagrad it is strength * the rate at which the optimiser
            moves each entry, such as lr / (√v̂ + ε). `splore.train.rate` has them all, and says why.
        frobenius: the strength of `FrobeniusDecay` on A·B.
        nuclear: the strength of the nuclear norm of A·B, in layers with an S; not beside `parameter_groups(nuclear=)`.
        scaling: how the strength of the l1 differs between layers.
        proximal: False takes the l1 into the gradients instead (the paper's way), with any optimiser.
        masks: whether cut entries of S are held at zero, as by `hold_masks`.
        density: below 1, S stands behind a threshold that lets through this share of its entries in the end, with
            gradients that pass straight through, so that entries come back: see `splore.train.straight_through`. About
            the share that a cut will leave, and no l1 beside it. The optimiser's state holds what is behind it.
        steps: how many steps the whole training has; the threshold rises over the first 80 % of them.

    Raises:
        ValueError: nothing is decomposed; the optimiser lacks present parameters of the model (before a step, too, if
            ranks change), has the same penalty already, is LBFGS, or is one for which the threshold is not known.
    """
    return Attached(model, optimizer, l1, frobenius, nuclear, scaling, proximal, masks, density, steps)
