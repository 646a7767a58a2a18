"""Resuming: a run that goes on in its own recording, from a checkpoint of its own.

The recording may be ahead of the checkpoint: snapshots were taken of steps that were lost in a
crash. They are dropped, since the run takes these steps again.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from reludiag.errors import RecordingError, UsageError
from reludiag.monitoring.run_facts import class_name, parameter_count
from reludiag.process import ProcessId, is_gone, this_host
from reludiag.recording import RecordedRun, SiteState, read_progress, read_recording


@dataclass(frozen=True)
class Resumption:
    """Where a run goes on."""

    step: int
    """Steps that were taken before."""
    run: RecordedRun
    """What was recorded, also of later steps."""
    why: str
    """Why `step` is not the last recorded one, for a warning; empty if it is."""
    is_counted: bool = True
    """Whether `step` is the checkpoint's own, by its optimizer or by the user."""

    @property
    def steps(self) -> tuple[int, ...]:
        """Of the snapshots that are kept."""
        return tuple(step for step in self.run.steps if step <= self.step)

    @property
    def dropped(self) -> int:
        """Number of the others."""
        return len(self.run.steps) - len(self.steps)

    @property
    def warning(self) -> str:
        """What does not go on as it was recorded; empty if nothing is lost."""
        if not self.why:
            return ""
        then = f"the last snapshot of its recording is of step {self.run.steps[-1]:,}"
        if count := self.dropped:
            then += f"; {count:,} later {'snapshot is' if count == 1 else 'snapshots are'} dropped"
        return f"{self.why}, and {then}"

    def facts(self, probe_hash: int | None) -> dict[str, Any]:
        """What the recording keeps about it, as JSON."""
        before = self.run.facts
        known = probe_hash is not None and before.get("probe_hash") is not None
        place = {
            "step": self.step,
            "last_step": self.run.steps[-1],
            "dropped": self.dropped,
            "is_counted": self.is_counted,
            "is_other_probe": known and probe_hash != before["probe_hash"],
        }
        return {
            "earlier_steps": before.get("earlier_steps", 0),
            "resumed": [*before.get("resumed", ()), place],
        }

    def check_sites(self, path: Path | None, states: Sequence[SiteState]) -> None:
        """Raises RecordingError if these are not the sites of the recording."""
        now = {state.site.key: state.site for state in states if state.site.units}
        before = {each.site.key: each.site for each in self.run.sites if each.site.units}
        for key in now.keys() & before.keys():
            if now[key].units != before[key].units:
                raise RecordingError(
                    f"{path} is of another model: site '{before[key].name}' has "
                    f"{before[key].units} units there, and {now[key].units} here. Resume with the "
                    "model that the run began with, or choose another path"
                )
        if now and before and now.keys().isdisjoint(before):
            first, other = next(iter(before.values())), next(iter(now.values()))
            raise RecordingError(
                f"{path} is of another model: its first site is '{first.name}', and here it is "
                f"'{other.name}'. Resume with the model that the run began with, or choose another "
                "path"
            )


def checked_resume(resume: Any, path: Path | None, overwrite: bool) -> bool | int:
    """The setting; raises UsageError if it is none, or does not go with the others."""
    if not isinstance(resume, int) or resume < 0:
        raise UsageError(
            f"resume={resume!r} was given; expected True, or the number of steps that the "
            "checkpoint has taken"
        )
    if resume is not False and path is None:
        raise UsageError("resume was given without a path; expected the path of the recording")
    if resume is not False and overwrite:
        raise UsageError(
            "resume and overwrite were given; expected one of them: overwrite=True would delete "
            "what resume goes on with"
        )
    return resume


def resumption(
    path: Path | None,
    resume: bool | int,
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    every: int,
    has_probe: bool,
) -> Resumption | None:
    """Where a run goes on; None if it begins.

    With True, it goes on after the last recorded step, or where the optimizer's state says that it
    is. Without a recording, or with one without a snapshot, True and 0 begin a new one.

    Raises RecordingError if the recording is of another model, or of other settings, or is being
    written.
    """
    if resume is False or path is None:
        return None
    begins = resume is True or resume == 0
    if begins and not path.exists():
        return None
    run = read_recording(path)
    if not run.steps:
        if begins:
            return None
        raise RecordingError(
            f"{path} has no snapshot to go on from; begin a new one with overwrite=True"
        )
    _check(path, run, model, every, has_probe)
    last, is_counted = run.steps[-1], True
    if resume is not True:
        step, why = resume, f"resume={resume} was given" if resume != last else ""
    else:
        taken = _steps_by(optimizers, int(run.facts.get("earlier_steps", 0)))
        step, is_counted = (last, False) if taken is None else (taken, True)
        why = f"the optimizer has taken {step:,} steps" if step != last else ""
    if step < run.steps[0]:
        raise RecordingError(
            f"{path} begins with step {run.steps[0]:,}, after the step {step:,} that the run goes "
            "on from; begin a new one with overwrite=True"
        )
    return Resumption(step, run, why, is_counted)


def resuming_at(step: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a Monitor for a trainer that has taken so many steps before: it goes on with
    the recording that is there.
    """
    path = settings.get("path")
    if not step or path is None or settings.get("overwrite"):
        return dict(settings)
    if not Path(path).exists():  # its steps will count from here
        facts = {**(settings.get("facts") or {}), "trainer_step": step}
        return {**settings, "facts": facts}
    begun = int(read_progress(path).facts.get("trainer_step", 0))
    return {**settings, "resume": max(0, step - begun)}


def _check(path: Path, run: RecordedRun, model: nn.Module, every: int, has_probe: bool) -> None:
    facts, ask = run.facts, "Resume with the model that the run began with, or choose another path"
    owner = facts.get("process")
    if facts.get("status") == "running" and owner and owner["pid"] != os.getpid():
        process = ProcessId(str(owner["host"]), int(owner["pid"]), float(owner["started"]))
        if process.host == this_host() and not is_gone(process, 0.0):
            raise RecordingError(
                f"{path} is being written by process {process.pid}; resume when that has ended"
            )
    name, count = class_name(model), parameter_count(model)
    recorded = facts.get("parameter_count")
    if facts.get("model", name) != name:
        raise RecordingError(
            f"{path} is of another model: a {facts['model']}, and this is a {name}. {ask}"
        )
    if recorded is not None and recorded != count:
        raise RecordingError(
            f"{path} is of another model: it has {recorded:,} parameters there, and {count:,} "
            f"here. {ask}"
        )
    modules = dict(model.named_modules(remove_duplicate=False))
    for each in run.sites:
        if each.site.module not in modules:
            raise RecordingError(
                f"{path} is of another model: site '{each.site.name}' is in '{each.site.module}', "
                f"which this model does not have. {ask}"
            )
    if facts.get("every", every) != every:
        raise RecordingError(
            f"{path} has a snapshot every {facts['every']:,} steps, and every={every:,} was given; "
            f"expected every={facts['every']}"
        )
    if (facts.get("probe_samples") is not None) != has_probe:
        there, here = ("no probe", "with one") if has_probe else ("a probe", "without one")
        raise RecordingError(
            f"{path} was recorded with {there}, and is resumed {here}; what both call dead is not "
            "the same. Expected the same probe, or another path"
        )


def _steps_by(optimizers: Sequence[Optimizer], earlier: int) -> int | None:
    """Steps of the run by the optimizer's own count; None if it has none."""
    if len(optimizers) != 1:
        return None
    counts = [int(state["step"]) for state in optimizers[0].state.values() if "step" in state]
    taken = max(counts, default=0) - earlier
    return taken if counts and taken >= 0 else None
