"""The index of the zoo: what it must say, and what a hostile one may not."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from solo_minent.errors import UserError
from solo_minent.files import sha256
from solo_minent.zoo.index import find_model, read_index, write_index, zoo_folder
from solo_minent.zoo.schema import plain

ROOT = Path(__file__).parents[2]


def refused(*words):
    with pytest.raises(UserError) as caught:
        read_index()
    text = str(caught.value)
    assert "\n" not in text and len(text) < 900 and text.isprintable(), text
    assert text.startswith("model index is wrong: ") and "models.yaml" in text
    for word in words:
        assert word in text, text


def changed(values, path, value):
    """A copy with another value at a path such as files.0.name; ... removes the key."""
    values = copy.deepcopy(values)
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place = values
    for part in way:
        place = place[part]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return values


def test_a_model_is_read_and_written_as_it_was(values, write_zoo):
    folder = write_zoo(values)
    (entry,) = read_index()
    assert (entry.id, entry.ours, entry.file.bytes) == ("tiny", False, values["files"][0]["bytes"])
    assert entry.backbone.kwargs == {"channels": [8, 8, 8, 8]} and entry.file.dtype == "float32"
    write_index(folder, [entry])
    assert read_index() == [entry]
    before = (folder / "models.yaml").read_text()
    write_index(folder, read_index())
    assert (folder / "models.yaml").read_text() == before and before.startswith("# The models")
    assert plain(entry)["files"][0]["urls"] == ["checkpoints/tiny.safetensors"]


def test_the_index_of_the_repository_is_right_and_as_written(tmp_path):
    folder = ROOT / "zoo"
    entries = read_index(folder)
    write_index(tmp_path, entries)
    assert (tmp_path / "models.yaml").read_text() == (folder / "models.yaml").read_text()


def test_the_zoo_in_use(write_zoo, monkeypatch, tmp_path):
    assert zoo_folder() == ROOT / "zoo"
    folder = write_zoo()
    assert zoo_folder() == folder and read_index() == []
    monkeypatch.setenv("SOLO_MINENT_ZOO", str(tmp_path / "none"))
    with pytest.raises(UserError, match="zoo is missing: .*none.*SOLO_MINENT_ZOO"):
        zoo_folder()


def test_a_model_that_is_not_there(values, write_zoo):
    write_zoo(values)
    assert find_model("tiny").id == "tiny"
    with pytest.raises(UserError, match="model is unknown: tinny. The zoo has tiny."):
        find_model("tinny")
    write_zoo()
    with pytest.raises(UserError, match="model is unknown: tiny. .* has no models yet"):
        find_model("tiny")


HUGE = 10**30


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("id", ..., "model 1, id is missing"),
        ("id", "../tiny", "model ../tiny, id is ../tiny"),
        ("id", "Tiny", "id is Tiny"),
        ("id", "a b", "id is a b"),
        ("id", "tiny\n", "unprintable"),
        ("id", "trained", "id may not be trained"),
        ("id", "a" * 81, "id may not be"),
        ("id", "tiny.safetensors", "id may not be tiny.safetensors"),
        ("id", "tiny.pt", "id may not be tiny.pt"),
        ("id", ["tiny"], "model 1"),
        ("ours", "maybe", "at ours"),
        ("files", [], "files is empty"),
        ("files", ..., "files is missing"),
        ("files", "tiny.safetensors", "at files"),
        ("files.0.name", "../tiny.safetensors", "files[0].name is ../tiny.safetensors"),
        ("files.0.name", "/etc/passwd", "files[0].name is /etc/passwd"),
        ("files.0.name", "a/b.safetensors", "files[0].name"),
        ("files.0.name", "a\\b.safetensors", "files[0].name"),
        ("files.0.name", "..", "files[0].name"),
        ("files.0.name", ".hidden.safetensors", "files[0].name"),
        ("files.0.name", "tiny.pkl", "safetensors ends in .safetensors"),
        ("files.0.name", "tiny.pth", "safetensors ends in .safetensors"),
        ("files.0.name", "a" * 130 + ".safetensors", "files[0].name"),
        ("files.0.name", ..., "files[0].name is missing"),
        ("files.0.format", "pickle", "files[0].format is unknown: pickle"),
        ("files.0.dtype", "float8", "files[0].dtype is unknown: float8"),
        ("files.0.sha256", "0" * 63, "files[0].sha256 is 000"),
        ("files.0.sha256", "G" * 64, "files[0].sha256"),
        ("files.0.sha256", "A" * 64, "files[0].sha256"),
        ("files.0.sha256", ..., "files[0].sha256 is missing"),
        ("files.0.sha256", "???", "files[0].sha256 is missing"),
        ("files.0.bytes", HUGE, "files[0].bytes"),
        ("files.0.bytes", 2**34 + 1, "files[0].bytes is out of range"),
        ("files.0.bytes", 0, "files[0].bytes is out of range"),
        ("files.0.bytes", -1, "files[0].bytes is out of range"),
        ("files.0.bytes", "many", "model tiny, files[0]: Value 'many'"),
        ("files.0.bytes", 1.5, "could not be converted to Integer at bytes"),
        ("files.0.urls.0", "../secret", "files[0].urls[0] is ../secret"),
        ("files.0.urls.0", "/etc/passwd", "files[0].urls[0] is /etc/passwd"),
        ("files.0.urls.0", "checkpoints/../../x", "files[0].urls[0]"),
        ("files.0.urls.0", "C:\\x", "files[0].urls[0]"),
        ("files.0.urls.0", "checkpoints/.git/x", "files[0].urls[0]"),
        ("files.0.urls.0", "file:///etc/passwd", "files[0].urls[0] is file:///etc/passwd"),
        ("files.0.urls.0", "ftp://host/x", "files[0].urls[0] is ftp://host/x"),
        ("files.0.urls.0", "javascript://x", "files[0].urls[0]"),
        ("files.0.urls.0", "https://user:secret@host/x", "has a user or password in it: https"),
        ("files.0.urls.0", "https://token@host/x", "has a user or password in it"),
        ("files.0.urls.0", "https://", "files[0].urls[0] is https://"),
        ("files.0.urls.0", "https://host:port/x", "files[0].urls[0] is no url"),
        ("files.0.urls.0", "https://[::1/x", "files[0].urls[0] is no url"),
        ("files.0.urls.0", "https://host/a b", "files[0].urls[0] is https://host/a b"),
        ("files.0.urls.0", "hf://owner/x.safetensors@main", "hf://<owner>/<repository>/<path>"),
        ("files.0.urls.0", "hf://owner/models/../x@main", "hf://<owner>/<repository>/<path>"),
        ("files.0.urls.0", "hf://owner/models/x", "hf://<owner>/<repository>/<path>"),
        ("files.0.extra", 1, "'extra'"),
        ("extra", 1, "'extra'"),
        ("backbone.name", ..., "backbone.name is missing"),
        ("backbone.weights", "x", "'weights'"),
        ("backbone.kwargs", {"channels": {"a": 1}}, "backbone.kwargs.channels"),
        ("feature_dim", 10**9, "feature_dim is out of range"),
        ("normalization.mean", [0.5], "normalization.mean has 1 numbers"),
        ("normalization.std", [0, 1, 1], "normalization.std is out of range"),
        ("normalization.mean", [float("nan")] * 3, "normalization.mean is out of range: nan"),
        ("normalization.image_size", 10**6, "normalization.image_size is out of range"),
        ("which", "both", "which is unknown: both"),
        ("page", ..., "page is missing: external has it"),
        ("page", "file:///x", "page is file:///x"),
        ("config", "../../x", "config is ../../x"),
        ("date", "yesterday", "date is yesterday"),
        ("commit", "a b", "commit is a b"),
        ("recipe", "../x/y", "recipe is ../x/y"),
        ("epochs", 0, "epochs is out of range"),
        ("metrics", [{"evaluation": "knn"}], "metrics[0].protocol is missing"),
        (
            "metrics",
            [{"evaluation": "best", "protocol": "p", "top1": 1}],
            "metrics[0].evaluation is unknown: best",
        ),
        (
            "metrics",
            [{"evaluation": "knn", "protocol": "p", "top1": 101}],
            "metrics[0].top1 is out of range",
        ),
        ("licence", "${oc.env:HOME}", "interpolation"),
        ("ours", True, "epochs is missing: ours has it"),
    ],
)
def test_a_wrong_key_is_named(path, value, words, values, write_zoo):
    write_zoo(changed(values, path, value))
    refused(words)


def test_names_are_there_once(values, write_zoo):
    write_zoo(values, dict(values))
    refused("id is there twice: tiny")
    # torch.hub's entries are named by the ids, with _ for - and .
    one, two = (
        changed(changed(values, "id", name), "files.0.name", f"{number}.safetensors")
        for number, name in enumerate(("tiny-1.0", "tiny-1-0"))
    )
    write_zoo(one, two)
    refused("id is there twice: tiny_1_0")
    other = changed(changed(values, "id", "other"), "files.0.name", "TINY.safetensors")
    write_zoo(values, other)
    refused("file name is there twice: tiny.safetensors")


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "line 1 has an anchor or alias"),
        ("version: 1\nmodels: [*gone]", "line 2 has an anchor or alias"),
        ("version: 1\nmodels: !!python/object/apply:os.system ['touch pwned']", "has a tag"),
        ("!!python/name:os.system\nversion: 1", "has a tag"),
        ("version: 1\nmodels: !!set {a}", "has a tag"),
        ("version: 1\nversion: 1\nmodels: []", "duplicate key"),
        ("version: 1\nmodels: " + "[" * 5000, "brackets deep"),
        ("version: 1\nmodels: " + "{a: " * 5000, "brackets deep"),
        ("version: 1\nmodels: [", ""),
        ("version: 2\nmodels: []", "version: 1"),
        ("models: []", "version: 1"),
        ("version: 1\nmodels: []\nmore: 1", "nothing else"),
        ("version: 1\nmodels: {}", "models is no list"),
        ("version: 1\nmodels: [tiny]", "model 1, it is no mapping"),
        ("version: 1\nmodels: [null]", "model 1, it is no mapping"),
        ("version: ${oc.env:HOME}\nmodels: []", "interpolation"),
        ("version: 1\n---\nmodels: []", ""),
        ("", "version: 1"),
        ("- 1", "version: 1"),
        ('version: 1\nmodels: ["\\e[31m"]', "unprintable"),
        (b"\xff\xfe\x00", ""),
        (b"version: 1\nmodels: ['\xff']", "utf-8"),
        (b"\x00" * 10, ""),
        (b"#" * (1 << 23), "it is larger than"),
    ],
)
def test_a_hostile_index_is_refused(text, words, write_zoo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_zoo(text=text)
    refused(words)
    assert not (tmp_path / "pwned").exists()


def test_an_index_that_is_missing_is_one_line(tmp_path):
    with pytest.raises(UserError, match="model index is missing"):
        read_index(tmp_path)


def test_the_index_needs_no_torch():
    code = "import sys; from solo_minent.zoo.index import read_index; read_index()\n"
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


# A wheel has the zoo in the package.


def test_a_wheel_has_the_index_and_its_files(tmp_path):
    """Built with what is installed, without a connection; read by a Python that sees it alone."""
    copy_of = tmp_path / "checkout"
    words = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"]
    names = subprocess.run(words, capture_output=True, check=True, timeout=60).stdout.split(b"\0")
    for name in (name.decode() for name in names if name):
        if name.startswith(("solo_minent/", "zoo/", "setup.py", "pyproject", "README")):
            target = copy_of / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "setup.py", "-q", "bdist_wheel", "--dist-dir", str(tmp_path)]
    done = subprocess.run(build, cwd=copy_of, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    code = "from solo_minent.zoo.index import *; print(zoo_folder(), len(read_index()))"
    run = [
        sys.executable,
        "-S",
        "-c",
        f"import sys; sys.path[:0] = {_path(wheel, tmp_path)!r}; {code}",
    ]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    count = len(yaml.safe_load((ROOT / "zoo" / "models.yaml").read_text())["models"])
    kept = tmp_path / "site" / "solo_minent" / "zoo"
    assert done.stdout.split() == [str(kept), str(count)]
    assert _shipped(kept) == _shipped(copy_of / "zoo")


def _shipped(zoo):
    found = [path for path in zoo.glob("checkpoints/**/*") if path.is_file()]
    found += zoo.glob("results/zoo-*.csv")
    return {str(path.relative_to(zoo)): sha256(path) for path in found}


def _path(wheel, tmp_path):
    """Where the unpacked wheel is, and the packages that it needs."""
    import zipfile

    import omegaconf

    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    return [str(tmp_path / "site"), str(Path(omegaconf.__file__).parents[1])]
