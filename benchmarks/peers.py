"""What other tools report on models with planted dead units: the table of docs/comparison.md.

    pip install torchlens torchdiag dead-relu-viz
    pip install monitorch neural-observatory torchmortem torch-audit
    python benchmarks/peers.py

Each tool gets the same eight models and the same data, through its public interface and with its
defaults. If a tool has a setting for the unit axis, the last axis is set for the encoder. A tool
for one forward pass gets the batches joined into one; a tool for training runs gets one step of
plain SGD with a learning rate of 0 on each batch, which changes nothing. The result is shown in
the tool's own numbers; "silent" means that it reported nothing. A tool that is not installed is
left out. One process, one seed, CPU.
"""

import contextlib
import datetime
import importlib.metadata
import io
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

import reludiag

DEEP = -30.0
"""A bias that silences a unit on all of these data, and is not absurdly large."""
MARK = 20.0
"""The first feature of a sample in which one more unit shall fire."""


@dataclass(frozen=True)
class Case:
    """A model with planted dead units, and the right answer for it."""

    name: str
    truth: str
    model: nn.Module
    batches: Sequence[Tensor]
    units_last: bool = False
    """Whether units are on the last axis instead of the second."""


class Functional(nn.Module):
    """A ReLU that is a function."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(32, 64), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.relu(self.fc1(x)))


class Reused(nn.Module):
    """One ReLU module, in place, behind two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 3)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv2(self.relu(self.conv1(x))))
        return self.head(x.mean((2, 3)))


def cases() -> list[Case]:
    """The eight cases, the same at each call."""
    torch.manual_seed(0)
    flat = list(torch.randn(40, 250, 32))
    images = list(torch.randn(8, 32, 3, 12, 12))
    texts = list(torch.randn(8, 16, 9, 32))
    plain, functional_model = mlp(), Functional()
    silence(plain[0], 5)
    silence(functional_model.fc1, 5)
    conv = nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1_600, 32),
        nn.ReLU(),
        nn.Linear(32, 4),
    )
    silence(conv[0], 4)
    reused = Reused()
    silence(reused.conv1, 2)
    silence(reused.conv2, 3)
    encoder = nn.TransformerEncoderLayer(32, 4, 128, 0.0, batch_first=True)
    silence(encoder.linear1, 9)
    seldom, late, diverged = mlp(), mlp(), mlp()
    silence(seldom[0], 2)
    marked = [batch.clone() for batch in flat]
    fires_on(seldom[0], 1, marked, (3, 30))
    silence(late[0], 2)
    turned = [batch.clone() for batch in flat]
    fires_on(late[0], 1, turned, tuple(range(20, 40)))
    with torch.no_grad():
        diverged[0].weight.fill_(float("nan"))
    return [
        Case("MLP", "5 of 64", plain, flat),
        Case("CNN", "4 of 16 channels", conv, images),
        Case("F.relu", "5 of 64", functional_model, flat),
        Case("one ReLU, called twice", "2 of 12, 3 of 12", reused, images),
        Case("encoder layer", "9 of 128", encoder, texts, units_last=True),
        Case("one more fires twice in 10,000", "1 of 64", seldom, marked),
        Case("one more is silent at first", "1 of 64", late, turned),
        Case("weights are NaN", "none: diverged", diverged, flat),
    ]


def mlp() -> nn.Sequential:
    """Two hidden layers; the second has no dead unit."""
    return nn.Sequential(
        nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4)
    )


def silence(layer: nn.Module, units: int) -> None:
    """Make the first units of a layer dead."""
    with torch.no_grad():
        layer.bias[:units] = DEEP  # type: ignore[index,operator]


def fires_on(layer: nn.Linear, unit: int, batches: list[Tensor], where: Sequence[int]) -> None:
    """Let a unit fire on the first sample of these batches, and on no other."""
    with torch.no_grad():
        layer.weight[unit], layer.bias[unit] = 0.0, -MARK / 2
        layer.weight[unit, 0] = 1.0
    for at in where:
        batches[at][0, 0] = MARK


# What each tool reports, through its public interface


def by_reludiag(case: Case) -> str:
    sites = reludiag.scan(case.model, case.batches).sites
    if sites["nonfinite"].any():
        return "nonfinite"
    dead = sites[sites["dead"] > 0]
    rare = int(sites["rare"].sum())
    said = ", ".join(f"{row.dead}/{row.units}" for row in dead.itertuples()) or "silent"
    return said + (f"; {rare} rare" if rare else "")


def by_torchdiag(case: Case) -> str:
    import torchdiag

    found = torchdiag.check_dead_neurons(case.model, torch.cat(list(case.batches)))
    return ", ".join(f"{f['dead']}/{f['total']}" for f in found.values() if f["dead"]) or "silent"


def by_dead_relu_viz(case: Case) -> str:
    from dead_relu_viz import visualization

    data = [(batch, torch.zeros(len(batch))) for batch in case.batches]
    text = printed(lambda: visualization(case.model, data, with_activation=True, device="cpu"))
    found = re.findall(r"^  (\S+) ->  (\d+) dead \((\S+)\)", text, re.MULTILINE)
    return ", ".join(f"{name}: {dead} ({share})" for name, dead, share in found) or "silent"


