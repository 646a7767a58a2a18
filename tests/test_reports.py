"""Reports: what people see, and that all of them agree."""

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from torch import nn

import reludiag
from reludiag.diagnosis.columns import (
    LEDGER_COLUMNS,
    SITE_COLUMNS,
    SITE_LEDGER_COLUMNS,
    TIMELINE_COLUMNS,
    UNIT_COLUMNS,
)
from reludiag.reports.run.summary import life_windows, thick_of_deaths
from reludiag.reports.run.terminal import print_report, terminal_svg, terminal_text
from reludiag.reports.wording import share, upper_share

SNAPSHOT = """\
╭─ reludiag ───────────────────────────────────────────────────────────────────╮
│ Sequential  this run                                                         │
│ Steps 0-8, 5 snapshots, every 2 steps, each on a fixed probe of 1,000        │
│ samples in eval mode                                                         │
│ 5 of 12 units dead (42 %)  1 always on  6 alive                              │
╰──────────────────────────────────────────────────────────────────────────────╯
 Why:     not known. Units of '1' died in training, and the recording does not
          show why.
 Do:      Pass the Monitor a smaller `every`, to see the deaths as they happen.
 Confirm: reludiag replay TRAIN --lr-scale 0.1 --init kaiming

 Site                Units   alive, rare, dead   Dead          Worst units
 ───────────────────────────────────────────────────────────────────────────────
 1                       8   ██████××××××××××       5   62 %   0, 1, 2, 3 +1
 3                       4   ████████████████       0    0 %
 █ alive, always on   × dead

 Deaths over time

 Steps   Max. learning rate   Dead                       Died   Revived
 ───────────────────────────────────────────────────────────────────────────────
     0                           1   ×                      0         0
   0-2                  0.5      1   ×                      0         0
   2-4                  0.5      5   ×××××××                4         0
   4-6                  0.5      5   ×××××××                0         0
   6-8                  0.5      5   ×××××××                0         0

 Why
 Cause   undetermined, 100 % of the deaths
         Units of '1' died in training, and the recording does not show why: the
         size of the updates, the initial weights and the input do not explain
         it.
 To do   Pass the Monitor a smaller `every`, to see the deaths as they happen.
 Confirm reludiag replay TRAIN --lr-scale 0.1 --init kaiming

 Evidence
 ───────────────────────────────────────────────────────────────────────────────
 born dead, died, of               1, 4, 12   units dead at step 0, units that
                                              died later, all units; 1 never
                                              alive, 0 revived at some time
 learning rate                          0.5   constant or nearly constant, so
                                              there is no lower rate to compare
                                              with
 largest update                           0   norm of the change over norm of
                                              the weights of '0', at step 1;
                                              0.001 is usual; on digits, 0.03
                                              and more killed 30 % of units
 drop by weights, input,   0.00, 0.00, 1.00   shares of the change of the mean
 bias                                         pre-activation, over 4 deaths

 Structure
 - The model returns the output of '3' (ReLU, 4 units) unchanged. It returns no
   value below 0, and where a unit is silent on a sample, it has no gradient
   there.
   If these are predictions, return the value before it, or use softplus where
   they must not be below 0; if they are features that another network reads,
   leave it.

 What to look at next
 - 4 of 4 deaths came in steps 2-4, at a learning rate of 0.5.
 - 1 unit was dead at step 0 (silent on 1,000 samples).
 - The worst site is '1' (its weights: '0'): 5 of 8 units dead.
 - Dead here means 0 of 1,000 samples: a firing rate below 0.30 % on data like
   this, with 95 % confidence.
 - Use --csv FILE to save the 5 units that are not alive, and 1 that is always
   on.
"""


@pytest.fixture(scope="module")
def run() -> reludiag.Diagnosis:
    """Unit 0 is born dead; units 1 to 4 are killed by hand in step 3."""
    model = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.linspace(1, 2, 8).unsqueeze(1))
        model[0].bias.zero_()
        model[0].bias[0] = -100.0
        model[2].weight.fill_(1.0)
        model[2].bias.copy_(torch.tensor([-1.0, -2.0, -3.0, 1.0]))
    optimizer = torch.optim.SGD([{"params": model.parameters(), "lr": 0.5}])
    probe = torch.linspace(-1, 1, 1000).unsqueeze(1)
    with reludiag.Monitor(model, optimizer, every=2, probe=probe) as monitor:
        for step in range(8):
            optimizer.step()  # without gradients: only what is done by hand changes
            if step == 2:
                with torch.no_grad():
                    model[0].bias[1:5] = -100.0
                    model[2].weight.fill_(3.0)
    return monitor.diagnose()


def test_the_terminal_report_is_as_it_was_approved(run: reludiag.Diagnosis) -> None:
    assert str(run) == SNAPSHOT


