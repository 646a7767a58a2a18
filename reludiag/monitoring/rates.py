"""The learning rates that each step of a run really used, and which module each of them trains."""

from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from reludiag.sites.weight_axes import producer_name


class RateLog:
    """Learning rates by parameter group, "optimizer/group"; recorded when they change."""

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        self.param_groups = _param_groups(model, optimizers)
        """Path of each module with weights, and name of each plain parameter -> the group that
        trains it."""
        self.current: list[list[float]] = [[] for _ in optimizers]
        """`[optimizer][group]`, as of the last step; updated in place."""
        self._optimizers = optimizers
        self._changes: list[tuple[int, str, float]] = []

    def note(self, index: int, step: int) -> None:
        """Optimizer `index` is about to take `step`."""
        current = self.current[index]
        rates = [float(group["lr"]) for group in self._optimizers[index].param_groups]
        for number, rate in enumerate(rates):
            if number >= len(current) or current[number] != rate:
                self._changes.append((step, f"{index}/{number}", rate))
        current[:] = rates

    def take_changes(self) -> list[tuple[int, str, float]]:
        """(first step with it, group, rate) of all changes since the last call."""
        changes, self._changes = self._changes, []
        return changes


def _param_groups(model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, str]:
    modules = dict(model.named_modules(remove_duplicate=False))
    owners = {
        id(parameter): {name.rpartition(".")[0], producer_name(name, modules)}
        for name, parameter in model.named_parameters()
    }
    return {
        owner: f"{index}/{group}"
        for index, optimizer in enumerate(optimizers)
        for group, settings in enumerate(optimizer.param_groups)
        for parameter in settings["params"]
        for owner in owners.get(id(parameter), ())
    }
