"""Reserves a listening port before any server binds it, so that a used one is reported."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from services.runtime.errors import StartError


class ListenError(StartError):
    """Raised when an address cannot be listened on; the text is a sentence for the operator."""


@dataclass(frozen=True, slots=True)
class Listen:
    """A concrete address to bind; `shared` when several processes bind it with SO_REUSEPORT."""

    host: str
    port: int
    shared: bool = False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@contextmanager
def reserve(address: str, *, shared: bool) -> Iterator[Listen]:
    """Proves that `address` ("host:port") is free, and keeps it for the block when `shared`.

    gRPC servers set SO_REUSEPORT, and so bind a port that another server uses without any error;
    half of each one's connections then reach the other. Raises ListenError.
    """
    host, port = _split(address)
    with _bound(address, host, port, shared=False) as probe:
        port = probe.getsockname()[1]
    if not shared:
        yield Listen(host, port)
        return
    # A bound socket that never listens gets no connections; it only holds the port's name.
    with _bound(address, host, port, shared=True):
        yield Listen(host, port, shared=True)


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    try:
        number = int(port)
    except ValueError:
        number = -1
    if not host or not 0 <= number <= 65535:
        raise ListenError(f"{address!r} is not an address to listen on; write host:port.")
    return host.strip("[]"), number


@contextmanager
def _bound(address: str, host: str, port: int, *, shared: bool) -> Iterator[socket.socket]:
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError:
        raise ListenError(f"{host!r} is no address of this machine; correct {address!r}.") from None
    with socket.socket(family, kind, protocol) as sock:
        # Connections that a former process left in TIME_WAIT are no reason to refuse.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            sock.bind(where)
        except OSError as error:
            raise _refused(address, error) from None
        yield sock


def _refused(address: str, error: OSError) -> ListenError:
    return ListenError(
        f"Cannot listen on {address}: {(error.strerror or 'refused').lower()}. "
        "Stop the process that uses it, or choose another address."
    )
