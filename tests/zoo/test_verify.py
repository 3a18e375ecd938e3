"""`zoo verify`, `list`, `info`, `download`, `load`: what they print, and what they find."""

import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file, save_file

from solo_minent.files import sha256
from solo_minent.zoo.cache import cached
from solo_minent.zoo.index import read_index


@pytest.fixture
def zoo(values, write_zoo):
    return write_zoo(values)


def test_a_zoo_that_is_right(zoo, command):
    status, out, _ = command("zoo", "verify")
    assert status == 0 and "1 checks, nothing wrong" in out and "loaded 78/78" in out
    assert command("zoo", "verify", "tiny")[0] == 0
    assert "model is unknown: none" in command("zoo", "verify", "none")[2]


def test_our_own_zoo_is_right(command):
    """What the repository ships."""
    status, out, error = command("zoo", "verify")
    assert status == 0, error
    assert "nothing wrong" in out


def _flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes, the index says"),
        (_flip, "has sha256"),
        (lambda path: path.write_bytes(b""), "has 0 bytes"),
    ],
)
def test_a_spoilt_file_is_found(spoil, words, zoo, command):
    spoil(zoo / "checkpoints" / "tiny.safetensors")
    status, out, error = command("zoo", "verify")
    assert status == 2 and words in out and words in error
    assert error.startswith("error: zoo is not what its index says: 1 of 1 checks failed")


def test_a_spoilt_file_of_the_cache_is_found(zoo, command):
    (entry,) = read_index()
    place = cached(entry.file)
    place.parent.mkdir(parents=True)
    place.write_bytes((zoo / "checkpoints" / "tiny.safetensors").read_bytes())
    assert command("zoo", "verify")[0] == 0
    _flip(place)
    status, _, error = command("zoo", "verify")
    assert status == 2 and str(place) in error and "1 of 2 checks" in error


def test_a_file_that_belongs_to_no_model_is_found(zoo, command):
    (zoo / "checkpoints" / "other.safetensors").write_bytes(b"x")
    assert "checkpoints/other.safetensors: is no file of the index" in command("zoo", "verify")[2]
    assert command("zoo", "verify", "tiny")[0] == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": "float16"}, "weights are float32, the index says float16"),
        ({"dtype": "mixed"}, "weights are float32, the index says mixed"),
        ({"stem": "cifar"}, "header has another backbone"),
        ({"kwargs": {"channels": [8, 8, 8, 16]}}, "header has another backbone"),
        ({"feature_dim": 9}, "feature_dim of tiny is wrong"),
        ({"large": True}, "bytes, a repository takes"),
    ],
)
def test_an_index_that_says_something_else_is_found(
    change, words, values, write_zoo, command, monkeypatch
):
    if "dtype" in change:
        values["files"][0] |= change
    elif "feature_dim" in change:
        values |= change
    elif "large" in change:
        monkeypatch.setattr("solo_minent.zoo.verify.MAX_SHIPPED", 1000)
    else:
        values["backbone"] |= change
    write_zoo(values)
    status, _, error = command("zoo", "verify")
    assert status == 2 and words in error


def test_hashes_that_are_right_do_not_make_weights_whole(values, write_zoo, command, tmp_path):
    path = tmp_path / "zoo" / "checkpoints" / "tiny.safetensors"
    tensors = load_file(path)
    del tensors["conv1.weight"]
    save_file(tensors, path)
    values["files"][0] |= {"bytes": path.stat().st_size, "sha256": sha256(path)}
    write_zoo(values)
    assert "weights do not fit" in command("zoo", "verify")[2]
    path.write_bytes(b"\xff" * 200)
    values["files"][0] |= {"bytes": 200, "sha256": sha256(path)}
    write_zoo(values)
    assert "header is damaged" in command("zoo", "verify")[2]


def test_a_download_that_is_not_there_is_not_wrong(values, write_zoo, command, tmp_path):
    (tmp_path / "zoo" / "checkpoints" / "tiny.safetensors").unlink()
    values["files"][0]["urls"] = ["https://example.org/tiny.safetensors"]
    write_zoo(values)
    status, out, _ = command("zoo", "verify")
    assert status == 0 and "not downloaded" in out


# The other commands.


def test_list_and_info(zoo, command, write_zoo, values):
    status, out, _ = command("zoo", "list")
    assert status == 0 and "tiny" in out and "not ours" in out and "digits" in out
    status, out, _ = command("zoo", "info", "tiny")
    assert status == 0 and values["files"][0]["sha256"] in out
    assert out.startswith("not ours: see https://example.org/models")
    status, out, _ = command("zoo", "info", "tiny", "--json")
    assert json.loads(out)["files"][0]["bytes"] == values["files"][0]["bytes"]
    assert "model is unknown: big. The zoo has tiny." in command("zoo", "info", "big")[2]
    write_zoo()
    assert command("zoo", "list")[:2] == (0, "the zoo has no models yet\n")


def test_another_zoo_by_its_folder(values, write_zoo, command, monkeypatch):
    folder = write_zoo(values)
    monkeypatch.delenv("SOLO_MINENT_ZOO")
    assert "tiny" in command("zoo", "list", "--zoo", folder)[1]
    assert "loaded 78/78" in command("zoo", "load", "tiny", "--zoo", folder)[1]
    assert "model index is missing" in command("zoo", "list", "--zoo", folder / "none")[2]


def test_load_says_in_one_line_what_was_loaded(zoo, command):
    status, out, _ = command("zoo", "load", "tiny", "--offline")
    assert status == 0 and len(out.splitlines()) == 1
    assert out.startswith(f"tiny: loaded 78/78 from {zoo / 'checkpoints'}")


def test_download_of_one_and_of_all(values, write_zoo, command, hub, tmp_path):
    hub.content = (tmp_path / "zoo" / "checkpoints" / "tiny.safetensors").read_bytes()
    (tmp_path / "zoo" / "checkpoints" / "tiny.safetensors").unlink()
    gone = asdict(hub.entry("404", name="gone.safetensors"))
    values["files"][0]["urls"] = [hub.url("ok")]
    write_zoo(values, values | {"id": "gone", "files": [gone]})
    status, out, error = command("zoo", "download", "all")
    assert status == 2 and "gone.safetensors" in error and "HTTP 404" in error
    (path,) = out.split()
    assert path == str(cached(read_index()[0].file))
    status, out, _ = command("zoo", "download", "tiny", "--offline")
    assert status == 0 and out.split() == [path]
    assert "model is unknown: none" in command("zoo", "download", "none")[2]


def test_an_index_that_is_wrong_is_one_line_everywhere(write_zoo, command):
    write_zoo(text="version: 1\nmodels: [{id: ../x}]")
    for words in (["list"], ["info", "x"], ["verify"], ["download", "all"], ["load", "x"]):
        status, _, error = command("zoo", *words)
        assert status == 2 and "model index is wrong" in error


def test_help_needs_no_library(command):
    with pytest.raises(SystemExit) as caught:
        command("zoo", "--help")
    assert caught.value.code == 0
    assert (
        "zoo: unknown" in command("zoo", "fly")[2] or "invalid choice" in command("zoo", "fly")[2]
    )


def test_weights_of_numbers_that_are_not_known(values, write_zoo, command, tmp_path):
    path = tmp_path / "zoo" / "checkpoints" / "tiny.safetensors"
    save_file({k: v.to(torch.int64) for k, v in load_file(path).items()}, path)
    values["files"][0] |= {"bytes": path.stat().st_size, "sha256": sha256(path)}
    write_zoo(values)
    assert "weights are no numbers, the index says float32" in command("zoo", "verify")[2]
