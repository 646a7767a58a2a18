"""Runs as a recording holds them, with deaths planted at known steps: no training, any size."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from reludiag import Diagnosis
from reludiag.diagnosis.from_recording import diagnose_run
from reludiag.measure.unit_counts import UnitCounts
from reludiag.recording import RecordedRun, RecordedSite
from reludiag.sites.site import Rectifier, Site

EVERY = 10
SAMPLES = 512
NEVER = 10**9

Planted = Sequence[tuple[int, int]]
"""For each unit the snapshots from which, and from which no more, it is dead."""


def planted_run(sites: dict[str, Planted], snapshots: int) -> Diagnosis:
    """The Diagnosis of a run, of one site for each name, a snapshot every ten steps from 0 on."""
    steps = tuple(range(0, snapshots * EVERY, EVERY))
    rates = tuple(
        (step + 1, "0/0", 0.05 * (1 + float(np.cos(np.pi * step / steps[-1])))) for step in steps
    )
    facts = {"every": EVERY, "probe_samples": SAMPLES, "status": "complete", "model": "Planted"}
    recorded = tuple(
        _site(name, np.array(lives), snapshots, seed)
        for seed, (name, lives) in enumerate(sites.items())
    )
    return diagnose_run(RecordedRun(facts, steps, recorded, rates), "planted")


def dying(units: int, snapshots: int, seed: int = 0) -> Planted:
    """About a third of the units die, at any time, and stay dead."""
    generator = np.random.default_rng(seed)
    died = generator.integers(1, 3 * snapshots, units)
    return np.stack([died, np.full(units, NEVER)], axis=1)


def _site(name: str, lives: np.ndarray, snapshots: int, seed: int) -> RecordedSite:
    at = np.arange(snapshots)[:, None]
    dead = (at >= lives[:, 0]) & (at < lives[:, 1])
    generator = np.random.default_rng(seed)
    rates = generator.beta(2, 3, len(lives)).clip(0.02, 1)
    fired = np.where(dead[-1], 0, generator.binomial(SAMPLES, rates).clip(1))
    total = fired.astype(np.float64)
    counts = dataclasses.replace(
        UnitCounts.nothing(len(lives)),
        samples=SAMPLES, counted=SAMPLES, positions=SAMPLES, calls=1, silent=dead[-1], fired=fired,
        active=fired, total=total, total_absolute=total, total_square=total,
        maximum=np.where(fired > 0, 1.0, 0.0), minimum=np.zeros(len(lives)),
    )  # fmt: skip
    return RecordedSite(
        Site(name, name, name, "", Rectifier("ReLU", True, False), "1", len(lives), "fc", None),
        "0/0",
        counts,
        np.full(snapshots, SAMPLES),
        dead,
        np.ones_like(dead),
        np.zeros_like(dead),
    )
