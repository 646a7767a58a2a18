"""One model: what reludiag says of it, beside what the oracle sees."""

import copy
import re
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy
import pandas as pd
import torch
from torch import Tensor, nn

import reludiag
from benchmarks.zoo import oracle
from benchmarks.zoo.oracle import Layout, Rectified, Truth

STEPS = 30
LEARNING_RATE = 0.02
JUDGED_SECONDS = 4.0
"""Of CPU, for changing weights; the calls that are left have no layout of the oracle's own."""
BIAS = re.compile(r"(bias|(^|\.)b_enc)$")
DEEP = -30.0
EVERY = 9
LEAKY = {"gelu", "silu", "leakyrelu", "prelu", "rrelu", "elu", "celu", "selu", "mish", "softplus"}
LEAKY |= {"tanh", "sigmoid", "logsigmoid", "softsign", "tanhshrink", "quickgelu", "swish"}
"""Activations that reludiag lists and that cannot die, as they are called without underscores."""


@dataclass
class Built:
    """A model, a batch for it, and what only its author knows."""

    model: nn.Module
    batch: Any
    """Positional arguments as a tuple, or keywords as a dict."""
    samples: int | None = None
    """Samples of the batch; by default the length of its first tensor or list."""
    vary: Callable[[Any, int], Any] | None = None
    """The batch with one other sample, where that is not one index of each tensor."""
    loss: Callable[[Any], Tensor] | None = None
    subject: Any = None
    """What reludiag is given, if not the model: compiled, exported, wrapped."""
    train_mode: bool = False
    ledger: bool = True
    learning_rate: float = LEARNING_RATE
    steps: int = STEPS
    fit: Callable[[Any], None] | None = None
    """Trains by the library's own loop, and calls its argument after each step."""
    optimizer: Any = None
    layouts: dict[int, Layout] = field(default_factory=dict)
    """By number of call: known by hand, where changing weights does not tell."""


@dataclass
class Row:
    """What was found for one model."""

    name: str
    calls: int = 0
    sites: int = 0
    axes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(AXIS_OUTCOMES, 0))
    dead: int = 0
    said_dead: int = 0
    events: int = 0
    """Deaths and revivals in the ledger."""
    columns: dict[str, str] = field(default_factory=dict)
    """`yes`, `no` or why not judged, by what was compared."""
    wrong: list[str] = field(default_factory=list)
    """Sentences on what reludiag says wrongly."""
    unable: list[str] = field(default_factory=list)
    """Sentences on what it says that it cannot tell, and what the oracle cannot."""
    seconds: float = 0.0


AXIS_OUTCOMES = ("agree", "unknown", "wrong", "not judged")
COMPARED = ("sites", "axes", "dead", "samples", "ledger", "same training")


def compare(name: str, build: Callable[[], Built], steps: int = STEPS) -> Row:
    """Build a model, plant deaths, and ask both. Whatever goes wrong is in the row."""
    row = Row(name)
    began = time.process_time()
    try:
        torch.manual_seed(0)
        built = build()
    except ImportError as error:
        row.columns = dict.fromkeys(COMPARED, "library missing")
        row.unable.append(f"{type(error).__name__}: {error}")
        return row
    except Exception as error:
        row.columns = dict.fromkeys(COMPARED, "cannot be built")
        row.unable.append(f"cannot be built here: {_first_line(error)}")
        return row
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _compare(row, replace(built, steps=steps))
        except Exception as error:
            row.columns = {each: row.columns.get(each, "error") for each in COMPARED}
            row.wrong.append(f"raises {_first_line(error)}")
    row.seconds = time.process_time() - began
    return row


def _first_line(error: Exception) -> str:
    return (
        f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160] if str(error) else ''}"
    )


def call(model: nn.Module, batch: Any) -> Any:
    return model(**batch) if isinstance(batch, dict) else model(*batch)


