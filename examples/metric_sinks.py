"""TensorBoard, Weights & Biases (offline), MLflow (a local folder): log numbers of each snapshot.

pip install "reludiag[tensorboard,wandb,mlflow]"
python examples/metric_sinks.py tensorboard
python examples/metric_sinks.py wandb
python examples/metric_sinks.py mlflow
"""

import os
import sys

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import reludiag


def train(on_snapshot) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.3)
    inputs, targets = torch.randn(512, 20), torch.randint(0, 4, (512,))
    with reludiag.Monitor(model, optimizer, every=10, probe=inputs, on_snapshot=on_snapshot):
        for _ in range(60):
            optimizer.zero_grad()
            cross_entropy(model(inputs), targets).backward()
            optimizer.step()


def with_tensorboard() -> None:
    from reludiag.integrations.tensorboard import TensorBoardSink

    train(TensorBoardSink("runs/reludiag"))


def with_wandb() -> None:
    import wandb

    from reludiag.integrations.wandb import WandbSink

    with wandb.init(project="reludiag", mode="offline") as run:
        train(WandbSink(run))


def with_mlflow() -> None:
    # MLflow uses a database by default; this allows a folder of files.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    import mlflow

    from reludiag.integrations.mlflow import MlflowSink

    mlflow.set_tracking_uri("file:./mlruns")
    with mlflow.start_run():
        train(MlflowSink())


if __name__ == "__main__":
    {"tensorboard": with_tensorboard, "wandb": with_wandb, "mlflow": with_mlflow}[sys.argv[1]]()
