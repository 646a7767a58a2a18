"""The terminal, JSON, CSV, Markdown and JUnit of one recording agree in every number."""

import csv
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

import reludiag
from reludiag.measure.verdicts import VERDICTS
from tests.test_cli import reludiag_command

STEPS = 30


class Network(nn.Module):
    """Two layers of 40 units, and a branch that is never taken."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu1 = nn.Linear(1, 40), nn.ReLU()
        self.second, self.relu2 = nn.Linear(40, 40), nn.ReLU()
        self.spare = nn.ReLU()
        nn.init.constant_(self.second.weight, 0.1)
        nn.init.uniform_(self.second.bias, 0.0, 1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu2(self.second(self.relu1(self.first(x))))


def healthy(model: Network, step: int) -> None:
    model.second.bias[0] += 1e-3


def dying(model: Network, step: int) -> None:
    """A unit dies each step; every third comes back; some always fire, some hardly ever."""
    model.first.bias[step] = -100.0
    if step % 3 == 2:
        model.first.bias[step - 2] = 0.5
    model.second.bias[step] = -100.0 if step < 7 else 5.0
    model.second.bias[39] = -4.3


def diverging(model: Network, step: int) -> None:
    dying(model, step)
    if step == STEPS - 1:
        model.second.bias[20:25] = float("nan")


@pytest.fixture(scope="module", params=[healthy, dying, diverging], ids=lambda f: f.__name__)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model, path = Network(), tmp_path_factory.mktemp("run") / "run.reludiag"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    probe = torch.linspace(-1, 1, 1500).unsqueeze(1)
    with reludiag.Monitor(model, optimizer, path=path, every=1, probe=probe):
        for step in range(STEPS):
            with torch.no_grad():
                request.param(model, step)
            optimizer.step()  # without gradients: only what is done by hand changes
            schedule.step()
    return path


def table(lines: list[str], first: str) -> list[list[str]]:
    """The rows of a terminal's table below the heading that begins with `first`."""
    start = next(i for i, line in enumerate(lines) if line.split()[:1] == [first])
    rows = []
    for line in lines[start + 2 :]:
        if not line.strip():
            break
        rows.append(re.sub(r"[^\w.%<>, -]", " ", line).split())
    return rows


