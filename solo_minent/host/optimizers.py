"""Optimisers that wait for no device: fused ones of torch, and LARS."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

FUSED = ("sgd", "adam", "adamw")
# With any of these a user, or torch, has chosen another way of computing.
OTHER_WAYS = ("fused", "foreach", "capturable", "differentiable")


def with_fused(name: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of torch's optimiser, which then makes one pass over the weights.

    Besides, Adam without `fused` reads its count of steps once for each tensor.
    """
    chosen = any(key in kwargs for key in OTHER_WAYS) or kwargs.get("dampening")
    return dict(kwargs) if name not in FUSED or chosen else {**kwargs, "fused": True}


def give_buffers(optimizer: Optimizer, *_: Any) -> None:
    """Before a step of fused SGD: momentum 0 of weights that have none yet.

    Without dampening, it comes to the same as none. By itself torch refuses a group of which some
    weights have none, and where a loss scale leaves out the first step, it goes on with whatever
    was in the memory (torch 2.11).
    """
    for group in optimizer.param_groups:
        if not group.get("fused") or not group["momentum"] or group["dampening"]:
            continue
        for parameter in (p for p in group["params"] if p.grad is not None):
            if optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def place_state(optimizer: Optimizer) -> None:
    """State out of a checkpoint lies as the optimiser wants it, not as another one wanted it.

    Counts of steps: a fused optimiser's lie beside the weights. All else: in the order of the
    weights in memory (channels_last); a fused step takes both as plain rows of numbers, and paired
    one weight with the momentum of another (torch 2.11).
    """
    for group in optimizer.param_groups:
        beside = group.get("fused") or group.get("capturable")
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            for name, value in state.items():
                if not isinstance(value, Tensor):
                    continue
                if name == "step":
                    state[name] = value.to(parameter.device if beside else torch.device("cpu"))
                elif value.shape == parameter.shape and value.stride() != parameter.stride():
                    state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


class Lars(Optimizer):
    """SGD with momentum on gradients scaled layer by layer; both of solo-learn's compute the same.

    You, Gitman and Ginsburg, "Large Batch Training of Convolutional Networks", 2017, arXiv
    1708.03888, equation 6: with weights w, their gradient g and weight decay b, each tensor's

        g' = eta |w| / (|g| + b |w| + eps) (g + b w)

    goes into torch's SGD in place of g + b w. The conventions are solo-learn's: g' = g, without
    decay, where w or g is zero, and for tensors of one dimension with `exclude_bias_n_norm`;
    `clip_lr` takes at most 1 / lr for the factor (LARC). Which case it is, is decided on the
    device: solo-learn's read two norms of every tensor in every step.

    Args:
        params: tensors or groups, as of every optimiser.
        lr, momentum, dampening, weight_decay, nesterov: as of `torch.optim.SGD`.
        eta: trust coefficient.
        eps: added to the denominator.
        clip_lr: LARC's clipping.
        exclude_bias_n_norm: leaves biases and norms unscaled and undecayed.

    Attributes:
        found_inf: if set, a scalar on the device: where it is 1, a step changes no weight (as in
            torch's fused optimisers).
    """

    heeds_found_inf = True
    found_inf: Tensor | None = None

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        eta: float = 1e-3,
        eps: float = 1e-8,
        clip_lr: bool = False,
        exclude_bias_n_norm: bool = False,
    ) -> None:
        if min(lr, momentum, weight_decay) < 0:
            raise ValueError(f"lr, momentum or weight_decay below 0: {lr, momentum, weight_decay}")
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "eta": eta,
            "eps": eps,
            "clip_lr": clip_lr,
            "exclude_bias_n_norm": exclude_bias_n_norm,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            gradients = [self._allowed(p.grad) for p in params]
            spared = group["exclude_bias_n_norm"]
            scaled = [i for i, p in enumerate(params) if p.ndim != 1 or not spared]
            if scaled:
                _scale([params[i] for i in scaled], [gradients[i] for i in scaled], group)
            moved = self._moved(params, gradients, group)
            if self.found_inf is not None:
                moved = torch._foreach_mul(moved, 1 - self.found_inf)
            torch._foreach_add_(params, moved, alpha=-group["lr"])
        return loss

    def _allowed(self, gradient: Tensor) -> Tensor:
        """A copy; zeros in a step that is left out, since nothing times NaN is NaN."""
        if self.found_inf is None:
            return gradient.clone()
        return gradient.masked_fill(self.found_inf != 0, 0.0)

    def _moved(
        self, params: list[Tensor], gradients: list[Tensor], group: dict[str, Any]
    ) -> list[Tensor]:
        """Gradients with momentum, as torch's SGD has it; they may be overwritten."""
        momentum = group["momentum"]
        if not momentum:
            return gradients
        buffers, old, new = [], [], []
        for parameter, gradient in zip(params, gradients, strict=True):
            state = self.state[parameter]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = gradient.clone()
            else:
                old.append(state["momentum_buffer"])
                new.append(gradient)
            buffers.append(state["momentum_buffer"])
        if old:
            torch._foreach_mul_(old, momentum)
            torch._foreach_add_(old, new, alpha=1 - group["dampening"])
        if not group["nesterov"]:
            return buffers
        torch._foreach_add_(gradients, buffers, alpha=momentum)
        return gradients


def _scale(params: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
    """Overwrites gradients by the g' of `Lars`; the norms stay on the device."""
    decay = group["weight_decay"]
    w = torch.stack(torch._foreach_norm(params))
    g = torch.stack(torch._foreach_norm(gradients))
    factor = group["eta"] * w / (g + decay * w + group["eps"])
    if group["clip_lr"]:
        factor = (factor / group["lr"]).clamp(max=1)
    adapts = (w != 0) & (g != 0)
    if decay:
        decays = decay * adapts.to(w.dtype)
        torch._foreach_addcmul_(gradients, params, decays.unbind())
    torch._foreach_mul_(gradients, torch.where(adapts, factor, 1.0).unbind())
