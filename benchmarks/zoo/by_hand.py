"""Networks of PyTorch alone: the shapes that people write by hand."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from benchmarks.zoo.comparison import Built
from benchmarks.zoo.oracle import Layout

SAMPLES = 5


def flat(features: int = 8) -> tuple[Tensor]:
    return (torch.randn(SAMPLES, features),)


def images(size: int = 12, channels: int = 3) -> tuple[Tensor]:
    return (torch.randn(SAMPLES, channels, size, size),)


def texts(features: int = 16, length: int = 6) -> tuple[Tensor]:
    return (torch.randn(SAMPLES, length, features),)


def mlp() -> Built:
    layers = [nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU6(), nn.Linear(16, 3)]
    return Built(nn.Sequential(*layers), flat())


def functions() -> Built:
    return Built(Functions(), flat())


class Functions(nn.Module):
    """One layer before each spelling of a rectifier."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(8))

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d, e, f, g, h = self.layers
        x = functional.relu(a(x))
        x = b(x).clamp(min=0)
        z = c(x)
        x = torch.where(z > 0, z, 0.0)
        z = d(x)
        x = z * (z > 0)
        z = e(x)
        x = z.masked_fill(z < 0, 0.0)
        z = f(x)
        x = torch.maximum(z, torch.zeros_like(z))
        return functional.threshold(g(x), 0.1, 0.0) + functional.hardtanh(h(x), 0.0, 1.0)


def convolutions() -> Built:
    layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(True), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(16, 24, 3, groups=4), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4)]
    return Built(nn.Sequential(*layers), images())


def flattened() -> Built:
    layers = [nn.Conv2d(3, 8, 3), nn.Flatten(), nn.ReLU(), nn.Linear(800, 4)]
    return Built(nn.Sequential(*layers), images())


def norm(make: Callable[[], nn.Module]) -> Callable[[], Built]:
    def build() -> Built:
        layers = [nn.Conv2d(3, 16, 3), make(), nn.ReLU(), nn.Conv2d(16, 4, 3)]
        return Built(nn.Sequential(*layers), images())

    return build


def trained_norm() -> Built:
    built = norm(lambda: nn.BatchNorm2d(16))()
    built.train_mode = True
    return built


def layer_norm() -> Built:
    layers = [nn.Linear(16, 24), nn.LayerNorm(24), nn.ReLU(), nn.Linear(24, 12)]
    layers += [nn.RMSNorm(12), nn.ReLU(), nn.Linear(12, 4)]
    return Built(nn.Sequential(*layers), texts())


def spectral() -> Built:
    first, second = nn.Linear(8, 24), nn.Linear(24, 16)
    layers = [parametrizations.spectral_norm(first), nn.ReLU()]
    layers += [parametrizations.weight_norm(second), nn.ReLU(), nn.Linear(16, 2)]
    return Built(nn.Sequential(*layers), flat())


def old_spectral() -> Built:
    first, second = nn.Linear(8, 24), nn.Linear(24, 16)
    layers = [nn.utils.spectral_norm(first), nn.ReLU()]
    layers += [parametrizations.orthogonal(second), nn.ReLU(), nn.Linear(16, 2)]
    return Built(nn.Sequential(*layers), flat())


def transposed() -> Built:
    layers = [nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.ConvTranspose2d(8, 12, 2, 2), nn.ReLU()]
    layers += [nn.PixelShuffle(2), nn.Hardswish(), nn.Conv2d(3, 16, 1), nn.PixelShuffle(2)]
    return Built(nn.Sequential(*layers, nn.ReLU()), images())


def series() -> Built:
    layers = [nn.Conv1d(16, 12, 3, padding=1), nn.ReLU(), nn.AvgPool1d(2), nn.Conv1d(12, 8, 1)]
    batch = (torch.randn(SAMPLES, 16, 10),)
    return Built(nn.Sequential(*layers, nn.Hardsigmoid(), nn.Flatten(), nn.Linear(40, 2)), batch)


def volumes() -> Built:
    layers = [nn.Conv3d(2, 8, 3), nn.InstanceNorm3d(8, affine=True), nn.ReLU(), nn.Conv3d(8, 4, 1)]
    batch = (torch.randn(SAMPLES, 2, 5, 6, 7),)
    return Built(nn.Sequential(*layers, nn.ReLU()), batch)


def encoder() -> Built:
    layer = nn.TransformerEncoderLayer(16, 4, 48, 0.0, batch_first=True)
    return Built(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), texts())


