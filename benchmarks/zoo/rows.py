"""Graphs, tables, series, flows and policies: what reaches a site is often not the batch."""

from collections.abc import Callable
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.zoo.comparison import Built
from tests.architectures import declare_missing_operators

SAMPLES = 4


def graphs(features: int = 6) -> dict[str, Tensor]:
    """A batch of four graphs of 3 to 6 nodes, each a ring."""
    sizes = [3, 4, 5, 6]
    edges, start = [], 0
    for size in sizes:
        nodes = torch.arange(size) + start
        edges += [torch.stack([nodes, nodes.roll(1)]), torch.stack([nodes.roll(1), nodes])]
        start += size
    batch = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return {
        "x": torch.randn(start, features),
        "edge_index": torch.cat(edges, 1),
        "batch": batch,
    }


def another_graph(batch: dict[str, Tensor], sample: int) -> dict[str, Tensor]:
    x = batch["x"].clone()
    x[batch["batch"] == sample] += 0.01
    return batch | {"x": x}


class Pooled(nn.Module):
    """Two layers of message passing, a sum over each graph, and a head."""

    def __init__(self, make: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.first, self.second = make(6, 16), make(16, 16)
        self.head = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 2))

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        from torch_geometric.nn import global_add_pool

        x = functional.relu(self.first(x, edge_index))
        x = functional.relu(self.second(x, edge_index))
        return self.head(global_add_pool(x, batch))


def message_passing(name: str, **options: Any) -> Callable[[], Built]:
    def build() -> Built:
        from torch_geometric import nn as layers

        def make(inputs: int, outputs: int) -> nn.Module:
            if name == "GINConv":
                inner = nn.Sequential(
                    nn.Linear(inputs, outputs),
                    nn.BatchNorm1d(outputs),
                    nn.ReLU(),
                    nn.Linear(outputs, outputs),
                )
                return layers.GINConv(inner)
            return getattr(layers, name)(inputs, outputs, **options)

        return Built(Pooled(make), graphs(), samples=SAMPLES, vary=another_graph)

    return build


def ready_gnn(name: str, **options: Any) -> Callable[[], Built]:
    def build() -> Built:
        from torch_geometric import nn as layers

        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body = getattr(layers, name)(6, 16, 2, 16, **options)

            def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
                return layers.global_mean_pool(self.body(x, edge_index), batch)

        return Built(Model(), graphs(), samples=SAMPLES, vary=another_graph)

    return build


def data_object() -> Built:
    """A graph batch as torch_geometric hands it over: one object."""
    from torch_geometric.data import Batch, Data
    from torch_geometric.nn import GCNConv, global_mean_pool

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = GCNConv(6, 16), nn.Linear(16, 8)

        def forward(self, data: Any) -> Tensor:
            x = functional.relu(self.conv(data.x, data.edge_index))
            return functional.relu(self.head(global_mean_pool(x, data.batch)))

    whole = graphs()
    parts = []
    for sample in range(SAMPLES):
        mask = whole["batch"] == sample
        edges = whole["edge_index"][:, mask[whole["edge_index"][0]]]
        parts.append(Data(x=whole["x"][mask], edge_index=edges - int(mask.nonzero()[0])))

    def vary(batch: Any, at: int) -> Any:
        other = batch[0].clone()
        other.x = other.x + 0.01 * (other.batch == at)[:, None]
        return (other,)

    return Built(Model(), (Batch.from_data_list(parts),), samples=SAMPLES, vary=vary)


def point_graph() -> Built:
    """PointNet++'s layer: an inner network on edges, and a maximum over them."""
    from torch_geometric.nn import PointNetConv

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            inner = nn.Sequential(nn.Linear(9, 16), nn.ReLU(), nn.Linear(16, 12))
            self.conv = PointNetConv(inner, nn.Sequential(nn.Linear(12, 12), nn.ReLU()))

        def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
            return self.conv(x, x[:, :3], edge_index)

    return Built(Model(), graphs(), samples=SAMPLES, vary=another_graph)


# Tables


def click_model(name: str, **options: Any) -> Callable[[], Built]:
    def build() -> Built:
        from deepctr_torch import models
        from deepctr_torch.inputs import DenseFeat, SparseFeat

        columns = [SparseFeat(f"c{i}", 10, 4) for i in range(3)]
        columns += [DenseFeat(f"d{i}", 1) for i in range(2)]
        model = getattr(models, name)(columns, columns, dnn_hidden_units=(16, 12), **options)
        rows = torch.cat([torch.randint(0, 10, (6, 3)).float(), torch.randn(6, 2)], 1)
        return Built(model, (rows,), vary=_other_row)

    return build


def _other_row(batch: Any, at: int) -> Any:
    rows = batch[0].clone()
    rows[at, :3] = (rows[at, :3] + 1) % 10
    rows[at, 3:] += 0.01
    return (rows,)


def tabnet() -> Built:
    """Ghost batch norm, a sparsemax mask, and ReLU of what each step decides."""
    from pytorch_tabnet.tab_network import TabNet

    groups = torch.eye(6)
    model = TabNet(6, 2, n_d=8, n_a=8, n_steps=2, group_attention_matrix=groups)
    return Built(model, (torch.randn(6, 6),))


