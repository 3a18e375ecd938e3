"""The bash scripts: what they run composes, and what they refuse is one line."""

import ast
import csv
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from solo_minent.cli.configs import one_config
from solo_minent.cli.parser import parse
from solo_minent.config import load_recipe, recipes
from solo_minent.errors import UserError
from solo_minent.methods import available

SCRIPTS = Path(__file__).parents[1] / "scripts"
RUNS = sorted(
    str(path.relative_to(SCRIPTS))
    for path in SCRIPTS.glob("*/*.sh")
    if path.parent.name != "zoo"  # tests/zoo/test_train_script.py
)


def bash(script, *arguments, **environment):
    """Runs a script with `echo` in place of solo-minent."""
    command = ["bash", str(SCRIPTS / script), *arguments]
    environment = {**os.environ, "SOLO_MINENT": "echo", **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


def composed(line):
    """(command, configuration) of a line `pretrain --recipe … key=value`."""
    name, *rest = line.split()
    return name, one_config(parse([name, *rest]))


def commands(script, *arguments, **environment):
    """(command, configuration) of each line that a script would run."""
    done = bash(script, *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return [composed(line) for line in done.stdout.splitlines()]


def test_every_recipe_has_a_script():
    assert {f"{name}.sh" for name in recipes()} == {s for s in RUNS if not s.endswith("cpu.sh")}


@pytest.mark.parametrize("script", [s for s in RUNS if not s.endswith("cpu.sh")])
def test_a_script_pretrains_and_evaluates_its_recipe(script):
    names, configs = zip(*commands(script, "max_epochs=900"), strict=True)
    small = script.startswith(("digits/", "cifar10/", "cifar100/"))
    assert names == ("pretrain", *(["report"] if small else ["linear", "knn"]))
    assert script == f"{configs[0].data.dataset}/{_variant(configs[0])}.sh"
    assert configs[0].max_epochs == 900 and all(config == configs[0] for config in configs)


def _variant(config):
    return config.method if config.name == "default" else f"{config.method}_{config.name}"


def test_other_evaluations_can_be_asked_for():
    asked = commands("imagenet/mec.sh", EVALUATE="knn report")
    assert [name for name, _ in asked] == ["pretrain", "knn", "report"]
    assert [name for name, _ in commands("digits/mec.sh", EVALUATE="")] == ["pretrain"]


@pytest.mark.parametrize("script", RUNS)
def test_a_script_names_hardware_and_source(script):
    if script.startswith("digits/") or script.endswith("cpu.sh"):
        assert "CPU" in (SCRIPTS / script).read_text()
        return
    text = (SCRIPTS / script).read_text()
    config = load_recipe(script.removesuffix(".sh"))
    gpus = f"{config.devices} GPUs" if config.devices > 1 else "one GPU"
    nodes = f"{config.num_nodes} nodes of " if config.num_nodes > 1 else ""
    assert f"Written for {nodes}{gpus}" in text and f"{config.optimizer.batch_size} images" in text
    assert re.search(r"@ [0-9a-f]{7}\.\n", text)


@pytest.mark.parametrize("method", available())
def test_the_cpu_run_composes_for_every_method(method):
    (_, config), _ = commands("cifar10/cpu.sh", method, "data.root=/data")
    assert (config.method, config.data.root) == (method, "/data")
    assert (config.data.train_images, config.optimizer.batch_size) == (5000, 128)
    assert config.backbone.name == "timm:resnet10t"


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("run.sh", [], "error: recipe is missing"),
        ("cifar10/cpu.sh", [], "error: method is missing"),
        ("torchrun.sh", [], "error: recipe is missing"),
        ("slurm/pretrain.sbatch", [], "error: recipe is missing"),
        ("slurm/pretrain.sbatch", ["digits/mec"], "error: Slurm is missing"),
        ("quickstart.sh", ["--method"], "error: method is unknown: none"),
        ("quickstart.sh", ["--method", "simclr"], "error: method is unknown: simclr"),
    ],
)
def test_bad_arguments_end_with_one_line(script, arguments, message):
    done = bash(script, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(message) and len(done.stderr.splitlines()) == 1


def test_every_script_is_executable_and_strict():
    for path in [*SCRIPTS.rglob("*.sh"), *SCRIPTS.rglob("*.sbatch")]:
        assert os.access(path, os.X_OK), path
        assert "set -euo pipefail" in path.read_text(), path


def test_torchrun_starts_what_the_run_expects():
    node = {"GPUS": "8", "NODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "node0"}
    done = bash("torchrun.sh", "imagenet/mec", "seed=3", TORCHRUN="echo", **node)
    options, _, command = done.stdout.partition(" -m solo_minent ")
    name, config = composed(command)
    assert (name, config.devices, config.num_nodes, config.seed) == ("pretrain", 8, 2, 3)
    expected = "--nnodes=2 --nproc-per-node=8 --node-rank=1 --master-addr=node0 --master-port=29500"
    assert options == expected


# Slurm, with programs of these names in place of the real ones.


@pytest.fixture
def slurm(tmp_path):
    """Environment of a job of 2 nodes with 4 tasks each, and the calls of srun and scontrol."""
    calls = tmp_path / "calls"
    for name, then in {
        "srun": 'sleep "${TASKS_TAKE:-0}"; exit "${TASKS_EXIT:-0}"',
        "scontrol": "",
    }.items():
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho "{name} $SRUN_CPUS_PER_TASK $*" >> {calls}\n{then}\n')
        program.chmod(0o755)
    job = {"SLURM_JOB_ID": "4711", "SLURM_NTASKS_PER_NODE": "4", "SLURM_JOB_NUM_NODES": "2"}
    path = f"{tmp_path}:{os.environ['PATH']}"
    environment = {**job, "SLURM_CPUS_PER_TASK": "6", "PATH": path, "SOLO_MINENT": "solo-minent"}
    return environment, calls


def test_a_slurm_job_runs_one_task_a_gpu(slurm):
    environment, calls = slurm
    done = bash("slurm/pretrain.sbatch", "imagenet/mec", "max_epochs=7", **environment)
    assert (done.returncode, done.stdout) == (0, "")
    start, _, command = calls.read_text().partition(" solo-minent ")
    assert start == "srun 6 --kill-on-bad-exit=1"
    name, config = composed(command)
    assert (name, config.devices, config.num_nodes, config.max_epochs) == ("pretrain", 4, 2, 7)


def test_a_slurm_job_fails_as_its_tasks_do(slurm):
    environment, _ = slurm
    done = bash("slurm/pretrain.sbatch", "imagenet/mec", TASKS_EXIT="3", **environment)
    assert done.returncode == 3


def test_a_slurm_job_outlives_sigterm_until_its_tasks_have_saved(slurm):
    environment, calls = slurm
    job = subprocess.Popen(
        ["bash", str(SCRIPTS / "slurm/pretrain.sbatch"), "imagenet/mec"],
        env={**os.environ, **environment, "TASKS_TAKE": "1", "TASKS_EXIT": "75"},
        stdout=subprocess.PIPE,
        text=True,
    )
    _wait_for(lambda: calls.exists() and "srun" in calls.read_text())
    job.send_signal(signal.SIGTERM)
    output, _ = job.communicate(timeout=30)
    assert (job.returncode, output) == (75, "")
    assert len(calls.read_text().splitlines()) == 1


def _wait_for(happened):
    end = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_slurm_signals_the_tasks_and_may_requeue():
    text = (SCRIPTS / "slurm/pretrain.sbatch").read_text()
    directives = re.findall(r"^#SBATCH (\S+)", text, re.MULTILINE)
    for needed in ("--requeue", "--signal=USR1@120", "--open-mode=append"):
        assert needed in directives
    # sbatch reads no directive after the first command.
    assert text.rindex("#SBATCH") < text.index("set -euo pipefail")


# What the stacks are made of.

ROOT = SCRIPTS.parent


def python(script, *arguments):
    """Runs a Python script of ours."""
    command = [sys.executable, str(SCRIPTS / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def audit():
    """scripts/audit.py as a module."""
    spec = importlib.util.spec_from_file_location("audit", SCRIPTS / "audit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tested_stack_pins_what_setup_asks_for(audit):
    pins = {pin.name: pin for pin in audit.lines(SCRIPTS / "constraints.txt")}
    assert all(re.fullmatch(r"==[\w.]+", str(pin.specifier)) for pin in pins.values())
    for wanted in audit.bounds(ROOT / "setup.py"):
        assert wanted.name in pins, f"{wanted.name} is not pinned"
        assert wanted.specifier.contains(audit.lowest(pins[wanted.name]))


def test_the_oldest_stack_is_the_lower_bounds_of_setup(audit):
    pins = {pin.name: audit.lowest(pin) for pin in audit.lines(SCRIPTS / "constraints-oldest.txt")}
    for wanted in audit.bounds(ROOT / "setup.py"):
        bound = next(s.version for s in wanted.specifier if s.operator == ">=")
        pinned = pins.pop(wanted.name, "nothing")
        assert re.sub(r"(\.0)+$", "", pinned) == re.sub(r"(\.0)+$", "", bound), wanted
    assert set(pins) == {"pytorch-lightning", "pyparsing"}


def test_no_known_advisory_reaches_the_pins_or_the_lower_bounds():
    done = python("audit.py")
    assert done.returncode == 0, done.stdout
    with open(SCRIPTS / "advisories.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(row["source"].startswith("https://") for row in rows)
    assert all(row["reaches"] == "yes" or row["reaches"].startswith("no: ") for row in rows)


@pytest.mark.parametrize(
    ("pin", "bound", "named"),
    [
        ("torch==2.5.1", "torch>=2.10", "CVE-2025-32434"),
        ("torch==2.9.1", "torch>=2.10", "CVE-2026-24747"),
        ("torch==2.11.0", "torch>=2.6", "CVE-2026-24747"),
        ("torch==2.11.0", "lightning>=2.6", "GHSA-w37p-236h-pfx3"),
        ("pillow==12.3.0", "torch>=2.10", "CVE-2026-112403"),
    ],
)
def test_the_audit_finds(pin, bound, named, tmp_path):
    (tmp_path / "constraints.txt").write_text(f"{pin}\n")
    (tmp_path / "setup.py").write_text(f"EXTRAS = {{}}\nsetup(install_requires=[{bound!r}])\n")
    files = ["--pinned", tmp_path / "constraints.txt", "--setup", tmp_path / "setup.py"]
    done = python("audit.py", *files)
    assert done.returncode == 1
    assert any(named in line and "AFFECTED" in line for line in done.stdout.splitlines())


@pytest.fixture
def stacks(tmp_path):
    """A checkout whose environments exist and write down what they are asked to run."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "bin").mkdir()
    for name in ("test.sh", "compatibility.py"):
        shutil.copy(SCRIPTS / name, tmp_path / "scripts")
    (tmp_path / "scripts" / "setup.sh").write_text('echo "setup $STACK $VENV" >> calls\n')
    for venv in (".venv", ".venv-oldest", ".venv-latest"):
        (tmp_path / venv / "bin").mkdir(parents=True)
        program = tmp_path / venv / "bin" / "python"
        program.write_text(
            f"#!{sys.executable}\nimport os, sys\n"
            "open('calls', 'a').write(ascii(sys.argv[1:]) + '\\n')\n"
            "if sys.argv[1] != '-m':\n"
            "    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n"
            "for word in sys.argv:\n    if word.startswith('--junit-xml='):\n"
            '        suite = \'<testsuite tests="9" failures="2" errors="1" skipped="1"/>\'\n'
            "        open(word.partition('=')[2], 'w').write(f'<testsuites>{suite}</testsuites>')\n"
            "sys.exit(int(os.environ.get('TESTS_EXIT', 0)))\n"
        )
        program.chmod(0o755)
    for name in ("bash", "dirname"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))

    def run(*arguments, browser=True, **environment):
        for name in ("chromium", "chromedriver") if browser else ():
            shutil.copy(shutil.which("true"), tmp_path / "bin" / name)
        done = subprocess.run(
            [shutil.which("bash"), str(tmp_path / "scripts" / "test.sh"), *arguments],
            env={**os.environ, "PATH": str(tmp_path / "bin"), **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        calls = (tmp_path / "calls").read_text().splitlines()
        (tmp_path / "calls").unlink()
        return done, calls

    return run


@pytest.mark.parametrize(
    ("arguments", "stack", "venv", "expression", "rest"),
    [
        ([], "tested", ".venv", "not stress", []),
        (["tests/test_cli.py", "-x"], "tested", ".venv", "not stress", ["tests/test_cli.py", "-x"]),
        (["--stress"], "tested", ".venv", "stress", []),
        (["--stress", "-k", "kill"], "tested", ".venv", "stress", ["-k", "kill"]),
        (["--oldest", "tests/losses"], "oldest", ".venv-oldest", "not stress", ["tests/losses"]),
        (["--latest", "--stress"], "latest", ".venv-latest", "stress", []),
    ],
)
@pytest.mark.parametrize("browser", [True, False])
def test_the_tests_run_on_the_stack_and_marks_that_are_asked_for(
    arguments, stack, venv, expression, rest, browser, stacks
):
    done, (setup, command) = stacks(*arguments, browser=browser)
    assert done.returncode == 0 and setup == f"setup {stack} {venv}"
    if not browser:
        expression += " and not browser"
        assert "not tested in a browser" in done.stderr
    jobs = [] if rest else ["--numprocesses", "2", "--dist", "loadfile"]
    assert ast.literal_eval(command) == ["-m", "pytest", "-m", expression, *jobs, *rest]


def test_a_whole_run_of_another_stack_is_recorded(stacks, tmp_path):
    readme = tmp_path / "README.md"
    text = (SCRIPTS / "compatibility.py").read_text()
    begin, end = re.findall(r'^(?:BEGIN|END) = "(.*)"$', text, re.MULTILINE)
    readme.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    for _ in range(2):
        done, _ = stacks("--oldest", TESTS_EXIT="1")
        assert done.returncode == 1 and "5 passed, 3 failed" in done.stdout
    stacks("--record")
    record = (tmp_path / "zoo" / "results" / "compatibility.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in record] == ["stack", "oldest", "tested"]
    assert record[1].endswith(",5,3,bash scripts/test.sh --oldest")
    text = readme.read_text()
    assert text.startswith(f"before\n{begin}\n| stack |") and text.endswith(f"{end}\nafter\n")
    assert "`bash scripts/test.sh --oldest`" in text and "old\n" not in text


def test_an_unknown_stack_is_refused():
    done = bash("setup.sh", STACK="newest")
    assert done.returncode == 2 and done.stderr.startswith("error: STACK is unknown: newest.")


def test_the_readme_has_the_table_of_the_record(tmp_path):
    readme = tmp_path / "README.md"
    shutil.copy(ROOT / "README.md", readme)
    done = python("compatibility.py", "--readme", readme, "table")
    assert done.returncode == 0, done.stderr
    assert readme.read_text() == (ROOT / "README.md").read_text()


# What has stopped: SOLO_MINENT is a program that answers signals as pretraining does.

PROGRAM = """#!/bin/sh
for name in TERM USR1 INT; do trap "echo $name >> $CALLS; exit ${STATUS:-75}" $name; done
echo "$@" >> "$CALLS"
if [ "$1" = pretrain ]; then i=0; while [ $i -lt 400 ]; do sleep 0.05; i=$((i + 1)); done; fi
"""


@pytest.fixture
def program(tmp_path):
    """Environment with a solo-minent that waits for a signal, and its notes."""
    path, calls = tmp_path / "solo-minent", tmp_path / "calls"
    path.write_text(PROGRAM)
    path.chmod(0o755)
    return {**os.environ, "SOLO_MINENT": str(path), "CALLS": str(calls)}, calls


@pytest.mark.parametrize(
    ("name", "to_all", "status"),
    [("SIGTERM", False, 75), ("SIGUSR1", False, 75), ("SIGINT", True, 130)],
    ids=["SIGTERM", "SIGUSR1", "Ctrl-C"],
)
def test_what_has_stopped_is_not_evaluated(name, to_all, status, program):
    environment, calls = program
    run = subprocess.Popen(
        ["bash", str(SCRIPTS / "run.sh"), "digits/mec"],
        env={**environment, "STATUS": str(status)},
        start_new_session=True,
    )
    _wait_for(lambda: calls.exists() and "pretrain" in calls.read_text())
    (os.killpg if to_all else os.kill)(run.pid, getattr(signal, name))
    assert run.wait(30) == status
    wanted = ["pretrain --recipe digits/mec", name.removeprefix("SIG")]
    assert calls.read_text().splitlines() == wanted


@pytest.mark.parametrize(
    "words", [["--resume-from", "a run"], ["--resume-from=a run"]], ids=["two words", "one word"]
)
def test_pretraining_alone_resumes_from_another_run(words):
    done = bash("run.sh", "imagenet/mec", "seed=1", *words, "max_epochs=2")
    assert done.returncode == 0, done.stderr
    pretrain, *others = done.stdout.splitlines()
    assert pretrain == f"pretrain --recipe imagenet/mec {' '.join(words)} seed=1 max_epochs=2"
    same = "--recipe imagenet/mec seed=1 max_epochs=2"
    assert others == [f"linear {same}", f"knn {same}"]


def test_resume_from_without_a_path_is_refused_by_pretraining():
    done = bash("run.sh", "imagenet/mec", "--resume-from")
    assert done.stdout.splitlines()[0] == "pretrain --recipe imagenet/mec --resume-from"
    with pytest.raises(UserError, match="--resume-from: expected one argument"):
        parse(done.stdout.splitlines()[0].split())