@pytest.fixture(scope="module")
def said(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each report says, as it is parsed by those who read it."""
    folder = tmp_path_factory.mktemp("said")
    done = reludiag_command(
        "report", run, "--all", "--all-sites", "--csv", folder / "u.csv", "--junit",
        folder / "j.xml", "--markdown", folder / "m.md", "--fail-over", "relu*=10%",
    )  # fmt: skip
    return {
        "code": done.code,
        "terminal": done.out,
        "json": json.loads(reludiag_command("report", run, "--all", "--json").out),
        "csv": list(csv.DictReader((folder / "u.csv").open(encoding="utf-8"))),
        "junit": ElementTree.parse(folder / "j.xml").getroot(),
        "markdown": (folder / "m.md").read_text(encoding="utf-8"),
        "watch": reludiag_command("watch", run, "--once").out,
    }


def of_csv(rows: list[dict[str, str]]) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {}
    for row in rows:
        site = found.setdefault(row["site"], Counter())
        if row["unit"]:
            site[row["verdict"]] += 1
    return found


def of_junit(root: ElementTree.Element) -> dict[str, dict[str, int]]:
    return {
        case.get("name"): {p.get("name"): int(p.get("value")) for p in case.iter("property")}
        for case in root.iter("testcase")
    }


def markdown_tables(text: str) -> list[list[list[str]]]:
    blocks = re.findall(r"((?:^\|.*\n)+)", text, re.MULTILINE)
    return [
        [[c.strip() for c in line.strip("|\n").split("|")] for line in block.splitlines()[2:]]
        for block in blocks
    ]


def test_every_verdict_is_counted_alike(said: dict[str, Any]) -> None:
    by_csv, by_junit = of_csv(said["csv"]), of_junit(said["junit"])
    assert [site["site"] for site in said["json"]["sites"]] == list(by_csv) == list(by_junit)
    for site in said["json"]["sites"]:
        counts = {verdict: site[verdict] for verdict in VERDICTS}
        assert counts == {verdict: by_csv[site["site"]][verdict] for verdict in VERDICTS}
        junit = by_junit[site["site"]]
        assert counts == {verdict: junit[verdict] for verdict in VERDICTS}
        assert junit["units"] == (site["units"] or 0)
        assert junit["lost"] == site["dead"] + site["nonfinite"]


def test_the_sites_are_alike_on_the_terminal_and_in_markdown(said: dict[str, Any]) -> None:
    terminal = {row[0]: row[1:] for row in table(said["terminal"].splitlines(), "Site")}
    markdown = {row[0].strip("`"): row[1:] for row in markdown_tables(said["markdown"])[0]}
    worst = {row[0]: row[1:] for row in table(said["watch"].splitlines(), "Worst")}
    for site in said["json"]["sites"]:
        name = site["site"]
        if site["units"] is None:
            assert terminal[name][:2] == ["never", "called"]
            assert markdown[name][0] == "never called" and name not in worst
            continue
        units, dead, *share = terminal[name][:4]
        assert [int(units), int(dead)] == [site["units"], site["dead"]]
        assert [int(cell) for cell in markdown[name][:2]] == [site["units"], site["dead"]]
        assert markdown[name][2] == " ".join(share)
        assert int(markdown[name][3]) == site["nonfinite"]
        assert worst[name][:4] == terminal[name][:4]


def test_the_totals_are_alike(said: dict[str, Any]) -> None:
    totals, units = said["json"]["totals"], said["csv"]
    tally = Counter(row["verdict"] for row in units if row["unit"])
    assert {verdict: totals[verdict] for verdict in VERDICTS} == {v: tally[v] for v in VERDICTS}
    line = f"{totals['dead']} of {totals['units']} units dead"
    for report in ("terminal", "watch", "markdown"):
        assert line in said[report]
    for verdict in VERDICTS:
        if verdict != "dead" and totals[verdict]:
            words = f"{totals[verdict]} {verdict.replace('_', ' ')}"
            assert words in said["terminal"] and words in said["markdown"]
    if totals["dead"]:
        share = re.search(r"units dead \((.*?)\)", said["terminal"])[1]
        assert f"units dead** ({share})" in said["markdown"]


def test_the_windows_add_up_to_the_timeline_everywhere(said: dict[str, Any]) -> None:
    timeline = said["json"]["timeline"]
    terminal = table(said["terminal"].splitlines(), "Steps")
    tables = markdown_tables(said["markdown"])
    assert [[cell for cell in row if cell] for row in tables[1]] == terminal
    assert table(said["watch"].splitlines(), "Steps") == terminal
    last = max(row["step"] for row in timeline)
    for position, column in ((3, "died"), (4, "revived")):
        stated = sum(int(row[position]) for row in tables[1])
        assert stated == sum(row[column] for row in timeline)
    assert int(tables[1][-1][2]) == sum(row["dead"] for row in timeline if row["step"] == last)
    assert int(tables[1][-1][2]) == said["json"]["totals"]["dead"]
    assert sum(1 for row in said["csv"] if row["died_step"]) <= sum(r["died"] for r in timeline)


def test_the_numbers_of_each_unit_are_alike(said: dict[str, Any]) -> None:
    def same(text: str, value: object) -> bool:
        if value is None:
            return text == ""
        if isinstance(value, bool | str):
            return text == str(value)
        return float(text) == value

    assert len(said["csv"]) == len(said["json"]["units"])
    for row, unit in zip(said["csv"], said["json"]["units"], strict=True):
        assert list(row) == list(unit)
        assert all(same(row[name], value) for name, value in unit.items()), (row, unit)


def test_the_dead_units_listed_in_markdown_are_those_of_the_table(said: dict[str, Any]) -> None:
    listed = re.findall(r"^- `(\S+)`: ([\d, ]+)$", said["markdown"], re.MULTILINE)
    stated = {(site, unit) for site, units in listed for unit in units.split(", ")}
    dead = {(row["site"], row["unit"]) for row in said["csv"] if row["verdict"] == "dead"}
    assert stated == dead


def test_the_gate_says_the_same_everywhere(said: dict[str, Any]) -> None:
    over = {
        site["site"]
        for site in said["json"]["sites"]
        if site["units"] and (site["dead"] + site["nonfinite"]) * 10 > site["units"]
    }
    cases = said["junit"].iter("testcase")
    assert {case.get("name") for case in cases if case.find("failure") is not None} == over
    rows = markdown_tables(said["markdown"])[0]
    assert {row[0].strip("`") for row in rows if row[-1] == "**over**"} == over
    assert int(said["junit"].get("failures")) == len(over)
    assert said["code"] == bool(over)
