"""For tests of your models: an assertion that their units are alive.

def test_no_unit_is_born_dead():
    assert_alive(build(), batches, max_dead="5%")
"""

from collections.abc import Iterable
from typing import Any

import pandas as pd
from torch import nn

from reludiag.diagnosis.diagnosis import Diagnosis
from reludiag.limits import Limit
from reludiag.measure.verdicts import LOST
from reludiag.printable import printable
from reludiag.reports.run.summary import next_steps
from reludiag.reports.wording import plural, share
from reludiag.scanning import scan
from reludiag.sites.products import shortened

_SHOWN = 10  # sites in a failure


def assert_alive(
    model: nn.Module, batches: Iterable[Any], max_dead: str = "0%", **settings: Any
) -> Diagnosis:
    """Fail if more than `max_dead` of a model's units (a share, or a number) are dead on data.

    Units with a NaN or an infinity count as dead. `batches` and `settings` are those of
    `reludiag.scan`, with the same exceptions. Returns the Diagnosis for further assertions.
    """
    __tracebackhide__ = True  # pytest shows the test instead of this function
    limit = Limit.parse(str(max_dead), "max_dead")
    diagnosis = scan(model, batches, **settings)
    if limit.less_than(diagnosis.lost, diagnosis.unit_count):
        raise AssertionError(_failure(diagnosis, limit))
    return diagnosis


def _failure(diagnosis: Diagnosis, limit: Limit) -> str:
    sites = diagnosis.sites.assign(lost=diagnosis.sites[LOST].sum(axis=1))
    lost, units = diagnosis.lost, diagnosis.unit_count
    what = "dead or not finite" if diagnosis.diverged else "dead"
    lines = [
        f"{lost:,} of {plural(units, 'unit')} ({share(lost, units)}) are {what}, more than "
        f"max_dead={limit.text!r}, on {plural(diagnosis.head.samples, 'sample')}:"
    ]
    hit = sites[sites["lost"] > 0]
    width = max(len(printable(name)) for name in hit["site"].head(_SHOWN))
    lines += [_line(site, width) for _, site in hit.head(_SHOWN).iterrows()]
    if len(hit) > _SHOWN:
        lines.append(f"  and {plural(len(hit) - _SHOWN, 'more site')}")
    lines += [printable(step) for step in next_steps(diagnosis) if "--csv" not in step]
    return "\n".join(lines)


def _line(site: "pd.Series[Any]", width: int) -> str:
    producer = (
        f"  fed by {printable(shortened(site['producer']))}" if pd.notna(site["producer"]) else ""
    )
    return f"  {printable(site['site']):{width}}  {site['lost']:,} of {site['units']:,}{producer}"
