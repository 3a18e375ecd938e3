"""Signals: a run saves at the next step, says how it goes on, and ends as if never stopped."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file

import solo_minent.pretrain
from solo_minent.cli import main
from solo_minent.cli.stopped import INTERRUPTED, REQUEUE, end
from solo_minent.pretrain import pretrain
from solo_minent.training.stopping import ASKING, Signals, Stopped

SCRIPTS = Path(__file__).parents[2] / "scripts"
LONG = 150  # seconds; a machine may be busy
RUN = [
    "digits/minent",
    "max_epochs=6",
    "data.num_workers=1",
    "data.train_images=160",
    "data.val_images=80",
    "optimizer.batch_size=32",
    "backbone.kwargs.channels=[8,16,16,16]",
    "method_kwargs.heads=[16,8]",
    "method_kwargs.hidden_dim=32",
    "evaluation.knn_every=3",
    "checkpoint.every_steps=1",
    "accelerator=cpu",
]
TWO = ["devices=2", "optimizer.batch_size=16"]  # processes: the same global batch
PRETRAIN = [sys.executable, "-m", "solo_minent", "pretrain", "--recipe", *RUN]
LAUNCHERS = ("SLURM_", "TORCHELASTIC_", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_", "NODE_RANK")


def environment(**variables):
    """Of a process that no launcher started, but for what the variables say."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHERS)}
    python = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPTS.parent)}
    return {**clean, **python, **variables}


