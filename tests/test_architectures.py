"""Unit axes in real architectures, against what a change of one weight changes.

The oracle knows nothing of reludiag. It sees the rectifiers of a forward pass as operators, changes
one output channel of the module with weights that ran last before one of them, and looks which
elements of the rectifier's input change: those of one unit. Where that says nothing (they are not
confined to one index of one axis) the call is not judged, and is counted.
"""

import contextlib
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import reludiag
from tests import architectures

architectures.declare_missing_operators()
for _package in ("torchvision", "timm", "transformers"):
    pytest.importorskip(_package)

pytestmark = pytest.mark.architectures

JUDGED_PER_MODEL = 6
LEAKY = {"gelu", "silu", "leakyrelu", "prelu", "rrelu", "elu", "celu", "selu", "mish", "softplus"}
"""Activations that reludiag lists and that cannot die, as they are called without underscores."""


NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)


@dataclass(frozen=True)
class Turn:
    """One call of a module: it and how many of its calls came before in the same forward."""

    module: nn.Module
    number: int


@dataclass
class RectifierCall:
    """One call of a rectifier in a forward pass."""

    operator: str
    before: Tensor
    producers: list[Turn]
    """The calls of modules with weights that ran last before, the last one first."""


class SeenError(Exception):
    """Ends a forward pass that has come as far as it was wanted."""


class Watch(TorchDispatchMode):
    """Notes the rectifier calls of one forward pass, and ends it at the one numbered `last`."""

    def __init__(self, model: nn.Module, last: int | None = None) -> None:
        super().__init__()
        self.calls: list[RectifierCall] = []
        self._last = last
        self._turns: Counter[nn.Module] = Counter()
        self._producers: deque[Turn] = deque(maxlen=3)
        self._handles = []
        for module in model.modules():
            if channels_of(module) is not None:
                self._handles.append(module.register_forward_hook(self._ended))
            if isinstance(module, NORMS) and channels_of(module) is not None:
                self._handles.append(module.register_forward_pre_hook(self._begins))

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for handle in self._handles:
            handle.remove()

    def _begins(self, module: nn.Module, *_: Any) -> None:
        # A norm that has an activation in it calls it after it has used its weights.
        self._producers.appendleft(Turn(module, self._turns[module]))

    def _ended(self, module: nn.Module, *_: Any) -> None:
        turn = Turn(module, self._turns[module])
        if turn in self._producers:
            self._producers.remove(turn)
        self._producers.appendleft(turn)
        self._turns[module] += 1

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        operator = func._schema.name.rpartition("::")[2].rstrip("_")
        if rectifies(operator, args, kwargs):
            before = args[0].clone() if self._last in (None, len(self.calls)) else args[0]
            self.calls.append(RectifierCall(operator, before, list(self._producers)))
            if self._last == len(self.calls) - 1:
                raise SeenError
        return func(*args, **kwargs)


