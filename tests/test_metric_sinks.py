"""Metric sinks: what each logger has on disk is what the snapshots said."""

import json
import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import reludiag
from reludiag import Snapshot
from reludiag.monitoring.snapshot import SiteSnapshot

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("ignore")]

Series = dict[str, list[tuple[int, float]]]

EVERY = 10


class Reused(nn.Module):
    """Its one ReLU is two sites, `relu` and `relu#1`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 16)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.second(self.relu(self.first(x))))


def train(sink: Any, after_step: Any = lambda step: None) -> Series:
    """A training in which units die; what its sink has been told, by name."""
    expected: Series = defaultdict(list)

    def note(snapshot: Snapshot) -> None:
        sink(snapshot)
        for name, value in snapshot.scalars().items():
            expected[name].append((snapshot.step, value))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Reused(), torch.randn(64, 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.9)
    with reludiag.Monitor(model, optimizer, every=EVERY, probe=x, on_snapshot=note):
        for step in range(35):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
            scheduler.step()
            after_step(step)
    assert set(expected) == {
        *(f"reludiag/{name}_fraction/{site}" for name in ("dead", "rare", "dormant")
          for site in ("relu", "relu#1")),
        "reludiag/dead", "reludiag/rare", "reludiag/dormant", "reludiag/deaths",
        "reludiag/revived", "reludiag/born_dead", "reludiag/learning_rate/0/0",
    }  # fmt: skip
    steps, deaths = zip(*expected["reludiag/deaths"], strict=True)
    assert steps == (0, 10, 20, 30, 35)
    assert sum(deaths) > 0
    rates = [value for _, value in expected["reludiag/learning_rate/0/0"]]
    assert rates == pytest.approx([0.3 * 0.9 ** (step - 1) for step in steps[1:]])
    return dict(expected)


def near(series: Series) -> dict[str, Any]:
    """TensorBoard keeps single precision."""
    return {
        name: [(s, pytest.approx(v, rel=1e-6)) for s, v in rows] for name, rows in series.items()
    }


@pytest.mark.parametrize("given", ["folder", "writer"])
def test_tensorboard_has_every_scalar_at_its_step(given: str, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from torch.utils.tensorboard import SummaryWriter

    from reludiag.integrations.tensorboard import TensorBoardSink

    sink = TensorBoardSink(tmp_path if given == "folder" else SummaryWriter(str(tmp_path)))
    expected = train(sink)
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()  # not closed: as after kill -9
    assert {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    } == near(expected)


def rows_of(folder: Path) -> list[dict[str, float]]:
    """The history rows of the one offline run in a folder."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows = []
    for data in records_in(next(folder.rglob("*.wandb")).read_bytes()):
        record = Record()
        record.ParseFromString(data)
        if record.HasField("history"):
            items = record.history.item
            rows.append({i.key or i.nested_key[0]: json.loads(i.value_json) for i in items})
    return rows


def records_in(file: bytes) -> Iterator[bytes]:
    """What is in a log of LevelDB's format, in which W&B keeps its runs."""
    place, record = 7, b""  # after W&B's own head
    while place + 7 <= len(file):
        if 32_768 - place % 32_768 < 7:  # a block's end is too short for another head
            place += 32_768 - place % 32_768
            continue
        _, length, kind = struct.unpack_from("<IHB", file, place)
        record += file[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in {1, 4}:  # whole, or the last part
            yield record
            record = b""


@pytest.mark.parametrize("own", ["numbered", "plain", "at the end", "none"])
def test_wandb_has_every_scalar_and_drops_no_row_of_the_users_own(
    own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    from reludiag.integrations.wandb import WandbSink

    def log(step: int) -> None:
        if own in {"numbered", "plain"} or (own == "at the end" and step == 34):
            run.log({"loss": float(step)}, step=step if own == "numbered" else None)

    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_X_SERVICE_WAIT", "300")  # seconds: the machine may be busy
    with wandb.init(mode="offline", dir=tmp_path, project="test") as run:
        sink = WandbSink(run)
        expected = train(sink, log)
    wandb.teardown()  # only now is all of it in the file
    rows = rows_of(tmp_path)
    losses = {"none": [], "at the end": [34.0]}.get(own, [float(step) for step in range(35)])
    assert [row["loss"] for row in rows if "loss" in row] == losses
    ours = [row for row in rows if "reludiag/step" in row]
    found = {
        name: [(int(row["reludiag/step"]), row[name]) for row in ours if name in row]
        for name in expected
    }
    assert found == near(expected)


def test_a_wandb_sink_without_a_run_says_what_to_do() -> None:
    pytest.importorskip("wandb")
    from reludiag.integrations.wandb import WandbSink

    with pytest.raises(reludiag.UsageError, match=r"pass one, or call wandb\.init\(\) first"):
        WandbSink()


@pytest.fixture
def mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    before = module.get_tracking_uri()
    module.set_tracking_uri((tmp_path / "mlruns").as_uri())
    yield module
    module.set_tracking_uri(before)


@pytest.mark.parametrize("active", [True, False])
def test_mlflow_has_every_scalar_at_its_step(active: bool, mlflow: Any) -> None:
    from reludiag.integrations.mlflow import MlflowSink

    with mlflow.start_run() as run:
        if active:
            expected = train(MlflowSink())
    if not active:
        expected = train(MlflowSink(run.info.run_id))
    client = mlflow.MlflowClient()
    names = client.get_run(run.info.run_id).data.metrics
    found = {
        name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
        for name in names
    }
    assert found == {name.replace("#", " "): rows for name, rows in expected.items()}


@pytest.mark.parametrize("name", ["../../up", "/root", "a//b", "<script>", "=1+1", "\n", "x" * 900])
def test_mlflow_takes_every_name_of_a_site(name: str, mlflow: Any, tmp_path: Path) -> None:
    from reludiag.integrations.mlflow import MlflowSink

    site = SiteSnapshot(name, 4, 8, 1, (), 0, 0, None)
    with mlflow.start_run() as run:
        MlflowSink()(Snapshot(1, 0, (site,), {}, None))
    metrics = mlflow.MlflowClient().get_run(run.info.run_id).data.metrics
    fractions = {k: v for k, v in metrics.items() if k.startswith("reludiag/dead_fraction/")}
    assert list(fractions.values()) == [0.25]