class Process:
    """A command in a session of its own, of which nothing is left when the test is done."""

    def __init__(self, command, folder, **variables):
        self.command, self.folder = command, folder
        self.popen = subprocess.Popen(
            command,
            cwd=folder,
            env=environment(**variables),
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def started_training(self):
        """Waits until the first step is saved."""
        last = checkpoint(self.folder)
        end = time.monotonic() + LONG
        while not last.exists():
            assert self.popen.poll() is None and time.monotonic() < end, self.popen.stdout.read()
            time.sleep(0.01)
        return self

    def send(self, signum, group=False):
        """Sends a signal as `kill PID` does, or to all processes as a terminal does."""
        (os.killpg if group else os.kill)(self.popen.pid, signum)
        return self

    def ended(self):
        """(exit status, output) of a process that leaves no other one behind."""
        output, _ = self.popen.communicate(timeout=LONG)
        end = time.monotonic() + 30  # the others of a run that is complete may end a little later
        while self._group_lives():
            assert time.monotonic() < end, "a process is left"
            time.sleep(0.05)
        # torch 2.10 says on the screen whom a process is connected to.
        lines = [line for line in output.splitlines(True) if not line.startswith("[Gloo] ")]
        return self.popen.returncode, "".join(lines)

    def _group_lives(self):
        try:
            os.killpg(self.popen.pid, 0)
        except ProcessLookupError:
            return False
        return True


@pytest.fixture
def start(tmp_path):
    """`start(command, **environment)`: a Process that works in tmp_path."""
    started = []

    def go(command, **variables):
        started.append(Process(command, tmp_path, **variables))
        return started[-1]

    yield go
    for process in started:
        try:
            os.killpg(process.popen.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        process.popen.communicate(timeout=LONG)


def checkpoint(folder):
    return folder / "runs/digits/minent/default/checkpoints/last.ckpt"


def steps(folder):
    return torch.load(checkpoint(folder), weights_only=True)["global_step"]


def assert_same_run(folder, other):
    """Two folders hold the same training, bit for bit."""
    ours, theirs = (torch.load(checkpoint(f), weights_only=True) for f in (folder, other))
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "global_step"):
        assert_same(ours[key], theirs[key], key)
    logs = [(checkpoint(f).parents[1] / "log.csv").read_bytes() for f in (folder, other)]
    assert logs[0] == logs[1]
    # Not the bytes: safetensors writes the entries of its header in any order.
    a, b = (load_file(checkpoint(f).parents[1] / "backbone.safetensors") for f in (folder, other))
    assert_same(a, b, "backbone")


def assert_same(a, b, where):
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    else:
        assert a == b or (a != a and b != b), where


def undisturbed(folder, *overrides):
    done = subprocess.run(
        [*PRETRAIN, *overrides],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=LONG,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folder of the run that nothing stopped, in one process."""
    return undisturbed(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def whole_of_two(tmp_path_factory):
    """The same in two processes."""
    return undisturbed(tmp_path_factory.mktemp("whole_of_two"), *TWO)


def assert_stopped(output, folder, then):
    """One line says where the run stopped, and how it goes on."""
    said = [line for line in output.splitlines() if line.startswith("stopped")]
    assert said == [f"stopped after step {steps(folder)}, saved; {then}"], output
    assert "Traceback" not in output and "Error" not in output, output
    assert 1 <= steps(folder) < 30  # of 6 epochs with 5 steps
    assert not (checkpoint(folder).parents[1] / "backbone.safetensors").exists()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_saves_at_the_next_step_and_asks_for_a_requeue(name, start, whole, tmp_path):
    status, output = start(PRETRAIN).started_training().send(getattr(signal, name)).ended()
    assert status == REQUEUE == os.EX_TEMPFAIL
    command = shlex.join([Path(sys.executable).name, *PRETRAIN[1:]])
    assert f"stopping: {name}, the run saves at the next step; Ctrl-C stops at once\n" in output
    assert re.search(rf"continues the run: \S*{re.escape(command)}\n", output)
    then = output.split("saved; ")[1].splitlines()[0]
    assert_stopped(output, tmp_path, then)
    if name == "SIGUSR1":  # goes on under Slurm below
        return
    status, output = start(PRETRAIN).ended()
    assert status == 0 and "continuing from" in output
    assert_same_run(tmp_path, whole)


def test_ctrl_c_saves_and_prints_the_command_that_continues(start, whole, tmp_path):
    # From a terminal all processes get it, those of the loader as well.
    script = shutil.which("solo-minent", path=Path(sys.executable).parent)
    command = [script, *PRETRAIN[3:]]
    status, output = start(command).started_training().send(signal.SIGINT, group=True).ended()
    assert status == INTERRUPTED == 130
    assert "stopping: Ctrl-C, the run saves at the next step; Ctrl-C again stops at once" in output
    then = output.split("saved; ")[1].splitlines()[0]
    assert_stopped(output, tmp_path, then)
    printed = shlex.split(then.partition("the same command continues the run: ")[2])
    assert Path(printed[0]).name == "solo-minent" and printed[1:] == command[1:]
    status, output = start([command[0], *printed[1:]]).ended()
    assert status == 0 and "continuing from" in output
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize(
    ("signum", "group", "status"),
    [(signal.SIGTERM, False, REQUEUE), (signal.SIGINT, True, INTERRUPTED)],
    ids=["SIGTERM to the first", "Ctrl-C to all"],
)
def test_two_processes_stop_at_the_same_step(signum, group, status, start, whole_of_two, tmp_path):
    ended = start([*PRETRAIN, *TWO]).started_training().send(signum, group).ended()
    assert ended[0] == status, ended[1]
    assert ended[1].count("stopping: ") == 1
    assert_stopped(ended[1], tmp_path, ended[1].split("saved; ")[1].splitlines()[0])
    if group:
        return
    status, output = start([*PRETRAIN, *TWO]).ended()
    assert status == 0, output
    assert_same_run(tmp_path, whole_of_two)


def test_torchrun_stops_and_the_script_asks_for_a_requeue(start, tmp_path):
    command = ["bash", str(SCRIPTS / "torchrun.sh"), *RUN, "optimizer.batch_size=16"]
    # The module that the torchrun command runs, of this Python.
    torchrun = tmp_path / "torchrun"
    torchrun.write_text(f'#!/bin/sh\nexec {sys.executable} -m torch.distributed.run "$@"\n')
    torchrun.chmod(0o755)
    asked = {"GPUS": "2", "TORCHRUN": str(torchrun), "MASTER_PORT": str(free_port())}
    status, output = start(command, **asked).started_training().send(signal.SIGTERM).ended()
    assert status == REQUEUE, output
    assert f"stopped after step {steps(tmp_path)}, saved; the same torchrun command" in output
    assert output.count("stopped after step") == 1


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


# Slurm, with its variables and a program in place of scontrol.

JOB = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NAME": "solo-minent",
    "SLURM_NTASKS": "1",
    "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_NNODES": "1",
    "SLURM_NODELIST": "127.0.0.1",
    "SLURM_NODEID": "0",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}


@pytest.fixture
def scontrol(tmp_path):
    """`scontrol(then)`: PATH with a scontrol that notes its calls and does `then`; `.calls()`."""
    folder, calls = tmp_path / "slurm", tmp_path / "scontrol.txt"

    def install(then="exit 0"):
        folder.mkdir(exist_ok=True)
        program = folder / "scontrol"
        program.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n{then}\n')
        program.chmod(0o755)
        return f"{folder}:{os.environ['PATH']}"

    install.calls = lambda: calls.read_text().splitlines() if calls.exists() else []
    return install


def test_a_slurm_job_saves_requeues_itself_once_and_continues(start, scontrol, whole, tmp_path):
    job = {**JOB, "PATH": scontrol()}
    status, output = start(PRETRAIN, **job).started_training().send(signal.SIGUSR1).ended()
    assert status == REQUEUE, output
    assert_stopped(output, tmp_path, "job 4711 goes back into the queue")
    assert scontrol.calls() == ["requeue 4711"]
    assert not list(tmp_path.rglob("hpc_ckpt*"))  # Lightning's, of the middle of a step
    status, output = start(PRETRAIN, **job, SLURM_RESTART_COUNT="1").ended()
    assert status == 0 and "continuing from" in output
    assert scontrol.calls() == ["requeue 4711"]
    assert_same_run(tmp_path, whole)


def test_slurm_tasks_stop_at_the_same_step(start, scontrol, whole_of_two, tmp_path):
    both = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "PATH": scontrol()}

    def tasks(**variables):
        port = str(free_port())
        for rank in "01":
            own = {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "MASTER_PORT": port}
            yield start([*PRETRAIN, *TWO], **{**JOB, **both, **own, **variables})

    first, second = tasks()
    first.started_training()
    second.send(signal.SIGUSR1)  # Slurm warns all; one is enough
    status, output = first.ended()
    assert status == REQUEUE, output
    assert_stopped(output, tmp_path, "job 4711 goes back into the queue")
    # srun --kill-on-bad-exit would end the first task before it has called scontrol.
    assert second.ended() == (0, "")
    assert scontrol.calls() == ["requeue 4711"]
    for task in list(tasks(SLURM_RESTART_COUNT="1")):
        status, output = task.ended()
        assert status == 0, output
    assert_same_run(tmp_path, whole_of_two)


@pytest.fixture
def slurm_job(monkeypatch):
    for name in list(os.environ):
        if name.startswith(LAUNCHERS):
            monkeypatch.delenv(name)
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "then", "calls", "said"),
    [
        ({}, "exit 0", ["requeue 4711"], None),
        (
            {"SLURM_ARRAY_JOB_ID": "4700", "SLURM_ARRAY_TASK_ID": "11"},
            "exit 0",
            ["requeue 4700_11"],
            None,
        ),
        (
            {},
            "echo 'slurm_requeue error: Requested operation is disabled' >&2; exit 1",
            ["requeue 4711"],
            "job 4711 cannot be put back into the queue (scontrol: slurm_requeue error: Requested "
            "operation is disabled); submitted again it continues the run",
        ),
        (
            {"SLURM_JOB_ID": "4711; reboot"},
            "exit 0",
            [],
            "job 4711; reboot cannot be put back into the queue (that is no number of a job); "
            "submitted again it continues the run",
        ),
    ],
    ids=["job", "array", "refused", "no number"],
)
def test_slurm_gets_the_number_of_the_job_and_may_refuse(
    variables, then, calls, said, slurm_job, scontrol, monkeypatch, capfd
):
    monkeypatch.setenv("PATH", scontrol(then))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert end(signal.SIGUSR1, 7) == REQUEUE
    first, *others = capfd.readouterr().err.splitlines()
    assert first.startswith("stopped after step 7, saved; job 47")
    assert scontrol.calls() == calls and others == ([said] if said else [])


def test_a_missing_scontrol_is_one_line(slurm_job, monkeypatch, capfd, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert end(signal.SIGUSR1, 7) == REQUEUE
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 2 and "No such file or directory: 'scontrol'" in said[1]


@pytest.mark.parametrize(
    ("variables", "signum", "status"),
    [
        ({}, signal.SIGTERM, REQUEUE),  # scancel, or a preemption after which Slurm requeues
        ({}, signal.SIGINT, INTERRUPTED),
        ({"SLURM_JOB_NAME": "interactive"}, signal.SIGUSR1, REQUEUE),
        ({"SLURM_PROCID": "1"}, signal.SIGUSR1, 0),
    ],
    ids=["SIGTERM", "Ctrl-C", "interactive", "second task"],
)
def test_nothing_else_requeues(variables, signum, status, slurm_job, scontrol, monkeypatch, capfd):
    monkeypatch.setenv("PATH", scontrol())
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert end(signum, 7) == status
    assert scontrol.calls() == []
    first = variables.get("SLURM_PROCID") is None
    assert capfd.readouterr().err.count("continues the run") == first


# In one process: a signal at an exact place.


class Sends(Callback):
    """Sends signals to this process from one hook, when its n-th call comes."""

    def __init__(self, hook, nth=1, signals=(signal.SIGTERM,)):
        self.calls, self.handlers = 0, None

        def send(*_, **__):
            self.calls += 1
            if self.calls == nth:
                self.handlers = handlers()
                for signum in signals:
                    os.kill(os.getpid(), signum)

        setattr(self, hook, send)


def handlers():
    return [signal.getsignal(signum) for signum in ASKING]


@pytest.fixture
def disturbed(tiny_run, monkeypatch):
    """`disturbed(callback)`: the configuration of a run (2 epochs of 5 steps) that has it too."""

    def make(callback, *overrides):
        make_callbacks = solo_minent.pretrain._callbacks

        def with_it(*args, **options):
            signals, *others = make_callbacks(*args, **options)
            return [signals, callback, *others]

        monkeypatch.setattr(solo_minent.pretrain, "_callbacks", with_it)
        return tiny_run("minent", "evaluation.knn_every=1", *overrides)

    return make


@pytest.mark.parametrize(
    ("hook", "nth", "step"),
    [
        ("setup", 1, 1),  # before the first step
        ("on_train_batch_start", 3, 3),  # in a step: it is done and saved
        ("on_before_optimizer_step", 2, 2),
        ("on_train_batch_start", 5, 5),  # in the last step of an epoch: at its end
        ("on_validation_batch_start", 1, 5),
        ("on_train_epoch_end", 1, 5),
        ("on_train_epoch_end", 2, 10),
    ],
)
def test_a_signal_in_any_part_of_an_epoch_is_answered(hook, nth, step, disturbed, capfd):
    before = handlers()
    sends = Sends(hook, nth)
    config = disturbed(sends)
    if step == 10:  # the run is over: there is no step to come
        folder = pretrain(config)
    else:
        with pytest.raises(Stopped) as stop:
            pretrain(config)
        assert (stop.value.step, stop.value.signum) == (step, signal.SIGTERM)
        folder = config.run_dir
    saved = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == step
    assert capfd.readouterr().err.count("stopping: SIGTERM") == 1
    assert handlers() == before and sends.handlers != before


def test_the_second_ctrl_c_stops_at_once(disturbed, monkeypatch, capfd):
    before = handlers()
    config = disturbed(Sends("on_train_batch_start", 4, [signal.SIGINT] * 2))
    monkeypatch.setattr("solo_minent.cli.run.one_config", lambda options: config)
    assert main(["pretrain"]) == INTERRUPTED
    error = capfd.readouterr().err
    assert error.splitlines()[-1] == "stopped; the same command continues the run"
    assert not (config.run_dir / "checkpoints/last.ckpt").exists()
    assert handlers() == before


def test_other_signals_twice_stop_once_and_ctrl_c_after_them_at_once(disturbed):
    twice = disturbed(Sends("on_train_batch_start", 2, [signal.SIGUSR1, signal.SIGTERM]))
    with pytest.raises(Stopped) as stop:
        pretrain(twice)
    assert (stop.value.step, stop.value.signum) == (2, signal.SIGUSR1)
    at_once = disturbed(
        Sends("on_train_batch_start", 2, [signal.SIGTERM, signal.SIGINT]), "name=other"
    )
    with pytest.raises(KeyboardInterrupt):
        pretrain(at_once)


class Fails(Callback):
    def on_train_batch_start(self, *_):
        raise RuntimeError("broken")


def test_the_handlers_are_back_after_every_end(disturbed, tiny_run):
    mine = [lambda *_: None for _ in ASKING]
    before = [signal.signal(s, handler) for s, handler in zip(ASKING, mine, strict=True)]
    try:
        pretrain(tiny_run("minent", "max_epochs=1", "name=whole"))
        assert handlers() == mine
        with pytest.raises(RuntimeError, match="broken"):
            pretrain(disturbed(Fails()))
        assert handlers() == mine
    finally:
        for signum, handler in zip(ASKING, before, strict=True):
            signal.signal(signum, handler)


def test_a_run_in_another_thread_leaves_signals_alone(tiny_run):
    before = handlers()
    seen = []
    config = tiny_run("minent", "max_epochs=1")
    thread = threading.Thread(target=lambda: seen.append(pretrain(config)))
    thread.start()
    thread.join(LONG)
    assert seen == [config.run_dir] and handlers() == before


def test_a_forked_process_does_not_answer():
    signals = Signals()
    signals._pid = os.getpid() + 1  # as in a child
    signals._note(signal.SIGINT, None)
    assert signals.received == 0


# A worker of the fork server imports NumPy, whose BLAS has started threads before `calm` runs.
LOADER = """
import os, signal, subprocess, sys, torch
from multiprocessing import forkserver
from torch.utils.data import DataLoader, TensorDataset
from solo_minent.data.workers import calm, calm_forkserver

SENDER = "import os, sys; [os.kill(int(pid), int(sys.argv[1])) for pid in sys.argv[2:]]"

def main(context):
    loader = DataLoader(
        TensorDataset(torch.arange(20)),
        num_workers=2,
        multiprocessing_context=calm_forkserver() if context == "forkserver" else context,
        persistent_workers=True,
        worker_init_fn=calm,
    )
    batches = iter(loader)
    got = [int(*next(batches)), int(*next(batches))]
    first, second = batches._workers
    pids = [first.pid, second.pid]
    if context == "forkserver":
        pids.append(forkserver._forkserver._forkserver_pid)
    for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        command = [sys.executable, "-c", SENDER, int(signum), *pids]
        subprocess.run([str(word) for word in command], check=True)
    assert got + [int(*batch) for batch in batches] == list(range(20))
    # The process that started one still ends it, as PyTorch does with one that hangs.
    first.terminate()
    first.join(60)
    assert first.exitcode == 0 and second.is_alive()
    # When nobody is left to end it, the other one ends.
    print(second.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    main(sys.argv[1])
"""


@pytest.mark.parametrize("context", ["fork", "forkserver"])
def test_a_loader_process_outlives_what_stops_the_run(context, tmp_path):
    script = tmp_path / "loader.py"
    script.write_text(LOADER)
    variables = environment()
    del variables["OMP_NUM_THREADS"]
    variables["OPENBLAS_NUM_THREADS"] = "4"
    done = subprocess.run(
        [sys.executable, str(script), context],
        env=variables,
        stdout=(tmp_path / "output.txt").open("w"),
        stderr=subprocess.STDOUT,
        timeout=LONG,
    )
    output = (tmp_path / "output.txt").read_text()
    assert done.returncode == -signal.SIGKILL, output
    worker = Path("/proc") / output.split()[-1]
    end = time.monotonic() + 30
    while worker.exists() and "(zombie)" not in (worker / "status").read_text():
        assert time.monotonic() < end, "a worker is left"
        time.sleep(0.1)
