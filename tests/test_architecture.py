"""The house: what imports what, and when."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import reludiag

PACKAGE = Path(__file__).parents[1] / "reludiag"
# A module imports only from those to its left.
LINE = [
    "errors",
    "printable",
    "process",
    "tables",
    "limits",
    "sites",
    "loading",
    "capture",
    "measure",
    "recording",
    "initialization",
    "evidence",
    "causes",
    "diagnosis",
    "scanning",
    "monitoring",
    "integrations",
    "experiments",
    "reports",
    "testing",
]
# Backwards on purpose, at call time: Diagnosis.to_csv, Effects.to_csv and their like.
ALLOWED = {
    ("diagnosis", "reports"),
    ("initialization", "reports"),
    ("experiments", "reports"),
}


def imported_modules(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module]
    names += [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    return {name.split(".")[1] for name in names if name.startswith("reludiag.")}


def files() -> list[Path]:
    return [p for p in PACKAGE.rglob("*.py") if p.name not in {"__main__.py"} and p.parent.name]


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_along_the_line(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    if str(relative) == "__init__.py":
        return
    own = relative.parts[0].removesuffix(".py")
    for other in imported_modules(path) - {own}:
        assert (own, other) in ALLOWED or LINE.index(other) < LINE.index(own), (own, other)


def test_every_module_stands_on_the_line() -> None:
    own = {p.relative_to(PACKAGE).parts[0].removesuffix(".py") for p in files()}
    assert own - {"__init__"} == set(LINE)


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_library_never_prints_nor_exits(path: Path) -> None:
    calls = [n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
    named = {f.id for f in calls if isinstance(f, ast.Name)}
    named |= {ast.unparse(f) for f in calls if isinstance(f, ast.Attribute)}
    assert not named & {"print", "exit", "sys.exit", "input"}


def modules_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print('MODULES', *sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
    )
    return set(done.stdout.rpartition("MODULES")[2].split())


def test_import_reludiag_loads_neither_torch_nor_pandas() -> None:
    loaded = modules_after("import reludiag; dir(reludiag)")
    assert not loaded & {"torch", "pandas", "numpy", "scipy", "rich", "jinja2", "plotly"}


SEVERAL_RUNS = {"scipy.stats", "scipy.optimize", "statsmodels", "optuna"}
"""Only an analysis of several runs needs these; they take longer to import than a small scan."""


@pytest.mark.parametrize(
    "code",
    [
        "import reludiag; reludiag.scan, reludiag.Monitor, reludiag.load, reludiag.diff",
        "import reludiag; reludiag.Effects, reludiag.effects, reludiag.compare, reludiag.replay",
        "import reludiag.reports, reludiag.reports.live, reludiag.reports.site_list",
    ],
)
def test_importing_loads_no_package_of_statistics(code: str) -> None:
    loaded = modules_after(code)
    assert "reludiag.diagnosis.diagnosis" in loaded
    assert not loaded & {*SEVERAL_RUNS, "matplotlib"}


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(
        "from torch import nn\nnet = nn.Sequential(nn.Linear(2, 3), nn.ReLU())\n"
    )
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    optimizer, inputs = torch.optim.SGD(model.parameters(), 0.1), torch.randn(8, 2)
    path = tmp_path / "run.reludiag"
    with reludiag.Monitor(model, optimizer, path=path, every=1, probe=inputs, warn_over=None):
        for _ in range(2):
            optimizer.zero_grad()
            model(inputs).sum().backward()
            optimizer.step()
    torch.save(model.state_dict(), tmp_path / "net.pt")
    torch.save(inputs, tmp_path / "inputs.pt")
    return tmp_path


def test_a_command_about_one_run_loads_no_package_of_statistics(run_folder: Path) -> None:
    commands = {
        "scan": ["net.py:net", "net.pt", "--data", "inputs.pt", "--csv", "a.csv"],
        "sites": ["net.py:net"],
        "report": ["run.reludiag", "--html", "a.html", "--json", "--output", "a.json"],
        "diff": ["run.reludiag", "run.reludiag"],
        "plot": ["run.reludiag", "-o", "a.svg"],
        "watch": ["run.reludiag", "--once"],
    }
    for name, arguments in commands.items():
        code = f"""
import os
os.chdir({str(run_folder)!r})
from reludiag_cli.app import app
app([{name!r}, *{arguments}], standalone_mode=False)
"""
        assert not modules_after(code) & SEVERAL_RUNS, name


COMMANDS = (
    *("scan", "report", "diff", "compare", "init", "sweep", "replay", "plot"),
    *("config", "watch"),
)


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_loads_neither_torch_nor_pandas(arguments: list[str]) -> None:
    code = f"""
import sys
sys.argv = ["reludiag", *{arguments}]
from reludiag_cli.app import main
try:
    main()
except SystemExit as done:
    assert done.code == 0
"""
    loaded = modules_after(code)
    assert "typer" in loaded
    assert not loaded & {"torch", "pandas", "numpy", "scipy", "statsmodels", "jinja2", "matplotlib"}