def sequence_first() -> Built:
    class Model(nn.Module):
        """[token, sample, feature] inside, as encoder layers have it by default."""

        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerDecoderLayer(16, 4, 48, 0.0)
            self.decoder = nn.TransformerDecoder(layer, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = x.transpose(0, 1)
            return self.decoder(x, x).transpose(0, 1)

    return Built(Model(), texts())


def channels_last() -> Built:
    class Model(nn.Module):
        """ConvNeXt's way: a Linear on NHWC."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.up, self.down = nn.Conv2d(3, 8, 3), nn.Linear(8, 24), nn.Linear(24, 8)
            self.head = nn.Linear(800, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x).permute(0, 2, 3, 1)
            x = x + self.down(functional.relu(self.up(x)))
            x = functional.relu(x.flatten(1))  # positions first: every 8th is one channel
            return functional.relu(self.head(x))

    return Built(Model(), images())


def flat_tokens() -> Built:
    class Model(nn.Module):
        """Tokens of all samples in one axis, as older encoders have them."""

        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

        def forward(self, x: Tensor) -> Tensor:
            rows = x.reshape(-1, 16)
            return self.down(functional.relu(self.up(rows))).view_as(x)

    return Built(Model(), texts())


def recurrent_cell() -> Built:
    class Model(nn.Module):
        """One cell, a call for each step."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.hidden, self.out = (
                nn.Linear(3, 16),
                nn.Linear(16, 16),
                nn.Linear(16, 1),
            )

        def forward(self, x: Tensor) -> Tensor:
            state = x.new_zeros(len(x), 16)
            for step in range(x.shape[1]):
                state = torch.relu(self.inner(x[:, step]) + self.hidden(state))
            return self.out(state)

    return Built(Model(), (torch.randn(SAMPLES, 6, 3),))


def loop_of_a_block() -> Built:
    class Model(nn.Module):
        """One block with a ReLU of its own, called several times, as in a deep equilibrium."""

        def __init__(self) -> None:
            super().__init__()
            self.enter = nn.Linear(8, 16)
            self.block = nn.Sequential(nn.Linear(16, 16), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            x = self.enter(x)
            for _ in range(4):
                x = x + 0.5 * self.block(x)
            return x

    return Built(Model(), flat())


def built_in_rnn() -> Built:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(3, 12, nonlinearity="relu", batch_first=True)
            self.head = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0][:, -1])

    return Built(Model(), (torch.randn(SAMPLES, 5, 3),))


def lstm() -> Built:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(3, 12, batch_first=True)
            self.up = nn.Linear(12, 24)

        def forward(self, x: Tensor) -> Tensor:
            return functional.relu(self.up(self.rnn(x)[0]))

    return Built(Model(), (torch.randn(SAMPLES, 5, 3),))


class Expert(nn.Sequential):
    def __init__(self, width: int = 16) -> None:
        super().__init__(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4))


