"""Structure: what in the build of a network or in its input keeps units from training.

Each lint is a row of `LINTS`. It needs no death: what a forward, and where there is one a backward,
of one batch shows is enough. These are plain values: a recording is read without torch.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from reludiag.sites.consumers import only_returned
from reludiag.sites.site import Site

UNCENTRED = 1.0
"""An input whose mean is longer than its standard deviation (both as vectors over its channels)
is not centred: gamma > 1. Simon et al. 2026 (arXiv 2605.31518) find gamma to predict death at
initialization, with a rank correlation of 0.82 over 454 layers. Measured on the digits data, three
hidden layers of 64 units with PyTorch's defaults and 6 seeds: at gamma 0, 0.5, 1, 2, 3 and 5, 0.9,
1.1, 1.5, 4.5, 8 and 15 % of units are born dead, and 2.1, 2.9, 6, 11, 16 and 24 % are dead after
300 steps of Adam at 0.001.
"""
LARGE = 10.0
"""An input with a root mean square above this is large. Measured on the same network and data,
standardized and then multiplied, with 4 seeds: SGD at 0.05 with a momentum of 0.9 leaves at most
0.3 % of units dead after 300 steps up to a factor of 5, 39 % at 10 and 79 % at 30. Without momentum
(0.1) and with Adam (0.01) more die only from 30 to 100 on.
"""
FEWEST_ROWS = 16
"""Of an input, to judge it: gamma of a centred one is then 0.25, by chance."""
_NAMED = 3  # parameters


@dataclass(frozen=True)
class StructureNote:
    """One finding of a lint, with its figures in the sentence."""

    kind: str
    """Name of the lint."""
    place: str
    """The site, layer or parameter that it is about, the first of several."""
    value: float
    """The figure that it is judged by."""
    sentence: str
    advice: str
    """What to do, without a capital and without the full stop."""


@dataclass(frozen=True)
class InputScale:
    """The input of a layer that reads the model's input, of one batch.

    A channel with at most two values, such as a mask or one of one-hot codes, is left out.
    """

    layer: str
    """Path of the layer."""
    channels: int
    """Number of channels, or of features."""
    gamma: float
    """Norm of the mean / norm of the standard deviation, both vectors over the channels."""
    rms: float
    """Root mean square."""
    low: float
    high: float
    channel: int
    """The channel that is furthest from centred, in its own standard deviations."""
    mean: float
    """Of that channel."""
    std: float

    def to_json(self) -> dict[str, Any]:
        """The fields; those that are not finite as None."""
        return {key: _finite(value) for key, value in asdict(self).items()}

    @staticmethod
    def from_json(content: dict[str, Any]) -> "InputScale":
        """The reverse of `to_json`."""
        values: dict[str, Any] = {
            key: math.nan if value is None else value for key, value in content.items()
        }
        return InputScale(**values)


@dataclass(frozen=True)
class GradientFacts:
    """Which trainable parameters get no gradient. Those that are frozen are not meant to get one.

    In a backward of reludiag's own it is known whether a parameter is `unused` or `detached`; of a
    training step, where the loss is the user's, only that it is `missing`.
    """

    samples: int | None
    """In the backward; None in the first step of a training."""
    parameters: int
    """Number of trainable parameters (tensors)."""
    unused: tuple[str, ...] = ()
    """Paths of those that no operator of the forward read."""
    detached: tuple[str, ...] = ()
    """Those that were read, and on which no output depends by a gradient."""
    missing: tuple[str, ...] = ()
    """Those that had no gradient when the optimizer had made its first step."""
    zero: tuple[str, ...] = ()
    """Those whose gradient was exactly 0."""
    dead: tuple[Site, ...] = ()
    """Sites of which every unit was dead on the same samples, or at step 0."""


@dataclass(frozen=True)
class SiteFacts:
    """A site, and how many of its units are dead on how many samples."""

    site: Site
    samples: int
    dead: int


@dataclass(frozen=True)
class StructureFacts:
    """What the lints look at."""

    sites: Sequence[SiteFacts] = ()
    inputs: Sequence[InputScale] = ()
    gradients: GradientFacts | None = None


@dataclass(frozen=True)
class Lint:
    """One thing that may be wrong with the build of a network."""

    name: str
    holds: str
    """When it holds, in words, for the documentation."""
    find: Callable[[StructureFacts], Iterable[StructureNote]]


def structure_notes(facts: StructureFacts) -> tuple[StructureNote, ...]:
    """What the lints find, in their order."""
    return tuple(note for lint in LINTS for note in lint.find(facts))


def _rectified_output(facts: StructureFacts) -> Iterator[StructureNote]:
    for each in facts.sites:
        site = each.site
        if not site.rectifier.can_die or not site.units or not only_returned(site.consumers):
            continue
        units = _counted(site.units, "unit")
        below = "" if site.rectifier.signed else "It returns no value below 0, and where"
        dead = ""
        if each.dead and each.samples:
            dead = (
                f" {each.dead:,} of them {'is' if each.dead == 1 else 'are'} dead: on none of "
                f"{_counted(each.samples, 'sample')} does a gradient come back through "
                f"{'it' if each.dead == 1 else 'them'}."
            )
        yield StructureNote(
            "rectified_output",
            site.name,
            each.dead,
            f"The model returns the output of '{site.name}' ({site.rectifier.activation}, "
            f"{units}) unchanged. {below or 'Where'} a unit is silent on a sample, it has no "
            f"gradient there.{dead}",
            "if these are predictions, return the value before it, or use softplus where they "
            "must not be below 0; if they are features that another network reads, leave it",
        )


def _uncentred_input(facts: StructureFacts) -> Iterator[StructureNote]:
    for scale, layers in _by_input(facts.inputs):
        if scale.gamma > UNCENTRED:
            channel = "" if scale.channels == 1 else f"channel {scale.channel}: "
            yield StructureNote(
                "uncentred_input",
                scale.layer,
                scale.gamma,
                f"The input of {layers} is not centred: its mean is {scale.gamma:.3g} times as "
                f"long as its standard deviation ({channel}mean {scale.mean:.3g}, standard "
                f"deviation {scale.std:.3g}). So samples point the same way, and more units are "
                "silent on all of them, whatever the initialization.",
                "before the next training, subtract from the data the mean of each channel, and "
                "divide by its standard deviation",
            )


def _large_input(facts: StructureFacts) -> Iterator[StructureNote]:
    for scale, layers in _by_input(facts.inputs):
        if scale.rms > LARGE:
            yield StructureNote(
                "large_input",
                scale.layer,
                scale.rms,
                f"The input of {layers} is large: values from {scale.low:.4g} to "
                f"{scale.high:.4g}, with a root mean square of {scale.rms:.3g}. A step of "
                f"gradient descent moves what it feeds {_square(scale.rms)} times as far as with "
                "a mean square of 1, so units die at learning rates that are safe otherwise.",
                "before the next training, divide the data by its standard deviation (images from "
                "0 to 255: by 255, then centre them)",
            )


def _unused_parameters(facts: StructureFacts) -> Iterator[StructureNote]:
    yield from _of_parameters(
        "unused_parameter",
        facts.gradients,
        () if facts.gradients is None else facts.gradients.unused,
        "not used on this batch, in evaluation mode and in training mode",
        " No operator of the forward reads {them}.",
        "call the module that holds it, take it out of the model, or freeze it",
    )


def _detached_parameters(facts: StructureFacts) -> Iterator[StructureNote]:
    yield from _of_parameters(
        "detached_parameter",
        facts.gradients,
        () if facts.gradients is None else facts.gradients.detached,
        "used by the forward, but no gradient comes back from the outputs",
        "",
        "look between it and the output for detach(), no_grad(), .data or an index such as "
        "argmax; freeze it if that is meant",
    )


def _missing_gradients(facts: StructureFacts) -> Iterator[StructureNote]:
    yield from _of_parameters(
        "missing_gradient",
        facts.gradients,
        () if facts.gradients is None else facts.gradients.missing,
        "without a gradient in the first step",
        " The forward did not use {them}, or the loss does not depend on what it made.",
        "call the module that holds it, let the loss depend on it, or freeze it if that is meant",
    )


def _of_parameters(
    kind: str,
    gradients: GradientFacts | None,
    names: Sequence[str],
    state: str,
    why: str,
    advice: str,
) -> Iterator[StructureNote]:
    """A note on the parameters of these names, if there are any: `3 of 12 ... are <state>: ...`."""
    if gradients is None or not names:
        return
    is_one = len(names) == 1
    whole = _counted(gradients.parameters, "trainable parameter")
    yield StructureNote(
        kind,
        names[0],
        len(names),
        f"{len(names):,} of {whole} {'is' if is_one else 'are'} {state}: {_names(names)}."
        + why.format(them="it" if is_one else "them"),
        advice,
    )


def _zero_gradients(facts: StructureFacts) -> Iterator[StructureNote]:
    gradients = facts.gradients
    for site in () if gradients is None else gradients.dead:
        assert gradients is not None
        fed_by = [name for name in gradients.zero if name.rpartition(".")[0] == site.producer]
        if not fed_by or site.producer is None:
            continue
        is_one = site.units == 1
        if gradients.samples is None:
            were = "was" if is_one else "were"
            when, was = "at step 0", "was exactly 0 in the first step"
        else:
            were, was = "is" if is_one else "are", "is exactly 0"
            when = f"on {_counted(gradients.samples, 'sample')}"
        yield StructureNote(
            "zero_gradient",
            site.name,
            len(fed_by),
            f"{'The one unit' if is_one else f'All {site.units:,} units'} of '{site.name}' {were} "
            f"dead {when}, so no gradient comes back through {'it' if is_one else 'them'}: that of "
            f"{_names(fed_by)} {was}. In all, this is so for {len(gradients.zero):,} of "
            f"{_counted(gradients.parameters, 'parameter')}.",
            f"see how '{site.producer}' is initialized and what its input is: it cannot learn "
            "until a unit fires",
        )


LINTS = (
    Lint(
        "rectified_output",
        "the model returns the output of a rectifier unchanged (or a view, reshape or slice of "
        "it), perhaps inside a tuple, dictionary or object, and nothing else in the model reads it",
        _rectified_output,
    ),
    Lint(
        "uncentred_input",
        "the mean of the model's input is longer than its standard deviation "
        f"(gamma above {UNCENTRED:g}), where a linear layer or a convolution reads it unchanged; "
        "channels with at most two values, such as masks and one-hot codes, do not count",
        _uncentred_input,
    ),
    Lint(
        "large_input",
        f"the root mean square of the same input is above {LARGE:g}",
        _large_input,
    ),
    Lint(
        "unused_parameter",
        "no operator of the forward reads a parameter that requires a gradient",
        _unused_parameters,
    ),
    Lint(
        "detached_parameter",
        "the forward reads it, and no output depends on it by a gradient",
        _detached_parameters,
    ),
    Lint(
        "missing_gradient",
        "it has no gradient after the first step of a training with one optimizer",
        _missing_gradients,
    ),
    Lint(
        "zero_gradient",
        "the gradient of a layer is exactly 0, and all units of a site that it feeds are dead",
        _zero_gradients,
    ),
)
"""All lints, in the order in which their findings are listed."""


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _names(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    parts = [f"'{name}'" for name in names[:_NAMED]] + ([f"{more:,} more"] if more > 0 else [])
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _by_input(inputs: Sequence[InputScale]) -> list[tuple[InputScale, str]]:
    """Each different input, and the layers that read it, in words."""
    layers: dict[InputScale, list[str]] = {}
    for scale in inputs:
        layers.setdefault(replace(scale, layer=""), []).append(scale.layer)
    return [
        (replace(scale, layer=names[0]), _names(names) if names[0] else "the model")
        for scale, names in layers.items()
    ]


def _square(rms: float) -> str:
    return f"{rms * rms:,.0f}" if rms < 1e3 else f"{rms * rms:.1g}"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
