"""The names of torch that it does not promise to keep: each does what reludiag needs of it."""

import ast
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from reludiag.errors import ReludiagError, TorchVersionError
from reludiag.sites import torch_internals

PACKAGE = Path(torch_internals.__file__).parents[1]


class Asking(nn.Module):
    """Asks something each time that its forward runs."""

    def __init__(self, ask):  # type: ignore[no-untyped-def]
        super().__init__()
        self.ask, self.answers = ask, []

    def forward(self, x: Tensor) -> Tensor:
        self.answers.append(self.ask())
        return x * x


def test_a_name_that_is_gone_is_named_with_what_to_do() -> None:
    with pytest.raises(TorchVersionError, match=r"has no torch\._C\._gone\.name") as raised:
        torch_internals.internal("torch._C._gone.name")
    assert torch.__version__ in str(raised.value)
    assert all(version in str(raised.value) for version in torch_internals.TRIED)
    assert isinstance(raised.value, ImportError)
    assert isinstance(raised.value, ReludiagError)


def test_a_function_that_is_gone_from_a_module_call_is_named() -> None:
    with pytest.raises(TorchVersionError, match=r"_call_impl\.outer"):
        torch_internals._function_in(torch_internals.MODULE_CALL, "outer")


def private_names(path: Path) -> set[str]:
    """What a file takes from other objects by a name that begins with an underscore."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            paths = [f"{node.module}.{alias.name}" for alias in node.names]
            names |= {path for path in paths if "._" in path}
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            owner = ast.unparse(node.value)
            if not node.attr.startswith("__") and owner not in {"self", "cls", "super()"}:
                names.add(f"{owner}.{node.attr}")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names |= {node.value} & {"_orig_mod", "torch._dynamo", "_schema", "_opname"}
    return names


# Not torch's: of Python, of SQLite and Optuna queues and of the classes themselves.
OWN = ("sys._getframe", "queue.", "store.", "trial.", "other.")


@pytest.mark.parametrize(
    "path",
    [p for p in PACKAGE.rglob("*.py") if "import torch" in p.read_text(encoding="utf-8")],
    ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_no_other_file_takes_a_private_name_from_torch(path: Path) -> None:
    names = {name for name in private_names(path) if not name.startswith(OWN)}
    assert bool(names) is (path.name == "torch_internals.py"), names


def test_tracing_is_told_while_it_lasts() -> None:
    model = Asking(torch_internals.is_tracing)
    model(torch.ones(1))
    torch.jit.trace(model, torch.ones(1), check_trace=False)
    assert model.answers == [False, True]
    assert not torch_internals.is_tracing()


def test_exporting_is_told_while_it_lasts() -> None:
    answers: list[bool] = []  # an export puts the attributes of the model back
    model = Asking(lambda: answers.append(torch_internals.is_exporting()))
    model(torch.ones(1))
    assert answers == [False]
    torch.export.export(model, (torch.ones(1),), strict=False)
    assert answers[1:] == [True] * (len(answers) - 1) != []
    assert not torch_internals.is_exporting()


@pytest.mark.parametrize("reentrant", [False, True])
def test_the_second_forward_of_a_checkpoint_is_told_from_the_first(reentrant: bool) -> None:
    model = Asking(torch_internals.is_recomputed)
    x = torch.ones(1, requires_grad=True)
    checkpoint(model, x, use_reentrant=reentrant).backward()
    assert model.answers == [False, True]
    assert torch_internals.backward_task() == -1


def test_transforms_are_told_while_they_last() -> None:
    model = Asking(torch_internals.is_transformed)
    model(torch.ones(1))
    torch.vmap(model)(torch.ones(2, 1))
    torch.func.grad(lambda x: model(x).sum())(torch.ones(1))
    torch.func.jvp(model, (torch.ones(1),), (torch.ones(1),))
    assert model.answers == [False, True, True, True]


def test_autocasting_is_told_while_it_lasts() -> None:
    assert not torch_internals.is_autocasting()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch_internals.is_autocasting()


class Counting(TorchFunctionMode):
    """Counts the functions that it sees."""

    calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.calls += 1
        return func(*args, **(kwargs or {}))


def test_function_modes_are_counted_and_kept_from_seeing() -> None:
    before = torch_internals.function_modes()
    x = torch.ones(1)
    with Counting() as mode:
        assert torch_internals.function_modes() == before + 1
        torch.relu(x)
        with torch_internals.DisableTorchFunction():
            torch.relu(x)
    assert mode.calls == 1
    assert torch_internals.function_modes() == before


def test_modes_of_an_owner_are_taken_off_the_tops_of_the_stacks_and_no_others() -> None:
    owner = object()
    others, own, naming = Counting(), Counting(), Naming()
    own.guard = naming.guard = owner  # type: ignore[attr-defined]
    before = torch_internals.function_modes()
    with others:
        own.__enter__()  # type: ignore[no-untyped-call]
        naming.__enter__()  # type: ignore[no-untyped-call]
        with others:
            assert torch_internals.leave_modes(owner) == {naming}
        assert torch_internals.leave_modes(owner) == {own}
        assert torch_internals.leave_modes(owner) == set()
        assert torch_internals.function_modes() == before + 1
        torch.relu(torch.ones(1))
    assert (own.calls, naming.names) == (0, [])
    assert others.calls > 0


class Naming(torch_internals.TorchDispatchMode):
    """Notes the operators that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        assert isinstance(func, torch_internals.OpOverload)
        self.names.append(torch_internals.operator_name(func))
        return func(*args, **(kwargs or {}))


