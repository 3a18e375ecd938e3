"""Files are read whole or refused in one line; nothing that is in them is run."""

import io
import os
import pickle
import random
import struct
import tarfile
import zipfile

import pytest
import torch

from solo_minent.errors import UserError
from solo_minent.weight_files import read_weight_file, safetensors_bytes

STATE = {"0.weight": torch.arange(2000.0).reshape(40, 50), "0.bias": torch.ones(40)}


def refused(path, message):
    with pytest.raises(UserError) as caught:
        read_weight_file(path)
    text = str(caught.value)
    assert message in text and "\n" not in text and len(text) < 500, text


class Hostile:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".tar", ".pt"])
@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("call", ["os.system", "eval", "open", "print"])
def test_code_in_a_pickle_is_never_run(suffix, how, call, tmp_path, capfd):
    mark, path = tmp_path / "mark", tmp_path / f"file{suffix}"
    calls = {
        "os.system": Hostile(os.system, f"touch {mark}"),
        "eval": Hostile(eval, f"open({str(mark)!r}, 'w')"),
        "open": Hostile(open, str(mark), "w"),
        "print": Hostile(print, "run"),
    }
    contents = {**STATE, "note": calls[call]}
    if how == "pickle":
        path.write_bytes(pickle.dumps(contents["note"], protocol=2))
    else:
        torch.save(contents, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(UserError) as caught:
        read_weight_file(path)
    text = str(caught.value)
    assert text.startswith(("weights ask for code: ", "backbone weights are damaged: "))
    if how != "pickle":
        assert f"{path} wants " in text and "Save the weights alone" in text
    assert "\n" not in text
    assert not mark.exists() and "run" not in capfd.readouterr().out


def test_a_whole_model_is_code(tmp_path):
    torch.save(torch.nn.Linear(2, 3), tmp_path / "model.pt")
    refused(tmp_path / "model.pt", "wants torch.nn.modules.linear.Linear")


PAGE = b"\n<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head>"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.pth", b"", "(it is empty)"),
        ("a.safetensors", b"", "(it is empty)"),
        ("a.pth", PAGE, "it is a web page, which some sites send in place of the file"),
        ("a.safetensors", PAGE, "it is a web page"),
        ("a.ckpt", b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "pointer of Git"),
        ("a.pth", b"PK\x03\x04 and nothing more", "(it is cut short)"),
        ("a.pth", b"\x80\x02}q\x00.", "backbone weights are damaged"),
        ("a.pt", random.Random(0).randbytes(300), "backbone weights are damaged"),
        ("a.safetensors", b"\xff" * 64, "no whole safetensors file"),
        ("a.safetensors", struct.pack("<Q", 2) + b"{}"[:1], "no whole safetensors file"),
        ("a.bin", b"x", "ending of a weight file is unknown"),
    ],
)
def test_what_is_no_weight_file(name, data, message, tmp_path):
    (tmp_path / name).write_bytes(data)
    refused(tmp_path / name, message)


def test_a_missing_file_or_a_folder(tmp_path):
    refused(tmp_path / "no.pth", f"backbone weights are missing: {tmp_path / 'no.pth'}")
    refused(tmp_path, "backbone weights are missing")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.95, 0.999])
def test_a_truncated_file(zipped, share, tmp_path):
    path = tmp_path / "a.pth"
    torch.save(STATE, path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    refused(path, "backbone weights are damaged")


def test_the_same_contents_are_the_same_bytes(tmp_path):
    metadata = {f"key {n}": "é" * n for n in range(8)}
    first, *others = (safetensors_bytes(STATE, dict(metadata)) for _ in range(4))
    assert others == [first] * 3
    path = tmp_path / "a.safetensors"
    path.write_bytes(first)
    tensors, stated = read_weight_file(path)
    assert stated == metadata and all(tensors[name].equal(STATE[name]) for name in STATE)
    assert struct.unpack("<Q", first[:8])[0] % 8 == 0


def test_a_truncated_or_lying_safetensors_file(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "a.safetensors"
    save_file(STATE, path)
    data = path.read_bytes()
    for share in (0.001, 0.1, 0.5, 0.99):
        path.write_bytes(data[: int(share * len(data))])
        refused(path, "backbone weights are damaged")
    path.write_bytes(data.replace(b'"shape":[40,50]', b'"shape":[99,99]'))
    refused(path, "backbone weights are damaged")


def test_every_flipped_byte_of_an_archive_is_noticed(tmp_path):
    path = tmp_path / "a.pth"
    torch.save(STATE, path)
    data = path.read_bytes()
    start = data.index(STATE["0.weight"].numpy().tobytes())
    for at in (start, start + 4000, data.index(b"data.pkl") + 60):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        refused(path, "backbone weights are damaged")


def test_an_archive_that_claims_more_than_it_has(tmp_path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("archive/data/0", bytes(1 << 24))
    assert path.stat().st_size < 1 << 20
    refused(path, "bytes that unpacks to 16777")


def test_a_storage_that_claims_more_than_there_is(tmp_path):
    path, huge = tmp_path / "a.pth", tmp_path / "b.pth"
    torch.save({"x": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(huge, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            if entry.filename.endswith("data.pkl"):
                # BININT2 1000, as size of the storage and of the tensor, becomes BININT 2^31 - 1.
                data = data.replace(b"M\xe8\x03", b"J\xff\xff\xff\x7f")
            new.writestr(entry.filename, data)
    refused(huge, "backbone weights are damaged")


def test_the_tar_format_of_old_releases_and_lists_are_refused(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    refused(path, "backbone weights are damaged")
    torch.save([torch.ones(2)], path)
    refused(path, "it holds a list, no names and tensors")


def test_loading_leaves_no_trace_of_its_allowance(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    torch.save(STATE, tmp_path / "a.pth")
    contents, metadata = read_weight_file(tmp_path / "a.pth")
    assert torch.equal(contents["0.weight"], STATE["0.weight"]) and metadata == {}
    assert set(torch.serialization.get_safe_globals()) == before
