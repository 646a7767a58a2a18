"""Rectifiers of the user's own: registered, reported by `observe`, or watched as modules."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from reludiag_cli.app import app
from torch import Tensor, nn
from typer.testing import CliRunner

import reludiag
from reludiag.measure.site_list import list_sites

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
DEAD = 10


def planted(model: nn.Module, layer: nn.Linear) -> Any:
    """The model, with ten units of this layer far below any threshold; the others fire."""
    with torch.no_grad():
        layer.weight.normal_(generator=torch.Generator().manual_seed(1))
        layer.bias[:DEAD] = -100.0
    return model


def sites(diagnosis: reludiag.Diagnosis) -> dict[str, tuple[int, int]]:
    """(units, dead) by the name of the site."""
    table = diagnosis.sites
    return {
        name: (units, dead)
        for name, units, dead in zip(table["site"], table["units"], table["dead"], strict=True)
    }


@reludiag.register_rectifier(zero_gradient="x <= theta")
class Jump(nn.Module):
    """With a helper method, a rectifier inside, and a tuple as its output."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.theta, self.inner = nn.Parameter(torch.full((units,), 0.5)), nn.ReLU()

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return self.jumped(x)

    def jumped(self, x: Tensor) -> tuple[Tensor, int]:
        return self.inner(x) * torch.relu(torch.sign(x - self.theta)), 3


class First(nn.Module):
    def forward(self, values: tuple[Tensor, ...]) -> Tensor:
        return values[0]


def jumping() -> Any:
    model = nn.Sequential(nn.Linear(8, 32), Jump(32), First(), nn.Linear(32, 4))
    return planted(model, model[0])


@reludiag.register_rectifier(zero_gradient="|x| >= 1, where it is 1", off_value=1)
def tent(x: Tensor) -> Tensor:
    return x.abs().clamp(max=1)


@reludiag.register_rectifier(zero_gradient="x <= 0", fired=lambda x, y: x > 0)
def shifted(x: Tensor) -> Tensor:
    return torch.relu(x) + 7


class Calling(nn.Module):
    """Calls a registered function."""

    def __init__(self, function: Any = tent) -> None:
        super().__init__()
        self.fc, self.out, self.function = nn.Linear(8, 32), nn.Linear(32, 4), function

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.function(self.fc(x)))


