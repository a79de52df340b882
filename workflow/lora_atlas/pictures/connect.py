"""Connections that are watched: to public addresses only, and never longer than they were given.

urllib3 bounds each wait for bytes; it does not bound their sum, and a server that sends a byte now and then holds a
client for ever. Here a timer shuts the socket of an attempt that is over its time, whatever it is waiting for. The
address is checked where it is known for certain: on the connected socket, so that a name that resolves to another
address a moment later changes nothing. One that is written as numbers is known before, and nothing is sent to it.
(Proxies of the environment are not used: they would hide that address.)
"""

import contextlib
import ipaddress
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

# What is mixed into connections is one of them to a type checker.
_Mixed: Any = HTTPConnection if TYPE_CHECKING else object


class PrivateAddress(OSError):
    """The server's address is not of the public internet."""


@dataclass
class Watch:
    """The sockets of one attempt, and whether its time is over."""

    over: bool = False
    sockets: list[socket.socket] = field(default_factory=list)


_local = threading.local()


@contextlib.contextmanager
def watched(seconds: float) -> Iterator[Watch]:
    """Shut the sockets that this thread uses within, once `seconds` are over."""
    watch = _local.watch = Watch()

    def end() -> None:
        watch.over = True
        for each in watch.sockets:
            with contextlib.suppress(OSError, ValueError):
                each.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(max(seconds, 0), end)
    timer.daemon = True
    timer.start()
    try:
        yield watch
    finally:
        timer.cancel()
        _local.watch = None


def pool(*, connect: float, read: float, private: bool) -> urllib3.PoolManager:
    """A pool of watched connections; `connect` and `read` are seconds, `private` lets non-public addresses pass."""
    manager = urllib3.PoolManager(maxsize=8, retries=False, timeout=urllib3.Timeout(connect=connect, read=read))
    manager.pool_classes_by_scheme = (
        {"http": _AnyPool, "https": _AnyTLSPool}
        if private
        else {
            "http": _PublicPool,
            "https": _PublicTLSPool,
        }
    )
    return manager


class _Watched(_Mixed):
    def getresponse(self) -> Any:  # the request was sent: what follows are waits for the server
        watch = getattr(_local, "watch", None)
        if watch is not None and self.sock is not None:
            watch.sockets.append(self.sock)
            if watch.over:
                raise TimeoutError("deadline")
        return super().getresponse()


class _Public(_Watched):
    host: str  # of the connection that this is mixed into

    def _new_conn(self) -> socket.socket:
        self._check(self.host.strip("[]"))
        sock = super()._new_conn()
        try:
            self._check(sock.getpeername()[0])
        except PrivateAddress:
            sock.close()
            raise
        return sock

    def _check(self, written: str) -> None:
        try:
            address = ipaddress.ip_address(written.split("%")[0])
        except ValueError:  # a name
            return
        address = getattr(address, "ipv4_mapped", None) or address
        if not address.is_global or address.is_multicast:
            raise PrivateAddress(f"{self.host} is at {address}, which is not a public address")


class _AnyConnection(_Watched, HTTPConnection):
    pass


class _AnyTLSConnection(_Watched, HTTPSConnection):
    pass


class _PublicConnection(_Public, HTTPConnection):
    pass


class _PublicTLSConnection(_Public, HTTPSConnection):
    pass


class _AnyPool(HTTPConnectionPool):
    ConnectionCls = _AnyConnection


class _AnyTLSPool(HTTPSConnectionPool):
    ConnectionCls = _AnyTLSConnection


class _PublicPool(HTTPConnectionPool):
    ConnectionCls = _PublicConnection


class _PublicTLSPool(HTTPSConnectionPool):
    ConnectionCls = _PublicTLSConnection
