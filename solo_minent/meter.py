"""Means of what a run logs, over an epoch and over the processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from solo_minent.distributed import global_sum, is_distributed, world_size


class Meter:
    """Means over what was added since the last `reset`, of all processes.

    Sums stay float64 on the device that a value lies on; nothing waits for a device, and processes
    talk to each other in `means` alone. Its state makes an interrupted epoch's means those of a
    whole one, bit for bit.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self._sums: dict[tuple[str, ...], Tensor] = {}
        self._weights: dict[tuple[str, ...], tuple[float, ...]] = {}  # of each name
        self._earlier: dict[str, tuple[float, float]] = {}  # of an interrupted epoch

    def add(self, values: Mapping[str, Tensor | float], weight: float = 1.0) -> None:
        """Takes scalars in, each with this weight."""
        tensors = {name: torch.as_tensor(value).detach() for name, value in values.items()}
        for device in {tensor.device for tensor in tensors.values()}:
            names = tuple(name for name, tensor in tensors.items() if tensor.device == device)
            if names not in self._sums:
                self._start(names, device)
            new = torch.stack([tensors[name].reshape(()).double() for name in names])
            self._sums[names].add_(new, alpha=weight)
            self._weights[names] = tuple(own + weight for own in self._weights[names])

    def _start(self, names: tuple[str, ...], device: torch.device) -> None:
        """From zero, or where an interrupted epoch was: the same additions in the same order."""
        sums, weights = zip(*(self._earlier.pop(name, (0.0, 0.0)) for name in names), strict=True)
        self._sums[names] = torch.tensor(sums, dtype=torch.float64, device=device)
        self._weights[names] = weights

    def kept(self) -> tuple[dict, dict, dict]:
        """For `put_back`, to forget what is added from now on; waits for no device."""
        sums = {names: own.clone() for names, own in self._sums.items()}
        return sums, dict(self._weights), dict(self._earlier)

    def put_back(self, kept: tuple[dict, dict, dict]) -> None:
        """As it was when it gave out `kept`, which may be put back once."""
        self._sums, self._weights, self._earlier = kept

    def means(self, device: torch.device) -> dict[str, float]:
        """The mean of each name, the same on every process; a name without weight is left out.

        A process need not have every name: its share of the validation may be all corrupt.

        Args:
            device: on which processes exchange tensors.
        """
        own = self.rank_state()
        names = _all_names(own)
        if not names:
            return {}
        pairs = [own.get(name, (0.0, 0.0)) for name in names]
        totals = global_sum(torch.tensor(pairs, dtype=torch.float64, device=device)).tolist()
        named = zip(names, totals, strict=True)
        return {name: total / weight for name, (total, weight) in named if weight}

    def rank_state(self) -> dict[str, tuple[float, float]]:
        """(sum, weight) of each name, of this process."""
        state = dict(self._earlier)
        for names, sums in self._sums.items():
            for name, total, weight in zip(names, sums.tolist(), self._weights[names], strict=True):
                if name in state:  # beside other names as well
                    total, weight = state[name][0] + total, state[name][1] + weight
                state[name] = (total, weight)
        return state

    def load_rank_state(self, state: Mapping[str, tuple[float, float]]) -> None:
        """Goes on from a `rank_state`."""
        self.reset()
        self._earlier = dict(state)


def _all_names(own: Iterable[str]) -> list[str]:
    """The names of all processes, in the same order on each."""
    if not is_distributed():
        return sorted(own)
    names: list[list[str]] = [[]] * world_size()
    dist.all_gather_object(names, list(own))
    return sorted(set().union(*names))