def _compare(row: Row, built: Built) -> None:
    model, batch = built.model.eval(), built.batch
    options: dict[str, Any] = {"train": built.train_mode}
    watch = oracle.run(model, batch, call, **options)
    row.calls = len(watch.calls)
    layouts = _layouts(row, built, watch, options)
    _plant(model, watch)
    watch = oracle.run(model, batch, call, **options)
    truths = _truths(built, watch, layouts, options)
    if watch.unseen:
        row.unable.append(f"{len(watch.unseen)} operators with a rectifier inside")

    # fork_rng: the seed is the oracle's, so that both see the same noise
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        diagnosis = reludiag.scan(
            built.subject if built.subject is not None else model,
            [batch],
            train_mode=built.train_mode,
        )
    notes = [note for note in diagnosis.head.notes if "NOT OBSERVED" in note]
    row.unable += [f"reludiag: {note[:160]}" for note in notes]
    pairs = _pairs(row, model, diagnosis, truths)
    same = [pair for pair in pairs if _compare_site(row, diagnosis, *pair)]
    for column in ("dead", "samples"):
        row.columns.setdefault(column, "yes" if same else "units not known")
    if not pairs:
        row.columns["axes"] = "no site to judge"
    elif row.axes["wrong"]:
        row.columns["axes"] = "no"
    elif row.axes["agree"] and not row.axes["unknown"] and not row.axes["not judged"]:
        row.columns["axes"] = "yes"
    else:
        row.columns["axes"] = ", ".join(f"{n} {k}" for k, n in row.axes.items() if n)
    if built.ledger:
        named = [(site["site"], [truths.index(each) for each in group]) for site, group in same]
        _compare_ledger(row, built, named, [truth.layout for truth in truths])
    row.columns.setdefault("ledger", "not trained")
    row.columns.setdefault("same training", "not trained")


def _layouts(
    row: Row, built: Built, watch: oracle.Watch, options: dict[str, Any]
) -> list[Layout | str]:
    """By changing weights; first one call of each kind, as time may not do for all."""
    kinds: dict[Any, int] = {}
    for index, each in enumerate(watch.calls):
        kinds.setdefault((each.operator, each.owner.split(".")[0], each.before.ndim), index)
    order = [*kinds.values(), *(i for i in range(len(watch.calls)) if i not in kinds.values())]
    found: list[Layout | str] = ["no time was left"] * len(watch.calls)
    began = time.process_time()
    for index in order:
        if index in built.layouts:
            found[index] = built.layouts[index]
        elif time.process_time() - began < JUDGED_SECONDS:
            found[index] = oracle.layout_of(built.model, built.batch, call, watch, index, **options)
    return found


def _plant(model: nn.Module, watch: oracle.Watch) -> None:
    """Give some units before every second rectifier a bias that they cannot overcome."""
    parameters = {p.data_ptr(): p for n, p in model.named_parameters() if BIAS.search(n)}
    for each in watch.calls[::2]:
        biases = [parameters[address] for address in each.vectors if address in parameters]
        if biases and biases[-1].ndim == 1 and len(biases[-1]) >= 4:
            with torch.no_grad():
                biases[-1][::EVERY] = DEEP


def _truths(
    built: Built, watch: oracle.Watch, layouts: Sequence[Layout | str], options: dict[str, Any]
) -> list[Truth]:
    count = built.samples or _count(built.batch)
    torch.manual_seed(1)
    vary = built.vary or (lambda batch, sample: oracle.varied(batch, sample, count))
    batches = [vary(built.batch, sample) for sample in range(count)]
    rows = oracle.samples_of(built.model, built.batch, call, watch, batches, **options)
    truths = []
    for index, each in enumerate(watch.calls):
        layout = layouts[index] if index < len(layouts) else "another path with planted deaths"
        truth = Truth(
            each,
            layout if isinstance(layout, Layout) else None,
            layout if isinstance(layout, str) else "",
        )
        known = rows[index]
        if known is not None:
            truth.rows, truth.sample_of_row = known
            truth.samples_known = truth.layout is None or truth.rows not in truth.layout.axes
        truths.append(truth)
    return truths


def _count(batch: Any) -> int:
    values = batch.values() if isinstance(batch, dict) else batch
    return next(len(value) for value in values if isinstance(value, Tensor | list))


# Sites and calls


