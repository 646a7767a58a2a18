"""What was not judged: places of a model whose units got no verdict, or one that may hide deaths.

Reports, gates and assertions all make what they say of them from these records.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from reludiag.sites.site import Site

_MOST_NAMED = 3


@dataclass(frozen=True)
class Unjudged:
    """One place that was not judged, and why."""

    where: str
    """Name of a site, or of a module and its operator, `decoder:relu`; empty if it is not known
    where in the model.
    """
    reason: str
    """One of `REASONS`."""
    sentence: str
    """What happened, and what to do where something can be done."""


@dataclass(frozen=True)
class _Reason:
    label: str
    """In the cell of a table."""
    sentence: str
    """`{places}` are names, `{was}` fits their number, `{detail}` is empty or in parentheses."""
    is_partial: bool = False
    """Whether the units that have a verdict are judged all the same."""
    is_whole: bool = False
    """Whether it is of the whole run: nothing that was counted is of the model that was trained."""


_READ = "{places} {was} called, but cannot be read{detail}. No unit there is judged."

_NOTHING = "Nothing was watched: "

_REASONS = {
    "no_step": _Reason(
        "nothing watched",
        _NOTHING + "no step was counted. Pass the optimizer to the Monitor, or call "
        "monitor.step() after each update.",
        is_whole=True,
    ),
    "ended_early": _Reason(
        "nothing watched",
        _NOTHING + "the run ended before its first step.",
        is_whole=True,
    ),
    "other_optimizer": _Reason(
        "nothing watched",
        _NOTHING + "the Monitor's optimizer took no step, but the weights changed. Pass the one "
        "that trains the model; of several, the last counts the steps.",
        is_whole=True,
    ),
    "steps_skipped": _Reason(
        "nothing watched",
        _NOTHING + "the optimizer took no step, and the gradients are not finite. A GradScaler "
        "skips such steps. Look for the NaN or the infinity in the loss.",
        is_whole=True,
    ),
    "optimizer_idle": _Reason(
        "nothing watched",
        _NOTHING + "the optimizer took no step, and no weight changed. Is gradient accumulation "
        "ever complete, does a GradScaler skip every step, or is another copy of the model "
        "trained?",
        is_whole=True,
    ),
    "no_forward": _Reason(
        "nothing watched",
        _NOTHING + "the model ran no forward pass. Is another copy of it trained? Pass the one "
        "that the training calls.",
        is_whole=True,
    ),
    "only_evaluation": _Reason(
        "nothing watched",
        _NOTHING + "every rectifier was called in evaluation mode. Call model.train() for the "
        "training, or pass a probe.",
        is_whole=True,
    ),
    "no_weight_changed": _Reason(
        "nothing watched",
        _NOTHING + "steps were counted, but no weight of the model changed. Is it frozen, or is "
        "another copy of it trained?",
        is_whole=True,
    ),
    "never_called": _Reason(
        "never called",
        "{places} {was} never called. Whether units there are dead is not known.",
    ),
    "model_not_called": _Reason(
        "never called",
        "No forward pass of {places} was seen. Is another copy called? Whether units there are "
        "dead is not known.",
    ),
    "model_only_evaluated": _Reason(
        "only evaluated",
        "{places} {was} called in evaluation mode only, which is not counted of a model that an "
        "optimizer trains. Call .train() for its training, or pass a probe.",
    ),
    "model_fused": _Reason(
        "cannot be read",
        "{places} {was} not watched: in evaluation mode without gradients PyTorch runs attention "
        "fused, and reading it would change the last bits. Pass a probe.",
    ),
    "not_called_again": _Reason(
        "not called",
        "{places} {was} called earlier, but not for the last snapshot. Whether units there are "
        "dead now is not known.",
    ),
    "no_rows": _Reason(
        "got no rows",
        "{places} {was} called, but got no rows. Whether units there are dead is not known.",
    ),
    "unreadable": _Reason("cannot be read", _READ),
    "transformed": _Reason(
        "cannot be read",
        "{places} {was} called inside a torch.func transform (vmap, grad, jvp){detail}, which "
        "cannot be read from outside. These calls are not judged.",
    ),
    "lower_layers": _Reason(
        "upper layer only",
        "Of {places} only the last layer can be read. The units of the layers below are not "
        "judged.",
        is_partial=True,
    ),
    "unknown_axis": _Reason(
        "axis unknown",
        "The unit axis of {places} is not known. The units there are positions of the last axis, "
        "not channels: dead channels may be hidden. Set the axis with {option}.",
    ),
    "arrival_unseen": _Reason(
        "arrival not seen",
        "Of the output of {places} only the largest values go on, and it cannot be seen of which "
        "units: whether units that fire there are ever selected is not known. Put the values in "
        "their places to see it: zeros.scatter(-1, indices, values).",
        is_partial=True,
    ),
    "unrepeatable": _Reason(
        "not all calls read",
        "Rectifier calls{detail} are not judged. They are on a path that was first taken by a "
        "batch that the model changed in place, so that the batch could not be run again.",
    ),
    "unwatched": _Reason(
        "not watched",
        "Watching stopped in the middle of the run{detail}, and the training went on without it. "
        "What happened later was not seen: whether units are dead now is not known.",
    ),
    "compiled": _Reason(
        "cannot be read",
        "Rectifiers called as functions are not judged, because the model was compiled during "
        "monitoring. Compile it first.",
    ),
    "replica": _Reason(
        "cannot be read",
        "Forward passes of replicas of the model, as nn.DataParallel makes them, are not judged. "
        "Use DistributedDataParallel, or pass a probe.",
    ),
    "other_thread": _Reason(
        "cannot be read",
        "Part of a forward pass ran in another thread. Rectifier functions called there are not "
        "judged; modules are.",
    ),
}
REASONS = tuple(_REASONS)


def unjudged(where: str, reason: str, detail: str = "") -> Unjudged:
    """The record of one place; `detail` is more on the reason, in a few words."""
    return Unjudged(where, reason, _sentence(reason, [where], f" ({detail})" if detail else ""))


def site_unjudged(
    name: str, units: int | None, unit_axis: str | None, samples: int
) -> Unjudged | None:
    """What the numbers of a site themselves say: None if it was judged.

    `units` is None if it was never called.
    """
    if units is None:
        return unjudged(name, "never_called")
    if samples == 0:
        return unjudged(name, "not_called_again")
    return unjudged(name, "unknown_axis") if unit_axis == "unknown" else None


def all_unjudged(
    sites: Iterable[tuple[Site, int]], missed: Sequence[Unjudged]
) -> tuple[Unjudged, ...]:
    """What the (site, samples) themselves say, and what was missed.

    A site that cannot die has nothing to be judged for. What is of the whole run comes first.
    """
    known = {place.where for place in missed}
    by_itself = [
        site_unjudged(site.name, site.units, site.unit_axis, samples)
        for site, samples in sites
        if site.rectifier.can_die and site.name not in known
    ]
    whole = [place for place in missed if is_whole(place.reason)]
    others = [place for place in missed if not is_whole(place.reason)]
    # Where no call was counted, "called earlier" would be wrong of every site.
    own = [
        place
        for place in by_itself
        if place is not None and not (whole and place.reason == "not_called_again")
    ]
    return (*whole, *own, *others)


def label(reason: str) -> str:
    """The reason in two or three words, for the cell of a table."""
    return _REASONS[reason].label if reason in _REASONS else "not judged"


def is_partial(reason: str) -> bool:
    """Whether the units of such a site that have a verdict are judged all the same."""
    return reason in _REASONS and _REASONS[reason].is_partial


def is_whole(reason: str) -> bool:
    """Whether it says that nothing was watched of a whole run."""
    return reason in _REASONS and _REASONS[reason].is_whole


def sentences(places: Iterable[Unjudged]) -> list[str]:
    """A sentence for each reason, with the names of its places."""
    groups: dict[str, list[Unjudged]] = {}
    for place in places:
        # A newer version may have reasons that this one does not know.
        key = place.reason if place.reason in _REASONS else place.sentence
        groups.setdefault(key, []).append(place)
    return [
        group[0].sentence
        if len(group) == 1
        else _sentence(group[0].reason, [place.where for place in group])
        for group in groups.values()
    ]


def unjudged_sites(
    names: Sequence[str], places: Iterable[Unjudged]
) -> tuple[dict[str, Unjudged], list[Unjudged]]:
    """By the name of its site, and those that belong to no site."""
    by_site: dict[str, Unjudged] = {}
    others = []
    known = set(names)
    for place in places:
        if place.where in known:
            by_site.setdefault(place.where, place)
        else:
            others.append(place)
    return by_site, others


def named(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - _MOST_NAMED
    shown = ", ".join(f"'{name}'" for name in names[:_MOST_NAMED])
    return shown + (f" and {more:,} more" if more > 0 else "")


def _sentence(reason: str, names: Sequence[str], detail: str = "") -> str:
    words: Mapping[str, str] = {
        "places": named(names),
        "was": "was" if len(names) == 1 else "were",
        "detail": detail,
        "option": f"--unit-axis {names[0]}=AXIS (unit_axes in Python)"
        if len(names) == 1
        else "--unit-axis SITE=AXIS (unit_axes in Python)",
    }
    return _REASONS[reason].sentence.format(**words)
