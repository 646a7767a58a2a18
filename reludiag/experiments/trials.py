"""Trials: the table of runs that experiments are read from, a row per run."""

from reludiag.diagnosis import Column

TRIAL_COLUMNS = (
    Column("trial", "Int64", "number of the run"),
    Column("lr", "float64", "learning rate"),
    Column("init", "str", "initialization scheme"),
    Column("seed", "Int64", "seed of the run"),
    Column("status", "str", "complete, diverged (a unit was not finite) or crashed"),
    Column("steps", "Int64", "optimizer steps taken"),
    Column("units", "Int64", "units that can die"),
    Column("born", "Int64", "of these, dead at step 0"),
    Column("new", "Int64", "of these, alive at step 0 and dead at the end"),
    Column("revived", "Int64", "of these, that came back at some step"),
    Column("dead", "Int64", "of these, dead at the end"),
    Column("nonfinite", "Int64", "of these, not finite at the end: neither dead nor alive"),
    Column("dead_fraction", "float64", "dead / units"),
    Column("seconds", "float64", "how long the run took"),
    Column("error", "str", "why it crashed; empty if it did not"),
    Column("recording", "str", "path of the run's recording"),
)
