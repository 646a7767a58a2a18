"""What is not judged is said wherever something is counted, and no gate is green over it."""

import json
import sqlite3
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import reludiag
from reludiag.diagnosis.from_json import open_diagnosis
from reludiag.diagnosis.gate import TO_ALLOW, Check, Gate
from reludiag.measure.site_list import list_sites
from reludiag.reports.run.junit import junit
from reludiag.reports.run.markdown import markdown
from reludiag.testing import assert_alive
from tests.test_cli import Done, reludiag_command

X = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A layer whose units are all alive, and then what `rest` does of its output."""

    def __init__(self, rest: Callable[["Net", Tensor], object], **parts: nn.Module) -> None:
        super().__init__()
        self.fc, self.relu, self.rest = nn.Linear(4, 4), nn.ReLU(), rest
        nn.init.eye_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.fc(x))
        self.rest(self, x)
        return x


class Pair(nn.ReLU):
    """Its output cannot be read, as it is no tensor."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x), x


class Branch(nn.Module):
    """It calls a function, and is not called."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x)


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))


WAYS: dict[str, tuple[Callable[[], Net], str, str, str]] = {
    "a module that is not called": (
        lambda: Net(lambda m, x: x, part=nn.ReLU()),
        "part", "never_called", "'part' was never called",
    ),
    "a function that is not called": (
        lambda: Net(lambda m, x: x, part=Branch()),
        "part:relu", "never_called", "'part:relu' was never called",
    ),
    "TorchScript": (
        lambda: Net(lambda m, x: m.part(x), part=scripted()),
        "part:relu", "unreadable", "'part:relu' was called, but cannot be read (1 call)",
    ),
    "an output that is no tensor": (
        lambda: Net(lambda m, x: m.part(x), part=Pair()),
        "part", "unreadable", "'part' was called, but cannot be read (it returned a tuple)",
    ),
    "a transform": (
        lambda: Net(lambda m, x: torch.func.vmap(m.part)(x), part=nn.ReLU()),
        "part", "transformed", "'part' was called inside a torch.func transform",
    ),
    "calls in a transform beside others": (
        lambda: Net(lambda m, x: m.part(torch.func.vmap(m.part)(x)), part=nn.ReLU()),
        "part", "transformed", "'part' was called inside a torch.func transform",
    ),
    "no rows": (
        lambda: Net(lambda m, x: m.part(x[:0]), part=nn.ReLU()),
        "part", "no_rows", "'part' was called, but got no rows",
    ),
    "layers below the last": (
        lambda: Net(
            lambda m, x: m.part(x[:, None]), part=nn.RNN(4, 4, 2, "relu", batch_first=True)
        ),
        "part", "lower_layers", "Of 'part' only the last layer can be read",
    ),
    "an unknown axis": (
        lambda: Net(lambda m, x: m.part((x[:, :, None] - 9) * (x[:, None] - 9)), part=nn.ReLU()),
        "part", "unknown_axis", "dead channels may be hidden. Set the axis with --unit-axis part=",
    ),
}  # fmt: skip

way = pytest.mark.parametrize(("build", "where", "reason", "words"), WAYS.values(), ids=list(WAYS))


def judge(diagnosis: reludiag.Diagnosis, *texts: str, allow: bool = False) -> list[Check]:
    return Gate.parse(texts, allow).judge(diagnosis.sites, diagnosis.unjudged)


def without_breaks(text: str) -> str:
    return " ".join(text.replace("│", " ").split())


@way
def test_every_report_says_it_where_the_count_is_said(
    build: Callable[[], Net], where: str, reason: str, words: str
) -> None:
    diagnosis = reludiag.scan(build(), [X])
    assert [(place.where, place.reason) for place in diagnosis.unjudged] == [(where, reason)]
    text = without_breaks(str(diagnosis))
    head = text.partition("Site ")[0]
    assert words in head and "1 place not judged" in head
    page = markdown(diagnosis, judge(diagnosis))
    assert "**1 place not judged**" in page and words.split("'")[0] in page
    assert words in diagnosis.head.notes[0]
    assert "No unit is dead" not in text + page
    assert "None of the " in text or diagnosis.dead
    assert all(note in diagnosis._repr_html_().replace("&#39;", "'") for note in [words])
    assert words in " ".join(place.sentence for place in list_sites(build(), [X]).unjudged)


@way
def test_no_gate_is_green_unless_that_is_allowed(
    build: Callable[[], Net], where: str, reason: str, words: str, tmp_path: Path
) -> None:
    model = build()
    diagnosis = reludiag.scan(model, [X])
    with pytest.raises(AssertionError) as failure:
        assert_alive(model, [X], max_dead="60%")
    assert words in str(failure.value) and TO_ALLOW in str(failure.value)
    assert_alive(model, [X], max_dead="60%", allow_unobserved=True)
    for limits, allow, fails in (
        (["60%"], False, True),
        (["*=60%"], False, True),
        (["*=60%"], True, False),
        (["60%"], True, False),
        (["relu=0"], False, False),
        ([f"{where}=100%", "60%"], False, False),
        ([], False, False),
    ):
        checks = judge(diagnosis, *limits, allow=allow)
        assert any(check.fails for check in checks) is fails, limits
        root = ElementTree.fromstring(junit(diagnosis, checks))
        failed = [case.get("message") for case in root.iter("failure")]
        assert root.get("failures") == str(len(failed)) and bool(failed) is fails
        assert all(words in message and TO_ALLOW in message for message in failed)
        assert ("**Not judged:**" in markdown(diagnosis, checks)) is fails
    path = tmp_path / "junit.xml"
    diagnosis.write(path, fail_over="60%")
    assert "<failure" in path.read_text()
    diagnosis.write(path, fail_over="60%", allow_unobserved=True)
    assert "<failure" not in path.read_text()


@way
def test_a_document_keeps_it(
    build: Callable[[], Net], where: str, reason: str, words: str, tmp_path: Path
) -> None:
    diagnosis = reludiag.scan(build(), [X])
    diagnosis.to_json(tmp_path / "report.json")
    again = open_diagnosis(tmp_path / "report.json")
    assert again.unjudged == diagnosis.unjudged
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["unjudged"][0]["where"] == where and words in content["notes"][0]


@way
@pytest.mark.parametrize("probed", [True, False])
def test_a_recording_keeps_it(
    build: Callable[[], Net],
    where: str,
    reason: str,
    words: str,
    probed: bool,
    tmp_path: Path,
) -> None:
    model, path = build(), tmp_path / "run.reludiag"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with reludiag.Monitor(
        model, optimizer, path=path, every=2, probe=X if probed else None, warn_over=None
    ):
        for _ in range(4):
            optimizer.zero_grad()
            model(X).sum().backward()
            optimizer.step()
    diagnosis = reludiag.load(path)
    assert (where, reason) in [(place.where, place.reason) for place in diagnosis.unjudged]
    assert any(words in note for note in diagnosis.head.notes)
    assert any(check.fails for check in judge(diagnosis, "60%"))
    assert "No unit is dead" not in str(diagnosis)


def test_where_everything_is_judged_nothing_is_said() -> None:
    diagnosis = reludiag.scan(Net(lambda m, x: x), [X])
    assert diagnosis.unjudged == () and diagnosis.judged_units == 4
    assert "No unit is dead." in str(diagnosis)
    assert not any(check.fails for check in judge(diagnosis, "0"))


def test_an_activation_that_cannot_die_need_not_be_judged() -> None:
    model = Net(lambda m, x: m.other(x[:, :, None] * x[:, None]), part=nn.GELU(), other=nn.SiLU())
    assert reludiag.scan(model, [X]).unjudged == ()


def test_a_site_that_no_run_of_the_last_window_called_fails_the_gate() -> None:
    model = Net(lambda m, x: m.part(x) if m.training_part else x, part=nn.ReLU())
    model.training_part = True
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with reludiag.Monitor(model, optimizer, every=2, warn_over=None) as monitor:
        for step in range(4):
            model.training_part = step < 2
            model(X).sum().backward()
            optimizer.step()
    diagnosis = monitor.diagnose()
    assert [(p.where, p.reason) for p in diagnosis.unjudged] == [("part", "not_called_again")]
    assert any(check.fails for check in judge(diagnosis, "60%"))


def test_what_may_be_anywhere_fails_every_limit_and_has_its_own_test_case() -> None:
    def in_a_thread(model: Net, x: Tensor) -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(lambda: functional.relu(model.part(x))).result()

    diagnosis = reludiag.scan(Net(in_a_thread, part=nn.Linear(4, 4), other=Branch()), [X])
    assert ("", "other_thread") in [(place.where, place.reason) for place in diagnosis.unjudged]
    for limits, fails in ((["0"], True), (["relu=0"], True), (["relu=100%"], False)):
        checks = judge(diagnosis, *limits)
        assert any(check.fails_unjudged and not check.site for check in checks) is fails
    root = ElementTree.fromstring(junit(diagnosis, judge(diagnosis, "0")))
    case = root.find(".//testcase[@name='other_thread']")
    assert "ran in another thread" in case.find("failure").get("message")


def test_a_function_of_a_method_that_is_replaced_is_not_missed() -> None:
    class Child(Branch):
        def forward(self, x: Tensor) -> Tensor:
            return x

    assert reludiag.scan(Net(lambda m, x: m.part(x), part=Child()), [X]).unjudged == ()


def test_a_document_without_the_account_says_what_its_sites_tell(tmp_path: Path) -> None:
    """As older versions wrote it."""
    path = tmp_path / "old.json"
    model = Net(lambda m, x: m.part((x[:, :, None] - 9) * (x[:, None] - 9)), part=nn.ReLU())
    model.never = nn.ReLU()
    reludiag.scan(model, [X]).to_json(path)
    content = json.loads(path.read_text())
    del content["unjudged"]
    for unit in content["units"]:
        del unit["note"]
    path.write_text(json.dumps(content))
    assert {(place.where, place.reason) for place in open_diagnosis(path).unjudged} == {
        ("part", "unknown_axis"), ("never", "never_called"),
    }  # fmt: skip


def test_a_recording_without_the_account_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "run.reludiag"
    model = Net(lambda m, x: m.part(x), part=scripted())
    with reludiag.Monitor(model, path=path, probe=X) as monitor:
        monitor.step()
    with sqlite3.connect(path) as db:
        db.execute("DELETE FROM run WHERE key = 'unjudged'")
    db.close()
    assert reludiag.load(path).unjudged == ()


def test_the_units_of_an_unknown_axis_are_listed_though_they_seem_alive(tmp_path: Path) -> None:
    model = Net(lambda m, x: m.part((x[:, :, None] - 9) * (x[:, None] - 9)), part=nn.ReLU())
    reludiag.scan(model, [X]).to_csv(tmp_path / "units.csv")
    lines = (tmp_path / "units.csv").read_text().splitlines()
    assert lines[0].endswith(",note") and len(lines) == 5
    assert all(line.startswith("part,") and "axis unknown" in line for line in lines[1:])


MODULE = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self, dead):
        super().__init__()
        self.fc, self.relu, self.branch = nn.Linear(2, 2), nn.ReLU(), nn.ReLU()
        nn.init.constant_(self.fc.bias, -100.0 if dead else 100.0)
    def forward(self, x): return self.relu(self.fc(x))
def build(dead=False): return Net(dead)
def batches(): return [torch.ones(4, 2)]
"""


