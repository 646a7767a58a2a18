"""The difference between two looks at a model: of scans, recordings and JSON reports."""

import csv
import io
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import reludiag
from tests.test_cli import reludiag_command


def network(*dead: int, width: int = 6, name: str = "relu") -> nn.Module:
    """One layer whose units fire on every other sample, but for the dead ones."""
    model = nn.Sequential()
    model.add_module("fc", nn.Linear(1, width))
    model.add_module(name, nn.ReLU())
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.zero_()
        model[0].bias[list(dead)] = -100.0
    return model


def look(*dead: int, samples: int = 40, **kinds: object) -> reludiag.Diagnosis:
    return reludiag.scan(network(*dead, **kinds), [torch.linspace(-1, 1, samples).unsqueeze(1)])


def saved(diagnosis: reludiag.Diagnosis, path: Path, all_units: bool = True) -> Path:
    diagnosis.to_json(path, all_units)
    return path


def changes(difference: reludiag.Difference) -> list[str]:
    return list(difference.units["change"])


def test_units_died_revived_or_stayed_as_they_were() -> None:
    difference = reludiag.diff(look(0, 1), look(1, 2, 3))
    assert changes(difference) == ["revived", "unchanged", "died", "died", *["unchanged"] * 2]
    site = difference.sites.iloc[0]
    assert (site["dead_before"], site["dead_after"]) == (2, 3)
    assert (site["died"], site["revived"], site["unchanged"]) == (2, 1, 3)
    assert difference.new_deaths == 2
    assert "2 died  1 revived  3 unchanged" in str(difference)


@pytest.mark.parametrize("all_units", [True, False])
def test_a_json_report_says_the_same_as_what_it_was_made_of(
    tmp_path: Path, all_units: bool
) -> None:
    first, second = look(0, 1), look(1, 2)
    paths = [
        saved(diagnosis, tmp_path / f"{index}.json", all_units)
        for index, diagnosis in enumerate((first, second))
    ]
    read = reludiag.diff(*paths)
    assert changes(read) == changes(reludiag.diff(first, second))
    assert read.sites.equals(reludiag.diff(first, second).sites)
    assert str(read) == str(reludiag.diff(first, second))


def test_a_json_report_may_be_of_a_version_that_had_fewer_verdicts(tmp_path: Path) -> None:
    path = saved(look(0), tmp_path / "older.json")
    document = json.loads(path.read_text())
    for site in document["sites"]:
        assert site.pop("constant") == 0
    path.write_text(json.dumps(document))
    assert changes(reludiag.diff(path, look(0, 1))) == changes(reludiag.diff(look(0), look(0, 1)))


def test_a_recording_can_be_compared_with_a_scan(tmp_path: Path) -> None:
    model = network(0)
    with reludiag.Monitor(
        model, path=tmp_path / "run.reludiag", probe=torch.linspace(-1, 1, 40).unsqueeze(1)
    ) as monitor:
        model[0].bias.data[3] = -100.0
        monitor.step()
    difference = reludiag.diff(look(0), tmp_path / "run.reludiag")
    assert difference.sites["died"].tolist() == [1]
    recorded = saved(reludiag.load(tmp_path / "run.reludiag"), tmp_path / "run.json")
    assert changes(reludiag.diff(look(0), recorded)) == changes(difference)


def test_sites_that_are_new_missing_or_resized_are_told_apart_and_are_no_deaths() -> None:
    def of(**widths: int) -> reludiag.Diagnosis:
        model = nn.Sequential()
        for index, (name, width) in enumerate(widths.items()):
            model.add_module(f"fc{index}", nn.LazyLinear(width))
            model.add_module(name, nn.ReLU())
        model(torch.zeros(1, 1))
        nn.init.constant_(model[0].bias, -100.0)
        return reludiag.scan(model, [torch.ones(4, 1)])

    difference = reludiag.diff(of(a=3, b=2, c=4), of(a=3, d=5, c=2))
    assert difference.sites.set_index("site")["status"].to_dict() == {
        "a": "compared",
        "d": "new",
        "c": "resized",
        "b": "missing",
    }
    assert difference.count("new") == 5 and difference.count("missing") == 2
    assert "c" not in set(difference.units["site"])
    assert difference.new_deaths == 0
    assert difference.sites["died"].isna().tolist() == [False, True, True, True]


