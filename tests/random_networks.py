"""Small random networks of modules and operators, drawn by Hypothesis, which rectify by modules."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

Step = Callable[..., Any]


@dataclass
class Drawn:
    """One step: what it does with which of the tensors made so far."""

    run: Step
    operands: tuple[int, ...]


class RandomNetwork(nn.Module):
    """Each step takes tensors from all those that were made before, and adds what it makes."""

    def __init__(self, draw: Random, steps: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList()
        self.scales = nn.ParameterList()
        self._draw = draw
        self._steps: list[Drawn] = []
        self.example = draw.choice(
            [torch.randn(3, 4), torch.randn(3, 4, 6), torch.randn(2, 4, 4, 4)]
        ).double()
        made = [self.example.clone()]
        for number in range(steps):
            step = self._drawn(made, rectify=number % 3 == 1)
            if step is not None:
                self._steps.append(step)
                with torch.no_grad():
                    _run(step, made)
        self.results = {len(made) - 1, draw.randrange(len(made))}
        for index in sorted(self.results):
            self._steps.append(Drawn(lambda y: y.flatten(1), (index,)))
            width = made[index].flatten(1).shape[1]
            made.append(made[index])
            if draw.random() < 0.9:
                self._steps.append(Drawn(self._part(nn.Linear(width, 3)), (len(made) - 1,)))
                made.append(made[index])
            self.results = self.results - {index} | {len(made) - 1}
        del self._draw
        self.double().eval()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        made = [x.clone()]
        for step in self._steps:
            _run(step, made)
        return tuple(made[index] for index in sorted(self.results))

    def _part(self, module: nn.Module) -> nn.Module:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.normal_()
            for name, buffer in module.named_buffers():
                if name.startswith("running"):
                    buffer.uniform_(0.5, 2)
        self.parts.append(module.double().eval())
        return module

    def _scale(self, *shape: int) -> nn.Parameter:
        self.scales.append(nn.Parameter(torch.randn(*shape, dtype=torch.float64)))
        return self.scales[-1]

    def _drawn(self, made: list[Tensor], rectify: bool) -> Drawn | None:
        draw = self._draw
        recent = [index for index in range(len(made)) if made[index].numel() < 2000][-5:]
        index = recent[-1] if draw.random() < 0.6 else draw.choice(recent)
        x = made[index]
        if rectify:
            known = [part for part in self.parts if isinstance(part, nn.ReLU)]
            if known and draw.random() < 0.2:
                return Drawn(draw.choice(known), (index,))
            return Drawn(self._part(nn.ReLU(inplace=draw.random() < 0.2)), (index,))
        same = [i for i in recent if made[i].shape == x.shape and i != index]
        choices = [self._weighted, self._moved, self._pointwise]
        if same:
            choices += [self._paired] * 2
        if draw.random() < 0.12:
            choices = [self._mixed]
        kind = draw.choice(choices)
        if kind == self._paired:
            return Drawn(self._paired(x), (index, draw.choice(same)))
        run = kind(x)
        return None if run is None else Drawn(run, (index,))

    def _weighted(self, x: Tensor) -> Step | None:
        draw, last = self._draw, x.shape[-1]
        steps: list[Callable[[], Step]] = [
            lambda: self._part(nn.Linear(last, draw.choice([2, 4, 6]))),
            lambda: self._part(nn.Linear(last, 4, bias=False)),
            lambda: _with(self._scale(last, 3), lambda y, w: y @ w),
            lambda: _with(
                self._scale(5, x.shape[1]), lambda y, w: torch.einsum("bc...,oc->bo...", y, w)
            ),
            lambda: _with(self._scale(8, last + 2), lambda y, w: F.linear(y, w[2:6, 1:-1])),
        ]
        if x.ndim in (3, 4):
            channels = x.shape[1]
            conv: Any = nn.Conv1d if x.ndim == 3 else nn.Conv2d
            transposed: Any = nn.ConvTranspose1d if x.ndim == 3 else nn.ConvTranspose2d
            groups = draw.choice([g for g in (1, 2, channels) if channels % g == 0])
            steps += [
                lambda: self._part(conv(channels, 2 * groups, 3, padding=1, groups=groups)),
                lambda: self._part(conv(channels, 4, 1)),
                lambda: self._part(transposed(channels, 2 * groups, 2, groups=groups)),
            ]
        return draw.choice(steps)()

    def _pointwise(self, x: Tensor) -> Step | None:
        draw, channels = self._draw, x.shape[1]
        ones = (1,) * (x.ndim - 2)
        norm: Any = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[min(4, x.ndim)]
        steps: list[Callable[[], Step]] = [
            lambda: torch.tanh,
            lambda: lambda y: y.mul(0.5).add(1),
            lambda: lambda y: y.add_(1),
            lambda: F.leaky_relu,
            lambda: _with(self._scale(x.shape[-1]), lambda y, w: y * w),
            lambda: _with(self._scale(channels, *ones), lambda y, w: y + w),
            lambda: self._part(nn.PReLU(channels)),
            lambda: self._part(nn.Dropout()),
        ]
        if x.ndim <= 4:
            steps += [lambda: self._part(norm(channels))] * 2
        return draw.choice(steps)()

    def _moved(self, x: Tensor) -> Step | None:
        draw, ndim = self._draw, x.ndim
        axis = draw.randrange(1, ndim)
        length = x.shape[axis]
        order = [0, *draw.sample(range(1, ndim), ndim - 1)]
        steps: list[Step] = [
            lambda y: y.permute(order),
            lambda y: y.flatten(1),
            lambda y: y.flip(axis),
            lambda y: y.roll(1, axis),
            lambda y: torch.cat([y, y.sigmoid()], axis),
            lambda y: torch.stack([y, y * 2], axis)[:, 0],
            lambda y: y.narrow(axis, 0, max(1, length - 1)),
            lambda y: y.repeat(1, 2, *(1,) * (ndim - 2)),
            lambda y: y.index_select(axis, torch.arange(length - 1, -1, -1)),
        ]
        if length % 2 == 0:
            steps += [
                lambda y: y.chunk(2, axis)[1],
                lambda y: y.chunk(2, axis)[0] * y.chunk(2, axis)[1].tanh(),
                lambda y: F.glu(y, axis),
                lambda y: (
                    y.unflatten(axis, (2, length // 2))
                    .transpose(axis, axis + 1)
                    .flatten(axis, axis + 1)
                ),
                lambda y: y.unflatten(axis, (2, length // 2)),
            ]
        if ndim == 4:
            steps += [
                lambda y: F.max_pool2d(y, 2) if min(y.shape[2:]) > 1 else y,
                lambda y: F.interpolate(y, scale_factor=2),
                lambda y: F.pad(y, (1, 0, 0, 1)),
                lambda y: F.adaptive_avg_pool2d(y, 1),
            ]
        if ndim > 2:
            steps += [lambda y: y.mean(-1), lambda y: y.amax(1), lambda y: y[:, 0]]
        return draw.choice(steps)

    def _paired(self, x: Tensor) -> Step:
        axis = self._draw.randrange(1, x.ndim)

        def written(a: Tensor, b: Tensor) -> Tensor:
            a = a.clone()
            a[:, :1] = b[:, :1]
            return a

        return self._draw.choice(
            [
                torch.add,
                torch.mul,
                lambda a, b: torch.cat([a, b], axis),
                lambda a, b: torch.cat([a, b], axis),
                lambda a, b: torch.stack([a, b], axis).flatten(axis, axis + 1),
                torch.maximum,
                lambda a, b: a.add_(b),
                lambda a, b: torch.where(a > 0, a, b),
                lambda a, b: a.transpose(-1, -2) @ b,
                written,
            ]
        )

    def _mixed(self, x: Tensor) -> Step:
        axis = self._draw.randrange(1, x.ndim)
        return self._draw.choice(
            [
                lambda y: y.softmax(axis),
                lambda y: y.mean(axis, keepdim=True) if y.ndim > 2 else y,
                lambda y: F.layer_norm(y, y.shape[-1:]),
                lambda y: y.cumsum(axis),
                lambda y: y * float(y.detach().sum().tanh()),
                lambda y: y + float(y.detach().numpy().max()),
                lambda y: F.group_norm(y, 1),
                lambda y: y.sort(axis)[0],
                lambda y: F.normalize(y, dim=axis),
            ]
        )


def _with(weight: nn.Parameter, run: Callable[[Tensor, Tensor], Tensor]) -> Step:
    return lambda y: run(y, weight)


def _run(step: Drawn, made: list[Tensor]) -> None:
    made.append(step.run(*(made[index] for index in step.operands)))
