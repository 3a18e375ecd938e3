"""Downloads that leave the right file or none.

urllib3 speaks HTTP; what is here decides what is kept. Every byte goes to a `.part` file, which the
next attempt, source or process continues; it gets its name once size and sha256 are those of the
index. No more bytes than the index says are ever read. One process downloads a file, the others
wait for it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urljoin, urlsplit

from solo_minent.allowed import short
from solo_minent.console import progress_bar
from solo_minent.errors import UserError
from solo_minent.files import FULL, full_disk_error, locked, no_link
from solo_minent.zoo.cache import cached, difference, in_repository, make_place
from solo_minent.zoo.index import HUB, INDEX, check_url, zoo_folder
from solo_minent.zoo.schema import FileEntry

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

MIRRORS = "SOLO_MINENT_ZOO_URL"
OFFLINE = "SOLO_MINENT_OFFLINE"
PIECE = 1 << 16
REDIRECTS = (301, 302, 303, 307, 308)
MOST_REDIRECTS = 5
AGAIN = (408, 425, 429, 500, 502, 503, 504)  # what a server may get over


@dataclass(frozen=True)
class Patience:
    """With a server.

    Attributes:
        connect: seconds until it answers a call.
        stall: seconds without a byte after which it is given up.
        slowest: bytes a second that it sends at least, over `stall` seconds.
        attempts: for each source.
        pause: seconds before the second attempt, doubled before each further one.
    """

    connect: float = 15.0
    stall: float = 60.0
    slowest: int = 256
    attempts: int = 4
    pause: float = 1.0


class _Failed(Exception):
    """One attempt.

    Attributes:
        again: another one of the same source may do better.
        anew: it must begin with the first byte.
    """

    def __init__(self, reason: str, again: bool = False, anew: bool = False) -> None:
        super().__init__(reason)
        self.again, self.anew = again, anew


def fetch(
    file: FileEntry,
    zoo: Path | None = None,
    offline: bool = False,
    patience: Patience | None = None,
    progress: bool = True,
) -> Path:
    """The path of a file of the zoo, which has the size and sha256 of the index.

    It is taken from the repository or the cache; else it is downloaded into the cache, from the
    mirrors in SOLO_MINENT_ZOO_URL (with spaces between), then from the urls of the index.

    Args:
        file: of the index.
        zoo: folder of the index; `zoo_folder()` if not given.
        offline: download nothing; so does SOLO_MINENT_OFFLINE=1.
        patience: with servers.
        progress: show a bar.

    Raises:
        UserError: it can be had nowhere; the message has one reason a source.
    """
    zoo = zoo or zoo_folder()
    reasons = []
    for place in [*in_repository(file, zoo), cached(file)]:
        reason = difference(place, file)
        if reason is None:
            return place
        if place.is_file():
            reasons.append(f"{place} {reason}")
    sources = _sources(file)
    if offline or os.environ.get(OFFLINE, "") not in ("", "0"):
        raise _unavailable(file, [*reasons, "offline"])
    if not sources:
        raise _unavailable(file, [*reasons, "the index names no address"])
    folder = make_place(file)
    with locked(folder / ".lock"):
        if difference(cached(file), file) is None:  # another process was faster
            return cached(file)
        part = folder / f"{file.name}.part"
        for source in sources:
            try:
                _from_source(source, part, file, patience or Patience(), progress)
            except _Failed as failure:
                reasons.append(f"{short(source)}: {failure}")
                continue
            os.replace(part, cached(file))
            return cached(file)
    raise _unavailable(file, reasons)


def _sources(file: FileEntry) -> list[str]:
    mirrors = os.environ.get(MIRRORS, "").split()
    for mirror in mirrors:
        try:
            check_url(MIRRORS, mirror, ("https", "http"))
        except UserError as error:
            raise UserError(
                f"mirror of the zoo is wrong: {error}. Files are looked for at <url>/<name>. "
                f"Correct {MIRRORS}, or unset it."
            ) from error
    own = [f"{mirror.rstrip('/')}/{file.name}" for mirror in mirrors]
    return own + [url for url in file.urls if "://" in url]


def _unavailable(file: FileEntry, reasons: list[str]) -> UserError:
    own = next((url for url in file.urls if "://" not in url), None)
    where = f", {own} beside {INDEX} in its repository" if own else ""
    ways = f"ame a mirror in {MIRRORS}, or put the file at {cached(file)}"
    return UserError(
        f"file of the zoo cannot be had: {file.name} ({'; '.join(reasons)}). It is a file of "
        f"{file.bytes:,} bytes with sha256 {file.sha256}{where}. "
        f"{'Connect this machine, n' if _sources(file) else 'N'}{ways}"
    )


def _from_source(
    source: str, part: Path, file: FileEntry, patience: Patience, progress: bool
) -> None:
    """Fills the part file with the whole file.

    Raises:
        _Failed: it could not, or the source has another file; nothing wrong is left.
    """
    try:
        url = _http(source)
        failure = _Failed("no attempt")
        with progress_bar(progress) as bar:
            task = bar.add_task(file.name, total=file.bytes)
            for attempt in range(patience.attempts):
                if attempt:
                    time.sleep(patience.pause * 2 ** (attempt - 1))
                try:
                    _attempt(
                        url, part, file, patience, lambda done: bar.update(task, completed=done)
                    )
                    return
                except _Failed as error:
                    failure = error
                    if error.anew:
                        part.unlink(missing_ok=True)
                    if not error.again:
                        break
        raise failure
    except OSError as error:
        if error.errno in FULL:
            raise full_disk_error(error, part) from error
        raise


def _http(source: str) -> str:
    """The address of a file on the hub; of any other, itself."""
    if not source.startswith(f"{HUB}://"):
        return source
    path, _, revision = source.removeprefix(f"{HUB}://").rpartition("@")
    owner, repository, name = path.split("/", 2)
    try:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(f"{owner}/{repository}", name, revision=revision)
    except (ImportError, ValueError) as error:
        raise _Failed(short(" ".join(str(error).split()))) from error


def _attempt(
    url: str, part: Path, file: FileEntry, patience: Patience, tell: Callable[[int], None]
) -> None:
    """One request for what is still missing, and the look at the whole.

    Raises:
        _Failed: as `_from_source`.
    """
    from urllib3.exceptions import HTTPError, SSLError

    have = part.stat().st_size if part.is_file() and not part.is_symlink() else 0
    if have > file.bytes:
        part.unlink()
        have = 0
    began = have
    if have < file.bytes:
        try:
            response = _answer(url, have, patience)
            try:
                began = _begin(response, have, file)
                _receive(response, part, began, file, patience, tell)
            finally:
                response.close()
        except HTTPError as error:
            raise _Failed(_words(error), again=not isinstance(error, SSLError)) from error
    wrong = difference(part, file)
    if wrong is not None:
        # A continued file may be made of two; one that came at once is this source's.
        raise _Failed(f"what it sent {wrong}", again=began > 0, anew=True)
    with open(part, "r+b") as written:
        os.fsync(written.fileno())


def _answer(url: str, have: int, patience: Patience) -> BaseHTTPResponse:
    """The response that has the bytes, after redirections, from `have` on if the server can."""
    import urllib3

    timeout = urllib3.Timeout(connect=patience.connect, read=patience.stall)
    headers = {"User-Agent": "solo-minent", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    for _ in range(MOST_REDIRECTS + 1):
        # urllib3 would read the body of a redirection or error to its end, which may not come.
        response = _pool(url).request(
            "GET",
            _quoted(url),
            headers=headers,
            timeout=timeout,
            retries=False,
            redirect=False,
            preload_content=False,
            decode_content=False,
        )
        if response.status not in REDIRECTS:
            return response
        location = response.headers.get("Location", "")
        response.close()
        url = urljoin(url, location)
        try:
            check_url("redirection", url, ("https", "http"))
        except UserError as error:
            raise _Failed(str(error)) from error
    raise _Failed(f"more than {MOST_REDIRECTS} redirections")


def _pool(url: str) -> object:
    """Connections to a host, through the system's proxy if there is one for it."""
    from urllib.request import getproxies, proxy_bypass

    import urllib3

    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    if proxy and not proxy_bypass(parts.netloc):
        return urllib3.ProxyManager(proxy if "://" in proxy else f"http://{proxy}")
    return urllib3.PoolManager()


