"""How far an optimiser moves a parameter for each unit of a steady gradient: what an l1 threshold is measured by.

An l1 of strength λ is a steady gradient of λ towards zero. So the proximal step that follows an optimiser's step is the
soft threshold by λ times this rate, and λ means the same as in a term of the loss, whatever the optimiser:

    SGD                     lr, with momentum m and dampening d: lr (1 - d) / (1 - m); so with Nesterov's
    Adam, AdamW, NAdam      lr / (√v̂ + ε) for each entry, v̂ the unbiased average of its squared gradients (AMSGrad's
                            greatest); the average of the gradients themselves gains nothing
    RAdam                   the same, times its rectification; lr while that is undefined
    Adamax                  lr / u, u the decayed maximum of the gradients' magnitudes
    RMSprop                 lr / (√v + ε) / (1 - m), v less the squared mean where it is centred
    Adagrad                 lr / (1 + decay (t - 1)) / (√Σg² + ε)

For the adaptive ones this is the proximal step in the metric that the optimiser steps in (ProxGen: Yun et al.,
arXiv 2006.07065). An entry at zero then stays there exactly as long as the averaged gradient is no larger than λ, which
is the condition for a minimum; one threshold for all entries, such as lr λ, would solve another problem, in which λ
depends on the size of each entry's gradients.
"""

from functools import singledispatch
from math import sqrt
from typing import Any

from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, Adamax, NAdam, Optimizer, RAdam, RMSprop

from splore.train.shards import local

Group = dict[str, Any]
State = dict[str, Any]
Rate = float | Tensor
"""For all entries, or for each in the parameter's shape; of a sharded one, for those of this process."""


@singledispatch
def rate(optimizer: Optimizer, group: Group, state: State) -> Rate:
    """The rate of a parameter of this group and with this state, which the optimiser has just stepped.

    Raises:
        ValueError: the optimiser is none of those above.
    """
    raise ValueError(
        f"the l1's threshold after a step of {type(optimizer).__name__} is not known: take the l1 into the gradients "
        "(proximal=False), or call L1.shrink with a rate of your own"
    )


@rate.register(SGD)
def _sgd(optimizer: SGD, group: Group, state: State) -> Rate:
    momentum = group["momentum"]
    amplified = (1 - group["dampening"]) / max(1 - momentum, 1e-3)  # of a momentum of 1 there is no steady state
    return float(group["lr"]) * (amplified if momentum else 1.0)


@rate.register(Adam)  # AdamW is one
@rate.register(NAdam)
def _adam(optimizer: Adam | NAdam, group: Group, state: State) -> Rate:
    squares = state["max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"]
    return float(group["lr"]) / _root(local(squares) / (1 - group["betas"][1] ** state["step"]), group["eps"])


@rate.register(RAdam)
def _radam(optimizer: RAdam, group: Group, state: State) -> Rate:
    beta, step = group["betas"][1], float(state["step"])
    most = 2 / (1 - beta) - 1
    length = most - 2 * step * beta**step / (1 - beta**step)
    if length <= 5:
        return float(group["lr"])
    rectified = sqrt((length - 4) * (length - 2) * most / ((most - 4) * (most - 2) * length))
    return float(group["lr"]) * rectified / _root(state["exp_avg_sq"], group["eps"]) * sqrt(1 - beta**step)


@rate.register(Adamax)
def _adamax(optimizer: Adamax, group: Group, state: State) -> Rate:
    return float(group["lr"]) / local(state["exp_inf"])


@rate.register(RMSprop)
def _rmsprop(optimizer: RMSprop, group: Group, state: State) -> Rate:
    squares = state["square_avg"]
    if group["centered"]:
        squares = squares.addcmul(state["grad_avg"], state["grad_avg"], value=-1).clamp_min(0)
    return float(group["lr"]) / (1 - group["momentum"]) / _root(squares, group["eps"])


@rate.register(Adagrad)
def _adagrad(optimizer: Adagrad, group: Group, state: State) -> Rate:
    lr = float(group["lr"]) / (1 + (float(state["step"]) - 1) * group["lr_decay"])
    return lr / _root(state["sum"], group["eps"])


def _root(squares: Tensor, eps: float) -> Tensor:
    return local(squares).sqrt().add_(eps)
