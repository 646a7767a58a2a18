"""Warnings on deaths of the whole run and on sites that are dead at birth; refused settings."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import reludiag

PROBE = torch.randn(64, 8, generator=torch.Generator().manual_seed(5))


def layers(width: int = 16) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, 4)
        )
    with torch.no_grad():
        model[2].bias.fill_(20.0)  # alive, whatever becomes of the first layer
    return model


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.0)


def set_bias(model: nn.Sequential, units: slice, value: float) -> None:
    with torch.no_grad():
        model[0].bias[units] = value


def warnings_of(
    changes: list[Callable[[nn.Sequential], object]],
    model: nn.Sequential | None = None,
    **settings: Any,
) -> list[warnings.WarningMessage]:
    """The warnings of a run at whose n-th window of two steps the n-th change is made by hand."""
    model = layers() if model is None else model
    optimizer = sgd(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with reludiag.Monitor(model, optimizer, **{"every": 2, "probe": PROBE, **settings}):
            for change in changes:
                change(model)
                for _ in range(2):
                    model(PROBE).sum().backward()
                    optimizer.step()
    return [each for each in caught if "no weight of the model" not in str(each.message)]


def kill(start: int, end: int) -> Callable[[nn.Sequential], object]:
    return lambda model: set_bias(model, slice(start, end), -100.0)


def revive(start: int, end: int) -> Callable[[nn.Sequential], object]:
    return lambda model: set_bias(model, slice(start, end), 1.0)


def kill_by_nan(model: nn.Sequential) -> None:
    set_bias(model, slice(0, 16), float("nan"))


def nothing(model: nn.Sequential) -> None:
    pass


def texts(caught: list[warnings.WarningMessage]) -> list[str]:
    return [str(each.message) for each in caught]


def test_deaths_that_pass_the_limit_in_no_single_window_are_warned_of_once() -> None:
    caught = warnings_of([kill(n, n + 1) for n in range(8)])
    assert texts(caught) == [
        "reludiag: 4 of 32 units were alive when the run began and are dead at step 8; most in "
        "'1', 4. That is more than 10% in the whole run (warn_over)"
    ]


@pytest.mark.parametrize("probe", [PROBE, None], ids=["probe", "window"])
def test_deaths_of_one_window_are_not_told_twice(probe: Any) -> None:
    changes = [revive(0, 16), kill(0, 8), kill(8, 9), kill(9, 10), nothing]
    caught = warnings_of(changes, probe=probe)
    assert len(caught) == 1
    assert "in one window" in texts(caught)[0]


def test_units_that_come_back_are_no_losses() -> None:
    changes = [kill(0, 2), revive(0, 2), kill(2, 4), revive(2, 4), kill(0, 2), revive(0, 2)]
    assert not warnings_of(changes)


def test_a_unit_that_dies_again_is_one_loss() -> None:
    assert not warnings_of([change for _ in range(6) for change in (kill(0, 3), revive(0, 3))])


def test_units_that_were_dead_at_the_start_are_no_losses_of_the_run() -> None:
    model = layers()
    set_bias(model, slice(0, 10), -100.0)
    assert not warnings_of([nothing, kill(10, 12), nothing], model)


def test_a_rare_unit_that_a_window_missed_is_no_loss_without_a_probe() -> None:
    changes = [
        lambda model, n=n: (
            set_bias(model, slice(0, 16), 1.0),
            set_bias(model, slice(n % 8, n % 8 + 3), -100.0),
        )
        for n in range(0, 24, 3)
    ]
    assert not warnings_of([revive(0, 16), *changes], probe=None)


@pytest.mark.parametrize("probe", [PROBE, None], ids=["probe", "window"])
def test_units_that_are_not_finite_are_losses(probe: Any) -> None:
    caught = warnings_of([nothing, kill_by_nan, nothing], probe=probe)
    assert len(caught) == 1
    assert "units were alive when the run began and are dead or not finite" in texts(caught)[0]


def test_without_a_probe_losses_are_told_a_window_later() -> None:
    caught = warnings_of([revive(0, 16), *(kill(n, n + 1) for n in range(8))], probe=None)
    assert len(caught) == 1
    assert "4 of 32 units were alive when the run began and are dead at step 12" in texts(caught)[0]


@pytest.mark.parametrize("probe", [PROBE, None], ids=["probe", "window"])
def test_a_site_that_is_dead_at_birth_is_warned_of(probe: Any) -> None:
    model = layers()
    set_bias(model, slice(0, 16), -100.0)
    caught = warnings_of([nothing, nothing], model, probe=probe)
    assert len(caught) == 1
    assert texts(caught)[0].startswith("reludiag: every unit of '1' is dead before any training")


def test_some_units_that_are_dead_at_birth_are_no_reason_to_warn() -> None:
    model = layers()
    set_bias(model, slice(0, 15), -100.0)
    assert not warnings_of([nothing, nothing], model)


def test_few_units_that_are_silent_on_the_first_batch_are_not_warned_of() -> None:
    model = layers(width=3)
    set_bias(model, slice(0, 3), -100.0)
    assert not warnings_of([nothing, nothing], model, probe=None)
    assert warnings_of([nothing, nothing], model)  # on a probe they are dead


def test_running_statistics_that_are_not_there_yet_are_not_warned_of() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    set_bias(model, slice(0, 16), -100.0)  # centred in training
    assert not warnings_of([nothing], model)


def test_no_limit_means_no_warning_of_any_kind() -> None:
    model = layers()
    set_bias(model, slice(0, 16), -100.0)
    assert not warnings_of(
        [revive(0, 16), *(kill(n, n + 1) for n in range(16))], model, warn_over=None
    )


def test_a_warning_points_at_the_line_of_the_loop() -> None:
    def lines(**settings: Any) -> list[tuple[str, str]]:
        caught = warnings_of([nothing, kill(0, 8)], **settings)
        rows = Path(__file__).read_text().splitlines()
        return [(each.filename, rows[each.lineno - 1].strip()) for each in caught]

    assert lines() == [(__file__, "optimizer.step()")]
    assert lines(every=3) == [(__file__, "optimizer.step()")]
    at_the_end = lines(every=100)
    assert [file for file, _ in at_the_end] == [__file__]
    assert "reludiag.Monitor(" in at_the_end[0][1]


def test_a_scheduler_around_the_optimizer_does_not_move_the_line() -> None:
    model = layers()
    optimizer = sgd(model)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    with (
        pytest.warns(RuntimeWarning, match="in one window") as caught,
        reludiag.Monitor(model, optimizer, every=1, probe=PROBE),
    ):
        for step in range(2):
            set_bias(model, slice(0, 8 * step), -100.0)
            model(PROBE).sum().backward()
            optimizer.step()
            scheduler.step()
    assert caught[0].filename == __file__


def test_a_stop_for_units_that_were_born_dead_does_not_speak_of_the_rate() -> None:
    model = layers()
    set_bias(model, slice(0, 12), -100.0)
    with pytest.raises(reludiag.TooManyDeadError) as caught:
        warnings_of([nothing, nothing], model, raise_over="30%")
    message = str(caught.value)
    assert "12 of them were dead when the run began" in message
    assert "Try a lower learning rate" not in message
    with pytest.raises(reludiag.TooManyDeadError, match="Try a lower learning rate"):
        warnings_of([nothing, kill(0, 14)], raise_over="30%")


@pytest.mark.parametrize("setting", ["on_snapshot", "on_death"])
@pytest.mark.parametrize("value", [1, "print", [print]])
def test_a_listener_that_cannot_be_called_is_refused(setting: str, value: Any) -> None:
    model = layers()
    with pytest.raises(reludiag.UsageError, match=f"{setting}=.* was given; expected a function"):
        reludiag.Monitor(model, sgd(model), **{setting: value})


@pytest.mark.parametrize("value", [0.5, {"rare": 0.1}, "strict"])
def test_thresholds_that_are_none_are_refused(tmp_path: Any, value: Any) -> None:
    model, path = layers(), tmp_path / "run.reludiag"
    optimizer = sgd(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with reludiag.Monitor(model, optimizer, path=path, probe=PROBE) as monitor:
            optimizer.step()
    for use in (
        lambda: monitor.diagnose(value),
        lambda: reludiag.load(path, value),
        lambda: reludiag.scan(model, [PROBE], thresholds=value),
    ):
        with pytest.raises(reludiag.UsageError, match=r"expected reludiag\.Thresholds"):
            use()


@pytest.mark.parametrize(
    "facts", [{"model": nn.ReLU()}, {"when": {1, 2}}, {1: "a"}, {"x": torch.zeros(1)}, ["a"], "a"]
)
def test_facts_that_a_recording_cannot_hold_are_refused_at_the_start(facts: Any) -> None:
    model = layers()
    with pytest.raises(reludiag.UsageError, match=r"facts.* expected"):
        reludiag.Monitor(model, sgd(model), facts=facts)


def test_always_on_units_are_not_counted_among_those_that_are_not_alive() -> None:
    model = layers()
    set_bias(model, slice(0, 10), 100.0)
    set_bias(model, slice(10, 12), -100.0)
    text = " ".join(str(reludiag.scan(model, [PROBE])).split())
    lines = text.split("Use --csv FILE to save the ")[1]
    counts = reludiag.scan(model, [PROBE]).sites[["alive", "always_on", "units"]].sum()
    lost = counts["units"] - counts["alive"] - counts["always_on"]
    assert lines.startswith(f"{lost} units that are not alive, and {counts['always_on']} that")
