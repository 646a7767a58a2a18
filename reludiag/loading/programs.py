"""Programs saved by `torch.export.save`: graphs in which rectifiers are calls of operators.

They become modules again, at the paths of the original model, so that they are seen like modules.
"""

import logging
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from reludiag.errors import ModelError
from reludiag.sites.rectifiers import rectifier_call
from reludiag.sites.torch_internals import OpOverload, operator_name

_PLAIN = (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid)
# Their operators have the arguments that they were made with, in the same order.
_SET = (nn.Hardtanh, nn.Threshold, nn.LeakyReLU, nn.Hardshrink, nn.Softshrink)
_TRAINING: dict[str, Callable[[tuple[Any, ...]], bool]] = {
    "batch_norm": lambda args: bool(args[5]),
    "dropout": lambda args: bool(args[1] and args[2]),
}
_MODULES: dict[str, type[nn.Module]] = {f"{m.__module__}.{m.__name__}": m for m in _PLAIN + _SET}


def load_program(path: str | Path) -> GraphModule:
    """The program in a `.pt2` file as a module. It is code, like a model's source: load only
    programs that you trust.

    Raises ModelError if the file is missing, is not a program, or is one in training mode.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"there is no file {path}")
    if not zipfile.is_zipfile(path):
        raise ModelError(f"{path} is not a program saved by torch.export.save, or it is truncated")
    with zipfile.ZipFile(path) as archive:
        if not any(name.endswith("models/model.json") for name in archive.namelist()):
            raise ModelError(
                f"{path} is not a program saved by torch.export.save. If it holds weights, pass "
                "it as a CHECKPOINT"
            )
    log = logging.getLogger("torch.export")
    was, log.disabled = log.disabled, True  # it would print a traceback
    try:
        program = torch.export.load(path)
    except Exception as error:  # a broken archive can raise anything
        raise ModelError(f"{path} is damaged, or from another version of PyTorch") from error
    finally:
        log.disabled = was
    return program_module(program)


def program_module(program: ExportedProgram) -> GraphModule:
    """An exported program as a module whose rectifiers can be watched.

    Raises ModelError for one that was exported in training mode.
    """
    module: Any = program.module()
    for node in module.graph.nodes:
        trains = _TRAINING.get(_name(node))
        if trains is not None and trains(node.args):
            raise ModelError(
                f"the program was exported in training mode (it contains {_name(node)}): export "
                "it after model.eval()"
            )
    for node in list(module.graph.nodes):
        if node.op == "call_function" and isinstance(node.target, OpOverload):
            _give_back(module, node)
    module.recompile()
    for node in module.graph.nodes:
        for path, cls in (node.meta.get("nn_module_stack") or {}).values():
            if not path:
                type(module).__name__ = str(cls).rpartition(".")[2]

    def train(mode: bool = True) -> Any:
        if mode:
            raise ModelError(
                "an exported program stays in the mode in which it was exported, so it cannot be "
                "scanned in training mode"
            )
        return module

    module.train, module.eval = train, lambda: module
    return module  # type: ignore[no-any-return]


def _give_back(module: GraphModule, node: Node) -> None:
    """Turn a rectifier's operator into a call by the module that it came from."""
    name = _name(node)
    values = tuple(arg.meta.get("val") if isinstance(arg, Node) else arg for arg in node.args)
    if rectifier_call(name, values, dict(node.kwargs)) is None:
        return
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path, cls = stack[-1] if stack else ("", "")
    rectifier_class = _MODULES.get(str(cls))
    if path and rectifier_class is not None:
        if not any(existing == path for existing, _ in module.named_modules()):
            rectifier: Any = rectifier_class(*(node.args[1:] if rectifier_class in _SET else ()))
            if name.endswith("_"):
                rectifier.inplace = True
            module.add_submodule(path, rectifier)
        with module.graph.inserting_before(node):
            call = module.graph.call_module(path, node.args[:1])
        call.meta = node.meta
        node.replace_all_uses_with(call)
        module.graph.erase_node(node)
        return
    if path and not any(existing == path for existing, _ in module.named_modules()):
        module.add_submodule(path, nn.Module())
    owner = module.get_submodule(path)
    node.target = _called_in(owner, node.target)  # type: ignore[arg-type]


def _name(node: Node) -> str:
    return operator_name(node.target) if isinstance(node.target, OpOverload) else ""


def _called_in(owner: nn.Module, operator: Callable[..., Any]) -> Callable[..., Any]:
    """`operator`, called from a frame that looks like a method of its owner."""

    def call(self: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return operator(*args, **kwargs)

    def call_method(*args: Any, **kwargs: Any) -> Any:
        return call(owner, args, kwargs)

    call_method.__name__ = call_method.__qualname__ = str(operator).partition(".")[0] + "_in_owner"
    return call_method
