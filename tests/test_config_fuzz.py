"""Any recipe that is changed at random trains a step or is refused by one line before work starts.

The command line runs in this process. A change is made by an override or in a recipe file of the
user's own; a recipe that is taken trains in full, but no run beyond its first epoch or second step.
"""

from __future__ import annotations

import contextlib
import copy
import io
import math
import os
import random
import re
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from solo_minent.checks import CHOICES, RANGES
from solo_minent.cli import main
from solo_minent.config import load_recipe, recipes
from solo_minent.methods import available

# One step of 16 images on a network of a few thousand weights.
TINY = {
    "max_epochs": 1,
    "accelerator": "cpu",
    "monitor_every": 1,
    "data": {"num_workers": 0, "train_images": 20, "val_images": 12},
    "backbone": {"kwargs": {"channels": [8, 8, 8, 8]}},
    "optimizer": {"batch_size": 16},
    "evaluation": {"knn_every": 1, "knn_k": 1},
}
TINY_METHODS = {
    "minent": {"heads": [16, 8], "hidden_dim": 32},
    "mec": {"hidden_dim": 32, "output_dim": 32, "pred_hidden_dim": 16},
    "twist": {"hidden_dim": 32, "output_dim": 16, "bunch_size": 8},
    "corinfomax": {"hidden_dim": 32, "output_dim": 16},
}
DIGITS = [f"digits/{method}" for method in TINY_METHODS]
TREES = {name: asdict(load_recipe(name)) for name in recipes()}
# Of the values that recipes have: those of a size that a test can train.
LARGEST = 512
BACKBONES = ["resnet18", "timm:test_resnet", "timm:test_vit", "timm:test_efficientnet", "timm:"]
ODD_TEXT = [
    *("", " ", "null", "none", "true", "0", "1", "-1", "1e308", "nan", "word", "auto", "default"),
    *("Größe 日本 🙂", "a\nb", "a\tb", "\x00", "\x1b[31m", "\udcff", "'", '"', "\\", "a" * 1000),
    *("`touch x`", "$(touch x)", "; touch x", "| cat", "a b", "a=b", "a,b", "%s", "{0}", "*", "#"),
    *("[1,2", "{a: 1", "{a:1}", "[a]", "${nope}", "${optimizer.lr}", "${oc.env:FUZZ}", "${", "???"),
    *("${now:%Y}", "${hydra:runtime.cwd}", "choice(1,2)", "range(3)", "sort(3,1)", "@x", "a:b"),
    *("../x", "~", ".", "a/b", "-x", "--help", "!!python/object:os.system", "2026-01-01", "1_0"),
]
ODD = [
    *(None, True, False, 0, 1, 2, 3, 7, 16, -1, 2**31 - 1, 2**32, 2**63, -(2**63), 10**400),
    *(0.0, -0.0, 0.5, 1.0, 1.5, 1e-308, 1e-45, 1e38, 1e308, -1e308, math.nan, math.inf, -math.inf),
    *([], [[]], [0], [1], [1, 2], [0.5, 0.5, 0.5], [None], ["a"], [math.nan], [2**63, 1], [{}]),
    *({}, {"a": 1}, {"": 1}, {1: 2}, {"enabled": True}, {"a.b": [1]}, {"crop_size": 16}),
    *ODD_TEXT,
]
STARTED = re.compile(r"diverged|finite", re.IGNORECASE)  # a run that began may end by these