def _pairs(
    row: Row, model: nn.Module, diagnosis: reludiag.Diagnosis, truths: list[Truth]
) -> list[tuple[Any, list[Truth]]]:
    """Each site with its calls: one, or those of a loop, which are of one owner and producer."""
    sites = diagnosis.sites
    slope_of_zero = any(truth.call.operator == "leaky_relu" for truth in truths)
    immortal = LEAKY - {"leakyrelu"} if slope_of_zero else LEAKY
    leaky = sites["activation"].str.replace("_", "").str.lower().isin(immortal)
    unseen = sites["samples"].isna() | (sites["samples"] == 0)
    if (unseen & ~leaky).any():
        names = ", ".join(sites[unseen & ~leaky]["site"].head(3))
        row.unable.append(f"reludiag: NOT OBSERVED: {int((unseen & ~leaky).sum())} sites, {names}")
    sites = sites[~leaky & ~unseen]
    row.sites = len(sites)
    listed = [site for _, site in sites.iterrows()]
    if len(listed) == len(truths):
        row.columns["sites"] = "yes"
        return [(site, [truth]) for site, truth in zip(listed, truths, strict=True)]
    groups: dict[Any, list[Truth]] = {}
    for truth in truths:
        groups.setdefault((truth.call.owner, truth.call.producer), []).append(truth)
    if len(groups) == len(listed):
        row.columns["sites"] = "yes, loops merged"
        return list(zip(listed, groups.values(), strict=True))
    row.columns["sites"] = "no"
    pairs = []
    seen = " ".join(note for note in row.unable if "NOT OBSERVED" in note)
    for owner in dict.fromkeys(truth.call.owner for truth in truths):
        calls = [truth for truth in truths if truth.call.owner == owner]
        own = [site for site in listed if _owner(site["site"], model) == owner]
        merged = [group for key, group in groups.items() if key[0] == owner]
        if len(own) == len(calls):
            pairs += [(site, [truth]) for site, truth in zip(own, calls, strict=True)]
        elif len(own) == len(merged):
            pairs += list(zip(own, merged, strict=True))
        elif len(own) == 1 and isinstance(model.get_submodule(owner), nn.RNNBase):
            row.unable.append(f"reludiag reads all steps of {owner!r} at once, in what it returns")
        elif not own and owner and owner in seen:
            row.columns["sites"] = "not observed"
        else:
            row.wrong.append(
                f"{len(own)} sites of {len(calls)} calls in {owner or 'the root'!r}"
                f" ({', '.join(sorted({c.call.operator for c in calls}))})"
            )
    owners = {truth.call.owner for truth in truths}
    extra = [site["site"] for site in listed if _owner(site["site"], model) not in owners]
    if extra and any(type(module).__module__.startswith("torch.ao.") for module in model.modules()):
        row.unable += ["oracle: int8 operators are no calls that it sees", *row.wrong]
        row.wrong.clear()
        row.columns["sites"] = "not judged"
    elif extra:
        row.wrong.append(f"sites where the oracle sees no call: {', '.join(extra[:4])}")
    if not row.wrong and row.columns["sites"] == "no":
        row.columns["sites"] = "yes, loops merged"
    return pairs


def _owner(site: str, model: nn.Module) -> str:
    owner = site.split("#")[0].split(":")[0]
    return "" if owner == type(model).__name__ else owner


