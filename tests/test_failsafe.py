"""Watching changes nothing and ends nothing: whatever fails in reludiag, the training goes on as if
nobody had watched it.

The points of failure are not written down: a clean run lists every function of reludiag that it
enters, and each is then made to raise in another run.
"""

import linecache
import random
import sqlite3
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm
from torch.overrides import TorchFunctionMode

import reludiag
from reludiag import Monitor
from reludiag.capture.call_reader import CallReader
from reludiag.diagnosis.gate import Gate, not_judged
from reludiag.sites import guard

PACKAGE = str(Path(reludiag.__file__).parent)
ERRORS = (
    *(MemoryError, RecursionError, torch.OutOfMemoryError, sqlite3.OperationalError, KeyError),
    *(
        BrokenPipeError,
        AssertionError,
        ValueError,
        RuntimeError,
        NotImplementedError,
        StopIteration,
    ),
)
Point = tuple[str, str, int]
"""File, function, and its first line, or one of its lines."""

# What PyTorch calls itself: the table in reludiag/sites/guard.py.
SHELLS = frozenset(
    {
        *("Hook.__call__", "Hook.traced", "is_exporting", "FrozenHook.__call__", "leave_modes"),
        *("RectifierMode.__torch_function__", "RectifierMode.__torch_function__.<locals>.call"),
        *("_EscapeMode.__torch_function__", "ProvenanceMode.__torch_dispatch__"),
        *("BeforeStep.__call__", "AfterStep.__call__", "BeforeMeasuredStep.__call__"),
        *("Monitor.__enter__", "Monitor.__exit__", "Monitor._before_step", "Monitor._end_step"),
        *("AfterClosure.__call__", "Monitor._after_closure", "Monitor.step", "Alerts.tell"),
        *("AroundStep.__call__", "OutputMeter._follow.<locals>.arrived"),
        "LossPaths._guarded.<locals>.call",
        *("Session.begin", "Session.end"),
        "RecordingWriter.__init__",  # an error of SQLite there is a path that cannot be written
        "limited",  # draws batches from the user's loader, whose error it is then
    }
)


def point_of(code: CodeType) -> Point | None:
    """A function of reludiag that is no shell."""
    if not code.co_filename.startswith(PACKAGE) or code.co_filename == guard.__file__:
        return None
    if code.co_qualname in SHELLS or code.co_name == "<module>":
        return None
    return code.co_filename.removeprefix(PACKAGE), code.co_qualname, code.co_firstlineno


class Watcher:
    """Counts the calls of reludiag's functions, or its lines, and raises at one of them."""

    def __init__(
        self, point: Point | None = None, nth: int = 1, error: Any = None, lines: bool = False
    ) -> None:
        self._lines = lines
        self.calls: Counter[Point] = Counter()
        self._points: dict[int, tuple[CodeType, Point | None]] = {}
        self.raised = False
        self._point, self._nth, self._error = point, nth, error

    @contextmanager
    def at_work(self) -> Iterator[None]:
        sys.settrace(self._see)
        try:
            yield
        finally:
            sys.settrace(None)

    def _see(self, frame: FrameType, event: str, _: Any) -> Any:
        code = frame.f_code
        _, point = self._points.get(id(code)) or self._points.setdefault(
            id(code), (code, point_of(code))
        )
        if point is None or self.raised:
            return None
        if self._lines:
            return self._see_line
        self._visit(point)
        return None

    def _see_line(self, frame: FrameType, event: str, _: Any) -> Any:
        point = self._points[id(frame.f_code)][1]
        # Nothing can fail where a `with` is left but what its contexts do.
        is_with = linecache.getline(frame.f_code.co_filename, frame.f_lineno).split()[:1] == [
            "with"
        ]
        if event == "line" and point is not None and not (self.raised or is_with):
            self._visit((*point[:2], frame.f_lineno))
        return self._see_line

    def _visit(self, point: Point) -> None:
        self.calls[point] += 1
        if point == self._point and self.calls[point] == self._nth:
            self.raised = True
            raise self._error("injected")