def trained(model: nn.Module, steps: int = 8, **options: Any) -> reludiag.Diagnosis:
    """After some steps that leave the units as they are."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    with reludiag.Monitor(model, optimizer, every=4, **options) as monitor:
        for _ in range(steps):
            optimizer.zero_grad()
            model(X).square().sum().backward()
            optimizer.step()
    return monitor.diagnose()


def test_a_registered_module_is_one_site_and_nothing_inside_it_is() -> None:
    diagnosis = reludiag.scan(jumping(), X)
    assert sites(diagnosis) == {"1": (32, DEAD)}
    row = diagnosis.sites.iloc[0]
    assert (row["activation"], row["producer"], row["unit_axis"]) == ("Jump", "0", "1")


def test_a_registered_module_is_seen_in_training_and_listed() -> None:
    assert sites(trained(jumping())) == {"1": (32, DEAD)}
    assert sites(trained(jumping(), probe=X)) == {"1": (32, DEAD)}
    assert [site.name for site in list_sites(jumping()).sites] == ["1"]


def test_a_registered_function_is_off_at_its_own_value() -> None:
    net = Calling()
    planted(net, net.fc)
    diagnosis = reludiag.scan(net, X)
    assert sites(diagnosis) == {"fc:tent": (32, DEAD)}
    expected = (tent(net.fc(X)) != 1).sum(0).tolist()
    assert diagnosis.units["fired"].tolist() == expected


def test_a_rule_of_input_and_output_says_what_fired() -> None:
    net = Calling(shifted)
    planted(net, net.fc)
    assert sites(reludiag.scan(net, X)) == {"fc:shifted": (32, DEAD)}
    assert sites(trained(net)) == {"fc:shifted": (32, DEAD)}
    assert sites(trained(net, probe=X)) == {"fc:shifted": (32, DEAD)}


def test_a_function_that_does_nothing_new_when_nothing_watches() -> None:
    x = torch.randn(4, 4, requires_grad=True)
    assert torch.equal(tent(x), x.abs().clamp(max=1))
    assert torch.equal(torch.compile(tent, backend="eager", fullgraph=True)(x), tent(x))


def test_registering_again_replaces() -> None:
    def act(x: Tensor) -> Tensor:
        return torch.relu(x) + 7

    first = reludiag.register_rectifier(act, zero_gradient="x <= 0")
    net = Calling(first)
    planted(net, net.fc)
    assert sites(reludiag.scan(net, X)) == {"fc:act": (32, 0)}
    second = reludiag.register_rectifier(first, zero_gradient="x <= 0", off_value=7)
    assert second is first
    assert sites(reludiag.scan(net, X)) == {"fc:act": (32, DEAD)}


def test_what_cannot_die_is_measured_and_not_dead() -> None:
    net = Calling(reludiag.register_rectifier(lambda x: 0 * x, can_die=False))
    diagnosis = reludiag.scan(net, X)
    assert sites(diagnosis) == {"fc:lambda": (32, 0)}
    assert not diagnosis.unjudged


@pytest.mark.parametrize(
    ("fired", "why"),
    [
        (lambda x, y: 1 / 0, "ZeroDivisionError"),
        (lambda x, y: True, "not a mask"),
        (lambda x, y: (x > 0).any(1), "not a mask of shape [64, 32]"),
    ],
)
def test_a_rule_that_fails_is_said_and_ends_nothing(fired: Any, why: str) -> None:
    net = Calling(reludiag.register_rectifier(torch.tanh, zero_gradient="x", fired=fired))
    diagnosis = trained(net)
    assert [place.where for place in diagnosis.unjudged] == ["Calling:tanh"]
    assert why in diagnosis.unjudged[0].sentence


def test_a_rule_whose_input_is_overwritten_is_said() -> None:
    def act(x: Tensor) -> Tensor:
        return x.relu_()

    net = Calling(
        reludiag.register_rectifier(act, zero_gradient="x <= 0", fired=lambda x, y: x > 0)
    )
    with pytest.raises(reludiag.ModelError, match="overwritten in place"):
        reludiag.scan(net, X)


WRONG = [
    ((3,), {"zero_gradient": "x"}, "a function"),
    ((nn.Module,), {"zero_gradient": "x"}, "a subclass"),
    ((nn.Tanh(),), {"zero_gradient": "x"}, "Register its class"),
    ((int,), {"zero_gradient": "x"}, "a subclass"),
    ((torch.tanh,), {}, "can_die=False"),
    ((torch.tanh,), {"zero_gradient": 0}, "in words|words for readers"),
    ((torch.tanh,), {"zero_gradient": "x", "off_value": float("nan")}, "finite number"),
    ((torch.tanh,), {"zero_gradient": "x", "off_value": True}, "finite number"),
    ((torch.tanh,), {"zero_gradient": "x", "fired": 1}, "a function of the input"),
    ((torch.tanh,), {"zero_gradient": "x", "fired": torch.gt, "off_value": 1}, "expected one"),
    ((torch.tanh,), {"zero_gradient": "x", "can_die": 1}, "True or False"),
]


@pytest.mark.parametrize(("args", "options", "sentence"), WRONG)
def test_wrong_arguments_are_refused(args: Any, options: Any, sentence: str) -> None:
    with pytest.raises(reludiag.UsageError, match=sentence):
        reludiag.register_rectifier(*args, **options)


class Fused(torch.autograd.Function):
    """As a kernel would: nothing of it is a call that could be seen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x + x.abs()) / 2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class Observing(nn.Module):
    def __init__(self, unit_axis: Any = None) -> None:
        super().__init__()
        self.fc, self.out, self.unit_axis = nn.Linear(8, 32), nn.Linear(32, 4), unit_axis
        planted(self, self.fc)

    def forward(self, x: Tensor) -> Tensor:
        h = Fused.apply(self.fc(x))
        reludiag.observe("hidden", h, unit_axis=self.unit_axis)
        return self.out(h)


@pytest.mark.parametrize("unit_axis", [None, 1, -1, (1,)])
def test_what_is_observed_is_a_site(unit_axis: Any) -> None:
    model = nn.Sequential(Observing(unit_axis), nn.ReLU())
    assert sites(reludiag.scan(model, X))["0:hidden"] == (32, DEAD)
    assert sites(trained(model))["0:hidden"] == (32, DEAD)


