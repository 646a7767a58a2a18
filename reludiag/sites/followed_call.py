"""A call of an operator, with what is known of where its inputs come from."""

from dataclasses import dataclass

from torch import Tensor

from reludiag.sites.axes import UNKNOWN, Origin
from reludiag.sites.operator_call import OperatorCall
from reludiag.sites.weight_axes import Weight


@dataclass(frozen=True)
class FollowedInput:
    """A tensor argument of an operator, before the call."""

    tensor: Tensor
    shape: tuple[int, ...]
    origin: Origin | Weight
    """A `Weight` for a parameter, or a tensor made from one."""
    is_constant: bool
    """Whether it depends on no input of the model."""
    is_inner: bool
    """Whether it is made of parameters and constants alone."""
    is_raw: bool
    """Whether it depends on no parameter."""
    is_raw_input: bool = False
    """Whether it is an input of the model, or made of inputs by operators without weights."""


@dataclass(frozen=True)
class FollowedCall(OperatorCall):
    """A call, with the origins of its inputs."""

    inputs: list[FollowedInput]

    def origin(self, tensor: Tensor) -> Origin:
        """The origin of an activation among the inputs."""
        origin = self.origin_or_weight(tensor)
        return origin if isinstance(origin, Origin) else UNKNOWN

    def is_weight(self, tensor: Tensor) -> bool:
        """Whether this input is a parameter, or made from one."""
        return isinstance(self.origin_or_weight(tensor), Weight)

    def origin_or_weight(self, tensor: Tensor | None) -> Origin | Weight | None:
        """What is known of an input."""
        known = self.input(tensor)
        return None if known is None else known.origin

    def input(self, tensor: Tensor | None) -> FollowedInput | None:
        """The input that is this tensor."""
        return next((each for each in self.inputs if each.tensor is tensor), None)

    @property
    def weights(self) -> list[Weight]:
        """Parameters, and tensors made from them, among the inputs."""
        return [each.origin for each in self.inputs if isinstance(each.origin, Weight)]
