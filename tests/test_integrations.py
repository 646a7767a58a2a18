"""Integrations, each against the real library: the clock, what is kept apart, and what is left.

In all of them a step takes two micro-batches of 8, and the learning rate halves at each step.
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import reludiag
from reludiag import Diagnosis
from tests.architectures import declare_missing_operators

declare_missing_operators()  # which the frameworks import torchvision for

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("ignore")]

STEPS = 5
RATES = [0.1 * 0.5**step for step in range(STEPS)]


class StopError(Exception):
    """What a training raises here."""


def layers() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    with torch.no_grad():
        model[0].bias[:2] = -100.0  # born dead
    return model


def examples(count: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(
        torch.randn(count, 6, generator=generator),
        torch.randint(0, 3, (count,), generator=generator),
    )


def batches(count: int) -> list[tuple[Tensor, ...]]:
    return list(DataLoader(examples(8 * count), batch_size=8))


def assert_recorded_rightly(diagnosis: Diagnosis, accumulated: int = 2) -> None:
    timeline = diagnosis.timeline
    assert timeline["step"].tolist() == list(range(STEPS + 1))
    assert timeline["learning_rate"].tolist()[1:] == pytest.approx(RATES)
    assert pd.isna(timeline["learning_rate"].iloc[0])
    assert timeline["samples"].tolist()[1:] == [8 * accumulated] * STEPS
    assert timeline["samples"].iloc[0] > 0
    assert diagnosis.sites["born_dead"].tolist() == [2]
    assert diagnosis.head.status == "complete"


def assert_left_readable(path: Path, status: str) -> None:
    diagnosis = reludiag.load(path)
    assert diagnosis.timeline["step"].tolist() == [0, 1, 2]
    assert diagnosis.head.status == status


def no_hooks(model: nn.Module) -> bool:
    return not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# Lightning, under both of its names


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def lightning(request: pytest.FixtureRequest) -> ModuleType:
    module: ModuleType = pytest.importorskip(request.param)
    return module


def lit(lightning: ModuleType, fail_at: int | None = None) -> Any:
    class Lit(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers()

        def training_step(self, batch: Any, index: int) -> Tensor:
            if index == fail_at:
                raise StopError
            inputs, targets = batch
            loss = cross_entropy(self.layers(inputs), targets)
            self.log("loss", loss)
            return loss

        def validation_step(self, batch: Any, index: int) -> None:
            self.layers(batch[0])
            self.log("seen", 1.0)

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    return Lit()


def fit(lightning: ModuleType, module: Any, callback: Any, accumulated: int) -> None:
    trainer = lightning.Trainer(
        max_epochs=1, accumulate_grad_batches=accumulated, callbacks=[callback],
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=False, val_check_interval=2,
    )  # fmt: skip
    validation = DataLoader(examples(24), batch_size=24)
    trainer.fit(module, DataLoader(examples(8 * accumulated * STEPS), batch_size=8), validation)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_lightning_is_recorded_rightly(lightning: ModuleType, accumulated: int) -> None:
    from reludiag.integrations.lightning import ReludiagCallback

    callback = ReludiagCallback(every=1, stats_every=1)
    module = lit(lightning)
    fit(lightning, module, callback, accumulated)
    diagnosis = callback.monitor.diagnose()
    assert_recorded_rightly(diagnosis, accumulated)
    assert diagnosis.sites["site"].tolist() == ["layers.1"]
    validations = STEPS * accumulated // 2
    assert f"Left out: {validations} passes in evaluation mode." in diagnosis.head.notes
    assert no_hooks(module)
    metrics = diagnosis.metrics.set_index("metric")
    assert metrics.loc["loss", "count"].sum() == STEPS * accumulated
    assert metrics.loc["seen", "last"].tolist() == [1.0] * len(metrics.loc["seen"])


def test_a_lightning_fit_that_raises_leaves_its_recording(
    lightning: ModuleType, tmp_path: Path
) -> None:
    from reludiag.integrations.lightning import ReludiagCallback

    callback = ReludiagCallback(path=tmp_path / "run.reludiag", every=1)
    module = lit(lightning, fail_at=4)
    with pytest.raises(StopError):
        fit(lightning, module, callback, 2)
    assert_left_readable(tmp_path / "run.reludiag", "interrupted by StopError")
    assert no_hooks(module)


def test_a_lightning_fit_from_a_checkpoint_goes_on_with_its_recording(
    lightning: ModuleType, tmp_path: Path
) -> None:
    from reludiag.integrations.lightning import ReludiagCallback

    settings = {
        "accelerator": "cpu", "logger": False, "enable_model_summary": False,
        "enable_progress_bar": False, "default_root_dir": tmp_path, "limit_val_batches": 0,
    }  # fmt: skip
    data, run = DataLoader(examples(24), batch_size=8), tmp_path / "run.reludiag"
    callback = ReludiagCallback(path=run, every=2, stats_every=1)
    trainer = lightning.Trainer(max_epochs=1, callbacks=[callback], **settings)
    trainer.fit(lit(lightning), data)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    again = ReludiagCallback(path=run, every=2, stats_every=1)
    trainer = lightning.Trainer(max_epochs=3, callbacks=[again], **settings)
    trainer.fit(lit(lightning), data, ckpt_path=tmp_path / "one.ckpt")
    diagnosis = reludiag.load(run)
    assert diagnosis.timeline["step"].tolist() == [0, 2, 3, 4, 6, 8, 9]
    assert diagnosis.sites["born_dead"].tolist() == [2]
    assert "The run was resumed at step 3." in diagnosis.head.notes


def test_too_many_deaths_stop_a_lightning_fit(lightning: ModuleType) -> None:
    from reludiag.integrations.lightning import ReludiagCallback

    callback = ReludiagCallback(every=2, raise_over="10%")
    with pytest.raises(reludiag.TooManyDeadError):
        fit(lightning, lit(lightning), callback, 2)
    diagnosis = callback.monitor.diagnose()
    assert diagnosis.timeline["step"].tolist() == [0, 2]
    assert diagnosis.head.status == "interrupted by TooManyDeadError"


def test_the_older_name_of_lightning_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    older = pytest.importorskip("pytorch_lightning")
    for name in ("lightning", "lightning.pytorch"):
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    monkeypatch.delitem(sys.modules, "reludiag.integrations.lightning", raising=False)
    module = importlib.import_module("reludiag.integrations.lightning")
    monkeypatch.delitem(sys.modules, "reludiag.integrations.lightning")
    assert issubclass(module.ReludiagCallback, older.Callback)


# Hugging Face Transformers


class Scored(nn.Module):
    """A model as the Trainer wants them: of keywords, and with its loss first."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.layers = layers()
        self._left = -1 if fail_at is None else fail_at

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if self._left == 0:
            raise StopError
        self._left -= 1
        scores = self.layers(inputs)
        return {"loss": cross_entropy(scores, labels), "logits": scores}


