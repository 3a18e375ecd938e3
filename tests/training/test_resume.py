"""A run that is killed anywhere and started again ends bit for bit as one that nothing stopped.

Compared are the last checkpoint as a whole (weights, optimiser, teacher, the loss's state, the
loops' counters, random numbers), log.csv and the exported backbone.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "killed_runs.py"
# How often each thing happens in a run of three epochs of five steps.
HAPPENS = {
    **dict.fromkeys(["batch_start", "backward", "batch_end"], 15),
    **dict.fromkeys(["validation", "epoch_end"], 3),
    **dict.fromkeys(["gathering", "written", "renamed"], 8),
}
KILLS = {
    "middle of an epoch": [["batch_end", 7]],
    "before the update": [["backward", 5]],
    "before the first checkpoint": [["batch_start", 1]],
    "in validation": [["validation", 1]],
    "at the end of an epoch": [["epoch_end", 0]],
    "while a checkpoint is written, and again": [["written", 3], ["batch_end", 3]],
    "after a checkpoint is written, and again": [["renamed", 4], ["backward", 4]],
}
OF_METHOD = {
    "minent": ["before the first checkpoint", "while a checkpoint is written, and again"],
    "mec": ["middle of an epoch", "in validation"],
    "twist": ["before the update", "after a checkpoint is written, and again"],
    "corinfomax": ["middle of an epoch", "at the end of an epoch"],
}
LOADERS = ["workers", "device", "dali", "h5", "accumulated"]
CASES = {
    **{
        (method, moment): {"method": method, "loader": "image_folder", "kills": KILLS[moment]}
        for method, moments in OF_METHOD.items()
        for moment in moments
    },
    **{
        loader: {"method": "minent", "loader": loader, "kills": KILLS["middle of an epoch"]}
        for loader in LOADERS
    },
    "corrupt": {"method": "minent", "loader": "corrupt", "kills": KILLS["middle of an epoch"]},
    "forgetful": {
        **{"method": "minent", "loader": "image_folder", "forget": "random"},
        "kills": KILLS["middle of an epoch"],
    },
}


def findings(folder: Path, cases: list[dict], timeout: float) -> list[dict]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-8000:]
    return json.loads(done.stdout.splitlines()[-1])


def assert_exact(found: dict) -> None:
    assert found["killed"] == len(found["kills"])
    assert found["differs"] == []


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What became of every case, from one launch."""
    folder = tmp_path_factory.mktemp("killed")
    return dict(zip(CASES, findings(folder, list(CASES.values()), 580), strict=True))


@pytest.mark.parametrize("method, moment", [case for case in CASES if isinstance(case, tuple)])
def test_a_killed_run_ends_as_the_uninterrupted_one(method, moment, found):
    assert_exact(found[method, moment])


@pytest.mark.parametrize("loader", LOADERS)
def test_every_loader_goes_on_within_the_epoch(loader, found):
    assert_exact(found[loader])


def test_damaged_images_found_before_a_kill_stay_counted_and_listed(found):
    assert_exact(found["corrupt"])


def test_without_its_random_numbers_a_run_would_end_otherwise(found):
    """The comparison sees what it is there to see."""
    differs = found["forgetful"]["differs"]
    assert any(path.startswith("/state_dict/") for path in differs)
    assert "log.csv" in differs


@pytest.mark.stress
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    "method, loader",
    [*((method, "image_folder") for method in OF_METHOD), *(("mec", loader) for loader in LOADERS)],
)
def test_every_moment(method, loader, tmp_path):
    """Every step, every checkpoint, every validation: 72 kills a method."""
    events = HAPPENS if loader == "image_folder" else {"batch_end": 15}
    cases = [
        {"method": method, "loader": loader, "kills": [[event, number]]}
        for event, times in events.items()
        for number in range(times)
    ]
    for found in findings(tmp_path, cases, 7000):
        assert_exact(found)
