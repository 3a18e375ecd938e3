"""Losses and MinEnt's heads against their plain formulas: `solo-minent bench loss`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from solo_minent.allowed import Range, check_one_of, check_range
from solo_minent.bench import plain
from solo_minent.bench.pairs import Run, in_turn, peak_memory, ratio
from solo_minent.console import progress_bar
from solo_minent.errors import UserError
from solo_minent.losses import (
    CorInfoMaxLoss,
    mec_loss_func,
    minent_loss_func,
    twist_loss_func,
    twist_multicrop_loss_func,
)
from solo_minent.methods.minent import MinEntParams, MultiHead

HEADS = tuple(MinEntParams().heads)
DEVICES = ("cpu", "cuda")
MIB = 2**20
ALPHA = 250.0  # CorInfoMax's of CIFAR-10; it costs nothing


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        loss: mec, corinfomax, twist, "twist multi-crop", minent or "minent heads".
        shape: in words.
        make: (device, dtype) -> {"ours": run, "plain": run}; a run does forward and backward and
            returns (values, gradients of its inputs), the same for both.
        half: measured under bfloat16 autocast as well, on an accelerator.
    """

    loss: str
    shape: str
    make: Callable[[torch.device, torch.dtype], dict[str, Run]]
    half: bool = False


def cases(tiny: bool = False) -> list[Case]:
    """What is compared; `tiny` are shapes of a smoke test."""
    n, d, classes, heads, hidden = (8, 16, 16, (8, 4), 8) if tiny else (256, 512, 4096, HEADS, 1024)
    widths = f"{heads[0]}…{heads[-1]}"
    return [
        _mec_case(4 * n, 4 * d),
        _corinfomax_case(4 * n, d),
        _corinfomax_case(4 * n, d // 8),
        Case("twist", f"n={2 * n} C={classes}", partial(twist, 2 * n, classes)),
        Case(
            "twist multi-crop",
            f"n={n // 2} C={classes} 2+6 views",
            partial(twist_multicrop, n // 2, classes),
        ),
        Case("minent", f"n={2 * n} d={widths}", partial(minent, 2 * n, heads)),
        Case(
            "minent heads",
            f"n={n} {d}-{hidden}-{hidden}-{widths} 2 views",
            partial(minent_heads, n, d, hidden, heads),
            half=True,
        ),
    ]


def bench_losses(
    devices: Sequence[str] = (),
    losses: Sequence[str] = (),
    pairs: int = 5,
    seconds: float = 0.2,
    tiny: bool = False,
) -> list[dict[str, Any]]:
    """Forward and backward of each loss, ours and plain in turn.

    Args:
        devices: cpu, cuda; by default all that are there.
        losses: names out of `cases`; by default all.
        pairs: turns of each side.
        seconds: about the time of one turn.
        tiny: shapes of a smoke test.

    Returns:
        One row a comparison and device. "times faster" is plain over ours: the median of the
        pairs, then its lowest and highest; MiB are the peak of tensors beyond the inputs.

    Raises:
        UserError: an unknown loss, an unknown or missing device, `pairs` or `seconds` out of range.
    """
    found = cases(tiny)
    for name in losses:
        check_one_of("--loss", name, dict.fromkeys(case.loss for case in found))
    check_turns(pairs, seconds)
    jobs = [
        (case, device, half)
        for device in pick_devices(devices)
        for case in found
        if not losses or case.loss in losses
        for half in ([False, True] if case.half and device.type == "cuda" else [False])
    ]
    rows = []
    with progress_bar() as bar:
        for case, device, half in bar.track(jobs, description="losses"):
            rows.append(_measure(case, device, half, pairs, seconds))
    return rows


def pick_devices(names: Sequence[str] = ()) -> list[torch.device]:
    """The devices to measure on: those named, or all that are there.

    Raises:
        UserError: an unknown one, or one that is not there.
    """
    there = DEVICES if torch.cuda.is_available() else DEVICES[:1]
    for name in names:
        check_one_of("--device", name, DEVICES)
        if name not in there:
            raise UserError(
                f"--device is not there: {name}. This machine has {', '.join(there)}. Leave "
                "--device out, or mend what solo-minent doctor says about the accelerator."
            )
    return [torch.device(name) for name in dict.fromkeys(names or there)]


def check_turns(pairs: int, seconds: float) -> None:
    """Raises UserError where nothing would be measured."""
    check_range("--pairs", pairs, Range(1, 5))
    check_range("--seconds", seconds, Range(0, 0.2, above=True))


def _measure(
    case: Case, device: torch.device, half: bool, pairs: int, seconds: float
) -> dict[str, Any]:
    sides = case.make(device, torch.float32)
    if half:
        sides = {name: partial(_autocast, run, device) for name, run in sides.items()}
    memory = {name: peak_memory(run, device) / MIB for name, run in sides.items()}
    times = in_turn(sides, pairs, seconds)
    faster = ratio(times["ours"], times["plain"])
    return {
        "loss": case.loss,
        "shape": case.shape,
        "device": device.type,
        "precision": "bf16-mixed" if half else "32",
        "ms ours": 1e3 * statistics.median(times["ours"]),
        "ms plain": 1e3 * statistics.median(times["plain"]),
        "times faster": faster.value,
        "low": faster.low,
        "high": faster.high,
        "pairs": faster.pairs,
        "MiB ours": memory["ours"],
        "MiB plain": memory["plain"],
    }


def _autocast(run: Run, device: torch.device) -> Any:
    # The backward pass repeats the types of the forward pass, inside the context or outside.
    with torch.autocast(device.type, torch.bfloat16):
        return run()


def _mec_case(n: int, d: int) -> Case:
    return Case("mec", f"n={n} d={d} order 4", partial(mec, n, d))


def _corinfomax_case(n: int, d: int) -> Case:
    return Case("corinfomax", f"n={n} d={d}", partial(corinfomax, n, d))


# Of each loss a function (sizes, device, dtype) -> {"ours": run, "plain": run}.


def mec(n: int, d: int, device: torch.device, dtype: torch.dtype) -> dict[str, Run]:
    """MEC on (n, d), order 4, lamda_inv at the end of its schedule."""
    z1, z2, p1, p2 = _normal([(n, d)] * 4, device, dtype)
    return {
        name: partial(
            _forward_backward, partial(loss, z1, z2, p1.detach(), p2.detach(), n / 32), [z1, z2]
        )
        for name, loss in (("ours", mec_loss_func), ("plain", plain.mec))
    }


def corinfomax(n: int, d: int, device: torch.device, dtype: torch.dtype) -> dict[str, Run]:
    """CorInfoMax on (n, d): float64 inside, each side with a state of its own."""
    z = _normal([(n, d)] * 2, device, dtype)
    ours = CorInfoMaxLoss(d, ALPHA).to(device)
    theirs = plain.CorInfoMax(d, ALPHA, device=device)
    return {
        name: partial(_forward_backward, partial(loss, *z), z)
        for name, loss in (("ours", ours), ("plain", theirs))
    }


def twist(n: int, classes: int, device: torch.device, dtype: torch.dtype) -> dict[str, Run]:
    """TWIST on (n, classes), two views."""
    f = _normal([(n, classes)] * 2, device, dtype)
    return {
        name: partial(_forward_backward, partial(loss, *f), f)
        for name, loss in (("ours", twist_loss_func), ("plain", plain.twist))
    }


def twist_multicrop(
    n: int, classes: int, device: torch.device, dtype: torch.dtype
) -> dict[str, Run]:
    """TWIST on two large and six small crops."""
    f = _normal([(n, classes)] * 8, device, dtype)
    sides = (("ours", twist_multicrop_loss_func), ("plain", plain.twist_multicrop))
    return {name: partial(_forward_backward, partial(loss, f), f) for name, loss in sides}


def minent(
    n: int, heads: Sequence[int], device: torch.device, dtype: torch.dtype
) -> dict[str, Run]:
    """MinEnt's loss on the outputs (n, d) of all heads, two views."""
    g = _normal([(n, width) for width in (*heads, *heads)], device, dtype)
    views = g[: len(heads)], g[len(heads) :]
    sides = (("ours", minent_loss_func), ("plain", plain.minent))
    return {name: partial(_forward_backward, partial(loss, *views), g) for name, loss in sides}


def minent_heads(
    n: int,
    features_dim: int,
    hidden_dim: int,
    heads: Sequence[int],
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Run]:
    """MinEnt's heads of three layers on two views of n features, in training mode.

    The gradient goes to the features and to all parameters.
    """
    feats = _normal([(n, features_dim)] * 2, device, dtype)
    cotangents = [g.detach() for g in _normal([(n, width) for width in heads], device, dtype)]
    ours = MultiHead(features_dim, list(heads), hidden_dim, 3)
    theirs = plain.Heads(features_dim, heads, hidden_dim, 3)
    theirs.load_state_dict(ours.state_dict())
    return {
        name: partial(_heads, module.to(device, dtype), feats, cotangents)
        for name, module in (("ours", ours), ("plain", theirs))
    }


def _heads(module: torch.nn.Module, feats: list[Tensor], cotangents: list[Tensor]) -> Any:
    out = [g for view in feats for g in module(view)]
    inputs = [*feats, *module.parameters()]
    # Outputs are bfloat16 under autocast.
    wanted = [c.to(g.dtype) for c, g in zip(cotangents * len(feats), out, strict=True)]
    return out, torch.autograd.grad(out, inputs, wanted)[: len(feats)]


def _forward_backward(loss: Callable[[], Tensor], inputs: list[Tensor]) -> Any:
    value = loss()
    return [value], torch.autograd.grad(value, inputs)


def _normal(
    shapes: Sequence[tuple[int, int]], device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return [x.to(device, dtype).requires_grad_() for x in drawn]
