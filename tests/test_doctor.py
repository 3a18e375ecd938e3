"""The doctor names packages that exist and never breaks on what it examines."""

import importlib.util
import subprocess

import pytest

from solo_minent import doctor, host


@pytest.fixture
def installed(monkeypatch):
    """Pretends that exactly these packages are installed."""

    def make(**packages):
        names = {name.replace("_", "-"): version for name, version in packages.items()}
        monkeypatch.setattr(doctor, "_version", names.get)

    return make


def found(what):
    return next(finding for finding in doctor.examine() if finding.what == what)


@pytest.mark.parametrize("cuda", ["cuda110", "cuda120", "cuda130"])
def test_any_dali_counts(installed, cuda):
    installed(**{f"nvidia_dali_{cuda}": "1.50.0"})
    finding = found("DALI")
    assert (finding.state, finding.found) == ("ok", f"nvidia-dali-{cuda} 1.50.0")


def test_fixes_are_packages_of_pypi(installed):
    installed()
    findings = doctor.examine()
    assert found("DALI").fix == "pip install nvidia-dali-cuda130"
    assert found("umap-learn").fix == "pip install umap-learn"
    assert not any("[" in finding.fix for finding in findings)
    assert all(f.fix for f in findings if f.state == "missing")


def test_an_empty_package_named_solo_is_reported(tmp_path, monkeypatch):
    (tmp_path / "solo").mkdir()
    spec = importlib.util.spec_from_loader("solo", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path / "solo")]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    finding = doctor._host()
    assert (finding.state, finding.fix) == ("missing", host.INSTALL)
    assert str(tmp_path / "solo") in finding.found


def test_environment_names_versions_and_the_command(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/bin/solo-minent", "pretrain"])
    environment = doctor.environment()
    assert environment["command"] == ["solo-minent", "pretrain"]
    assert {"torch", "lightning"} <= environment["packages"].keys()


def test_only_changed_code_makes_a_commit_dirty(tmp_path, monkeypatch):
    """A run that adds its model to the checkout leaves the next run's commit clean."""
    code, model = tmp_path / "solo_minent" / "doctor.py", tmp_path / "zoo" / "models.yaml"
    monkeypatch.setattr(doctor, "__file__", str(code))
    assert doctor.environment()["commit"] is None
    for path in (code, model):
        path.parent.mkdir()
        path.write_text("one")

    def git(*words):
        names = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(["git", "-C", str(tmp_path), *names, *words], capture_output=True)
        assert done.returncode == 0, done.stderr

    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    commit = doctor.environment()["commit"]
    assert commit and not commit.endswith("-dirty")
    model.write_text("two")
    assert doctor.environment()["commit"] == commit
    code.write_text("two")
    assert doctor.environment()["commit"] == f"{commit}-dirty"
