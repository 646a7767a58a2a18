"""JSON: a whole Diagnosis as one document."""

from dataclasses import asdict
from typing import IO

from reludiag.diagnosis.columns import SCHEMA_VERSION
from reludiag.diagnosis.diagnosis import Diagnosis
from reludiag.measure.verdicts import VERDICTS
from reludiag.reports.json_text import finite, records, text_of
from reludiag.reports.run.formats import ReportOptions
from reludiag.reports.run.summary import chosen_units


def write_document(diagnosis: Diagnosis, stream: IO[str], choices: ReportOptions) -> None:
    """The whole document, of all units or of those that are not alive."""
    stream.write(document(diagnosis, choices.all_units))


def document(diagnosis: Diagnosis, all_units: bool = False) -> str:
    """The JSON text; unknown and non-finite numbers are null."""
    sites = diagnosis.sites
    content = {
        "schema_version": SCHEMA_VERSION,
        **asdict(diagnosis.head),
        "thresholds": asdict(diagnosis.thresholds),
        "diverged": diagnosis.diverged,
        "totals": {
            "sites": len(sites),
            "units": int(sites["units"].sum()),
            **{verdict: int(sites[verdict].sum()) for verdict in VERDICTS},
            "dead_fraction": diagnosis.dead_fraction,
        },
        "unjudged": [asdict(place) for place in diagnosis.unjudged],
        "causes": [finite(asdict(cause)) for cause in diagnosis.causes],
        "structure": [finite(asdict(note)) for note in diagnosis.structure],
        "sites": records(sites),
        "units": records(chosen_units(diagnosis, all_units)),
        "timeline": None if diagnosis.timeline is None else records(diagnosis.timeline),
        "metrics": records(diagnosis.metrics),
        "marks": records(diagnosis.marks),
        "only_in_eval": dict(diagnosis.only_in_eval),
        "only_in_training": dict(diagnosis.only_in_training),
    }
    return text_of(content)
