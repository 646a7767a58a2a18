"""Output gradients: what the loss asks of the output of the model, in the measured steps.

Of a squared error, the gradient is c (y - t), where y is the output and t the target: so with y and
its gradient the mean and the spread of the targets can be computed, which no one else shows. Hooks
of the outputs see the gradients of the training's own backward pass; only sums are kept.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from reludiag.recording.observations import OutputGradient
from reludiag.sites.torch_internals import version_of

MOST = 4
"""Most outputs of one forward pass that are looked at."""


class OutputMeter:
    """Sums up outputs and their gradients in one measured step, without waiting for the device."""

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}
        self._seen = 0
        """Outputs of the step's first forward pass; those of later ones are not looked at."""
        self._is_open = False
        self._error: Exception | None = None

    def begin_step(self) -> None:
        """A measured step begins."""
        self._sums, self._seen, self._is_open = {}, 0, True

    def follow(self, outputs: Sequence[Tensor]) -> None:
        """A forward pass has ended with these outputs."""
        if self._seen or not self._is_open:
            return
        if torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") == torch.float16:
            return  # a GradScaler multiplies the loss then, by what is not known
        self._seen = len(outputs)
        for index, output in enumerate(outputs[:MOST]):
            if output.requires_grad and output.is_floating_point() and output.numel() > 1:
                self._follow(index, output)

    def _follow(self, index: int, output: Tensor) -> None:
        values = output.detach()
        version = version_of(values)

        def arrived(gradient: Tensor) -> None:
            try:  # PyTorch must not see an error in the middle of a backward pass
                if not self._is_open or index in self._sums or version_of(values) != version:
                    return  # or the training has changed it: the gradient is of what it was
                with torch.no_grad():
                    self._sums[index] = _sums(values, gradient)
            except Exception as error:
                self._is_open, self._error = False, error

        output.register_hook(arrived)  # type: ignore[no-untyped-call]

    def measure(self, step: int) -> list[OutputGradient]:
        """What was seen in `step`, which the optimizer has taken."""
        self._is_open = False
        if self._error is not None:
            raise self._error
        found = [_of(step, index, sums.tolist()) for index, sums in sorted(self._sums.items())]
        self._sums = {}
        return [each for each in found if each is not None]


def _sums(y: Tensor, g: Tensor) -> Tensor:
    """Over the entries with a gradient: their number, y, y^2, g, g^2, y g; and of what classes
    share, the sum of (sum over classes of g)^2 for the axis where it is least.
    """
    double = torch.float32 if y.device.type == "mps" else torch.float64
    y, g = y.to(double), g.to(double)
    used = g != 0
    y = torch.where(used, y, 0.0)
    shared = [g.sum(dim).square().sum() for dim in {1, g.ndim - 1} if 0 < dim < g.ndim]
    least = torch.stack(shared).min() if shared else g.square().sum()
    count = used.sum().to(double)
    squares = [y.sum(), y.square().sum(), g.sum(), g.square().sum(), (y * g).sum()]
    return torch.stack([count, *squares, least])


def _of(step: int, index: int, sums: list[float]) -> OutputGradient | None:
    count, y, y2, g, g2, yg, shared = sums
    if count < 2 or not math.isfinite(g2) or not math.isfinite(y2) or not g2:
        return None
    mean, slope = y / count, g / count
    return OutputGradient(
        step=step,
        output=index,
        count=int(count),
        mean=mean,
        std=math.sqrt(max(0.0, y2 / count - mean**2)),
        gradient_mean=slope,
        gradient_std=math.sqrt(max(0.0, g2 / count - slope**2)),
        covariance=yg / count - mean * slope,
        shared=math.sqrt(max(0.0, shared) / g2),
    )
