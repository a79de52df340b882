"""A museum's server on the loopback, threaded, that answers each path as a test wants, and counts who asks how."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Museum:
    """`paths[path]` is bytes, or a function of the request handler; `log` has one (path, headers) a request."""

    def __init__(self, url: str):
        self.url = url
        self.paths: dict[str, bytes | Callable[[BaseHTTPRequestHandler], None]] = {}
        self.log: list[tuple[str, dict[str, str]]] = []
        self.at: list[float] = []
        self.now = self.most = 0
        self.lock = threading.Lock()

    def asked(self, path: str) -> int:
        return sum(each == path for each, _ in self.log)

    def numbers(self) -> dict[str, int]:
        found: dict[str, int] = defaultdict(int)
        for path, _ in self.log:
            found[path] += 1
        return dict(found)


def send(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str | None) -> None:
    """An answer with its Content-Length, unless that is given as None."""
    handler.send_response(status)
    length = headers.pop("Content_Length", str(len(body)))
    if length is not None:
        handler.send_header("Content-Length", length)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


@contextmanager
def serving(delay: float = 0.0) -> Iterator[Museum]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or a kept connection waits 40 ms for an acknowledgement

        def do_GET(self):
            museum = self.server.museum
            path = self.path.split("?")[0]
            with museum.lock:
                museum.now += 1
                museum.most = max(museum.most, museum.now)
                museum.log.append((path, {k.title(): v for k, v in self.headers.items()}))
                museum.at.append(time.monotonic())
            try:
                time.sleep(delay)
                answer = museum.paths.get(path)
                if answer is None:
                    send(self, b"nothing here", 404)
                elif callable(answer):
                    answer(self)
                else:
                    send(self, answer)
            except (BrokenPipeError, ConnectionError):
                self.close_connection = True
            finally:
                with museum.lock:
                    museum.now -= 1

        do_HEAD = do_POST = do_GET

        def log_message(self, *_):
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, request, client_address):
            pass  # a client that went away is what these tests are about

    server = Server(("127.0.0.1", 0), Handler)
    server.museum = Museum(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.museum
    finally:
        server.shutdown()
        server.server_close()
