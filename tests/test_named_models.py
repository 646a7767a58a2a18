"""Several models with names in one recording, against a count by plain hooks in float64."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import relu
from torch.optim.swa_utils import AveragedModel

import reludiag
from reludiag import Snapshot

EVERY = 4


def network(seed: int = 0, inputs: int = 8) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(inputs, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)
        ).double()


class Fired:
    """Which units fired, and in how many samples, by hooks on the rectifiers of some models."""

    def __init__(self, counts: Callable[[str, nn.Module], bool], **models: nn.Module) -> None:
        self.fired: dict[str, list[Tensor]] = {}
        self._counts, self._models = counts, models

    @contextmanager
    def watching(self) -> Iterator[None]:
        handles = []
        for name, model in self._models.items():
            for path, module in model.named_modules():
                if isinstance(module, nn.ReLU):
                    hook = self._hook(name, f"{name}.{path}")
                    handles.append(module.register_forward_hook(hook))
        yield
        for handle in handles:
            handle.remove()

    def _hook(self, name: str, site: str) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, output: Tensor) -> None:
            if self._counts(name, module):
                self.fired.setdefault(site, []).append((output > 0).detach())

        return note

    def take(self) -> dict[str, tuple[int, list[int]]]:
        """Site -> number of samples and units that fired in none of them, since the last call."""
        result = {
            site: (sum(map(len, each)), torch.nonzero(~torch.cat(each).any(0)).flatten().tolist())
            for site, each in self.fired.items()
        }
        self.fired = {}
        return result


def told_of(snapshot: Snapshot) -> dict[str, tuple[int, list[int]]]:
    return {site.name: (site.samples, list(site.dead_units)) for site in snapshot.sites}


def weights(*models: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for model in models for parameter in model.parameters()]


def run_dqn(models: Mapping[str, nn.Module], **settings: Any) -> tuple[Any, list[Snapshot]]:
    told: list[Snapshot] = []
    online, target = models["online"], models["target"]
    optimizer = torch.optim.Adam(online.parameters(), lr=0.05)
    with reludiag.Monitor(
        models, optimizer, every=EVERY, on_snapshot=told.append, warn_over=None, **settings
    ) as monitor:
        loop(online, target, optimizer)
    return monitor, told


def loop(
    online: nn.Module,
    target: nn.Module,
    optimizer: torch.optim.Optimizer,
    after_step: Callable[[int], object] = lambda step: None,
) -> None:
    """A DQN's: it acts, learns, and copies the weights to the target now and then."""
    generator = torch.Generator().manual_seed(3)

    def states(count: int) -> Tensor:
        return torch.randn(count, 8, generator=generator, dtype=torch.float64)

    for step in range(1, 5 * EVERY + 1):
        with torch.no_grad():
            online.eval()
            online(states(1))
            online.train()
            goal = target(states(16)).amax(1)
        optimizer.zero_grad()
        (online(states(16)).amax(1) - 0.9 * goal - 1).square().mean().backward()
        optimizer.step()
        after_step(step)
        if step % 6 == 0:
            target.load_state_dict(online.state_dict())


def pair(mode: str) -> dict[str, nn.Module]:
    """A network with two units that are dead from the start, and a copy of it."""
    online = network()
    with torch.no_grad():
        online[0].bias[:2] = -100.0
    target = copy.deepcopy(online)
    if mode != "training":
        target.eval()
    if mode == "frozen":
        target.requires_grad_(False)
    return {"online": online, "target": target}


@pytest.mark.parametrize("mode", ["training", "eval", "frozen"])
def test_a_target_network_is_counted_beside_the_trained_one_as_plain_hooks_count(mode: str) -> None:
    bare = pair(mode)
    by_hooks = Fired(lambda name, module: name == "target" or module.training, **bare)
    expected, optimizer = [], torch.optim.Adam(bare["online"].parameters(), lr=0.05)

    def end(step: int) -> None:
        if step % EVERY == 0:
            expected.append(by_hooks.take())

    with by_hooks.watching():
        loop(bare["online"], bare["target"], optimizer, end)
    watched = pair(mode)
    _, told = run_dqn(watched)
    assert [told_of(snapshot) for snapshot in told[1:]] == expected
    assert {site.model for site in told[1].sites} == {"online", "target"}
    after = weights(*watched.values())
    assert all(map(torch.equal, after, weights(*bare.values())))
    assert [m.training for m in watched["target"].modules()] == [
        m.training for m in bare["target"].modules()
    ]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in watched["target"].modules())


