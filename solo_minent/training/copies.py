"""Batches on their way to a GPU, while it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor


def beside_computing(copy: Callable[[], Any], device: torch.device) -> Any:
    """The batch that `copy` makes on a device; to a CUDA GPU, copies go on a stream of their own.

    A step reads nothing back, so that the host is ahead of the GPU: the next batch is copied while
    this one is computed. From other than pinned memory the host waits for the copy, not the GPU.

    Args:
        copy: moves a batch (lists and tuples of tensors) to the device, and waits for nothing.
        device: where to.
    """
    if device.type != "cuda":
        return copy()
    copying, computing = _copying(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(copying):
        batch = copy()
    computing.wait_stream(copying)
    for tensor in _tensors(batch):
        if tensor.is_cuda:
            # Its memory is the other stream's, which may not have it back before it has been read.
            tensor.record_stream(computing)
    return batch


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, list | tuple):
        for part in batch:
            yield from _tensors(part)


@cache  # one a device: each keeps freed memory for itself
def _copying(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