def test_observing_raises_nothing_and_says_what_is_wrong() -> None:
    diagnosis = reludiag.scan(nn.Sequential(Observing(5), nn.ReLU()), X)
    assert "unit_axis=5 is not an axis" in diagnosis.unjudged[0].sentence
    reludiag.observe("nothing", X)


def test_observing_compiles_and_exports_to_nothing() -> None:
    model = Observing()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(X), model(X))
    program = torch.export.export(model, (X,))
    assert not any("reludiag" in str(node.target) for node in program.graph.nodes)


def test_a_compiled_model_that_observes_is_seen_to_the_end() -> None:
    model = torch.compile(nn.Sequential(Observing(), nn.Tanh()), backend="eager")
    diagnosis = trained(model, 12)
    assert sites(diagnosis) == {"0:hidden": (32, DEAD)}
    assert not diagnosis.unjudged


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.codes = nn.Linear(8, 32), nn.Softshrink(0.0)
        planted(self, self.fc)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.fc(x)
        return (z + z.abs()) / 2, z


def watched() -> Any:
    return nn.Sequential(Encoder(), First(), nn.Linear(32, 4))


@pytest.mark.parametrize("path", ["0", "1"])
def test_the_output_of_any_module_can_be_watched(path: str) -> None:
    watch = {"latents": path}
    assert sites(reludiag.scan(watched(), X, watch=watch))["latents"] == (32, DEAD)
    assert sites(trained(watched(), watch=watch))["latents"] == (32, DEAD)
    assert sites(trained(watched(), watch=watch, probe=X))["latents"] == (32, DEAD)


def test_a_rectifier_inside_a_watched_module_stays_a_site() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.fc(x)) - 1

    diagnosis = reludiag.scan(nn.Sequential(Block()), X, watch={"out": "0"})
    assert list(diagnosis.sites["site"]) == ["0:relu", "out"]


def test_a_watched_rectifier_has_the_name_that_was_given() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU())
    assert list(reludiag.scan(model, X, watch={"hidden": "1"}).sites["site"]) == ["hidden"]


@pytest.mark.parametrize(
    ("watch", "sentence"),
    [
        ({"a": "encoder"}, "no module 'encoder'"),
        ({"a": "0.fcs"}, "Did you mean 0.fc"),
        ({"0.fc": "1"}, "choose another name"),
        ({"": "1"}, "expected a name"),
        ({"a": "1", "b": "1"}, "watched as 'a' already"),
    ],
)
def test_a_wrong_watch_is_refused(watch: dict[str, str], sentence: str) -> None:
    with pytest.raises(reludiag.UsageError, match=sentence):
        reludiag.scan(watched(), X, watch=watch)
    with pytest.raises(reludiag.UsageError, match=sentence):
        reludiag.Monitor(watched(), watch=watch)


NET = """
import reludiag, torch
from torch import nn

@reludiag.register_rectifier(zero_gradient="x <= 1")
class Late(nn.Module):
    def forward(self, x):
        return (x - 1 + (x - 1).abs()) / 2

net = nn.Sequential(nn.Linear(8, 4), Late(), nn.Linear(4, 2), nn.Identity())
"""


def test_the_command_line_sees_what_the_file_of_the_model_registers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "late.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    shape = ["--input-shape", "8", "--watch", "out=3"]
    for command, more in itertools.product(("scan", "sites"), ([], ["--json"])):
        done = CliRunner().invoke(app, [command, "late.py:net", *shape, *more])
        assert done.exit_code == 0, done.output
        assert "out" in done.output
        assert "Late" in done.output or (command, more) == ("scan", [])
    done = CliRunner().invoke(app, ["scan", "late.py:net", "--input-shape", "8", "--watch", "out"])
    assert done.exit_code != 0


