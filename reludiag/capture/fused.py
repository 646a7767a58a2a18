"""Modules that PyTorch runs as one fused operator in eval mode, kept fused while watched.

An active function mode makes PyTorch run `nn.TransformerEncoderLayer` and `nn.MultiheadAttention`
unfused, which is slower and changes the last bits. In a frozen pass their `forward` is replaced by
one that hides the mode. An attention contains no rectifier. The operator of an encoder layer is run
as its parts, so that its rectifier is visible.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from reludiag.sites.functional import OnCall
from reludiag.sites.guard import Guard, OnlyOnce
from reludiag.sites.rectifiers import rectifier_call
from reludiag.sites.torch_internals import (
    ENCODER_LAYER,
    DisableTorchFunction,
    TorchDispatchMode,
    function_modes,
    is_autocasting,
    multi_head_attention,
)

_RELU = {torch.ops.aten.relu.default: False, torch.ops.aten.relu_.default: True}


class FusedForward:
    """Has a `run` to take the place of the `forward` of one module.

    `sees()` says whether an active function mode would see the module's rectifier.
    """

    def __init__(
        self,
        module: nn.Module,
        sees: Callable[[], bool],
        on_call: OnCall,
        guard: Guard | None = None,
    ) -> None:
        self._module, self._sees = module, sees
        self._guard = guard = guard or Guard()
        self._forward = module.forward
        is_layer = isinstance(module, nn.TransformerEncoderLayer)
        self._mode = _LayerMode(on_call, guard) if is_layer else None

    def __reduce__(self) -> Any:
        """A copy made meanwhile uses its own `forward`."""
        # bool() is False: the mode is hidden
        return FusedForward, (self._module, bool, None)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward, without the function mode."""
        values = (*args, *kwargs.values())
        if (
            self._guard.error is not None
            or self._module.training
            or torch.is_grad_enabled()
            or not self._sees()
            or function_modes() > 1  # a function mode of the user makes it run unfused
            or any(isinstance(value, Tensor) and type(value) is not Tensor for value in values)
        ):
            return self._forward(*args, **kwargs)
        if self._mode is None:
            with DisableTorchFunction():
                return self._forward(*args, **kwargs)
        if is_autocasting():  # the parts would not be cast as inside the fused operator
            return self._forward(*args, **kwargs)
        with DisableTorchFunction(), self._mode:
            return self._forward(*args, **kwargs)


def fusible(model: nn.Module) -> Iterator[nn.Module]:
    """The modules of `model` that PyTorch may run fused, and that contain no other rectifier."""
    for module in model.modules():
        is_layer = type(module) is nn.TransformerEncoderLayer
        if not (is_layer or type(module) is nn.MultiheadAttention):
            continue
        if is_layer and module.activation is not nn.functional.relu:
            continue
        # A weight made by other modules may contain a rectifier, and a subclass may do anything.
        parts_are_plain = all(
            type(part).__module__.startswith("torch.nn.modules.") for part in module.modules()
        )
        weights_are_plain = all(type(weight) is nn.Parameter for weight in module.parameters())
        if parts_are_plain and weights_are_plain and "forward" not in vars(module):
            yield module


class _LayerMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Passes the rectifier call of an encoder layer to `on_call`, fused or not."""

    def __init__(self, on_call: OnCall, guard: Guard) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._on_call, self._guard = on_call, guard

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is ENCODER_LAYER and args[0].numel() and not args[0].is_nested:
            return self._layer(*args, **kwargs)
        if func in _RELU:
            return self._rectify(args[0], _RELU[func])
        return func(*args, **kwargs)

    def _rectify(self, x: Tensor, in_place: bool) -> Tensor:
        rectifier = rectifier_call("relu", (x,), {})
        call = x.relu_ if in_place else x.relu
        if rectifier is None:
            return call()
        result: Tensor = OnlyOnce(call).within(self._guard, self._on_call, rectifier, x, in_place)
        return result

    def _layer(
        self,
        src: Tensor,
        width: int,
        heads: int,
        qkv_weight: Tensor,
        qkv_bias: Tensor,
        proj_weight: Tensor,
        proj_bias: Tensor,
        use_gelu: bool,
        norm_first: bool,
        eps: float,
        norm_weight_1: Tensor,
        norm_bias_1: Tensor,
        norm_weight_2: Tensor,
        norm_bias_2: Tensor,
        weight_1: Tensor,
        bias_1: Tensor,
        weight_2: Tensor,
        bias_2: Tensor,
        mask: Tensor | None = None,
        mask_type: int | None = None,
    ) -> Tensor:
        """The operators of ATen's `transformer_encoder_layer_forward`, one by one.

        Source: aten/src/ATen/native/transformers/transformer.cpp.
        """
        norm_1 = (width,), norm_weight_1, norm_bias_1, eps
        norm_2 = (width,), norm_weight_2, norm_bias_2, eps
        x = torch.layer_norm(src, *norm_1) if norm_first else src
        x = multi_head_attention(
            x, x, x, width, heads, qkv_weight, qkv_bias, proj_weight, proj_bias, mask, False, True,
            mask_type,
        )[0]  # fmt: skip
        x.add_(src)
        if not norm_first:
            x = torch.layer_norm(x, *norm_1)
        y = torch.layer_norm(x, *norm_2) if norm_first else x
        hidden = torch.addmm(bias_1, y.view(-1, width), weight_1.t())
        hidden = self._rectify(hidden.view(*y.shape[:2], -1), in_place=True)
        y = torch.addmm(bias_2, hidden.view(-1, weight_2.shape[1]), weight_2.t()).view_as(x)
        y.add_(x)
        return y if norm_first else torch.layer_norm(y, *norm_2)
