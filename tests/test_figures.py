"""Figures: what is drawn, in which formats, and that names stay names."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import reludiag
from reludiag.recording.ledger import Life
from reludiag.reports.figure_style import HEAT_COLOURS, VERDICT_COLOURS, write_figure
from reludiag.reports.html.verdict_style import verdict_css
from reludiag.reports.run.figures import STATE_COLOURS
from reludiag.reports.run.lifelines import lifelines, raster
from tests.planted_runs import NEVER, dying, planted_run
from tests.test_html import HOSTILE

pytest.importorskip("matplotlib")

STYLE = Path(reludiag.__file__).parent / "reports" / "html" / "style.css"
RUN = planted_run({"a": [(0, NEVER), (3, NEVER), (2, 4), (NEVER, NEVER)], "b": dying(30, 6)}, 6)


def effects() -> reludiag.Effects:
    rows = [
        {"lr": lr, "init": init, "seed": seed, "status": "complete", "steps": 10, "units": 100,
         "born": 0, "new": new, "dead": new, "nonfinite": 0}
        for lr, new in ((0.01, 0), (0.1, 10), (1.0, 100))
        for init in ("kaiming", "$bad^{")
        for seed in range(2)
    ]  # fmt: skip
    return reludiag.effects(pd.DataFrame(rows))


@pytest.mark.parametrize("ending", ["svg", "pdf", "png"])
@pytest.mark.parametrize("kind", ["lifelines", "sites", "rates"])
def test_each_figure_is_written_in_each_format(tmp_path: Path, kind: str, ending: str) -> None:
    write_figure(RUN.figure(kind), tmp_path / f"figure.{ending}")
    begins = {"svg": b"<?xml", "pdf": b"%PDF", "png": b"\x89PNG"}[ending]
    assert (tmp_path / f"figure.{ending}").read_bytes().startswith(begins)


def test_the_same_run_gives_the_same_file(tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        write_figure(RUN.figure("lifelines"), tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_lifelines_show_planted_deaths_at_their_place() -> None:
    drawn = RUN.figure("lifelines")
    rates, deaths, below = drawn.axes
    mesh = below.collections[0]
    states = mesh.get_array().reshape(-1, 6)
    assert states[:4].tolist() == [
        [Life.BORN_DEAD] * 6,
        [Life.ALIVE] * 2 + [Life.DEAD] * 2 + [Life.REVIVED] * 2,
        [Life.ALIVE] * 3 + [Life.DEAD] * 3,
        [Life.ALIVE] * 6,
    ]
    assert mesh.get_coordinates()[0, :, 0].tolist() == [-2.5, 0, 10, 20, 30, 40, 50]
    heights = [patch.get_height() for patch in deaths.patches[:6]]
    assert heights == RUN.timeline.groupby("step")["died"].sum().tolist()
    assert [text.get_text() for text in below.get_yticklabels()] == ["a", "b"]
    assert rates.get_title(loc="left") == "Largest learning rate"


def test_a_row_of_several_units_has_the_gravest_state() -> None:
    lives = lifelines(planted_run({"wide": [(5, NEVER)] + [(NEVER, NEVER)] * 1_999}, 9))
    states, ends = raster(lives.sites, 1_000)
    assert ends == (1_000,)
    assert (states == Life.DEAD).sum() == 4


def test_many_sites_are_a_row_each() -> None:
    drawn = planted_run({f"s{at}": dying(10, 6, seed=at) for at in range(60)}, 6).figure(
        "lifelines"
    )
    assert drawn.axes[-1].collections[0].get_array().size == 60 * 6
    assert "60 sites" in drawn.axes[-1].get_title(loc="left")


def test_the_shares_of_a_site_add_up() -> None:
    axes = RUN.figure("sites").axes[0]
    ends = [patch.get_x() + patch.get_width() for patch in axes.patches]
    assert np.isclose(max(ends), 1)
    assert "2 of 4 dead" in [text.get_text() for text in axes.texts]


def test_a_sweep_has_its_shares_written_in() -> None:
    drawn = effects().figure()
    assert [text.get_text() for text in drawn.axes[0].texts] == ["0", "10", "100"] * 2


def test_names_are_not_read_as_formulae_nor_as_markup(tmp_path: Path) -> None:
    names = [*HOSTILE, "$\\frac{", "$x^2$", "line\nbreak"]
    run = planted_run({name: dying(20, 6) for name in names}, 6)
    for kind in ("lifelines", "sites", "rates"):
        write_figure(run.figure(kind), tmp_path / "figure.svg")
        assert "<script" not in (tmp_path / "figure.svg").read_text()
    write_figure(effects().figure(), tmp_path / "figure.svg")


def test_what_cannot_be_drawn_says_why(tmp_path: Path) -> None:
    scan = reludiag.scan(nn.Sequential(nn.Linear(2, 4), nn.ReLU()), [torch.randn(8, 2)])
    with pytest.raises(reludiag.UsageError, match="no timeline"):
        write_figure(scan.figure("lifelines"), tmp_path / "figure.svg")
    with pytest.raises(reludiag.UsageError, match=r"ends in \.svg"):
        write_figure(RUN.figure("sites"), tmp_path / "figure.gif")
    assert list(tmp_path.iterdir()) == []


def test_colours_are_those_of_the_page() -> None:
    style = STYLE.read_text(encoding="utf-8") + verdict_css()
    light = dict(re.findall(r"--([\w-]+): light-dark\((#\w+)", style))
    assert tuple(light[f"h{at}"] for at in range(6)) == HEAT_COLOURS
    for colours in (STATE_COLOURS, VERDICT_COLOURS):
        for key, colour in colours.items():
            name = str(getattr(key, "name", key)).lower().replace("_", "-")
            assert key is Life.UNKNOWN or light[name] == colour


def test_a_figure_that_there_is_not_is_refused_by_name() -> None:
    with pytest.raises(
        reludiag.UsageError, match="'foo' does not exist; expected one of lifelines"
    ):
        RUN.figure("foo")
