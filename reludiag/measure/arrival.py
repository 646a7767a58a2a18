"""What of a rectifier's output arrives behind a selection, such as a top-k: one site of two."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from reludiag.measure.unit_counts import SiteCounts
from reludiag.measure.verdicts import is_dead


def with_selections(sites: Sequence[SiteCounts], sources: Mapping[int, int]) -> list[SiteCounts]:
    """The sites without those whose output only a selection takes: it has the same units.

    `sources` are places in `sites`: selection -> the site it selects from. The counts of a
    selection also say of which units nothing could be selected. Two sites that were reached by
    different samples stay two.
    """
    folded: dict[int, int] = {
        site: source
        for site, source in sources.items()
        if sites[site].site.units == sites[source].site.units
        and sites[site].counts.samples == sites[source].counts.samples
    }
    gone = set(folded.values())
    return [_selection(sites, folded, index) for index in range(len(sites)) if index not in gone]


def _selection(sites: Sequence[SiteCounts], folded: Mapping[int, int], index: int) -> SiteCounts:
    first = index
    while first in folded:
        first = folded[first]
    if first == index:
        return sites[index]
    site, source = sites[index], sites[first]
    silent_before = is_dead(source.counts, source.site.rectifier)
    return SiteCounts(
        replace(site.site, selects_from=source.site.name),
        replace(
            site.counts, before_maximum=source.counts.before_maximum, silent_before=silent_before
        ),
    )