def rtdl(name: str) -> Callable[[], Built]:
    def build() -> Built:
        import rtdl_revisiting_models as models

        if name == "FTTransformer":
            model = models.FTTransformer(
                n_cont_features=5,
                cat_cardinalities=[],
                d_out=2,
                n_blocks=1,
                d_block=16,
                attention_n_heads=2,
                attention_dropout=0.0,
                ffn_d_hidden_multiplier=1.5,
                ffn_dropout=0.0,
                residual_dropout=0.0,
                ffn_activation="ReLU",
            )
            return Built(model, {"x_cont": torch.randn(6, 5), "x_cat": None}, samples=6)
        options: dict[str, Any] = {"d_in": 5, "d_out": 2, "n_blocks": 2}
        if name == "MLP":
            model = models.MLP(**options, d_block=16, dropout=0.0)
        else:
            model = models.ResNet(
                **options,
                d_block=16,
                d_hidden=24,
                d_hidden_multiplier=None,
                dropout1=0.0,
                dropout2=0.0,
            )
        return Built(model, (torch.randn(6, 5),))

    return build


def numeric_embeddings() -> Built:
    """A weight of its own for each number: units are numbers x features."""
    from rtdl_num_embeddings import PeriodicEmbeddings

    model = nn.Sequential(
        PeriodicEmbeddings(5, 8, lite=False), nn.Flatten(), nn.Linear(40, 16), nn.ReLU()
    )
    return Built(model, (torch.randn(6, 5),))


def forecaster() -> Built:
    """N-BEATS: blocks of four layers each, in a loop over what is left."""
    declare_missing_operators()
    from pytorch_forecasting.models.nbeats.sub_modules import NBEATSGenericBlock

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(
                NBEATSGenericBlock(16, 8, 2, backcast_length=10, forecast_length=4)
                for _ in range(2)
            )

        def forward(self, x: Tensor) -> Tensor:
            total = x.new_zeros(len(x), 4)
            for block in self.blocks:
                back, forward = block(x)
                x, total = x - back, total + forward
            return total

    return Built(Model(), (torch.randn(5, 10),))


def coupling_flow() -> Built:
    import normflows

    layers = []
    for _ in range(2):
        network = normflows.nets.MLP([2, 16, 16, 4], leaky=0.0)
        layers += [normflows.flows.AffineCouplingBlock(network), normflows.flows.Permute(4)]

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flow = normflows.NormalizingFlow(normflows.distributions.DiagGaussian(4), layers)

        def forward(self, x: Tensor) -> Tensor:
            return self.flow.log_prob(x)

    return Built(Model(), (torch.randn(6, 4),))


def masked_flow() -> Built:
    """MADE: a mask on each weight."""
    from nflows.transforms import MaskedAffineAutoregressiveTransform

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flow = MaskedAffineAutoregressiveTransform(4, 16, num_blocks=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.flow(x)[0]

    return Built(Model(), (torch.randn(6, 4),))


def spline_flow() -> Built:
    from nflows.nn.nets import ResidualNet

    return Built(ResidualNet(4, 6, 16, num_blocks=2, use_batch_norm=True), (torch.randn(6, 4),))


def metric_learning() -> Built:
    declare_missing_operators()
    from pytorch_metric_learning.losses import TripletMarginLoss

    class Model(nn.Module):
        """The loss is a part of the model: its margin is a rectifier too."""

        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
            self.loss = TripletMarginLoss()

        def forward(self, x: Tensor) -> Tensor:
            return self.loss(self.body(x), torch.tensor([0, 0, 1, 1, 2, 2]))

    return Built(Model(), (torch.randn(6, 8),), loss=lambda loss: loss)


def quantizer() -> Built:
    from vector_quantize_pytorch import FSQ

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
            self.quantize = FSQ([5, 5], dim=16)
            self.leave = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8))

        def forward(self, x: Tensor) -> Tensor:
            return self.leave(self.quantize(self.enter(x))[0])

    return Built(Model(), (torch.randn(SAMPLES, 6, 8),))


def mixture() -> Built:
    """All experts in one tensor of weights, and tokens sent to slots of them."""
    from mixture_of_experts import MoE

    model = MoE(dim=8, num_experts=3, hidden_dim=16, activation=nn.ReLU)
    return Built(model, (torch.randn(SAMPLES, 12, 8),), ledger=False)


