"""`zoo add --from-file`: models of others are named, with page, licence and hash, and not shipped.

That each official layout loads rightly is in tests/test_weight_layouts.py; here is the way from
such a file into the index and out of it again.
"""

import pytest
import torch

from solo_minent.backbones import build_backbone
from solo_minent.files import sha256
from solo_minent.zoo import load_backbone
from solo_minent.zoo.index import read_index

SMALL = {"channels": [8, 8, 8, 8]}
PAGE = "https://example.org/paper"


def network():
    torch.manual_seed(3)
    backbone = build_backbone("timm:resnet10t", "imagenet", **SMALL)
    for value in backbone.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.1)
    return backbone.eval()


def under(prefix, tensors):
    return {f"{prefix}{name}": value for name, value in tensors.items()}


def official(kind, state):
    """As the official code saves it."""
    if kind == "mec":
        predictor = {"module.predictor.0.weight": torch.rand(3)}
        return {"epoch": 100, "state_dict": under("module.encoder.", state) | predictor}
    if kind == "twist":
        heads = {"projection_heads.0.weight": torch.rand(3)}
        return {"model": under("backbone.", state) | heads, "backbone": state, "epoch": 849}
    if kind == "corinfomax":
        projector = {"projector.0.weight": torch.rand(3)}
        return {"model_state_dict": under("backbone.", state) | projector, "epoch": 100}
    prefix = "encoder." if kind == "solo-learn 1.0.2" else "backbone."
    classifier = {"classifier.weight": torch.rand(3)}
    return {"state_dict": under(prefix, state) | classifier, "epoch": 99}


def words(path, **changes):
    given = {
        "--id": "theirs",
        "--architecture": "timm:resnet10t",
        "--stem": "imagenet",
        "--kwargs": '{"channels": [8, 8, 8, 8]}',
        "--dataset": "imagenet",
        "--method": "mec",
        "--licence": "CC-BY-NC-4.0",
        "--page": PAGE,
        "--image-size": "64",
    }
    given |= {f"--{key.replace('_', '-')}": value for key, value in changes.items()}
    pairs = [word for key, value in given.items() if value is not None for word in (key, value)]
    return ["zoo", "add", "--from-file", path, *pairs]


@pytest.mark.parametrize(
    "kind", ["mec", "twist", "corinfomax", "solo-learn 1.0.2", "solo-learn 1.0.6"]
)
def test_an_official_checkpoint_becomes_a_model_of_equal_outputs(
    kind, write_zoo, command, tmp_path
):
    zoo, own = write_zoo(), network()
    path = tmp_path / "official.pth"
    torch.save(official(kind, own.state_dict()), path)
    status, out, error = command(*words(path))
    assert status == 0, error
    assert out.startswith(f"added theirs to {zoo}, not ours: ") and "loaded 78/78" in out
    assert kind.split()[0] in out.lower()
    (entry,) = read_index()
    assert (entry.ours, entry.page, entry.licence) == (False, PAGE, "CC-BY-NC-4.0")
    assert (entry.file.name, entry.file.format, entry.file.sha256) == (
        *("theirs.pth", "pytorch"),
        sha256(path),
    )
    assert [p.name for p in zoo.iterdir()] == ["models.yaml"]
    path.unlink()
    model = load_backbone("theirs", offline=True)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.backbone(images), own(images))
    assert model.entry.normalization.mean == [0.485, 0.456, 0.406]
    assert "not ours" in command("zoo", "list")[1] and PAGE in command("zoo", "info", "theirs")[1]
    assert command("zoo", "verify")[0] == 0


def test_without_an_address_it_is_had_by_hand(write_zoo, command, tmp_path, alone):
    write_zoo()
    path = tmp_path / "official.pth"
    torch.save(official("mec", network().state_dict()), path)
    assert command(*words(path))[0] == 0
    (kept,) = alone.rglob("theirs.pth")
    kept.unlink()
    _, _, error = command("zoo", "load", "theirs")
    assert "the index names no address" in error and f"put the file at {kept}" in error
    kept.write_bytes(path.read_bytes())
    assert command("zoo", "load", "theirs")[0] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "resnet50"}, "weights do not fit"),
        ({"architecture": None}, "--architecture is missing"),
        ({"stem": "cifar"}, "weights do not fit"),
        ({"page": None}, "--page is missing"),
        ({"licence": None}, "--licence is missing"),
        ({"page": "file:///x"}, "page is file:///x"),
        ({"kwargs": "{"}, "--kwargs is no JSON"),
        ({"kwargs": "3"}, "--kwargs is no JSON"),
        ({"url": "https://me:secret@host/x.pth"}, "has a user or password in it"),
        ({"id": "Theirs"}, "id is Theirs"),
        ({"which": "teacher"}, "weights of a teacher are missing"),
    ],
)
def test_what_is_wrong_is_one_line_and_adds_nothing(changes, message, write_zoo, command, tmp_path):
    write_zoo()
    path = tmp_path / "official.pth"
    torch.save(official("mec", network().state_dict()), path)
    changes = {"kwargs": None, **changes} if changes.get("architecture") else changes
    status, _, error = command(*words(path, **changes))
    assert status == 2 and message in error, error
    assert read_index() == []


def test_a_file_and_a_run_are_not_added_together(write_zoo, command, tmp_path):
    write_zoo()
    assert "--from-file stands alone: run" in command(*words(tmp_path / "x.pth"), "run")[2]
    assert "run is not named: no folder" in command("zoo", "add", "--id", "x")[2]
    assert "are missing" in command(*words(tmp_path / "x.pth"))[2]


def test_a_name_is_taken_once(write_zoo, command, tmp_path):
    write_zoo()
    path = tmp_path / "official.pth"
    torch.save(official("twist", network().state_dict()), path)
    assert command(*words(path))[0] == 0
    assert "model is there: theirs" in command(*words(path))[2]


def test_a_cache_that_cannot_be_made_leaves_no_entry(write_zoo, command, tmp_path, monkeypatch):
    zoo = write_zoo()
    path = tmp_path / "official.pth"
    torch.save(network().state_dict(), path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SOLO_MINENT_CACHE", str(tmp_path / "file" / "cache"))
    assert "cache folder cannot be made" in command(*words(path))[2]
    assert read_index() == [] and [p.name for p in zoo.iterdir()] == ["models.yaml"]