def by_torchmortem(case: Case) -> str:
    from torchmortem import Autopsy

    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.0)
    with Autopsy(case.model, optimizer=optimizer) as autopsy:
        for loss in steps(case, optimizer):
            autopsy.step(loss=loss)
    report = autopsy.get_report()
    found = [f for f in report.findings if f.category == "dead_units"]
    return (
        ", ".join(
            f"{f.title.removeprefix('Dead units in ')}: {f.evidence['mean_dead_frac']:.0%}"
            for f in found
        )
        or "silent"
    )


def by_neural_observatory(case: Case) -> str:
    from neural_observatory import Observatory

    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.0)
    with Observatory(case.model) as observatory:
        for _ in steps(case, optimizer):
            observatory.step()
        found = [r for r in observatory.report().results if r.analyzer_name == "dead_neurons"]
    return (
        ", ".join(
            f"{r.layer_name}: {r.metrics['dead_neurons']:.0f}/{r.metrics['total_neurons']:.0f}"
            for r in found
            if r.metrics.get("dead_neurons")
        )
        or "silent"
    )


def by_torch_audit(case: Case) -> str:
    from torch_audit import Auditor

    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.0)
    with Auditor(case.model, optimizer=optimizer, every_n_steps=1) as auditor:
        for batch in case.batches:
            optimizer.zero_grad()
            auditor.backward(auditor.forward(batch).square().mean())
            auditor.optimizer_step()
    found = {f.rule_id: f.message for f in auditor.finish().findings}
    return found.get("TA105", "silent") + ("; TA100: NaN" if "TA100" in found else "")


def by_monitorch(case: Case) -> str:
    from monitorch.inspector import PyTorchInspector
    from monitorch.lens import OutputActivation

    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.0)

    def run() -> None:
        inspector = PyTorchInspector(
            lenses=[OutputActivation(channel_last=case.units_last)],
            visualizer="print",
            module=case.model,
        )
        list(steps(case, optimizer))
        inspector.tick_epoch()

    text = printed(run)
    rates = re.findall(r"(\S+) - prbs: \{[^}]*?death_rate'?: ?([\d.]+)", text)
    # The last line repeats the worst of the lines above.
    found = [(name, float(rate)) for name, rate in rates if name != "Activations" and float(rate)]
    return ", ".join(f"{name}: {rate:.3f}" for name, rate in found) or "silent"


def by_torchlens(case: Case) -> str:
    import torchlens

    trace = torchlens.trace(case.model, torch.cat(list(case.batches)))
    found = torchlens.debug.dead_neurons(trace, dim=2 if case.units_last else 1)
    found = found[found["op"].str.contains("relu") & (found["dead_count"] > 0)]
    return (
        ", ".join(f"{int(row.dead_count)}/{int(row.total_units)}" for row in found.itertuples())
        or "silent"
    )


ONE_PASS: dict[str, Callable[[Case], str]] = {
    "reludiag": by_reludiag,
    "torchlens": by_torchlens,
    "torchdiag": by_torchdiag,
    "dead-relu-viz": by_dead_relu_viz,
}
IN_TRAINING: dict[str, Callable[[Case], str]] = {
    "monitorch": by_monitorch,
    "neural-observatory": by_neural_observatory,
    "torchmortem": by_torchmortem,
    "torch-audit": by_torch_audit,
}


def steps(case: Case, optimizer: torch.optim.Optimizer) -> Iterator[float]:
    """One step per batch, which changes nothing; yields the losses."""
    case.model.train()
    for batch in case.batches:
        optimizer.zero_grad()
        loss = case.model(batch).square().mean()
        loss.backward()
        optimizer.step()
        yield loss.item()


def printed(call: Callable[[], object]) -> str:
    """What `call` writes to stdout."""
    written = io.StringIO()
    with contextlib.redirect_stdout(written):
        call()
    return written.getvalue()


def asked(tool: Callable[[Case], str], case: Case) -> str:
    """What a tool reports, or the name of the exception that it raises."""
    torch.manual_seed(0)
    case.model.eval()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return tool(case)
    except Exception as error:
        return f"raises {type(error).__name__}"


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, Python {sys.version.split()[0]}, {datetime.date.today()}")
    for tools in (ONE_PASS, IN_TRAINING):
        print(table({name: version(name) for name in tools if version(name)}, tools))


def table(installed: Mapping[str, str], tools: Mapping[str, Callable[[Case], str]]) -> str:
    """What these tools report on each case, in Markdown."""
    columns = {name: [asked(tools[name], case) for case in cases()] for name in installed}
    heads = [f"{name} {version}" for name, version in installed.items()]
    lines = ["", f"| planted | dead | {' | '.join(heads)} |", "|---" * (len(heads) + 2) + "|"]
    for at, case in enumerate(cases()):
        said = " | ".join(columns[name][at] for name in installed)
        lines.append(f"| {case.name} | {case.truth} | {said} |")
    return "\n".join(lines)


def version(name: str) -> str:
    """Its version; empty if it is not installed."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return reludiag.__version__ if name == "reludiag" else importlib.metadata.version(name)
    return ""


if __name__ == "__main__":
    main()
