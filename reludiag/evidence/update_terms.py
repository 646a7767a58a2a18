"""Update terms: what a step of an optimizer is the sum of, from its public state.

With g the gradient that the optimizer was given (after clipping, accumulation and unscaling) and w
the weight before the step, the update of a weight is

    w' - w = fresh + carried + decay

- fresh: c g, from the gradient of this step. c is the optimizer's own factor: -lr for SGD,
  -lr (1 - b1) / D for Adam, where D is its denominator.
- carried: from the gradients of earlier steps, in the momentum.
- decay: c wd w where the decay is added to the gradient (SGD, Adam, RMSprop); -lr wd w where it is
  taken from the weight (AdamW).

The formulae are those of the documentation of `torch.optim`. Only optimizers of exactly these
classes are split: a subclass may do anything. A coupled decay is in the momentum, too: `amplified`
is how much larger that makes its effect, if the weights move little in the time of the momentum.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

CLASSES = (SGD, Adam, AdamW, RMSprop)


@dataclass(frozen=True)
class Terms:
    """The terms of one update; each has the shape of the weight, or of the part of it."""

    fresh: Tensor
    carried: Tensor
    decay: Tensor
    factor: Tensor | float
    """c: what the update is changed by, for each 1 that is added to the gradient."""
    amplified: float
    """How much larger the lasting effect of something constant in the gradient is than that of a
    single step, because the momentum carries it."""
    is_coupled: bool
    """Whether the decay is added to the gradient."""

    def sum(self) -> Tensor:
        """The update."""
        return self.fresh + self.carried + self.decay

    def lasting_decay(self) -> Tensor:
        """The decay with what the momentum carries of earlier ones."""
        return self.decay * self.amplified if self.is_coupled else self.decay


def group_of(
    optimizers: "list[Optimizer] | tuple[Optimizer, ...]", parameter: Tensor
) -> tuple[int, int, Optimizer] | None:
    """The numbers of the optimizer and of the group that train a parameter."""
    for index, optimizer in enumerate(optimizers):
        for number, group in enumerate(optimizer.param_groups):
            if any(each is parameter for each in group["params"]):
                return index, number, optimizer
    return None


def has_momentum(optimizer: Optimizer, parameter: Tensor) -> bool:
    """Whether SGD carries a momentum already: its first step is another one."""
    return optimizer.state.get(parameter, {}).get("momentum_buffer") is not None


def split(
    optimizer: Optimizer,
    group: Mapping[str, Any],
    parameter: Tensor,
    before: Tensor,
    had_momentum: bool,
    earlier_steps: int,
    part: slice = slice(None),
) -> Terms | None:
    """The terms of the step that the optimizer has just taken; None if it cannot be split.

    `before` is the weight before it, and `part` selects rows; `before` has these only.
    `had_momentum` is as `has_momentum` said before the step; `earlier_steps` the number of steps
    that SGD and RMSprop took before, which do not count them.
    """
    if type(optimizer) not in CLASSES or parameter.grad is None or parameter.is_complex():
        return None
    gradient = parameter.grad.detach()
    if gradient.is_sparse:
        return None
    gradient = gradient[part].to(before.dtype)
    if group.get("maximize"):
        gradient = -gradient
    state, rate = optimizer.state.get(parameter, {}), float(group["lr"])
    weight_decay = float(group["weight_decay"])

    def of(name: str) -> Tensor:
        value: Tensor = state[name]
        return value[part].to(before.dtype)

    total = gradient + weight_decay * before if weight_decay else gradient
    if type(optimizer) is SGD:
        momentum = float(group["momentum"])
        if not momentum:
            return _terms(-rate, gradient, weight_decay, before, torch.zeros_like(before), 1.0)
        damped = 1.0 - float(group["dampening"]) if had_momentum else 1.0
        carried = of("momentum_buffer") - damped * total
        share, kept = damped, 1.0
        if group["nesterov"]:
            share, kept = 1 + momentum * damped, momentum
        steps = earlier_steps if had_momentum else 0
        # A constant 1 in the gradient has become this in the momentum that is carried.
        earlier = momentum * damped * _geometric(momentum, steps)
        amplified = (share + kept * earlier) / share if share else 1.0
        return _terms(
            -rate * share, gradient, weight_decay, before, -rate * kept * carried, amplified
        )
    if type(optimizer) is RMSprop:
        square = of("square_avg")
        if group["centered"]:
            square = square - of("grad_avg").square()
        denominator = square.sqrt() + float(group["eps"])
        momentum = float(group["momentum"])
        carried = torch.zeros_like(before)
        amplified = 1.0
        if momentum:
            carried = -rate * (of("momentum_buffer") - total / denominator)
            amplified = 1.0 + momentum * _geometric(momentum, earlier_steps)
        return _terms(-rate / denominator, gradient, weight_decay, before, carried, amplified)
    b1, b2 = (float(beta) for beta in group["betas"])
    step = float(state["step"])
    largest = "max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"
    denominator = of(largest).sqrt() / (1 - b2**step) ** 0.5 + float(group["eps"])
    scale = -rate / ((1 - b1**step) * denominator)
    if type(optimizer) is AdamW or group.get("decoupled_weight_decay"):
        carried = scale * (of("exp_avg") - (1 - b1) * gradient)
        fresh = scale * (1 - b1) * gradient
        amplified = (1 - b1**step) / (1 - b1)
        decay = -rate * weight_decay * before
        return Terms(fresh, carried, decay, scale * (1 - b1), amplified, False)
    carried = scale * (of("exp_avg") - (1 - b1) * total)
    amplified = (1 - b1**step) / (1 - b1)
    return _terms(scale * (1 - b1), gradient, weight_decay, before, carried, amplified)


def _terms(
    factor: Tensor | float,
    gradient: Tensor,
    weight_decay: float,
    before: Tensor,
    carried: Tensor,
    amplified: float,
) -> Terms:
    decay = factor * (weight_decay * before) if weight_decay else torch.zeros_like(before)
    return Terms(factor * gradient, carried, decay, factor, amplified, True)


def _geometric(ratio: float, count: int) -> float:
    """1 + ratio + ... of `count` terms."""
    return count if ratio == 1 else (1 - ratio**count) / (1 - ratio)