def voting() -> Built:
    from torchensemble import FusionRegressor

    class Member(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    model = FusionRegressor(Member, 3, cuda=False)
    model.estimators_ = nn.ModuleList(Member() for _ in range(3))
    return Built(model, (torch.randn(6, 8),))


# Policies, in the library's own training loop


def policy(algorithm: str, **options: Any) -> Callable[[], Built]:
    def build() -> Built:
        import gymnasium
        import stable_baselines3
        from gymnasium import spaces
        from stable_baselines3.common.callbacks import BaseCallback  # noqa: F401

        class Walk(gymnasium.Env):  # type: ignore[type-arg]
            """Four numbers; the reward is for keeping the first small."""

            observation_space = spaces.Box(-5, 5, (4,))
            action_space = (
                spaces.Box(-1, 1, (1,)) if algorithm in {"SAC", "TD3"} else spaces.Discrete(2)
            )

            def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
                super().reset(seed=seed)
                self.state = self.np_random.normal(size=4).astype("float32")
                self.left = 20
                return self.state, {}

            def step(self, action: Any) -> Any:
                self.left -= 1
                self.state = (self.state * 0.9).astype("float32")
                self.state[0] += float(numpy.reshape(action, -1)[0]) * 0.5
                return self.state, -abs(float(self.state[0])), self.left == 0, False, {}

        agent = getattr(stable_baselines3, algorithm)(
            "MlpPolicy",
            Walk(),
            seed=0,
            device="cpu",
            verbose=0,
            policy_kwargs={"activation_fn": nn.ReLU, "net_arch": [16, 16]},
            **options,
        )
        return _agent(algorithm, agent)

    return build


def _agent(algorithm: str, agent: Any) -> Built:
    """Watched is the network that the optimizer of the agent's own loop moves."""
    model = {"DQN": lambda: agent.q_net, "SAC": lambda: agent.actor, "TD3": lambda: agent.actor}
    network = model.get(algorithm, lambda: agent.policy)()
    optimizer = network.optimizer if hasattr(network, "optimizer") else agent.policy.optimizer

    def fit(look: Callable[[], None]) -> None:
        handle = optimizer.register_step_post_hook(lambda *_: look())
        agent.learn(64)
        handle.remove()

    return Built(network, (torch.randn(6, 4),), optimizer=optimizer, fit=fit)


def torchrl(name: str) -> Callable[[], Built]:
    def build() -> Built:
        declare_missing_operators()
        from torchrl import modules

        if name == "MLP":
            model = modules.MLP(4, 2, num_cells=[16, 16], activation_class=nn.ReLU)
            return Built(model, (torch.randn(6, 4),))
        if name == "ConvNet":
            model = modules.ConvNet(
                in_features=3,
                num_cells=[8, 8],
                kernel_sizes=3,
                strides=1,
                activation_class=nn.ReLU,
            )
            return Built(model, (torch.randn(SAMPLES, 3, 10, 10),))
        model = modules.MultiAgentMLP(
            n_agent_inputs=4,
            n_agent_outputs=2,
            n_agents=3,
            centralised=False,
            share_params=name == "shared agents",
            num_cells=[16],
            activation_class=nn.ReLU,
        )
        return Built(model, (torch.randn(6, 3, 4),))

    return build


MODELS: dict[str, Callable[[], Built]] = {
    **{f"torch_geometric/{n}": message_passing(n) for n in ("GCNConv", "GINConv", "SAGEConv")},
    "torch_geometric/GATConv, 2 heads": message_passing("GATConv", heads=2, concat=False),
    "torch_geometric/PNAConv": message_passing(
        "PNAConv",
        aggregators=["mean", "max"],
        scalers=["identity"],
        deg=torch.tensor([0, 0, 18]),
    ),
    "torch_geometric/PointNetConv": point_graph,
    "torch_geometric/GIN, BatchNorm": ready_gnn("GIN", norm="batch_norm"),
    "torch_geometric/GCN, GraphNorm": ready_gnn("GCN", norm="graph_norm"),
    "torch_geometric/Batch object": data_object,
    "deepctr_torch/DeepFM": click_model("DeepFM"),
    "deepctr_torch/DCNMix": click_model("DCNMix"),
    "deepctr_torch/xDeepFM": click_model("xDeepFM", cin_layer_size=(8,)),
    "deepctr_torch/AutoInt": click_model("AutoInt", att_head_num=2),
    "pytorch_tabnet/TabNet": tabnet,
    **{f"rtdl_revisiting_models/{n}": rtdl(n) for n in ("MLP", "ResNet", "FTTransformer")},
    "rtdl_num_embeddings/periodic": numeric_embeddings,
    "pytorch_forecasting/N-BEATS": forecaster,
    "normflows/affine coupling": coupling_flow,
    "nflows/masked autoregressive": masked_flow,
    "nflows/ResidualNet": spline_flow,
    "pytorch_metric_learning/triplets": metric_learning,
    "vector_quantize_pytorch/FSQ": quantizer,
    "mixture_of_experts/MoE": mixture,
    "torchensemble/Fusion": voting,
    "stable_baselines3/PPO": policy("PPO", n_steps=32, batch_size=16, n_epochs=5),
    "stable_baselines3/A2C": policy("A2C", n_steps=4),
    "stable_baselines3/DQN": policy("DQN", learning_starts=10, train_freq=2),
    "stable_baselines3/SAC": policy("SAC", learning_starts=30),
    "stable_baselines3/TD3": policy("TD3", learning_starts=30),
    "torchrl/MLP": torchrl("MLP"),
    "torchrl/ConvNet": torchrl("ConvNet"),
    "torchrl/MultiAgentMLP": torchrl("agents"),
    "torchrl/MultiAgentMLP, shared": torchrl("shared agents"),
}
