"""All kinds of cause, in the order in which they are tried; the first whose rule holds is taken."""

from reludiag.causes import (
    batchnorm_statistics,
    divergence,
    edited,
    healthy,
    inherited,
    initialization,
    input_shift,
    learning_rate,
    no_steps,
    outlier,
    regularization,
    scale_of_targets,
    structure,
    undetermined,
    untrained,
    upstream_collapse,
)
from reludiag.causes.kind import Account, CauseKind, RunAttribution, SiteAttribution

KINDS = (
    no_steps.KIND,
    divergence.KIND,
    untrained.KIND,
    batchnorm_statistics.KIND,
    upstream_collapse.KIND,
    edited.KIND,
    outlier.KIND,
    regularization.KIND,
    scale_of_targets.KIND,
    learning_rate.KIND,
    inherited.KIND,
    initialization.KIND,
    structure.KIND,
    input_shift.KIND,
    healthy.KIND,
    undetermined.KIND,
)
_BY_NAME = {kind.name: kind for kind in KINDS}


def kind_named(name: str) -> CauseKind:
    """The kind with this name. A document of a newer version may name one that is not in the table:
    it can be shown by its name, and explains nothing here.
    """
    return _BY_NAME.get(name) or CauseKind(
        name=name, title=name.replace("_", " "), clue="", rule="", account=_no_account
    )


def _no_account(attribution: RunAttribution, site: SiteAttribution | None) -> Account:
    return Account(False, (), "", "", "")
