"""MLflow: a metric sink.

with mlflow.start_run():
    Monitor(model, optimizer, on_snapshot=MlflowSink())
"""

import re

from reludiag.errors import MissingLibraryError
from reludiag.integrations.sinks import failsafe
from reludiag.monitoring.snapshot import Snapshot

try:
    import mlflow
except ImportError as error:
    raise MissingLibraryError("MLflow", "mlflow") from error

_LONGEST = 200  # of a site's name: MLflow takes 250 characters of a metric's


class MlflowSink:
    """Logs each snapshot's scalars at its step, to the active run or the one of `run_id`.

    MLflow allows neither `#` nor `@` in a name: the metric of site `relu#1` is `relu 1`.
    """

    def __init__(self, run_id: str | None = None) -> None:
        self._run_id = run_id

    @failsafe
    def __call__(self, snapshot: Snapshot) -> None:
        """Log it."""
        values = {_metric_name(name): value for name, value in snapshot.scalars().items()}
        mlflow.log_metrics(values, step=snapshot.step, run_id=self._run_id)


def _metric_name(name: str) -> str:
    """A name that MLflow accepts. Names are paths there; the name of a site is one component."""
    path, of_site, site = name.partition("_fraction/")
    return path + of_site + re.sub(r"[^\w\-.:]", " ", site)[-_LONGEST:]
