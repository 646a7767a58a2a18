"""Through what the mean pre-activations of dying units fell: a site's deaths taken together."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from reludiag.causes.cause import Evidence
from reludiag.causes.site_lives import SiteLives
from reludiag.recording.observations import Death, Drift

NEGLIGIBLE = 1e-6
"""A change this small beside its parts is none, and has no shares."""


@dataclass(frozen=True)
class DriftShares:
    """Shares of the change of mean pre-activations; they sum to 1, and each may lie outside 0..1
    where parts work against each other.
    """

    deaths: int
    change: float
    """Mean over the deaths."""
    weights: float
    input: float
    bias: float


def shares_of(drift: Drift) -> tuple[float, float, float] | None:
    """Of one death: the shares of weights, input and bias; None where nothing changed."""
    change = drift.weights + drift.input + drift.bias
    if abs(change) <= NEGLIGIBLE * (abs(drift.weights) + abs(drift.input) + abs(drift.bias)):
        return None
    return drift.weights / change, drift.input / change, drift.bias / change


def drift_shares(deaths: Iterable[Death]) -> DriftShares | None:
    """Of the changes of these deaths summed up; None where it is known of none of them.

    Summed first: a single unit's share is a quotient of two small numbers where it hardly moved.
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
    """Through what the pre-activations of those that died fell."""
    shares = drift_shares(death for site in sites for death in site.deaths)
    if shares is None:
        return []
    return [
        Evidence(
            "fall by weights, input, bias",
            # No -0.00.
            ", ".join(
                f"{round(share, 2) + 0.0:.2f}"
                for share in (shares.weights, shares.input, shares.bias)
            ),
            f"shares of the change of the mean pre-activation, in {shares.deaths} deaths",
        )
    ]
