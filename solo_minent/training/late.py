"""Numbers that are read a step after they were made: none waits for the step under way."""

from __future__ import annotations

import torch
from torch import Tensor


class Late:
    """A vector on its way from the device to the process.

    On a GPU the copy goes into pinned memory behind what is queued there. Read in the step after,
    it waits for the device to finish the step before at most, while the next one is queued.
    """

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.float64)
        self._there: torch.cuda.Event | None = None
        self._length = 0

    def send(self, values: Tensor) -> None:
        """values: float64 (n,); what was sent before is overwritten."""
        if self._memory.numel() < values.numel():
            pinned = values.is_cuda
            self._memory = torch.empty(values.numel(), dtype=torch.float64, pin_memory=pinned)
            self._numbers = self._memory.numpy()  # the same memory
        self._length = values.numel()
        self._memory[: self._length].copy_(values, non_blocking=True)
        if values.is_cuda:
            self._there = self._there or torch.cuda.Event()
            self._there.record()

    def read(self) -> list[float]:
        """What was sent last."""
        if self._there is not None:
            self._there.synchronize()
        return self._numbers[: self._length].tolist()
