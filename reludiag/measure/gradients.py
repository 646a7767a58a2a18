"""Gradients: which parameters get none, by one backward that leaves no trace in the model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from reludiag.capture.compiled import uncompiled
from reludiag.capture.model_state import preserve_state
from reludiag.measure.structure import GradientFacts
from reludiag.sites.returned import returned_tensors
from reludiag.sites.site import Site
from reludiag.sites.torch_internals import DisableTorchFunction, TorchDispatchMode, storage_of

_SEED = 7


def gradient_facts(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    samples: int,
    dead: Sequence[Site] = (),
) -> GradientFacts | None:
    """Which trainable parameters of `model` get no gradient from its outputs on one batch.

    The model runs in eval mode, and once more in training mode where a parameter seems to get none:
    what is used only there is used. `dead` are the sites that are completely dead on this batch.
    None where it cannot be known: no output has a gradient, or the backward fails.

    Nothing of the model is changed, also not `.grad`. A sum would be blind to what a softmax or a
    normalization keeps constant, so the outputs are weighted at random.
    """
    parameters = {path: p for path, p in model.named_parameters() if p.requires_grad}
    with preserve_state(model), uncompiled(), torch.enable_grad():
        model.eval()
        first = _run(model, args, kwargs, parameters)
        if first is None:
            return None
        facts = replace(first, samples=samples, dead=tuple(dead))
        if not first.unused and not first.detached:
            return facts
        model.train()
        second = _run(model, args, kwargs, parameters)
    if second is None:  # it may not run in training mode, as BatchNorm does not on one sample
        return replace(facts, unused=(), detached=())
    return replace(
        facts,
        unused=tuple(name for name in first.unused if name in second.unused),
        detached=tuple(name for name in first.detached if name in second.detached),
    )


def _run(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    parameters: Mapping[str, nn.Parameter],
) -> GradientFacts | None:
    """A forward and a backward; None if they fail, or no output has a gradient."""
    reads = _Reads()
    try:
        with reads:
            output = model(*args, **kwargs)
        tensors = list(returned_tensors(output))
        outputs = [tensor for tensor in tensors if tensor.requires_grad]
        if not outputs or not parameters:
            return None
        generator = torch.Generator().manual_seed(_SEED)
        weights = [
            torch.randn(tensor.shape, generator=generator).to(tensor.device, tensor.dtype)
            for tensor in outputs
        ]
        gradients = torch.autograd.grad(
            outputs, list(parameters.values()), weights, allow_unused=True
        )
    except Exception:  # the user's code, run in a way that it may not be made for
        return None
    by_path = dict(zip(parameters, gradients, strict=True))
    unused = [path for path, p in parameters.items() if storage_of(p) not in reads.storages]
    # Of outputs without a gradient, a loss may make something else: a detector returns boxes.
    all_known = len(outputs) == len(tensors)
    return GradientFacts(
        samples=None,
        parameters=len(parameters),
        unused=tuple(unused),
        detached=tuple(
            path for path, g in by_path.items() if g is None and path not in unused and all_known
        ),
        zero=tuple(path for path, g in by_path.items() if g is not None and _is_zero(g)),
    )


def step_gradients(model: nn.Module) -> GradientFacts | None:
    """The same of the gradients that the optimizer's first step has left in the model.

    None if it left none at all: they may have been cleared.
    """
    parameters = {path: p for path, p in model.named_parameters() if p.requires_grad}
    missing = tuple(path for path, p in parameters.items() if p.grad is None)
    if len(missing) == len(parameters):
        return None
    zero = tuple(path for path, p in parameters.items() if p.grad is not None and _is_zero(p.grad))
    if len(missing) + len(zero) == len(parameters):  # as zero_grad(set_to_none=False) leaves them
        return None
    return GradientFacts(None, len(parameters), missing=missing, zero=zero)


def gradient_norm(model: nn.Module) -> float | None:
    """The norm of all gradients of its parameters together, as they are; None if there are none."""
    with DisableTorchFunction():
        gradients = [p.grad.detach() for p in model.parameters() if p.grad is not None]
        if not gradients or any(type(g) is not Tensor or g.is_sparse for g in gradients):
            return None
        return float(nn.utils.get_total_norm(gradients))


def _is_zero(gradient: Tensor) -> bool:
    # Of a tensor that is spread over processes, all of them would have to ask.
    plain = type(gradient) is Tensor and gradient.layout is torch.strided
    return plain and not bool(gradient.any())


class _Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes which memory operators read."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.storages: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        self.storages |= {storage_of(tensor) for tensor in returned_tensors([args, kwargs])}
        return func(*args, **kwargs)
