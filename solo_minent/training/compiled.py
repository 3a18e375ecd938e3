"""`compile: true`: the networks of a run, compiled by torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn

from solo_minent.errors import UserError

# One linear layer on features that are there anyway.
SPARED = ("classifier",)


def compile_networks(module: LightningModule, device: str) -> None:
    """Compiles backbone and heads, the teacher's too, in place: no name of a weight changes.

    What stays as it is: the loss, the optimiser and the monitors. Compilation itself happens in the
    first step, and again where the size of a batch changes.

    Args:
        module: of the method.
        device: where it will train: cpu or cuda.

    Raises:
        UserError: nothing can be compiled on this machine.
    """
    _check_compiler(device)
    for name, network in networks(module).items():
        network.forward = torch.compile(_frame(name, network.forward))


def networks(module: LightningModule) -> dict[str, nn.Module]:
    """What is compiled: the parts of a method that have weights."""
    return {
        name: part
        for name, part in module.named_children()
        if name not in SPARED and next(part.parameters(), None) is not None
    }


def _frame(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function in a frame of its own: torch.compile passes over those of torch's own layers.

    So `nn.Sequential.compile` does nothing (torch 2.11). It keeps its graphs by code, and few of
    one: each network has its own.
    """

    def call(*args: Any) -> Any:
        return function(*args)

    call.__code__ = call.__code__.replace(co_name=name)
    return call


def _check_compiler(device: str) -> None:
    """Compiles a sum: what it needs (a C++ compiler, Python's headers, Triton) is found at once."""
    x = torch.zeros(8, device=device)
    try:
        torch.compile(_sum)(x)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(
            f"nothing can be compiled on this machine: {reason}. torch.compile takes a C++ "
            "compiler with Python's headers, and Triton on a GPU. Install them (apt-get install "
            "g++ python3-dev), or set compile=false."
        ) from error


def _sum(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + x.sum()
