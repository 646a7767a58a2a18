"""The house: what imports what, and when."""

import ast
import re
import subprocess
import sys
from collections.abc import Container, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
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


def test_a_newcomer_sees_the_whole_house_at_a_glance() -> None:
    assert len(LINE) <= 20
    assert len(list(PACKAGE.glob("*.py"))) <= 9


def test_contributing_names_every_room() -> None:
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for name in LINE:
        kind = f"`{name}.py`" if (PACKAGE / f"{name}.py").exists() else f"`{name}/`"
        assert kind in text, name


def test_contributing_names_files_that_exist() -> None:
    root = PACKAGE.parent
    text = (root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = re.findall(r"`([\w./]+/[\w./]+|\w+\.(?:py|toml|md))`", text)
    assert len(paths) > 20
    for path in paths:
        if "NAME" not in path and path not in {".venv/bin/python"}:
            assert any((base / path).exists() for base in (root, PACKAGE)), path


# A result and the files of its own reports, which it calls in its methods and which are made of it.
OWN_REPORTS = {
    "diagnosis.diagnosis": (
        *("reports.run.*", "reports.html.page", "reports.html.content", "reports.html.charts"),
    ),
    "diagnosis.difference": ("reports.difference_report",),
    "initialization.examination": ("reports.init_report",),
    "experiments.analysis.effects": (
        *("reports.sweep.*", "reports.html.sweep_*", "reports.html.heat_maps"),
    ),
    "experiments.replay": ("reports.replay_report",),
}


def modules() -> dict[str, ast.Module]:
    """Dotted name in the package -> its syntax tree; the door, `reludiag` itself, is none."""
    trees = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        trees[name] = ast.parse(path.read_text(encoding="utf-8"))
    del trees[""]
    return trees


def always_run(tree: ast.Module) -> Iterator[ast.AST]:
    """What runs when a module is imported: no body of a function, nothing for type checkers."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        waiting += ast.iter_child_nodes(node)


def arrows(nodes: Iterable[ast.AST], known: Container[str]) -> set[str]:
    """The modules that these import."""
    names = []
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{each.name}" for each in node.names] + [node.module]
        elif isinstance(node, ast.Import):
            names += [each.name for each in node.names]
    return {short for name in names if (short := name.removeprefix("reludiag.")) in known}


def named(tree: ast.Module, known: Container[str]) -> set[str]:
    """The modules that a table names, as `reludiag.a.b:function`, to be imported when used."""
    texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)]
    names = [n for text in texts for n in re.findall(r"^reludiag\.([\w.]+):\w+$", str(text))]
    return {name for name in names if name in known}


def loops(graph: Mapping[str, set[str]]) -> set[frozenset[str]]:
    """Its strongly connected components of two modules and more."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [*graph[start]]
        while waiting:
            if (name := waiting.pop()) not in seen:
                seen.add(name)
                waiting += graph[name]
        return seen

    reach = {name: reached(name) for name in graph}
    found = (frozenset(b for b in reach[a] if a in reach[b]) for a in graph)
    return {loop for loop in found if len(loop) > 1}


def test_loops_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": {"d"}, "f": {"f", "a"}}
    assert loops(graph) == {frozenset("abc"), frozenset("de")}


def test_no_modules_import_each_other_when_they_are_imported() -> None:
    trees = modules()
    assert loops({name: arrows(always_run(tree), trees) for name, tree in trees.items()}) == set()


def test_only_a_result_and_its_own_reports_call_each_other() -> None:
    trees = modules()
    every = loops(
        {n: arrows(ast.walk(tree), trees) | named(tree, trees) for n, tree in trees.items()}
    )
    by_result = {result: loop for loop in every for result in loop & set(OWN_REPORTS)}
    assert set(by_result) == set(OWN_REPORTS)
    assert len(every) == len(OWN_REPORTS)
    for result, loop in by_result.items():
        patterns = OWN_REPORTS[result]
        others = {n for n in loop - {result} if not any(fnmatchcase(n, p) for p in patterns)}
        assert others == set(), result


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


def test_importing_loads_no_package_of_statistics() -> None:
    loaded = modules_after(
        """
import reludiag
reludiag.scan, reludiag.Monitor, reludiag.load, reludiag.diff
reludiag.Effects, reludiag.effects, reludiag.compare, reludiag.replay
import reludiag.reports, reludiag.reports.live, reludiag.reports.site_list
"""
    )
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
    code = f"""
import os, sys
os.chdir({str(run_folder)!r})
from reludiag_cli.app import app
for name, arguments in {commands}.items():
    app([name, *arguments], standalone_mode=False)
    assert not {SEVERAL_RUNS} & set(sys.modules), name
"""
    assert {"torch", "matplotlib"} <= modules_after(code)


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
