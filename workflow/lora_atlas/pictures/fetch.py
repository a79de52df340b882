"""Fetching over HTTP as a museum would like it: two connections a host, a contact, waits where it asks for them.

Decisions:

- An attempt has a deadline for everything, and a URL has a few attempts; both are bounded, so is a host that does not
  answer: after a number of failures in a row the rest of it is left for the next run.
- Retry-After is obeyed in both its forms, by all that is asked of that host, up to a cap; beyond the cap the URL is
  left for the next run rather than asked too early.
- Redirects are followed one by one: each must be http or https, to a public address, and each host on the way counts
  its own connections.
- A body is bounded after decompression, in memory. A body that broke off is continued by Range where the server
  named its version (ETag); an answer that ignores the Range starts again.
- `X-Robots-Tag: noai` (or noimageai) and `tdm-reservation: 1` are opt-outs: recorded, and never asked again.
- A short body that has no Content-Length looks whole to every client. Only a hash or a decoder can tell, so whoever
  fetches gives a check.
"""

import contextlib
import io
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, BinaryIO
from urllib.parse import urljoin, urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from ..sections import Pictures
from .connect import PrivateAddress, pool, watched
from .decode import MAX_BYTES, PictureError
from .store import Entry, Store

DAY = 86_400  # seconds
TRANSIENT = frozenset((408, 425, 429, 500, 502, 503, 504))
GONE = frozenset((401, 403, 404, 410, 451))


class FetchError(Exception):
    """A URL did not give its bytes.

    `final`: it will not, and is not to be asked again. `busy`: its host has too much to do; `wait`: the seconds that
    it asks for.
    """

    def __init__(self, reason: str, *, final: bool = False, busy: bool = False, wait: float | None = None):
        super().__init__(reason)
        self.final, self.busy, self.wait = final, busy, wait


@dataclass(frozen=True)
class Limits:
    """Every bound of a fetch; times in seconds."""

    parallel: int = 2  # connections a host; the upload host of Wikimedia allows two
    hosts: int = 8  # at the same time
    attempts: int = 5
    connect: float = 15
    read: float = 30  # between two pieces of a body
    deadline: float = 120  # of one attempt, redirects apart
    backoff: float = 1  # before the second attempt; doubles
    backoff_max: float = 60
    retry_after_max: float = 300
    redirects: int = 5
    in_a_row: int = 10  # URLs of a host that all failed, after which the rest of it waits for the next run
    size: int = MAX_BYTES  # decompressed


@dataclass
class _Host:
    """What all fetches from one host share."""

    name: str
    slots: threading.Semaphore
    lock: threading.Lock = field(default_factory=threading.Lock)
    not_before: float = 0.0
    failures: int = 0


@dataclass
class _Part:
    """A body so far: its bytes, and the version that they are of."""

    sink: BinaryIO
    have: int = 0
    etag: str | None = None
    started: Callable[[str | None], None] = lambda etag: None

    def restart(self) -> None:
        self.sink.seek(0)
        self.sink.truncate()
        self.have, self.etag = 0, None


