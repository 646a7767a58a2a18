"""What lowered the mean pre-activations of dying units, for all deaths of a site together."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from reludiag.causes.cause import Evidence
from reludiag.causes.site_lives import SiteLives
from reludiag.recording.observations import Death, Drift

NEGLIGIBLE = 1e-6
"""A change this small relative to its parts is treated as zero and has no shares."""


@dataclass(frozen=True)
class DriftShares:
    """Shares of the change of mean pre-activations; they sum to 1; each may be outside 0..1 if the
    parts have opposite signs.
    """

    deaths: int
    change: float
    """Mean over the deaths."""
    weights: float
    input: float
    bias: float


def shares_of(drift: Drift) -> tuple[float, float, float] | None:
    """The shares of weights, input and bias in one death; None if nothing changed."""
    change = drift.weights + drift.input + drift.bias
    if abs(change) <= NEGLIGIBLE * (abs(drift.weights) + abs(drift.input) + abs(drift.bias)):
        return None
    return drift.weights / change, drift.input / change, drift.bias / change


def drift_shares(deaths: Iterable[Death]) -> DriftShares | None:
    """The shares of the summed changes of these deaths; None if none is known.

    The changes are summed first, because the share of a single unit that hardly moved is a quotient
    of two small numbers.
    """
    drifts = [death.drift for death in deaths if death.drift is not None]
    total = Drift(
        before=sum(drift.before for drift in drifts),
        after=sum(drift.after for drift in drifts),
        weights=sum(drift.weights for drift in drifts),
        input=sum(drift.input for drift in drifts),
        bias=sum(drift.bias for drift in drifts),
    )
    shares = shares_of(total) if drifts else None
    if shares is None:
        return None
    change = (total.weights + total.input + total.bias) / len(drifts)
    return DriftShares(len(drifts), change, *shares)


def drift_evidence(sites: Sequence[SiteLives]) -> list[Evidence]:
    """What lowered the pre-activations of the units that died."""
    shares = drift_shares(death for site in sites for death in site.deaths)
    if shares is None:
        return []
    return [
        Evidence(
            "drop by weights, input, bias",
            # No -0.00.
            ", ".join(
                f"{round(share, 2) + 0.0:.2f}"
                for share in (shares.weights, shares.input, shares.bias)
            ),
            f"shares of the change of the mean pre-activation, over {shares.deaths} deaths",
        )
    ]