def test_columns_are_those_declared(run: reludiag.Diagnosis) -> None:
    def names(columns: object) -> list[str]:
        return [column.name for column in columns]

    assert list(run.units) == names(UNIT_COLUMNS + LEDGER_COLUMNS)
    assert list(run.sites) == names(SITE_COLUMNS + SITE_LEDGER_COLUMNS)
    assert list(run.timeline) == names(TIMELINE_COLUMNS)
    for table, columns in [
        (run.units, UNIT_COLUMNS + LEDGER_COLUMNS),
        (run.sites, SITE_COLUMNS + SITE_LEDGER_COLUMNS),
        (run.timeline, TIMELINE_COLUMNS),
    ]:
        declared = [pd.Series(dtype=column.dtype).dtype for column in columns]  # str may be object
        assert list(table.dtypes) == declared
    plain = reludiag.scan(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), [torch.randn(4, 2)])
    assert list(plain.units) == names(UNIT_COLUMNS)
    assert list(plain.sites) == names(SITE_COLUMNS)


def test_what_is_unknown_is_empty() -> None:
    """Not the word None, which the text of older pandas had in its place."""
    model = nn.Sequential(nn.ReLU(), nn.Linear(2, 2), nn.ReLU())
    units = reludiag.scan(model, [torch.randn(4, 2)]).units
    assert units["producer"].isna().tolist() == [True, True, False, False]
    assert units["norm"].isna().all()


def test_terminal_csv_and_json_agree(run: reludiag.Diagnosis, tmp_path: Path) -> None:
    run.to_json(tmp_path / "r.json", all_units=True)
    document = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    run.to_csv(tmp_path / "all.csv", all_units=True)
    table = pd.read_csv(tmp_path / "all.csv", dtype={"site": str}, float_precision="round_trip")
    assert document["totals"]["dead"] == run.dead == (table["verdict"] == "dead").sum() == 5
    assert [u["fired"] for u in document["units"]] == list(table["fired"])
    assert [u["firing_rate_upper"] for u in document["units"]] == list(table["firing_rate_upper"])
    assert [u["died_step"] or -1 for u in document["units"]] == list(
        table["died_step"].fillna(-1).astype(int)
    )
    assert [(t["step"], t["dead"]) for t in document["timeline"]] == list(
        zip(run.timeline["step"], run.timeline["dead"], strict=True)
    )
    assert document["diverged"] is False


def test_csv_without_all_lists_what_is_not_alive(run: reludiag.Diagnosis) -> None:
    stream = io.StringIO()
    run.to_csv(stream)
    rows = list(csv.DictReader(io.StringIO(stream.getvalue())))
    assert len(rows) == 6
    assert rows[0]["born_dead"] == "True"
    assert rows[0]["died_step"] == ""
    assert rows[1]["died_step"] == "4"
    assert rows[1]["lr_at_death"] == "0.5"


def test_a_hostile_name_does_nothing() -> None:
    model = nn.Sequential()
    model.add_module("=cmd|' /C calc'!A0", nn.Linear(2, 2))
    model.add_module("[bold red]x[/]<script>", nn.ReLU())
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    diagnosis = reludiag.scan(model, [torch.randn(4, 2)], subject="[link=evil]x[/link]")
    stream = io.StringIO()
    diagnosis.to_csv(stream)
    rows = list(csv.DictReader(io.StringIO(stream.getvalue())))
    assert rows[0]["producer"] == "'=cmd|' /C calc'!A0"
    assert rows[0]["site"] == "[bold red]x[/]<script>"
    assert "[bold" in str(diagnosis)
    assert "[link=evil]" in str(diagnosis)
    assert "<script>" not in terminal_svg(diagnosis)


def test_a_name_gives_the_terminal_no_command() -> None:
    name = "relu\x1b]0;title\x07\x9b31m\u202e"
    model = nn.Sequential()
    model.add_module("fc", nn.Linear(2, 2))
    model._modules[name] = nn.ReLU()
    nn.init.constant_(model.fc.bias, -100.0)
    diagnosis = reludiag.scan(model, [torch.randn(4, 2)], subject=name)
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    with console.capture() as capture:
        print_report(diagnosis, console)
    for text in (str(diagnosis), terminal_svg(diagnosis), str(reludiag.diff(diagnosis, diagnosis))):
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert "\x1b]" not in capture.get() and "relu]0;title31m" in capture.get()


def test_the_report_is_as_wide_as_the_terminal_and_coloured(run: reludiag.Diagnosis) -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system="truecolor")
    with console.capture() as capture:
        print_report(run, console)
    assert "\x1b[1;31m5 of 12 units dead\x1b[0m" in capture.get()


def test_an_ascii_terminal_gets_ascii(run: reludiag.Diagnosis) -> None:
    text = terminal_text(run, encoding="ascii")
    assert text.isascii()
    assert "######xxxxxxxxxx" in text


