"""Turns, ratios and peaks of memory."""

import pytest
import torch

from solo_minent.bench.pairs import in_turn, peak_memory, ratio

CPU = torch.device("cpu")


def test_sides_take_turns_and_every_other_turn_goes_backwards():
    calls = []
    sides = {name: lambda name=name: calls.append(name) for name in "ab"}
    found = in_turn(sides, pairs=3, seconds=1e-9)
    assert {name: len(seconds) for name, seconds in found.items()} == {"a": 3, "b": 3}
    assert "".join(calls[-6:]) == "abbaab"
    slow = in_turn({"a": lambda: calls.append("slow")}, pairs=2, seconds=1e-9)
    assert calls.count("slow") == 2 + 1 + 2 and len(slow["a"]) == 2
    assert all(second > 0 for seconds in found.values() for second in seconds)


def test_a_slow_side_takes_longer():
    x = torch.randn(200, 200)
    found = in_turn({"one": lambda: x @ x, "many": lambda: [x @ x for _ in range(50)]}, 3, 1e-3)
    assert min(found["many"]) > max(found["one"])


def test_a_ratio_is_of_each_pair_then_the_median():
    found = ratio([1.0, 2.0, 4.0], [3.0, 2.0, 20.0])
    assert (found.value, found.low, found.high, found.pairs) == (3.0, 1.0, 5.0, 3)
    with pytest.raises(ValueError):
        ratio([1.0], [1.0, 2.0])


def test_the_peak_is_what_is_held_at_once():
    x = torch.zeros(256, 1024)  # 1 MiB

    def one_after_the_other():
        for _ in range(4):
            x + 1

    def together():
        return [x + 1 for _ in range(4)]

    assert peak_memory(one_after_the_other, CPU) == pytest.approx(x.nbytes, rel=0.01)
    assert peak_memory(together, CPU) == pytest.approx(4 * x.nbytes, rel=0.01)


@pytest.fixture
def gpu(monkeypatch):
    """What an accelerator would be asked, in order; it holds 100 bytes, at most 350."""
    asked = []
    answers = {
        "is_available": True,
        "synchronize": None,
        "memory_allocated": 100,
        "reset_peak_memory_stats": None,
        "max_memory_allocated": 350,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(
            torch.cuda, name, lambda *_, name=name, answer=answer: asked.append(name) or answer
        )
    return asked


def test_on_a_gpu_the_peak_is_what_a_second_run_adds(gpu):
    assert peak_memory(lambda: gpu.append("run"), torch.device("cuda")) == 250
    first = ["run", "synchronize", "memory_allocated", "reset_peak_memory_stats"]
    assert gpu == [*first, "run", "synchronize", "max_memory_allocated"]


def test_the_clock_of_a_gpu_starts_and_ends_when_it_is_done(gpu):
    in_turn({"a": lambda: gpu.append("run")}, pairs=1, seconds=1e-9)
    assert gpu[-5:] == ["is_available", "synchronize", "run", "is_available", "synchronize"]
