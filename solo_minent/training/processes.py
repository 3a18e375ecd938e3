"""The processes of a run end together: where one dies or hangs, with one message."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from types import TracebackType
from typing import Any, NamedTuple

import psutil
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from solo_minent.distributed import is_distributed, rank, world_size
from solo_minent.errors import UserError
from solo_minent.files import place
from solo_minent.machine import is_first_of_node
from solo_minent.schema import RunConfig
from solo_minent.training.stopping import Stopped

FAILED = 2  # exit status of a process that leaves the message to another one
POLL_S = 0.5
# Until a process that has to end is ended by force: its own error needs time to be printed.
GRACE_S = 5.0
# What gloo and TCPStore say in a plain RuntimeError; NCCL's errors are DistError.
TIMED_OUT = ("timed out", "timeout")
CLOSED = ("gloo", "connection closed", "connection reset", "broken pipe", "socket")


class Member(NamedTuple):
    """One process of the run: its number names it in its place only, its host is for people."""

    place: str
    host: str
    pid: int


class Together(Callback):
    """Around a fit, and first of its callbacks: ends this process when another one has ended.

    Mostly a collective fails by itself (gloo notices a closed connection; any of them a
    `process_timeout`). Where none is under way, or NCCL waits, a thread that looks at the processes
    of this machine ends the process `GRACE_S` later. The first process that finds an error says
    it; the others exit without a word. What Lightning has for it kills the first process, too,
    without a message.

    Args:
        config: of the run.

    Raises:
        UserError: on leaving, another process has ended or does not answer.
    """

    def __init__(self, config: RunConfig) -> None:
        self.timeout = config.process_timeout
        self.errors = f"solo_minent/errors/{config.run_dir}"  # their number, in the store
        self.members: list[Member] = []
        # Those of this place, None for one that has ended; taken once: numbers come again.
        self.processes: dict[int, psutil.Process | None] = {}
        self.sigterm: Any = None  # what answered to it, while nothing does
        self._done = threading.Event()

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if not is_distributed() or self.members:
            return
        me = Member(place(), socket.gethostname(), os.getpid())
        members = [me] * world_size()
        dist.all_gather_object(members, me)
        self.members = members
        near = {
            number: member.pid for number, member in enumerate(members) if member.place == me.place
        }
        self.processes = {n: _process(pid) for n, pid in near.items() if n != rank()}
        _without_lightnings_observer()
        threading.Thread(target=self._watch, name="processes-of-the-run", daemon=True).start()

    def on_exception(
        self, trainer: Trainer, module: LightningModule, exception: BaseException
    ) -> None:
        self._done.set()  # the main thread has noticed

    def hold_on(self) -> Callback:
        """To be put behind all callbacks: torchrun's SIGTERM to the rest leaves time to say why."""
        return _Deaf(self)

    def __enter__(self) -> Together:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._end(error)
        finally:
            if self.sigterm is not None:
                signal.signal(signal.SIGTERM, self.sigterm)
                self.sigterm = None

    def _end(self, error: BaseException | None) -> None:
        self._done.set()
        lost = _communication(error)
        if not self.members:
            if lost is None or isinstance(error, UserError):
                return
            if not (self._speaks() if is_distributed() else is_first_of_node()):
                raise SystemExit(FAILED) from None
            waited = f"{self.timeout:g} minutes (process_timeout) were waited"
            raise UserError(
                "the processes of the run do not come together: "
                f"{waited if _timed_out(lost) else _first_line(lost)}. Each one starts at about "
                "the same time and reaches the first. See what the others print, then start them "
                "all again."
            ) from error
        if error is None:
            try:
                dist.barrier()  # the first process may still write; it may fail at that
            except RuntimeError as failed:
                error, lost = failed, _communication(failed)
        if not isinstance(error, Exception) or isinstance(error, Stopped):
            return  # what ends all of them; Ctrl-C
        message = self._lost(lost) if lost else None
        if isinstance(error, UserError) and not self._ended():
            message = None  # it knows better
        first = self._speaks()
        self._end_the_rest()
        if not first:
            raise SystemExit(FAILED) from None
        if message is not None:
            raise UserError(message) from error

    # Who is there.

    def _others(self) -> dict[int, psutil.Process | None]:
        """The other processes on this machine by rank, None for one that has ended."""
        return {n: None if _has_ended(each) else each for n, each in self.processes.items()}

    def _ended(self) -> list[int]:
        return [number for number, process in self._others().items() if process is None]

    def _hanging(self) -> list[int]:
        """Those that are stopped (SIGSTOP, a debugger)."""
        return [number for number, process in self._others().items() if _is_stopped(process)]

    # What is said, and by whom.

    def _lost(self, error: RuntimeError | None = None) -> str:
        """What happened to the others, as far as it can be seen from here and from an error."""
        timed_out = error is not None and _timed_out(error)
        deadline = time.monotonic() + (0 if timed_out else 2)  # a dead process goes in steps
        while not (ended := self._ended()) and time.monotonic() < deadline:
            time.sleep(0.05)
        all_here = len(self.processes) + 1 == len(self.members)
        if ended:
            what, who = "has ended", self._names(ended)
        elif timed_out or all_here:
            hanging = self._hanging() or [n for n in range(len(self.members)) if n != rank()]
            what, who = "does not answer", self._names(hanging)
            if timed_out:
                who += f", in {self.timeout:g} minutes (process_timeout)"
        else:
            what, who = "has ended", "one on another machine"
        if error is not None and not ended and not timed_out:
            who += f" ({_first_line(error)})"
        return (
            f"a process of the run {what}: {who}. All processes train together, none goes on "
            "alone. The run continues from its last checkpoint with the same command."
        )

    def _names(self, numbers: list[int]) -> str:
        if len(numbers) > 4:
            return f"one of {len(numbers)} others"
        named = [(number, self.members[number]) for number in numbers]
        return " or ".join(f"rank {n} (process {m.pid} on {m.host})" for n, m in named)

    def _speaks(self) -> bool:
        """Whether this process is the first that has something to say.

        The store of the process group knows. torchrun keeps it, else the first process: where that
        one is lost, the first of the others speaks.
        """
        gone = {*self._ended(), *self._hanging()}
        counted: list[int] = []

        def count() -> None:
            try:
                store = dist.distributed_c10d._get_default_store()
                counted.append(store.add(self.errors, 1))
            except (RuntimeError, ValueError, AttributeError):  # no group; torch's own name
                pass

        with_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        if with_torchrun or 0 not in gone:
            asking = threading.Thread(target=count, daemon=True)
            asking.start()
            asking.join(GRACE_S)  # a first process on another machine may hang as well
            if counted:
                return counted[0] == 1
        here = {rank(), *self.processes} - gone
        return rank() == min(here) if self.members else is_first_of_node()

    def _end_the_rest(self) -> None:
        """The processes that this one started; a first process that hangs while this one ends."""
        others = [process for process in self._others().values() if process is not None]
        mine = [process for process in others if _parent_of(process) == os.getpid()]
        parent = [process for process in others if process.pid == os.getppid()]
        _, alive = psutil.wait_procs(mine, timeout=GRACE_S)
        for process in [*alive, *(each for each in parent if _is_stopped(each))]:
            process.kill()

    # While it runs.

    def _watch(self) -> None:
        while not self._done.wait(POLL_S):
            if not self._ended():
                continue
            message = self._lost()
            if self._done.wait(GRACE_S):
                return
            if self._speaks():
                print(f"error: {message}", file=sys.stderr, flush=True)
            self._end_the_rest()
            os._exit(FAILED)  # the main thread waits for a collective, or computes


