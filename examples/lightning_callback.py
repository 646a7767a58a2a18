"""Lightning: a callback records the fit, and the dead fraction goes to the Trainer's logger.

pip install "reludiag[lightning]" && python examples/lightning_callback.py
"""

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from reludiag.integrations.lightning import ReludiagCallback


class Classifier(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 4))

    def training_step(self, batch, index):
        inputs, targets = batch
        return cross_entropy(self.layers(inputs), targets)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.3)


def main() -> None:
    pl.seed_everything(0)
    data = TensorDataset(torch.randn(2_048, 20), torch.randint(0, 4, (2_048,)))
    logger = CSVLogger("logs")  # or any other logger of Lightning
    callback = ReludiagCallback(
        path="lightning.reludiag",
        every=10,
        on_snapshot=lambda snapshot: logger.log_metrics(snapshot.scalars(), snapshot.step),
    )
    trainer = pl.Trainer(max_epochs=3, accelerator="cpu", logger=logger, callbacks=[callback])
    trainer.fit(Classifier(), DataLoader(data, batch_size=64, shuffle=True))
    print(callback.monitor.diagnose())


if __name__ == "__main__":
    main()
