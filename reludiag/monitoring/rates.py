"""The learning rates that each step of a run really used, and which module each of them trains."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from reludiag.sites.weight_axes import producer_name


class RateLog:
    """Learning rates by parameter group, "optimizer/group"; recorded when they change."""

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        self.all_groups = _all_groups(model, optimizers)
        """Path of each module with weights, and name of each plain parameter -> the groups that
        train it, that of its largest parameter first: biases often have a group of their own."""
        self.param_groups = {owner: groups[0] for owner, groups in self.all_groups.items()}
        """The same, with the first group only."""
        self.current: list[list[float]] = [[] for _ in optimizers]
        """`[optimizer][group]`, as of the last step; updated in place."""
        self._optimizers = optimizers
        self._changes: list[tuple[int, str, float]] = []

    @property
    def facts(self) -> dict[str, Any]:
        """What the recording stores as facts about the run, as JSON."""
        several = sum(map(len, self.current)) > 1
        return {"param_groups": self.all_groups} if several else {}

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


def _all_groups(model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, tuple[str, ...]]:
    modules = dict(model.named_modules(remove_duplicate=False))
    group_of = {
        id(parameter): f"{index}/{number}"
        for index, optimizer in enumerate(optimizers)
        for number, group in enumerate(optimizer.param_groups)
        for parameter in group["params"]
    }
    groups: dict[str, dict[str, None]] = {}
    for name, parameter in sorted(model.named_parameters(), key=lambda each: -each[1].numel()):
        if id(parameter) in group_of:
            for owner in {name.rpartition(".")[0], producer_name(name, modules)}:
                groups.setdefault(owner, {})[group_of[id(parameter)]] = None
    return {owner: tuple(names) for owner, names in groups.items()}