def train_with_transformers(
    model: nn.Module, callback: Any, folder: Path, resume: bool = False, **more: Any
) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = [{"inputs": x, "labels": y} for x, y in examples(16 * STEPS)]
    transformers.Trainer(
        model,
        transformers.TrainingArguments(
            str(folder), num_train_epochs=1, per_device_train_batch_size=8,
            gradient_accumulation_steps=2, eval_strategy="steps", eval_steps=2, report_to=[],
            use_cpu=True, disable_tqdm=True, per_device_eval_batch_size=24,
            **{"save_strategy": "no", **more},
        ),
        train_dataset=data,
        eval_dataset=data[:24],
        optimizers=(optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)),
        callbacks=[callback],
    ).train(resume_from_checkpoint=resume)  # fmt: skip


def test_transformers_is_recorded_rightly(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from reludiag.integrations.transformers import ReludiagCallback

    callback = ReludiagCallback(every=1, stats_every=1)
    model = Scored()
    train_with_transformers(model, callback, tmp_path)
    diagnosis = callback.monitor.diagnose()
    assert_recorded_rightly(diagnosis)
    assert "Left out: 3 passes in evaluation mode." in diagnosis.head.notes
    assert no_hooks(model)
    metrics = diagnosis.metrics.set_index("metric")
    assert metrics.loc[["eval_loss"], "step"].tolist() == [2, 4, 5]
    assert (metrics["last"] > 0).any()


def test_a_transformers_training_from_a_checkpoint_goes_on_with_its_recording(
    tmp_path: Path,
) -> None:
    pytest.importorskip("transformers")
    from reludiag.integrations.transformers import ReludiagCallback

    settings = {"path": tmp_path / "run.reludiag", "every": 1, "stats_every": 1}
    saving = {"save_strategy": "steps", "save_steps": 2}
    with pytest.raises(StopError):  # in step 4
        train_with_transformers(Scored(8), ReludiagCallback(**settings), tmp_path, **saving)
    callback = ReludiagCallback(**settings)
    train_with_transformers(Scored(), callback, tmp_path, resume=True, **saving)
    diagnosis = callback.monitor.diagnose()
    assert diagnosis.timeline["step"].tolist() == list(range(STEPS + 1))
    assert diagnosis.sites["born_dead"].tolist() == [2]
    assert any(note.startswith("The run was resumed at step 2.") for note in diagnosis.head.notes)


def test_a_transformers_training_that_raises_leaves_its_recording(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from reludiag.integrations.transformers import ReludiagCallback

    run = tmp_path / "run.reludiag"
    callback = ReludiagCallback(path=run, every=1)
    with pytest.raises(StopError):
        train_with_transformers(Scored(fail_at=5), callback, tmp_path)
    assert_left_readable(run, "running")  # the Trainer tells no callback of it


def test_a_transformers_callback_can_be_told_of_an_exception(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from reludiag.integrations.transformers import ReludiagCallback

    run = tmp_path / "run.reludiag"
    model = Scored(fail_at=5)
    with pytest.raises(StopError), ReludiagCallback(path=run, every=1) as callback:
        train_with_transformers(model, callback, tmp_path)
    assert_left_readable(run, "interrupted by StopError")
    assert no_hooks(model)


# Ignite


def ignite_trainer(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    engine = pytest.importorskip("ignite.engine")
    return engine.create_supervised_trainer(
        model, optimizer, nn.CrossEntropyLoss(), gradient_accumulation_steps=2
    )


@pytest.mark.parametrize("scheduler_first", [True, False])
def test_ignite_is_recorded_rightly(scheduler_first: bool) -> None:
    engine = pytest.importorskip("ignite.engine")
    from reludiag.integrations.ignite import ReludiagHandler

    model = layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    trainer, validation = ignite_trainer(model, optimizer), torch.randn(24, 6)
    evaluator = engine.create_supervised_evaluator(model)
    handler = ReludiagHandler(model, optimizer, every=1, stats_every=1)
    metrics = pytest.importorskip("ignite.metrics")
    metrics.RunningAverage(output_transform=lambda loss: loss).attach(trainer, "loss")

    def decay() -> None:
        if trainer.state.iteration % 2 == 0:
            scheduler.step()
            evaluator.run([(validation, torch.zeros(24))])

    attach = [
        lambda: trainer.add_event_handler(engine.Events.ITERATION_COMPLETED, decay),
        lambda: handler.attach(trainer),
    ]
    for each in attach if scheduler_first else reversed(attach):
        each()
    trainer.run(batches(2 * STEPS))
    diagnosis = handler.monitor.diagnose()
    assert_recorded_rightly(diagnosis)
    assert "Left out: 5 passes in evaluation mode." in diagnosis.head.notes
    assert no_hooks(model)
    assert set(diagnosis.metrics["metric"]) == {"loss"}
    assert diagnosis.metrics["count"].sum() == 2 * STEPS


def test_what_an_ignite_run_raised_is_raised_and_its_recording_is_left(tmp_path: Path) -> None:
    engine = pytest.importorskip("ignite.engine")
    from reludiag.integrations.ignite import ReludiagHandler

    model = layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = ignite_trainer(model, optimizer)
    ReludiagHandler(model, optimizer, path=tmp_path / "run.reludiag", every=1).attach(trainer)

    @trainer.on(engine.Events.ITERATION_STARTED(once=5))
    def fail() -> None:
        raise StopError

    with pytest.raises(StopError):
        trainer.run(batches(2 * STEPS))
    assert_left_readable(tmp_path / "run.reludiag", "interrupted by StopError")
    assert no_hooks(model)


@pytest.mark.parametrize("skip_completed", [True, False])
def test_an_ignite_run_that_is_terminated_is_complete(skip_completed: bool) -> None:
    engine = pytest.importorskip("ignite.engine")
    from reludiag.integrations.ignite import ReludiagHandler

    model = layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = ignite_trainer(model, optimizer)
    handler = ReludiagHandler(model, optimizer, every=1)
    handler.attach(trainer)
    trainer.add_event_handler(
        engine.Events.ITERATION_COMPLETED(once=4), lambda: trainer.terminate(skip_completed)
    )
    trainer.run(batches(2 * STEPS))
    diagnosis = handler.monitor.diagnose()
    assert diagnosis.head.status == "complete"
    assert diagnosis.timeline["step"].tolist() == [0, 1, 2]


# Accelerate: a Monitor of what `prepare` gave back


def accelerated(path: Path | None = None, fail_at: int | None = None) -> reludiag.Monitor:
    accelerate = pytest.importorskip("accelerate")
    model = layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, optimizer, loader, scheduler = accelerator.prepare(
        model,
        optimizer,
        DataLoader(examples(16 * STEPS), batch_size=8),
        torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5),
    )
    with reludiag.Monitor(model, optimizer, path=path, every=1, stats_every=1) as monitor:
        for index, (inputs, targets) in enumerate(loader):
            if index == fail_at:
                raise StopError
            with accelerator.accumulate(model):
                accelerator.backward(cross_entropy(model(inputs), targets))
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
    return monitor


def test_accelerate_is_recorded_rightly() -> None:
    assert_recorded_rightly(accelerated().diagnose())


def test_an_accelerate_loop_that_raises_leaves_its_recording(tmp_path: Path) -> None:
    with pytest.raises(StopError):
        accelerated(tmp_path / "run.reludiag", fail_at=4)
    assert_left_readable(tmp_path / "run.reludiag", "interrupted by StopError")


# All


@pytest.mark.parametrize(
    ("module", "library", "extra"),
    [
        ("lightning", ["lightning", "lightning.pytorch", "pytorch_lightning"], "lightning"),
        ("transformers", ["transformers"], "transformers"),
        ("ignite", ["ignite", "ignite.engine"], "ignite"),
        ("tensorboard", ["torch.utils.tensorboard"], "tensorboard"),
        ("wandb", ["wandb"], "wandb"),
        ("mlflow", ["mlflow"], "mlflow"),
    ],
)
def test_a_missing_library_is_told_with_its_extra(
    module: str, library: list[str], extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, f"reludiag.integrations.{module}", raising=False)
    for name in library:
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    with pytest.raises(reludiag.ReludiagError, match=rf'pip install "reludiag\[{extra}\]"$'):
        importlib.import_module(f"reludiag.integrations.{module}")


def test_every_integration_is_at_most_60_lines() -> None:
    for path in Path(reludiag.__file__).with_name("integrations").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 60, path.name
