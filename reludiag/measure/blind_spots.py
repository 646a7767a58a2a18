"""Blind spots: what a capture could not see of a model."""

from torch import nn

from reludiag.capture.capture import Capture
from reludiag.measure.unjudged import Unjudged, named, unjudged
from reludiag.sites.functional import has_only_known


def no_rectifier(model: nn.Module) -> str:
    """The error message for a model without rectifiers."""
    name = type(model).__name__
    kinds = (
        "(ReLU, ReLU6, clamp(min=0), Hardtanh(0, x), Threshold(0, 0), Hardswish, ...), as a module "
        "or as a function"
    )
    if has_only_known(model):
        return f"{name} has no rectifier {kinds}, so no unit in it can die."
    return (
        f"{name} has no rectifier that reludiag knows {kinds}. If it has one of its own, register "
        "it with reludiag.register_rectifier(...), or watch the output of a module with "
        "watch={name: path} (--watch NAME=MODULE)."
    )


def missed_places(capture: Capture) -> tuple[Unjudged, ...]:
    """What the capture could not see; not the modules that were never called, which are sites."""
    missed, model = capture.missed, type(capture.model).__name__
    uncalled = {site.module: site.name for site in capture.uncalled()}
    names = uncalled | {site.module: site.name for site in capture.sites if not site.operator}

    def place(path: str, operator: str) -> str:
        if not operator:
            return names.get(path, path)
        return f"{path or model}:{operator}"

    places = {}
    for (path, operator), calls in missed.transformed.items():
        where = place(path, operator)
        places[where] = unjudged(where, "transformed", _calls(calls))
    for (path, operator), why in missed.unreadable.items():
        where = place(path, operator)
        places[where] = unjudged(where, "unreadable", why)
    for (path, operator), calls in missed.unobserved.items():
        where = place(path, operator)
        places[where] = unjudged(where, "unreadable", _calls(calls))
    read = {(site.module, site.operator) for site in capture.sites}
    for path, operator in sorted(missed.without_rows - read):
        where = place(path, operator)
        places.setdefault(where, unjudged(where, "no_rows"))
    for path, operator in capture.uncalled_functions():
        where = place(path, operator)
        places.setdefault(where, unjudged(where, "never_called"))
    anywhere = []
    if missed.unrepeatable:
        detail = _calls(missed.unrepeatable)
        anywhere.append(unjudged("", "unrepeatable", detail))
    if missed.traced and capture.functional:
        anywhere.append(unjudged("", "compiled"))
    if missed.replicas:
        anywhere.append(unjudged("", "replica"))
    if missed.elsewhere and capture.functional:
        anywhere.append(unjudged("", "other_thread"))
    if not _puts_ranks_back(capture):
        for each in capture.left_out:
            if each.reason == "ranks":
                where, why = place(each.path, each.operator), "its units are in order of their rank"
                places.setdefault(where, unjudged(where, "unreadable", why))
    lower = [
        unjudged(where, "lower_layers") for where in capture.partly_read() if where not in places
    ]
    unseen = (capture.sites[site].name for site in capture.selections.unseen)
    arrival = [unjudged(where, "arrival_unseen") for where in unseen if where not in places]
    return (*places.values(), *lower, *arrival, *anywhere)


_NO_UNITS = {
    "raw": "No layer feeds what is rectified there (boxes, lengths, targets), so it has no units.",
    "ranks": "What is rectified there are the largest values by rank. Their units are judged where "
    "they are in their places again.",
}


def _puts_ranks_back(capture: Capture) -> bool:
    """Whether what was ranked is a site where it is in its place again: the codes of a TopK."""
    return any(site.rectifier.activation == "topk" for site in capture.sites)


def left_out_notes(capture: Capture) -> list[str]:
    """A note for each reason why calls of rectifiers are not sites."""
    model = type(capture.model).__name__
    notes: list[str] = []
    for reason, sentence in _NO_UNITS.items():
        places = [each for each in capture.left_out if each.reason == reason]
        names = [
            f"{each.path or model}:{each.operator}" if each.operator else each.path
            for each in places
        ]
        if names and (reason != "ranks" or _puts_ranks_back(capture)):
            notes.append(f"Left out: {named(list(dict.fromkeys(names)))}. {sentence}")
    return notes


def _calls(count: int) -> str:
    return f"{count:,} call{'s' * (count != 1)}"
