"""The inputs of several models that have names, as one batch."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from torch import nn

from reludiag.errors import UsageError
from reludiag.loading.arguments import BatchReader
from reludiag.loading.batch_contents import samples_in


class ModelInputs(dict[str, dict[str, Any]]):
    """Name of a model -> the arguments of its `forward`: by name, or by number ("0", "1", ...).

    `batch` is what those of the first model were made from.
    """

    batch: Any = None

    @classmethod
    def of(cls, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], batch: Any) -> Self:
        """The inputs of one model alone."""
        inputs = cls({name: {**{str(i): value for i, value in enumerate(args)}, **kwargs}})
        inputs.batch = batch
        return inputs

    def calls(self) -> Iterator[tuple[str, list[Any], dict[str, Any]]]:
        """Of each model its name, and its arguments without and with a name."""
        for name, values in self.items():
            yield (
                name,
                [value for key, value in values.items() if key.isdigit()],
                {key: value for key, value in values.items() if not key.isdigit()},
            )


def read_inputs(
    models: Mapping[str, nn.Module], batches: Mapping[str, Sequence[Any]]
) -> list[ModelInputs]:
    """The n-th batches of all models as one, for each n. Read in eval mode, as a probe is run.

    Raises UsageError unless all models have as many batches, and the n-th ones as many rows; and
    the errors of `BatchReader`.
    """
    counts = {name: len(each) for name, each in batches.items()}
    if len(set(counts.values())) > 1:
        raise UsageError(f"probe={counts} was given, in batches; expected as many for each model")
    readers = {name: BatchReader(model, in_training=False) for name, model in models.items()}
    read = []
    for index in range(min(counts.values())):
        inputs = ModelInputs()
        for name, reader in readers.items():
            batch = batches[name][index]
            inputs |= ModelInputs.of(name, *reader.arguments(batch), batch)
        inputs.batch = next(iter(batches.values()))[index]
        rows = {name: samples_in(values.values()) for name, values in inputs.items()}
        if len(set(rows.values())) > 1:
            raise UsageError(
                f"batch {index} of the probe has {rows}, in rows; expected as many for each model: "
                "a row is one sample of all"
            )
        read.append(inputs)
    return read


def add_inputs(batches: list[ModelInputs], inputs: ModelInputs) -> None:
    """Add the inputs of one more model: to a batch with as many rows, if there is one."""
    rows = _rows(inputs)
    for batch in batches:
        if _rows(batch) == rows:
            batch.update(inputs)
            return
    batches.append(inputs)


def _rows(inputs: ModelInputs) -> int | None:
    """Of its first model."""
    return samples_in(next(iter(inputs.values())).values())