class Routed(nn.Module):
    """A mixture of experts, each of which sees the samples that are routed to it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.router = nn.Linear(8, 2)
        self.experts = nn.ModuleList(Expert() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        choice = self.router(x).argmax(-1)
        y = x.new_zeros(len(x), 4)
        if self.how == "sorted":
            order = choice.argsort()
            parts = x[order].split(torch.bincount(choice, minlength=2).tolist())
            y[order] = torch.cat([e(p) for e, p in zip(self.experts, parts, strict=True)])
            return y
        for number, expert in enumerate(self.experts):
            mask = choice == number
            if self.how == "mask":
                y[mask] = expert(x[mask])
            elif self.how == "nonzero":
                rows = mask.nonzero()[:, 0]
                y = y.index_add(0, rows, expert(x[rows]))
            elif self.how == "index_select":
                rows = torch.where(mask)[0]
                y = y.index_add(0, rows, expert(x.index_select(0, rows)))
            elif self.how == "masked_select":
                y[mask] = expert(x.masked_select(mask[:, None]).view(-1, 8))
            elif self.how == "gather":
                rows = mask.nonzero()
                y = y.index_add(0, rows[:, 0], expert(x.gather(0, rows.expand(-1, 8))))
        return y


def routed(how: str) -> Callable[[], Built]:
    # The gradient does not reach the router: routing never changes.
    return lambda: Built(Routed(how), (torch.randn(24, 8),))


def routed_tokens() -> Built:
    class Model(nn.Module):
        """Tokens, not samples, are routed."""

        def __init__(self) -> None:
            super().__init__()
            self.moe = Routed("mask")

        def forward(self, x: Tensor) -> Tensor:
            return self.moe(x.flatten(0, 1)).view(*x.shape[:2], 4)

    return Built(Model(), texts(8))


def dense_experts() -> Built:
    class Model(nn.Module):
        """All experts at once: `[expert, sample, feature]`."""

        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Parameter(torch.randn(3, 8, 10) / 3)
            self.bias = nn.Parameter(torch.zeros(3, 1, 10))
            self.down = nn.Parameter(torch.randn(3, 10, 4) / 3)
            with torch.no_grad():
                self.bias[1, 0, 2:5] = -30

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.relu(torch.matmul(x, self.up) + self.bias)
            return torch.matmul(hidden, self.down).mean(0)

    return Built(Model(), flat())


class Ensemble(nn.Module):
    """Members in an axis of the weights."""

    def __init__(self, equation: str) -> None:
        super().__init__()
        self.equation = equation
        self.up = nn.Parameter(torch.randn(4, 8, 10) / 3)
        self.bias = nn.Parameter(torch.zeros(4, 10))
        self.down = nn.Parameter(torch.randn(4, 10) / 3)
        with torch.no_grad():
            self.bias[2, 3:6] = -30

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(torch.einsum(self.equation, x, self.up) + self.bias)
        return (hidden * self.down).sum(-1)


def ensemble() -> Built:
    return Built(Ensemble("bi,nih->bnh"), flat())


def ensemble_of_inputs() -> Built:
    return Built(Ensemble("bni,nih->bnh"), (torch.randn(SAMPLES, 4, 8),))


def batched_ensemble() -> Built:
    class Model(nn.Module):
        """Vectorized Q-functions: `[member, sample, feature]` by baddbmm."""

        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Parameter(torch.randn(4, 8, 10) / 3)
            self.bias = nn.Parameter(torch.zeros(4, 1, 10))
            with torch.no_grad():
                self.bias[0, 0, ::3] = -30

        def forward(self, x: Tensor) -> Tensor:
            return torch.baddbmm(self.bias, x.expand(4, *x.shape), self.up).relu()

    return Built(Model(), flat())


def heads() -> Built:
    class Model(nn.Module):
        """Linear attention with feature maps relu(q), relu(k): `[sample, head, token, feature]`."""

        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (f(x).unflatten(-1, (4, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
            q, k = functional.relu(q), functional.relu(k)
            return (q @ (k.transpose(-1, -2) @ v)).transpose(1, 2).flatten(2)

    return Built(Model(), texts())


def relu_attention() -> Built:
    class Model(nn.Module):
        """ReLU instead of softmax: `[sample, head, query, key]` has no units."""

        def __init__(self) -> None:
            super().__init__()
            self.q, self.k = nn.Linear(16, 16), nn.Linear(16, 16)
            self.out = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            q, k = (f(x).unflatten(-1, (4, 4)).transpose(1, 2) for f in (self.q, self.k))
            weights = functional.relu(q @ k.transpose(-1, -2)) / x.shape[1]
            return functional.relu(self.out((weights @ k).transpose(1, 2).flatten(2)))

    return Built(Model(), texts())


def autoencoder() -> Built:
    class Model(nn.Module):
        """A sparse autoencoder with its weights as plain parameters."""

        def __init__(self) -> None:
            super().__init__()
            self.w_enc = nn.Parameter(torch.randn(16, 64) / 4)
            self.b_enc = nn.Parameter(torch.zeros(64))
            self.w_dec = nn.Parameter(torch.randn(64, 16) / 8)
            self.b_dec = nn.Parameter(torch.zeros(16))
            with torch.no_grad():
                self.b_enc[::7] = -30

        def forward(self, x: Tensor) -> Tensor:
            latents = functional.relu((x - self.b_dec) @ self.w_enc + self.b_enc)
            return latents @ self.w_dec + self.b_dec

    return Built(Model(), flat(16))


def graph() -> Built:
    class Model(nn.Module):
        """Nodes of two graphs in one axis, and an adjacency matrix."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = (
                nn.Linear(8, 16),
                nn.Linear(16, 16),
                nn.Linear(16, 2),
            )

        def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
            x = functional.relu(adjacency @ self.first(x))
            return self.head(functional.relu(self.second(adjacency @ x)).mean(1))

    adjacency = (torch.rand(SAMPLES, 6, 6) > 0.5).float()
    return Built(Model(), {"x": torch.randn(SAMPLES, 6, 8), "adjacency": adjacency})


