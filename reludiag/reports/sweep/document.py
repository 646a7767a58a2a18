"""JSON: the effects of a sweep as one document."""

from dataclasses import asdict

from reludiag.diagnosis.columns import SCHEMA_VERSION
from reludiag.experiments.analysis.effects import Effects
from reludiag.reports.json_text import records, text_of
from reludiag.reports.sweep.summary import caveats, findings, headline


def effects_document(effects: Effects) -> str:
    """The JSON text of the results of a sweep and its trials; unknown values are null."""
    counts = ("runs", "counted", "diverged", "crashed", "unplaced", "repeated")
    content = {
        "schema_version": SCHEMA_VERSION,
        "sentence": headline(effects),
        "findings": findings(effects),
        "notes": caveats(effects),
        "totals": {name: getattr(effects, name) for name in counts},
        "cells": records(effects.cells),
        "trend": asdict(effects.trend),
        "trends": [asdict(trend) for trend in effects.trends],
        "variance": [asdict(item) for item in effects.variance],
        "odds": asdict(effects.odds),
        "safe_new": effects.safe_new,
        "safe": [asdict(item) for item in effects.safe],
        "trials": records(effects.trials),
    }
    return text_of(content)
