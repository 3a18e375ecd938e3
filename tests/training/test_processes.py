"""What the processes of a run see of each other, and what is said when one is lost."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from datetime import timedelta

import psutil
import pytest
import torch.distributed as dist

from solo_minent import distributed
from solo_minent.distributed import Agreement
from solo_minent.errors import UserError
from solo_minent.files import place
from solo_minent.training import processes
from solo_minent.training.processes import FAILED, Member, Together

NCCL = "NCCL error in: NCCLUtils.cpp:94, invalid usage\nncclInvalidUsage: this is an error\n"
MESH = "Gloo connectFullMesh failed with [transport/tcp/pair.cc:144] no error"
CLOSED = "[pair.cc:534] Connection closed by peer [127.0.0.1]:9"
TIMEOUT = "[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv"


@pytest.fixture
def child():
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
    )
    yield process
    process.kill()
    process.wait(timeout=60)


@pytest.fixture
def joined(tiny_run, monkeypatch):
    """`joined(*others)`: a `Together` of the first process, after its setup with the others."""

    def join(*others: Member) -> Together:
        def all_gather_object(members, me):
            members[:] = [me, *others]

        monkeypatch.setattr(processes, "is_distributed", lambda: True)
        monkeypatch.setattr(processes, "world_size", lambda: 1 + len(others))
        monkeypatch.setattr(dist, "all_gather_object", all_gather_object)
        together = Together(tiny_run("minent"))
        monkeypatch.setattr(together, "_watch", lambda: None)
        monkeypatch.setattr(together, "_end_the_rest", lambda: None)
        together.setup(None, None, "fit")
        return together

    return join


def here(pid: int) -> Member:
    return Member(place(), socket.gethostname(), pid)


def test_a_clock_that_is_set_ends_no_process(joined, child, monkeypatch):
    together = joined(here(child.pid))
    boot_time = psutil._pslinux.boot_time()
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: boot_time + 1)
    assert together._ended() == []
    child.kill()
    # A zombie, then nothing at all.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert together._ended() == [1]
    child.wait(timeout=60)
    assert together._ended() == [1]


def test_a_process_that_ends_before_it_is_looked_for_has_ended(joined, child):
    child.kill()
    child.wait(timeout=60)
    assert joined(here(child.pid))._ended() == [1]


def test_a_number_of_another_container_on_this_host_says_nothing(joined, child):
    elsewhere = Member("0badf00d", socket.gethostname(), child.pid)
    child.kill()
    child.wait(timeout=60)
    assert joined(elsewhere)._ended() == []


def said(together: Together, error: Exception) -> str:
    with pytest.raises(UserError) as caught:
        together._end(error)
    return str(caught.value)


def test_what_is_lost_is_named_with_the_error_where_no_end_is_seen(joined, child):
    far = Member("0badf00d", "far", 7)
    both = joined(here(child.pid), far)
    assert said(both, RuntimeError(CLOSED)).startswith(
        f"a process of the run has ended: one on another machine ({CLOSED}). All"
    )
    beside = joined(here(child.pid))
    message = said(beside, dist.DistBackendError(NCCL))
    assert message.startswith(f"a process of the run does not answer: rank 1 (process {child.pid}")
    assert "(NCCL error in: NCCLUtils.cpp:94, invalid usage). All" in message
    assert "minutes" not in message and "this is an error" not in message
    assert f"in {beside.timeout:g} minutes (process_timeout). All" in said(
        beside, RuntimeError(TIMEOUT)
    )
    child.kill()
    message = said(beside, RuntimeError(CLOSED))
    assert f"has ended: rank 1 (process {child.pid} on " in message and CLOSED not in message


def test_a_torch_without_the_name_of_the_store_leaves_the_word_to_the_first(
    joined, child, monkeypatch
):
    monkeypatch.delattr(dist.distributed_c10d, "_get_default_store")
    together = joined(here(child.pid))
    assert together._speaks()
    monkeypatch.setattr(processes, "rank", lambda: 1)
    together.processes = {0: psutil.Process(child.pid)}
    assert not together._speaks()


def test_who_does_not_come_says_so_in_minutes_only_where_it_waited(tiny_run, monkeypatch):
    together = Together(tiny_run("minent"))
    assert f"do not come together: {MESH}. Each" in said(together, RuntimeError(MESH))
    waited = f"do not come together: {together.timeout:g} minutes (process_timeout) were waited."
    assert waited in said(together, RuntimeError(TIMEOUT))
    monkeypatch.setenv("LOCAL_RANK", "1")  # once a node
    with pytest.raises(SystemExit) as end:
        together._end(RuntimeError(TIMEOUT))
    assert end.value.code == FAILED


def test_gloo_without_a_network_names_the_interface(joined, child, monkeypatch):
    def new_group(**options):
        raise RuntimeError(f"{MESH}\nsecond line")

    with monkeypatch.context() as patch:
        patch.setattr(distributed, "is_distributed", lambda: True)
        patch.setattr(dist, "new_group", new_group)
        with pytest.raises(UserError, match="GLOO_SOCKET_IFNAME=eth0") as caught:
            Agreement(timedelta(minutes=1))
    assert MESH in str(caught.value) and "second line" not in str(caught.value)
    together = joined(here(child.pid))
    assert together._end(caught.value) is None  # it is left as it is
    child.kill()
    assert "has ended: rank 1" in said(together, caught.value)
