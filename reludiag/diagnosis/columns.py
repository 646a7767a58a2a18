"""The columns of each table of a Diagnosis, and the version of its JSON document."""

from reludiag.measure.verdicts import VERDICTS
from reludiag.tables import Column

SCHEMA_VERSION = 1
"""Of the JSON documents."""

UNIT_COLUMNS = (
    Column(
        "site",
        "str",
        "path of the rectifier, #k for its k-th repeated call; path:name for a function that this "
        "module calls, or that the model itself calls on what this module returns",
    ),
    Column("unit", "Int64", "index along the unit axis; empty if the site was never called"),
    Column("verdict", "str", "the first that applies of: " + ", ".join(VERDICTS)),
    Column("samples", "Int64", "samples for which it is known whether the unit fired"),
    Column(
        "counted", "Int64", "of these, the samples that the following columns are computed from"
    ),
    Column(
        "fired",
        "Int64",
        "samples in which the unit was > 0 at one position or more (hard-swish: not 0)",
    ),
    Column("firing_rate", "float64", "fired / counted"),
    Column(
        "firing_rate_upper",
        "float64",
        "one-sided 95 % upper bound on the firing rate; only with frozen weights",
    ),
    Column("active_fraction", "float64", "share of positions at which the unit was > 0"),
    Column("mean_activation", "float64", "mean over samples and positions"),
    Column("max_activation", "float64", "maximum over samples and positions"),
    Column("tau_score", "float64", "mean absolute activation / the site's mean"),
    Column(
        "unit_axis",
        "str",
        "axis of the units; 1,3: on both; 1//49: blocks of 49 along it; unknown: last axis",
    ),
    Column("activation", "str", "class of the rectifier, or name of the function"),
    Column(
        "producer",
        "str",
        "module whose weights feed the site, or plain parameter; of several that are joined, all",
    ),
    Column("norm", "str", "BatchNorm between that module and the site"),
    Column("rms_activation", "float64", "root of the mean square over samples and positions"),
    Column(
        "max_preactivation",
        "float64",
        "largest pre-activation, if it was read: how far a silent unit is from firing",
    ),
    Column(
        "fired_before_selection",
        "boolean",
        "whether it fired at the rectifier that its site selects from, as a top-k does: if so and "
        "dead here, it was never selected; empty if the site selects from none",
    ),
    Column(
        "note",
        "str",
        "what limits the verdict: axis unknown, never called, cannot be read, reached by few "
        "samples; empty if nothing does",
    ),
)

LEDGER_COLUMNS = (
    Column("born_dead", "boolean", "dead at step 0; empty if step 0 was not seen"),
    Column("died_step", "Int64", "step of the snapshot at which the unit last died"),
    Column("revived_step", "Int64", "step of the snapshot at which the unit last revived"),
    Column(
        "since_fired",
        "Int64",
        "samples watched at its site since the unit last fired, 0 if it fired in the last window: "
        "those of all windows since; with a probe, the probe's at every snapshot since",
    ),
    Column(
        "lr_at_death",
        "float64",
        "largest learning rate of its parameter group in the window in which it died; without a "
        "probe in the window before it, too",
    ),
    Column("cause", "str", "kind of cause that best explains its death"),
    Column(
        "critical_lr",
        "float64",
        "estimated learning rate at which it would have survived that window",
    ),
    Column(
        "drift_weights",
        "float64",
        "share of its weights in the change of its mean pre-activation when it died",
    ),
    Column("drift_input", "float64", "share of its input"),
    Column("drift_bias", "float64", "share of its bias"),
)

SITE_COLUMNS = (
    Column("site", "str", "as in the unit table; sites in forward order"),
    Column("activation", "str", "class of the rectifier, or name of the function"),
    Column("unit_axis", "str", "as in the unit table; empty if never called"),
    Column(
        "producer",
        "str",
        "module whose weights feed the site, or plain parameter; of several that are joined, all",
    ),
    Column("norm", "str", "BatchNorm between that module and the site"),
    Column("samples", "Int64", "samples seen"),
    Column("units", "Int64", "number of units; empty if never called"),
    *(Column(verdict, "Int64", f"units whose verdict is {verdict}") for verdict in VERDICTS),
    Column("dead_fraction", "float64", "dead / units"),
    Column("mean_firing_rate", "float64", "mean of the units' firing rates"),
    Column("key", "str", "identity of the site, the same under any name"),
    Column("alias", "str", "another name of it, which is understood as well; empty if none"),
    Column(
        "selects_from",
        "str",
        "rectifier whose output goes on into this selection only (a top-k, a mask): its units are "
        "the same and are counted here; empty for any other site",
    ),
    Column(
        "never_fired",
        "Int64",
        "of the dead units, those that never fired there; empty for any other site",
    ),
    Column(
        "never_arrived",
        "Int64",
        "of the dead units, those that fired there and never arrived here: they were never "
        "selected; empty for any other site",
    ),
)

SITE_LEDGER_COLUMNS = (
    Column("born_dead", "Int64", "units dead at step 0; empty if step 0 was not seen"),
    Column("died", "Int64", "units that died at some step (and may have revived)"),
    Column("revived", "Int64", "units that came back at some step"),
)

TIMELINE_COLUMNS = (
    Column("step", "Int64", "optimizer steps taken, or the step that a checkpoint names"),
    Column(
        "window_start",
        "Int64",
        "step after which its window begins: the last step in the table, or an earlier one where a "
        "short last window takes in the one before",
    ),
    Column("site", "str", "as in the unit table"),
    Column(
        "learning_rate",
        "float64",
        "largest learning rate of the site's group in the window that ends here",
    ),
    Column("samples", "Int64", "samples seen in that window, or on the probe"),
    Column("units", "Int64", "units of the site"),
    Column("dead", "Int64", "dead at this snapshot"),
    Column(
        "rare",
        "Int64",
        "fired in fewer than 0.1 % of samples; empty without statistics, as the next",
    ),
    Column(
        "dormant",
        "Int64",
        "tau-score of at most 0.025, dead units among them (Sokar et al. 2023); without a probe, "
        "in the steps that have statistics",
    ),
    Column("died", "Int64", "died in the window that ends here"),
    Column("revived", "Int64", "revived in the window that ends here"),
    Column("nonfinite", "Int64", "units with a NaN or an infinity"),
)

METRIC_COLUMNS = (
    Column("step", "Int64", "optimizer steps taken when the last value of the window was logged"),
    Column("window", "Int64", "step at which the window of `every` steps ends"),
    Column("metric", "str", "the name that it was logged under"),
    Column("last", "float64", "last value of the window"),
    Column("mean", "float64", "mean of all values of the window; not finite if one is not"),
    Column("count", "Int64", "values of the window"),
)

MARK_COLUMNS = (
    Column("step", "Int64", "optimizer steps taken at the mark"),
    Column("mark", "str", "its name; empty for what comes before the first one"),
    Column("until", "Int64", "step of the next mark, or of the last snapshot"),
    Column("dead", "Int64", "dead units at the last snapshot until then"),
    Column("died", "Int64", "deaths from the mark until then; without a probe, of whole windows"),
    Column("revived", "Int64", "revivals, likewise"),
)
