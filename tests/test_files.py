"""Files are whole or absent."""

import errno
import hashlib
import os
import socket
import subprocess
import sys
import time

import pytest

from solo_minent import files
from solo_minent.cli import main
from solo_minent.errors import UserError
from solo_minent.files import full_disk, sha256, write_atomic, write_bytes, write_text


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "sub" / "file.txt"
    write_text(path, "old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, fail)
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path):
    data = bytes(range(256)) * 9000  # more than is read at once
    (tmp_path / "file").write_bytes(data)
    assert sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_bytes_are_on_the_disk_before_the_name_changes(tmp_path, monkeypatch):
    calls = []

    def note(name):
        real = getattr(os, name)

        def call(first, *rest):
            calls.append(
                (name, os.readlink(f"/proc/self/fd/{first}") if name == "fsync" else first)
            )
            return real(first, *rest)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "replace"):
        note(name)
    path = tmp_path / "file"
    write_atomic(path, lambda t: t.write_text("x"), lambda t: calls.append(("read back", t)))
    (temporary,) = {os.fspath(where) for _, where in calls} - {os.fspath(tmp_path)}
    names = [(name, os.fspath(where)) for name, where in calls]
    steps = ["fsync", "read back", "replace"]
    assert names == [*((step, temporary) for step in steps), ("fsync", os.fspath(tmp_path))]
    assert os.path.dirname(temporary) == os.fspath(tmp_path)  # one file system


def test_the_old_file_stays_until_the_new_one_reads_back(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def sync(descriptor):  # a disk that loses a byte
        os.pwrite(descriptor, b"X", 1)

    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(UserError, match=f"file does not read back: {path}"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 9000])
def test_bytes_read_back_whatever_their_number(tmp_path, data, monkeypatch):
    write_bytes(tmp_path / "file", data)
    assert (tmp_path / "file").read_bytes() == data

    def cut(descriptor):
        os.ftruncate(descriptor, max(len(data) - 1, 0))

    monkeypatch.setattr(os, "fsync", cut)
    if data:
        with pytest.raises(UserError, match="does not read back"):
            write_bytes(tmp_path / "file", data)


def test_the_next_write_removes_what_a_dead_process_left(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(timeout=60)
    here, old = files.place(), time.time() - 2 * files.STALE
    dead, alive = ended.pid, os.getppid()
    names = {
        f".last.ckpt.{here}.{dead}.tmp": False,
        f".last.ckpt.{here}.{os.getpid()}.tmp": False,  # of an earlier one with our number
        f".last.ckpt.{here}.{alive}.tmp": True,
        f".last.ckpt.0badf00d.{dead}.tmp": True,  # of another host: its processes are unknown
        f".first.ckpt.{here}.{dead}.tmp": True,  # of another file
        f".last.ckpt.x.{here}.{dead}.tmp": True,
        "xlast.ckpt.tmp": True,
    }
    aged = {".last.ckpt.0badf00d.7.tmp": False, ".last.ckpt.7.tmp": False, ".last.ckpt.tmp": True}
    for name in names | aged:
        (tmp_path / name).write_text("half")
    for name in aged:
        os.utime(tmp_path / name, (old, old))
    write_text(tmp_path / "last.ckpt", "whole")
    assert {name: (tmp_path / name).exists() for name in names | aged} == names | aged


def test_temporary_files_of_several_hosts_and_containers_differ(monkeypatch):
    here = files.place()
    assert files.place() == here
    monkeypatch.setattr(socket, "gethostname", lambda: "another")
    assert files.place() != here


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_known_in_every_form(number):
    assert full_disk(OSError(number, "full")).errno == number
    # PyTorch's writer, https://github.com/pytorch/pytorch caffe2/serialize/inline_container.cc
    try:
        try:
            raise OSError(number, "full")
        finally:
            raise RuntimeError("unexpected pos 1920 vs 1814")  # noqa: B012
    except RuntimeError as error:
        assert full_disk(error).errno == number
    rust = Exception(f"Error while serializing: I/O error: x (os error {number})")  # safetensors
    hdf5 = RuntimeError(f"Can't write data (file descriptor = 3, errno = {number}, error message")
    assert full_disk(rust).errno == full_disk(hdf5).errno == number


@pytest.mark.parametrize("error", [OSError(errno.EIO, "I/O"), RuntimeError("x (os error 5)")])
def test_another_error_is_no_full_disk(error):
    assert full_disk(error) is None


def test_the_command_line_names_a_full_disk(monkeypatch, capsys):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "/data/x")

    monkeypatch.setattr("solo_minent.cli.run.recipes", fail)
    assert main(["recipes"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: disk is full: /data/x needs space (No space left on device). ")
