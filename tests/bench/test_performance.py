"""scripts/performance.py: the README's section is what the csv files say."""

import importlib.util
import shutil
from pathlib import Path

import pytest

from solo_minent.bench.goals import FILES, NOTES, PICTURE, read_rows
from solo_minent.bench.output import write_rows
from solo_minent.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def performance():
    """The script as a module."""
    path = ROOT / "scripts" / "performance.py"
    spec = importlib.util.spec_from_file_location("performance", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def mec_row(faster):
    return {
        "loss": "mec",
        "shape": "n=1024 d=2048 order 4",
        "device": "cpu",
        "precision": "32",
        "times faster": faster,
        "low": faster - 0.25,
        "high": faster + 0.25,
        "pairs": 7,
        "MiB ours": 10,
        "MiB plain": 40,
    }


def step_row(side, ratio):
    return {
        "method": "mec",
        "backbone": "resnet18",
        "device": "cpu",
        "batch": 16,
        "precision": "32-true",
        "side": side,
        "pairs": 5,
        "ratio": ratio,
        "ratio low": ratio - 0.1,
        "ratio high": ratio + 0.1,
    }


def growth_rows():
    same = {"method": "mec", "against": "n", "fixed": "d=2048", "device": "cpu", "pairs": 5}
    return [
        same | {"value": n, "ms": 1e-4 * n**2, "low": 0, "high": 0, "MiB": n / 10}
        for n in (256, 512, 1024, 2048)
    ]


def test_the_readme_has_the_section_of_the_csv_files(performance, tmp_path):
    readme = tmp_path / "README.md"
    shutil.copy(ROOT / "README.md", readme)
    assert performance.main(["--readme", str(readme)]) == 0
    assert readme.read_text() == (ROOT / "README.md").read_text()


def test_figures_hardware_and_pairs_come_from_the_csv_files(performance, tmp_path):
    write_rows(tmp_path / FILES["loss"], [mec_row(2.5)], {"sizes": "full"})
    write_rows(tmp_path / FILES["growth"], growth_rows(), {"sizes": "full"})
    rows = [step_row("solo_minent", 1), step_row("barlow_twins", 1.3), step_row("vicreg", 0.9)]
    write_rows(tmp_path / FILES["step"], rows, {"sizes": "full"})
    (tmp_path / PICTURE).write_bytes(b"")
    text = performance.section(tmp_path)
    for words in (
        "plain formula | ≥ 2.00x | 2.50x (2.25 to 2.75) | not measured yet |",
        "| mec 0.25x | not measured yet |",
        "- GPU: not measured yet",
        ", n = 7: loss\n",
        ", n = 5: step, growth\n",
        "torch 2",
        "resnet18, batch 16, precision 32-true",
        "`mec` 1.30 (1.20 to 1.40) and 0.90 (0.80 to 1.00)",
        "| mec | n: 2.0 (2.0) | n: 1.0 (1.0) | Builds n x n",
        "](zoo/results/bench-growth.png)",
    ):
        assert words in text, words
    assert "Not reached" not in text and "**" not in text


def test_a_goal_that_was_not_reached_needs_its_reason(performance, tmp_path, capsys):
    write_rows(tmp_path / FILES["loss"], [mec_row(1.5)], {"sizes": "full"})
    readme = tmp_path / "README.md"
    readme.write_text(f"a\n{performance.BEGIN}\nbefore it\n{performance.END}\nb\n")
    options = ["--results", str(tmp_path), "--readme", str(readme)]
    assert performance.main(options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: goal is not reached and no reason is given: mec_cpu (1.50x")
    assert len(error.splitlines()) == 1 and "before it" in readme.read_text()
    (tmp_path / NOTES).write_text("mec_cpu: one product is all there is\n")
    assert performance.main(options) == 0
    text = readme.read_text()
    assert "| **1.50x (1.25 to 1.75)** |" in text
    assert "plain formula, CPU: one product is all there is\n" in text
    assert (
        text.startswith("a\n")
        and text.endswith(f"{performance.END}\nb\n")
        and "before it" not in text
    )


def test_a_gpu_has_a_folder_of_its_own(performance, tmp_path):
    rows = [mec_row(3) | {"device": "cuda"}]
    write_rows(tmp_path / "gpu" / FILES["loss"], rows, {"gpus": "['NVIDIA H200']"})
    text = performance.section(tmp_path)
    assert "plain formula | ≥ 2.00x | not measured yet | 3.00x (2.75 to 3.25) |" in text
    assert "- GPU: NVIDIA H200, " in text and "- CPU: not measured yet" in text


def test_figures_of_two_commits_and_machines_are_told_apart(performance, tmp_path):
    write_rows(tmp_path / FILES["loss"], [mec_row(3)], {"sizes": "full"})
    write_rows(tmp_path / FILES["growth"], growth_rows(), {"sizes": "full"})
    for name, machine in (
        ("loss", {"commit": "", "cpu": "One"}),
        ("growth", {"commit": "abc1234", "cpu": "Other"}),
    ):
        rows = [row | machine for row in read_rows(tmp_path / FILES[name])]
        write_rows(tmp_path / FILES[name], rows, machine)
    lines = [line for line in performance.section(tmp_path).splitlines() if "- CPU: " in line]
    (loss,) = (line for line in lines if line.endswith(", commit not recorded, n = 7: loss"))
    (growth,) = (line for line in lines if line.endswith(", commit abc1234, n = 5: growth"))
    assert "(One, " in loss and "(Other, " in growth and len(lines) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("packages", "parcels"),
        lambda text: text.replace("{'host", "{'host'"),
        lambda text: text.rpartition(",")[0].rpartition(",")[0] + "\n",
    ],
    ids=["no versions", "unreadable versions", "cut off"],
)
def test_a_damaged_csv_is_one_line(damage, performance, tmp_path, capsys):
    file = tmp_path / FILES["step"]
    write_rows(file, [step_row("vicreg", 1.3)], {"sizes": "full"})
    file.write_text(damage(file.read_text()))
    readme = tmp_path / "README.md"
    readme.write_text(f"{performance.BEGIN}\n{performance.END}")
    assert performance.main(["--results", str(tmp_path), "--readme", str(readme)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: results are damaged: {file} (")
    assert len(error.splitlines()) == 1


def test_a_smoke_test_is_no_result(performance, tmp_path):
    write_rows(tmp_path / FILES["loss"], [mec_row(3)], {"sizes": "tiny"})
    with pytest.raises(UserError, match="results are of a smoke test"):
        performance.section(tmp_path)


def test_a_readme_without_the_marks_is_left_alone(performance, tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(performance.BEGIN)
    assert performance.main(["--results", str(tmp_path), "--readme", str(readme)]) == 2
    assert "place of the section is missing" in capsys.readouterr().err
    assert readme.read_text() == performance.BEGIN