def test_evaluations_of_the_trained_model_are_not_mixed_in() -> None:
    monitor, _ = run_dqn(pair("eval"))
    sites = monitor.diagnose().sites.set_index("site")
    assert sites["samples"].to_dict() == dict.fromkeys(
        ["online.1", "online.3", "target.1", "target.3"], 16 * EVERY
    )


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_a_teacher_is_watched_and_its_student_learns_the_same_to_the_last_bit(guard: Any) -> None:
    class Teacher(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = relu(self.norm(self.conv(x)))
            return self.fc(x.mean((2, 3)))

    def train(monitored: bool) -> tuple[list[Tensor], Any]:
        torch.manual_seed(0)
        teacher, student = Teacher().eval(), Teacher()
        with torch.no_grad():
            teacher.norm.bias[:3] = -100.0
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        monitor = reludiag.Monitor({"student": student, "teacher": teacher}, optimizer, every=2)
        with monitor if monitored else torch.enable_grad():
            for _ in range(6):
                x = torch.randn(4, 3, 9, 9)
                with guard():
                    goal = teacher(x)
                optimizer.zero_grad()
                (student(x) - goal.clone()).square().mean().backward()
                optimizer.step()
        return weights(teacher, student), monitor

    (bare, _), (after, monitor) = train(False), train(True)
    assert all(map(torch.equal, bare, after))
    diagnosis = monitor.diagnose()
    units = diagnosis.units
    dead = units[(units["site"] == "teacher.conv:relu") & (units["verdict"] == "dead")]
    assert list(dead["unit"]) == [0, 1, 2] and set(dead["cause"]) == {"untrained"}
    assert set(units["unit_axis"]) == {"1"} and not diagnosis.unjudged
    (cause,) = [c for c in diagnosis.causes if c.site == "teacher.conv:relu"]
    assert "No optimizer trains 'teacher'" in cause.sentence and "rate" not in cause.advice


def test_an_average_of_weights_is_watched_where_it_is_evaluated() -> None:
    model = network()
    with torch.no_grad():
        model[2].bias[:4] = -100.0
    average = AveragedModel(model, multi_avg_fn=None).eval()
    optimizer, told = torch.optim.SGD(model.parameters(), lr=0.01), list[Snapshot]()
    x, test, silent = torch.randn(16, 8).double(), torch.randn(500, 8).double(), list[Tensor]()
    with reludiag.Monitor(
        {"model": model, "average": average},
        optimizer,
        every=2,
        on_snapshot=told.append,
        warn_over=None,
    ) as monitor:
        for step in range(8):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            average.update_parameters(model)
            if step in (3, 7):
                with torch.no_grad():
                    average(test)
                    silent.append(~(copy.deepcopy(average.module)[:4](test) > 0).any(0))
                model.eval()
                model(test)
                model.train()
    diagnosis = monitor.diagnose()
    sites = diagnosis.sites.set_index("site")
    assert sites.loc["model.3", "samples"] == 32 and sites.loc["model.3", "dead"] >= 4
    # The passes after step 8 are of no window: the last one has none of the average.
    assert told[3].step == 6
    by_name = {site.name: site for site in told[3].sites}
    assert by_name["average.module.3"].samples == 500
    expected = torch.nonzero(silent[0]).flatten().tolist()
    assert list(by_name["average.module.3"].dead_units) == expected and len(expected) >= 4
    (cause,) = [cause for cause in diagnosis.causes if cause.site == "average.module.3"]
    assert cause.kind == "untrained" and "from 'model'" in cause.sentence
    assert not any(
        "samples reached" in note or "are reached" in note for note in diagnosis.head.notes
    )


def test_each_model_has_its_own_probe_or_all_have_one() -> None:
    class Critic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network(1, inputs=10)

        def forward(self, state: Tensor, action: Tensor) -> Tensor:
            return self.net(torch.cat([state, action], 1))

    actor, critic = network(0), Critic()
    target = copy.deepcopy(critic)
    with torch.no_grad():
        critic.net[0].bias[3] = -100.0
        target.net[2].bias[:5] = -100.0
    states, actions = torch.randn(40, 8).double(), torch.randn(40, 2).double()
    models = {"actor": actor, "critic": critic, "target": target}
    optimizers = [torch.optim.SGD(m.parameters(), lr=1e-3) for m in (actor, critic)]
    probe = {"actor": states, "critic": (states, actions), "target": (states, actions)}
    with reludiag.Monitor(models, optimizers, every=1, probe=probe) as monitor:
        (actor(states).sum() + critic(states, actions).sum()).backward()
        for optimizer in optimizers:
            optimizer.step()
    diagnosis = monitor.diagnose()
    expected = {}
    for name, model in models.items():
        net, x = (
            (model, states) if name == "actor" else (model.net, torch.cat([states, actions], 1))
        )
        path = "" if name == "actor" else "net."
        for layer in (1, 3):
            expected[f"{name}.{path}{layer}"] = (net[: layer + 1](x) > 0).sum(0).tolist()
    found = {site: list(units["fired"]) for site, units in diagnosis.units.groupby("site")}
    assert found == expected
    assert set(diagnosis.sites["samples"]) == {40}

    one = {"a": network(0), "b": network(1)}
    optimizer = torch.optim.SGD(one["a"].parameters(), lr=1e-3)
    with reludiag.Monitor(one, optimizer, every=1, probe=[states[:10], states[10:]]) as monitor:
        one["a"](states).sum().backward()
        optimizer.step()
    units = monitor.diagnose().units
    for name, model in one.items():
        fired = (model[:2](states) > 0).sum(0).tolist()
        assert list(units[units["site"] == f"{name}.1"]["fired"]) == fired


def test_probes_that_do_not_fit_together_are_refused() -> None:
    models = {"a": network(0), "b": network(1)}
    x = torch.randn(6, 8).double()
    for probe, expected in [
        ({"a": x}, "one for each: a, b"),
        ({"a": x, "b": x[:3]}, "as many for each model"),
        ({"a": [x, x], "b": [x]}, "as many for each model"),
    ]:
        with pytest.raises(reludiag.UsageError, match=expected):
            reludiag.Monitor(models, probe=probe)


def test_what_is_given_instead_of_models_is_refused() -> None:
    model = network()
    for models, expected in [
        ({}, "one model or more"),
        ({"a": model, "b": model}, "watched as 'a' already"),
        ({"a.b": model}, "without a dot"),
        ({"a": model, "b": "weights.pt"}, r"Monitor\(str"),
    ]:
        with pytest.raises(reludiag.UsageError, match=expected):
            reludiag.Monitor(models)


def test_names_that_a_module_has_as_attributes_are_names_as_well() -> None:
    models = {"train": network(0), "values": network(1)}
    optimizer = torch.optim.SGD(models["train"].parameters(), lr=0.1)
    with reludiag.Monitor(models, optimizer, every=1) as monitor:
        x = torch.randn(4, 8).double()
        (models["train"](x) - models["values"](x)).sum().backward()
        optimizer.step()
    assert set(monitor.diagnose().sites["site"]) == {"train.1", "train.3", "values.1", "values.3"}


def test_a_model_that_is_never_called_is_named() -> None:
    models = {"online": network(), "target": network()}
    optimizer = torch.optim.SGD(models["online"].parameters(), lr=0.1)
    with (
        pytest.warns(RuntimeWarning, match="No forward pass of 'target' was seen"),
        reludiag.Monitor(models, optimizer, every=2) as monitor,
    ):
        other = copy.deepcopy(models["target"])
        for _ in range(4):
            x = torch.randn(4, 8).double()
            optimizer.zero_grad()
            (models["online"](x) - other(x)).sum().backward()
            optimizer.step()
    diagnosis = monitor.diagnose()
    assert ("target", "model_not_called") in {(p.where, p.reason) for p in diagnosis.unjudged}
    assert diagnosis.sites.set_index("site").loc["online.1", "units"] == 12


def test_a_trained_model_that_is_only_evaluated_is_named() -> None:
    models = {"actor": network(0), "critic": network(1)}
    models["critic"].eval()
    parameters = [p for model in models.values() for p in model.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    with (
        pytest.warns(RuntimeWarning, match="'critic' was called in evaluation mode only"),
        reludiag.Monitor(models, optimizer, every=2) as monitor,
    ):
        for _ in range(2):
            x = torch.randn(4, 8).double()
            optimizer.zero_grad()
            (models["actor"](x) - models["critic"](x)).square().sum().backward()
            optimizer.step()
    assert ("critic", "model_only_evaluated") in {
        (place.where, place.reason) for place in monitor.diagnose().unjudged
    }


class Head(nn.Module):
    """A network whose first part, or whose activation, may be another one's as well."""

    def __init__(self, encoder: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.encoder, self.hidden = encoder, nn.Linear(12, 6).double()
        self.activation, self.out = activation, nn.Linear(6, 1).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.activation(self.hidden(self.encoder(x))))


def encoder() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU()).double()


def test_a_part_that_two_models_share_is_one_site_that_is_alive_if_either_makes_it_fire() -> None:
    torch.manual_seed(0)
    shared = encoder()
    actor, critic = Head(shared, nn.ReLU()), Head(shared, nn.ReLU())
    with torch.no_grad():  # unit 0 fires for the critic alone, unit 1 for none
        shared[0].weight[0], shared[0].bias[0] = torch.eye(8).double()[0], 0.0
        shared[0].bias[1] = -100.0
    x = torch.randn(16, 8).double()
    x[:, 0] = -1.0
    optimizer = torch.optim.SGD([*actor.parameters(), *critic.hidden.parameters()], lr=1e-4)
    with reludiag.Monitor({"actor": actor, "critic": critic}, optimizer, every=3) as monitor:
        for _ in range(3):
            optimizer.zero_grad()
            (actor(x) + critic(-x)).sum().backward()
            optimizer.step()
    diagnosis = monitor.diagnose()
    assert set(diagnosis.sites["site"]) == {
        "actor.encoder.1",
        "actor.activation",
        "critic.activation",
    }
    units = diagnosis.units[diagnosis.units["site"] == "actor.encoder.1"]
    assert units["verdict"].iloc[0] != "dead" and units["verdict"].iloc[1] == "dead"
    assert set(units["samples"]) == {2 * 3 * 16}


def test_an_activation_that_two_models_share_is_a_site_in_each() -> None:
    torch.manual_seed(0)
    activation = nn.ReLU()
    models = {"a": Head(encoder(), activation), "b": Head(encoder(), activation)}
    with torch.no_grad():
        models["a"].hidden.bias[:2] = -100.0
        models["b"].hidden.bias[3] = -100.0
    models["b"].eval()
    optimizer, x = torch.optim.SGD(models["a"].parameters(), lr=1e-4), torch.randn(16, 8).double()
    with reludiag.Monitor(models, optimizer, every=2) as monitor:
        for _ in range(2):
            optimizer.zero_grad()
            (models["a"](x) - models["b"](x).detach()).square().sum().backward()
            optimizer.step()
    units = monitor.diagnose().units
    dead = units[units["verdict"] == "dead"].groupby("producer")["unit"].apply(list).to_dict()
    for name, model in models.items():
        silent = (model.hidden(model.encoder(x)) <= 0).all(0)
        assert dead[f"{name}.hidden"] == torch.nonzero(silent).flatten().tolist()


def test_a_model_inside_another_one_has_its_own_name_and_rule() -> None:
    class Agent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.q_target = network(0), network(0).eval().requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.q(x) - self.q_target(x).amax(1, keepdim=True)

    agent, x = Agent(), torch.randn(16, 8).double()
    with torch.no_grad():
        agent.q_target[0].bias[5] = -100.0
    optimizer = torch.optim.SGD(agent.parameters(), lr=1e-4)
    with reludiag.Monitor(
        {"agent": agent, "target": agent.q_target}, optimizer, every=2
    ) as monitor:
        for _ in range(2):
            optimizer.zero_grad()
            agent(x).sum().backward()
            optimizer.step()
    diagnosis = monitor.diagnose()
    sites = diagnosis.sites.set_index("site")
    assert set(sites.index) == {"agent.q.1", "agent.q.3", "target.1", "target.3"}
    assert set(sites["samples"]) == {32} and sites.loc["target.1", "dead"] == 1


def test_deaths_of_a_copied_network_are_not_the_learning_rates(tmp_path: Path) -> None:
    models, path = pair("frozen"), tmp_path / "run.reludiag"
    optimizer = torch.optim.SGD(models["online"].parameters(), lr=0.5)
    x, told = torch.randn(64, 8).double(), list[Snapshot]()
    with reludiag.Monitor(
        models, optimizer, path=path, every=1, probe=x, on_snapshot=told.append, warn_over=None
    ):
        for step in range(12):
            optimizer.zero_grad()
            (models["online"](x) - 30.0 * (step < 3)).square().mean().backward()
            optimizer.step()
            if step == 7:
                models["target"].load_state_dict(models["online"].state_dict())
    diagnosis = reludiag.load(path)
    units = diagnosis.units
    died = units[(units["site"].str.startswith("target")) & units["died_step"].notna()]
    assert len(died) and set(died["died_step"]) == {9}
    assert set(died["cause"]) == {"untrained"} and died["lr_at_death"].isna().all()
    causes = {cause.site: cause for cause in diagnosis.causes}
    assert causes[None].kind != "untrained"  # it died of what killed the copied one
    of_target = [cause for site, cause in causes.items() if (site or "").startswith("target")]
    assert of_target
    for cause in of_target:
        assert cause.kind == "untrained" and not cause.identifiable
        assert "from 'online'" in cause.sentence and cause.advice == "look at the units of 'online'"
    (of_target_alone,) = [snapshot for snapshot in told if snapshot.step == 9]
    if not any(site.died for site in of_target_alone.sites if site.model == "online"):
        assert "learning rate" not in str(of_target_alone)


def test_a_teacher_that_does_not_change_falls_silent_only_by_its_inputs() -> None:
    models = {"student": network(0), "teacher": network(1).eval()}
    optimizer = torch.optim.SGD(models["student"].parameters(), lr=1e-3)
    with reludiag.Monitor(models, optimizer, every=1, warn_over=None) as monitor:
        for step in range(4):
            x = torch.randn(32, 8).double() * (1.0 if step < 2 else 0.0)
            optimizer.zero_grad()
            (models["student"](x) - models["teacher"](x).detach()).square().sum().backward()
            optimizer.step()
    causes = {cause.site: cause for cause in monitor.diagnose().causes}
    assert "did not change in this run" in causes["teacher.1"].sentence
    assert causes["teacher.1"].identifiable and "inputs" in causes["teacher.1"].advice


def test_axes_and_watched_modules_go_by_prefixed_names() -> None:
    models = {"online": network(0), "target": network(1).eval()}
    optimizer = torch.optim.SGD(models["online"].parameters(), lr=1e-3)
    x = torch.randn(16, 5, 8).double()
    with reludiag.Monitor(
        models, optimizer, every=1, unit_axes={"target.1": 1}, watch={"values": "target.4"}
    ) as monitor:
        (models["online"](x) - models["target"](x).detach()).square().sum().backward()
        optimizer.step()
    sites = monitor.diagnose().sites.set_index("site")
    assert sites.loc["target.1", "units"] == 5 and sites.loc["online.1", "units"] == 12
    assert sites.loc["values", "units"] == 3 and sites.loc["values", "samples"] == 16


def test_fused_attention_of_a_teacher_is_left_alone_and_named() -> None:
    def train(monitored: bool) -> tuple[list[Tensor], Any]:
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        models = {"student": nn.Sequential(nn.Linear(8, 8), nn.ReLU()), "teacher": layer.eval()}
        optimizer = torch.optim.SGD(models["student"].parameters(), lr=0.1)
        monitor = reludiag.Monitor(models, optimizer, every=2)
        with monitor if monitored else torch.enable_grad():
            for _ in range(3):
                x = torch.randn(4, 5, 8)
                with torch.no_grad():
                    goal = models["teacher"](x)
                optimizer.zero_grad()
                (models["student"](x) - goal).square().mean().backward()
                optimizer.step()
        return weights(models["student"]), monitor

    bare, _ = train(False)
    with pytest.warns(RuntimeWarning, match="runs attention fused"):
        after, monitor = train(True)
    assert all(map(torch.equal, bare, after))
    assert ("teacher", "model_fused") in {(p.where, p.reason) for p in monitor.diagnose().unjudged}


def test_raise_over_counts_the_units_of_all_models() -> None:
    models = pair("frozen")
    with torch.no_grad():
        models["target"][0].bias[:] = -100.0
    optimizer = torch.optim.SGD(models["online"].parameters(), lr=1e-4)
    with (
        pytest.raises(reludiag.TooManyDeadError, match="look where their weights come from"),
        reludiag.Monitor(models, optimizer, every=EVERY, raise_over="25%"),
    ):
        loop(models["online"], models["target"], optimizer)


def test_groups_of_a_probe_count_in_each_model() -> None:
    models = {"a": network(0), "b": network(1)}
    x, number = torch.randn(12, 8).double(), torch.arange(12) // 4
    optimizer = torch.optim.SGD(models["a"].parameters(), lr=1e-3)
    with reludiag.Monitor(
        models, optimizer, every=1, probe=[(x, number)], groups=lambda batch: batch[1]
    ) as monitor:
        models["a"](x).sum().backward()
        optimizer.step()
    units = monitor.diagnose().units
    for name, model in models.items():
        fired = (model[:2](x) > 0).view(3, 4, -1).any(1).sum(0).tolist()
        assert list(units[units["site"] == f"{name}.1"]["fired"]) == fired


def test_of_twin_critics_each_target_is_known_by_its_weights() -> None:
    models = {"q1": network(1), "q2": network(2)}
    models |= {f"target{i}": copy.deepcopy(models[f"q{i}"]).eval() for i in (1, 2)}
    models["other"] = network(3).eval()  # as alike to both by names and shapes alone
    with torch.no_grad():
        for name in ("target1", "target2", "other"):
            models[name][0].bias[:2] = -100.0
    models["q1"][0].bias.data[:2] = models["q2"][0].bias.data[:2] = -100.0
    x, learned = torch.randn(32, 8).double(), [models["q1"], models["q2"]]
    optimizer = torch.optim.SGD([p for model in learned for p in model.parameters()], lr=1e-3)
    with reludiag.Monitor(models, optimizer, every=1, probe=x) as monitor:
        for _ in range(2):
            optimizer.zero_grad()
            sum(model(x).square().sum() for model in learned).backward()
            optimizer.step()
            with torch.no_grad():
                for name, model in models.items():
                    source = models[name.replace("target", "q")] if "target" in name else model
                    for ours, theirs in zip(model.parameters(), source.parameters(), strict=True):
                        ours.lerp_(theirs, 0.1 if "target" in name else 0.0)
    causes = {cause.site: cause for cause in monitor.diagnose().causes}
    for i in (1, 2):
        assert f"from 'q{i}'" in causes[f"target{i}.1"].sentence
        assert causes[f"target{i}.1"].advice == f"look at the units of 'q{i}'"
    assert "from 'q" not in causes["other.1"].sentence and causes["other.1"].kind == "untrained"


def test_compiled_models_are_watched_by_name() -> None:
    online = network()
    target = copy.deepcopy(online).eval()
    with torch.no_grad():
        target[0].bias[:3] = -100.0
    models = {n: torch.compile(m, backend="eager") for n, m in [("a", online), ("b", target)]}
    optimizer, x = torch.optim.SGD(online.parameters(), lr=1e-3), torch.randn(16, 8).double()
    with reludiag.Monitor(models, optimizer, every=3) as monitor:
        for _ in range(6):
            with torch.no_grad():
                goal = models["b"](x)
            optimizer.zero_grad()
            (models["a"](x) - goal).square().mean().backward()
            optimizer.step()
    sites = monitor.diagnose().sites.set_index("site")
    assert set(sites["samples"]) == {48} and sites.loc["b.1", "dead"] >= 3
    assert set(sites.index) == {"a.1", "a.3", "b.1", "b.3"}


def test_a_recording_of_named_models_is_gone_on_with(tmp_path: Path) -> None:
    path, told = tmp_path / "run.reludiag", list[Snapshot]()
    models = pair("eval")
    optimizer = torch.optim.Adam(models["online"].parameters(), lr=0.05)
    for _ in range(2):
        with reludiag.Monitor(
            models, optimizer, path=path, every=EVERY, resume=True, on_snapshot=told.append
        ):
            loop(models["online"], models["target"], optimizer)
    diagnosis = reludiag.load(path)
    assert told[-1].step == 10 * EVERY and not diagnosis.unjudged
    assert set(diagnosis.sites["site"]) == {"online.1", "online.3", "target.1", "target.3"}
    with pytest.raises(reludiag.RecordingError, match="of another model"):
        reludiag.Monitor(
            models["online"], optimizer, path=path, every=EVERY, resume=True
        ).__enter__()