def rectifies(operator: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether this is an activation whose output is 0 over a region of its input."""
    x = args[0] if args else None
    if not isinstance(x, Tensor) or not x.is_floating_point() or not x.numel():
        return False
    if operator in {"relu", "hardswish", "hardsigmoid"}:
        return True
    if operator in {"hardtanh", "clamp", "clamp_min"}:
        lower = args[1] if len(args) > 1 else kwargs.get("min", kwargs.get("min_val", -1))
        return isinstance(lower, int | float) and lower == 0
    return operator == "threshold" and args[1] >= 0 and args[2] == 0


def channels_of(module: nn.Module) -> tuple[nn.Parameter, int] | None:
    """A parameter and its axis along which each index makes one output channel of the module."""
    own = dict(module.named_parameters(recurse=False))
    bias, weight = own.get("bias"), own.get("weight")
    if bias is not None and bias.ndim == 1:
        return bias, 0
    if weight is not None:
        swapped = nn.Embedding | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
        return weight, int(isinstance(module, swapped))
    vectors = [parameter for parameter in own.values() if parameter.ndim == 1]
    return (vectors[0], 0) if len(vectors) == 1 else None


class Change:
    """While active, one output channel of one call of a module is another."""

    def __init__(self, turn: Turn, channel: int) -> None:
        found = channels_of(turn.module)
        assert found is not None
        self._parameter, axis = found
        self._channel = self._parameter.detach().select(axis, channel)
        self._saved = self._parameter.detach().clone()
        self._turn = turn
        self._left = turn.number

    def __enter__(self) -> None:
        self._handles = [
            self._turn.module.register_forward_pre_hook(self._begins),
            self._turn.module.register_forward_hook(self._ends, always_call=True),
        ]

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()
        self._restore()

    def _begins(self, *_: Any) -> None:
        if self._left == 0:
            # Random, as the inputs that follow a normalisation sum to nothing.
            self._channel += 1 + torch.rand_like(self._channel)
        self._left -= 1

    def _ends(self, *_: Any) -> None:
        self._restore()

    def _restore(self) -> None:
        self._parameter.detach().copy_(self._saved)


def run(model: nn.Module, batch: Any, watch: Watch) -> list[RectifierCall]:
    with contextlib.suppress(SeenError), torch.no_grad(), watch:
        model(**batch) if isinstance(batch, dict) else model(*batch)
    return watch.calls


Verdict = tuple[str, int] | str
"""Label of the unit axis and number of units, or why there is no telling."""

NOTHING_CHANGED = "nothing changed"


def unit_axis(model: nn.Module, batch: Any, calls: list[RectifierCall], index: int) -> Verdict:
    """The unit axis of the input of the rectifier call numbered `index`."""
    verdict: Verdict = "no weights before it"
    for producer in calls[index].producers:
        verdict = unit_axis_from(producer, model, batch, calls, index)
        if verdict != NOTHING_CHANGED:
            break  # else that module is on another branch
    return verdict


def unit_axis_from(
    producer: Turn, model: nn.Module, batch: Any, calls: list[RectifierCall], index: int
) -> Verdict:
    found = channels_of(producer.module)
    assert found is not None
    parameter, axis = found
    width, before = parameter.shape[axis], calls[index].before
    first: Verdict = NOTHING_CHANGED
    # A rectifier may get a part of the channels only, and some reach it at one position only.
    for channel in dict.fromkeys((width // 2, width // 5, width - 1, 0)):
        with Change(producer, channel):
            again = run(model, batch, Watch(model, index))
        if len(again) <= index or again[index].before.shape != before.shape:
            return "the forward pass took another path"
        verdict = confined(before, again[index].before, width)
        if not isinstance(verdict, str):
            return verdict
        first = verdict if first == NOTHING_CHANGED else first
    return first


def confined(before: Tensor, after: Tensor, width: int) -> Verdict:
    """The axis along which a change is confined to one index, or to one of `width` blocks."""
    difference = (after - before).abs()
    if difference.max() == 0:
        return NOTHING_CHANGED
    changed = difference > 1e-6 * difference.max()
    shape = changed.shape
    touched = [sorted(set(indices)) for indices in changed.nonzero().T.tolist()]
    single = [a for a, found in enumerate(touched) if len(found) == 1 < shape[a]]
    if len(single) == 1:
        return str(single[0]), shape[single[0]]
    if single:
        return f"one index along axes {single}"
    partly = [axis for axis, found in enumerate(touched) if len(found) < shape[axis]]
    if len(partly) == 1:
        (axis,), found = partly, touched[partly[0]]
        inner, first = len(found), found[0]
        block = list(range(first, first + inner))
        if found == block and first % inner == 0 and shape[axis] == width * inner:
            return f"{axis}//{inner}", width
    return f"changed {[len(found) for found in touched]} of {list(shape)}"


def sampled(calls: list[RectifierCall], limit: int) -> list[int]:
    """Calls to judge: one of each kind first, then spread over the others."""
    kinds: dict[Any, int] = {}
    for index, call in enumerate(calls):
        producer = type(call.producers[0].module) if call.producers else None
        kinds.setdefault((call.operator, producer, call.before.ndim), index)
    chosen = list(kinds.values())[:limit]
    rest = [index for index in range(len(calls)) if index not in chosen]
    left = min(limit - len(chosen), len(rest))
    return sorted(chosen + [rest[(2 * i + 1) * len(rest) // (2 * left)] for i in range(left)])


@dataclass
class Tally:
    """What became of all sites of all models."""

    models: int = 0
    judged: int = 0
    not_judged: list[tuple[str, str, str]] = field(default_factory=list)
    """Model, site, reason."""
    unknown: list[tuple[str, str]] = field(default_factory=list)


@pytest.fixture(scope="module")
def tally() -> Tally:
    return Tally()


def compare(name: str, tally: Tally, limit: int = JUDGED_PER_MODEL) -> list[str]:
    """Sentences on what reludiag found wrongly."""
    torch.manual_seed(0)
    model, batch = architectures.build(name)
    calls = run(model, batch, Watch(model))
    sites = reludiag.scan(model, [batch], merge_calls=False).sites
    leaky = sites["activation"].str.replace("_", "").str.lower().isin(LEAKY)
    sites = sites[(sites["samples"] > 0) & ~leaky].reset_index(drop=True)
    tally.models += 1
    if len(sites) != len(calls):
        seen = Counter(sites["activation"])
        ran = Counter(call.operator for call in calls)
        return [f"{len(sites)} sites {dict(seen)} of {len(calls)} calls {dict(ran)}"]
    wrong = []
    for index in sampled(calls, limit):
        site = sites.loc[index]
        verdict = unit_axis(model, batch, calls, index)
        if isinstance(verdict, str):
            tally.not_judged.append((name, site["site"], f"{verdict}; said {site['unit_axis']}"))
            continue
        tally.judged += 1
        if site["unit_axis"] == "unknown":
            tally.unknown.append((name, site["site"]))
        elif (site["unit_axis"], site["units"]) != verdict:
            axis, units = verdict
            wrong.append(
                f"{site['site']}: {site['units']} units along {site['unit_axis']}, "
                f"not {units} along {axis}, of {list(calls[index].before.shape)}"
            )
    return wrong


@pytest.mark.parametrize("name", architectures.BUILDERS)
def test_no_unit_axis_is_wrong(name: str, tally: Tally) -> None:
    assert compare(name, tally) == []


def test_most_sites_were_judged_and_known(tally: Tally) -> None:
    """Comes last: of what the tests above have met."""
    if not tally.models:
        pytest.skip("no architecture was looked at")
    print(f"{tally.models} models, {tally.judged} sites judged")
    print(*(f"not judged: {' '.join(entry)}" for entry in tally.not_judged), sep="\n")
    print(*(f"unknown: {' '.join(entry)}" for entry in tally.unknown), sep="\n")
    assert len(tally.not_judged) <= 0.1 * tally.judged
    assert len(tally.unknown) <= 0.05 * tally.judged
