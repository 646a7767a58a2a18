"""Loading: from what a user types to a model, its weights and batches of inputs."""

from reludiag.loading.checkpoints import Checkpoint, load_weights, read_checkpoint
from reludiag.loading.data import load_batches, noise_batches
from reludiag.loading.specs import load_model, parse_arguments

__all__ = [
    "Checkpoint",
    "load_batches",
    "load_model",
    "load_weights",
    "noise_batches",
    "parse_arguments",
    "read_checkpoint",
]
