"""The samples of a site: each is counted once, in whichever rows and calls of the site it is."""

from collections import defaultdict
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import reludiag
from reludiag.measure.site_list import list_sites


class Net(nn.Module):
    """Whatever `run` makes of its modules."""

    def __init__(self, run: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.run = run
        self.other = nn.Identity()  # a module with one child is taken for a wrapper of it
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self, *args, **kwargs)


def samples(model: nn.Module, *batches: Any, **options: Any) -> dict[str, int]:
    """Site -> its samples."""
    found = reludiag.scan(model, list(batches), **options).sites
    return dict(zip(found["site"], found["samples"], strict=True))


def layer(inputs: int = 3, outputs: int = 5) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU())


# A layer that is called more than once


def recurrent(model: Net, x: Tensor) -> Tensor:
    state = x.new_zeros(len(x), 6)
    for step in range(x.shape[1]):
        state = torch.relu(model.inputs(x[:, step]) + model.state(state))
    return state


def cell() -> Net:
    torch.manual_seed(0)
    return Net(recurrent, inputs=nn.Linear(3, 6), state=nn.Linear(6, 6))


def test_a_recurrent_cell_is_one_site_whose_steps_are_positions() -> None:
    model, x = cell(), torch.randn(16, 9, 3)
    with torch.no_grad():
        model.state.bias[:2] = -100.0
    units = reludiag.scan(model, [x]).units
    assert list(units["site"].unique()) == ["Net:relu"]
    assert list(units["samples"].unique()) == [16]
    assert list(units["verdict"] == "dead") == [True] * 2 + [False] * 4


@pytest.mark.parametrize("train_mode", [False, True])
def test_the_length_of_a_loop_may_differ_between_batches(train_mode: bool) -> None:
    batches = [torch.randn(4, steps, 3) for steps in (2, 5, 1, 3)]
    assert samples(cell(), *batches, train_mode=train_mode) == {"Net:relu": 16}


def test_a_call_may_first_repeat_in_a_later_batch() -> None:
    batches = [torch.randn(4, steps, 3) for steps in (1, 4, 1, 2)]
    model = cell()
    found = reludiag.scan(model, batches)
    assert list(found.sites["samples"]) == [16]
    whole = reludiag.scan(cell(), batches[1:] + batches[:1])
    assert list(found.units["fired"]) == list(whole.units["fired"])


def test_turns_of_a_loop_can_be_sites() -> None:
    x = torch.randn(4, 3, 3)
    turns = ["Net:relu", "Net:relu#1", "Net:relu#2"]
    assert list(samples(cell(), x, merge_calls=False)) == turns
    assert len(list_sites(cell(), [x]).sites) == 1
    assert len(list_sites(cell(), [x], merge_calls=False).sites) == 3


def test_a_loop_with_raw_weights_is_one_site() -> None:
    model = Net(lambda m, x: [torch.relu(x @ m.weight) for _ in range(3)])
    model.weight = nn.Parameter(torch.randn(3, 3))
    assert list(samples(model, torch.randn(4, 3))) == ["weight:relu"]


def test_a_head_for_each_level_of_a_pyramid_is_one_site() -> None:
    def levels(model: Net, x: Tensor) -> list[Tensor]:
        return [F.relu(model.conv(F.avg_pool2d(x, size))) for size in (1, 2, 4)]

    model, x = Net(levels, conv=nn.Conv2d(3, 5, 1)), torch.randn(8, 3, 8, 8)
    with torch.no_grad():
        fires = torch.stack([level.amax((2, 3)) > 0 for level in model(x)]).any(0)
    units = reludiag.scan(model, [x]).units
    assert list(units["samples"]) == [8] * 5
    assert list(units["fired"]) == fires.sum(0).tolist()


def test_a_layer_of_two_inputs_is_one_site() -> None:
    model = Net(lambda m, a, b: (m.layer(a), m.layer(b)), layer=layer())
    batch = {"a": torch.randn(4, 3), "b": torch.randn(4, 3)}
    assert samples(model, batch, batch) == {"layer.1": 8}