def nodes(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every path into nested dictionaries and lists with what is there, groups included."""
    if prefix:
        yield prefix.rstrip("."), tree
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    if isinstance(tree, (dict, list)):
        for key, value in items:
            if isinstance(value, (dict, list)):
                yield from nodes(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value


def merged(base: Any, top: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(top, dict)):
        return top
    return base | {key: merged(base.get(key), value) for key, value in top.items()}


def tiny(method: str) -> dict[str, Any]:
    return TINY | {"method_kwargs": TINY_METHODS[method]}


def small(path: str, value: Any) -> bool:
    """Whether a value of a recipe can be trained with in a test."""
    return path == "backbone.name" or not any(
        isinstance(leaf, int) and leaf > LARGEST for _, leaf in nodes([value])
    )


def pool() -> dict[str, list[Any]]:
    """Of every path in any recipe: the values there, and those at the edge of what is allowed."""
    found: dict[str, list[Any]] = {}
    for tree in TREES.values():
        for path, value in nodes(tree):
            if value not in found.setdefault(path, []):
                found[path].append(value)
    for method in available().values():
        for key, value in asdict(method.Params()).items():
            found.setdefault(f"method_kwargs.{key}", []).append(value)
    for path, words in CHOICES.items():
        found[path] += words
    for path, allowed in RANGES.items():
        edges = [allowed.low, allowed.high, allowed.fix]
        found[path] += [
            edge for value in edges if isinstance(value, (int, float)) for edge in around(value)
        ]
    found["backbone.name"] = BACKBONES
    return {path: [v for v in values if small(path, v)] for path, values in found.items()}


def around(value: float) -> list[float]:
    if isinstance(value, int):
        return [value - 1, value, value + 1]
    return [math.nextafter(value, -math.inf), value, math.nextafter(value, math.inf)]


POOL = pool()
PATHS = {name: [path for path, _ in nodes(merged(tree, TINY))] for name, tree in TREES.items()}
HOW = ["set"] * 12 + ["add", "force", "remove", "twice", "typo", "raw"]


@dataclass(frozen=True)
class Change:
    """One change of a recipe: `how` is set, add, force, remove, twice or raw."""

    how: str
    path: str
    value: Any = None

    def override(self) -> list[str]:
        """It as words of a command line."""
        word = f"{self.path}={in_hydra(self.value)}"
        return {
            "set": [word],
            "add": [f"+{word}"],
            "force": [f"++{word}"],
            "remove": [f"~{self.path}"],
            "twice": [word, word],
            "raw": [str(self.value)],
        }[self.how]

    def make(self, tree: dict[str, Any]) -> None:
        """Makes it in the tree of a recipe file, where its path is there."""
        *parents, last = self.path.split(".")
        holder: Any = tree
        for part in parents:
            if isinstance(holder, list):
                part = int(part) if part.isdigit() and int(part) < len(holder) else None
            if isinstance(holder, dict):
                holder = holder.setdefault(part, {})
            elif part is not None:
                holder = holder[part]
            if not isinstance(holder, (dict, list)):
                return
        if isinstance(holder, list):
            if last.isdigit() and int(last) < len(holder):
                holder[int(last)] = self.value
        elif self.how == "remove":
            holder.pop(last, None)
        else:
            holder[last] = self.value


@dataclass(frozen=True)
class Case:
    recipe: str
    by_file: bool
    changes: tuple[Change, ...]

    def command(self, folder: Path) -> list[str]:
        """The words of the command; its recipe file is written into the folder."""
        method = self.recipe.split("/")[1].split("_")[0]
        if self.by_file:
            tree = copy.deepcopy(merged(TREES[self.recipe], tiny(method)))
            for change in self.changes:
                change.make(tree)
            text = yaml.safe_dump({"defaults": ["/schema", "_self_"], **tree}, sort_keys=False)
            for change in self.changes:
                if change.how == "twice":
                    text += yaml.safe_dump({change.path.split(".")[0]: change.value})
                elif change.how == "raw":
                    text += f"{change.value}\n"
            words = []
        else:
            tree = {"defaults": [f"/{self.recipe}", "_self_"], **tiny(method)}
            text = yaml.safe_dump(tree, sort_keys=False)
            words = [word for change in self.changes for word in change.override()]
        own = folder / "own.yaml"
        own.write_bytes(text.encode("utf-8", "surrogateescape"))
        return ["pretrain", "--recipe", str(own), *words]


def in_hydra(value: Any) -> str:
    """A value as a user would write it in an override; strings as they are, without quotes."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(in_hydra, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{in_hydra(v)}' for key, v in value.items())}}}"
    return str(value)


def harmless(change: Change) -> bool:
    """Whether its files stay below the folder of the test."""
    return not (
        change.path.startswith(("output_dir", "folder")) and str(change.value).startswith("/")
    )


def odd_values() -> st.SearchStrategy[Any]:
    return st.one_of(
        st.sampled_from(ODD),
        st.integers(-300, 300),
        st.floats(width=32),
        st.text(max_size=12),
    )


@st.composite
def changes(draw: st.DrawFn, recipe: str, odd: bool) -> Change:
    own = draw(st.integers(0, 9))  # a path of the recipe's own, or one that others have
    paths = PATHS[recipe] if own else sorted(POOL)
    path = draw(st.sampled_from(paths))
    how = draw(st.sampled_from(HOW)) if odd else "set"
    if how == "raw":
        raw = draw(st.one_of(st.text(max_size=20), st.sampled_from(ODD_TEXT)))
        return Change("raw", "", f"{draw(st.sampled_from(['', path, 'x']))}={raw}")
    value = draw(odd_values() if odd else st.sampled_from(POOL[path] or [None]))
    if how == "typo":
        at = draw(st.integers(0, len(path)))
        letter = draw(st.sampled_from(["", "x", ".", "é", "@", "/", " "]))
        path = path[:at] + letter + path[at + 1 :]
        how = "set"
    return Change(how, path, copy.deepcopy(value))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Changes that other recipes have, or at the edge of what is allowed, or odd ones."""
    recipe = draw(st.sampled_from([*DIGITS * 8, *TREES]))
    by_file, odd = draw(st.booleans()), draw(st.booleans())
    one = changes(recipe, odd).filter(harmless)
    return Case(recipe, by_file, tuple(draw(st.lists(one, min_size=1, max_size=3))))


class FirstSteps(pl.Callback):
    """Ends a run after its second step, or its first epoch: `steps` is how many there were."""

    steps = 0

    def on_train_batch_end(self, trainer: pl.Trainer, *rest: Any) -> None:
        FirstSteps.steps = trainer.global_step
        if trainer.global_step >= 2:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: pl.Trainer, *rest: Any) -> None:
        trainer.should_stop = True


@pytest.fixture
def attempt(tmp_path, monkeypatch):
    """`attempt(case)`: "accepted", "refused" or "stopped"; whatever else happens fails."""
    monkeypatch.setenv("FUZZ", "fuzz")
    fit = pl.Trainer.fit
    began = []

    def first_steps(trainer, *args, **kwargs):
        began.append(trainer)
        assert trainer.world_size == 1, "a test starts no processes"
        trainer.callbacks.insert(0, FirstSteps())
        return fit(trainer, *args, **kwargs)

    monkeypatch.setattr(pl.Trainer, "fit", first_steps)

    def run(case: Case) -> str:
        os.chdir(tmp_path)
        shutil.rmtree(tmp_path / "case", ignore_errors=True)
        work = tmp_path / "case/a/b/c"  # ../x stays below
        work.mkdir(parents=True)
        words = case.command(tmp_path)
        monkeypatch.chdir(work)
        began.clear()
        FirstSteps.steps = 0
        out, err = terminal("strict"), terminal("backslashreplace")
        start = time.monotonic()
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("default")  # what a user would see is a line too many
            status = main(words)
        seconds = time.monotonic() - start
        said, blame = shown(out), shown(err)
        run.said = said + blame
        files = [path for path in (tmp_path / "case").rglob("*") if not path.is_dir()]
        assert seconds < 60
        if status == 0:
            assert FirstSteps.steps >= 1 and "run folder: " in said
            return "accepted"
        assert status == 2, blame
        assert re.fullmatch(r"error: [^\n\r]{10,3000}\n", blame), blame
        if began:
            assert STARTED.search(blame), f"after training began: {blame}"
            return "stopped"
        assert not files, f"files of a run that was refused: {files}"
        return "refused"

    return run


def terminal(errors: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=errors, newline="")


def shown(stream: io.TextIOWrapper) -> str:
    stream.flush()
    return stream.buffer.getvalue().decode()


def campaign(attempt, examples: int, number: int | None) -> Counter[str]:
    """How many of that many changed recipes were accepted, refused, or stopped on the way.

    Args:
        attempt: the fixture.
        examples: changed recipes.
        number: seed; None for the same ones every time.
    """
    outcomes: Counter[str] = Counter()

    @settings(
        max_examples=examples,
        derandomize=number is None,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(cases())
    def each(case):
        outcomes[attempt(case)] += 1

    (each if number is None else seed(number)(each))()
    return outcomes


def test_a_changed_recipe_trains_or_is_refused_in_one_line(attempt):
    outcomes = campaign(attempt, 110, None)
    assert outcomes.total() >= 110 and outcomes["accepted"] >= 15 and outcomes["refused"] >= 50


@pytest.mark.stress
@pytest.mark.timeout(4 * 3600)
def test_two_thousand_changed_recipes_train_or_are_refused(attempt, capsys):
    number = random.randrange(2**32)
    with capsys.disabled():
        print(f"seed {number}")
    outcomes = campaign(attempt, 2200, number)
    with capsys.disabled():
        print(f"{outcomes.total()} changed recipes: {dict(outcomes)}")
    assert outcomes.total() >= 2000


EDGES = [
    ("minent", {"max_epochs": 10**400}, "max_epochs is out of range: 1000"),
    ("minent", {"evaluation.batch_size": 2**63}, "evaluation.batch_size is out of range"),
    ("minent", {"optimizer.lr": 1e308}, "It is finite and above 0, not beyond 1e+18"),
    ("minent", {"optimizer.lr": 1e-323, "optimizer.scale_lr": True}, "out of range: 0.0, scaled"),
    ("minent", {"process_timeout": 1e308}, "process_timeout is out of range"),
    ("minent", {"method_kwargs.heads": [2**63]}, "MinEnt heads are wrong"),
    ("minent", {"method_kwargs.num_layers": 2**63}, "num_layers is out of range"),
    ("mec", {"method_kwargs.order": 2**31}, "order is out of range"),
    ("mec", {"method_kwargs.eps": 1e308}, "method_kwargs.eps is out of range"),
    ("twist", {"method_kwargs.bunch_size": 7}, "TWIST bunches do not fit"),
    ("corinfomax", {"method_kwargs.R_ini": 1e308}, "method_kwargs.R_ini is out of range"),
    ("minent", {"folder": "\x00"}, "folder is no path: \\x00"),
    ("minent", {"folder": "\udcff"}, "folder is no path: \\udcff"),
    ("minent", {"precision": "\x1b[31m\n"}, "precision is unknown: \\x1b[31m\\n"),
    ("minent", {"data.image_size": 2**40, "augmentations.0.crop_size": 2**40}, "image_size is out"),
    ("minent", {"augmentations.0.num_crops": 2**63}, "num_crops must be a positive number"),
    ("minent", {"augmentations.0.order": [{}]}, "order must be a list"),
    ("minent", {"backbone.kwargs.layers": [2**31] * 4}, "backbone.kwargs.layers is out of range"),
    ("minent", {"backbone.kwargs.channels": [0] * 4}, "does not take images of 16 pixels"),
    ("minent", {"backbone.kwargs.layers": []}, "timm:resnet10t"),
    ("minent", {"backbone.kwargs.in_chans": 1}, "does not take images of 16 pixels"),
    ("minent", {"backbone.kwargs.checkpoint_path": "x"}, "is built untrained"),
    ("minent", {"optimizer.kwargs": {"betas": [0.9]}}, "optimizer.kwargs do not suit adam"),
    ("minent", {"optimizer.kwargs": {"eps": 1e308}}, "optimizer.kwargs.eps is out of range"),
    ("minent", {"optimizer.kwargs": {"eps": None}}, "optimizer.kwargs do not suit adam"),
]


@pytest.mark.parametrize(("method", "values", "message"), EDGES, ids=lambda value: str(value)[:40])
def test_what_the_campaign_found(attempt, method, values, message):
    change = tuple(Change("set", path, value) for path, value in values.items())
    assert attempt(Case(f"digits/{method}", True, change)) == "refused"
    assert message in attempt.said