# What must be equal to the last bit


def state_of(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> list[Any]:
    """All that a training depends on, without reading anything in a way that changes it."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    state: list[Any] = [(name, t._version, t.detach().clone()) for name, t in tensors]
    state += [
        (name, p.grad._version, p.grad.clone())
        for name, p in model.named_parameters()
        if p.grad is not None
    ]
    state += [
        (name, [type(hook) for hook in hooks.values()], module.training, "forward" in vars(module))
        for name, module in model.named_modules()
        for hooks in (module._forward_pre_hooks, module._forward_hooks)
    ]
    for optimizer in optimizers:
        state += [
            (key, value.clone() if isinstance(value, Tensor) else repr(value))
            for own in optimizer.state.values()
            for key, value in own.items()
            if key not in {"func_evals"}
        ]
        state += [
            len(optimizer._optimizer_step_pre_hooks),
            len(optimizer._optimizer_step_post_hooks),
        ]
    return [*state, *process_state()]


def process_state() -> list[Any]:
    return [
        *(torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()),
        *(torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()),
        *(torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()),
        torch._C._len_torch_function_stack(),
        torch.utils._python_dispatch._len_torch_dispatch_stack(),
    ]


def assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other)
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    else:
        assert one == other


# Trainings


class Net(nn.Module):
    """Rectifiers as modules, in place, and as functions of several spellings."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 8)
        self.act, self.drop, self.last = nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(functional.relu(self.norm(self.first(x))))
        x = self.act(self.second(x))
        y = self.second(x)
        return self.last(y * (y > 0))


class UsersMode(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class WithAMode(Net):
    """Enters a function mode of its own between two rectifiers."""

    def forward(self, x: Tensor) -> Tensor:
        with UsersMode():
            x = self.act(self.second(functional.relu(self.first(x))))
        return self.last(functional.relu(self.second(x)))


def spectral() -> nn.Module:
    return nn.Sequential(
        spectral_norm(nn.Linear(6, 8)), nn.ReLU(), spectral_norm(nn.Linear(8, 1)), nn.ReLU()
    )


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


class Training:
    """A training that can be run bare or watched, with the same result."""

    def __init__(
        self,
        build: Callable[[], nn.Module] = Net,
        steps: int = 4,
        every: int = 2,
        optimizers: Callable[[nn.Module], list[torch.optim.Optimizer]] | None = None,
        around: Callable[[], Any] = nullcontext,
        batch: Callable[[], Tensor] = lambda: torch.randn(12, 6),
        kills: bool = False,
        **settings: Any,
    ) -> None:
        self.build, self.steps, self.around, self.batch = build, steps, around, batch
        self.optimizers = optimizers or (lambda model: [sgd(model.parameters())])
        self.kills, self.settings = kills, {"every": every, "warn_over": None, **settings}

    def run(
        self, watcher: Watcher | None = None, watched: bool = False
    ) -> tuple[list[Any], Monitor | None]:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        model = self.build()
        optimizers = self.optimizers(model)
        monitor = None
        if watched or watcher is not None:
            monitor = Monitor(model, optimizers, **self.settings)
        losses = []
        tracing = nullcontext() if watcher is None else watcher.at_work()
        with tracing, self.around(), monitor or nullcontext():
            for step in range(self.steps):
                losses.append(self.step(model, optimizers))
                if self.kills and step == 1:
                    with torch.no_grad():
                        model[0].bias[:3] = -50.0  # type: ignore[index, union-attr]
        return [losses, *state_of(model, optimizers)], monitor

    def step(self, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> float:
        x = self.batch()

        def closure() -> Tensor:
            for optimizer in optimizers:
                optimizer.zero_grad()
            y = model(x)
            loss = (y.values() if y.is_nested else y).float().sub(1).square().mean()
            loss.backward()
            return loss

        if isinstance(optimizers[0], torch.optim.LBFGS):
            return float(optimizers[0].step(closure))
        loss = closure()
        for optimizer in optimizers:
            optimizer.step()
        return loss.item()


def two(model: nn.Module) -> list[torch.optim.Optimizer]:
    parameters = list(model.parameters())
    return [sgd(parameters[:2]), torch.optim.Adam(parameters[2:], lr=0.01)]


def lbfgs(model: nn.Module) -> list[torch.optim.Optimizer]:
    return [torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=2)]


def ragged() -> Tensor:
    return torch.nested.nested_tensor([torch.randn(3, 6), torch.randn(5, 6)], layout=torch.jagged)


PROBE = torch.linspace(-2, 2, 60).reshape(10, 6)
TRAININGS = {
    "functions": Training(),
    "probe": Training(probe=PROBE),
    "deaths": Training(plain, kills=True, probe=PROBE),
    "closure": Training(optimizers=lbfgs),
    "spectral": Training(spectral, probe=PROBE),
    "nested": Training(plain, batch=ragged),
    "optimizers": Training(plain, optimizers=two, stats_every=1),
    "own mode": Training(WithAMode),
    "autocast": Training(around=lambda: torch.autocast("cpu", torch.bfloat16), probe=PROBE),
    "resting": Training(plain, steps=40, every=50, stats_every=25),
}


Result = list[Any]


@pytest.fixture(scope="module")
def clean() -> dict[str, tuple[Result, Counter[Point]]]:
    """Of each training the result without a Monitor, and the functions of reludiag with one."""
    return clean_runs(lines=False)


def clean_runs(lines: bool) -> dict[str, tuple[Result, Counter[Point]]]:
    runs = {}
    for name, training in TRAININGS.items():
        bare, _ = training.run()
        watcher = Watcher(lines=lines)
        watched, monitor = training.run(watcher)
        assert_equal(bare, watched)
        assert monitor is not None
        assert not any(place.reason == "unwatched" for place in monitor.diagnose().unjudged)
        runs[name] = bare, watcher.calls
    return runs


def faults(name: str, clean: Any, share: int) -> Iterator[tuple[Point, int, Any]]:
    """A fault of each function or line, in one of the trainings that call it, or of one in `share`.

    At the first, the middle or the last call.
    """
    points = {point for _, calls in clean.values() for point in calls}
    for index, point in enumerate(sorted(points)):
        places = [name for name, (_, calls) in clean.items() if point in calls]
        number = zlib.crc32(repr(point).encode())
        if places[number % len(places)] != name or index % share:
            continue
        count = clean[name][1][point]
        nth = (1, count, (count + 1) // 2)[number // 10 % 3]
        yield point, nth, ERRORS[number // 30 % len(ERRORS)]


def check(training: Training, bare: Result, fault: Any, lines: bool) -> bool:
    """Whether watching stopped; the training must not have noticed."""
    watcher = Watcher(*fault, lines)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result, monitor = training.run(watcher)
    assert_equal(bare, result)
    own = [str(w.message) for w in caught if str(w.message).startswith("reludiag")]
    assert len(own) <= 1, own
    assert monitor is not None
    stopped = any("watching stopped" in text for text in own)
    if own and monitor._writer is not None:
        places = monitor.diagnose().unjudged
        assert any(place.reason == "unwatched" for place in places) == stopped
    return stopped


def check_all(name: str, clean: Any, share: int, lines: bool = False) -> int:
    """How many of the faults ended watching."""
    stopped, failures = 0, []
    for fault in faults(name, clean, share):
        try:
            stopped += check(TRAININGS[name], clean[name][0], fault, lines)
        except Exception as error:  # all of them are told
            failures.append((fault, repr(error)))
    assert not failures, "\n".join(map(str, failures))
    return stopped


def test_watching_changes_nothing(clean: Any) -> None:
    assert len({point for _, calls in clean.values() for point in calls}) > 300


def test_a_training_goes_on_as_if_unwatched_where_watching_fails(clean: Any) -> None:
    assert sum(check_all(name, clean, 30) for name in TRAININGS) > 5


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_goes_on_wherever_in_reludiag_a_function_fails(name: str, clean: Any) -> None:
    check_all(name, clean, 1)


@pytest.mark.slow
def test_a_training_goes_on_wherever_a_line_of_reludiag_fails() -> None:
    runs = clean_runs(lines=True)
    assert len({point for _, calls in runs.values() for point in calls}) > 2000
    assert sum(check_all(name, runs, 60, lines=True) for name in TRAININGS) > 20


# Scans


def test_a_scan_that_fails_leaves_the_model_as_it_was(clean: Any) -> None:
    def scan(watcher: Watcher) -> tuple[Result, Exception | None]:
        torch.manual_seed(0)
        model, error = Net(), None
        with watcher.at_work():
            try:
                reludiag.scan(model, [PROBE, PROBE])
            except Exception as raised:
                error = raised
        return state_of(model, []), error

    watcher = Watcher()
    found, error = scan(watcher)
    assert error is None
    torch.manual_seed(0)
    assert_equal(found, state_of(Net(), []))
    for index, point in enumerate(sorted(watcher.calls)):
        if index % 10 == 0:
            failing = Watcher(point, 1 + watcher.calls[point] // 2, ERRORS[index % len(ERRORS)])
            state, _ = scan(failing)
            assert_equal(state, found)


# What the user's own code raises


class UserError(Exception):
    pass


class Raising(torch.Tensor):
    """Raises where it is rectified."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.relu:
            raise UserError
        return super().__torch_function__(func, types, args, kwargs)


@pytest.mark.parametrize("probe", [None, PROBE])
def test_what_the_model_raises_is_raised_once_and_watching_goes_on(probe: Tensor | None) -> None:
    class Rectified(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(6, 8)

        def forward(self, x: Tensor) -> Tensor:
            calls.append(x)
            return functional.relu(self.first(x))

    calls: list[Tensor] = []
    model = Rectified()
    optimizer = sgd(model.parameters())
    with Monitor(model, optimizer, every=1, probe=probe, warn_over=None) as monitor:
        for _ in range(2):
            seen = len(calls)
            with pytest.raises(UserError) as raised:
                model(PROBE.as_subclass(Raising))
            assert len(calls) == seen + 1
            assert raised.value.__cause__ is raised.value.__context__ is None
            model(PROBE).sum().backward()
            optimizer.step()
    assert monitor.diagnose().unjudged == ()


def test_what_a_closure_raises_is_the_users() -> None:
    def closure() -> float:
        raise error

    model, error = plain(), UserError()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UserError) as raised, Monitor(model, optimizer):
        optimizer.step(closure)
    assert raised.value is error


def test_an_interrupt_passes_and_leaves_no_hook() -> None:
    training = TRAININGS["functions"]
    watcher = Watcher()
    training.run(watcher)
    point = next(point for point in watcher.calls if point[1] == "CallReader.read_function")
    torch.manual_seed(0)
    model = Net()
    optimizer = sgd(model.parameters())
    with (
        pytest.raises(KeyboardInterrupt),
        Monitor(model, optimizer, warn_over=None),
        Watcher(point, 2, KeyboardInterrupt).at_work(),
    ):
        model(torch.randn(12, 6))
    torch.manual_seed(0)
    assert_equal(state_of(model, [optimizer])[-8:], process_state()[-8:])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# What is said of it


def stop_at(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the reading of a module fail from this call in training on."""
    calls: list[nn.Module] = []

    def read(self: CallReader, module: nn.Module, *args: Any) -> None:
        calls.extend([module] * module.training)
        if module.training and len(calls) >= call:
            raise MemoryError("no room")
        read_module(self, module, *args)

    read_module = CallReader.read_module
    monkeypatch.setattr(CallReader, "read_module", read)


def test_a_recording_says_that_watching_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stop_at(7, monkeypatch)
    path = tmp_path / "run.reludiag"
    with pytest.warns(RuntimeWarning, match=r"stopped after step 3 \(MemoryError.*: no room\)"):
        Training(plain, steps=6, path=path).run(watched=True)
    diagnosis = reludiag.load(path)
    assert diagnosis.head.status == "not watched after step 3"
    assert [place.reason for place in diagnosis.unjudged] == ["unwatched"]
    assert "after step 3: MemoryError" in diagnosis.unjudged[0].sentence
    assert diagnosis.timeline["step"].max() == 2
    assert not_judged(Gate.parse(["5%"]).judge(diagnosis.sites, diagnosis.unjudged))
    assert "Watching stopped" in str(diagnosis)


def test_a_full_disk_is_told_by_the_monitor_where_the_recording_cannot(tmp_path: Path) -> None:
    model = plain()
    optimizer = sgd(model.parameters())
    with (
        pytest.warns(RuntimeWarning, match="watching stopped"),
        Monitor(model, optimizer, path=tmp_path / "run.reludiag", every=1) as monitor,
    ):
        for _ in range(200):
            model(PROBE).sum().backward()
            optimizer.step()
            monitor._writer._db.execute("PRAGMA max_page_count = 1")  # type: ignore[union-attr]
    assert [place.reason for place in monitor.diagnose().unjudged] == ["unwatched"]


def test_where_warnings_are_errors_the_training_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    training = Training(plain)
    bare, _ = training.run()
    stop_at(3, monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(warnings, "showwarning", lambda *args: shown.append(str(args[0])))
        watched, _ = training.run(watched=True)
    assert_equal(bare, watched)
    assert [text.partition(" (")[0] for text in shown] == [
        "reludiag: watching stopped after step 1"
    ]


@pytest.mark.parametrize("call", [1, 8])
def test_a_compiled_training_goes_on(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Compiled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = plain()
            self.compile(backend="eager", fullgraph=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x) * 2

    training = Training(Compiled, steps=6)
    torch._dynamo.reset()
    bare, _ = training.run()
    stop_at(call, monkeypatch)
    torch._dynamo.reset()
    with pytest.warns(RuntimeWarning, match="watching stopped"):
        watched, _ = training.run(watched=True)
    assert_equal(bare, watched)
    torch._dynamo.reset()


def test_a_logger_that_fails_ends_its_own_metrics(tmp_path: Path) -> None:
    tensorboard = pytest.importorskip("reludiag.integrations.tensorboard")

    class Full:
        def add_scalar(self, *_: Any) -> None:
            raise OSError("no space left")

    training = Training(plain, on_snapshot=tensorboard.TensorBoardSink(Full()))
    bare, _ = training.run()
    with pytest.warns(RuntimeWarning, match="TensorBoardSink failed at step 0.*no space") as caught:
        watched, monitor = training.run(watched=True)
    assert len(caught) == 1
    assert_equal(bare, watched)
    assert monitor is not None
    assert monitor.snapshots == [0, 2, 4]
    assert monitor.diagnose().unjudged == ()


@pytest.mark.integrations
@pytest.mark.filterwarnings("ignore")
def test_a_training_of_a_framework_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = pytest.importorskip("ignite.engine")
    ignite = pytest.importorskip("reludiag.integrations.ignite")

    def run(watched: bool) -> Result:
        torch.manual_seed(0)
        model = plain()
        optimizer = sgd(model.parameters())

        def step(trainer: Any, batch: Tensor) -> None:
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()

        trainer = engine.Engine(step)
        if watched:
            ignite.ReludiagHandler(model, optimizer, every=2).attach(trainer)
        trainer.run([torch.randn(12, 6) for _ in range(5)])
        return state_of(model, [optimizer])

    bare = run(False)
    for name, owner in (("read_module", CallReader), ("__enter__", Monitor), ("_end", Monitor)):

        def fail(*_: Any) -> None:
            raise AssertionError

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            assert_equal(bare, run(True))
