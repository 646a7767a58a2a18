"""The house: what imports what, and when."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_a_scan_and_a_recorded_run_load_no_package_of_statistics() -> None:
    """Which takes longer to import than a small network to scan."""
    loaded = modules_after("import reludiag; reludiag.scan, reludiag.Monitor, reludiag.load")
    assert "torch" in loaded
    assert not loaded & {"scipy.stats", "scipy.optimize", "statsmodels", "optuna", "matplotlib"}


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