def _quoted(url: str) -> str:
    """Only what may stand in a request."""
    return quote(url, safe=":/?#[]@!$&'()*+,;=%-._~")


def _begin(response: BaseHTTPResponse, have: int, file: FileEntry) -> int:
    """Where the bytes of a response belong, if they are those of the file.

    Raises:
        _Failed: they cannot be.
    """
    if response.status == 416 and have:  # it has no such bytes: from the start, then
        raise _Failed(f"HTTP {response.status}", again=True, anew=True)
    if response.status not in (200, 206):
        raise _Failed(f"HTTP {response.status}", again=response.status in AGAIN)
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise _Failed("it sends the file compressed")
    began = 0
    if response.status == 206:
        wanted = (f"bytes {have}-{file.bytes - 1}/{file.bytes}", f"bytes {have}-{file.bytes - 1}/*")
        stated = response.headers.get("Content-Range", "")
        if not have or stated not in wanted:
            sent = short(stated) or "a part and not which"
            raise _Failed(f"it sends {sent}", again=True, anew=True)
        began = have
    length = response.headers.get("Content-Length")
    if length is not None and length != str(file.bytes - began):
        wanted = f"the index says {file.bytes - began:,}"
        raise _Failed(
            f"it announces {short(length)} bytes, {wanted}", again=began > 0, anew=began > 0
        )
    return began


def _receive(
    response: BaseHTTPResponse,
    part: Path,
    began: int,
    file: FileEntry,
    patience: Patience,
    tell: Callable[[int], None],
) -> None:
    """Writes the bytes of a response behind the first `began`, as they come."""
    with open(part, "r+b" if began else "wb", opener=no_link) as out:
        out.seek(began)
        done, since, then = began, time.monotonic(), began
        # read() would wait for all of a piece, and a byte a minute would keep it waiting for ever.
        while piece := response.read1(PIECE, decode_content=False):
            if done + len(piece) > file.bytes:
                raise _Failed(f"it sends more than {file.bytes:,} bytes", anew=True)
            out.write(piece)
            done += len(piece)
            tell(done)
            now = time.monotonic()
            if now - since > patience.stall:
                if done - then < patience.slowest * patience.stall:
                    raise _Failed(f"fewer than {patience.slowest} bytes a second", again=True)
                since, then = now, done
    if done < file.bytes:
        raise _Failed(f"it ends after {done:,} of {file.bytes:,} bytes", again=True)


def _words(error: BaseException) -> str:
    """One line of what urllib3 wraps around the reason."""
    from urllib3.exceptions import ReadTimeoutError

    if isinstance(error, ReadTimeoutError):
        return "it sends nothing any more"
    text = " ".join(str(getattr(error, "reason", None) or error).split())
    return short(text.rpartition(": ")[2] or type(error).__name__)