def test_a_share_is_never_rounded_to_none_or_all() -> None:
    assert [share(part, 10_000) for part in (0, 1, 9_999, 10_000)] == [
        "0 %",
        "<0.1 %",
        ">99.9 %",
        "100 %",
    ]
    assert [share(part, 1000) for part in (1, 15, 150, 995)] == ["0.1 %", "1.5 %", "15 %", "99.5 %"]
    assert share(3, 0) == share(float("nan"), 5) == ""


def many_sites(count: int) -> reludiag.Diagnosis:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)) for _ in range(count)
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = x + block(x)
            return x

    torch.manual_seed(0)
    return reludiag.scan(Deep(), [torch.randn(4, 2)])


def test_500_sites_are_grouped_and_lose_nobody() -> None:
    diagnosis = many_sites(500)
    text = str(diagnosis)
    assert len(text.splitlines()) < 60
    assert "blocks.0 ... 24" in text
    assert "500 sites, grouped by module: --all-sites lists each." in text
    rows = [line.split() for line in text.splitlines() if line.startswith(" blocks.")]
    assert sum(int(row[3]) for row in rows) == 500
    assert sum(int(row[4].replace(",", "")) for row in rows) == 1500
    assert sum(int(row[6]) for row in rows) == diagnosis.dead
    assert "blocks.499.1" in terminal_text(diagnosis, all_sites=True)


def test_long_names_fit_in_80_columns() -> None:
    model = nn.Sequential()
    name = "a_very_long_name_of_a_module_that_somebody_did_give_" * 3
    model.add_module("fc", nn.Linear(2, 200))
    model.add_module(name, nn.ReLU())
    with torch.no_grad():
        model.fc.bias.fill_(-100.0)
    text = str(reludiag.scan(model, [torch.randn(4, 2)]))
    assert max(map(len, text.splitlines())) <= 80
    assert "100 %" in text
    assert "every unit is dead" in text


def timeline(deaths: dict[int, int]) -> pd.DataFrame:
    steps = np.arange(0, 1001, 10)
    died = [deaths.get(int(step), 0) for step in steps]
    return pd.DataFrame(
        {
            "step": steps,
            "site": "relu",
            "learning_rate": [np.nan] + [0.1] * 100,
            "samples": 10,
            "units": 100,
            "dead": np.cumsum(died),
            "died": died,
            "revived": 0,
            "nonfinite": 0,
        }
    )


def test_a_long_run_is_shown_in_a_few_windows() -> None:
    windows = life_windows(timeline({10: 5, 500: 3, 1000: 1}))
    assert [w.steps for w in windows][:3] == ["0", "0-100", "100-200"]
    assert len(windows) == 11
    assert sum(window.died for window in windows) == 9
    assert windows[-1].dead == 9
    assert windows[1].learning_rate == 0.1


@pytest.mark.parametrize(
    ("deaths", "steps", "died"),
    [
        ({}, None, 0),
        ({50: 4}, "40-50", 4),
        ({10: 1, 500: 2, 510: 2, 900: 1}, "490-510", 4),
        ({500: 10, 900: 1}, "490-500", 10),
    ],
)
def test_the_thick_of_the_deaths_is_the_shortest_stretch_with_half_of_them(
    deaths: dict[int, int], steps: str | None, died: int
) -> None:
    thick = thick_of_deaths(timeline(deaths))
    assert (thick.steps if thick else None, thick.died if thick else 0) == (steps, died)


def test_an_upper_bound_is_never_rounded_down() -> None:
    assert [upper_share(bound) for bound in (0.00746, 0.258866, 0.0016657, 0.95, 0.01)] == [
        "0.75 %",
        "26 %",
        "0.17 %",
        "95 %",
        "1.0 %",
    ]


def test_worst_units_are_the_dead_or_say_what_they_are() -> None:
    model = nn.Sequential(nn.Linear(1, 3), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [1.0], [0.001]]))
        model[0].bias.copy_(torch.tensor([0.0, 0.5, 0.0]))
    x = torch.linspace(-1, 1, 100).unsqueeze(1)
    assert "dormant 2" in str(reludiag.scan(model, [x]))
    with torch.no_grad():
        model[0].bias[0] = -100.0
    row = next(line for line in str(reludiag.scan(model, [x])).splitlines() if "  33 %" in line)
    assert row.endswith(" 0")


def test_an_export_that_fails_half_way_leaves_the_old_file(
    run: reludiag.Diagnosis, tmp_path: Path
) -> None:
    from reludiag.reports.output import opened

    path = tmp_path / "dead.csv"
    path.write_text("precious")
    with pytest.raises(KeyboardInterrupt), opened(path) as stream:
        stream.write("half")
        raise KeyboardInterrupt
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(reludiag.UsageError, match="does not exist"):
        run.to_csv(tmp_path / "no" / "dead.csv")
    run.to_csv(path)
    assert path.read_text().startswith("site,unit,verdict")
    (tmp_path / "new").touch()
    assert path.stat().st_mode == (tmp_path / "new").stat().st_mode
