"""Which solo-learn is there is found out without importing it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from solo_minent import host
from solo_minent.errors import UserError


def run(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_detection_does_not_import_solo():
    code = (
        "import sys; from solo_minent import host; print(host.HOST, host.VERSION);"
        "print('solo' in sys.modules, 'torch' in sys.modules)"
    )
    expected = {"wheel": "wheel 1.0.2", "source": "source 1.0.6"}[host.HOST]
    assert run(code).splitlines() == [expected, "False False"]


@pytest.mark.parametrize("marker", ["methods/base.py", None])
def test_host_of_a_folder(tmp_path, monkeypatch, marker):
    """A package of that name without solo-learn's methods is not solo-learn."""
    package = tmp_path / "solo"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "solo", raising=False)
    if marker is None:
        with pytest.raises(ImportError, match="solo-learn is not installed") as caught:
            host.HOST  # noqa: B018
        assert isinstance(caught.value, UserError)
        assert "pip install --no-deps solo-learn==1.0.2" in str(caught.value)
        assert "\n" not in str(caught.value)
    else:
        (package / "methods").mkdir()
        (package / marker).touch()
        assert host.HOST == "wheel"
        assert host.VERSION == "unknown"
        (package / "backbones").mkdir()
        assert host.HOST == "source"
        (tmp_path / "setup.py").write_text('setup(version="1.0.7")')
        assert host.VERSION == "1.0.7"


def test_without_solo_learn():
    code = (
        "import sys, importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'solo' else find(name, *a)\n"
        "import solo_minent\n"
        "try:\n    solo_minent.register()\n"
        "except ImportError as error:\n    print(type(error).__name__, error)"
    )
    assert run(code).splitlines() == [
        "SoloLearnMissingError solo-learn is not installed: no package `solo` with "
        "`solo/methods` was found. Run `pip install --no-deps solo-learn==1.0.2`."
    ]


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        host.nothing  # noqa: B018


if host.HOST == "wheel":

    def test_after_an_import_of_solo_that_failed():
        """What it leaves behind is bound to another lightning."""
        code = (
            "import sys\n"
            "try:\n    import solo\nexcept ImportError:\n    pass\n"
            "else:\n    raise SystemExit('solo-learn was importable')\n"
            "print(any(name.startswith('solo.') for name in sys.modules))\n"
            "import solo_minent.plugin, lightning.pytorch as pl\n"
            "from solo.methods import METHODS\n"
            "print(all(issubclass(m, pl.LightningModule) for m in METHODS.values()))"
        )
        assert run(code).splitlines()[-1] == "True"

    def test_solo_imported_too_early(tmp_path):
        """It cannot be mended any more; the error says what to do."""
        code = (
            "import sys, types; sys.modules['solo'] = types.ModuleType('solo')\n"
            "sys.modules['solo'].__spec__ = types.SimpleNamespace("
            "submodule_search_locations=[sys.argv[1]])\n"
            "try:\n    import solo_minent.plugin\nexcept ValueError as error:\n    print(error)"
        )
        (tmp_path / "methods").mkdir()
        (tmp_path / "methods" / "base.py").touch()
        assert run(code, str(tmp_path)).startswith("solo-learn was imported too early")