def test_the_commands_exit_3_over_it_and_1_where_a_limit_is_exceeded(
    tmp_path: Path,
) -> None:
    (tmp_path / "net.py").write_text(MODULE)

    def command(*more: str) -> Done:
        return reludiag_command(*call, *more, cwd=tmp_path)

    call = ["scan", "net.py:build", "--data", "net.py:batches", "--csv", "units.csv"]
    said = "--fail-over: 'branch' was never called."
    done = command("--fail-over", "0", "--junit", "junit.xml")
    assert done.code == 3 and said in done.err and "--allow-unobserved" in done.err
    assert ElementTree.parse(tmp_path / "junit.xml").getroot().get("failures") == "1"
    assert command("--fail-over", "0", "--allow-unobserved").code == 0
    assert command().code == 0
    done = command("--fail-over", "0", "--model-arg", "dead=true")
    assert done.code == 1 and said in done.err
    (tmp_path / "pyproject.toml").write_text("[tool.reludiag]\nallow-unobserved = true\n")
    assert command("--fail-over", "0").code == 0


def test_the_report_of_a_run_exits_3_over_what_the_monitor_could_not_see(tmp_path: Path) -> None:
    path = tmp_path / "run.reludiag"
    model = Net(lambda m, x: m.part(x), part=scripted())
    with reludiag.Monitor(model, path=path, probe=X) as monitor:
        monitor.step()
    done = reludiag_command("report", path, "--fail-over", "0")
    assert done.code == 3 and "'part:relu' was called, but cannot be read" in done.err
    assert reludiag_command("report", path, "--fail-over", "0", "--allow-unobserved").code == 0


