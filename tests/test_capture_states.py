"""The states of a capture, and which events lead from one to another."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from reludiag.capture.calls import Call, ExpectedCall
from reludiag.capture.capture import Capture
from reludiag.capture.following import Extent, Following
from reludiag.capture.site_registry import SiteRegistry
from reludiag.sites.rectifiers import rectifier_of


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def hooks_on(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def loop(model: nn.Module) -> tuple[Capture, list[Call]]:
    calls: list[Call] = []
    capture = Capture(model, calls.append, in_loop=True)
    capture.attach()
    return capture, calls


def test_hooks_are_on_the_model_as_the_state_of_its_capture_says() -> None:
    model = network()
    capture, calls = loop(model)
    watching = hooks_on(model)
    for _ in range(40):
        model(torch.ones(5, 3))
    assert len(calls) == 40
    capture.rest([])
    assert not capture.resting  # of the one site there is something to learn
    capture.rest([0])
    assert capture.resting
    assert hooks_on(model) == 1 < watching
    model(torch.ones(7, 3))
    assert len(calls) == 40
    assert capture.wake() == [(0, True, 1, 7, 7)]
    assert not capture.resting
    assert hooks_on(model) == watching
    capture.detach()
    assert hooks_on(model) == 0


class Part(nn.Module):
    """Has a part that can be called alone; skips the rest of it if it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head, self.skip = network(), nn.ReLU(), False

    def forward(self, x: Tensor) -> Tensor:
        y = self.encoder(x)
        return y if self.skip else self.head(y)


def call_a_part(model: Part) -> None:
    model.encoder(torch.ones(5, 3))


def call_another_way(model: Part) -> None:
    model.skip = True
    model(torch.ones(5, 3))


@pytest.mark.parametrize("differ", [call_a_part, call_another_way])
def test_there_is_no_rest_once_a_pass_went_another_way(differ: Callable[[Part], None]) -> None:
    model = Part()
    capture, _ = loop(model)
    for _ in range(40):
        model(torch.ones(5, 3))
    differ(model)
    model.skip = False
    for _ in range(40):
        model(torch.ones(5, 3))
    capture.rest([0, 1])
    assert not capture.resting
    capture.detach()


def test_a_pass_that_is_not_watched_is_counted_and_hands_nothing_over() -> None:
    model = network()
    capture, calls = loop(model)
    model.eval()
    with torch.no_grad():
        model(torch.ones(5, 3))
    assert (capture.missed.evaluations, capture.passes, len(calls)) == (1, 0, 0)
    model(torch.ones(5, 3))
    assert (capture.missed.evaluations, capture.passes, len(calls)) == (2, 1, 1)
    capture.detach()


def test_a_pass_that_raised_is_not_complete_and_the_next_begins_anew() -> None:
    model = network()
    capture, calls = loop(model)
    with pytest.raises(RuntimeError):
        model(torch.ones(5, 4))
    assert (capture.passes, capture.followed) == (0, False)
    model(torch.ones(5, 3))
    assert (capture.passes, capture.followed, len(calls)) == (1, True, 1)
    capture.detach()


@pytest.mark.parametrize(
    ("samples", "extent"),
    [
        ([], Extent.NOTHING),
        ([1], Extent.ONE_SAMPLE),
        ([1, 1], Extent.ONE_SAMPLE),
        ([1, 5], Extent.WHOLE),
        ([5, 1], Extent.WHOLE),
        ([None], Extent.WHOLE),
    ],
)
def test_what_was_followed_says_what_is_followed_next(
    samples: list[int | None], extent: Extent
) -> None:
    following, model = Following(), network()
    for count in samples:
        following.note_followed(model, count)
    assert following.is_whole(model) is (extent is Extent.WHOLE)
    assert following.is_needed(model, 5) is (extent is not Extent.WHOLE)
    assert following.is_needed(model, 1) is (extent is Extent.NOTHING)
    assert following.is_needed(network(), 1)  # another model was not followed
    following.begin_again()
    assert following.is_needed(model, 1)


def test_calls_that_wait_are_forgotten_when_their_batch_is_done() -> None:
    model = network()
    call = ExpectedCall(model[1], "", model[0], 0, 0)
    following = Following()
    following.begin_first_run()
    following.deferred.add(call)
    assert (following.deferring, following.only) == (True, set())
    following.begin_second_run()
    assert (following.deferring, following.only) == (False, {call})
    following.end_runs()
    assert (following.deferring, following.deferred, following.only) == (False, set(), set())


def test_a_match_changes_nothing_until_it_is_added() -> None:
    model = network()
    paths = {module: path for path, module in model.named_modules()}
    registry = SiteRegistry(model, paths, {"1": 1})
    rectifier = rectifier_of(model[1])
    assert rectifier is not None
    call = ExpectedCall(model[1], "", model[0], 0, 0)
    first, second = (registry.match(call, rectifier, torch.ones(5, 4), 5, None) for _ in range(2))
    assert first.site == second.site
    assert (registry.sites, registry.overrides, call.site) == ([], set(), None)
    registry.add(call, first)
    assert [site.name for site in registry.sites] == ["1"]
    assert registry.overrides == {"1"}
    again = registry.match(call, rectifier, torch.ones(7, 4), 7, None)
    assert again.site is first.site
    assert again.view is not None
    assert again.view.rows == 7


def test_a_call_waits_only_where_it_may() -> None:
    model = network()
    paths = {module: path for path, module in model.named_modules()}
    registry = SiteRegistry(model, paths, {})
    rectifier = rectifier_of(model[1])
    assert rectifier is not None
    call = ExpectedCall(model[1], "", None, 0, 0)  # nothing says where its units are
    output = torch.ones(5, 4)
    assert registry.match(call, rectifier, output, 5, None, deferred=set()).site is None
    assert registry.match(call, rectifier, output, 5, None, deferred=None).site is not None
