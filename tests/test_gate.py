"""The gate, and what CI services are given: JUnit XML and Markdown."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from markdown_it import MarkdownIt
from torch import nn

import reludiag
from reludiag.diagnosis.gate import TO_ALLOW, Check, Gate, exceeded
from reludiag.reports.run.junit import junit
from reludiag.reports.run.markdown import markdown
from tests.test_cli import reludiag_command


def chain(**dead: int) -> reludiag.Diagnosis:
    """A site of ten units for each name, of which so many are dead; `never` is not called."""
    model = nn.Module()
    model.layers = nn.ModuleList()
    for name, count in dead.items():
        layer = nn.Module()
        layer.fc, layer.relu = nn.Linear(1, 10), nn.ReLU()
        nn.init.ones_(layer.fc.weight)
        nn.init.zeros_(layer.fc.bias)
        with torch.no_grad():
            layer.fc.bias[:count] = -100.0
        setattr(model, name, layer)
    model.never = nn.ReLU()

    def forward(x: torch.Tensor) -> list[torch.Tensor]:
        return [getattr(model, name).relu(getattr(model, name).fc(x)) for name in dead]

    model.forward = forward
    return reludiag.scan(model, [torch.linspace(-1, 1, 40).unsqueeze(1)])


def judge(diagnosis: reludiag.Diagnosis, *texts: str, allow: bool = False) -> list[Check]:
    return Gate.parse(texts, allow).judge(diagnosis.sites, diagnosis.unjudged)


def failing(diagnosis: reludiag.Diagnosis, *texts: str) -> list[str | None]:
    return [check.site for check in exceeded(judge(diagnosis, *texts))]


def test_a_plain_limit_is_for_the_whole_model() -> None:
    diagnosis = chain(a=1, b=5)
    assert failing(diagnosis, "30%") == []  # 6 of 20, though b has lost a half
    assert failing(diagnosis, "29%") == [None, "b.relu"]
    assert failing(diagnosis, "6") == []
    assert failing(diagnosis, "5") == [None]


def test_a_site_says_that_its_limit_is_the_one_for_the_whole_model() -> None:
    checks = exceeded(judge(chain(a=1, b=5, c=9), "29%", "c.*=80%"))
    assert [check.sentence.rpartition("(")[2] for check in checks] == [
        "the limit is 29%)",
        "the limit of the whole model is 29%)",
        "the limit is 80%)",
    ]


def test_a_pattern_is_for_each_site_and_the_first_that_matches_counts() -> None:
    diagnosis = chain(a=1, b=5, c=2)
    assert failing(diagnosis, "*=10%") == ["b.relu", "c.relu"]
    assert failing(diagnosis, "b.*=50%", "*=10%") == ["c.relu"]
    assert failing(diagnosis, "*=10%", "b.*=50%") == ["b.relu", "c.relu"]
    assert failing(diagnosis, "[bc].relu=2") == ["b.relu"]
    assert failing(diagnosis, "a.*=0", "100%") == ["a.relu"]
    assert failing(diagnosis, "b.*=50%", "0") == [None, "a.relu", "c.relu"]


def test_a_site_that_is_not_finite_is_over_the_limit() -> None:
    model = nn.Sequential(nn.Linear(1, 4), nn.ReLU())
    model[0].bias.data[0] = float("nan")
    diagnosis = reludiag.scan(model, [torch.ones(4, 1)])
    assert failing(diagnosis, "1=0") == ["1"]


def test_a_pattern_that_matches_no_site_is_refused() -> None:
    gate = Gate.parse(["encoder.*=5%"])
    with pytest.raises(reludiag.UsageError, match=r"no site name matches.*a\.relu"):
        gate.require_matches(chain(a=1).sites, ())


@pytest.mark.parametrize("text", ["=5%", "a=", "a=b", "a=101%", "a=-1", "5%=a", ""])
def test_a_limit_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(reludiag.UsageError, match="was given; expected"):
        Gate.parse([text])


def test_two_limits_for_the_whole_model_are_refused() -> None:
    with pytest.raises(reludiag.UsageError, match="both set a limit for the whole model"):
        Gate.parse(["5%", "6%"])


def test_junit_has_a_case_for_each_site_that_fails_where_it_is_over_the_limit() -> None:
    diagnosis = chain(a=1, b=5)
    root = ElementTree.fromstring(junit(diagnosis, judge(diagnosis, "*=10%")))
    suite = root.find("testsuite")
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "2", "0")
    cases = {case.get("name"): case for case in suite.iter("testcase")}
    assert list(cases) == ["a.relu", "b.relu", "never"]
    failures = {name: case.find("failure") for name, case in cases.items()}
    assert failures["a.relu"] is None
    assert failures["b.relu"].get("message") == (
        "5 of 10 units of 'b.relu' are dead or not finite (the limit is 10%)"
    )
    assert failures["never"].get("message") == (
        f"'never' was never called. Whether units there are dead is not known. {TO_ALLOW}"
    )
    root = ElementTree.fromstring(junit(diagnosis, judge(diagnosis)))
    assert root.find(".//testcase[@name='never']/skipped").get("message") == (
        "'never' was never called. Whether units there are dead is not known."
    )


def test_junit_fails_somewhere_exactly_where_the_gate_does() -> None:
    diagnosis = chain(a=1, b=5)
    for texts in (["30%"], ["29%"], ["5"], ["a.*=0"], ["a.*=1"], []):
        checks = judge(diagnosis, *texts)
        suite = ElementTree.fromstring(junit(diagnosis, checks)).find("testsuite")
        assert any(check.fails for check in checks) == (suite.find(".//failure") is not None), texts


HOSTILE = "x\x00\x1b[31m|`</code><script>alert(1)</script>\n# @you www.evil=[a](b)"


def hostile() -> reludiag.Diagnosis:
    model = nn.Sequential()
    model.add_module("fc", nn.Linear(1, 2))
    model._modules[HOSTILE] = nn.ReLU()
    nn.init.constant_(model.fc.bias, -100.0)
    return reludiag.scan(model, [torch.ones(4, 1)], subject=f"{HOSTILE}.pt")


def test_a_hostile_name_does_nothing_in_junit() -> None:
    diagnosis = hostile()
    suite = ElementTree.fromstring(junit(diagnosis, judge(diagnosis, "0")))[0]
    names = [case.get("name") for case in suite.iter("testcase")]
    assert names[1].startswith("x\ufffd\ufffd[31m|`</code><script>alert(1)</script>")


def test_a_hostile_name_does_nothing_in_markdown() -> None:
    diagnosis = hostile()
    text = markdown(diagnosis, judge(diagnosis, "0"))
    rendered = MarkdownIt("gfm-like", {"linkify": False}).render(text)
    assert "<script" not in rendered and "<a " not in rendered and rendered.count("<h") == 1
    assert "&lt;script&gt;alert(1)" in rendered
    assert rendered.count("<table>") == 1 and rendered.count("<tbody>\n<tr>") == 1
    prose = re.sub("<code>.*?</code>", "", text)
    assert "evil" in prose and "www." not in prose and " @you" not in prose


def test_markdown_shows_each_site_its_limit_and_the_dead_units() -> None:
    diagnosis = chain(a=0, b=2)
    text = markdown(diagnosis, judge(diagnosis, "b.*=10%"))
    assert "**2 of 20 units dead** (10 %)" in text
    assert "| `a.relu` | 10 | 0 | 0 % | 0 |  |  |" in text
    assert "| `b.relu` | 10 | 2 | 20 % | 0 | 10% | **over** |" in text
    assert "| `never` | never called |" in text
    assert "- `b.relu`: 0, 1\n" in text
    assert "Limit" not in markdown(diagnosis, judge(diagnosis))


def test_a_summary_of_a_thousand_sites_shows_the_worst_hundred() -> None:
    model = nn.Sequential(*(m for _ in range(1000) for m in (nn.Linear(1, 1), nn.ReLU())))
    diagnosis = reludiag.scan(model, [torch.ones(2, 1)])
    text = markdown(diagnosis, judge(diagnosis, "*=100%"))
    assert "900 sites with fewer dead units not shown" in text
    assert len(text) < 100_000


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gate")
    model = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU())
    with torch.no_grad():
        model[2].bias[0] = -100.0
    with reludiag.Monitor(model, path=folder / "run.reludiag", probe=torch.ones(4, 1)) as monitor:
        nn.init.constant_(model[0].bias, 5.0)
        monitor.step()
    return folder / "run.reludiag"


def test_the_command_writes_junit_markdown_and_the_summary_of_github(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("of an earlier step\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    junit_file, page = tmp_path / "junit.xml", tmp_path / "page.md"
    done = reludiag_command(
        "report", run, "--junit", junit_file, "--markdown", page, "--github-summary",
        "--fail-over", "3=0", "--fail-over", "*=3", "--json",
    )  # fmt: skip
    assert done.code == 1 and "of 4 units of '3' are dead" in done.err
    assert json.loads(done.out)["totals"]["dead"] >= 1
    assert ElementTree.parse(junit_file).getroot().get("failures") == "1"
    assert summary.read_text() == "of an earlier step\n" + page.read_text()
    monkeypatch.delenv("GITHUB_STEP_SUMMARY")
    assert reludiag_command("report", run, "--github-summary").code == 0
    alone = reludiag_command("report", run, "--markdown", "-").out
    assert alone.startswith("### reludiag") and "What to look at" not in alone


def test_what_cannot_be_written_or_matched_is_a_usage_error(run: Path, tmp_path: Path) -> None:
    for arguments, words in (
        (["--junit", tmp_path / "gone" / "j.xml"], "does not exist"),
        (["--junit", "-", "--markdown", "-"], "only one"),
        (["--fail-over", "5.%=5%"], "no site name matches"),
        (["--fail-over", "x=5x"], "expected a share"),
    ):
        done = reludiag_command("report", run, *arguments)
        assert done.code == 2, arguments
        assert words in done.sentence
