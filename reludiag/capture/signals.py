"""Where units fired, by the rule that a user gave for a rectifier."""

from typing import Any

import torch
from torch import Tensor

from reludiag.sites.site import Rectifier


def signal_of(
    rectifier: Rectifier, pre_activation: Any, output: Tensor
) -> tuple[Tensor | None, str]:
    """As in `Call.signal`; None if the rule cannot be applied, and why."""
    with torch.no_grad():
        output = output.detach()
        fired: Any = output != rectifier.off_value
        if rectifier.fired is not None:
            if not isinstance(pre_activation, Tensor):
                return None, "its first argument is not a tensor"
            x = pre_activation.detach()
            if x.numel() and x.data_ptr() == output.data_ptr():
                return None, "its input was overwritten in place"
            try:
                fired = rectifier.fired(x, output)
            except Exception as error:  # the user's function may raise anything
                return None, f"`fired` raised {type(error).__name__}: {error}"
            if not isinstance(fired, Tensor) or fired.shape != output.shape:
                shape = list(fired.shape) if isinstance(fired, Tensor) else type(fired).__name__
                return None, f"`fired` returned {shape}, not a mask of shape {list(output.shape)}"
        return (fired != 0) + output * 0, ""  # 0 times what is not finite is NaN