def _said(site: Any, shape: Sequence[int]) -> Layout | None:
    """The layout that reludiag names."""
    axis, units = str(site["unit_axis"]), int(site["units"])
    try:
        if "//" in axis:
            first, inner = axis.split("//")
            return Layout((int(first),), int(inner))
        axes = tuple(int(each) for each in axis.replace(" ", "").strip("()").split(","))
    except ValueError:
        return None
    if len(axes) == 1 and units < shape[axes[0]]:
        return Layout(axes, -(shape[axes[0]] // units))  # each unit at several places
    return Layout(axes)


def _compare_site(row: Row, diagnosis: reludiag.Diagnosis, site: Any, group: list[Truth]) -> bool:
    """Add to the row what is found; returns whether both know the same units."""
    name, first = site["site"], group[0]
    shape = first.call.before.shape
    said = _said(site, shape)
    where = f"{name} ({first.call.operator} of {list(shape)})"
    units = int(site["units"])
    if first.layout is None:
        row.axes["not judged"] += 1
        row.unable.append(f"{where}: oracle: {first.reason}; reludiag: axis {site['unit_axis']}")
        if said is None or said.units(shape) != units:
            return False
    elif said is None:
        row.axes["unknown"] += 1
        row.unable.append(f"{where}: reludiag: axis unknown; oracle: {first.layout.label()}")
        return False
    elif units != first.layout.units(shape) or said != first.layout:
        row.axes["wrong"] += 1
        row.wrong.append(
            f"{where}: {units} units along {site['unit_axis']}, not "
            f"{first.layout.units(shape)} along {first.layout.label()}"
        )
        return False
    else:
        row.axes["agree"] += 1
    for truth in group:
        truth.layout = said
        truth.samples_known = truth.samples_known and truth.rows not in said.axes
    by_call = [oracle.fired(truth) for truth in group]
    dead = ~torch.stack([each.any(1) for each in by_call]).any(0)
    table = diagnosis.units[diagnosis.units["site"] == name]
    said_dead = torch.tensor((table["verdict"] == "dead").to_numpy())
    row.dead += int(dead.sum())
    row.said_dead += int(said_dead.sum())
    if not torch.equal(dead, said_dead):
        row.columns["dead"] = "no"
        row.wrong.append(f"{where}: {int(said_dead.sum())} dead units, not {int(dead.sum())}")
    _compare_samples(row, site, group, by_call, table, where)
    return True


def _compare_samples(
    row: Row,
    site: Any,
    group: list[Truth],
    by_call: list[Tensor],
    table: pd.DataFrame,
    where: str,
) -> None:
    if not all(truth.samples_known for truth in group):
        row.columns.setdefault("samples", "samples mix")
        return
    truth, said = group[0], int(site["samples"])
    samples = len(set().union(*(truth.sample_of_row for truth in group)))
    if said != samples:
        row.columns["samples"] = "no"
        rows = len(truth.sample_of_row)
        kind = "overstated" if said > samples else "understated"
        row.wrong.append(f"{where}: samples {kind}: {said}, not {samples} (in {rows} rows)")
        return
    by_sample: dict[Any, Tensor] = {}
    for each_truth, each in zip(group, by_call, strict=True):
        for number, sample in enumerate(sorted({*each_truth.sample_of_row})):
            fires = each[:, number]
            by_sample[sample] = by_sample[sample] | fires if sample in by_sample else fires
    fired = torch.stack(list(by_sample.values())).sum(0)
    counted = torch.tensor(table["fired"].fillna(-1).to_numpy(dtype="int64"))
    if not torch.equal(fired, counted):
        row.columns["samples"] = "no"
        row.wrong.append(
            f"{where}: {int((fired != counted).sum())} of {len(fired)} units fired in another "
            "number of samples"
        )


# The ledger


def _compare_ledger(
    row: Row,
    built: Built,
    named: list[tuple[str, list[int]]],
    layouts: list[Layout | None],
) -> None:
    """Train under a Monitor, and compare each step with the dead set on the probe after it."""
    model = built.model
    dead: list[dict[str, Tensor]] = []
    lost: list[dict[str, Tensor]] = []  # of the dead, those that do not fire on batch statistics
    finite = True

    def silent_in(network: nn.Module) -> dict[str, Tensor]:
        nonlocal finite
        calls = oracle.run(network, built.batch, call).calls
        if len(calls) != len(layouts):
            return {}
        finite = finite and all(bool(each.after.isfinite().all()) for each in calls)
        return {
            site: ~torch.stack([_any_fired(calls[i], layouts[i]) for i in at]).any(0)
            for site, at in named
        }

    def look() -> None:
        dead.append(silent_in(model))
        on_batch = _on_batch_statistics(model)
        also = dead[-1] if on_batch is None else silent_in(on_batch)
        lost.append({site: units & also.get(site, units) for site, units in dead[-1].items()})

    alone = None
    if built.fit is None and built.subject is None:
        alone = copy.deepcopy(model)
        _fit(replace(built, model=alone), _adam(alone, built), lambda: None)
    optimizer = built.optimizer or _adam(model, built)
    look()
    with reludiag.Monitor(
        model if built.subject is None else built.subject, optimizer, probe=built.batch, every=1
    ) as monitor:
        if built.fit is not None:
            built.fit(look)
        else:
            _fit(built, optimizer, look)
    if alone is not None:
        pairs = zip(alone.parameters(), model.parameters(), strict=True)
        same = all(torch.equal(one.nan_to_num(), two.nan_to_num()) for one, two in pairs)
        row.columns["same training"] = "yes" if same else "no"
        if not same:
            row.wrong.append("a Monitor changes the training: the weights at its end differ")
    if not named:
        row.columns["ledger"] = "units not known"
        return
    if not finite:
        row.columns["ledger"] = "diverges"
        return
    if not all(dead):
        row.columns["ledger"] = "another path at some step"
        return
    diagnosis = monitor.diagnose()
    wrong: list[str] = []
    for site in dead[0]:
        both = [[each[site] for each in each_step] for each_step in (dead, lost)]
        row.events += _compare_lives(wrong, diagnosis, site, *both)
    missing = set(dead[0]) - set(diagnosis.sites["site"])
    if missing:
        wrong.append(f"sites that a Monitor lacks: {', '.join(sorted(missing)[:3])}")
    if wrong:
        row.columns["ledger"] = "no"
        row.wrong += [f"ledger: {each}" for each in wrong]
    else:
        row.columns["ledger"] = "yes"


def _adam(model: nn.Module, built: Built) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=built.learning_rate)


def _any_fired(each: Rectified, layout: Layout | None) -> Tensor:
    assert layout is not None
    return layout.by_unit(each.fires()).any(1)


def _fit(built: Built, optimizer: torch.optim.Optimizer, look: Callable[[], None]) -> None:
    built.model.train()
    torch.manual_seed(2)
    numpy.random.seed(2)  # some models mask by it
    loss_of = built.loss or squared
    for _ in range(built.steps):
        optimizer.zero_grad()
        model = built.model if built.subject is None else built.subject
        loss_of(call(model, built.batch)).backward()
        optimizer.step()
        look()


def squared(output: Any) -> Tensor:
    """Of every float in the output, the square of its distance from 1."""
    tensors = [leaf for leaf in _tensors(output) if leaf.is_floating_point() and leaf.requires_grad]
    return torch.stack([(leaf - 1).square().mean() for leaf in tensors]).sum()


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if hasattr(value, "values") and hasattr(value, "keys"):
        value = list(value.values())
    elif hasattr(value, "__dataclass_fields__"):
        value = list(vars(value).values())
    return [t for each in value for t in _tensors(each)] if isinstance(value, list | tuple) else []


def _on_batch_statistics(model: nn.Module) -> nn.Module | None:
    """A copy whose BatchNorm uses the statistics of the batch in eval mode, too; None without."""
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    if not any(isinstance(m, norms) and m.running_mean is not None for m in model.modules()):
        return None
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if isinstance(module, norms):
            module.running_mean = module.running_var = None
    return twin


def _compare_lives(
    wrong: list[str],
    diagnosis: reludiag.Diagnosis,
    site: str,
    dead: list[Tensor],
    lost: list[Tensor],
) -> int:
    """Per step and per unit; returns the number of deaths and revivals. A unit lives as long as it
    fires in eval mode or on batch statistics; `dead` are those that do not in eval mode.
    """
    states = torch.stack(lost)
    timeline = diagnosis.timeline
    assert timeline is not None
    own = timeline[timeline["site"] == site].set_index("step")
    died, revived = states[1:] & ~states[:-1], states[:-1] & ~states[1:]
    if list(own.index) != list(range(len(dead))):
        wrong.append(f"{site}: {len(own)} snapshots of {len(dead)} steps")
        return 0
    expected = {
        "dead": torch.stack(dead).sum(1),
        "died": torch.cat([torch.zeros(1, dtype=torch.long), died.sum(1)]),
        "revived": torch.cat([torch.zeros(1, dtype=torch.long), revived.sum(1)]),
    }
    for column, counts in expected.items():
        said = torch.tensor(own[column].to_numpy(dtype="int64"))
        if not torch.equal(said, counts):
            step = int((said != counts).nonzero()[0])
            wrong.append(f"{site}: {column} at step {step}: {int(said[step])}, not {counts[step]}")
            return 0
    units = diagnosis.units[diagnosis.units["site"] == site]
    for column, happened in (("died_step", died), ("revived_step", revived)):
        steps = torch.arange(1, len(dead))[:, None].expand_as(happened)
        last = torch.where(happened, steps, 0).amax(0)
        said = torch.tensor(units[column].fillna(0).to_numpy(dtype="int64"))
        if not torch.equal(said, last):
            wrong.append(f"{site}: {column} of {int((said != last).sum())} units")
    born = torch.tensor(units["born_dead"].fillna(False).to_numpy(dtype=bool))
    if not torch.equal(born, states[0]):
        wrong.append(f"{site}: born_dead of {int((born != states[0]).sum())} units")
    return int(died.sum() + revived.sum())
