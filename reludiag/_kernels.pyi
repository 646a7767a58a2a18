# What each does is said in reductions.py and native/kernels.cpp. `plan` is `Reading.plan`, or None
# for an `x` that is [sample, unit, position] or [sample, unit] as it is. What cannot be read is
# refused, by False or None, as all is before `attach(torch.Tensor)`. `widths()` are those of the
# vectors that this CPU has, in bytes; the widest are used, unless `use_width` chooses others.

from torch import Tensor

SOURCES: int

def attach(tensor_type: type[Tensor], /) -> None: ...
def widths() -> list[int]: ...
def use_width(width: int, /) -> None: ...
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
