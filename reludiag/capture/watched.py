"""Modules whose output is a site because the user says so."""

import difflib
from collections.abc import Mapping

import torch
from torch import nn

from reludiag.errors import UsageError
from reludiag.sites.registration import visible_modules

Watch = Mapping[str, str]
"""Name of a site -> path of the module whose output it is."""


def watched_modules(model: nn.Module, watch: Watch) -> dict[nn.Module, str]:
    """The modules with the names of their sites.

    Raises UsageError if there is no such module, it cannot be watched, or a name is taken.
    """
    if not isinstance(watch, Mapping):
        raise UsageError(
            f"watch={watch!r} was given; expected names of sites with the paths of their modules, "
            'such as watch={"latents": "encoder.codes"}'
        )
    modules = dict(visible_modules(model))
    names: dict[nn.Module, str] = {}
    for name, path in watch.items():
        module = modules.get(path)
        if module is None:
            close = difflib.get_close_matches(path, modules, n=3)
            hint = f". Did you mean {' or '.join(close)}?" if close else ""
            raise UsageError(
                f"watch={{{name!r}: {path!r}}}: the model has no module {path!r}{hint}"
            )
        problem = ""
        if not isinstance(name, str) or not name.strip():
            problem = "expected a name for the site"
        elif name in modules and modules[name] is not module:
            problem = f"the model has another module {name!r}; choose another name"
        elif module in names:
            problem = f"this module is watched as {names[module]!r} already"
        elif isinstance(module, torch.jit.ScriptModule):
            problem = "TorchScript accepts no hooks, so its output cannot be read"
        if problem:
            raise UsageError(f"watch={{{name!r}: {path!r}}}: {problem}")
        names[module] = name
    return names