@pytest.mark.parametrize(
    "run",
    {
        "different layers": lambda m, x: m.relu(m.b(m.relu(m.a(x)))),
        "a norm that they share": lambda m, x: m.relu(m.norm(m.b(m.relu(m.norm(m.a(x)))))),
        "both signs": lambda m, x: (m.relu(z := m.a(x)), m.relu(-z)),
        "slices of one weight": lambda m, x: [m.relu(m.norm(x @ w)) for w in m.weights],
        "weights that are computed": lambda m, x: [m.relu(m.norm(x @ (2 * w))) for w in m.weights],
    }.values(),
    ids=lambda run: "",
)
def test_a_relu_that_is_fed_by_different_layers_is_several_sites(run: Callable[..., Any]) -> None:
    model = Net(run, a=nn.Linear(5, 5), b=nn.Linear(5, 5), norm=nn.LayerNorm(5), relu=nn.ReLU())
    model.weights = nn.Parameter(torch.randn(2, 5, 5))
    assert list(samples(model, torch.randn(4, 5), torch.randn(4, 5))) == ["relu", "relu#1"]


@pytest.mark.parametrize("probe", [True, False])
def test_a_monitor_has_one_site_for_a_loop(probe: bool) -> None:
    model, x = cell(), torch.randn(8, 4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    batches = x if probe else None
    with reludiag.Monitor(model, optimizer, every=2, probe=batches) as monitor:
        for step in range(6):
            model(x).sum().backward()
            optimizer.step()
            if step == 3:
                with torch.no_grad():
                    model.state.bias[:2] = -100.0
    found = monitor.diagnose()
    assert list(found.sites["site"]) == ["Net:relu"]
    assert list(found.sites["samples"]) == [8 if probe else 16]
    assert list(found.units["died_step"].fillna(0))[:2] == [6, 6]
    assert (found.units["firing_rate"] <= 1).all()


# Rows that are chosen


def test_parts_of_a_batch_are_put_together_again() -> None:
    x = torch.randn(7, 3)
    for run in (
        lambda m, x: [m.layer(part) for part in x.chunk(3)],
        lambda m, x: [m.layer(row) for row in x],
        lambda m, x: m.layer(x[torch.randperm(7)]),
        lambda m, x: [m.layer(x[:4]), m.layer(x[4:])],
    ):
        assert samples(Net(run, layer=layer()), x, x) == {"layer.1": 14}


def test_images_of_different_sizes_in_a_list_are_samples() -> None:
    def detect(model: Net, images: list[Tensor]) -> Tensor:
        padded = images[0].new_zeros(len(images), 3, 8, 8)
        for slot, image in zip(padded, images, strict=True):
            slot[:, : image.shape[1], : image.shape[2]].copy_(image)
        return F.relu(model.conv(padded))

    images = [torch.randn(3, 5, 8), torch.randn(3, 8, 2)]
    assert samples(Net(detect, conv=nn.Conv2d(3, 5, 3)), (images,), (images,)) == {"conv:relu": 4}


def test_padded_slots_of_a_buffer_are_no_samples() -> None:
    def run(model: Net, x: Tensor) -> Tensor:
        slots = x.new_zeros(10, 3)
        chosen = x[:, 0] > 0
        slots[: int(chosen.sum())] = x[chosen]
        return model.layer(slots)

    model, x = Net(run, layer=layer()), torch.randn(8, 3)
    with torch.no_grad():
        model.layer[0].weight[0] = 0.0
        model.layer[0].weight[0, 0] = -1.0
        model.layer[0].bias[0] = 1e-9  # fires only in an empty slot
    x[:, 0] = torch.tensor([1.0, 2.0, 3.0, -1.0, -1.0, -1.0, -1.0, -1.0])
    units = reludiag.scan(model, [x]).units
    assert list(units["samples"]) == [3] * 5
    assert units["verdict"].iloc[0] == "dead"


def test_rows_that_cannot_be_followed_are_one_sample() -> None:
    def run(model: Net, x: Tensor) -> Tensor:
        dispatch = F.one_hot(torch.arange(4) * 2, 8).to(x)
        return model.layer(dispatch @ x)

    assert samples(Net(run, layer=layer()), torch.randn(8, 3)) == {"layer.1": 1}


def test_a_route_that_is_empty_at_first_is_followed_later() -> None:
    def run(model: Net, x: Tensor) -> Tensor:
        y, late = x.new_zeros(len(x), 5), x[:, 0] > 100
        y[late] = model.late(x[late])
        return y + model.layer(x)

    first, later = torch.randn(8, 3), torch.randn(8, 3)
    later[:3, 0] = 200.0
    model = Net(run, late=layer(), layer=layer())
    found = samples(model, first, later, torch.full((8, 3), 200.0), later)
    assert found == {"layer.1": 32, "late.1": 14}


def pooled_images(features: Tensor, boxes: Tensor) -> Tensor:
    """As torchvision's: the first column of a box is the number of its image."""
    return features[boxes[:, 0].long()]


_LIBRARY = torch.library.Library("reludiag_tests", "DEF")
_LIBRARY.define("roi_align(Tensor features, Tensor boxes) -> Tensor")
_LIBRARY.impl("roi_align", pooled_images, "CompositeExplicitAutograd")


def test_proposals_of_an_image_are_one_sample() -> None:
    def run(model: Net, x: Tensor) -> Tensor:
        boxes = torch.zeros(20, 5)
        boxes[:, 0] = torch.arange(20) % 3
        return model.layer(torch.ops.reludiag_tests.roi_align(x, boxes).flatten(1))

    assert samples(Net(run, layer=layer(12)), torch.randn(4, 3, 2, 2)) == {"layer.1": 3}


def test_packed_sequences_are_samples() -> None:
    def run(model: Net, x: Tensor) -> Tensor:
        lengths = torch.tensor([5, 3, 3, 1])
        return model.layer(nn.utils.rnn.pack_padded_sequence(x, lengths, True).data)

    assert samples(Net(run, layer=layer()), torch.randn(4, 5, 3)) == {"layer.1": 4}


# Groups


def graphs(count: int, nodes: int = 5, features: int = 3) -> dict[str, Tensor]:
    graph = torch.arange(count).repeat_interleave(nodes)
    edges = torch.randint(nodes, (2, count * 8)) + nodes * torch.arange(count).repeat(8)
    return {"x": torch.randn(len(graph), features), "edges": edges, "batch": graph}


def convolve(model: Net, x: Tensor, edges: Tensor, batch: Tensor) -> Tensor:
    start, end = edges
    messages = model.edges(torch.cat([x[start], x[end]], 1))
    x = model.nodes(x.new_zeros(len(x), 5).index_add(0, end, messages))
    return model.graphs(x.new_zeros(int(batch.max()) + 1, 5).index_add(0, batch, x))


def graph_network() -> Net:
    return Net(convolve, edges=layer(6), nodes=layer(5), graphs=layer(5))


def test_the_nodes_and_edges_of_a_graph_are_one_sample() -> None:
    diagnosis = reludiag.scan(graph_network(), [graphs(4), graphs(3)])
    assert list(diagnosis.sites["samples"]) == [7, 7, 7]
    assert diagnosis.head.samples == 7
    assert "7 groups of 35 rows" in diagnosis.head.evidence
    assert "Rows with the same `batch` count as one sample." in diagnosis.head.notes


class Graphs:
    """As PyTorch Geometric's `Batch`: it says how many graphs and nodes it has."""

    def __init__(self, count: int) -> None:
        vars(self).update(graphs(count))
        self.num_graphs = count

    def keys(self) -> list[str]:
        return ["x", "edges", "batch"]

    @property
    def num_nodes(self) -> int:
        return len(vars(self)["x"])


def test_graphs_in_an_object_are_samples_in_every_site() -> None:
    def run(model: Net, data: Any) -> Tensor:
        return convolve(model, data.x, data.edges, data.batch)

    model = Net(run, edges=layer(6), nodes=layer(5), graphs=layer(5))
    diagnosis = reludiag.scan(model, [Graphs(4), Graphs(1), Graphs(3)])
    assert list(diagnosis.sites["samples"]) == [8, 8, 8]
    assert diagnosis.head.samples == 8
    assert "8 groups of 40 rows" in diagnosis.head.evidence


def thirds(batch: Any) -> Tensor:
    return torch.arange(9) // 3


@pytest.mark.parametrize(
    ("run", "rnn"),
    [
        (lambda m, x: m.rnn(x), nn.RNN(3, 6, nonlinearity="relu", batch_first=True)),
        (lambda m, x: m.rnn(x[:, 0]), nn.RNNCell(3, 6, nonlinearity="relu")),
        (lambda m, x: m.rnn(x.flip(0)[:, 0]), nn.RNNCell(3, 6, nonlinearity="relu")),
    ],
)
def test_groups_are_samples_of_a_recurrent_layer(run: Callable[..., Any], rnn: nn.Module) -> None:
    x = torch.randn(9, 4, 3)
    assert samples(Net(run, rnn=rnn), x, x, x, groups=thirds) == {"rnn": 3}
    assert samples(Net(run, rnn=rnn), x, x, x) == {"rnn": 27}


def test_sequences_of_several_lengths_are_one_sample_where_their_groups_are_not_known() -> None:
    packed = nn.utils.rnn.pack_sequence([torch.randn(n, 3) for n in (4, 4, 2, 1)])
    model = Net(lambda m, x: m.rnn(x), rnn=nn.RNN(3, 6, nonlinearity="relu"))
    assert samples(model, packed, packed) == {"rnn": 8}
    assert samples(model, packed, packed, groups=lambda _: torch.arange(4) // 2) == {"rnn": 1}


def test_an_input_without_a_batch_axis_has_no_rows_to_follow() -> None:
    model = Net(lambda m, x: F.relu(m.conv(x.flip(0))), conv=nn.Conv2d(3, 5, 3))
    assert samples(model, *torch.randn(3, 3, 8, 8)) == {"conv:relu": 3}


def test_tensors_in_a_list_after_the_rows_are_not_taken_for_samples() -> None:
    def run(model: Net, x: Tensor, levels: list[Tensor]) -> list[Tensor]:
        return [F.relu(model.inputs(level)) for level in (x, *levels)]

    batch = {"x": torch.randn(3, 4), "levels": [torch.randn(3, 4) for _ in range(3)]}
    model = Net(run, inputs=nn.Linear(4, 5))
    assert samples(model, batch, batch) == {"inputs:relu": 2}  # a call is one


@pytest.mark.parametrize("groups", ["series", lambda batch: batch["series"]])
def test_equal_groups_of_two_batches_are_one(groups: Any) -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU())
    batches = [
        {"input": torch.randn(9, 3), "series": torch.arange(9) // 3},
        {"input": torch.randn(9, 3), "series": torch.arange(9) // 3 + 1},
    ]
    units = reludiag.scan(model, batches, groups=groups).units
    assert list(units["samples"]) == [4] * 5
    with torch.no_grad():
        fires = torch.cat([model(batch["input"]) > 0 for batch in batches])
    series = torch.cat([batch["series"] for batch in batches])
    expected = sum(fires[series == number].any(0).long() for number in range(4))
    assert list(units["fired"]) == torch.as_tensor(expected).tolist()


@pytest.mark.parametrize("groups", ["nothing", lambda batch: torch.arange(3)])
def test_groups_that_do_not_fit_the_rows_are_an_error(groups: Any) -> None:
    with pytest.raises(reludiag.DataError, match="8 rows"):
        reludiag.scan(nn.Sequential(nn.Linear(3, 5), nn.ReLU()), [torch.randn(8, 3)], groups=groups)


def test_a_bound_on_rows_that_may_depend_on_each_other_says_so() -> None:
    dead = nn.Sequential(nn.Linear(3, 5), nn.ReLU())
    nn.init.constant_(dead[0].bias, -100.0)
    adjacency = Net(lambda m, x, matrix: m.layer(matrix @ x), layer=dead)
    batch = {"x": torch.randn(9, 3), "matrix": torch.rand(9, 9)}
    assert "if rows are independent" in " ".join(str(reludiag.scan(adjacency, [batch])).split())
    assert "independent" not in str(reludiag.scan(dead, [torch.randn(9, 3)]))


@pytest.mark.parametrize("kind", ["positions", "tokens"])
def test_positions_count_as_samples_where_the_user_says_so(kind: str) -> None:
    model, x = nn.Sequential(nn.Linear(3, 50), nn.ReLU()), torch.randn(4, 20, 3)
    with torch.no_grad():
        model[0].bias[0] = -100.0
        fires = model(x).flatten(0, 1) > 0
    diagnosis = reludiag.scan(model, [x], samples=kind)
    assert list(diagnosis.units["samples"].unique()) == [80]
    assert list(diagnosis.units["fired"]) == fires.sum(0).tolist()
    assert "if positions are independent" in " ".join(str(diagnosis).split())
    with pytest.raises(reludiag.UsageError, match="pixels"):
        reludiag.scan(model, [x], samples="pixels")


# Against a count in plain Python


class Logged(nn.Module):
    """A random network of layers, loops and routes, which can say what each site saw.

    `rows` are of shape `[row, feature]`; row r is of sample `ids[r]`.
    """

    def __init__(self, draw: Random) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        self.kinds = [draw.choice(KINDS) for _ in range(3)]
        for _ in self.kinds:
            block = nn.ModuleDict({"router": nn.Linear(4, 3)})
            for name in "abc":
                block[name] = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
            self.blocks.append(block)
        self.seen: list[tuple[str, Tensor, list[int]]] | None = None
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        ids = [row // (x[..., 0].numel() // len(x)) for row in range(x[..., 0].numel())]
        turns = int(x.abs().sum() * 1000) % 4
        rows = x.reshape(-1, 4)
        for number, (kind, block) in enumerate(zip(self.kinds, self.blocks, strict=True)):

            def call(name: str, rows: Tensor, ids: list[int], number: int = number) -> Tensor:
                out: Tensor = self.blocks[number][name](rows)
                if self.seen is not None:
                    self.seen.append((f"blocks.{number}.{name}.1", out, ids))
                return out

            rows = kind(call, block, rows, ids, turns)
        return rows


Rows = Callable[[Callable[..., Tensor], Any, Tensor, list[int], int], Tensor]


def _plain(call: Any, block: Any, x: Tensor, ids: list[int], turns: int) -> Tensor:
    return x + call("a", x, ids)


def _loop(call: Any, block: Any, x: Tensor, ids: list[int], turns: int) -> Tensor:
    for _ in range(turns):
        x = x + call("a", x - 0.5, ids)
    return x


def _branch(call: Any, block: Any, x: Tensor, ids: list[int], turns: int) -> Tensor:
    return x + call("b" if turns % 2 else "a", x, ids)


def _experts(block: Any, x: Tensor) -> list[int]:
    chosen: list[int] = block["router"](x).argmax(1).tolist()
    return chosen


def _of(ids: list[int], chosen: list[int], expert: int) -> list[int]:
    return [i for i, c in zip(ids, chosen, strict=True) if c == expert]


def _masked(call: Any, block: Any, x: Tensor, ids: list[int], turns: int) -> Tensor:
    y, chosen = torch.zeros_like(x), _experts(block, x)
    for expert, name in enumerate("abc"):
        mask = torch.tensor([c == expert for c in chosen])
        y[mask] = call(name, x[mask], _of(ids, chosen, expert))
    return x + y


def _selected(call: Any, block: Any, x: Tensor, ids: list[int], turns: int) -> Tensor:
    y, chosen = torch.zeros_like(x), _experts(block, x)
    for expert, name in enumerate("abc"):
        index = torch.where(torch.tensor(chosen) == expert)[0]
        rows = x.index_select(0, index)
        if turns % 2:
            rows = x.gather(0, index[:, None].expand(-1, 4))
        y = y.index_add(0, index, call(name, rows, _of(ids, chosen, expert)))
    return x + y


def _sorted(call: Any, block: Any, x: Tensor, ids: list[int], turns: int) -> Tensor:
    chosen = torch.tensor(_experts(block, x))
    order = chosen.argsort(stable=True)
    parts = x[order].split(torch.bincount(chosen, minlength=3).tolist())
    out = [
        call(name, part, _of(ids, chosen.tolist(), expert))
        for expert, (name, part) in enumerate(zip("abc", parts, strict=True))
    ]
    y = torch.empty_like(x)
    y[order] = torch.cat(out)
    return x + y


def _twice(call: Any, block: Any, x: Tensor, ids: list[int], turns: int) -> Tensor:
    """The two best experts of each row, of which one may be the same by a cycle of three."""
    best = block["router"](x).topk(2, 1).indices
    best[:, 1] = torch.where(best[:, 1] == 2, best[:, 0], best[:, 1])
    rows = x.repeat_interleave(2, 0)
    flat, twice = best.flatten().tolist(), [i for i in ids for _ in range(2)]
    y = torch.zeros_like(rows)
    for expert, name in enumerate("abc"):
        mask = torch.tensor([c == expert for c in flat])
        y[mask] = call(name, rows[mask], _of(twice, flat, expert))
    return x + y.view(-1, 2, 4).sum(1)


def _buffered(call: Any, block: Any, x: Tensor, ids: list[int], turns: int) -> Tensor:
    """Experts with four slots each: rows beyond are dropped, and slots may stay empty."""
    chosen, slots = _experts(block, x), torch.zeros(3, 4, 4, dtype=x.dtype)
    y = torch.zeros_like(x)
    for expert, name in enumerate("abc"):
        index = torch.tensor([r for r, c in enumerate(chosen) if c == expert][:4], dtype=int)
        slots[expert, : len(index)] = x[index]
        held = [ids[r] for r in index.tolist()] + [-1] * (4 - len(index))
        y[index] = call(name, slots[expert], held)[: len(index)]
    return x + y


KINDS: list[Rows] = [_plain, _loop, _branch, _masked, _selected, _sorted, _twice, _buffered]


@pytest.mark.parametrize("seed", range(15))
def test_samples_are_as_plain_python_counts_them(seed: int) -> None:
    torch.manual_seed(seed)
    draw = Random(seed)
    model = Logged(draw)
    shape = draw.choice([(4,), (3, 4)])
    batches = [torch.randn(draw.randint(1, 6), *shape).double() for _ in range(4)]
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.bias.copy_(torch.randn(len(module.bias)) - 1)
    fired: dict[tuple[str, int], int] = defaultdict(int)
    reached: dict[str, int] = defaultdict(int)
    for batch in batches:
        model.seen = []
        with torch.no_grad():
            model(batch)
        by_sample: dict[tuple[str, int], set[int]] = defaultdict(set)
        for site, out, ids in model.seen:
            assert len(out) == len(ids)
            for values, sample in zip(out.tolist(), ids, strict=True):
                if sample >= 0:
                    by_sample[site, sample] |= {u for u, value in enumerate(values) if value > 0}
        for (site, _), units in by_sample.items():
            reached[site] += 1
            for unit in units:
                fired[site, unit] += 1
    model.seen = None
    units = reludiag.scan(model, batches).units
    units = units[units["samples"] > 0]
    assert set(units["site"]) == set(reached)
    for row in units.to_dict("records"):
        key = row["site"], row["unit"]
        assert (key, row["samples"]) == (key, reached[row["site"]])
        assert (key, row["fired"]) == (key, fired[key])
        assert (row["verdict"] == "dead") == (fired[key] == 0)


# A bound holds for 95 % of data sets

UNITS, SAMPLES, POSITIONS = 600, 24, 4
THRESHOLDS = torch.linspace(0.2, 2.2, UNITS)


def positions_of_samples() -> Tensor:
    """`[sample, position, unit]`: all positions of a sample are nearly the same."""
    shared = torch.randn(SAMPLES, 1, UNITS)
    return shared + 0.05 * torch.randn(SAMPLES, POSITIONS, UNITS)


def threshold() -> nn.Linear:
    """Each unit looks at a feature of its own, so each is a data set of its own."""
    linear = nn.Linear(UNITS, UNITS)
    with torch.no_grad():
        linear.weight.copy_(torch.eye(UNITS))
        linear.bias.copy_(-THRESHOLDS)
    return linear


def true_rates() -> Tensor:
    """Share of samples in which a unit fires at one position or more."""
    highest = 0.05 * torch.randn(4000, POSITIONS).amax(1)
    spread = (highest[:, None] - THRESHOLDS) / 2**0.5
    return (0.5 * (1 + torch.erf(spread))).mean(0)


def _routed(model: Net, x: Tensor) -> Tensor:
    rows = x.reshape(-1, UNITS)
    return F.relu(model.layer(rows[torch.randperm(len(rows))]))


def _steps(model: Net, x: Tensor) -> list[Tensor]:
    return [F.relu(model.layer(x[:, step])) for step in range(POSITIONS)]


def _proposals(model: Net, x: Tensor) -> Tensor:
    boxes = torch.zeros(SAMPLES * POSITIONS, 5)
    boxes[:, 0] = torch.arange(len(boxes)) % SAMPLES
    return F.relu(model.layer(torch.ops.reludiag_tests.roi_align(x.mean(1), boxes)))


CASES: dict[str, tuple[Callable[..., Any], Callable[[Tensor], Any]]] = {
    "tokens": (lambda m, x: F.relu(m.layer(x)), lambda x: x),
    "images": (
        lambda m, x: F.relu(F.conv2d(x, m.layer.weight[..., None, None], m.layer.bias)),
        lambda x: x.transpose(1, 2).unflatten(2, (2, 2)),
    ),
    "nodes": (
        lambda m, x, batch: F.relu(m.layer(x)),
        lambda x: {"x": x.flatten(0, 1), "batch": torch.arange(len(x)).repeat_interleave(4)},
    ),
    "proposals": (_proposals, lambda x: x),
    "routed rows": (_routed, lambda x: x),
    "recurrent steps": (_steps, lambda x: x),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bound_covers_the_rate_per_sample_in_95_percent_of_data_sets(case: str) -> None:
    run, batch = CASES[case]
    torch.manual_seed(0)
    units = reludiag.scan(Net(run, layer=threshold()), [batch(positions_of_samples())]).units
    rates = true_rates()
    if case == "proposals":  # the mean of the positions, four times
        rates = 0.5 * (1 - torch.erf(THRESHOLDS / (1 + 0.05**2 / 4) ** 0.5 / 2**0.5))
    missed = (torch.tensor(units["firing_rate_upper"].to_numpy()) < rates).double().mean()
    noise = (0.05 * 0.95 / UNITS) ** 0.5
    assert missed <= 0.05 + 3 * noise
    assert set(units["samples"]) == {SAMPLES}


@pytest.mark.parametrize(
    "other",
    [
        lambda x: x.new_zeros(len(x), 6),
        lambda x: torch.zeros(len(x), 6),
        lambda x: torch.nn.functional.one_hot(x.argmax(-1), 6).float(),
    ],
    ids=["new_zeros", "zeros", "one_hot"],
)
def test_what_stands_beside_the_rows_does_not_lose_them(other: Callable[[Tensor], Tensor]) -> None:
    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.last = nn.Linear(10, 6), nn.Linear(6, 1)

        def forward(self, x: Tensor) -> Tensor:
            state = other(x[:, 0])
            for step in range(x.shape[1]):
                state = torch.relu(self.layer(torch.cat([x[:, step], state], 1)))
            return self.last(state)

    (site,) = reludiag.scan(Cell(), [torch.randn(8, 5, 4) for _ in range(3)]).sites.to_dict(
        "records"
    )
    assert (site["samples"], site["units"]) == (24, 6)


def test_groups_and_positions_exclude_each_other() -> None:
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU()), torch.randn(8, 4)
    with pytest.raises(reludiag.UsageError, match="both given"):
        reludiag.scan(model, [x], samples="tokens", groups=lambda batch: torch.arange(8))