def test_a_dispatch_mode_sees_operators_by_their_names() -> None:
    with Naming() as mode:
        torch.ones(1).relu_()
    assert mode.names == ["ones", "relu_"]


def test_the_fused_encoder_layer_is_the_operator_that_is_known() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()
    with torch.no_grad(), Naming() as mode:
        layer(torch.ones(1, 2, 4))
    assert torch_internals.operator_name(torch_internals.ENCODER_LAYER) in mode.names


def test_the_native_attention_gives_what_the_module_gives() -> None:
    attention = nn.MultiheadAttention(4, 2, batch_first=True).eval()
    x, out = torch.randn(1, 3, 4), attention.out_proj
    with torch.no_grad():
        expected = attention(x, x, x)[0]
        y = torch_internals.multi_head_attention(
            *(x, x, x, 4, 2, attention.in_proj_weight, attention.in_proj_bias),
            *(out.weight, out.bias, None, False, True, None),
        )[0]
    torch.testing.assert_close(y, expected)


def test_a_version_counts_what_is_written_in_place() -> None:
    x = torch.ones(2)
    version = torch_internals.version_of(x)
    x + 1
    assert torch_internals.version_of(x) == version
    x.view(1, 2).add_(1)
    assert torch_internals.version_of(x) > version


def test_a_storage_is_that_of_all_views() -> None:
    x, sparse = torch.ones(2), torch.ones(2).to_sparse()
    assert torch_internals.storage_of(x) == torch_internals.storage_of(x[1:].detach())
    assert torch_internals.storage_of(x) != torch_internals.storage_of(x.clone())
    assert torch_internals.storage_of(sparse) == torch_internals.storage_of(sparse)


@pytest.mark.parametrize("hooked", [False, True])
def test_a_module_call_is_seen_on_the_stack(hooked: bool) -> None:
    def codes() -> list[object]:
        frame, above = sys._getframe(1), []
        for _ in range(2):
            assert frame.f_back is not None
            frame = frame.f_back
            above.append(frame.f_code)
        return above

    model = Asking(codes)
    if hooked:
        model.register_forward_hook(lambda *_: None)
    model(torch.ones(1))
    call, inner = torch_internals.MODULE_CALL, torch_internals.HOOKED_FORWARD
    (above,) = model.answers
    assert (above[:2] == [inner, call]) if hooked else (above[0] is call)


def test_own_buffers_parameters_and_hooks_are_those_of_the_module() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2))
    norm = model[0]
    handle = norm.register_forward_hook(lambda *_: None)
    assert isinstance(norm, torch_internals.AnyBatchNorm)
    assert not torch_internals.buffers_of(model)
    buffers = torch_internals.buffers_of(norm)
    assert set(buffers) == {"running_mean", "running_var", "num_batches_tracked"}
    buffers["running_mean"] = torch.ones(2)
    assert norm.running_mean.tolist() == [1, 1]
    assert torch_internals.parameters_of(norm)["weight"] is norm.weight
    assert list(torch_internals.forward_hooks_of(norm)) == [handle.id]
    torch_internals.forward_hooks_of(norm).clear()
    norm(torch.ones(2, 2))


def test_a_compiled_model_is_known_and_its_graphs_are_forgotten() -> None:
    torch._dynamo.reset()
    model, other = nn.Linear(1, 1), nn.Linear(1, 1)
    compiled = torch.compile(model, backend="eager")
    assert torch_internals.is_compiler_loaded()
    assert torch_internals.eager_module(compiled) is model
    assert torch_internals.eager_module(model) is model
    assert torch_internals.is_compiled_module(compiled)
    assert not torch_internals.is_compiled_module(model)
    other.compile(backend="eager")
    assert torch_internals.is_compiled_module(other)
    graphs = torch_internals.compiled_graphs()
    compiled(torch.ones(1, 1))
    compiled(torch.ones(1, 1))
    assert torch_internals.compiled_graphs() == graphs + 1
    torch_internals.forget_graphs()
    compiled(torch.ones(1, 1))
    assert torch_internals.compiled_graphs() == graphs + 2


def test_a_graph_is_not_used_for_a_twin_with_hooks_while_guarded() -> None:
    torch._dynamo.reset()
    calls: list[int] = []
    with torch_internals.hook_guards():
        for hooked in (False, True):
            model = nn.Linear(1, 1)
            if hooked:
                model.register_forward_hook(lambda *_: calls.append(1))
            torch.compile(model, backend="eager")(torch.ones(1, 1))
    torch._dynamo.reset()
    assert calls


def test_operators_of_our_own_are_seen_by_no_dispatch_mode() -> None:
    class Counting(torch_internals.TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            self.calls += 1
            return func(*args, **(kwargs or {}))

    with Counting() as mode:
        with torch_internals.without_dispatch_modes():
            torch.ones(1)
        assert mode.calls == 0
        torch.ones(1)
    assert mode.calls == 1


def test_an_operator_names_its_arguments_and_those_that_it_writes_to() -> None:
    arguments = torch_internals.operator_arguments(torch.ops.aten.add_.Tensor)
    assert [argument.name for argument in arguments] == ["self", "other", "alpha"]
    assert arguments[2].default_value == 1
    written = [a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write]
    assert written == ["self"]
