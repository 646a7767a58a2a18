"""The Diagnosis of a recording or of several checkpoints."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from reludiag.causes.drift import shares_of
from reludiag.causes.explain import Explanation, explain
from reludiag.causes.no_steps import reason_of
from reludiag.diagnosis.build import SiteFindings, counted_in_words, diagnose, grouping_notes
from reludiag.diagnosis.diagnosis import Diagnosis, Head
from reludiag.diagnosis.timeline import (
    mark_table,
    metric_table,
    states_of,
    timeline_rows,
    timeline_table,
)
from reludiag.measure.structure import GradientFacts, SiteFacts, StructureFacts, structure_notes
from reludiag.measure.unjudged import Unjudged, is_whole
from reludiag.measure.verdicts import Thresholds, checked_thresholds
from reludiag.recording import RecordedRun, RecordedSite, read_recording
from reludiag.recording.learning_rates import LearningRates, window_starts
from reludiag.recording.ledger import Ledger, trace_lives
from reludiag.recording.named_models import model_name, recorded_models
from reludiag.recording.silence import since_fired


def load(path: str | Path, thresholds: Thresholds | None = None) -> Diagnosis:
    """The Diagnosis of a recording, also while it is still being written.

    Raises RecordingError if the file is missing, damaged, or not a recording, and UsageError if
    `thresholds` are none.
    """
    return diagnose_run(read_recording(path), str(path), thresholds)


def diagnose_run(run: RecordedRun, subject: str, thresholds: Thresholds | None = None) -> Diagnosis:
    """The Diagnosis of a recording: the verdicts of its last snapshot, and the ledger."""
    findings, timelines, rates = [], [], LearningRates(run)
    missed = [Unjudged(**place) for place in run.facts.get("unjudged", [])]
    # Where no step was seen, the only snapshot may be of trained weights, if these changed.
    is_told = (
        run.steps[-1:] != (0,)
        or not any(is_whole(place.reason) for place in missed)
        or bool(reason_of(run.facts))
    )
    explained = explain(run) if is_told else Explanation((), {})
    models = recorded_models(run.facts)
    for recorded in run.sites:
        model = models.get(model_name(recorded.site))
        ledger = trace_lives(run.steps, recorded.dead_in_training, recorded.has_state)
        findings.append(
            SiteFindings(
                recorded.site,
                recorded.counts,
                ledger,
                _at_death(run, recorded, ledger, rates.at_death(recorded, ledger), explained),
                states_of(recorded, ledger),
                None if model is None else model.samples or None,
            )
        )
        by_window = rates.by_window(recorded, run.steps)
        timelines.append(timeline_rows(run.steps, recorded, ledger, by_window, window_starts(run)))
    head = _run_head(run, findings, subject)
    timeline = timeline_table(timelines)
    diagnosis = diagnose(
        head,
        findings,
        checked_thresholds(thresholds),
        timeline,
        explained.causes,
        structure_notes(_structure_facts(run)),
        missed,
    )
    hidden = {each.site.name: int(each.hidden.sum()) for each in run.sites if each.hidden.any()}
    return replace(
        diagnosis,
        metrics=metric_table(run.metrics),
        marks=mark_table(run.marks, timeline),
        only_in_eval=_only_in_eval(run),
        only_in_training=hidden,
    )


def _only_in_eval(run: RecordedRun) -> dict[str, int]:
    """As in `Diagnosis`, at the last snapshot."""
    counts = {
        each.site.name: int((each.only_in_eval & each.has_state)[-1:].sum()) for each in run.sites
    }
    return {name: count for name, count in counts.items() if count}


def _norm_notes(run: RecordedRun) -> list[str]:
    """What the two statistics of BatchNorm disagree on at the end."""
    firing = sum(_only_in_eval(run).values())
    dead = sum(int((each.dead & each.has_state)[-1:].sum()) for each in run.sites)
    hidden = sum(int(each.hidden.sum()) for each in run.sites)
    notes = []
    if firing:
        notes.append(
            f"{firing:,} of the {dead:,} dead units {'fires' if firing == 1 else 'fire'} on batch "
            "statistics, as in training: the running statistics of BatchNorm do not fit the data "
            "(yet)."
        )
    if hidden:
        one = hidden == 1
        notes.append(
            f"{'1 unit that fires' if one else f'{hidden:,} units that fire'} in eval mode "
            f"{'is' if one else 'are'} dead on batch statistics, as in training: the running "
            "statistics of BatchNorm do not fit the data (yet)."
        )
    return notes


def _structure_facts(run: RecordedRun) -> StructureFacts:
    """The sites as they are at the end, and the input and the gradients of the beginning."""
    sites = []
    for each in run.sites:
        dead = (each.dead_in_training & each.has_state)[-1:]
        sites.append(SiteFacts(each.site, each.counts.samples, int(dead.sum())))
    inputs = [each.scale for each in run.observations.inputs if each.scale is not None]
    gradients = run.facts.get("gradients")
    if gradients is None:
        return StructureFacts(sites, inputs)
    born_dead = [
        each.site
        for each in run.sites
        if each.site.units
        and run.steps[:1] == (0,)
        and (each.dead_in_training & each.has_state)[0].all()
    ]
    facts = GradientFacts(
        None,
        gradients["parameters"],
        missing=tuple(gradients["missing"]),
        zero=tuple(gradients["zero"]),
        dead=tuple(born_dead),
    )
    return StructureFacts(sites, inputs, facts)


def _at_death(
    run: RecordedRun,
    recorded: RecordedSite,
    ledger: Ledger,
    rates: np.ndarray[Any, Any],
    explained: Explanation,
) -> dict[str, np.ndarray[Any, Any]]:
    """The columns on how units died, `[unit]`; empty if unknown."""
    width = len(rates)
    kinds = explained.kinds.get(recorded.site.name, np.full(width, ""))
    fractions, drifts = np.full(width, np.nan), np.full((3, width), np.nan)
    for death in run.observations.deaths:
        if death.site == recorded.site.name and death.step == ledger.died_step[death.unit]:
            fractions[death.unit] = death.critical_fraction
            shares = None if death.drift is None else shares_of(death.drift)
            drifts[:, death.unit] = np.nan if shares is None else shares
    return {
        "since_fired": since_fired(run, recorded),
        "lr_at_death": rates,
        "cause": np.array([str(kind) or None for kind in kinds], dtype=object),
        "critical_lr": fractions * rates,
        "drift_weights": drifts[0],
        "drift_input": drifts[1],
        "drift_bias": drifts[2],
    }


def _evidence_notes(run: RecordedRun) -> list[str]:
    """The note on deaths that were not examined."""
    share, deaths = float(run.facts.get("evidence", 1.0)), run.observations.deaths
    missed = sum(not death.examined for death in deaths)
    if share == 0 and run.facts.get("probe_samples") is not None:
        return ["Deaths were not examined (evidence=False)."]
    if not missed:
        return []
    return [
        f"Of {missed:,} of {len(deaths):,} deaths no evidence was collected: it would have taken "
        f"more than {100 * share:.3g} % of the run's time. evidence={min(1.0, 4 * share):g} allows "
        "more."
    ]


def _resumed_note(place: Mapping[str, Any]) -> str:
    """The note on a place where the run was resumed."""
    step, last, dropped = place["step"], place["last_step"], place["dropped"]
    note = f"The run was resumed at step {step:,}."
    if dropped:
        are = f"{dropped:,} later snapshots were" if dropped > 1 else "The later snapshot was"
        note += f" {are} dropped: the run took these steps again."
    elif last < step:
        note += f" Steps {last:,}-{step:,} were not watched."
    if not place.get("is_counted", True):  # not in older recordings
        note += (
            " The optimizer does not count its steps, so this is where the recording ended. If "
            "the checkpoint was of an earlier step, some steps are here twice: resume with its "
            "number, as in resume=800."
        )
    if place["is_other_probe"]:
        note += (
            " The probe is another one since then, so a unit may seem to have died or revived "
            "there for this alone."
        )
    return note


def _run_head(run: RecordedRun, findings: Sequence[SiteFindings], subject: str) -> Head:
    facts = run.facts
    # Older recordings only have what reached the sites of training batches.
    most = max((finding.counts.samples for finding in findings), default=0)
    samples = facts.get("probe_samples") or facts.get("training_samples") or most
    last = run.steps[-1] if run.steps else 0
    snapshots = f"{len(run.steps):,} snapshot{'s' * (len(run.steps) != 1)}"
    every = "every step" if facts["every"] == 1 else f"every {facts['every']:,} steps"
    snapshot_count = f"{snapshots}, {every}"
    notes = _norm_notes(run)
    frozen = facts.get("probe_samples") is not None
    steps = f"steps 0-{last:,}" if last else "step 0"
    if frozen:
        groups = facts.get("probe_groups")  # as the two others, not in older recordings
        counted = counted_in_words(samples, facts.get("probe_rows"), groups)
        evidence = f"{steps}, {snapshot_count}, each on a fixed probe of {counted} in eval mode"
        notes += grouping_notes(groups)
        if casts := sorted(set(facts.get("autocast", {}).values())):
            evidence += f" under autocast to {' and '.join(casts)}"
    else:
        evidence = f"{steps}, {snapshot_count}, the last on {samples:,} training samples"
        notes.append(
            "Without a probe, dead means silent in all training batches of a window. The weights "
            "changed meanwhile, so there is no bound on the firing rate."
        )
    if facts.get("status") == "running":
        notes.append(
            "The run is still going on, or was killed: this is its state at the last snapshot."
        )
    if str(facts.get("status", "")).startswith("interrupted"):
        notes.append(f"The run was {facts['status']}.")
    notes += [_resumed_note(place) for place in facts.get("resumed", ())]
    if left := facts.get("unjudged_steps", 0):  # not in older recordings
        notes.append(
            f"The last {f'{left:,} steps are' if left > 1 else 'step is'} not judged: too few were "
            "taken since the run was resumed. Run `scan`, or pass a probe, to see their dead units."
        )
    passes, calls = facts.get("evaluation_passes", 0), facts.get("evaluation_calls", 0)
    if passes:
        notes.append(f"Left out: {passes:,} pass{'es' * (passes != 1)} in evaluation mode.")
    if calls:
        notes.append(
            f"Left out: {calls:,} rectifier call{'s' * (calls != 1)} in parts of the model that "
            "were in evaluation mode."
        )
    notes += _evidence_notes(run)
    notes += facts.get("notes", [])
    return Head(
        source="recording",
        model=facts.get("model", "?"),
        subject=subject,
        evidence=evidence,
        frozen=frozen,
        samples=samples,
        notes=tuple(notes),
        status=str(facts.get("status", "running")),
        if_independent=facts.get("if_independent", ""),
        per_pass=tuple(facts.get("per_pass", ())),
        models=tuple(recorded_models(facts)),
    )
