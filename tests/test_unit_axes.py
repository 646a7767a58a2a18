"""The unit axis is found behind whatever carries it, and the units on several axes are all units.

Some units are silenced by their own bias, at rows of the weight that are known; behind the
operators of each case, a scan finds those and no others.
"""

import math
from collections.abc import Callable
from random import Random

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

import reludiag

SILENT = (1, 2, 5)
"""The rows of the weight whose units are dead."""


def silenced(layer: nn.Module, rows: tuple[int, ...] = SILENT) -> nn.Module:
    with torch.no_grad():
        layer.bias.fill_(20.0)  # all others fire
        layer.bias[list(rows)] = -1e6
    return layer


class Through(nn.Module):
    """A layer with 24 units, a function of its output, and a ReLU."""

    def __init__(self, layer: nn.Module, carry: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.carry, self.relu = silenced(layer), carry, nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.carry(self.layer(x)))


def linear() -> nn.Module:
    return nn.Linear(8, 24)


def conv() -> nn.Module:
    return nn.Conv2d(3, 24, 3, padding=1)


RANDOM = torch.Generator().manual_seed(0)
ROWS = torch.randn(6, 8, generator=RANDOM)
TOKENS = torch.randn(6, 5, 8, generator=RANDOM)
IMAGES = torch.randn(6, 3, 4, 4, generator=RANDOM)


