"""Step inputs: the mean input of each plain layer in the forward passes of one step."""

from dataclasses import dataclass

from torch import Tensor, nn

from reludiag.evidence.decomposition import summed_patches
from reludiag.sites.products import Convolution

_PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class _Sum:
    """Of the inputs of one weight, over samples and positions."""

    total: Tensor
    rows: int


class StepInputs:
    """Sums up the inputs of layers, by the weight that reads them."""

    def __init__(self) -> None:
        self._sums: dict[int, _Sum] = {}

    def take(self, module: nn.Module, x: Tensor) -> None:
        """Add an input of a plain layer."""
        if not x.is_floating_point():
            return
        x = x.detach()
        if isinstance(module, nn.Linear):
            total, rows = x.reshape(-1, x.shape[-1]).sum(0), x.numel() // x.shape[-1]
        else:
            assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
            if module.padding_mode != "zeros" or isinstance(module.padding, str):
                return
            count = x.ndim - 1
            x = x if x.ndim == module.weight.ndim else x.unsqueeze(0)
            convolution = Convolution(
                module.stride,
                module.padding,
                module.dilation,
                False,
                (0,) * (count - 1),
                module.groups,
            )
            total, positions = summed_patches(convolution, module.weight.detach(), x.sum(0))
            rows = len(x) * positions
        if (known := self._sums.get(id(module.weight))) is not None:
            total, rows = known.total + total, known.rows + rows
        self._sums[id(module.weight)] = _Sum(total, rows)

    def mean(self, weight: Tensor, units: slice) -> Tensor | None:
        """`[unit, factor]`, or `[1, factor]` where it is the same for all; float64. None if no
        input was seen.
        """
        known = self._sums.get(id(weight))
        if known is None or not known.rows:
            return None
        mean = known.total.double() / known.rows
        return mean.reshape(1, -1) if mean.ndim == 1 else mean[units].flatten(1)


def is_plain_layer(module: nn.Module) -> bool:
    """Whether its inputs can be taken."""
    return type(module) in _PLAIN
