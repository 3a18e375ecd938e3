"""Modules that are put off run when they are first used, and only then."""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import pickle
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import pytest

from solo_minent.host import later

HEAVY = """
import putoff_needed
RUNS.append(__name__)

class Thing:
    word = "real"

    @staticmethod
    def say(word):
        return f"said {word}"
"""
INIT = """
try:
    from putoff_package import heavy
    from putoff_package.heavy import Thing
except ImportError:
    heavy = Thing = None
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Imports a package with a heavy module: () -> package; `runs` lists when that one ran."""
    runs = []

    def make(heavy=HEAVY, needs=("putoff_needed",), needed=True, within=contextlib.nullcontext):
        folder = tmp_path / "putoff_package"
        folder.mkdir()
        (folder / "__init__.py").write_text(INIT)
        (folder / "heavy.py").write_text(heavy)
        if needed:
            (tmp_path / "putoff_needed.py").write_text("")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr("builtins.RUNS", runs, raising=False)
        with later.put_off({"putoff_package.heavy": needs}, within):
            return importlib.import_module("putoff_package")

    make.runs = runs
    yield make
    for name in [name for name in sys.modules if name.startswith("putoff_")]:
        del sys.modules[name]


def test_it_runs_when_a_name_is_asked_for_and_once(package):
    made = package()
    assert (package.runs, "putoff_needed" in sys.modules) == ([], False)
    assert made.heavy.Thing.word == "real"
    assert made.heavy.Thing is importlib.import_module("putoff_package.heavy").Thing
    assert (package.runs, "putoff_needed" in sys.modules) == (["putoff_package.heavy"], True)


def test_who_looks_through_all_modules_does_not_run_it(package):
    made = package()
    assert made.heavy.__file__.endswith("heavy.py")
    assert not hasattr(made.heavy, "__wrapped__")
    inspect.getmodule(package)
    assert not package.runs
    assert "class Thing" in inspect.getsource(made.heavy)


def test_a_name_bound_at_import_works_and_is_the_real_one_afterwards(package):
    made = package()
    bound = made.Thing
    assert bound.say("a") == "said a" and package.runs
    assert made.Thing is made.heavy.Thing is not bound


def through_pickle(value):
    """As to a worker process."""
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, through_pickle])
def test_a_copy_of_such_a_name_is_the_real_one(package, copied):
    made = package()
    assert copied(made.Thing) is made.heavy.Thing


def test_such_a_name_is_a_class(package):
    made = package()
    bound = made.Thing

    class Own(bound):
        pass

    assert Own.__mro__[1] is made.heavy.Thing
    assert isinstance(Own(), bound) and not isinstance(made, bound)
    assert issubclass(Own, bound) and not issubclass(int, bound)


def test_all_its_names_can_be_had(package):
    names = {}
    assert "Thing" not in vars(package().heavy)
    exec("from putoff_package.heavy import *", names)
    assert names["Thing"].word == "real"


def test_who_asks_for_its_names_gets_them(package):
    assert "Thing" in dir(package().heavy)


@pytest.mark.parametrize("used", [False, True])
def test_it_can_be_reloaded(package, used):
    made = package()
    if used:
        assert made.heavy.Thing
    again = importlib.reload(made.heavy)
    assert again is made.heavy and again.Thing.word == "real"
    with pytest.raises(AttributeError, match="heavy.*no attribute 'nothing'"):
        _ = again.nothing


def test_functions_are_called_before_anyone_gets_a_name(package):
    made = package()
    later.when_loaded(made.heavy, lambda: setattr(made.heavy.Thing, "word", "adapted"))
    assert not package.runs
    assert made.heavy.Thing.word == "adapted"
    later.when_loaded(made.heavy, lambda: setattr(made.heavy.Thing, "word", "at once"))
    assert made.heavy.Thing.word == "at once"


def test_it_runs_in_its_context(package):
    held = []

    @contextlib.contextmanager
    def within():
        held.append("in")
        yield
        held.append("out")

    made = package(within=within)
    assert not held
    made.heavy.Thing.say("a")
    assert held == ["in", "out"]


@pytest.mark.parametrize("needs", [("putoff_needed",), ("putoff_needed.inner",)])
def test_what_it_needs_is_missing(package, needs):
    assert package(needs=needs, needed=False).heavy is None


def test_what_it_needs_was_forbidden(package, monkeypatch):
    """`sys.modules[name] = None` is how an import is made to fail."""
    monkeypatch.setitem(sys.modules, "putoff_needed", None)
    assert package().heavy is None


def test_what_it_needs_stands_there_without_a_file(package, monkeypatch):
    monkeypatch.setitem(sys.modules, "putoff_needed", types.ModuleType("putoff_needed"))
    assert package(needed=False).heavy.Thing.word == "real"


def test_two_threads_get_the_same(package):
    made = package("import time\ntime.sleep(0.2)\n" + HEAVY)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: made.heavy.Thing, range(8)))
    assert len(set(map(id, found))) == 1 and len(package.runs) == 1


def test_a_module_that_fails_fails_every_time(package):
    made = package("RUNS.append(1)\nname = 1\nraise ImportError('broken')\n")
    for _ in range(2):
        with pytest.raises(ImportError, match="broken"):
            _ = made.heavy.name
    assert package.runs == [1, 1]


def test_a_name_that_is_not_there(package):
    with pytest.raises(AttributeError, match="heavy.*no attribute 'nothing'"):
        _ = package().heavy.nothing


def test_imports_are_found_as_ever_afterwards(package):
    before = list(sys.meta_path)
    package()
    assert sys.meta_path == before