def of_index(index: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: x[:, index]


def scattered(x: Tensor) -> Tensor:
    """A graph layer: messages of neighbors, added up at each node."""
    source, target = torch.tensor([0, 1, 2, 3, 4, 5, 0]), torch.tensor([1, 1, 0, 2, 4, 5, 3])
    messages = x.index_select(0, source)
    index = target[:, None].expand_as(messages)
    return torch.zeros_like(x).scatter_add_(0, index, messages) + x


def written(x: Tensor) -> Tensor:
    """A buffer that is filled step by step."""
    buffer = x.new_zeros(len(x), 7, x.shape[-1])
    for step in range(x.shape[1]):
        buffer[:, step + 1] = x[:, step]
    return buffer - 0.0


def padded(x: Tensor) -> Tensor:
    buffer = x.new_full((*x.shape[:2], 6, 6), -1.0)
    buffer[:, :, 1:5, 1:5] = x
    return buffer


CASES: dict[str, tuple[Callable[[], nn.Module], Tensor, Callable[[Tensor], Tensor], str]] = {
    "instance norm": (conv, IMAGES,
                      lambda x: functional.instance_norm(x) - (x < -1e5) * 9.0, "1"),
    "group norm of each": (conv, IMAGES,
                           lambda x: functional.group_norm(x, 24) - (x < -1e5) * 9.0, "1"),
    "heads": (linear, TOKENS, lambda x: x.view(6, 5, 4, 6).transpose(1, 2), "1,3"),
    "heads, features first": (linear, TOKENS, lambda x: x.view(6, 5, 4, 6).permute(0, 3, 2, 1),
                              "2,1"),
    "heads in the batch": (linear, TOKENS, lambda x: x.view(6, 5, 4, 6).transpose(1, 2)
                           .reshape(24, 5, 6), "0,2"),
    "heads and back": (linear, TOKENS, lambda x: x.view(6, 5, 4, 6).transpose(1, 2)
                       .transpose(1, 2).reshape(6, 5, 24), "2"),
    "maps": (linear, ROWS, lambda x: x.view(6, 6, 2, 2), "1,2,3"),
    "channels and pixels": (conv, IMAGES, lambda x: functional.pixel_shuffle(x, 2), "1,2,3"),
    "pixels and back": (conv, IMAGES,
                        lambda x: functional.pixel_unshuffle(functional.pixel_shuffle(x, 2), 2),
                        "1"),
    "shuffled by hand": (conv, IMAGES, lambda x: x.view(6, 4, 6, 4, 4).transpose(1, 2)
                         .reshape(6, 24, 4, 4), "1,1//4"),
    "shuffled": (conv, IMAGES, lambda x: functional.channel_shuffle(x, 4), "1,1//4"),
    "flattened": (conv, IMAGES, lambda x: x.flatten(1), "1//16"),
    "windows": (conv, IMAGES, lambda x: functional.unfold(x, 2), "1//4"),
    "windows and back": (conv, IMAGES,
                         lambda x: functional.fold(functional.unfold(x, 2), 4, 2), "1"),
    "repeated": (conv, IMAGES, lambda x: x.repeat(1, 1, 2, 2), "1"),
    "tiled": (conv, IMAGES, lambda x: x.repeat(1, 3, 1, 1), "1"),
    "graph": (linear, ROWS, scattered, "1"),
    "index_add": (linear, ROWS, lambda x: torch.zeros_like(x).index_add(
        0, torch.tensor([0, 1, 2, 3, 4, 4]), x), "1"),
    "routed": (linear, ROWS, lambda x: x[torch.tensor([True, False, True, True, False, True])],
               "1"),
    "two indices": (linear, TOKENS, lambda x: x[torch.arange(6), torch.tensor([0, 4, 1, 2, 3, 0])],
                    "1"),
    "index around units": (conv, IMAGES, lambda x: x[torch.arange(6), :, torch.arange(6) % 4], "1"),
    "steps chosen": (linear, TOKENS, of_index(torch.tensor([0, 0, 3])), "2"),
    "gathered": (linear, TOKENS, lambda x: x.gather(1, torch.zeros(6, 2, 24, dtype=torch.int64)),
                 "2"),
    "sorted in time": (linear, TOKENS, lambda x: x.sort(1).values, "2"),
    "best in time": (linear, TOKENS, lambda x: x.topk(2, 1).values, "2"),
    "in frequency": (linear, TOKENS, lambda x: torch.fft.irfft(torch.fft.rfft(x, dim=1), n=5, dim=1)
                     - (x < -1e5) * 9.0, "2"),
    "filled buffer": (linear, TOKENS, written, "2"),
    "padded by hand": (conv, IMAGES, padded, "1"),
    "put": (linear, TOKENS, lambda x: torch.zeros(6, 7, 24).index_put(
        (torch.arange(6)[:, None], torch.arange(5)), x), "2"),
    "normalized": (linear, TOKENS, lambda x: functional.normalize(x.clamp(min=-9), dim=1), "2"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_units_are_found_behind(case: str) -> None:
    layer, x, carry, axis = CASES[case]
    diagnosis = reludiag.scan(Through(layer(), carry), [x])
    (site,) = diagnosis.sites.to_dict("records")
    units = diagnosis.units
    assert (site["unit_axis"], site["units"]) == (axis, 24)
    assert tuple(units.unit[units.verdict == "dead"]) == SILENT


class Experts(nn.Module):
    """4 members of 6 units, each with weights of its own."""

    def __init__(self, equation: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight, self.equation = nn.Parameter(torch.randn(shape)), equation
        self.bias = nn.Parameter(torch.full((4, 6), 20.0))
        with torch.no_grad():
            self.bias.view(-1)[list(SILENT)] = -1e6

    def forward(self, x: Tensor) -> Tensor:
        y = torch.einsum(self.equation, x, self.weight)
        bias = self.bias if y.shape[-2] == 4 else self.bias[:, None]
        return torch.relu(y + bias)


@pytest.mark.parametrize(
    ("equation", "shape", "axis"),
    [
        ("bd,ndh->bnh", (4, 8, 6), "1,2"),
        ("bd,ndh->nbh", (4, 8, 6), "0,2"),
        ("bd,nhd->bnh", (4, 6, 8), "1,2"),
    ],
)
def test_each_member_of_an_ensemble_has_units_of_its_own(
    equation: str, shape: tuple[int, ...], axis: str
) -> None:
    diagnosis = reludiag.scan(Experts(equation, shape), [ROWS])
    units, (site,) = diagnosis.units, diagnosis.sites.to_dict("records")
    assert (site["unit_axis"], site["units"], site["samples"]) == (axis, 24, 6)
    assert tuple(units.unit[units.verdict == "dead"]) == SILENT


class Members(nn.Module):
    """Layers of their own, side by side in one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleList(silenced(nn.Linear(8, 6), ()) for _ in range(4))
        with torch.no_grad():
            for unit in SILENT:
                self.members[unit // 6].bias[unit % 6] = -1e6

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(torch.stack([member(x) for member in self.members], 1))


def test_what_different_layers_produce_is_not_merged_when_it_is_stacked() -> None:
    diagnosis = reludiag.scan(Members(), [ROWS])
    assert list(diagnosis.sites.unit_axis) == ["1,2"]
    assert tuple(diagnosis.units.unit[diagnosis.units.verdict == "dead"]) == SILENT


def test_what_one_layer_produces_again_is_the_same_units() -> None:
    layer = silenced(nn.Linear(8, 24))

    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(torch.stack([self.layer(x[:, t]) for t in range(5)], 1))

    assert list(reludiag.scan(Steps(), [TOKENS]).sites.unit_axis) == ["2"]


@pytest.mark.parametrize(
    "wrap",
    [
        parametrizations.spectral_norm,
        parametrizations.weight_norm,
        parametrizations.orthogonal,
        lambda layer: nn.utils.spectral_norm(layer),
    ],
    ids=["spectral", "weight", "orthogonal", "old spectral"],
)
def test_a_weight_that_is_computed_from_parameters_still_produces_units(
    wrap: Callable[[nn.Module], nn.Module],
) -> None:
    model = nn.Sequential(wrap(silenced(nn.Linear(8, 24))), nn.ReLU())
    (site,) = reludiag.scan(model, [TOKENS]).sites.to_dict("records")
    assert (site["unit_axis"], site["dead"], site["samples"]) == ("2", 3, 6)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("stats", [False, True])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("train", [False, True])
def test_channels_are_the_units_behind_an_instance_norm(
    dims: int, stats: bool, affine: bool, train: bool
) -> None:
    convolution = getattr(nn, f"Conv{dims}d")(3, 12, 3, padding=1)
    norm = getattr(nn, f"InstanceNorm{dims}d")(12, affine=affine, track_running_stats=stats)
    model = nn.Sequential(convolution, norm, nn.ReLU())
    if affine:
        with torch.no_grad():
            norm.weight[:5] = 0
            norm.bias[:5] = -1
    x = torch.randn(4, 3, *[5] * dims)
    (site,) = reludiag.scan(model, [x], train_mode=train).sites.to_dict("records")
    assert (site["unit_axis"], site["units"], site["samples"]) == ("1", 12, 4)
    assert site["dead"] == 5 * affine
    assert site["producer"] == "0"


def test_counts_over_several_axes_are_those_of_the_brute_force() -> None:
    model = Through(linear(), lambda x: x.view(6, 5, 4, 6).permute(0, 3, 2, 1)).double()
    x = TOKENS.double()
    units = reludiag.scan(model, [x]).units
    with torch.no_grad():
        y = model.layer(x).relu()  # [sample, token, unit]
    assert list(units.fired) == (y > 0).any(1).sum(0).tolist()
    assert list(units.max_activation) == pytest.approx(y.amax((0, 1)).tolist(), abs=1e-12)
    assert list(units.mean_activation) == pytest.approx(y.mean((0, 1)).tolist(), abs=1e-12)
    assert math.prod(y.shape[:2]) == 30


def test_batches_of_other_sizes_are_read_as_the_first() -> None:
    model = Through(linear(), lambda x: x.view(len(x), -1, 4, 6).transpose(1, 2))
    diagnosis = reludiag.scan(model, [TOKENS, TOKENS[:2, :3], torch.randn(1, 9, 8)])
    (site,) = diagnosis.sites.to_dict("records")
    assert (site["units"], site["samples"], site["dead"]) == (24, 9, 3)


def test_an_axis_that_is_mixed_with_others_is_not_known() -> None:
    mixed = Through(linear(), lambda x: x.view(6, 5, 24).transpose(1, 2).reshape(6, 5, 24))
    cut = Through(linear(), lambda x: x.sort(-1).values)
    for model in (mixed, cut):
        assert list(reludiag.scan(model, [TOKENS]).sites.unit_axis) == ["unknown"]


def random_move(random: Random, shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """An operator that only moves, repeats or leaves out elements of a tensor of this shape."""
    axis, other = random.randrange(len(shape)), random.randrange(len(shape))
    repeats = [1 + (each == axis) for each in range(len(shape))]
    choices: list[Callable[[Tensor], Tensor]] = [
        lambda x: x.transpose(axis, other),
        lambda x: x.unsqueeze(axis),
        lambda x: x.repeat(repeats),
        lambda x: x.unsqueeze(axis).expand(*shape[:axis], 2, *shape[axis:]),
        lambda x: x.contiguous(),
    ]
    if factors := [n for n in range(2, shape[axis]) if shape[axis] % n == 0]:
        n = random.choice(factors)
        choices += [lambda x: x.unflatten(axis, (n, -1))] * 3
    if axis + 1 < len(shape):
        choices += [lambda x: x.flatten(axis, axis + 1)] * 3
    if shape[axis] > 1 and len(shape) > 2:
        choices += [
            lambda x: x.select(axis, 1),
            lambda x: x.narrow(axis, 0, shape[axis] - 1),
            lambda x: x.index_select(axis, torch.tensor([0, shape[axis] - 1])),
        ]
    return random.choice(choices)


def fired_samples(values: Tensor, labels: Tensor, samples: Tensor) -> list[int]:
    """In how many samples each unit fired, in order of the units: by looking at every element."""
    fired: dict[int, set[int]] = {
        int(unit): set() for unit in sorted(set(labels.flatten().tolist()))
    }
    for value, unit, sample in zip(
        values.flatten().tolist(),
        labels.flatten().tolist(),
        samples.flatten().tolist(),
        strict=True,
    ):
        if value > 0:
            fired[int(unit)].add(int(sample))
    return [len(each) for each in fired.values()]


def test_whatever_moves_elements_loses_no_unit_and_merges_none() -> None:
    known = 0
    for seed in range(150):
        random = Random(seed)
        layer = nn.Linear(8, 24)
        moves: list[Callable[[Tensor], Tensor]] = []
        labels = torch.arange(24).expand(6, 5, 24)
        samples = torch.arange(6)[:, None, None].expand(6, 5, 24)
        for _ in range(random.randint(1, 6)):
            moves.append(random_move(random, tuple(labels.shape)))
            labels, samples = moves[-1](labels), moves[-1](samples)

        def carry(x: Tensor, moves: list[Callable[[Tensor], Tensor]] = moves) -> Tensor:
            for move in moves:
                x = move(x)
            return x

        x = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(seed))
        model = Through(layer, carry)
        with torch.no_grad():
            layer.bias[6:] = torch.randn(18) - 1.5
            expected = fired_samples(model(x), labels, samples)
        diagnosis = reludiag.scan(model, [x])
        (site,) = diagnosis.sites.to_dict("records")
        if site["unit_axis"] == "unknown":
            continue
        assert site["units"] == len(expected), seed
        if site["samples"] == len(set(samples.flatten().tolist())):
            assert list(diagnosis.units.fired) == expected, seed
            known += 1
        else:
            assert site["samples"] == 1, seed
            assert [f > 0 for f in diagnosis.units.fired] == [f > 0 for f in expected], seed
    assert known > 80  # the others are not known, or are one sample


def test_crops_of_the_same_samples_are_positions_of_them() -> None:
    class Crops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 12)

        def forward(self, x: Tensor) -> Tensor:
            crops = torch.cat([x[:, start : start + 4] for start in range(4)])
            return torch.relu(self.layer(crops))

    model = Crops().double()
    x = ROWS.double()
    units = reludiag.scan(model, [x]).units
    with torch.no_grad():
        fired = model(x).view(4, 6, 12).gt(0).any(0).sum(0)
    assert set(units.samples) == {6}
    assert list(units.fired) == fired.tolist()


def test_several_axes_can_be_set_by_hand() -> None:
    model = Through(linear(), lambda x: x.sort(-1).values.view(6, 5, 4, 6))
    for axes, label, units in ((3, "3", 6), ((2, 3), "2,3", 24), ((-1, -2), "3,2", 24)):
        (site,) = reludiag.scan(model, [TOKENS], unit_axes={"relu": axes}).sites.to_dict("records")
        assert (site["unit_axis"], site["units"]) == (label, units)
    for axes in ((1, 1), (2, 9), 0, (0, 3)):
        with pytest.raises(reludiag.UsageError, match="does not have that axis"):
            reludiag.scan(model, [TOKENS], unit_axes={"relu": axes})


def test_a_monitor_says_that_no_site_has_a_unit_axis_that_was_given() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with pytest.warns(RuntimeWarning, match="a unit axis was given for zz"):  # noqa: SIM117
        with reludiag.Monitor(model, optimizer, every=2, unit_axes={"zz": 1}) as monitor:
            for _ in range(4):
                model(torch.randn(8, 4)).sum().backward()
                optimizer.step()
    assert any("given for zz" in note for note in monitor.diagnose().head.notes)


@pytest.mark.parametrize("axes", [0, -2, (0, 1)])
def test_the_axis_of_the_samples_is_none_of_units(axes: int | tuple[int, ...]) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with pytest.raises(reludiag.UsageError, match="has its samples there"):
        reludiag.scan(model, [torch.randn(8, 4)], unit_axes={"1": axes})
    with pytest.warns(RuntimeWarning, match="has its samples there"):  # noqa: SIM117
        with reludiag.Monitor(model, optimizer, every=2, unit_axes={"1": axes}) as monitor:
            for _ in range(4):
                model(torch.randn(8, 4)).sum().backward()
                optimizer.step()
    (site,) = monitor.diagnose().sites.to_dict("records")
    assert (site["unit_axis"], site["units"]) == ("1", 8)


def test_a_tensor_that_is_observed_along_its_samples_is_not_judged() -> None:
    class Observed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 8)

        def forward(self, x: Tensor) -> Tensor:
            gated = self.layer(x).cos()
            reludiag.observe("gate", gated, unit_axis=0)
            return gated

    batches = [torch.randn(rows, 4) for rows in (8, 8, 6)]
    with pytest.raises(reludiag.ModelError, match="unit_axis=0 is the axis of its samples"):
        reludiag.scan(Observed(), batches)
