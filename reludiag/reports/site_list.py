"""The list of a model's sites, for the terminal and as JSON."""

from dataclasses import asdict

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from reludiag.diagnosis.columns import SCHEMA_VERSION
from reludiag.measure.site_list import SiteList
from reludiag.measure.unjudged import sentences
from reludiag.reports.console import SanitizedText
from reludiag.reports.json_text import finite, text_of
from reludiag.reports.run.structure_section import structure
from reludiag.sites.products import shortened


def print_sites(site_list: SiteList, console: Console) -> None:
    """A table of the sites, and notes on what is missing."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1))
    table.add_column("Site", overflow="fold")
    table.add_column("Units", justify="right")
    table.add_column("Axis")
    table.add_column("Activation")
    table.add_column("Fed by", overflow="fold")
    for site in site_list.sites:
        rectifier = site.rectifier
        activation = rectifier.activation + ("" if rectifier.can_die else " (cannot die)")
        activation += f" of {site.selects_from}" if site.selects_from else ""
        units = "" if site.units is None else f"{site.units:,}"
        table.add_row(
            Text(site.name),
            units,
            site.unit_axis,
            Text(activation),
            Text(shortened(site.producer or "")),
        )
    if site_list.sites:
        console.print(SanitizedText(table))
    for note in site_notes(site_list):
        console.print(SanitizedText(Text(note, style="yellow")))
    console.print(SanitizedText(*structure(site_list.structure)))


def site_notes(site_list: SiteList) -> list[str]:
    """What the reader of the list must know."""
    if site_list.ran:
        return [*sentences(site_list.unjudged), *site_list.notes]
    if not site_list.sites:
        return ["No rectifier was found in this model's modules or their source code."]
    return [
        "This lists modules, and functions in their source code, each once. --data or "
        "--input-shape runs a batch, which shows repeated calls, unit counts and axes."
    ]


def sites_document(site_list: SiteList) -> str:
    """The same as one JSON document."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "notes": site_notes(site_list),
        "structure": [finite(asdict(note)) for note in site_list.structure],
        "unjudged": [asdict(place) for place in site_list.unjudged],
        "sites": [
            {
                "site": site.name,
                "units": site.units,
                "unit_axis": site.unit_axis or None,
                "activation": site.rectifier.activation,
                "can_die": site.rectifier.can_die,
                "producer": site.producer,
                "norm": site.norm,
                "selects_from": site.selects_from or None,
            }
            for site in site_list.sites
        ],
    }
    return text_of(content, indent=1)
