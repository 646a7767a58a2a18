"""Measured: the numbers that speak for a cause, as rows of its evidence."""

import math
from collections.abc import Sequence

from reludiag.causes.attribution import SiteAttribution
from reludiag.causes.cause import Evidence
from reludiag.causes.drift import drift_shares
from reludiag.causes.learning_rate import CriticalRates, EventStudy
from reludiag.causes.site_lives import SiteLives


def chance_evidence(site: SiteAttribution) -> list[Evidence]:
    """What of a site's births is chance: those of the same model, drawn anew."""
    if math.isnan(site.chance):
        return []
    lives = site.lives
    return [
        Evidence(
            "born dead if drawn anew",
            rounded(site.chance),
            f"share of '{lives.name}' on the same samples with Kaiming's weights and zero bias; "
            f"as it was built, {int(lives.born.sum()) / lives.units:.2f}",
        )
    ]


def study_evidence(study: EventStudy | None) -> list[Evidence]:
    """Whether deaths came where the learning rate was high."""
    if study is None:
        return []
    if study.regime == "constant":
        return [
            Evidence(
                "learning rate",
                rounded(study.high),
                "constant, or nearly: there is no lower rate to compare with",
            )
        ]
    return [
        Evidence(
            "deaths at a high learning rate",
            rounded(study.deaths_high / study.deaths) if study.deaths else 0.0,
            f"{study.deaths_high} of {study.deaths}, with {study.exposure_high:.0%} of the "
            f"exposure ({study.regime}, {study.low:.2g} to {study.high:.2g}); p = "
            f"{study.p_value:.1g} if units died independently, which they do not",
        )
    ]


def update_evidence(site: SiteAttribution) -> list[Evidence]:
    """The largest step that weights took before the last death."""
    if site.update is None:
        return []
    return [
        Evidence(
            "largest update",
            rounded(site.update.ratio),
            f"norm of the change over norm of the weights of '{site.update.module}', at step "
            f"{site.update.step}; 0.001 is usual; on digits, 0.03 and more killed 30 % of units",
        )
    ]


def critical_evidence(critical: CriticalRates | None) -> list[Evidence]:
    """The learning rate at which half of those that died would have lived."""
    if critical is None:
        return []
    return [
        Evidence(
            "critical learning rate",
            rounded(critical.half),
            f"at it half of {critical.deaths} deaths would not have happened, at "
            f"{critical.quarter:.2g} three quarters: exact for a single step of plain SGD, an "
            "estimate over a window of steps",
        )
    ]


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


def small_weights_evidence(site: SiteAttribution) -> list[Evidence]:
    """Weights that began too small make any update large beside them; PyTorch's own are usual."""
    layer = site.lives.layer or {}
    if "pytorch" in (layer.get("scheme"), *layer.get("alike", ())):
        return []
    return [
        Evidence("variance of the weights", rounded(problem["value"]), problem["sentence"])
        for problem in layer.get("problems", ())
        if problem["kind"] == "variance" and problem["value"] < 1
    ]


def rounded(value: float) -> float:
    """To four significant digits."""
    return float(f"{value:.4g}")
