"""What is downloaded is the file of the index, or nothing: with servers that do everything else."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from solo_minent.errors import UserError
from solo_minent.files import sha256
from solo_minent.zoo.cache import cache_folder, cached
from solo_minent.zoo.download import Patience, fetch

NAME = "weights.safetensors"
QUICK = Patience(connect=2.0, stall=0.3, slowest=10_000, attempts=3, pause=0.01)
FETCH = """
import json, sys
from pathlib import Path
from solo_minent.zoo.download import fetch
from solo_minent.zoo.schema import FileEntry
print(fetch(FileEntry(**json.loads(sys.argv[1])), Path(sys.argv[2]), progress=False))
"""


def get(file, tmp_path, **options):
    return fetch(file, tmp_path, patience=QUICK, progress=False, **options)


def kept(cache):
    """Names of the files in a cache, but for locks."""
    return {p.name for p in cache.rglob("*") if p.is_file() and p.name != ".lock"}


def refused(file, tmp_path, cache, *words, left=(), **options):
    """One line with these words; nothing has the name of the file."""
    with pytest.raises(UserError) as caught:
        get(file, tmp_path, **options)
    text = str(caught.value)
    assert "\n" not in text and file.sha256 in text and str(cached(file)) in text
    for word in words:
        assert word in text, text
    assert kept(cache) == set(left)


# What works.


@pytest.mark.parametrize("behaviour", ["ok", "chunked", "redirects", "elsewhere", "longredirect"])
def test_a_whole_file_is_kept(behaviour, hub, tmp_path, alone):
    file = hub.entry(behaviour)
    path = get(file, tmp_path)
    assert path == cached(file) and path.read_bytes() == hub.content
    assert kept(alone) == {file.name}
    count = len(hub.seen)
    assert get(file, tmp_path) == path and len(hub.seen) == count
    assert oct(path.stat().st_mode & 0o777) == oct(0o666 & ~_umask())


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize(
    ("behaviour", "ranges"),
    [
        ("flaky", [None, "bytes=150000-"]),
        ("forgetful", [None, "bytes=150000-"]),
        ("wrongrange", [None, "bytes=150000-", None]),
        ("norange", [None, "bytes=150000-", None]),
        ("changes", [None, "bytes=150000-", None]),
        ("busy", [None, None, None]),
    ],
)
def test_what_an_answer_lacks_is_fetched_again(behaviour, ranges, hub, tmp_path, alone):
    file = hub.entry(behaviour)
    assert get(file, tmp_path).read_bytes() == hub.content
    assert hub.asked(behaviour) == ranges and kept(alone) == {file.name}


def test_sources_are_tried_in_their_order(hub, tmp_path, monkeypatch):
    file = hub.entry("404", "corrupt", "tofile", "ok", "500")
    monkeypatch.setenv("SOLO_MINENT_ZOO_URL", f"{hub.url('404', 'a')} {hub.url('500', 'b')}/")
    assert get(file, tmp_path).read_bytes() == hub.content
    assert [name for name, _ in hub.seen] == ["404", *["500"] * 3, "404", "corrupt", "tofile", "ok"]


def test_a_mirror_has_the_file_by_its_name(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("SOLO_MINENT_ZOO_URL", hub.url("ok", "mirror/"))
    file = hub.entry()
    assert get(file, tmp_path).read_bytes() == hub.content


def test_the_next_source_continues_what_one_began(hub, tmp_path):
    file = hub.entry("truncated", "ok")
    assert get(file, tmp_path).read_bytes() == hub.content
    assert hub.asked("ok") == ["bytes=150000-"]


def test_the_file_of_the_repository_needs_no_download(hub, tmp_path):
    file = hub.entry("ok")
    file.urls.append("checkpoints/here.safetensors")
    (tmp_path / "checkpoints").mkdir()
    place = tmp_path / "checkpoints" / "here.safetensors"
    place.write_bytes(hub.content)
    assert get(file, tmp_path, offline=True) == place
    place.write_bytes(hub.content[:-1])
    assert get(file, tmp_path) == cached(file)


def test_an_address_on_the_hub(hub, tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    def hf_hub_url(repository, name, revision):
        asked.append((repository, name, revision))
        return hub.url("ok")

    monkeypatch.setattr(huggingface_hub, "hf_hub_url", hf_hub_url)
    file = hub.entry()
    file.urls.append("hf://owner/models/sub/weights.safetensors@v1.0")
    assert get(file, tmp_path).read_bytes() == hub.content
    assert asked == [("owner/models", "sub/weights.safetensors", "v1.0")]


def test_without_the_hubs_library_the_next_source_is_taken(hub, tmp_path, alone, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    file = hub.entry()
    file.urls = ["hf://owner/models/weights.safetensors@v1.0"]
    refused(file, tmp_path, alone, "huggingface_hub")
    file.urls.append(hub.url("ok"))
    assert get(file, tmp_path).read_bytes() == hub.content


def test_a_proxy_of_the_system_is_used(hub, tmp_path, monkeypatch):
    file = hub.entry()
    file.urls = [f"http://zoo.invalid/ok/{NAME}"]
    monkeypatch.setenv("http_proxy", hub.url("").rpartition("//")[0])
    monkeypatch.setenv("no_proxy", "localhost,127.0.0.1")
    assert get(file, tmp_path).read_bytes() == hub.content
    file.urls, file.sha256 = [hub.url("404")], "0" * 64
    with pytest.raises(UserError, match="HTTP 404"):
        get(file, tmp_path)


def test_where_downloads_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("SOLO_MINENT_CACHE", "~/own")
    assert cache_folder() == Path.home() / "own"
    monkeypatch.delenv("SOLO_MINENT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "solo_minent"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == Path.home() / ".cache" / "solo_minent"


# What does not.


@pytest.mark.parametrize(
    ("behaviour", "words", "attempts"),
    [
        ("404", "HTTP 404", 1),
        ("500", "HTTP 500", 3),
        ("corrupt", "what it sent has sha256", 1),
        ("loops", "more than 5 redirections", 6),
        ("tofile", "redirection is file:///etc/hostname", 1),
        ("topassword", "redirection has a user or password in it", 1),
        ("tonowhere", "more than 5 redirections", 6),
        ("tooshort", "it announces 299993 bytes, the index says 300,000", 1),
        ("toolong", "it announces 300004 bytes, the index says 300,000", 1),
        ("liesshort", "it announces 299993 bytes", 1),
        ("lieslong", "it announces 300007 bytes", 1),
        ("nonsense", "it announces many bytes", 1),
        ("endless", "it sends more than 300,000 bytes", 1),
        ("unasked", "it sends bytes 0-299999/300000", 3),
        ("packed", "it sends the file compressed", 1),
        ("garbage", "", 3),
        ("silent", "it sends nothing any more", 3),
    ],
)
def test_nothing_wrong_is_kept(behaviour, words, attempts, hub, tmp_path, alone):
    refused(hub.entry(behaviour), tmp_path, alone, words, f"/{behaviour}/{NAME}: ")
    assert len(hub.asked(behaviour)) == attempts


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("truncated", "IncompleteRead"),
        ("stalls", "it sends nothing any more"),
        ("drips", "fewer than 10000 bytes a second"),
    ],
)
def test_a_part_is_left_to_be_continued_and_is_not_taken_for_the_file(
    behaviour, words, hub, tmp_path, alone
):
    file = hub.entry(behaviour)
    refused(file, tmp_path, alone, words, left=[f"{file.name}.part"])
    file.urls = [hub.url("ok")]
    assert get(file, tmp_path).read_bytes() == hub.content
    assert kept(alone) == {file.name}


def test_nobody_answers(hub, tmp_path, alone):
    file = hub.entry("ok")
    hub.close()
    refused(file, tmp_path, alone, "refused")


def test_a_file_without_an_address_is_in_a_repository(hub, tmp_path, alone):
    """As of an installed wheel, which has the index alone."""
    file = hub.entry()
    file.urls = [f"checkpoints/{NAME}"]
    words = f"checkpoints/{NAME} beside models.yaml in its repository. Name a mirror"
    refused(file, tmp_path, alone, "the index names no address", words)
    file.urls.append(hub.url("404"))
    refused(file, tmp_path, alone, "in its repository. Connect this machine, name a mirror")


def test_offline_downloads_nothing(hub, tmp_path, alone, monkeypatch):
    file = hub.entry("ok")
    refused(file, tmp_path, alone, "offline", offline=True)
    monkeypatch.setenv("SOLO_MINENT_OFFLINE", "1")
    refused(file, tmp_path, alone, "offline")
    monkeypatch.setenv("SOLO_MINENT_OFFLINE", "0")
    assert get(file, tmp_path).is_file() and len(hub.seen) == 1


def test_a_damaged_file_of_the_cache_is_replaced(hub, tmp_path, alone):
    file = hub.entry("ok")
    path = get(file, tmp_path)
    path.write_bytes(hub.content[:-1] + b"?")
    with pytest.raises(UserError, match="has sha256"):
        get(file, tmp_path, offline=True)
    assert get(file, tmp_path).read_bytes() == hub.content


@pytest.mark.parametrize(
    "mirror",
    ["file:///srv/zoo", "/srv/zoo", "http://user:secret@mirror/", "http://", "ftp://host/"],
)
def test_a_mirror_is_a_plain_url(mirror, hub, tmp_path, monkeypatch):
    monkeypatch.setenv("SOLO_MINENT_ZOO_URL", mirror)
    with pytest.raises(UserError, match="mirror of the zoo is wrong") as caught:
        get(hub.entry("ok"), tmp_path)
    assert "secret" not in str(caught.value) and not hub.seen


def test_a_part_behind_a_link_is_not_written_through(hub, tmp_path):
    file = hub.entry("ok")
    outside = tmp_path / "outside"
    outside.write_text("mine")
    cached(file).parent.mkdir(parents=True)
    (cached(file).parent / f"{file.name}.part").symlink_to(outside)
    with pytest.raises(OSError):
        get(file, tmp_path)
    assert outside.read_text() == "mine"


def test_a_cache_that_cannot_be_made_is_one_line(hub, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SOLO_MINENT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="cache folder cannot be made: .*SOLO_MINENT_CACHE"):
        get(hub.entry("ok"), tmp_path)


def test_a_full_disk_is_one_line_and_leaves_a_part(hub, tmp_path, monkeypatch):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    file = hub.entry("ok")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(UserError, match="disk is full"):
            get(file, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert get(file, tmp_path).read_bytes() == hub.content
    assert hub.asked("ok") == [None, "bytes=100000-"]


# Processes.


def start(file, tmp_path):
    import json
    from dataclasses import asdict

    words = [sys.executable, "-c", FETCH, json.dumps(asdict(file)), str(tmp_path)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_processes_download_once(hub, tmp_path):
    file = hub.entry("slow")
    processes = [start(file, tmp_path) for _ in range(3)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert {out.strip() for out, _ in outputs} == {str(cached(file))}, outputs
    assert len(hub.seen) == 1 and sha256(cached(file)) == file.sha256


def test_a_killed_download_goes_on_where_it_was(hub, tmp_path, alone):
    hub.pause = 0.3
    file = hub.entry("slow")
    process = start(file, tmp_path)
    part = cached(file).parent / f"{file.name}.part"
    end = time.monotonic() + 30
    while not (part.is_file() and part.stat().st_size) and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert kept(alone) == {part.name}
    size, hub.pause = part.stat().st_size, 0.0
    assert 0 < size < file.bytes
    assert get(file, tmp_path).read_bytes() == hub.content
    assert hub.asked("slow") == [None, f"bytes={size}-"] and kept(alone) == {file.name}


def test_a_download_imports_no_torch(hub, tmp_path):
    code = f"import sys\n{FETCH}\nassert 'torch' not in sys.modules"
    import json
    from dataclasses import asdict

    words = [sys.executable, "-c", code, json.dumps(asdict(hub.entry("ok"))), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_file()
