"""screening(): which units behind a BatchNorm are likely to be silent, estimated without data."""

import copy
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import fx, nn

from reludiag.capture.model_state import as_it_was
from reludiag.errors import ModelError
from reludiag.initialization.batchnorm import estimated_firing_rate, estimated_mean_activation
from reludiag.measure.site_list import list_sites
from reludiag.sites.rectifiers import Rectifier, rectifier_call, rectifier_of
from reludiag.tables import Column, table_of

SCREENING_COLUMNS = (
    Column("site", "str", "a rectifier right behind a BatchNorm, as in the unit table of a scan"),
    Column("norm", "str", "that BatchNorm"),
    Column("unit", "Int64", "channel of the BatchNorm"),
    Column("estimated_firing_rate", "float64", "Phi(beta/|gamma|); an estimate, not a measurement"),
    Column("estimated_mean_activation", "float64", "of a normal pre-activation; an estimate"),
)
# These fire where their input is positive; the others have other thresholds.
_FROM_ZERO = frozenset({"relu", "relu6", "hardtanh", "clamp", "clamp_min", "clip"})


def screening(
    model: nn.Module, batches: Iterable[Any] | None = None, dtype: torch.dtype | None = None
) -> pd.DataFrame:
    """Estimate how often the units behind each BatchNorm fire, from its weights: a row per unit.

    This needs no data, and is no evidence of death; see `causes.batchnorm` for how good it is.
    Which rectifier follows which BatchNorm is read from the model's graph (`torch.fx`), or from
    one of `batches` if there are any; noise will do, since only the way through the model counts.

    Raises ModelError where the graph cannot be traced and there are no batches.
    """
    if batches is None:
        pairs = list(_traced_pairs(model))
    else:
        sites = list_sites(model, batches, dtype).sites
        pairs = [
            (s.name, s.norm) for s in sites if s.norm is not None and _fires_from_0(s.rectifier)
        ]
    norms = dict(model.named_modules())
    return table_of(SCREENING_COLUMNS, [_rows(site, norm, norms[norm]) for site, norm in pairs])


def _rows(site: str, path: str, norm: nn.Module) -> pd.DataFrame:
    units = int(getattr(norm, "num_features", 0))
    gamma = _array(getattr(norm, "weight", None), np.ones(units))
    beta = _array(getattr(norm, "bias", None), np.zeros(units))
    return pd.DataFrame(
        {
            "site": site,
            "norm": path,
            "unit": np.arange(units),
            "estimated_firing_rate": estimated_firing_rate(gamma, beta),
            "estimated_mean_activation": estimated_mean_activation(gamma, beta),
        }
    )


def _array(parameter: Any, otherwise: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if parameter is None:  # affine=False
        return otherwise
    return np.asarray(parameter.detach().cpu().double().numpy())


def _fires_from_0(rectifier: Rectifier) -> bool:
    return rectifier.can_die and rectifier.activation.lower() in _FROM_ZERO


def _traced_pairs(model: nn.Module) -> Iterator[tuple[str, str]]:
    """(site, BatchNorm) for each rectifier in the graph whose input is a BatchNorm's output."""
    with as_it_was(model):
        try:
            # Of a copy: tracing runs the model's forward on stand-ins, which it may well keep.
            graph = fx.Tracer().trace(copy.deepcopy(model))
        except Exception as error:  # the forward may branch on its input, or do anything else
            raise ModelError(
                f"the graph of {type(model).__name__} cannot be traced without data "
                f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}). "
                "Give batches: one of noise of the right shape will do"
            ) from error
    modules = dict(model.named_modules())
    calls: Counter[str] = Counter()
    for node in graph.nodes:
        base, rectifier = _rectifier_of_node(node, modules, type(model).__name__)
        if rectifier is None:
            continue
        name = f"{base}#{calls[base]}" if calls[base] else base
        calls[base] += 1
        source = node.args[0] if node.args else None
        if isinstance(source, fx.Node) and source.op == "call_module":
            norm = modules.get(str(source.target))
            if isinstance(norm, nn.modules.batchnorm._BatchNorm) and _fires_from_0(rectifier):
                yield name, str(source.target)


def _rectifier_of_node(
    node: fx.Node, modules: dict[str, nn.Module], root: str
) -> tuple[str, Rectifier | None]:
    if node.op == "call_module":
        path = str(node.target)
        return path, rectifier_of(modules[path])
    if node.op not in {"call_function", "call_method"}:
        return "", None
    operator = node.target if isinstance(node.target, str) else node.target.__name__
    owner = next(reversed(node.meta.get("nn_module_stack", {"": None})), "") or root
    return f"{owner}:{operator}", rectifier_call(operator, node.args, node.kwargs)
