"""The way out of a runner for tools that call addresses which its operator did not write.

Names are resolved here and connected to here, in one step, so a name that changes in between gains
nothing. Redirects are handed back: a request carries a credential, and where it may go was said
when the connection was made.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import httpcore

from cogni.egress_rules import EgressRules, is_public

Resolve = Callable[[str, int], Awaitable[list[str]]]

_ADDRESSES_TRIED_MAX = 4
_HEADERS_MAX = 100
_UNSPEAKABLE = "The address holds characters that no address has."


class EgressError(Exception):
    """Raised when nothing came back; the text is for people and holds no secret.

    `maybe_done` says that the request may have reached the other side all the same.
    """

    def __init__(self, message: str, *, maybe_done: bool = False) -> None:
        super().__init__(message)
        self.maybe_done = maybe_done


class _ForbiddenAddressError(Exception):
    """A name led to an address that the rules forbid."""


@dataclass(frozen=True)
class EgressLimits:
    """What one exchange may take."""

    total_seconds: float = 30.0
    connect_seconds: float = 5.0
    answer_bytes_max: int = 4 * 1024 * 1024


@dataclass(frozen=True)
class Answer:
    """What came back, whole; header names in lower case."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


_rules: ContextVar[EgressRules] = ContextVar("cogni_egress_rules", default=EgressRules())  # noqa: B039 - frozen


@contextmanager
def egress_allowed_by(rules: EgressRules) -> Iterator[None]:
    """Let the tools inside reach what these rules allow. The runner does so for its operator."""
    token = _rules.set(rules)
    try:
        yield
    finally:
        _rules.reset(token)


async def resolve(host: str, port: int) -> list[str]:
    """Every address of a name, by the system's resolver. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Egress:
    """Exchanges requests for answers, on the loop that opened it; an async context manager."""

    def __init__(
        self,
        limits: EgressLimits | None = None,
        *,
        rules: EgressRules | None = None,
        resolver: Resolve = resolve,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._limits = limits or EgressLimits()
        self._rules = rules or _rules.get()
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl_context or ssl.create_default_context(),
            max_connections=4,
            network_backend=_VettedBackend(self._rules, resolver),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._pool.aclose()

    async def exchange(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes = b""
    ) -> Answer:
        """Send, and return the answer whatever its status. Raises EgressError."""
        if (complaint := self._rules.complaint_about_url(url)) is not None:
            raise _forbidden(f"the address {complaint}")
        if not url.isascii():
            raise EgressError(_UNSPEAKABLE)
        try:
            async with asyncio.timeout(self._limits.total_seconds):
                return await self._exchange(method, url, headers, body)
        except _ForbiddenAddressError:
            raise _forbidden("the name leads to a private or local address") from None
        except (httpcore.ConnectError, httpcore.ConnectTimeout, httpcore.PoolTimeout):
            raise EgressError("The server cannot be reached.") from None
        except (TimeoutError, httpcore.TimeoutException):
            raise EgressError("The server did not answer in time.", maybe_done=True) from None
        except httpcore.NetworkError:
            raise EgressError("The server broke off the connection.", maybe_done=True) from None
        except UnicodeError:
            raise EgressError(_UNSPEAKABLE) from None
        except (httpcore.LocalProtocolError, httpcore.UnsupportedProtocol):
            raise EgressError("The request cannot be sent: check the connection.") from None
        except httpcore.ProtocolError:
            raise EgressError("The server's answer is not HTTP.", maybe_done=True) from None

    async def _exchange(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        connect = self._limits.connect_seconds
        # Uncompressed, so that what is counted is what is held.
        sent = {"user-agent": "cogni", "accept-encoding": "identity"} | dict(headers)
        async with self._pool.stream(
            method,
            url,
            headers=[(name.encode(), value.encode()) for name, value in sent.items()],
            content=body,
            extensions={"timeout": {"connect": connect, "pool": connect}},
        ) as response:
            received = bytearray()
            async for chunk in response.aiter_stream():
                received += chunk
                if len(received) > self._limits.answer_bytes_max:
                    raise EgressError("The server's answer is too large.", maybe_done=True)
            named = {
                name.decode("latin-1").lower(): value.decode("latin-1")
                for name, value in response.headers[:_HEADERS_MAX]
            }
            return Answer(response.status, named, bytes(received))


class _VettedBackend(httpcore.AsyncNetworkBackend):
    """Opens TCP connections to addresses that the rules allow, and to no others."""

    def __init__(self, rules: EgressRules, resolver: Resolve) -> None:
        self._inner = httpcore.AnyIOBackend()
        self._rules = rules
        self._resolve = resolver

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the pool's interface
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Resolve, check every address, connect to the first that answers."""
        try:
            addresses = await self._resolve(host, port)
        except OSError as error:
            raise httpcore.ConnectError("the name does not resolve") from error
        # One forbidden address among public ones is how rebinding attacks begin: refuse them all.
        if not self._rules.allows_by_name(host, port) and not all(
            is_public(ipaddress.ip_address(address.split("%")[0])) for address in addresses
        ):
            raise _ForbiddenAddressError
        failure: Exception = httpcore.ConnectError("the name has no address")
        for address in addresses[:_ADDRESSES_TRIED_MAX]:
            try:
                return await self._inner.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109 - the pool's interface
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Refuse: nothing that a tool may call lives behind a local socket."""
        raise _ForbiddenAddressError

    async def sleep(self, seconds: float) -> None:
        """Wait as the pool asks."""
        await self._inner.sleep(seconds)


def _forbidden(why: str) -> EgressError:
    return EgressError(
        f"This runner may not call that server: {why}. Its operator can allow it with "
        "COGNI_RUNNER_EGRESS_ALLOW."
    )