class Client:
    """Fetches URLs within Limits, introducing itself with a contact (a mail address or a page)."""

    def __init__(self, contact: str | None, *, private: bool = False, limits: Limits = Limits()):
        if not contact:
            raise FetchError("pictures.contact is not set: servers are asked by somebody, name a mail address or page")
        try:
            ours = version("lora-atlas")
        except PackageNotFoundError:
            ours = "0"
        self.agent = f"LoRA-Atlas/{ours} ({contact}) urllib3/{urllib3.__version__}"
        self.limits = limits
        self._pool = pool(connect=limits.connect, read=limits.read, private=private)
        self._hosts: dict[str, _Host] = {}
        self._lock = threading.Lock()
        # Of urllib3 only the arithmetic of waiting is used: it knows both forms of Retry-After.
        self._waits = urllib3.Retry(retry_after_max=10**6)

    def get(self, url: str, check: Callable[[bytes], None] | None = None) -> bytes:
        """The bytes at a URL; raises FetchError. `check` raises PictureError for bytes that are no picture."""
        sink = io.BytesIO()
        return self._tried(url, _Part(sink), lambda: self._checked(sink.getvalue(), check))

    def save(
        self,
        url: str,
        sink: BinaryIO,
        have: int = 0,
        etag: str | None = None,
        started: Callable[[str | None], None] = lambda etag: None,
    ) -> str | None:
        """Write the body of a URL to a seekable file; returns its ETag. Raises FetchError.

        A file that holds the first `have` bytes of the version `etag` is continued; `started` hears, before the first
        byte is written, of which version the file will be. Limits.size does not count here, nor does the deadline: a
        large file may take its time as long as something comes.
        """
        part = _Part(sink, have, etag, started)
        return self._tried(url, part, lambda: part.etag, size=None)

    def _tried(self, url: str, part: _Part, done: Callable[[], Any], size: int | None = 0) -> Any:
        size = self.limits.size if size == 0 else size
        host = self._host(url)
        for attempt in range(1, self.limits.attempts + 1):
            try:
                self._wait(host)
                self._attempt(url, part, size)
                try:
                    found = done()
                except FetchError:
                    part.restart()  # whole, and not what was asked for: there is nothing to go on from
                    raise
                host.failures = 0
                return found
            except FetchError as error:
                if error.final:
                    host.failures = 0  # it answered
                    raise
                if attempt == self.limits.attempts:
                    with host.lock:
                        host.failures += 1
                    raise FetchError(f"{error} ({attempt} attempts)") from error
                wait = error.wait
                if wait is not None and wait > self.limits.retry_after_max:
                    raise FetchError(f"{error}; the server asks to wait {wait:.0f} s, ask again later") from error
                if wait is None:
                    wait = min(self.limits.backoff * 2 ** (attempt - 1), self.limits.backoff_max)
                if error.busy:  # all that is asked of this host waits
                    with host.lock:
                        host.not_before = max(host.not_before, time.monotonic() + wait)
                else:
                    time.sleep(wait)
        raise AssertionError("unreachable")

    def _wait(self, host: _Host) -> None:
        while (rest := host.not_before - time.monotonic()) > 0:
            time.sleep(rest)

    def _attempt(self, url: str, part: _Part, size: int | None) -> None:
        for _ in range(self.limits.redirects + 1):
            host = self._host(url)
            with host.slots, watched(self.limits.deadline if size is not None else DAY) as watch:
                try:
                    onward = self._hop(url, part, size)
                except FetchError:
                    raise
                except (HTTPError, OSError, ValueError, AttributeError) as error:  # a shut socket shows itself as any
                    if cause := _private(error):
                        raise FetchError(f"private address: {cause}", final=True) from error
                    if watch.over:
                        raise FetchError(f"no end after {self.limits.deadline:g} s, {part.have:,} bytes") from error
                    raise FetchError(f"{type(error).__name__}: {_short(error)}") from error
                if watch.over:  # a server that names no length cannot be told from one that was cut off
                    raise FetchError(f"no end after {self.limits.deadline:g} s, {part.have:,} bytes")
            if onward is None:
                return
            url = onward
        raise FetchError(f"more than {self.limits.redirects} redirects", final=True)

    def _hop(self, url: str, part: _Part, size: int | None) -> str | None:
        """One request; the URL to go on to, or None when the body is in `part`."""
        headers = {"User-Agent": self.agent, "Accept-Encoding": "identity", "Accept": "image/*, */*;q=0.5"}
        if part.have and part.etag:
            headers |= {"Range": f"bytes={part.have}-", "If-Range": part.etag}
        response = self._pool.request("GET", url, headers=headers, redirect=False, preload_content=False)
        whole = False
        try:
            said = response.headers
            if response.status in (301, 302, 303, 307, 308) and said.get("Location"):
                onward = urljoin(url, said["Location"])
                self._host(onward)  # raises for what is no web address
                return onward
            if response.status == 416 and "Range" in headers:
                if said.get("Content-Range", "").strip() == f"bytes */{part.have}":
                    return None  # nothing is lacking (RFC 9110, 14.4)
                part.restart()
                raise FetchError("another file than the one that was begun; asked for from its beginning")
            if response.status not in (200, 206):
                raise self._refusal(response)
            if _opted_out(said):
                raise FetchError(f"opted out: {_opted_out(said)}", final=True)
            if response.status == 206 and said.get("Content-Range", "").startswith(f"bytes {part.have}-") and part.have:
                part.sink.seek(part.have)
            else:
                part.restart()
            etag = said.get("ETag", "")
            part.etag = etag if etag and not etag.startswith("W/") and not said.get("Content-Encoding") else None
            part.started(part.etag)
            length = said.get("Content-Length", "")
            if size is not None and length.isdigit() and int(length) > size:
                raise FetchError(f"too large: {int(length):,} bytes, at most {size:,}", final=True)
            while piece := response.read1(2**16, decode_content=True):
                part.sink.write(piece)
                part.have += len(piece)
                if size is not None and part.have > size:
                    raise FetchError(f"too large: more than {size:,} bytes", final=True)
            whole = True
            return None
        finally:
            # A body that was not read to its end would arrive before the next answer.
            if whole:
                response.release_conn()
            else:
                response.close()

    def _refusal(self, response: urllib3.BaseHTTPResponse) -> FetchError:
        reason = f"HTTP {response.status} {response.reason or ''}".strip()
        wait = None
        if stated := response.headers.get("Retry-After"):
            with contextlib.suppress(HTTPError, ValueError, OverflowError):
                wait = max(self._waits.parse_retry_after(stated), 0)
        if response.status in TRANSIENT:
            return FetchError(reason, busy=wait is not None or response.status in (429, 503), wait=wait)
        return FetchError(reason, final=response.status in GONE or 400 <= response.status < 500)

    def _checked(self, data: bytes, check: Callable[[bytes], None] | None) -> bytes:
        if check is not None:
            try:
                check(data)
            except PictureError as error:
                if error.reason in ("truncated or damaged", "html", "empty"):  # what a server in trouble sends
                    raise FetchError(str(error)) from error
        return data

    def _host(self, url: str) -> _Host:
        try:
            parts = urlsplit(url)
            name, port = parts.hostname, parts.port
        except ValueError:
            name = port = None
        if not name or parts.scheme not in ("http", "https") or parts.username is not None:
            raise FetchError("not a web address", final=True)
        if not url.isascii() or any(c <= " " or c == "\x7f" for c in url):
            raise FetchError("not a web address: it has characters that need percent-encoding", final=True)
        key = f"{name}:{port or ''}"
        with self._lock:
            if key not in self._hosts:
                self._hosts[key] = _Host(name, threading.Semaphore(self.limits.parallel))
            return self._hosts[key]

    def fetch_all(self, entries: Sequence[Entry], store: Store, check: Callable[[bytes], None]) -> None:
        """Each entry's bytes, or the reason why not, into the store; one line each on stdout. Raises for none."""
        queues: dict[str, deque[Entry]] = defaultdict(deque)
        for entry in entries:
            try:
                queues[self._host(entry["url"]).name].append(entry)
            except FetchError as error:
                self._report(entry, store, error)

        def drain(queue: deque[Entry]) -> None:
            while True:
                try:
                    entry = queue.popleft()
                except IndexError:
                    return
                self._fetch_one(entry, store, check)

        with ThreadPoolExecutor(self.limits.hosts * self.limits.parallel) as workers:
            running = [workers.submit(drain, queue) for queue in queues.values() for _ in range(self.limits.parallel)]
            for each in running:
                each.result()

    def _fetch_one(self, entry: Entry, store: Store, check: Callable[[bytes], None]) -> None:
        host = self._host(entry["url"])
        try:
            if host.failures >= self.limits.in_a_row:
                raise FetchError(f"not asked: {host.name} failed {host.failures} times in a row")
            data = self.get(entry["url"], check)
            changed = store.put(entry, data)
            if changed:
                raise FetchError(changed, final=False)
            print(f"{entry['url']}: {len(data):,} bytes", flush=True)
        except FetchError as error:
            self._report(entry, store, error)

    def _report(self, entry: Entry, store: Store, error: FetchError) -> None:
        store.refuse(entry, str(error), final=error.final)
        print(f"{entry['url']!a}: {error}", flush=True)


def getter(
    pictures: Pictures, limits: Limits = Limits()
) -> Callable[[Sequence[Entry], Store, Callable[[bytes], None]], None]:
    """`fetch_all` of a client made from the config section "pictures"."""
    return Client(pictures.contact, private=pictures.private_network, limits=limits).fetch_all


def _opted_out(headers: Mapping[str, str]) -> str | None:
    robots = headers.get("X-Robots-Tag", "").lower()
    words = {word.strip() for word in robots.replace(":", ",").split(",")}
    if words & {"noai", "noimageai"}:
        return f"X-Robots-Tag {robots[:80]}"
    if headers.get("tdm-reservation", "").strip() == "1":
        return "tdm-reservation 1"
    return None


def _private(error: BaseException) -> PrivateAddress | None:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, PrivateAddress):
            return seen
        seen = seen.__cause__ or seen.__context__ or getattr(seen, "reason", None)
        if not isinstance(seen, BaseException):
            return None
    return None


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
