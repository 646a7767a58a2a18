"""For tests of your models: an assertion that their units are alive.

def test_no_unit_is_born_dead():
    assert_alive(build(), batches, max_dead="5%")
"""

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
from torch import nn

from reludiag.diagnosis.diagnosis import Diagnosis
from reludiag.diagnosis.gate import TO_ALLOW, Gate, not_judged
from reludiag.limits import Limit
from reludiag.measure.batch_statistics import has_seen_no_batch, running_norms
from reludiag.measure.frozen_pass import eager_model
from reludiag.measure.unjudged import Unjudged, sentences
from reludiag.measure.verdicts import LOST
from reludiag.printable import printable
from reludiag.reports.run.summary import next_steps, samples_differ
from reludiag.reports.wording import plural, share
from reludiag.scanning import scan
from reludiag.sites.products import shortened

_SHOWN = 10  # sites in a failure


def assert_alive(
    model: nn.Module,
    batches: Iterable[Any],
    max_dead: str = "0%",
    *,
    allow_unobserved: bool = False,
    **settings: Any,
) -> Diagnosis:
    """Fail if more than `max_dead` of a model's units (a share, or a number) are dead on data.

    Units with a NaN or an infinity count as dead. Where BatchNorm has not seen any batch yet, units
    that fire on the statistics of the first batch do not: they are not dead by their weights. It
    also fails if something could not be judged, such as a site that was never called or whose unit
    axis is unknown, unless `allow_unobserved`.
    `batches` and `settings` are those of `reludiag.scan`, with the same exceptions. Returns the
    Diagnosis for further assertions.
    """
    __tracebackhide__ = True  # pytest shows the test instead of this function
    limit = Limit.parse(str(max_dead), "max_dead")
    diagnosis = scan(model, batches, **settings)
    # Running statistics that have seen no data say nothing of the weights.
    unseen = any(has_seen_no_batch(norm) for norm in running_norms(eager_model(model)))
    sites = diagnosis.sites.assign(lost=diagnosis.sites[LOST].sum(axis=1))
    if unseen:
        sites["lost"] -= sites["site"].map(diagnosis.only_in_eval).fillna(0).astype("int64")
    if limit.less_than(int(sites["lost"].sum()), diagnosis.unit_count):
        raise AssertionError(_failure(diagnosis, sites, limit))
    gate = Gate(limit, allow_unobserved=allow_unobserved)
    unknown = not_judged(gate.judge(diagnosis.sites, diagnosis.unjudged))
    if unknown:
        raise AssertionError("\n".join(map(printable, [*_unjudged_lines(unknown), TO_ALLOW])))
    return diagnosis


def _failure(diagnosis: Diagnosis, sites: pd.DataFrame, limit: Limit) -> str:
    lost, units = int(sites["lost"].sum()), diagnosis.unit_count
    what = "dead or not finite" if diagnosis.diverged else "dead"
    lines = [
        f"{lost:,} of {plural(units, 'unit')} ({share(lost, units)}) are {what}, more than "
        f"max_dead={limit.text!r}, on {plural(diagnosis.head.samples, 'sample')}:"
    ]
    hit = sites[sites["lost"] > 0]
    width = max(len(printable(name)) for name in hit["site"].head(_SHOWN))
    sampled = samples_differ(diagnosis)
    lines += [_line(site, width, sampled) for _, site in hit.head(_SHOWN).iterrows()]
    if len(hit) > _SHOWN:
        lines.append(f"  and {plural(len(hit) - _SHOWN, 'more site')}")
    lines += _unjudged_lines(diagnosis.unjudged)
    if firing := sum(diagnosis.only_in_eval.values()):
        lines.append(
            f"{firing:,} of the {diagnosis.dead:,} units that are dead in eval mode fire on batch "
            "statistics: the running statistics of BatchNorm do not fit the data (yet)."
        )
    lines += [printable(step) for step in next_steps(diagnosis) if "--csv" not in step]
    return "\n".join(lines)


def _unjudged_lines(places: Sequence[Unjudged]) -> list[str]:
    if not places:
        return []
    was = "was" if len(places) == 1 else "were"
    lines = [f"{plural(len(places), 'place')} {was} not judged:"]
    return lines + [f"  {printable(sentence)}" for sentence in sentences(places)]


def _line(site: "pd.Series[Any]", width: int, sampled: bool) -> str:
    samples = f" on {plural(site['samples'], 'sample')}" if sampled else ""
    known = pd.notna(site["producer"])
    producer = f"  fed by {printable(shortened(site['producer']))}" if known else ""
    name = printable(site["site"])
    return f"  {name:{width}}  {site['lost']:,} of {site['units']:,}{samples}{producer}"
