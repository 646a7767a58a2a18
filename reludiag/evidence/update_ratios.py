"""Update ratios: how far a step moves the weights, relative to their norm.

Only a few steps are measured; the others cost nothing.
"""

from collections.abc import Iterable

from torch import Tensor, nn

from reludiag.recording.observations import Update

SAMPLE = 2**14
"""In larger layers about this number of weights, evenly spread, are measured.

The ratio is then off by half a percent; measuring all weights would be the largest cost of a
Monitor.
"""


class UpdateMeter:
    """Copies the weights of chosen layers before a step, and compares them after it."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._modules = dict(model.named_modules())
        self._copies: dict[str, tuple[Tensor, Tensor]] = {}

    @property
    def keeping(self) -> bool:
        """Whether weights are copied for the coming step."""
        return bool(self._copies)

    def keep(self, paths: Iterable[str]) -> None:
        """Copy the weights of these layers, modules or parameters by name, before a step."""
        parameters = dict(self._model.named_parameters())
        for path in paths:
            weight: Tensor | None = parameters.get(path)
            if path in self._modules or weight is None or not weight.is_floating_point():
                weight = _weight(self._modules.get(path))
            if weight is not None:
                self._copies[path] = weight, _sample(weight).clone()

    def measure(self, step: int) -> list[Update]:
        """The updates by `step` of the copied layers, without layers whose weights are all 0."""
        updates = []
        for path, (weight, old) in self._copies.items():
            new = _sample(weight)
            if new.shape != old.shape or new.device != old.device:
                continue
            size = float(old.norm())
            change = float((new - old).norm())
            if size > 0 and change == change and change < float("inf"):
                updates.append(Update(step, path, change / size))
        self._copies = {}
        return updates


def _sample(weight: Tensor) -> Tensor:
    # An odd stride, so that the sample covers all inputs.
    return weight.detach().reshape(-1)[:: max(1, weight.numel() // SAMPLE) | 1]


def _weight(module: nn.Module | None) -> Tensor | None:
    """The largest parameter with two or more axes of the module itself."""
    if module is None:
        return None
    weights = [p for p in module.parameters(recurse=False) if p.ndim > 1 and p.is_floating_point()]
    return max(weights, key=lambda weight: weight.numel(), default=None)