def generator() -> Built:
    layers: list[nn.Module] = [nn.Unflatten(1, (10, 1, 1))]
    for inputs, outputs, stride in ((10, 16, 1), (16, 12, 2), (12, 8, 2)):
        layers += [nn.ConvTranspose2d(inputs, outputs, 4, stride, stride - 1, bias=False)]
        layers += [nn.BatchNorm2d(outputs), nn.ReLU(True)]
    layers += [nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Tanh()]
    return Built(nn.Sequential(*layers), flat(10))


def recommender() -> Built:
    class Model(nn.Module):
        """DLRM: tables, a bottom and a top network, and dot products between."""

        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleList(nn.EmbeddingBag(20, 8, mode="sum") for _ in range(3))
            self.bottom = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU())
            self.top = nn.Sequential(nn.Linear(14, 16), nn.ReLU(), nn.Linear(16, 1))

        def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
            first = self.bottom(dense)
            rows = [first, *(t(sparse[:, i]) for i, t in enumerate(self.tables))]
            rows = torch.stack(rows, 1)
            low, high = torch.tril_indices(4, 4, -1)
            products = (rows @ rows.transpose(1, 2))[:, low, high]
            return self.top(torch.cat([first, products], 1))

    dense, sparse = torch.randn(SAMPLES, 5), torch.randint(0, 20, (SAMPLES, 3, 2))
    return Built(Model(), {"dense": dense, "sparse": sparse})


def embedding_rectified() -> Built:
    class Model(nn.Module):
        """Words straight into a ReLU, as in a deep averaging network."""

        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(30, 12), nn.Linear(12, 8)

        def forward(self, x: Tensor) -> Tensor:
            return functional.relu(self.head(functional.relu(self.words(x)).mean(1)))

    return Built(Model(), (torch.randint(0, 30, (SAMPLES, 7)),))


