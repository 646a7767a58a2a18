"""Every sentence about a site uses the samples that reached it, not those of the whole model."""

from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn

import reludiag
from reludiag.diagnosis.gate import Gate
from reludiag.measure.binomial import upper_bound
from reludiag.reports.run.figures import figure
from reludiag.reports.run.junit import junit
from reludiag.reports.run.markdown import markdown
from reludiag.reports.run.summary import next_steps
from reludiag.reports.wording import upper_share
from reludiag.testing import assert_alive

WHOLE, FEW = 800, 3


class Experts(nn.Module):
    """Each row goes to one of two experts, of whose four units one is dead."""

    def __init__(self, dead: tuple[int, int] = (0, 1)) -> None:
        super().__init__()
        self.ex = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in dead)
        with torch.no_grad():
            for expert, count in zip(self.ex, dead, strict=True):
                expert[0].bias.fill_(50.0)
                expert[0].bias[:count] = -50.0

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.ex[0](x[FEW:]), self.ex[1](x[:FEW])])


@pytest.fixture
def batch() -> Tensor:
    return torch.randn(WHOLE, 4)


@pytest.fixture
def diagnosis(batch: Tensor) -> reludiag.Diagnosis:
    """With counts of rows put in, as those of the experts, whatever is known of their rows."""
    found = reludiag.scan(Experts(), [batch])
    return routed(found)


def routed(found: reludiag.Diagnosis) -> reludiag.Diagnosis:
    rows = {"ex.0.1": WHOLE - FEW, "ex.1.1": FEW}
    for table in (found.units, found.sites):
        table["samples"] = table["site"].map(rows).astype("Int64")
    return found


def prose(text: str) -> str:
    return " ".join(text.replace("│", " ").split())


def test_the_bound_is_that_of_the_samples_of_the_dead_units(diagnosis: Any) -> None:
    bound = upper_share(float(upper_bound(0, FEW)))
    lines = next_steps(diagnosis)
    assert (
        f"Dead here means 0 of 3 samples that reached the unit's site: a firing rate below {bound} "
        "on data like this, with 95 % confidence."
    ) in lines
    assert any("1 of 4 units dead on 3 of 800 samples." in line for line in lines)
    for text in (prose(str(diagnosis)), markdown(diagnosis, []), diagnosis._repr_html_()):
        assert "0 of 800 samples" not in prose(text)


def test_where_the_samples_of_dead_units_differ_the_bound_is_a_range(batch: Tensor) -> None:
    found = routed(reludiag.scan(Experts((1, 1)), [batch]))
    worst, best = (upper_share(float(upper_bound(0, n))) for n in (FEW, WHOLE - FEW))
    (line,) = [line for line in next_steps(found) if line.startswith("Dead here means")]
    assert f"3 to 797: a firing rate below {worst} where they are fewest" in line
    assert f"below {best} where they are most" in line


def test_the_samples_stand_beside_the_dead_units_in_every_table(
    diagnosis: Any, tmp_path: Any
) -> None:
    (row,) = [line for line in str(diagnosis).splitlines() if line.startswith(" ex.1.1")]
    assert row.split()[:3] == ["ex.1.1", "4", "3"]
    assert "| `ex.1.1` | 4 | 3 | 1 |" in markdown(diagnosis, [])
    checks = Gate.parse(["0"]).judge(diagnosis.sites, diagnosis.unjudged)
    case = ElementTree.fromstring(junit(diagnosis, checks)).find(".//testcase[@name='ex.1.1']")
    assert case.find(".//property[@name='samples']").get("value") == "3"
    diagnosis.to_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert 'title="ex.1.1: 1 of 4 units dead (25 %) on 3 samples"' in page
    picture = figure(diagnosis, "sites")
    assert "1 of 4 dead on 3 samples" in [text.get_text() for text in picture.axes[0].texts]


def test_where_all_sites_see_all_samples_no_table_repeats_them() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    found = reludiag.scan(model, [torch.randn(8, 4)])
    assert "Samples" not in str(found) and "Samples" not in markdown(found, [])
    assert found.units["note"].isna().all()


class Routed(Experts):
    """The same, with rows that can be told apart: the few rows are a batch of their own."""

    def forward(self, x: Tensor) -> Tensor:
        return self.ex[1 if len(x) == FEW else 0](x)


def test_a_unit_has_the_note_on_its_samples_beside_its_verdict(batch: Tensor) -> None:
    found = reludiag.scan(Routed(), [batch[FEW:], batch[:FEW]])
    note = "'ex.1.1' is reached by 3 of 800 samples. A unit that is silent there may well fire"
    assert found.head.notes[0].startswith(note)
    units = found.units.set_index(["site", "unit"])
    assert units.loc[("ex.1.1", 0), ["verdict", "note"]].tolist() == [
        "dead", "reached by 3 of 800 samples",
    ]  # fmt: skip
    assert units.loc[("ex.1.1", 0), "firing_rate_upper"] == pytest.approx(1 - 0.05 ** (1 / 3))


def test_a_failed_assertion_says_the_samples_of_each_site(batch: Tensor) -> None:
    with pytest.raises(AssertionError) as failure:
        assert_alive(Routed(), [batch[FEW:], batch[:FEW]])
    said = str(failure.value)
    assert "  ex.1.1  1 of 4 on 3 samples  fed by ex.1.0" in said
    assert "0 of 3 samples that reached" in said


def test_a_warning_of_a_monitor_says_how_few_samples_reached_the_worst_site() -> None:
    model = Routed((0, 0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    batch = torch.randn(20, 4)
    with (
        pytest.warns(RuntimeWarning, match=r"most in 'ex\.1\.1', 4 of 4, which 3 of 20 samples"),
        reludiag.Monitor(model, optimizer, every=1, probe=[batch, batch[:FEW]]),
    ):
        for _ in range(2):
            model(batch).sum().backward()
            optimizer.step()
            model.ex[1][0].bias.data.fill_(-50.0)


def test_dead_at_step_0_is_said_with_the_samples_of_those_sites() -> None:
    model = Routed((0, 1))
    batch = torch.randn(20, 4)
    with reludiag.Monitor(model, every=1, probe=[batch, batch[:FEW]]) as monitor:
        monitor.step()
    lines = next_steps(monitor.diagnose())
    assert any("1 unit was dead at step 0 (silent on 3 samples)" in line for line in lines)
