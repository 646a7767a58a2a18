"""Structure: what keeps units from training, found without a single death."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import reludiag
from reludiag.diagnosis.from_json import open_diagnosis
from reludiag.measure.gradients import gradient_facts
from reludiag.measure.site_list import list_sites
from reludiag.measure.structure import StructureNote
from reludiag.reports.site_list import sites_document

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))


@dataclass
class Output:
    """As many libraries return what a model makes."""

    scores: Tensor


class Net(nn.Module):
    """Two layers; `end` makes the output of the second one's."""

    def __init__(self, end: Callable[["Net", Tensor], Any], act: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(4, 4)
        self.hidden, self.act, self.end = nn.ReLU(), act or nn.ReLU(), end

    def forward(self, x: Tensor) -> Any:
        return self.end(self, self.act(self.second(self.hidden(self.first(x)))))


def places(notes: tuple[StructureNote, ...], kind: str = "rectified_output") -> list[str]:
    return [note.place for note in notes if note.kind == kind]


def kinds(notes: tuple[StructureNote, ...]) -> set[str]:
    return {note.kind for note in notes}


def looks(model: nn.Module, x: Any = X) -> list[tuple[StructureNote, ...]]:
    """The notes of a scan and of a list of sites."""
    return [reludiag.scan(model, [x]).structure, list_sites(model, [x]).structure]


RETURNED: dict[str, Callable[[Net, Tensor], Any]] = {
    "itself": lambda m, y: y,
    "reshaped": lambda m, y: y.view(-1, 2, 2).transpose(1, 2),
    "sliced and squeezed": lambda m, y: y[:, :1].squeeze(1),
    "cloned": lambda m, y: y.clone(),
    "in a dictionary": lambda m, y: {"scores": y, "more": m.third(m.second.weight.sum(1))},
    "in a list in a tuple": lambda m, y: (None, [y]),
    "in an object": lambda m, y: Output(y),
}
NOT_RETURNED: dict[str, Callable[[Net, Tensor], Any]] = {
    "softmax": lambda m, y: y.softmax(1),
    "sum": lambda m, y: y.sum(1),
    "shifted": lambda m, y: y - 1,
    "shifted in place": lambda m, y: y.sub_(1),
    "read by a layer": lambda m, y: m.third(y),
    "returned as a feature as well": lambda m, y: (m.third(y), y),
    "a residual": lambda m, y: y + m.third(y),
    "not returned": lambda m, y: m.third(m.second.weight.T),
}


@pytest.mark.parametrize("end", RETURNED.values(), ids=RETURNED)
def test_a_rectifier_whose_output_the_model_returns_is_named(end: Any) -> None:
    for notes in looks(Net(end)):
        assert places(notes) == ["act"]


@pytest.mark.parametrize("end", NOT_RETURNED.values(), ids=NOT_RETURNED)
def test_a_rectifier_with_whose_output_something_is_done_is_not(end: Any) -> None:
    for notes in looks(Net(end)):
        assert places(notes) == []


@pytest.mark.parametrize("act", [nn.ReLU6(), nn.Hardtanh(0, 1), nn.Hardswish(), nn.LeakyReLU()])
def test_what_is_said_of_it_holds_for_its_activation(act: nn.Module) -> None:
    notes = [n for n in reludiag.scan(Net(lambda m, y: y, act), [X]).structure if n.place == "act"]
    if isinstance(act, nn.LeakyReLU):
        assert not notes
        return
    (note,) = notes
    assert ("returns no value below 0" in note.sentence) == (not isinstance(act, nn.Hardswish))
    assert type(act).__name__ in note.sentence and "4 units" in note.sentence


def test_it_is_said_how_many_of_its_units_are_dead() -> None:
    model = Net(lambda m, y: y)
    with torch.no_grad():
        model.second.bias[:2] = -100.0
    for notes in looks(model):
        (note,) = [note for note in notes if note.kind == "rectified_output"]
        assert note.value == 2
        assert "2 of them are dead: on none of 64 samples does a gradient" in note.sentence


# Why they died


def run(model: nn.Module, steps: int = 4, **options: Any) -> reludiag.Diagnosis:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    with reludiag.Monitor(model, optimizer, every=2, **options) as monitor:
        for _ in range(steps):
            optimizer.zero_grad()
            output = model(X)
            (output[0] if isinstance(output, tuple) else output).sum().backward()
            optimizer.step()
    return monitor.diagnose()


def silenced(end: Callable[[Net, Tensor], Any], layer: str = "second") -> Net:
    model = Net(end)
    with torch.no_grad():
        # As unlucky weights do: no bias that would be to blame.
        weight = getattr(model, layer).weight
        weight.copy_(-weight.abs())
        getattr(model, layer).bias.zero_()
    return model


@pytest.mark.parametrize("probe", [None, X])
def test_an_output_that_is_dead_from_the_start_is_dead_by_the_structure(probe: Any) -> None:
    model = Net(lambda m, y: y)
    model.second = nn.Linear(8, 1)
    with torch.no_grad():
        model.second.weight.copy_(-model.second.weight.abs())
        model.second.bias.zero_()
    diagnosis = run(model, probe=probe)
    cause = diagnosis.causes[0]
    assert (cause.kind, cause.identifiable, cause.share) == ("structure", True, 1.0)
    assert "The one unit of 'act' is dead since step 0" in cause.sentence
    assert "'second'" in cause.advice
    assert places(diagnosis.structure) == ["act"]


def test_a_dead_site_that_a_layer_reads_is_not_dead_by_the_structure() -> None:
    for end in (lambda m, y: m.third(y), lambda m, y: (m.third(y), y)):
        assert "structure" not in {cause.kind for cause in run(silenced(end), probe=X).causes}


def test_an_output_that_is_dead_in_part_is_not_dead_by_the_structure() -> None:
    model = Net(lambda m, y: y)
    with torch.no_grad():
        model.second.weight[0].copy_(-model.second.weight[0].abs())
        model.second.bias.zero_()
    assert run(model, probe=X).causes[0].kind == "none"


# Gradients


class Loose(nn.Module):
    """Has layers that get no gradient, each for another reason."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.head = nn.Linear(6, 4), nn.Linear(4, 2)
        self.dead, self.unused, self.cut = nn.Linear(6, 3), nn.Linear(2, 2), nn.Linear(6, 2)
        self.auxiliary = nn.Linear(4, 2)
        self.norm = nn.BatchNorm1d(4)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        nn.init.constant_(self.dead.bias, -1e3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout(self.norm(F.relu(self.fc(x))), training=self.training)
        out = self.head(y) + F.relu(self.dead(x)).sum(1, keepdim=True) + self.cut(x).detach()
        return out + self.auxiliary(y) if self.training else out


def test_parameters_without_a_gradient_are_told_apart() -> None:
    notes = {note.kind: note for note in list_sites(Loose(), [X]).structure}
    assert set(notes) == {"unused_parameter", "detached_parameter", "zero_gradient"}
    assert "'unused.weight' and 'unused.bias'" in notes["unused_parameter"].sentence
    assert "'cut.weight' and 'cut.bias'" in notes["detached_parameter"].sentence
    assert notes["zero_gradient"].place == "dead:relu"
    assert "'dead.weight' and 'dead.bias'" in notes["zero_gradient"].sentence
    assert "frozen" not in str(notes) and "auxiliary" not in str(notes)
    found = {problem.kind for problem in reludiag.examine_initialization(Loose(), [X]).problems}
    assert found >= set(notes)


def test_the_softmax_of_an_output_has_a_gradient() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3), nn.Softmax(1))
    facts = gradient_facts(model, (X,), {}, len(X))
    assert facts is not None and not facts.zero and not facts.detached


def test_where_no_output_has_a_gradient_nothing_is_claimed() -> None:
    model = Net(lambda m, y: m.third(y).argmax(1))
    assert gradient_facts(model, (X,), {}, len(X)) is None
    # One that has none beside another: what feeds it may get a gradient from a loss in the model.
    model = Net(lambda m, y: (y, m.third(y).argmax(1)))
    facts = gradient_facts(model, (X,), {}, len(X))
    assert facts is not None and not facts.detached and not facts.unused


def test_a_backward_leaves_no_trace() -> None:
    model = Loose()
    model.fc.weight.grad = torch.ones(4, 6)
    model.norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    random.seed(3)
    streams = torch.get_rng_state(), random.getstate()
    gradient_facts(model, (X,), {}, len(X))
    reludiag.scan(model, [X])
    list_sites(model, [X])
    assert torch.equal(torch.get_rng_state(), streams[0]) and random.getstate() == streams[1]
    assert model.training and not model.norm.training
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    with_grad = [name for name, p in model.named_parameters() if p.grad is not None]
    assert with_grad == ["fc.weight"] and torch.equal(model.fc.weight.grad, torch.ones(4, 6))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_run_says_which_parameters_its_first_step_left_out(tmp_path: Path) -> None:
    path = tmp_path / "run.reludiag"
    run(Loose(), path=path)
    notes = {note.kind: note for note in reludiag.load(path).structure}
    assert set(notes) == {"missing_gradient", "zero_gradient"}
    assert "4 of 14 trainable parameters are without a gradient" in str(notes)
    assert "'unused.weight', 'unused.bias', 'cut.weight' and 1 more" in str(notes)
    assert "was exactly 0 in the first step" in notes["zero_gradient"].sentence


def test_gradients_that_were_cleared_say_nothing() -> None:
    model = Net(lambda m, y: m.third(y))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    for to_none in (True, False):

        def clear(*_: Any, to_none: bool = to_none) -> None:
            optimizer.zero_grad(set_to_none=to_none)

        handle = optimizer.register_step_post_hook(clear)  # before the Monitor's
        with reludiag.Monitor(model, optimizer) as monitor:
            model(X).sum().backward()
            optimizer.step()
        handle.remove()
        assert monitor.diagnose().structure == ()


# The input


INPUTS: dict[str, tuple[Tensor, set[str]]] = {
    "centred": (X, set()),
    "shifted": (X + 3, {"uncentred_input"}),
    "shifted by less than its deviation": (X + 0.8, set()),
    "0 to 255": (255 * torch.rand(64, 6), {"uncentred_input", "large_input"}),
    "large and centred": (40 * X, {"large_input"}),
    "one-hot": (F.one_hot(torch.arange(64) % 6, 6).float(), set()),
    "a mask": ((X > -2).float(), set()),
    "a constant beside others": (torch.cat([X[:, :5], torch.full((64, 1), 90.0)], 1), set()),
    "too few to tell": (X[:8] + 3, set()),
}


@pytest.mark.parametrize(("x", "expected"), INPUTS.values(), ids=INPUTS)
def test_the_input_of_the_first_layer_is_looked_at(x: Tensor, expected: set[str]) -> None:
    model = Net(lambda m, y: m.third(y))
    for notes in (*looks(model, x), run_on(model, x)):
        assert kinds(notes) == expected


def run_on(model: nn.Module, x: Tensor) -> tuple[StructureNote, ...]:
    with reludiag.Monitor(model, probe=x) as monitor:
        pass
    return monitor.diagnose().structure


def test_the_channel_that_is_furthest_from_centred_is_named() -> None:
    x = torch.randn(16, 3, 5, 5) * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    x[:, 1] += 50
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))
    for notes in (*looks(model, x), run_on(model, x)):
        (note,) = [note for note in notes if note.kind == "uncentred_input"]
        assert "channel 1: mean 5" in note.sentence and "'0'" in note.sentence
        assert note.value == pytest.approx(50 / 14**0.5, rel=0.1)


def test_an_input_that_the_model_centres_or_embeds_is_no_case() -> None:
    centring = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1))
    assert kinds(reludiag.scan(centring, [X + 30], train_mode=True).structure) == set()
    embedding = nn.Sequential(nn.Embedding(90, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    for notes in looks(embedding, torch.randint(80, 90, (64, 7))):
        assert kinds(notes) == set()


# Reports


def test_every_report_has_the_notes(tmp_path: Path) -> None:
    diagnosis = reludiag.scan(Net(lambda m, y: y), [255 * X])
    assert kinds(diagnosis.structure) == {"rectified_output", "large_input"}
    text = " ".join(str(diagnosis).split())
    assert "Structure - The model returns the output of 'act'" in text
    for name in ("report.json", "report.html", "report.md"):
        diagnosis.write(tmp_path / name)
    assert open_diagnosis(tmp_path / "report.json").structure == diagnosis.structure
    assert "Structure" in (tmp_path / "report.html").read_text()
    assert "**Structure:**" in (tmp_path / "report.md").read_text()
    document = json.loads(sites_document(list_sites(Net(lambda m, y: y), [255 * X])))
    found = {note["kind"] for note in document["structure"]}
    assert found == {"rectified_output", "large_input", "unused_parameter"}
    older = json.loads((tmp_path / "report.json").read_text())
    del older["structure"]
    (tmp_path / "older.json").write_text(json.dumps(older))
    assert open_diagnosis(tmp_path / "older.json").structure == ()


def low_outputs(model: nn.Module, read_by: nn.Module | None = None) -> reludiag.Diagnosis:
    """A training in which most targets lie below 0."""
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    y = torch.randn(256, 16) - 1.0
    parameters = [*model.parameters(), *(read_by.parameters() if read_by else ())]
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    with reludiag.Monitor(model, optimizer, every=5, probe=x, evidence=1.0) as monitor:
        for _ in range(60):
            optimizer.zero_grad()
            output = model(x)
            output = read_by(output) if read_by else output
            nn.functional.mse_loss(output, y).backward()
            optimizer.step()
    return monitor.diagnose()


@pytest.mark.filterwarnings("ignore:reludiag")
def test_an_output_that_the_loss_pushes_to_0_is_in_the_wrong_place() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
    diagnosis = low_outputs(model)
    assert diagnosis.sites.set_index("site").loc["3", "dead"] > 0
    cause = next(cause for cause in diagnosis.causes if cause.site == "3")
    assert (cause.kind, cause.identifiable) == ("structure", False)
    assert [(change.setting, change.where) for change in cause.changes] == [("rectifier", ("3",))]


@pytest.mark.filterwarnings("ignore:reludiag")
def test_an_output_that_a_module_outside_reads_is_not_blamed_on_its_place() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
    diagnosis = low_outputs(model, nn.Linear(16, 16))
    assert "structure" not in {cause.kind for cause in diagnosis.causes}