def squeeze_and_gate() -> Built:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.down, self.up = nn.Conv2d(3, 16, 3), nn.Linear(16, 4), nn.Linear(4, 16)
            self.out = nn.Conv2d(16, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            gate = functional.hardsigmoid(self.up(functional.relu(self.down(x.mean((2, 3))))))
            return self.out(functional.relu(x * gate[..., None, None]))

    return Built(Model(), images())


def point_cloud() -> Built:
    class Model(nn.Module):
        """PointNet: shared layers over points, and a maximum over them."""

        def __init__(self) -> None:
            super().__init__()
            self.shared = nn.Sequential(nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.ReLU())
            self.more = nn.Sequential(nn.Conv1d(16, 24, 1), nn.BatchNorm1d(24), nn.ReLU())
            self.head = nn.Sequential(nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.more(self.shared(x)).amax(2))

    return Built(Model(), (torch.randn(SAMPLES, 3, 20),))


def proposals() -> Built:
    class Model(nn.Module):
        """Several crops of each image in one axis, as the head of a detector has them."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(72, 16)

        def forward(self, x: Tensor) -> Tensor:
            x = functional.relu(self.conv(x))
            crops = torch.cat([x[:, :, i : i + 3, i : i + 3] for i in range(4)])
            return functional.relu(self.head(crops.flatten(1)))

    return Built(Model(), images())


def packed() -> Built:
    class Model(nn.Module):
        """The valid steps of all sequences in one axis."""

        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.up = nn.GRU(4, 12, batch_first=True), nn.Linear(12, 20)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            rows = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
            return functional.relu(self.up(self.rnn(rows)[0].data))

    lengths = torch.tensor([6, 5, 3, 2, 1])
    return Built(
        Model(),
        {"x": torch.randn(SAMPLES, 6, 4), "lengths": lengths},
        vary=lambda batch, at: batch | {"x": _other(batch["x"], at)},
    )


def _other(x: Tensor, at: int) -> Tensor:
    x = x.clone()
    x[at] += 0.01
    return x


def siamese() -> Built:
    class Model(nn.Module):
        """One network called on two inputs."""

        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 8), nn.ReLU())

        def forward(self, one: Tensor, two: Tensor) -> Tensor:
            return (self.body(one) - self.body(two)).abs().sum(1)

    return Built(Model(), {"one": flat()[0], "two": flat()[0]})


def multiple_instances() -> Built:
    class Model(nn.Module):
        """Bags of patches, folded into the batch, and attention over each bag."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.score = nn.Conv2d(3, 8, 3), nn.Linear(8, 1)
            self.head = nn.Linear(8, 16)

        def forward(self, x: Tensor) -> Tensor:
            patches = (
                functional.relu(self.conv(x.flatten(0, 1))).mean((2, 3)).unflatten(0, x.shape[:2])
            )
            return functional.relu(self.head((self.score(patches).softmax(1) * patches).sum(1)))

    return Built(Model(), (torch.randn(SAMPLES, 4, 3, 6, 6),))


def squared_relu() -> Built:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(16, 32, bias=False), nn.Linear(32, 16, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(functional.relu(self.up(x)).square())

    return Built(Model(), texts())


def gated() -> Built:
    class Model(nn.Module):
        """ReGLU: half of a layer rectified, the other half multiplied with it."""

        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(16, 48), nn.Linear(24, 16)

        def forward(self, x: Tensor) -> Tensor:
            gate, value = self.up(x).chunk(2, -1)
            return self.down(functional.relu(gate) * value)

    return Built(Model(), texts())


def lora() -> Built:
    class Model(nn.Module):
        """A frozen layer and a product of two small ones beside it."""

        def __init__(self) -> None:
            super().__init__()
            self.base = nn.Linear(16, 32).requires_grad_(False)
            self.a, self.b = nn.Linear(16, 2, bias=False), nn.Linear(2, 32, bias=False)
            self.out = nn.Linear(32, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(functional.relu(self.base(x) + self.b(self.a(x))))

    return Built(Model(), texts())


def dynamic_int8() -> Built:
    layers = [nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU()]
    model = nn.Sequential(*layers).eval()
    with torch.no_grad():
        layers[0].bias[::5] = -30  # type: ignore[operator]
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    # Weights of integers cannot be changed: the layouts are those of a Linear.
    rows = {0: Layout((1,)), 1: Layout((1,))}
    return Built(quantized, flat(), ledger=False, layouts=rows)


def static_int8() -> Built:
    from torch.ao import quantization

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave = quantization.QuantStub(), quantization.DeQuantStub()
            self.body = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return functional.relu(self.leave(self.body(self.enter(x))) - 0.1)

    model = Model().eval()
    model.qconfig = quantization.get_default_qconfig("fbgemm")  # type: ignore[assignment]
    model.body = quantization.fuse_modules(model.body, [["0", "1"]])
    prepared = quantization.prepare(model)
    prepared(*flat())
    return Built(quantization.convert(prepared), flat(), ledger=False)


def aware_of_int8() -> Built:
    from torch.ao import quantization

    layers = [nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU()]
    model = nn.Sequential(*layers).train()
    model.qconfig = quantization.get_default_qat_qconfig("fbgemm")  # type: ignore[assignment]
    prepared = quantization.prepare_qat(model)
    prepared(*flat())
    prepared.apply(quantization.disable_observer)
    return Built(prepared, flat())


def exported() -> Built:
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(800, 12)]
    model = nn.Sequential(*layers, nn.ReLU()).eval()
    with torch.no_grad():
        layers[1].bias[::3] = -30  # type: ignore[operator]
    batch = images()
    program = torch.export.export(model, batch)
    return Built(model, batch, subject=program, ledger=False)


def compiled(backend: str) -> Callable[[], Built]:
    def build() -> Built:
        built = convolutions()
        # in place, so that the oracle and the compiled model share weights, which it needs anyway
        built.subject = torch.compile(built.model, backend=backend)
        return built

    return build


def reused_modules() -> Built:
    class Model(nn.Module):
        """One in-place ReLU called three times, and one layer used twice."""

        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU(inplace=True)
            self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.relu(self.one(x))
            x = self.relu(self.two(x))
            return self.relu(self.one(x) + x)

    return Built(Model(), flat())


def two_names() -> Built:
    class Model(nn.Module):
        """One layer under two names, as N-BEATS has it."""

        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave = nn.Linear(10, 16), nn.Linear(8, 4)
            self.one = self.two = nn.Linear(16, 8, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            x = functional.relu(self.enter(x))
            one, two = functional.relu(self.one(x)), functional.relu(self.two(x))
            return self.leave(one) + self.leave(two)

    return Built(Model(), flat(10))


def late_branch() -> Built:
    class Model(nn.Module):
        """A module that eval mode never calls."""

        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
            self.side = nn.Sequential(nn.Linear(16, 16), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            x = self.body(x)
            return x + self.side(x) if self.training else x

    return Built(Model(), flat())


def checkpointed() -> Built:
    from torch.utils.checkpoint import checkpoint

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter = nn.Linear(8, 16)
            self.body = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.body, functional.relu(self.enter(x)), use_reentrant=False)

    return Built(Model(), flat())


def hidden_in_lists() -> Built:
    class Model(nn.Module):
        """Multi-head output by a Python list of parameters, and an addmv."""

        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.ParameterList(torch.randn(8, 12) / 3 for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([torch.relu(x @ weight) for weight in self.weights], 1).mean(2)

    return Built(Model(), flat())


def stacked_branches() -> Built:
    class Model(nn.Module):
        """Branches stacked in an axis, and rectified together."""

        def __init__(self) -> None:
            super().__init__()
            self.branches = nn.ModuleList(nn.Linear(8, 12) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return functional.relu(torch.stack([branch(x) for branch in self.branches], 1)).mean(1)

    return Built(Model(), flat())


def mixed_axes() -> Built:
    class Model(nn.Module):
        """MLP-Mixer: weights act on tokens, then on channels."""

        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 6))
            self.channels = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16))

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.tokens(x.transpose(1, 2)).transpose(1, 2)
            return x + self.channels(x)

    return Built(Model(), texts())


MODELS: dict[str, Callable[[], Built]] = {
    "mlp": mlp,
    "spellings of a rectifier": functions,
    "cnn with grouped convolutions": convolutions,
    "convolution, flattened": flattened,
    "BatchNorm": norm(lambda: nn.BatchNorm2d(16)),
    "BatchNorm, training mode": trained_norm,
    "InstanceNorm, affine": norm(lambda: nn.InstanceNorm2d(16, affine=True)),
    "InstanceNorm": norm(lambda: nn.InstanceNorm2d(16)),
    "InstanceNorm, running": norm(
        lambda: nn.InstanceNorm2d(16, affine=True, track_running_stats=True)
    ),
    "GroupNorm": norm(lambda: nn.GroupNorm(4, 16)),
    "InstanceNorm3d": volumes,
    "LayerNorm and RMSNorm": layer_norm,
    "spectral and weight norm": spectral,
    "older spectral norm, orthogonal": old_spectral,
    "transposed, pixel shuffle": transposed,
    "Conv1d": series,
    "encoder layers": encoder,
    "decoder layers, tokens first": sequence_first,
    "Linear on NHWC": channels_last,
    "tokens in the batch axis": flat_tokens,
    "recurrent cell": recurrent_cell,
    "block in a loop": loop_of_a_block,
    "nn.RNN(relu)": built_in_rnn,
    "LSTM": lstm,
    "routed by x[mask]": routed("mask"),
    "routed by x[nonzero]": routed("nonzero"),
    "routed by index_select": routed("index_select"),
    "routed by sort and split": routed("sorted"),
    "routed by masked_select": routed("masked_select"),
    "routed by gather": routed("gather"),
    "routed tokens": routed_tokens,
    "dense experts": dense_experts,
    "ensemble by einsum": ensemble,
    "ensemble, own inputs": ensemble_of_inputs,
    "ensemble by baddbmm": batched_ensemble,
    "heads x features": heads,
    "ReLU attention": relu_attention,
    "sparse autoencoder": autoencoder,
    "graph by an adjacency matrix": graph,
    "DCGAN": generator,
    "DLRM": recommender,
    "rectified embedding": embedding_rectified,
    "squeeze and excitation": squeeze_and_gate,
    "PointNet": point_cloud,
    "crops in the batch axis": proposals,
    "packed sequences": packed,
    "Siamese": siamese,
    "bags of patches": multiple_instances,
    "squared ReLU, no biases": squared_relu,
    "ReGLU": gated,
    "LoRA by hand": lora,
    "int8, dynamic": dynamic_int8,
    "int8, static": static_int8,
    "int8-aware training": aware_of_int8,
    "torch.export": exported,
    "torch.compile, eager": compiled("eager"),
    "torch.compile, aot_eager": compiled("aot_eager"),
    "one ReLU, three calls": reused_modules,
    "one layer, two names": two_names,
    "branch of training only": late_branch,
    "checkpointed": checkpointed,
    "list of parameters": hidden_in_lists,
    "stacked branches": stacked_branches,
    "MLP-Mixer": mixed_axes,
}
