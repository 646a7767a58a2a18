"""The schema of a recording, and how its arrays are packed."""

from typing import Any

import numpy as np

APPLICATION_ID = 0x52654C55  # "ReLU"

SCHEMA_VERSION = 13
OLDEST_READ = 3
"""The oldest version that can be read: what a later one added is then not known."""
# What each version changed:
#   1  the first
#   2  site: operator, norm; statistics: counted, silent, total_square, before_maximum. Version 1
#      was never released, and is not read.
#   3  initialization, input, baseline, update, death: evidence for the causes. Version 2
#      was never released either.
#   4  site: consumers.
#   5  site: key, alias; input: scale.
#   6  state: rare, dormant; death: examined.
#   7  site: upper.
#   8  metric, mark.
#   9  site: selects_from; statistics: silent_before.
#  10  jump, edit, gradient.
#  11  on_batch, training_input.
#  12  history.
#  13  output_gradient.

SCHEMA = """
CREATE TABLE run (                  -- facts about the whole run
    key TEXT PRIMARY KEY,           -- model, optimizers, every, probe_samples, gradients, ...
    value TEXT NOT NULL             -- as JSON
);
CREATE TABLE site (                 -- places where rectifiers run, in forward order
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL,              -- its identity, the same under any name
    name TEXT NOT NULL UNIQUE,      -- layer1.0.relu#1
    alias TEXT NOT NULL,            -- another name of it, empty if it has none
    module TEXT NOT NULL,           -- path of the rectifier module, or of a function's caller
    operator TEXT NOT NULL,         -- name of the function, empty for a module
    activation TEXT NOT NULL,       -- ReLU
    can_die INTEGER NOT NULL,       -- 0 for a leaky activation
    signed INTEGER NOT NULL,        -- 1 if it also fires where it is negative
    upper REAL,                     -- of a clipped rectifier its upper bound
    unit_axis TEXT NOT NULL,        -- 1, 1,3, 1//49, unknown; empty if never called
    units INTEGER,                  -- null if never called
    producer TEXT,                  -- path of the module whose weights feed it, or name of the
                                    -- parameter; of several all: conv2, shortcut
    norm TEXT,                      -- path of the BatchNorm in between
    selects_from TEXT NOT NULL,     -- of a selection, such as a top-k, the name of the rectifier
                                    -- whose units it has; empty for most sites
    consumers TEXT,                 -- what reads the units next: a list, as JSON; null: not known
    param_group TEXT                -- "optimizer/group" that trains the producer, if one does
);
CREATE TABLE learning_rate (        -- a row for each change, which gives the rate of every step
    step INTEGER NOT NULL,          -- the first step taken with it; steps count from 1
    param_group TEXT NOT NULL,      -- "optimizer/group", both counted from 0
    learning_rate REAL NOT NULL,
    PRIMARY KEY (step, param_group)
);
CREATE TABLE snapshot (             -- one row each time the state was taken
    step INTEGER PRIMARY KEY,       -- optimizer steps taken so far; 0 is the initial state
    first_step INTEGER NOT NULL,    -- without a probe: it covers the training batches from
                                    -- after this step up to step; with one: equal to step
    taken TEXT NOT NULL             -- time, ISO 8601 in UTC
);
CREATE TABLE state (                -- which units were dead at a snapshot
    step INTEGER NOT NULL REFERENCES snapshot(step),
    site INTEGER NOT NULL REFERENCES site(id),
    samples INTEGER NOT NULL,       -- seen in the window, 0 if the site was not called
    dead BLOB NOT NULL,             -- a bit per unit, first unit in the highest bit
    nonfinite BLOB NOT NULL,        -- likewise: a NaN or an infinity was seen
    rare INTEGER,                   -- number of units that fired in fewer than 0.1 % of samples
    dormant INTEGER,                -- of units with a tau-score of at most 0.025, dead ones among
                                    -- them; both null without statistics
    PRIMARY KEY (step, site)
) WITHOUT ROWID;
CREATE TABLE statistics (           -- statistics of the last snapshot; each replaces them
    site INTEGER PRIMARY KEY REFERENCES site(id),
    samples INTEGER NOT NULL,       -- for which it is known whether a unit fired
    counted INTEGER NOT NULL,       -- of these, samples of all but silent and nonfinite
    positions INTEGER NOT NULL,     -- per unit, over all counted samples
    calls INTEGER NOT NULL,
    silent BLOB NOT NULL,           -- a bit per unit, first unit in the highest bit
    nonfinite BLOB NOT NULL,        -- likewise: a NaN or an infinity was seen
    fired BLOB NOT NULL,            -- little-endian int64 per unit, as the next
    active BLOB NOT NULL,
    total BLOB NOT NULL,            -- little-endian float64 per unit, as all that follow
    total_absolute BLOB NOT NULL,
    total_square BLOB NOT NULL,
    maximum BLOB NOT NULL,
    minimum BLOB NOT NULL,
    before_maximum BLOB NOT NULL,   -- of the pre-activations; -inf if none was read
    silent_before BLOB              -- as silent, at the rectifier that the site selects from
);
CREATE TABLE on_batch (             -- the same snapshot of a probe, where BatchNorm uses the
    step INTEGER NOT NULL REFERENCES snapshot(step), -- statistics of the batch, as in training
    site INTEGER NOT NULL REFERENCES site(id),
    fires BLOB NOT NULL,            -- a bit per unit, as in state: whether it fired
    PRIMARY KEY (step, site)
) WITHOUT ROWID;
CREATE TABLE initialization (       -- each layer that feeds a rectifier, before the first step
    module TEXT PRIMARY KEY,
    layer TEXT NOT NULL             -- scheme, bias, what is wrong with it: LayerInit as JSON
);
CREATE TABLE input (                -- the input of each linear layer or convolution at step 0
    module TEXT PRIMARY KEY,
    samples INTEGER NOT NULL,       -- of the probe, or of the first batch
    is_first INTEGER NOT NULL,      -- 1 if it is fed by the model's input and by no other layer
    gamma REAL,                     -- |mean| / |standard deviation|, of first layers; 9e999: no
                                    -- deviation
    scale TEXT,                     -- of first layers in the first batch: InputScale as JSON
    cosine REAL                     -- mean cosine of two samples, if a sample is one vector
);
CREATE TABLE training_input (       -- the model's input in a training batch of the window before
    step INTEGER PRIMARY KEY REFERENCES snapshot(step),
    mean REAL,                      -- over all values
    std REAL
);
CREATE TABLE output_gradient (      -- an output of the model in a measured step, and the gradient
    step INTEGER NOT NULL,          -- of the loss with respect to it, over entries that have one
    output INTEGER NOT NULL,        -- its place among the outputs of the forward pass
    count INTEGER NOT NULL,         -- entries with a gradient
    mean REAL NOT NULL,
    std REAL NOT NULL,
    gradient_mean REAL NOT NULL,
    gradient_std REAL NOT NULL,
    covariance REAL NOT NULL,       -- of the output and its gradient
    shared REAL NOT NULL,           -- |gradients summed over classes| / |gradients|
    PRIMARY KEY (step, output)
) WITHOUT ROWID;
CREATE TABLE baseline (             -- the same model and samples, with weights drawn again
    site INTEGER PRIMARY KEY REFERENCES site(id),
    born_dead REAL NOT NULL,        -- share of its units, mean over the draws
    draws INTEGER NOT NULL
);
CREATE TABLE "update" (             -- how far single steps moved the weights: the first, and the
    step INTEGER NOT NULL,          -- last before each snapshot
    module TEXT NOT NULL,
    ratio REAL NOT NULL,            -- |change| / |weights before|
    PRIMARY KEY (step, module)
) WITHOUT ROWID;
CREATE TABLE gradient (             -- of the same steps, where it is finite
    step INTEGER PRIMARY KEY,
    norm REAL NOT NULL              -- of all gradients, as the optimizer got them
);
CREATE TABLE jump (                 -- of each window, the step that is furthest above what is usual
    step INTEGER PRIMARY KEY,
    ratio REAL NOT NULL,            -- update relative to weights and learning rate, over its median
    before REAL NOT NULL,           -- the largest such ratio of the eight steps before it
    size REAL NOT NULL              -- |change| / |weights|, median over the matrices
);
CREATE TABLE edit (                 -- changes of weights by something else than the optimizer
    step INTEGER PRIMARY KEY,       -- after which the largest of its window was made
    times INTEGER NOT NULL,         -- number of steps of the window after which there was one
    size REAL NOT NULL,             -- |change| / |weights before| of one parameter
    usual REAL,                     -- the usual update of that parameter, in the same measure
    modules TEXT NOT NULL           -- paths of all modules that were edited in the window, as JSON
);
CREATE TABLE death (                -- each unit that died between two snapshots on a probe
    site INTEGER NOT NULL REFERENCES site(id),
    unit INTEGER NOT NULL,
    step INTEGER NOT NULL REFERENCES snapshot(step),
    previous INTEGER NOT NULL,      -- the snapshot at which it was alive
    critical_fraction REAL,         -- fraction of the window's update that it would have survived
    before REAL,                    -- mean pre-activation on the probe at the previous snapshot
    after REAL,                     -- at this one; after - before = the sum of the three parts
    by_weights REAL,                -- the part of the change that came through the weights,
    by_input REAL,                  -- through the layer's input, and
    by_bias REAL,                   -- through its bias; all null if they could not be computed
    examined INTEGER NOT NULL,      -- 0 if there was no time for it: all of the above is null then
    PRIMARY KEY (site, unit, step)
) WITHOUT ROWID;
CREATE TABLE metric (               -- what the user logged, in windows of `every` steps
    window INTEGER NOT NULL,        -- the step at which the window ends, a multiple of `every`
    name TEXT NOT NULL,             -- loss, accuracy
    step INTEGER NOT NULL,          -- optimizer steps taken when the last value was logged
    last REAL,                      -- the last value of the window; null: NaN
    mean REAL,                      -- of all values of the window; null: NaN
    count INTEGER NOT NULL,         -- values of the window
    PRIMARY KEY (window, name)
) WITHOUT ROWID;
CREATE TABLE mark (                 -- the user's own marks, such as the tasks of a stream
    id INTEGER PRIMARY KEY,
    step INTEGER NOT NULL,          -- optimizer steps taken then
    name TEXT NOT NULL              -- task 3
);
CREATE TABLE history (              -- what moved each unit that died, from step 1 to its death, as
    site INTEGER NOT NULL REFERENCES site(id), -- the measured steps show it; null: not measured
    unit INTEGER NOT NULL,
    step INTEGER NOT NULL REFERENCES snapshot(step),
    fresh REAL,                     -- drift of its mean pre-activation by the steps' gradients,
    carried REAL,                   -- by momentum,
    decay REAL,                     -- by weight decay, summed over steps;
    last_fresh REAL,                -- the same three of the last step with a gradient
    last_carried REAL,
    last_decay REAL,
    shrinkage REAL,                 -- relative loss of size of its weights, or of its norm's, by
                                    -- weight decay, as rates summed over steps
    penalty_shrinkage REAL,         -- the same by penalties in the loss that read the weights
    size REAL,                      -- |these weights| / |the same at the beginning|
    largest_update REAL,            -- |change of its layer's weights by gradients in a step| / |the
                                    -- same at the beginning|, the largest
    through_output REAL,            -- its gradient through the model's output,
    through_size REAL,              -- the same, with the size of each step's, and
    around_output REAL,             -- by parts of the loss that read the activation itself, summed
                                    -- over measured steps; above 0 it pushes the unit down
    spread REAL,                    -- of the latter: standard deviation over samples / mean
    PRIMARY KEY (site, unit, step)
) WITHOUT ROWID;
"""

Mask = np.ndarray[Any, np.dtype[np.bool_]]

_SCALARS = frozenset({"samples", "counted", "positions", "calls"})
_MASKS = frozenset({"silent", "nonfinite", "silent_before"})
_INTEGERS = frozenset({"fired", "active"})


def mask_of(bits: bytes, units: int) -> Mask:
    """The bits of a mask, a bit per unit, `[unit]`."""
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=units).astype(bool)


def packed(name: str, value: Any) -> Any:
    """A field of UnitCounts, packed for a column of `statistics`."""
    if value is None:
        return None
    if name in _SCALARS:
        return int(value)
    if name in _MASKS:
        return np.packbits(value).tobytes()
    return np.ascontiguousarray(value, "<i8" if name in _INTEGERS else "<f8").tobytes()


def unpacked(name: str, value: Any, units: int) -> Any:
    """The reverse of `packed`."""
    if value is None:
        return None
    if name in _SCALARS:
        return int(value)
    if name in _MASKS:
        return mask_of(value, units)
    return np.frombuffer(value, "<i8" if name in _INTEGERS else "<f8")
