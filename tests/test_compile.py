"""torch.compile: what is compiled is seen as if it was not, or a sentence says why not."""

import shutil
import warnings
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import reludiag


class Net(nn.Module):
    """A ReLU called twice, in place, a BatchNorm, and a unit that is dead from the start."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 12), nn.Linear(12, 6)
        self.norm, self.relu = nn.BatchNorm1d(12), nn.ReLU(inplace=True)
        self.last = nn.Sequential(nn.Linear(6, 5), nn.ReLU6(), nn.Linear(5, 1))
        with torch.no_grad():
            self.norm.bias[3] = -100.0
            self.last[0].bias[1] = -100.0

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.relu(self.second(self.relu(self.norm(self.first(x))))))


class Functional(Net):
    """The same, with functions."""

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.second(functional.relu(self.norm(self.first(x)))))
        return self.last(y.clamp(min=0))


def train(model: Callable[[Tensor], Tensor], optimizer: Any, steps: int, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    dtype = optimizer.param_groups[0]["params"][0].dtype
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(16, 8, generator=generator, dtype=dtype)).square().mean().backward()
        optimizer.step()


def monitored(
    compiled: Callable[[nn.Module], Any], when: str, build: Callable[[], nn.Module] = Net
) -> reludiag.Diagnosis:
    """Of 20 steps, of a model that was compiled `before` or `after`, or `ran` compiled before.

    In float64: compiled code adds up in another order, and 20 steps make more of each rounding.
    """
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = build().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    runs = model if when == "after" else compiled(model)
    if when == "ran":
        train(runs, torch.optim.SGD(model.parameters(), lr=0.0), 3, seed=1)
    given = runs if when == "before" and isinstance(runs, nn.Module) else model
    with reludiag.Monitor(given, optimizer, every=5, stats_every=2) as monitor:
        if when == "after":
            runs = compiled(model)
        train(runs, optimizer, 20)
    train(runs, optimizer, 1)  # the compiled code goes on without its hooks
    return monitor.diagnose()


def in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="aot_eager")
    return model


WAYS = {
    "eager": lambda model: torch.compile(model, backend="eager", fullgraph=True),
    "aot_eager": lambda model: torch.compile(model, backend="aot_eager", fullgraph=True),
    "model.compile()": in_place,
    "a function": lambda model: torch.compile(lambda x: model(x), backend="aot_eager"),
}
EXACT = ["site", "unit", "verdict", "samples", "counted", "fired", "unit_axis", "producer", "norm"]


def assert_equal(found: reludiag.Diagnosis, expected: reludiag.Diagnosis) -> None:
    pd.testing.assert_frame_equal(found.units[EXACT], expected.units[EXACT])
    pd.testing.assert_frame_equal(
        found.timeline.drop(columns="learning_rate"),
        expected.timeline.drop(columns="learning_rate"),
        rtol=1e-4,
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_compiled_model_is_monitored_as_if_it_was_not(way: str, when: str) -> None:
    expected = monitored(lambda model: model, "before")
    assert list(expected.sites["site"]) == ["relu", "relu#1", "last.1"]
    assert expected.units["verdict"].eq("dead").sum() >= 2
    assert_equal(monitored(WAYS[way], when), expected)


@pytest.mark.parametrize("way", ["aot_eager", "model.compile()"])
def test_a_model_that_ran_compiled_before_is_compiled_again(way: str) -> None:
    found, expected = monitored(WAYS[way], "ran"), monitored(lambda model: model, "ran")
    assert_equal(found, expected)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
def test_inductor_keeps_every_call_in_its_place() -> None:
    found = monitored(lambda model: torch.compile(model, fullgraph=True), "before")
    assert_equal(found, monitored(lambda model: model, "before"))


@pytest.mark.parametrize("way", ["aot_eager", "model.compile()"])
def test_functions_in_a_compiled_model_are_seen_though_it_runs_uncompiled(way: str) -> None:
    expected = monitored(lambda model: model, "before", Functional)
    names = ["first:relu", "second:relu", "second:clamp", "last.1"]
    assert list(expected.sites["site"]) == [*names, "relu"]
    found = monitored(WAYS[way], "before", Functional)
    assert_equal(found, expected)
    assert any("ran uncompiled" in note for note in found.head.notes)


def test_functions_hidden_by_a_later_compilation_are_reported() -> None:
    found = monitored(WAYS["aot_eager"], "after", Functional)
    assert any("not judged" in note and "compiled" in note for note in found.head.notes)
    functional = found.units[found.units["site"].str.contains(":")]
    assert set(functional["verdict"]) == {"unobserved"}


def test_the_setting_of_the_compiler_is_the_users_again() -> None:
    before = torch._dynamo.config.skip_nnmodule_hook_guards
    monitored(WAYS["eager"], "before")
    assert torch._dynamo.config.skip_nnmodule_hook_guards is before


def test_there_is_one_graph_and_no_recompilation() -> None:
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 6), nn.ReLU())
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    counts = []
    with reludiag.Monitor(model, optimizer, every=10, stats_every=3):
        for _ in range(5):
            train(compiled, optimizer, 10)
            counts.append(len(graphs))
    # Beside the model's, one for each of the hooks before and after it.
    assert counts[0] <= 3 and len(set(counts)) == 1
    assert sum(any(n.op == "call_module" or "linear" in str(n.target) for n in graph.graph.nodes)
               for graph in graphs) == 1  # fmt: skip


def test_a_model_that_is_compiled_in_the_middle_of_a_run_stays_watched() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU())
    with torch.no_grad():
        for linear in (model[0], model[2]):
            linear.bias.fill_(3.0)  # type: ignore[union-attr]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with reludiag.Monitor(model, optimizer, every=100) as monitor:
        train(model, optimizer, 140)  # nothing of it is watched any more, but on counted steps
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        train(compiled, optimizer, 60)
        with torch.no_grad():
            model[2].bias[4] = -100.0  # type: ignore[union-attr]
        train(compiled, optimizer, 100)
    diagnosis = monitor.diagnose()
    dead = diagnosis.units[diagnosis.units["verdict"] == "dead"]
    assert list(zip(dead["site"], dead["unit"], dead["died_step"], strict=True)) == [("3", 4, 300)]
    assert set(diagnosis.timeline.query("step > 0")["samples"]) == {1600}


@pytest.mark.parametrize("way", ["aot_eager", "model.compile()"])
@pytest.mark.parametrize("when", ["before", "between"])
def test_a_compiled_twin_that_nobody_watches_takes_nothing_away(way: str, when: str) -> None:
    """A teacher, or an average of the weights: its code is not run for the monitored model."""
    torch._dynamo.reset()
    model, twin = Net(), Net()
    runs, other = WAYS[way](model), WAYS[way](twin)
    other(torch.randn(16, 8)) if when == "before" else None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with reludiag.Monitor(model, optimizer, every=5) as monitor:
        for step in range(10):
            other(torch.randn(16, 8)) if when == "between" else None
            train(runs, optimizer, 1, seed=step)
    timeline = monitor.diagnose().timeline.query("step > 0")
    assert set(timeline["site"]) == {"relu", "relu#1", "last.1"}
    assert set(timeline["samples"]) == {5 * 16}


@pytest.mark.parametrize("build", [Net, Functional])
def test_a_probe_and_a_scan_look_at_a_compiled_model(build: Callable[[], nn.Module]) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = build()
    x = torch.randn(64, 8)
    compiled = torch.compile(model, backend="aot_eager")
    compiled(x)
    expected = reludiag.scan(model, [x])
    for given in (compiled, in_place(model)):
        found = reludiag.scan(given, [x])
        pd.testing.assert_frame_equal(found.units[EXACT], expected.units[EXACT])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with reludiag.Monitor(compiled, optimizer, every=2, probe=x) as monitor:
        train(compiled, optimizer, 4)
    assert not any("uncompiled" in note for note in monitor.diagnose().head.notes)
    final = reludiag.scan(model, [x]).units
    pd.testing.assert_frame_equal(
        monitor.diagnose().units[["site", "fired"]], final[["site", "fired"]]
    )


def test_training_another_copy_is_noticed() -> None:
    model, other = Net(), Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with (
        pytest.warns(RuntimeWarning, match="another copy"),
        reludiag.Monitor(model, optimizer, every=5) as monitor,
    ):
        train(other, optimizer, 2)
    assert set(monitor.diagnose().units["verdict"]) == {"unobserved"}


def test_compilation_is_as_it_was_after_an_error() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with pytest.raises(ZeroDivisionError), reludiag.Monitor(model, optimizer):
        raise ZeroDivisionError
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ran = []

        def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
            ran.append(graph)
            return graph.forward

        torch.compile(model, backend=backend)(torch.randn(4, 8))
    assert ran


@pytest.mark.parametrize("way", WAYS)
def test_compiled_outputs_are_equal_to_the_last_bit(way: str) -> None:
    torch._dynamo.reset()
    model, reference = Net(), Net()
    reference.load_state_dict(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    other = torch.optim.SGD(reference.parameters(), lr=0.01)
    runs, bare = WAYS[way](model), WAYS[way](reference)
    with reludiag.Monitor(model, optimizer, every=4, stats_every=2):
        for _ in range(10):
            x = torch.randn(16, 8)
            outputs = [runs(x), bare(x)]
            assert torch.equal(*outputs)
            for output, clock in zip(outputs, (optimizer, other), strict=True):
                clock.zero_grad()
                output.square().mean().backward()
                clock.step()
    state = reference.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
