# What each does is said in reductions.py and native/kernels.cpp. `plan` is `Reading.plan`, or None
# for an `x` that is [sample, unit, position] or [sample, unit] as it is. What cannot be read is
# refused, by False or None.

from torch import Tensor

def count(
    x: Tensor,
    plan: bytes | None,
    signed: bool,
    sums: Tensor,
    maximum: Tensor,
    minimum: Tensor,
    /,
) -> bool: ...
def watch(x: Tensor, plan: bytes | None, signed: bool, states: Tensor, /) -> int | None: ...
def raise_maximum(
    x: Tensor, plan: bytes | None, fired: Tensor | None, running: Tensor, /
) -> bool: ...
def all_finite(x: Tensor, /) -> bool | None: ...