def test_a_unit_that_is_no_longer_finite_counts_as_a_new_death_and_is_not_called_dead() -> None:
    model = network()
    model[0].bias.data[2] = float("nan")
    broken = reludiag.scan(model, [torch.linspace(-1, 1, 40).unsqueeze(1)])
    difference = reludiag.diff(look(), broken)
    assert changes(difference)[2] == "diverged"
    assert difference.new_deaths == 1 and difference.count("died") == 0
    assert changes(reludiag.diff(broken, look()))[2] == "unknown"


def test_less_evidence_the_second_time_is_said() -> None:
    text = " ".join(str(reludiag.diff(look(), look(samples=20))).replace("│", " ").split())
    assert "The first is based on 40 samples, the second on 20" in text
    assert "is based on" not in str(reludiag.diff(look(), look()))


def test_models_without_a_site_in_common_are_refused() -> None:
    with pytest.raises(
        reludiag.UsageError, match="no site in common with the same number of units"
    ):
        reludiag.diff(look(), look(name="other"))
    with pytest.raises(
        reludiag.UsageError, match="no site in common with the same number of units"
    ):
        reludiag.diff(look(), look(width=7))


def test_the_command_writes_terminal_json_and_csv_and_fails_on_new_deaths(tmp_path: Path) -> None:
    first, second = saved(look(0, 1), tmp_path / "a.json"), saved(look(1, 2), tmp_path / "b.json")
    done = reludiag_command("diff", first, second)
    assert done.code == 0 and "1 died  1 revived  4 unchanged" in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    document = json.loads(reludiag_command("diff", first, second, "--json").out)
    assert document["totals"]["died"] == document["totals"]["new_deaths"] == 1
    assert [(u["unit"], u["change"]) for u in document["units"]] == [(0, "revived"), (2, "died")]
    rows = list(
        csv.DictReader(io.StringIO(reludiag_command("diff", first, second, "--csv", "-").out))
    )
    assert [(r["unit"], r["change"], r["verdict_before"]) for r in rows] == [
        ("0", "revived", "dead"),
        ("2", "died", "alive"),
    ]
    assert (
        len(json.loads(reludiag_command("diff", first, second, "--json", "--all").out)["units"])
        == 6
    )
    gated = reludiag_command("diff", first, second, "--fail-on-new-deaths")
    assert gated.code == 1 and "new deaths: 1" in gated.err
    assert reludiag_command("diff", first, first, "--fail-on-new-deaths").code == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        ("", "is not a recording"),
        ("text", "is not a recording"),
        ('{"a": ', "not a JSON document"),
        ("{}", "not a report of units"),
        ('{"schema_version": 1, "sites": [], "units": [], "thresholds": {}}', "as reludiag writes"),
        ('{"schema_version": 9, "sites": [], "units": [], "thresholds": {}}', "Upgrade it"),
        ("counts", "do not match its counts"),
    ],
)
def test_what_is_no_report_is_refused_with_a_sentence(
    tmp_path: Path, content: str | None, words: str
) -> None:
    good = saved(look(0), tmp_path / "good.json")
    bad = tmp_path / "bad.json"
    if content == "counts":
        document = json.loads(good.read_text())
        document["units"] = document["units"][1:]
        document["sites"][0]["dead"] = 3
        content = json.dumps(document)
    if content is not None:
        bad.write_text(content)
    done = reludiag_command("diff", good, bad)
    assert (done.code, done.out) == (3, "")
    assert words in done.sentence


def test_a_hostile_name_does_nothing_in_a_difference(tmp_path: Path) -> None:
    name = "=cmd|[bold red]x[/]<script>"
    difference = reludiag.diff(look(name=name), look(1, name=name))
    assert "[bold" in str(difference)
    difference.to_csv(tmp_path / "d.csv")
    assert "'=cmd|[bold red]x[/]<script>" in (tmp_path / "d.csv").read_text()