class _Deaf(Callback):
    """Ignores SIGTERM from an error on until `Together` is left."""

    def __init__(self, together: Together) -> None:
        self.together = together

    def on_exception(
        self, trainer: Trainer, module: LightningModule, exception: BaseException
    ) -> None:
        main = threading.current_thread() is threading.main_thread()
        if main and self.together.members and not isinstance(exception, Stopped):
            self.together.sigterm = signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.Error:
        return None


def _has_ended(process: psutil.Process | None) -> bool:
    try:
        return (
            process is None
            or not process.is_running()  # nor is it another one of the same number
            or process.status() == psutil.STATUS_ZOMBIE
        )
    except psutil.Error as error:
        return isinstance(error, psutil.NoSuchProcess)


def _communication(error: BaseException | None) -> RuntimeError | None:
    """The error of a collective that failed because of another process, or of what lies between."""
    while error is not None:
        if isinstance(error, RuntimeError):
            text = str(error).lower()
            if isinstance(error, dist.DistError) or any(word in text for word in CLOSED):
                return error
        error = error.__cause__ or error.__context__
    return None


def _timed_out(error: RuntimeError) -> bool:
    return any(word in str(error).lower() for word in TIMED_OUT)


def _first_line(error: RuntimeError) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")


def _is_stopped(process: psutil.Process | None) -> bool:
    try:
        return process is not None and process.status() in (
            psutil.STATUS_STOPPED,
            psutil.STATUS_TRACING_STOP,
        )
    except psutil.Error:
        return False


def _parent_of(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.Error:
        return None


def _without_lightnings_observer() -> None:
    """Its thread kills the first process as soon as another one has failed, with no message."""
    for thread in threading.enumerate():
        if thread.name == "child-process-observer":
            watched: Any = thread
            watched._child_processes = []  # nothing to observe: it ends
