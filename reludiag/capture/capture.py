"""Capture: sees every call of a model's rectifiers once, names its site, hands over the tensor.

Forward hooks see rectifier modules. A function mode, entered only for models that call rectifiers
as functions, sees the others. Hooks on modules with weights remember which of them ran last; this
distinguishes the calls of a reused rectifier. The first forward pass is also followed operator by
operator, to find the unit axes and the rectifiers that cannot be read.

What changes while a model is watched is in five places, each with a table of its states:

| what | states | owner |
|---|---|---|
| the hooks on the model | detached, watching, resting | `Capture` (below), `Idle` |
| the forward pass of a thread | none, watched, unwatched | `PassTracker`, in a `ForwardPass` |
| what was followed, and which calls wait for it | nothing, one sample, whole | `Following` |
| the calls that a pass is expected to make | | `CallReader`, in a `ForwardPass` |
| the sites | only grow | `SiteRegistry.add` |

`MissedCalls` and `SampleCounter` also change, but values are only added to them. Of the first only
`traced` affects what happens: a pass of compiled code is not followed, and its capture does not
rest.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

from torch import Tensor, nn

from reludiag.capture.attachment import Attachment
from reludiag.capture.call_reader import CallReader, Receiver
from reludiag.capture.calls import UnitView
from reludiag.capture.compiled import forget_compiled
from reludiag.capture.following import Following
from reludiag.capture.forward_pass import PerThread
from reludiag.capture.idle import Idle, RestedCall
from reludiag.capture.missed import MissedCalls
from reludiag.capture.named_models import TrainingRule, roots_of
from reludiag.capture.pass_tracker import PassTracker
from reludiag.capture.sample_counter import SampleCounter
from reludiag.capture.site_registry import LeftOut, SiteRegistry
from reludiag.capture.watched import Watch, watched_modules
from reludiag.loading.batch_contents import rows_in
from reludiag.sites.axes import UnitAxes
from reludiag.sites.functional import functional_calls
from reludiag.sites.guard import Guard
from reludiag.sites.products import Product
from reludiag.sites.rectifiers import rectifier_modules
from reludiag.sites.registration import visible_modules
from reludiag.sites.selections import SelectionTable
from reludiag.sites.site import Rectifier, Site
from reludiag.sites.watching import Watching


class Capture:
    """Watches a model between `attach()` and `detach()`. A site becomes known at its first call.

    | state | hooks on the model | left by |
    |---|---|---|
    | detached | none | `attach` |
    | watching | all | `rest`, if nothing can be missed; `detach` |
    | resting | one, that counts forwards | `wake` |

    A pass is one call of `run`. With `in_loop` the model is called by a training loop, and hooks
    mark the passes: the loop may call a part of the model alone, as in `model.encoder(x)`, and may
    copy, save or compile the model. Passes in eval mode without gradients are then counted but not
    watched, so that they run unchanged. Of `NamedModels`, those of models that no optimizer trains
    are watched all the same, and count as passes in training.

    `wants_pre_activation(training, site)` says whether the receiver will read the pre-activation of
    a call, which is expected to be of that site (None: of one never met). If the call overwrites
    it, it is passed to `note_pre_activation(site, pre_activation, view)` before the call; without
    that callback it is copied. `unit_axes` maps names or modules of sites to the axis of their
    units; it overrides the axis that was found. `finds_consumers` says whether sites have
    `consumers`. `merge_calls` says whether calls of one rectifier that read the product of the same
    weights are one site, as in a loop. `guard` keeps reludiag's errors away from the model. `watch`
    are modules whose output is a site as well: its name -> path.
    """

    def __init__(
        self,
        model: nn.Module,
        receive: Receiver,
        wants_pre_activation: Callable[[bool, int | None], bool] = lambda training, site: False,
        note_pre_activation: Callable[[int, Tensor, UnitView], None] | None = None,
        unit_axes: UnitAxes | None = None,
        in_loop: bool = False,
        finds_consumers: bool = False,
        merge_calls: bool = True,
        guard: Guard | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.model = model
        self.guard = guard = guard or Guard()
        self.missed = MissedCalls()
        paths: dict[nn.Module, str] = {}
        for path, module in visible_modules(model):
            paths.setdefault(module, path)
        self._functions = functions = functional_calls(model)
        self._paths = paths
        self._rectifiers = {module: rectifier for _, module, rectifier in rectifier_modules(model)}
        names = watched_modules(model, watch or {})
        self._watched = {
            module: Rectifier(type(module).__name__, can_die=True, signed=True, is_asked_for=True)
            for module in names
            if module not in self._rectifiers
        }
        self._unit_axes = frozenset(unit_axes or {})
        self._registry = SiteRegistry(model, paths, dict(unit_axes or {}), merge_calls, names)
        self._following = Following(len(roots_of(model)) if in_loop else 1)
        self._counter = SampleCounter()
        self._idle = Idle(
            model,
            self._rectifiers.keys() | self._watched.keys(),
            functions,
            self._registry,
            self._counter,
            self.missed,
            guard,
        )
        threads = PerThread(set())
        rule = TrainingRule(model)
        reader = CallReader(
            receive,
            wants_pre_activation,
            note_pre_activation,
            paths,
            self._rectifiers,
            self._watched,
            self._registry,
            threads,
            self._counter,
            self._following,
            self._idle,
            self.missed,
            rule,
        )
        self._passes = PassTracker(
            model,
            self._registry,
            threads,
            self._counter,
            self._following,
            self._idle,
            self.missed,
            bool(functions),
            finds_consumers,
            not in_loop,
            reader.read_function,
            reader.note_operator,
            Watching(reader, guard),
            guard,
            rule,
        )
        self._attachment = Attachment(
            model,
            self._rectifiers,
            self._watched,
            self._passes,
            reader,
            self.missed.note_traced if in_loop else None,
            guard,
        )

    # What is known of the model

    @property
    def sites(self) -> list[Site]:
        """In the order of their first calls. A name may change when a new path is taken."""
        return self._registry.sites

    @property
    def selections(self) -> SelectionTable:
        """Which sites take all that goes on of another, by their places in `sites`."""
        return self._registry.selections

    def uncalled(self) -> list[Site]:
        """A site for each rectifier module that was never called."""
        return self._registry.uncalled({**self._rectifiers, **self._watched})

    def uncalled_functions(self) -> list[tuple[str, str]]:
        """(path of the owner, operator) of functions in the source code that were never called."""
        written = functional_calls(self.model, certain=True)
        return sorted(written.keys() - self._registry.functions().keys())

    def partly_read(self) -> list[str]:
        """Names of the sites of layers of which only the last of several can be read."""
        deep = {
            self._paths[module]
            for module in self._rectifiers
            if isinstance(module, nn.RNN) and module.num_layers > 1
        }
        return [site.name for site in self.sites if site.module in deep and not site.operator]

    @property
    def left_out(self) -> list[LeftOut]:
        """Calls of rectifiers that are not sites, because no layer's units can be there."""
        return self._registry.left_out

    def unmatched_axes(self) -> str:
        """What is wrong with those `unit_axes` that no site has, in words; empty if nothing is."""
        unknown = sorted(map(str, self._unit_axes - self._registry.overrides))
        if not unknown:
            return ""
        names = ", ".join(site.name for site in self.sites)
        return (
            f"a unit axis was given for {', '.join(unknown)}, which is not a site, does not have "
            f"that axis, or has its samples there. The sites are {names}"
        )

    @property
    def products(self) -> list[Product]:
        """The first product with each weight, in the passes that were followed."""
        return list(self._passes.products.values())

    @property
    def feeding(self) -> frozenset[str]:
        """Names of the parameters that the output of a site depends on, in these passes."""
        return frozenset(self._passes.feeding)

    @property
    def functional(self) -> bool:
        """Whether the model calls rectifiers as functions."""
        return self._passes.functional

    # Attached, resting

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Attached inside, and detached on exit whatever happens; raises what the guard kept."""
        with self.guard.holding():
            try:
                self.attach()
                yield
                self.detach()
            finally:
                self._passes.model_error = None  # it holds the tensors of the model's frames

    def attach(self) -> None:
        """Register the hooks."""
        self._attachment.attach()

    def detach(self) -> None:
        """Remove every hook and mode, whatever the state of the last forward pass."""
        self.reset()
        self._attachment.remove()

    def rest(self, learned: Collection[int]) -> None:
        """Watch nothing for now but how many samples come: there is nothing else to learn of them.

        `learned` are the sites of which that is so. It does not rest if a new call might be missed:
        if passes took different paths, or some rectifiers have not been called yet.
        """
        calls = self._passes.expected_calls
        if self._idle.is_possible(self._passes.passes, calls, learned):
            self.detach()
            self._idle.begin(calls)

    @property
    def resting(self) -> bool:
        """Whether it is resting."""
        return self._idle.resting

    def wake(self) -> list[RestedCall]:
        """Watch again. Returns what was called meanwhile."""
        if not self._idle.resting:
            return []
        calls = self._idle.end()
        self.attach()
        if self.missed.traced:
            forget_compiled()
        return calls

    # The forward pass

    def run(
        self,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        groups: tuple[Tensor, int] | None = None,
    ) -> None:
        """Call the model, or a function that calls it, as one pass.

        `groups` are the group of each row of the input, `[sample]`, if rows are not samples, and
        the number of groups so far.
        """
        self._passes.run(call, args, kwargs, groups)

    def run_surely(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        groups: tuple[Tensor, int] | None = None,
    ) -> None:
        """Call the model. Call it again if a call on a new path could not be read.

        The second pass hands over these calls, and again those that may be of the same sites. The
        model must do the same again, as it does in eval mode.
        """
        self._passes.run_surely(args, kwargs, groups)

    def samples_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        """Number of samples in a pass with these arguments; best asked after it."""
        samples = self._counter.of(self.model, [*args, *kwargs.values()])
        return 1 if samples is None else samples

    def rows_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        """Number of rows in these arguments that may have groups: of graphs their nodes."""
        values = [*args, *kwargs.values()]
        rows = None if self._counter.of(self.model, values) is None else rows_in(values)
        return 1 if rows is None else rows

    def reset(self) -> None:
        """Forget a forward pass that never ended: an interrupt skips the closing hook."""
        self._passes.reset()

    @property
    def model_error(self) -> BaseException | None:
        """What the model itself raised in a `run`, which may also raise an error of reludiag."""
        return self._passes.model_error

    @property
    def passes(self) -> int:
        """Number of forward passes seen."""
        return self._passes.passes

    @property
    def called(self) -> frozenset[nn.Module]:
        """The modules that were called in passes that count as training."""
        return frozenset(self._passes.called)

    @property
    def mixes_rows(self) -> bool:
        """Whether a followed pass made rows of several samples, as a graph does of its nodes."""
        return self._passes.mixes_rows

    @property
    def followed(self) -> bool:
        """Whether a whole forward pass (of several models one of each) has been followed, so that
        no other pass needs to be.
        """
        return self._following.are_whole

    @property
    def evaluating(self) -> bool:
        """Whether the current pass of this thread is in eval mode."""
        return self._passes.evaluating