def test_a_difference_is_not_green_over_what_the_second_did_not_judge(tmp_path: Path) -> None:
    whole, branch = tmp_path / "whole.json", tmp_path / "branch.json"
    model = Net(lambda m, x: m.part(x), part=nn.ReLU())
    reludiag.scan(model, [X]).to_json(whole)
    model.rest = lambda m, x: x
    reludiag.scan(model, [X]).to_json(branch)
    done = reludiag_command("diff", whole, branch, "--fail-on-new-deaths")
    assert done.code == 3 and "--fail-on-new-deaths: 'part' was never called." in done.err
    assert "In the second: 'part' was never called." in without_breaks(done.out)
    both = ("--fail-on-new-deaths", "--allow-unobserved")
    assert reludiag_command("diff", whole, branch, *both).code == 0
    assert reludiag_command("diff", branch, whole, "--fail-on-new-deaths").code == 0


def test_a_submodule_called_through_another_name_is_no_function() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.relu = nn.Linear(8, 8), nn.ReLU()

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Block() for _ in range(3))

        def forward(this, x: Tensor) -> Tensor:  # noqa: N805
            for block in this.blocks:
                x = block.relu(block.layer(x))
            return x

    model = Network()
    assert reludiag.scan(model, [torch.randn(64, 8)]).unjudged == ()
    assert [site.name for site in list_sites(model).sites] == [
        f"blocks.{index}.relu" for index in range(3)
    ]


