"""Monitor: watches a training run, clocked by the optimizer, and records its state.

With a probe, the state at each snapshot is that of a frozen pass over the same batches: exact,
and without cost in between. Without one it is what the training batches of the window showed.
"""

import contextlib
import sqlite3
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from reludiag.capture.calls import Call, Reading
from reludiag.capture.capture import Capture
from reludiag.capture.hooks import forget_compiled, guarded, is_compiled, uncompiled
from reludiag.diagnosis.diagnosis import Diagnosis
from reludiag.diagnosis.from_recording import diagnose_run, load
from reludiag.errors import ModelError, UsageError
from reludiag.evidence.collector import Witness
from reludiag.measure.blind_spots import blind_spots, no_rectifier
from reludiag.measure.frozen_pass import Scanner
from reludiag.measure.unit_counts import SiteCounts, UnitCounts
from reludiag.measure.verdicts import Thresholds, is_dead
from reludiag.monitoring.alerts import WARN_OVER, Alerts, Listener
from reludiag.monitoring.clock import AfterStep, BeforeStep, Clock, innermost
from reludiag.monitoring.window import Window
from reludiag.process import this_process
from reludiag.recording import RecordingWriter, SiteState
from reludiag.sites.functional import may_rectify


class Monitor:
    """Watches the rectifiers of a model while it trains; a context manager around the loop.

    `optimizer` is the clock, and tells the learning rates that each step really used; of
    several, the last one closes a step. Without one, call `step()` after each update.

    Every `every` steps the state of all units goes into the recording at `path` (into memory if
    it is None), the initial state first. `probe` is a batch (tensor, tuple with the inputs first,
    or dict) or an iterable of batches, which are kept and run through the model without gradient,
    in eval mode, at each snapshot. With it, the units that died since the last snapshot are
    examined (see `evidence`): that takes a copy of the weights, and up to 18 more passes over the
    probe where units died. The first snapshot runs a copy of the model, to see what chance leaves
    dead.

    Without a probe, whether a unit fired is known of every training batch; firing rates and all
    other statistics are of the batches of every `stats_every`-th step, 1 for all. `unit_axes` is
    as in `scan`. `facts` are kept with the recording, as JSON: what else is known of the run.

    After each snapshot `on_snapshot` is called with it (a `Snapshot`), and so is `on_death` where
    units died. The first time that more than `warn_over` of all units (a share, or a number such
    as "12") died between two snapshots there is a RuntimeWarning; None for none. Once more than
    `raise_over` are dead or not finite, after step 0, TooManyDeadError ends the run.

    A model may be compiled by torch.compile, before or later. Its first step is not, and where it
    calls rectifiers as functions it runs uncompiled until the end.

    Raises UsageError for settings that make no sense, ModelError for a model that cannot hold a
    rectifier, RecordingError if `path` exists (unless `overwrite`) or cannot be
    written.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        *,
        path: str | Path | None = None,
        every: int = 100,
        stats_every: int = 16,
        probe: Any = None,
        unit_axes: Mapping[str, int] | None = None,
        overwrite: bool = False,
        facts: Mapping[str, Any] | None = None,
        on_snapshot: Listener | None = None,
        on_death: Listener | None = None,
        warn_over: str | None = WARN_OVER,
        raise_over: str | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise UsageError(
                f"Monitor({type(model).__name__}, ...) was given; expected the model first, then "
                "the optimizer"
            )
        for name, value in (("every", every), ("stats_every", stats_every)):
            if not isinstance(value, int) or value < 1:
                raise UsageError(
                    f"{name}={value} was given; expected a whole number of steps from 1 up"
                )
        self._compiled = is_compiled(model)
        model = getattr(model, "_orig_mod", model)
        if not may_rectify(model):
            raise ModelError(no_rectifier(model))
        self.model = model
        self.every = every
        self.stats_every = stats_every
        self.snapshots: list[int] = []
        """Steps whose snapshots are safely in the recording."""
        self._path = None if path is None else Path(path)
        self._overwrite = overwrite
        self._optimizers = (
            []
            if optimizer is None
            else [innermost(optimizer)]
            if isinstance(optimizer, Optimizer)
            else [innermost(each) for each in optimizer]
        )
        self._probe = None if probe is None else _batches(probe)
        self._probe_samples: int | None = None
        self._witness = Witness(model, self._optimizers, every, self._probe, unit_axes)
        self._capture = Capture(
            model,
            self._receive,
            self._wants_before,
            self._note_before,
            unit_axes,
            in_loop=True,
        )
        self._scanner = Scanner(model, unit_axes)
        self._blind_spots: Sequence[str] = ()
        self._window: dict[int, Window] = {}
        self._previous: dict[int, UnitCounts] = {}
        self._counting = True
        self._frozen_calls = 0
        """Of parts of the model that were in evaluation mode in a training pass."""
        self._clock = Clock()
        self._after_step = AfterStep(self._clock, self._end_step)
        self._rates: list[list[float]] = [[] for _ in self._optimizers]
        self._new_rates: list[tuple[int, str, float]] = []
        if not all(isinstance(optimizer, Optimizer) for optimizer in self._optimizers):
            raise UsageError("expected a torch.optim.Optimizer, or a list of them, or None")
        self._settings: dict[str, Any] = {}
        self._told = dict(facts or {})
        self._alerts = Alerts(on_snapshot, on_death, warn_over, raise_over)
        self._param_groups = self._map_param_groups()
        if self._optimizers and not self._param_groups:
            raise UsageError(
                "not one parameter of this model is in the optimizer: was the optimizer made for "
                "another copy of it?"
            )
        self._handles: list[RemovableHandle] = []
        self._uncompiled: contextlib.AbstractContextManager[Any] | None = None
        self._guarded = contextlib.ExitStack()
        self._writer: RecordingWriter | None = None
        self._broken = False

    def __enter__(self) -> Self:
        if self._writer is not None:
            raise UsageError("this Monitor was used already; make a new one for another run")
        self._writer = RecordingWriter(self._path, self._overwrite)
        self._writer.write_facts(self._facts("running"))
        try:
            if self._probe is not None:
                self._snapshot()
            else:
                # Compiled code shows neither where units are nor the functions that it calls.
                self._uncompiled = uncompiled()
                self._uncompiled.__enter__()
                self._capture.attach()
            last = len(self._optimizers) - 1
            for index, optimizer in enumerate(self._optimizers):
                before = BeforeStep(self._rates[index], partial(self._before_step, index))
                self._handles.append(optimizer.register_step_pre_hook(before))
                if index == last:
                    self._handles.append(optimizer.register_step_post_hook(self._after_step))
            self._witness.attach()
        except BaseException:
            self._detach()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._detach()
        status = "complete" if kind is None else f"interrupted by {kind.__name__}"
        if self._writer is None or self._broken:
            return
        with self._keeping_the_run_alive():
            if not self.snapshots or self.snapshots[-1] != self._clock.step:
                self._snapshot(closing=True)
            self._writer.write_facts(self._facts(status))
            self._writer.close()
        self._alerts.tell(stopping=kind is None)

    def step(self) -> None:
        """Count one update of the weights, where there is no optimizer to do it."""
        if self._optimizers:
            raise UsageError("the optimizer counts the steps; step() is for runs without one")
        self._after_step()

    def diagnose(self, thresholds: Thresholds | None = None) -> Diagnosis:
        """The Diagnosis of what has been recorded so far, as `reludiag.load` gives it."""
        if self._writer is None:
            raise UsageError("nothing is recorded yet: use `with reludiag.Monitor(...):` first")
        if self._path is None:
            return diagnose_run(self._writer.read(), "this run", thresholds)
        return load(self._path, thresholds)

    def _wants_before(self, training: bool, site: int | None) -> bool:
        """Whether the pre-activation of a call will be read, which is expected to be of `site`."""
        if not (training and self._counting):
            return False
        if site is None:
            return True
        window = self._window.get(site)
        if window is None:  # how far a unit is from firing is asked where there were silent ones
            return site not in self._previous or bool(self._previous[site].silent.any())
        return not window.done

    def _receive(self, call: Call) -> None:
        if not call.training:
            self._frozen_calls += not self._capture.evaluating
            return
        asks = self._counting and self._wants_before(True, call.site)
        window = self._window.get(call.site) or self._new_window(call.site, call.output)
        window.add(call, self._counting, asks)

    def _note_before(self, site: int, before: Tensor, reading: Reading) -> None:
        window = self._window.get(site) or self._new_window(site, before)
        window.note_before(before, reading)

    def _new_window(self, site: int, x: Tensor) -> Window:
        window = Window(self._capture.sites[site], x.device, x.dtype)
        self._window[site] = window
        return window

    def _before_step(self, index: int, args: Any, kwargs: Any) -> Any:
        """An optimizer is about to step: note its learning rates as they are now."""
        changed = self._with_initial_state(args, kwargs)
        known = self._rates[index]
        rates = [float(group["lr"]) for group in self._optimizers[index].param_groups]
        for number, rate in enumerate(rates):
            if number >= len(known) or known[number] != rate:
                self._new_rates.append((self._clock.step + 1, f"{index}/{number}", rate))
        known[:] = rates
        return changed

    def _with_initial_state(self, args: Any, kwargs: Any) -> Any:
        """Take the initial state; where the forward is in the step's closure, after it.

        Then these are the arguments to step with instead: Lightning gives a closure always.
        """
        if self._clock.step or self.snapshots:
            return None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None or self._capture.passes:
            self._snapshot()
            return None

        def evaluate() -> Any:
            loss = closure()
            if not self.snapshots:
                self._snapshot()
                self._witness.keep_weights()  # which layers it is to keep is known only now
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": evaluate}
        return (args[0], evaluate, *args[2:]), kwargs

    def _end_step(self) -> None:
        if self._clock.step == 0 and not self.snapshots:
            self._snapshot()
        step = self._clock.step = self._clock.step + 1
        self._witness.stepped(step)
        self._capture.reset()
        if self._uncompiled is not None and self._capture.followed:
            self._compile()
        if step == 1 and self._probe is None and not self._capture.passes:
            warnings.warn(
                "reludiag: no forward of the monitored model was seen before the first step. Is it "
                "another copy that is trained?",
                RuntimeWarning,
                stacklevel=4,
            )
        if step % self.every == 0:
            self._snapshot()
        # At even distances in the window, the first of its steps always among them.
        counted = max(1, self.every // self.stats_every)
        self._counting = step * counted % self.every < counted
        if self._counting:
            self._wake()
        elif all(window.done for window in self._window.values()):
            self._capture.rest(self._window.keys())
            if self._capture.resting:  # until the next step that is counted, or the window's end
                place = step % self.every
                ahead = -(-self.every * (place * counted // self.every + 1) // counted) - place
                self._clock.idle_until = min(step + ahead, self._witness.next_wake(step))

    def _compile(self) -> None:
        """Let compiled code run from now on, with the hooks in it."""
        if not (self._compiled and self._capture.functional):
            self._end_uncompiled()
            forget_compiled()
            self._guarded.enter_context(guarded())

    def _end_uncompiled(self) -> None:
        if self._uncompiled is not None:
            self._uncompiled.__exit__(None, None, None)
            self._uncompiled = None

    def _wake(self) -> None:
        for site, training, calls, samples in self._capture.wake():
            if training:
                self._window[site].samples += samples
            else:
                self._frozen_calls += calls

    def _snapshot(self, closing: bool = False) -> None:
        if self._writer is None or self._broken:
            return
        with self._keeping_the_run_alive():
            first_step = self._clock.step
            if self._probe is not None:
                sites = self._measure_probe()
            else:
                sites, first_step = self._close_window(closing)
            states = [
                SiteState(f.site, f.counts, is_dead(f.counts, f.site.rectifier)) for f in sites
            ]
            self._writer.write_snapshot(
                self._clock.step,
                first_step,
                states,
                self._param_groups,
                self._new_rates,
                self._facts("running"),
                self._witness.at_snapshot(self._clock.step, sites),
            )
            self._alerts.note(self._clock.step, states, self._new_rates)
            self._new_rates = []
            self.snapshots.append(self._clock.step)
        if not closing:
            self._alerts.tell()

    def _measure_probe(self) -> list[SiteCounts]:
        measured = self._scanner.run(self._probe or [])
        self._probe_samples = measured.samples
        self._blind_spots = measured.blind_spots
        return measured.sites

    def _close_window(self, closing: bool) -> tuple[list[SiteCounts], int]:
        """What the training batches since the last snapshot showed, and where that begins."""
        self._wake()
        first_step = self.snapshots[-1] if self.snapshots else 0
        counts = {site: window.counts() for site, window in self._window.items()}
        if closing and self._clock.step % self.every and self._clock.step > self.every:
            # A last window of a few batches would call units dead for want of evidence.
            first_step = self.snapshots[-2]
            for site, before in self._previous.items():
                counts[site] = before.merged(counts[site]) if site in counts else before
        if self._clock.step > 0:  # the initial batches are of the first window as well
            self._previous, self._window = counts, {}
        self._blind_spots = blind_spots(self._capture)
        sites = [
            SiteCounts(site, counts.get(index) or UnitCounts.nothing(site.units or 0))
            for index, site in enumerate(self._capture.sites)
        ]
        uncalled = self._capture.uncalled()
        return [*sites, *(SiteCounts(s, UnitCounts.nothing(0)) for s in uncalled)], first_step

    def _facts(self, status: str) -> dict[str, Any]:
        if not self._settings:
            self._settings = {
                **self._told,
                "reludiag": version("reludiag"),
                "torch": torch.__version__,
                "process": asdict(this_process()),
                "model": type(self.model).__name__,
                "optimizers": [type(optimizer).__name__ for optimizer in self._optimizers],
                "every": self.every,
                "stats_every": self.stats_every,
                "notes": [
                    note for note in (self._untrained(), self._lagging(), self._slowed()) if note
                ],
            }
        return {
            **self._settings,
            "probe_samples": self._probe_samples,
            "evaluation_passes": self._capture.evaluations,
            "evaluation_calls": self._frozen_calls,
            "notes": [*self._blind_spots, *self._settings["notes"]],
            "status": status,
        }

    def _untrained(self) -> str | None:
        """The sentence on weights of the model that no optimizer given here trains."""
        owners = {name.rpartition(".")[0] for name, _ in self.model.named_parameters()}
        left_out = sorted(owners - self._param_groups.keys())
        if not self._optimizers or not left_out:
            return None
        listed = ", ".join(left_out[:3]) + (", ..." if len(left_out) > 3 else "")
        return (
            f"The optimizer given does not train {listed}: their learning rate is not known. "
            "Monitor(model, [first, second]) takes several optimizers."
        )

    def _lagging(self) -> str | None:
        """The sentence on running statistics that a probe in eval mode relies on."""
        norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.model.modules())
        if self._probe is None or not norms:
            return None
        return (
            "BatchNorm uses its running statistics on the probe. In the first steps they lag "
            "behind: a unit dead there may fire in training."
        )

    def _slowed(self) -> str | None:
        """The sentence on a model that cannot be watched as compiled code."""
        if self._probe is not None or not (self._compiled and self._capture.functional):
            return None
        return (
            "The model calls rectifiers as functions, which compiled code does not show: it ran "
            "uncompiled. With a probe it would not have to."
        )

    def _map_param_groups(self) -> dict[str, str]:
        """Path of each module with weights -> the group that trains it."""
        owners = {
            id(parameter): name.rpartition(".")[0]
            for name, parameter in self.model.named_parameters()
        }
        return {
            owners[id(parameter)]: f"{index}/{group}"
            for index, optimizer in enumerate(self._optimizers)
            for group, settings in enumerate(optimizer.param_groups)
            for parameter in settings["params"]
            if id(parameter) in owners
        }

    def _detach(self) -> None:
        self._wake()
        self._capture.detach()
        self._witness.detach()
        self._end_uncompiled()
        self._guarded.close()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @contextlib.contextmanager
    def _keeping_the_run_alive(self) -> Any:
        """A full disk ends the recording, with a warning, and not the training run."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            self._broken = True
            warnings.warn(
                f"reludiag: the recording stopped at step {self._clock.step}: {error}. "
                "Training goes on",
                RuntimeWarning,
                stacklevel=2,
            )


def _batches(probe: Any) -> list[Any]:
    """The probe as a list of batches, kept so that each snapshot sees the same."""
    if isinstance(probe, Tensor | Mapping | tuple):
        return [probe]
    if isinstance(probe, Iterable) and not isinstance(probe, str | bytes):
        batches = list(probe)
        if batches:
            return batches
    raise UsageError(
        f"probe={type(probe).__name__} was given; expected a batch (tensor, tuple or dict) or an "
        "iterable of at least one batch"
    )
