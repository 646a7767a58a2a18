"""SiteRegistry: which site a call is of, and where its units are, from the first call to the last.

A known call is recognized by the module that makes it and the module that feeds it. For a new call,
the unit axis is determined.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from reludiag.capture.calls import ExpectedCall, KnownSite, UnitView
from reludiag.capture.named_models import roots_of
from reludiag.capture.rectifying_layers import is_rectifying_layer
from reludiag.sites.axes import Axes, Origin, UnitAxes, are_samples, coordinates_of, size_of
from reludiag.sites.consumers import Consumer
from reludiag.sites.layout import UNKNOWN_AXIS, Layout, find_layout
from reludiag.sites.provenance import ProvenanceMode
from reludiag.sites.selections import SelectionTable
from reludiag.sites.site import Identity, NamedCall, Rectifier, Site, site_names


class SiteMatch(NamedTuple):
    """What `SiteRegistry.match` says of a call."""

    key: tuple[Any, ...]
    """What tells the call from others."""
    site: KnownSite | None
    """Perhaps one that is not in the registry yet. None where the call had better wait."""
    layout: Layout | None
    view: UnitView | None
    """How the output is viewed, None if it does not fit its site."""
    override: str | None
    """The name in `unit_axes` that the unit axis is from."""
    repeats: bool = False
    """Whether it is another call of a site that was called earlier in the forward."""
    left_out: str = ""
    """Why the call is not a site, as `ProvenanceMode.no_units` says it."""


class LeftOut(NamedTuple):
    """A call of a rectifier that is not a site."""

    path: str
    operator: str
    reason: str


class SiteRegistry:
    """The sites of one model, in the order of their first calls.

    `paths` are those of its modules; `unit_axes` and `merge_calls` as in `Capture`; `names` are
    those of modules that the user has named. `match` changes nothing; `add` and `note_consumers`
    are the methods that do, and those of `selections`.
    """

    def __init__(
        self,
        model: nn.Module,
        paths: Mapping[nn.Module, str],
        unit_axes: UnitAxes,
        merge_calls: bool = True,
        names: Mapping[nn.Module, str] | None = None,
    ) -> None:
        self._model, self._paths, self._unit_axes = model, paths, unit_axes
        self._names = names or {}
        self._root_paths = {paths.get(root, "") for root in roots_of(model)}
        self._merge_calls = merge_calls
        self.overrides: set[str] = set()
        """Names of `unit_axes` that are sites'."""
        self._sites: list[KnownSite] = []
        self._by_key: dict[tuple[Any, ...], tuple[KnownSite, Layout]] = {}
        self._by_feed: dict[tuple[Any, ...], list[KnownSite]] = {}
        """The sites of an owner, operator and producer."""
        self._left_out: dict[tuple[Any, ...], LeftOut] = {}
        """Calls that are not sites, by what tells them from others."""
        self._site_list: list[Site] | None = None
        """`sites`, until a site or a path is new."""
        self.selections = SelectionTable()

    def __len__(self) -> int:
        return len(self._sites)

    def functions(self) -> Counter[tuple[str, str]]:
        """(path of the owner, operator) -> number of sites; the operator is empty for a module."""
        calls = Counter((site.path, site.identity.operator) for site in self._sites)
        calls.update((each.path, each.operator) for each in self._left_out.values())
        return calls

    @property
    def left_out(self) -> list["LeftOut"]:
        """The calls that are not sites, in the order of their first calls."""
        return list(self._left_out.values())

    def has_functions(self) -> bool:
        """Whether a rectifier was called as a function."""
        return any(site.identity.operator for site in self._sites)

    @property
    def sites(self) -> list[Site]:
        """A name may change when a new path through the model is taken."""
        if self._site_list is None:
            names = site_names(
                [
                    NamedCall(
                        site.identity, site.numbers, self._path_within(site.path), site.producer
                    )
                    for site in self._sites
                ]
            )
            self._site_list = [
                Site(
                    key=str(site.identity),
                    name=name,
                    module=site.path,
                    operator=site.identity.operator,
                    rectifier=site.rectifier,
                    unit_axis=site.label,
                    units=size_of(site.layout.unit),
                    producer=site.producer,
                    norm=site.norm,
                    consumers=site.consumers,
                    alias=alias,
                    products=site.products,
                    is_exact=site.is_exact,
                )
                for (name, alias), site in zip(names, self._sites, strict=True)
            ]
        return self._site_list

    def uncalled(self, rectifiers: Mapping[nn.Module, Rectifier]) -> list[Site]:
        """A site for each of these modules that no forward has called."""
        paths_called = {path for path, operator in self.functions() if not operator}
        paths = {self._paths[module]: rectifier for module, rectifier in rectifiers.items()}
        names = {path: path or type(self._model).__name__ for path in paths}
        names |= {self._paths[module]: name for module, name in self._names.items()}
        return [
            Site(names[path], names[path], path, "", rectifier, "", None, None, None)
            for path, rectifier in paths.items()
            if path not in paths_called
        ]

    def match(
        self,
        call: ExpectedCall,
        rectifier: Rectifier,
        output: Tensor,
        samples: int | None,
        provenance: ProvenanceMode | None,
        deferred: Collection[ExpectedCall] | None = None,
        known: Origin | None = None,
        axes: Axes | None = None,
    ) -> SiteMatch:
        """The site of a call, and how its output is viewed. Changes nothing.

        `provenance` is what follows this forward, if anything does. `deferred` are the calls that
        wait for a forward that is followed, None where none may wait. `known` is where the module
        itself says that its units and samples are, `axes` where its units are.
        """
        key: tuple[Any, ...] = (call.owner, call.operator, call.producer, call.ordinal)
        site, layout = self._by_key.get(key, (None, None))
        if key in self._left_out:
            return SiteMatch(key, None, None, None, None, left_out=self._left_out[key].reason)
        weights: tuple[Any, ...] = ()
        if self._merge_calls and is_rectifying_layer(call.owner):
            weights = (call.owner,)  # its own, at each call
        elif provenance is not None and self._merge_calls:
            fed_by = None if call.producer is None else self._paths[call.producer]
            weights = provenance.weights_of(output.detach(), fed_by, key[:2])
        elif site is None:
            site, layout = self._longer_loop(call)
        shape: tuple[int, ...] = ()
        if layout is not None and not layout.fits(output):
            # If units are positions of an axis of varying length, each length is a site.
            shape = tuple(output.shape[1:])
            key = (*key, shape)
            site, layout = self._by_key.get(key, (None, None))
        if deferred is not None and layout is not None and layout.of_one and samples != 1:
            return SiteMatch(key, None, None, None, None)
        override: str | None = None
        if site is None or layout is None or (provenance is not None and layout.of_one):
            identity = Identity(
                owner=self._owner(call),
                operator=call.operator,
                fed_by="" if call.producer is None else self._paths[call.producer],
                ordinal=call.ordinal,
                shape=shape,
            )
            origin = known if provenance is None else provenance.origin_of(output.detach())
            producer = None if origin is None else origin.producer
            producer = producer if producer is not None else identity.fed_by or None
            path = self._path_within(self._paths[call.owner])
            fed_name = NamedCall(identity, set(), path, producer).fed_name
            override, axis = self._override(identity, call.number, fed_name, output, origin)
            is_asked_for = rectifier.is_asked_for or axis is not None
            if site is None and rectifier.is_mask and not is_asked_for:
                # Only a mask that layers have made is a selection: not dropout, nor padding.
                if provenance is None and deferred is not None:
                    return SiteMatch(key, None, None, None, override)
                if provenance is None or not provenance.selections.is_selected(output):
                    return SiteMatch(key, None, None, None, None, left_out="mask")
            if (
                site is None
                and rectifier.is_composed
                and provenance is not None
                and not is_asked_for
                and provenance.selections.is_share(rectifier, output)
            ):
                return SiteMatch(key, None, None, None, None, left_out="share")
            if site is None and provenance is not None and not is_asked_for:
                reason = provenance.no_units(output.detach())
                # A module is there to be an activation.
                if reason and (call.operator or reason == "ranks"):
                    return SiteMatch(key, None, None, None, None, left_out=reason)
            layout, label = find_layout(output, origin, call.producer, samples, axis or axes)
            unsure = layout.sample is None or label == UNKNOWN_AXIS
            unsure |= self._merge_calls and call.ordinal > 0  # of a loop that was shorter before?
            # Sites are in the order of their first calls.
            if deferred is not None and (unsure or deferred):
                return SiteMatch(key, None, None, None, override)
            site = site or self._same_place(key, weights, layout, label)
            if site is None:
                site = self._new_site(
                    call, identity, rectifier, layout, label, origin, producer, weights
                )
        view = UnitView(layout, output, samples)
        repeats = call.ordinal != site.identity.ordinal
        return SiteMatch(key, site, layout, view if view.fits else None, override, repeats)

    def add(self, call: ExpectedCall, match: SiteMatch) -> None:
        """Take in what `match` says of `call`."""
        if match.left_out:
            call.is_left_out = True
            left_out = LeftOut(self._paths[call.owner], call.operator, match.left_out)
            self._left_out.setdefault(match.key, left_out)
        if match.override is not None:
            self.overrides.add(match.override)
        site, layout = match.site, match.layout
        if site is None or layout is None:
            return
        if site.index == len(self._sites):
            self._sites.append(site)
            self._by_feed.setdefault(match.key[:3], []).append(site)
        self._by_key[match.key] = site, layout
        site.repeats |= match.repeats
        if call.number not in site.numbers and not match.repeats:
            site.numbers.add(call.number)
            self._site_list = None

    def note_consumers(self, consumers: Mapping[int, tuple[Consumer, ...]]) -> None:
        """Take in what reads the units of sites, by their index, in a forward that was followed."""
        for index, site_consumers in consumers.items():
            site = self._sites[index]
            site.consumers = tuple(dict.fromkeys((*(site.consumers or ()), *site_consumers)))
        self._site_list = None

    def _path_within(self, path: str) -> str:
        """The same path; empty for a model itself, also for one of several with names."""
        return "" if path in self._root_paths else path

    def _owner(self, call: ExpectedCall) -> str:
        if not call.operator and call.owner in self._names:
            return self._names[call.owner]
        return self._paths[call.owner] or type(self._model).__name__

    def _longer_loop(self, call: ExpectedCall) -> tuple[KnownSite | None, Layout | None]:
        """The only site of this feed, if followed forwards have shown that it is called again."""
        feed = call.owner, call.operator, call.producer
        sites = self._by_feed.get(feed, [])
        if len(sites) == 1 and sites[0].repeats and not sites[0].identity.shape:
            return sites[0], sites[0].layout
        return None, None

    def _same_place(
        self, key: tuple[Any, ...], weights: tuple[Any, ...], layout: Layout, label: str
    ) -> KnownSite | None:
        """The site of an earlier call, if this one reads the same product, made anew.

        Told by the weights and not by the module that ran last: a normalization that several layers
        share runs last after each of them. A call that cannot be told is a site of its own.
        """
        shape = key[4] if len(key) > 4 else ()
        for site in self._by_feed.get(key[:3], []) if weights else ():
            units = [(c.axis, c.size) for c in site.layout.unit]
            if (
                site.weights == weights
                and site.identity.shape == shape
                and units == [(c.axis, c.size) for c in layout.unit]
                and (site.label == UNKNOWN_AXIS) == (label == UNKNOWN_AXIS)
            ):
                return site
        return None

    def _new_site(
        self,
        call: ExpectedCall,
        identity: Identity,
        rectifier: Rectifier,
        layout: Layout,
        label: str,
        origin: Origin | None,
        producer: str | None,
        weights: tuple[Any, ...],
    ) -> KnownSite:
        return KnownSite(
            index=len(self._sites),
            path=self._paths[call.owner],
            identity=identity,
            rectifier=rectifier,
            layout=layout,
            label=label,
            producer=producer,
            norm=origin.norm if origin is not None else None,
            products=() if origin is None else origin.products,
            is_exact=origin is not None and origin.is_exact,
            weights=weights,
        )

    def _override(
        self, identity: Identity, number: int, fed_name: str, output: Tensor, origin: Origin | None
    ) -> tuple[str | None, Axes | None]:
        """The name in `unit_axes` that is this site's, and the axis that it says."""
        if any(site.identity.base == fed_name for site in self._sites):
            fed_name = ""  # that module calls the function as well
        for name in (
            fed_name,
            f"{identity.base}#{number}" if number else identity.base,
            f"{identity.base}@{identity.fed_by}",
        ):
            coordinates = coordinates_of(self._unit_axes.get(name, ()), output.shape)
            if coordinates is not None and not are_samples(coordinates, origin):
                return name, coordinates
        return None, None
