"""Several models with names, watched as one: a trained network and its target, a student and its
teacher, a model and the average of its weights.

They are parts of one module, so that each parameter, module and site has one name, which begins
with that of its model. What several models share is named after one of them, and is one: a unit is
dead if no call of any of them makes it fire.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from reludiag.errors import UsageError
from reludiag.loading.batch_contents import moved
from reludiag.loading.model_inputs import ModelInputs
from reludiag.sites.readable import readable

FUSED = (nn.TransformerEncoderLayer, nn.MultiheadAttention)
"""Modules that PyTorch runs fused in eval mode without gradients, and otherwise while watched."""


class NamedModels(nn.Module):
    """Models by name. Its `forward` takes `ModelInputs`, and calls those that have some.

    `trained` are the names of those with weights that an optimizer trains. What several models
    share belongs to the first in this order: a model that is a part of another one comes before it,
    and those that are trained come before the others.

    Raises UsageError for a name that a module cannot have, and for a model with two names.
    """

    def __init__(self, models: Mapping[str, nn.Module], trained: Iterable[str] = ()) -> None:
        super().__init__()
        trained = set(trained)
        _check(models)

        def place(name: str) -> tuple[int, bool]:
            around = [other for other in models.values() if models[name] in set(other.modules())]
            return -len(around), name not in trained

        for name in sorted(models, key=place):
            # Any name may be one: add_module refuses those of attributes, such as "train".
            self._modules[name] = models[name]
        self.trained = frozenset(trained)

    @property
    def models(self) -> dict[str, nn.Module]:
        """The models by name."""
        return {name: model for name, model in self._modules.items() if model is not None}

    def forward(self, inputs: ModelInputs) -> dict[str, Any]:
        """What each model returns for its inputs."""
        outputs = {}
        for name, args, kwargs in inputs.calls():
            model = self.models[name]
            device = next((tensor.device for tensor in model.parameters()), None)
            if device is not None:  # each may be on its own
                args, kwargs = moved(args, device, None), moved(kwargs, device, None)
            outputs[name] = model(*args, **kwargs)
        return outputs

    def owned(self) -> dict[nn.Module, str]:
        """Each module of a model -> the name of the model that it belongs to."""
        owners: dict[nn.Module, str] = {}
        for name, model in self.models.items():
            for module in model.modules():
                owners.setdefault(module, name)
        return owners

    def trained_models(self) -> "NamedModels":
        """Those with weights that an optimizer trains; weights have the same names."""
        return NamedModels({n: m for n, m in self.models.items() if n in self.trained})


def roots_of(model: nn.Module) -> tuple[nn.Module, ...]:
    """The modules that a training calls: the named models, or the model itself."""
    return tuple(model.models.values()) if isinstance(model, NamedModels) else (model,)


def owners_of(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """Each module of named models -> the model that it belongs to; empty for a single model."""
    if not isinstance(model, NamedModels):
        return {}
    models = model.models
    return {module: models[name] for module, name in model.owned().items()}


class TrainingRule:
    """Which calls count as calls in training.

    Of a model those of modules in training mode. Of a named model that no optimizer trains all:
    there is nothing else to watch of it. A module that several models share may have its mode from
    another of them, so that there the mode of the model counts that is called.

    Models that PyTorch runs fused in eval mode are left alone then: watching would change the last
    bits of their outputs, and so the training that uses these.
    """

    def __init__(self, model: nn.Module) -> None:
        self._always: frozenset[nn.Module] = frozenset()
        self._shared: frozenset[nn.Module] = frozenset()
        if isinstance(model, NamedModels):
            models = model.models
            always = {n for n in models.keys() - model.trained if not runs_fused(models[n])}
            owned = model.owned()
            self._always = frozenset(module for module, name in owned.items() if name in always)
            counts = Counter(module for each in models.values() for module in each.modules())
            self._shared = frozenset(module for module, count in counts.items() if count > 1)

    def counts_pass(self, root: nn.Module) -> bool:
        """Whether a pass of this module counts as one in training."""
        return root.training or root in self._always

    def counts_call(self, owner: nn.Module, root: nn.Module | None) -> bool:
        """The same of a call of a rectifier of `owner`, in a pass of `root`."""
        if self.counts_pass(owner):
            return True
        return owner in self._shared and root is not None and self.counts_pass(root)


def is_left_alone(model: nn.Module, root: nn.Module) -> bool:
    """Whether a named model that no optimizer trains is itself what PyTorch runs fused: a hook on
    it would turn that off.
    """
    if not isinstance(model, NamedModels) or not isinstance(root, FUSED):
        return False
    return model.owned()[root] not in model.trained


def runs_fused(model: nn.Module) -> bool:
    """Whether PyTorch may run a part of it fused, in eval mode without gradients."""
    return any(isinstance(module, FUSED) for module in model.modules())


def trained_among(
    models: Mapping[str, nn.Module], parameters: Collection[nn.Parameter] | None
) -> set[str]:
    """Names of the models of which an optimizer trains a weight that is not another's.

    `parameters` are what the optimizers hold. Without an optimizer it is None, and every model with
    a parameter that requires a gradient is taken to be trained.
    """
    held = None if parameters is None else {id(parameter) for parameter in parameters}
    owners = NamedModels(models).owned()
    trained = set()
    for name, model in models.items():
        own = [
            parameter
            for module in model.modules()
            if owners[module] == name
            for parameter in module.parameters(recurse=False)
        ]
        for parameter in own or model.parameters():
            if parameter.requires_grad and (held is None or id(parameter) in held):
                trained.add(name)
    return trained


def copied_from(models: NamedModels) -> dict[str, str]:
    """Name of a model that is not trained -> that of the watched one whose parameters have the same
    names and shapes; one that is trained, if there is one. Where there are several, the one with
    the same values; if that is not one, it is not known.
    """
    parameters = {name: _parameters(model) for name, model in models.models.items()}
    copies = {}
    for name in parameters.keys() - models.trained:
        own = parameters[name]
        alike = [n for n, each in parameters.items() if n != name and own and _fit(own, each)]
        alike = [n for n in alike if n in models.trained] or alike
        if len(alike) > 1:
            alike = [n for n in alike if _are_equal(own, parameters[n])]
        if len(alike) == 1:
            copies[name] = alike[0]
    return copies


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Wrappers such as an AveragedModel keep the model as their `module`."""
    return {name.removeprefix("module."): each for name, each in model.named_parameters()}


def _fit(first: Mapping[str, nn.Parameter], second: Mapping[str, nn.Parameter]) -> bool:
    return first.keys() == second.keys() and all(
        first[name].shape == second[name].shape for name in first
    )


def _are_equal(first: Mapping[str, nn.Parameter], second: Mapping[str, nn.Parameter]) -> bool:
    pairs = [(readable(first[name]), readable(second[name])) for name in first]
    return all(a is not None and b is not None and torch.equal(a.cpu(), b.cpu()) for a, b in pairs)


def _check(models: Mapping[str, nn.Module]) -> None:
    names: dict[nn.Module, str] = {}
    for name, model in models.items():
        problem = ""
        if not isinstance(name, str) or not name.strip() or "." in name:
            problem = "expected a name without a dot for each model"
        elif model in names:
            problem = f"this model is watched as {names[model]!r} already"
        if problem:
            raise UsageError(f"{{{name!r}: {type(model).__name__}, ...}} was given: {problem}")
        names[model] = name
