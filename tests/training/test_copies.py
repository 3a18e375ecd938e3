"""Which stream does what when a batch goes to a GPU; the streams are stand-ins."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from solo_minent.host.module import MethodModule
from solo_minent.training import copies
from solo_minent.training.copies import beside_computing


class OnGPU(torch.Tensor):
    """Says that it is on a GPU, and who reads it."""

    is_cuda = True

    def record_stream(self, stream):
        stream.done.append("read here")


@pytest.fixture
def streams(monkeypatch):
    """What each of both streams was told, in order."""
    done = []
    computing = SimpleNamespace(done=done)
    computing.wait_stream = lambda other: done.append(f"waits for {other.name}")

    @contextlib.contextmanager
    def into(stream):
        done.append(f"into {stream.name}")
        yield
        done.append("back")

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    monkeypatch.setattr(torch.cuda, "stream", into)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: SimpleNamespace(name="copies"))
    copies._copying.cache_clear()
    yield done
    copies._copying.cache_clear()


def test_the_computing_stream_waits_for_the_copy_and_keeps_its_memory(streams):
    view = torch.zeros(2).as_subclass(OnGPU)
    batch = [torch.arange(2), [view, view], (view,)]

    def copy():
        streams.append("copy")
        return batch

    assert beside_computing(copy, torch.device("cuda", 0)) is batch
    moved = ["into copies", "copy", "back", "waits for copies"]
    assert streams == moved + 3 * ["read here"]  # the indexes are on the CPU


def test_one_stream_a_device(streams):
    first, second = (copies._copying(torch.device("cuda", 0)) for _ in range(2))
    assert first is second and first is not copies._copying(torch.device("cuda", 1))


def test_elsewhere_there_are_no_streams(streams):
    assert beside_computing(lambda: "batch", torch.device("cpu")) == "batch"
    assert not streams


def test_training_copies_its_batches_so(streams):
    class Lightning:
        def transfer_batch_to_device(self, batch, device, index):
            streams.append(f"copy {index}")
            return batch

    class Module(MethodModule, Lightning):
        def __init__(self):
            pass

    batch = [torch.zeros(2).as_subclass(OnGPU)]
    assert Module().transfer_batch_to_device(batch, torch.device("cuda", 0), 0) is batch
    assert streams == ["into copies", "copy 0", "back", "waits for copies", "read here"]
