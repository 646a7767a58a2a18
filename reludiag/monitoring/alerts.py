"""Alerts: what a Monitor reports during the run, after each snapshot: by callbacks (`on_snapshot`,
`on_death`), by a warning, and by stopping the run.
"""

import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np

from reludiag.errors import TooManyDeadError, UsageError
from reludiag.limits import Limit
from reludiag.monitoring.losses import Losses
from reludiag.monitoring.snapshot import SiteSnapshot, Snapshot
from reludiag.recording import RecordedRun, SiteState
from reludiag.recording.ledger import Lifelines, Mask
from reludiag.recording.named_models import model_name

_SILENT_TOGETHER = 10
"""Units that are hardly silent together by chance: each is in half of the draws, if all of a batch
are alike for it, so that of 1,000 sites with this many one would be.
"""
_LIBRARIES = ("reludiag", "torch", "lightning", "pytorch_lightning", "transformers", "accelerate",
              "ignite", "contextlib")  # fmt: skip
WARN_OVER = "10%"
"""Share of all units in one window from which deaths are an event instead of single units."""


Listener = Callable[[Snapshot], object]


class Alerts:
    """Follows the units of a run and reports deaths."""

    def __init__(
        self,
        on_snapshot: Listener | None,
        on_death: Listener | None,
        warn_over: str | None,
        raise_over: str | None,
        is_seen_late: bool,
        lags: bool,
        models: Mapping[str, bool] | None = None,
    ) -> None:
        """`is_seen_late` says whether a unit that is dead in a window may have died in the one
        before, as training batches show it; `lags` whether the first snapshot may call units dead
        that fire in training, for running statistics that are not there yet. `models` are the names
        of several models, and whether an optimizer trains them.
        """
        for name, listener in (("on_snapshot", on_snapshot), ("on_death", on_death)):
            if listener is not None and not callable(listener):
                raise UsageError(
                    f"{name}={type(listener).__name__} was given; expected a function of a "
                    "Snapshot, such as print"
                )
        self._models = models or {}
        self._is_seen_late, self._lags = is_seen_late, lags
        self._on_snapshot, self._on_death = on_snapshot, on_death
        limit = None if warn_over is None else Limit.parse(str(warn_over), "warn_over")
        self._warn_over = {"window": limit, "sum": limit, "birth": limit}
        """Each is None once it was warned of."""
        self._raise_over = (
            None if raise_over is None else Limit.parse(str(raise_over), "raise_over")
        )
        self._lives: dict[str, Lifelines] = {}
        self._born: dict[str, int] = {}
        self._losses = Losses(is_seen_late)
        self._rates: dict[str, float] = {}
        self._previous: int | None = None
        self._largest_before: float | None = None
        """In the window before, if deaths are seen late."""
        # What `tell` is to do, from `note` to `tell`:
        self._calls: list[tuple[Listener, Snapshot]] = []
        self._warnings: list[str] = []
        self._stop: TooManyDeadError | None = None

    def go_on(self, run: RecordedRun, snapshots: int) -> None:
        """Take over the first snapshots, that were recorded before the run was resumed."""
        steps = run.steps[:snapshots]
        for each in run.sites:
            lives = self._lives[each.site.key] = Lifelines(each.dead.shape[1])
            for index, step in enumerate(steps):
                lives.advance(step, each.dead[index], each.has_state[index])
                nonfinite = each.nonfinite[index]
                lost, is_known = each.dead[index] | nonfinite, each.has_state[index] | nonfinite
                self._losses.add(each.site, lost, is_known)
            if steps[:1] == (0,):
                self._born[each.site.key] = int((each.dead & each.has_state)[0].sum())
        self._previous = steps[-1]
        self._rates = {group: rate for step, group, rate in run.learning_rates if step <= steps[-1]}

    def note(
        self,
        step: int,
        states: Sequence[SiteState],
        new_rates: Sequence[tuple[int, str, float]],
        per_pass: Collection[str],
    ) -> None:
        """Add a snapshot; `new_rates` are the learning rates recorded since the last one.

        `per_pass` are the names of sites at which each forward pass counts as one sample.
        """
        sites = tuple(
            self._followed(step, state, state.site.name in per_pass)
            for state in states
            if state.site.units and state.counts.samples
        )
        first_step = 1 if self._previous is None else self._previous + 1
        replaced = {group for since, group, _ in new_rates if since == first_step}
        used = [rate for group, rate in self._rates.items() if group not in replaced]
        used += [rate for _, _, rate in new_rates]
        self._rates.update({group: rate for _, group, rate in new_rates})
        largest = max(used, default=None) if step else None
        rates = [r for r in (largest, self._largest_before) if r is not None]
        self._largest_before = largest if self._is_seen_late else None
        died = [site for site in sites if site.died]
        if died and not any(self._models.get(site.model, True) for site in died):
            rates = []  # it is not the rate of the models in which units died
        news = Snapshot(
            step=step,
            previous=self._previous,
            sites=sites,
            # With a closure, the rates of the first step are known before the initial state.
            learning_rates=dict(self._rates) if step else {},
            largest_rate=largest,
            rate_at_deaths=max(rates, default=None) if step else None,
        )
        self._previous = step
        if self._on_snapshot is not None:
            self._calls.append((self._on_snapshot, news))
        if self._on_death is not None and news.died:
            self._calls.append((self._on_death, news))
        self._warnings += self._new_warnings(news)
        # Units dead at step 0 were not killed by this run and may still revive.
        self._stop = self._too_many(news) if step else None

    def tell(self, stopping: bool = True) -> None:
        """Report the last snapshot, once; raise TooManyDeadError if `stopping` and the limit is
        exceeded.

        An exception of a listener is not caught, so it also stops the run.
        """
        while self._calls:
            listener, news = self._calls.pop(0)
            listener(news)
        while self._warnings:
            message = f"reludiag: {self._warnings.pop(0)} (warn_over)"
            warnings.warn(message, RuntimeWarning, stacklevel=_level_of_loop())
        stop, self._stop = self._stop, None
        if stop is not None and stopping:
            raise stop

    def _new_warnings(self, news: Snapshot) -> Iterator[str]:
        """What is to be warned of for the first time."""
        window, total, birth = (self._warn_over[kind] for kind in ("window", "sum", "birth"))
        lost, units = self._losses.by_site, self._losses.units
        count = sum(lost.values())
        if window is not None and window.less_than(news.died, news.units):
            self._warn_over["window"] = None
            if window.less_than(self._losses.at_most, units):  # the same deaths are told once
                self._warn_over["sum"] = None
            yield f"{news}. That is more than {window.text} in one window"
        elif total is not None and news.step and total.less_than(count, units):
            self._warn_over["sum"] = None
            worst = max(lost, key=lambda name: lost[name])
            how = "dead or not finite" if news.nonfinite else "dead"
            yield (
                f"{count:,} of {units:,} units were alive when the run began and are {how} at "
                f"step {news.step:,}; most in {worst!r}, {lost[worst]:,}. That is more than "
                f"{total.text} in the whole run"
            )
        if birth is not None and news.previous is None and not news.step:
            silent = [repr(site.name) for site in news.sites if self._is_silent(site)]
            if silent:
                more = f" and {len(silent) - 1} more" if len(silent) > 1 else ""
                yield (
                    f"every unit of {silent[0]}{more} is dead before any training, so no gradient "
                    "passes there; `reludiag init` says what is wrong with the initialization"
                )

    def _is_silent(self, site: SiteSnapshot) -> bool:
        """Whether a site is dead before any training, and not by chance or for the moment."""
        return (
            not self._lags
            and 0 < site.units == site.dead
            and (not self._is_seen_late or site.units >= _SILENT_TOGETHER)
        )

    def _too_many(self, news: Snapshot) -> TooManyDeadError | None:
        lost = news.dead + news.nonfinite
        if self._raise_over is None or not self._raise_over.less_than(lost, news.units):
            return None
        finite = f", {news.nonfinite:,} of them not finite" if news.nonfinite else ""
        advice = "Try a lower learning rate or a warm-up first"
        if 2 * (born := self._losses.never_begun) > lost:
            advice = (
                f"{born:,} of them were dead when the run began, and no learning rate changes "
                "that: look at the initialization and at the input first (`reludiag init`)"
            )
        trained = [site for site in news.sites if self._models.get(site.model, True)]
        if 2 * sum(site.dead + site.nonfinite for site in trained) < lost:
            advice = (
                "Most are in models that no optimizer trains: look where their weights come from"
            )
        return TooManyDeadError(
            f"{lost:,} of {news.units:,} units are dead at step {news.step:,}{finite}: more than "
            f"raise_over={self._raise_over.text!r} allows. {news}. The recording is complete. "
            f"{advice}"
        )

    def _followed(self, step: int, state: SiteState, per_pass: bool) -> SiteSnapshot:
        site, counts = state.site, state.counts
        has_state = ~counts.nonfinite
        lives = self._lives.get(site.key)
        if lives is None or len(lives.dead) != len(has_state):
            lives = self._lives[site.key] = Lifelines(len(has_state))
        died, revived = lives.advance(step, state.dead, has_state)
        self._losses.add(site, state.dead | counts.nonfinite, np.ones_like(has_state))
        dead = int((state.dead & has_state).sum())
        if step == 0:
            self._born[site.key] = dead
        return SiteSnapshot(
            name=site.name,
            units=len(has_state),
            samples=counts.samples,
            per_pass=per_pass,
            dead=dead,
            died_units=_indices(died),
            revived=int(revived.sum()),
            nonfinite=int(counts.nonfinite.sum()),
            born_dead=self._born.get(site.key),
            dead_units=_indices(state.dead & has_state),
            dormant_units=None if state.dormant is None else _indices(state.dormant),
            rare=None if state.rare is None else int(state.rare.sum()),
            model=model_name(site) if self._models else "",
        )


def _indices(mask: Mask) -> tuple[int, ...]:
    return tuple(np.flatnonzero(mask).tolist())


def _level_of_loop() -> int:
    """The `stacklevel` for a warning of the caller that names the line of the user's own code: the
    loop that steps the optimizer, or that calls a trainer.
    """
    level, frame = 1, sys._getframe(1)
    while str(frame.f_globals.get("__name__")).partition(".")[0] in _LIBRARIES:
        if frame.f_back is None:
            return 2
        level, frame = level + 1, frame.f_back
    return level