class OwnClip(nn.ReLU6):
    """A rectifier of the user's own, as a class of PyTorch's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu6(x)


class Helper(nn.Module):
    """Operations of which a model uses some, as PyTorch's FloatFunctional."""

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y

    def add_relu(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + y)


class Residual(nn.Module):
    def __init__(self, operations: nn.Module, method: str = "") -> None:
        super().__init__()
        self.fc, self.act, self.operations, self.method = (
            *(nn.Linear(4, 4), nn.ReLU(), operations, method),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.operations.add(x, self.act(self.fc(x)))


class MaybeResidual(Residual):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.operations.add_relu(x, x) if self.method else super().forward(x)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(4, 4), OwnClip()),
        Residual(Helper()),
        Residual(torch.ao.nn.quantized.FloatFunctional()),
    ],
)
def test_what_the_model_has_no_way_to_call_is_no_place_that_was_never_called(
    model: nn.Module,
) -> None:
    assert not reludiag.scan(model, [torch.randn(32, 4)]).unjudged


@pytest.mark.parametrize("operations", [Helper, torch.ao.nn.quantized.FloatFunctional])
def test_a_method_that_a_branch_not_taken_calls_was_never_called(
    operations: Callable[[], nn.Module],
) -> None:
    (place,) = reludiag.scan(MaybeResidual(operations()), [torch.randn(32, 4)]).unjudged
    assert "operations" in place.where and place.reason == "never_called"


def test_a_converted_module_is_one_place() -> None:
    module = torch.ao.nn.quantized.ReLU6()
    model = nn.Sequential(torch.ao.nn.quantized.Quantize(0.1, 64, torch.quint8), module)
    diagnosis = reludiag.scan(model, [torch.randn(32, 4)])
    assert [place.where for place in diagnosis.unjudged if place.reason == "never_called"] == []