@reludiag.register_rectifier(zero_gradient="x <= 0", fired=lambda x, y: x > 0)
class Raised(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.relu(x) + 7, x


@pytest.mark.parametrize("kind", [Jump, Raised])
def test_registered_and_watched_modules_are_read_in_compiled_code(kind: Any) -> None:
    act = Jump(32) if kind is Jump else Raised()
    model = nn.Sequential(nn.Linear(8, 32), act, First(), nn.Linear(32, 4))
    planted(model, model[0])
    compiled = torch.compile(model, backend="eager")
    diagnosis = trained(compiled, 12, watch={"out": "2"})
    assert sites(diagnosis) == {"1": (32, DEAD), "out": (32, DEAD if kind is Jump else 0)}
    assert diagnosis.sites["samples"].tolist() == [256, 256]
    assert not diagnosis.unjudged


def test_nothing_is_left_behind() -> None:
    from reludiag.sites.watching import THREAD

    model = jumping()
    before = [(dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in model.modules()]
    reludiag.scan(model, X, watch={"out": "2"})
    trained(model, watch={"out": "2"})
    assert [(dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in model.modules()] == before
    assert THREAD.current.watcher is None


def test_a_forward_that_raises_leaves_no_watcher() -> None:
    from reludiag.sites.watching import THREAD

    class Raising(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("x")

    with pytest.raises(reludiag.UserCodeError):
        reludiag.scan(nn.Sequential(nn.Linear(8, 4), nn.ReLU(), Raising()), X)
    assert THREAD.current.watcher is None


def test_a_forward_may_name_its_first_argument_as_it_likes() -> None:
    @reludiag.register_rectifier(zero_gradient="x <= 0")
    class Odd(nn.Module):
        def __init__(me) -> None:  # noqa: N805
            super().__init__()
            me.relu = nn.ReLU()

        def forward(me, x: Tensor) -> Tensor:  # noqa: N805
            return me.relu(x) + torch.relu(x)

    assert list(reludiag.scan(nn.Sequential(nn.Linear(8, 4), Odd()), X).sites["site"]) == ["1"]


def test_the_model_itself_may_be_registered() -> None:
    @reludiag.register_rectifier(zero_gradient="x <= 0")
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.relu = nn.Linear(8, 32), nn.ReLU()
            planted(self, self.fc)

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.fc(x))

    assert sites(reludiag.scan(Whole(), X)) == {"Whole": (32, DEAD)}
    assert sites(trained(Whole())) == {"Whole": (32, DEAD)}
    part = nn.Sequential(Whole(), nn.Linear(32, 4))
    assert sites(trained(part)) == sites(trained(part, probe=X)) == {"0": (32, DEAD)}
    assert list(reludiag.scan(part, X).sites["producer"]) == ["0.fc"]


def test_a_custom_operator_is_seen_once_it_is_registered() -> None:
    @torch.library.custom_op("reludiag_tests::rectify", mutates_args=())
    def operator(z: Tensor) -> Tensor:
        return torch.relu(z)

    @reludiag.register_rectifier(zero_gradient="x <= 0")
    def rectify(z: Tensor) -> Tensor:
        return operator(z)

    net = Calling(rectify)
    planted(net, net.fc)
    diagnosis = reludiag.scan(net, X)
    assert sites(diagnosis) == {"fc:rectify": (32, DEAD)}
    assert diagnosis.sites["unit_axis"].tolist() == ["1"]


def test_of_several_tensors_that_a_function_returns_the_first_is_read() -> None:
    def act(x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.relu(x), x

    act = reludiag.register_rectifier(act, zero_gradient="x <= 0")
    net = Calling(lambda x: act(x)[0])
    planted(net, net.fc)
    assert sites(reludiag.scan(net, X)) == {"fc:act": (32, DEAD)}


def test_a_unit_that_is_off_now_and_then_by_its_own_rule_is_not_linear() -> None:
    net = Calling(shifted)
    assert set(reludiag.scan(net, X).units["verdict"]) <= {"alive", "rare", "dead"}


def test_convolutions_are_counted_by_a_rule_of_their_own() -> None:
    class Images(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return shifted(self.conv(x))

    model, images = Images(), torch.randn(5, 3, 4, 4)
    with torch.no_grad():
        model.conv.bias[2] = -100.0
    fires = model.conv(images) > 0
    units = reludiag.scan(model, [images[:2], images[2:]]).units
    assert units["fired"].tolist() == fires.flatten(2).any(2).sum(0).tolist()
    assert (units["active_fraction"] * 20).round().tolist() == fires.sum((0, 2, 3)).tolist()
