"""A zoo in a folder of its own, a server that may be hostile, and a run that can be added."""

import copy
import json
import shutil
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
import yaml
from safetensors.torch import save_file

from solo_minent.backbones import build_backbone
from solo_minent.cli import main
from solo_minent.schema import BackboneConfig
from solo_minent.zoo.schema import FileEntry

NETWORK = BackboneConfig("timm:resnet10t", "small", {"channels": [8, 8, 8, 8]})


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """A cache of its own, and nothing of this machine's settings."""
    for name in ("SOLO_MINENT_ZOO", "SOLO_MINENT_ZOO_URL", "SOLO_MINENT_OFFLINE", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("SOLO_MINENT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Handler(BaseHTTPRequestHandler):
    """`/<behaviour>/<anything>`: what each behaviour does is a method below."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        hub = self.server.hub
        behaviour = urlsplit(self.path).path.split("/")[1]  # a proxy is asked for a whole url
        with hub.lock:
            hub.seen.append((behaviour, self.headers.get("Range")))
            count = sum(name == behaviour for name, _ in hub.seen)
        with suppress(BrokenPipeError, ConnectionResetError):
            getattr(self, f"do_{behaviour}")(hub.content, count)
        self.close_connection = True

    def head(self, status=200, length=None, **headers):
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Connection", "close")
        self.end_headers()

    def whole(self, content, length=None):
        self.head(200, len(content) if length is None else length)
        self.wfile.write(content)

    def start(self):
        """Where the asked range begins."""
        asked = self.headers.get("Range")
        return int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0

    def do_ok(self, content, count):
        start = self.start()
        if not start:
            return self.whole(content)
        stated = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.head(206, len(content) - start, Content_Range=stated)
        return self.wfile.write(content[start:])

    def do_slow(self, content, count):
        """As ok, over half a second."""
        start = self.start()
        stated = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.head(206 if start else 200, len(content) - start, Content_Range=stated)
        step = -(-len(content) // 10)
        for at in range(start, len(content), step):
            self.wfile.write(content[at : at + step])
            time.sleep(self.server.hub.pause)

    def do_truncated(self, content, count):
        self.head(200, len(content))
        self.wfile.write(content[: len(content) // 2])

    def do_flaky(self, content, count):
        """Cuts the first answer, then goes on."""
        if count == 1:
            return self.do_truncated(content, count)
        return self.do_ok(content, count)

    def do_forgetful(self, content, count):
        """Cuts the first answer, and knows no ranges."""
        return self.do_truncated(content, count) if count == 1 else self.whole(content)

    def do_corrupt(self, content, count):
        self.whole(bytes([content[0] ^ 1]) + content[1:])

    def do_stalls(self, content, count):
        self.head(200, len(content))
        self.wfile.write(content[: len(content) // 3])
        self.server.hub.ended.wait(20)

    def do_silent(self, content, count):
        self.server.hub.ended.wait(20)

    def do_drips(self, content, count):
        self.head(200, len(content))
        while not self.server.hub.ended.wait(0.02):
            self.wfile.write(b"x")

    def do_redirects(self, content, count):
        self.head(302, 0, Location="/ok/file")

    def do_elsewhere(self, content, count):
        """To another host: by another name it is one."""
        self.head(307, 0, Location=self.server.hub.url("ok").replace("127.0.0.1", "localhost"))

    def do_tofile(self, content, count):
        self.head(302, 0, Location="file:///etc/hostname")

    def do_topassword(self, content, count):
        self.head(302, 0, Location="http://user:secret@127.0.0.1/")

    def do_tonowhere(self, content, count):
        self.head(302, 0)

    def do_loops(self, content, count):
        self.head(301, 0, Location="/loops/file")

    def do_longredirect(self, content, count):
        self.head(302, Location="/ok/file")
        while not self.server.hub.ended.is_set():
            self.wfile.write(b"x" * 65536)

    def do_404(self, content, count):
        self.head(404, 9)
        self.wfile.write(b"not found")

    def do_500(self, content, count):
        self.head(500, 0)

    def do_busy(self, content, count):
        """503 twice, with a wish that nobody fulfils."""
        if count < 3:
            return self.head(503, 0, Retry_After="99999")
        return self.do_ok(content, count)

    def do_tooshort(self, content, count):
        self.whole(content[:-7])

    def do_toolong(self, content, count):
        self.whole(content + b"more")

    def do_liesshort(self, content, count):
        self.whole(content, len(content) - 7)

    def do_lieslong(self, content, count):
        self.whole(content, len(content) + 7)

    def do_nonsense(self, content, count):
        self.whole(content, "many")

    def do_endless(self, content, count):
        self.head(200)
        while not self.server.hub.ended.is_set():
            self.wfile.write(content)

    def do_chunked(self, content, count):
        self.head(200, Transfer_Encoding="chunked")
        for at in range(0, len(content), 40_000):
            piece = content[at : at + 40_000]
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def do_wrongrange(self, content, count):
        """Cuts the first answer, and then sends other bytes than those asked for."""
        start = self.start()
        if not start:
            return self.do_truncated(content, count) if count == 1 else self.whole(content)
        self.head(206, len(content) - start, Content_Range=f"bytes 0-{start}/{len(content)}")
        return self.wfile.write(content[start:])

    def do_unasked(self, content, count):
        """A part that nobody asked for."""
        self.head(206, len(content), Content_Range=f"bytes 0-{len(content) - 1}/{len(content)}")
        self.wfile.write(content)

    def do_norange(self, content, count):
        """Cuts the first answer, and then has no such range."""
        if count == 1:
            return self.do_truncated(content, count)
        return self.head(416, 0) if self.headers.get("Range") else self.whole(content)

    def do_changes(self, content, count):
        """Begins with another file of the same length."""
        if count > 1:
            return self.do_ok(content, count)
        self.head(200, len(content))
        return self.wfile.write(bytes(len(content) // 2))

    def do_packed(self, content, count):
        self.head(200, len(content), Content_Encoding="gzip")
        self.wfile.write(content)

    def do_garbage(self, content, count):
        self.wfile.write(b"\x00\xff no HTTP at all \r\n\r\n" * 9)


class Hub:
    """The server: `content` is what it has, `seen` what it was asked for."""

    def __init__(self):
        self.content = (
            torch.randint(
                0, 256, (300_000,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
            )
            .numpy()
            .tobytes()
        )
        self.seen, self.lock, self.pause = [], threading.Lock(), 0.05
        self.ended = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.hub, self.server.daemon_threads = self, True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def url(self, behaviour, name="file"):
        return f"http://127.0.0.1:{self.server.server_port}/{behaviour}/{name}"

    def entry(self, *behaviours, name="weights.safetensors"):
        """The file of the index, to be had at these urls."""
        urls = [self.url(behaviour, name) for behaviour in behaviours]
        digest = sha256(self.content).hexdigest()
        return FileEntry(name, len(self.content), digest, "safetensors", "float32", urls)

    def asked(self, behaviour):
        return [range for name, range in self.seen if name == behaviour]

    def close(self):
        self.ended.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def hub():
    hub = Hub()
    yield hub
    hub.close()


def weights(path):
    """A narrow network with weights of its own, in a file with our header."""
    torch.manual_seed(1)
    backbone = build_backbone(NETWORK.name, NETWORK.stem, **NETWORK.kwargs)
    metadata = {"backbone": json.dumps(asdict(NETWORK))}
    save_file(backbone.state_dict(), path, metadata)
    return backbone


@pytest.fixture
def values(tmp_path):
    """The keys of an external model, whose file is in the repository of the zoo."""
    folder = tmp_path / "zoo" / "checkpoints"
    folder.mkdir(parents=True)
    path = folder / "tiny.safetensors"
    weights(path)
    data = path.read_bytes()
    file = {
        "name": path.name,
        "bytes": len(data),
        "sha256": sha256(data).hexdigest(),
        "urls": [f"checkpoints/{path.name}"],
    }
    return {
        "id": "tiny",
        "ours": False,
        "files": [file],
        "backbone": asdict(NETWORK),
        "feature_dim": 8,
        "normalization": {"mean": [0.3] * 3, "std": [0.4] * 3, "image_size": 16},
        "dataset": "digits",
        "method": "minent",
        "licence": "MIT",
        "page": "https://example.org/models",
    }


@pytest.fixture
def write_zoo(tmp_path, monkeypatch):
    """`write_zoo(values, …)`: the folder of a zoo with these models; it is the one in use."""
    folder = tmp_path / "zoo"

    def write(*models, text=None):
        monkeypatch.setenv("SOLO_MINENT_ZOO", str(folder))
        folder.mkdir(exist_ok=True)
        contents = {"version": 1, "models": [copy.deepcopy(model) for model in models]}
        text = yaml.safe_dump(contents) if text is None else text
        data = text if isinstance(text, bytes) else text.encode()
        (folder / "models.yaml").write_bytes(data)
        return folder

    return write


@pytest.fixture
def command(capsys):
    """`command("zoo", "list")`: exit status, what it printed, the one line of its error."""

    def run(*words):
        capsys.readouterr()
        status = main(list(map(str, words)))
        out, err = capsys.readouterr()
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert (status == 2) == bool(errors) and "Traceback" not in err, err
        assert all(len(line) < 1500 for line in errors)
        return status, out, errors[0] if errors else ""

    return run


TINY = [
    "max_epochs=1",
    "data.num_workers=0",
    "data.train_images=160",
    "data.val_images=80",
    "optimizer.batch_size=32",
    "backbone.kwargs.channels=[8,16,16,16]",
    "evaluation.linear.max_epochs=5",
    "accelerator=cpu",
    "method_kwargs.heads=[16,8]",
    "method_kwargs.hidden_dim=32",
]


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folder of a run of seconds on digits, with its results. Copy it to change it."""
    root = tmp_path_factory.mktemp("runs")
    words = [*TINY, f"output_dir={root}"]
    assert main(["pretrain", "--recipe", "digits/minent", *words]) == 0
    (run,) = (path.parent for path in Path(root).rglob("backbone.safetensors"))
    assert main(["knn", str(run)]) == main(["linear", str(run)]) == 0
    return run


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run, to be spoilt."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def zoo(write_zoo):
    return write_zoo()
