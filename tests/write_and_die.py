"""Writes files of a run in child processes that are killed, and says what can be read afterwards.

    write_and_die.py <folder> <how> <what>:<most> …

`how` is where a child is killed:

- calls: before, in the middle of and after each call of Python's that changes files;
- system: before and after each system call of the write (ptrace).

`what` is checkpoint, results, backbone or log; `most` bounds its kill points: the first, the last
and an even choice between them (0: all). Prints one JSON line a kill: what is read after it ("old",
"new" or what is wrong), whether something was left, what is read after the next write ("next") and
what else lies there then.
"""

import builtins
import ctypes
import io
import json
import mmap
import os
import signal
import sys
from pathlib import Path

import torch

from solo_minent.checkpoint import add_result, read_results, save_backbone
from solo_minent.checkpoint_io import read_checkpoint, save_checkpoint
from solo_minent.config import load_recipe
from solo_minent.training.callbacks import EpochLog

LOCK = ".results.json.lock"  # stays, empty
CHANGING = ("open", "mkdir", "chmod", "fsync", "replace", "unlink")


def network(version):
    torch.manual_seed(version)
    model = torch.nn.Sequential(torch.nn.Linear(24, 24), torch.nn.Linear(24, 24))
    model.register_buffer("version", torch.tensor(version))
    return model


def version_of(state):
    version = int(state["version"])
    wanted = network(version).state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[key], wanted[key]) for key in wanted)
    return version


class Checkpoint:
    name = "last.ckpt"

    def writer(self, path, version):
        model = network(version)
        state = {key: value.clone() for key, value in model.state_dict().items()}
        optimizer = torch.optim.Adam(model.parameters())
        model(torch.ones(1, 24)).sum().backward()
        optimizer.step()
        states = [optimizer.state_dict()]
        content = {"epoch": version, "state_dict": state, "optimizer_states": states}
        return lambda: save_checkpoint(content, path)

    def read(self, path):
        torch.load(path, weights_only=True)
        found = read_checkpoint(path)
        assert found["epoch"] == version_of(found["state_dict"])
        return found["epoch"]


class Results:
    name = "results.json"

    def writer(self, path, version):
        result = {"target": "a", "protocol": "knn", "top1": version, "more": [version] * 999}
        return lambda: add_result(path.parent, result)

    def read(self, path):
        (found,) = read_results(path.parent)
        assert found["more"] == [found["top1"]] * 999
        return found["top1"]


class Backbone:
    name = "backbone.safetensors"

    def writer(self, path, version):
        config, state = load_recipe("digits/mec"), network(version).state_dict()
        return lambda: save_backbone(path, state, config)

    def read(self, path):
        from safetensors.torch import load_file

        return version_of(load_file(path))


class Log:
    name = "log.csv"

    def writer(self, path, version):
        log = EpochLog(path, knn=None, lines=False)
        log.rows = [{"epoch": n, "loss": n + version} for n in range(50)]
        return lambda: log._add({"epoch": 50, "loss": 50 + version})

    def read(self, path):
        lines = path.read_text().splitlines()
        rows = [tuple(map(float, line.split(","))) for line in lines[1:]]
        (version,) = {loss - epoch for epoch, loss in rows}
        assert lines[0] == "epoch,loss" and len(rows) == 51
        return int(version)


class Killer:
    """Counts calls that change files, and kills the process at the one that is due."""

    def __init__(self, due, count):
        self.due, self.count = due, count

    def point(self):
        self.count[0] += 1
        if self.count[0] == self.due:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, function):
        def call(*args, **kwargs):
            self.point()
            result = function(*args, **kwargs)
            self.point()
            return result

        return call

    def install(self):
        real_open = io.open

        def opened(file, mode="r", *args, **kwargs):
            if set(mode) <= set("rbt"):
                return real_open(file, mode, *args, **kwargs)
            self.point()
            stream = real_open(file, mode, *args, **kwargs)
            self.point()
            return Stream(stream, self)

        builtins.open = io.open = opened
        for name in CHANGING:
            setattr(os, name, self.around(getattr(os, name)))


class Stream(io.IOBase):
    """A file for writing: each write has a kill point before, in its middle and behind."""

    def __init__(self, stream, killer):
        self.stream, self.killer = stream, killer

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, data):
        self.killer.point()
        half = len(data) // 2
        self.stream.write(data[:half])
        self.stream.flush()
        self.killer.point()
        self.stream.write(data[half:])
        self.stream.flush()
        self.killer.point()
        return len(data)

    def writable(self):
        return True

    def fileno(self):
        return self.stream.fileno()

    def flush(self):
        self.stream.flush()

    def close(self):
        super().close()
        self.stream.close()


def by_calls(write, due):
    """Runs `write` in a child that dies at the point `due`; the points that it came to."""
    count = memoryview(mmap.mmap(-1, 8)).cast("q")  # shared with the child
    child = os.fork()
    if not child:
        Killer(due, count).install()
        write()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status == 0 or os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    return count[0]


TRACEME, SYSCALL = 0, 24  # of <sys/ptrace.h>


def by_system(write, due):
    """The same; points are the entries into system calls and the returns from them."""
    ptrace = ctypes.CDLL(None).ptrace
    ptrace.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    ptrace.restype = ctypes.c_long
    child = os.fork()
    if not child:
        if ptrace(TRACEME, 0, None, None):
            os._exit(9)  # this system allows no tracing
        os.kill(os.getpid(), signal.SIGSTOP)
        write()
        os._exit(0)
    count, status = 0, os.waitpid(child, 0)[1]
    while os.WIFSTOPPED(status) and count != due:
        ptrace(SYSCALL, child, None, None)
        count, status = count + 1, os.waitpid(child, 0)[1]
    if os.WIFSTOPPED(status):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    else:
        assert status == 0, status
    return count


def chosen(points, most):
    """Numbers of kill points: the ends, where names change, are dense."""
    if not most or points <= most:
        return range(1, points + 1)
    ends = {*range(1, most // 4 + 1), *range(points + 1 - most // 4, points + 1)}
    between = sorted(set(range(1, points + 1)) - ends)
    step = len(between) / (most - len(ends))
    return sorted(ends | {between[int(n * step)] for n in range(most - len(ends))})


def kills(path, subject, run, most):
    """Kills one write after the other and yields what was found."""
    own = (path.name, LOCK)
    for version in (0, 1):  # the first write imports and compiles
        subject.writer(path, version)()
    points = run(subject.writer(path, 2), -1)
    assert subject.read(path) == 2
    for due in chosen(points, most):
        run(subject.writer(path, version := version + 2), due)
        try:
            found = subject.read(path)
            after = {version - 1: "old", version: "new"}.get(found, found)
        except Exception as error:
            after = f"{type(error).__name__}: {error}"
        left = any(entry.name not in own for entry in path.parent.iterdir())
        subject.writer(path, version + 1)()
        others = sorted(entry.name for entry in path.parent.iterdir() if entry.name not in own)
        following = "next" if subject.read(path) == version + 1 else "another"
        yield {"of": points, "after": after, "left": left, "next": following, "others": others}


def main(folder, how, *wanted):
    torch.set_num_threads(1)
    subjects = {c.__name__.lower(): c() for c in (Checkpoint, Results, Backbone, Log)}
    for what, most in (one.split(":") for one in wanted):
        subject = subjects[what]
        path = Path(folder) / what / subject.name
        for found in kills(path, subject, {"calls": by_calls, "system": by_system}[how], int(most)):
            print(json.dumps({"what": what, **found}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
