"""The one way out: HTTP to vetted addresses only, bounded in size and time, no redirects followed.

Names are resolved here and connected to here, in one step: an answer that was checked is the one
that is used, so a name that changes between the two (DNS rebinding) gains nothing. Redirects are
handed back to the caller: every provider call carries a secret, and none needs to follow one.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpcore2

from cogni.egress_rules import EgressRules, is_public
from services.connections.providers.failures import FailureKind, ProviderError, answer_invalid
from services.connections.providers.http import Answer, Request

Resolve = Callable[[str, int], Awaitable[list[str]]]


class ForbiddenAddressError(Exception):
    """A name led to an address that the rules forbid."""


@dataclass(frozen=True, slots=True)
class EgressLimits:
    """What one call may take."""

    total: timedelta = timedelta(seconds=10)
    connect: timedelta = timedelta(seconds=5)
    answer_bytes_max: int = 1024 * 1024
    connections_max: int = 64
    header_count_max: int = 100


async def resolve(host: str, port: int) -> list[str]:
    """Every address of a name, by the system's resolver. Raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class VettedBackend(httpcore2.AsyncNetworkBackend):
    """Opens TCP connections to addresses that the rules allow, and to no others."""

    def __init__(self, rules: EgressRules, resolver: Resolve) -> None:
        self._inner = httpcore2.AnyIOBackend()
        self._rules = rules
        self._resolve = resolver

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the pool's interface
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Resolve, check every address, connect to the first that answers."""
        try:
            addresses = await self._resolve(host, port)
        except OSError as error:
            raise httpcore2.ConnectError("the name does not resolve") from error
        # One forbidden address among public ones is how rebinding attacks begin: refuse them all.
        if not self._rules.allows_by_name(host, port) and not all(
            is_public(ipaddress.ip_address(address.split("%")[0])) for address in addresses
        ):
            raise ForbiddenAddressError
        failure: Exception = httpcore2.ConnectError("the name has no address")
        for address in addresses[:4]:
            try:
                return await self._inner.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109 - the pool's interface
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Refuse: no provider lives behind a local socket."""
        raise ForbiddenAddressError

    async def sleep(self, seconds: float) -> None:
        """Wait as the pool asks."""
        await self._inner.sleep(seconds)


class Egress:
    """Sends requests to providers; one instance per process, closed at its end."""

    def __init__(
        self,
        rules: EgressRules,
        *,
        limits: EgressLimits | None = None,
        resolver: Resolve = resolve,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._rules = rules
        self._limits = limits or EgressLimits()
        self._backend = VettedBackend(rules, resolver)
        self._ssl_context = ssl_context
        self._pool: httpcore2.AsyncConnectionPool | None = None

    async def send(self, request: Request) -> Answer:
        """Send and return the answer whatever its status.

        Raises ProviderError: EGRESS_DENIED, UNAVAILABLE (with `maybe_done` unless nothing was
        sent), ANSWER_INVALID for an answer that is too large or no HTTP.
        """
        complaint = self._rules.complaint_about_url(request.url)
        if complaint is not None:
            raise _forbidden(f"The address {complaint}.")
        if not request.url.isascii():
            raise _forbidden("The address holds characters that no address has.")
        if not all(value.isascii() for value in request.headers.values()):
            raise answer_invalid("The credential does not fit into a header.", maybe_done=False)
        try:
            async with asyncio.timeout(self._limits.total.total_seconds()):
                return await self._exchange(request)
        except UnicodeError:
            raise _forbidden("The address holds characters that no address has.") from None
        except ForbiddenAddressError:
            raise _forbidden("The name leads to a private or local address.") from None
        except (httpcore2.ConnectError, httpcore2.ConnectTimeout, httpcore2.PoolTimeout):
            raise _unreachable("cannot be reached", maybe_done=False) from None
        except (TimeoutError, httpcore2.TimeoutException):
            raise _unreachable("did not answer in time", maybe_done=True) from None
        except httpcore2.NetworkError:
            raise _unreachable("broke off the connection", maybe_done=True) from None
        except httpcore2.ProtocolError:
            raise answer_invalid("The provider's answer is not HTTP.") from None

    async def close(self) -> None:
        """Close every connection."""
        if self._pool is not None:
            await self._pool.aclose()

    async def _exchange(self, request: Request) -> Answer:
        connect = self._limits.connect.total_seconds()
        # Uncompressed, so that what is counted is what is held.
        headers = {"user-agent": "cogni", "accept-encoding": "identity"} | dict(request.headers)
        async with self._open_pool().stream(
            request.method,
            request.url,
            headers=list(headers.items()),
            content=request.body,
            extensions={"timeout": {"connect": connect, "pool": connect}},
        ) as response:
            body = bytearray()
            async for chunk in response.aiter_stream():
                body += chunk
                if len(body) > self._limits.answer_bytes_max:
                    raise answer_invalid("The provider's answer is too large.")
            headers = {
                name.decode("latin-1").lower(): value.decode("latin-1")
                for name, value in response.headers[: self._limits.header_count_max]
            }
            return Answer(response.status, headers, bytes(body))

    def _open_pool(self) -> httpcore2.AsyncConnectionPool:
        # Made on the loop that uses it, once: nothing suspends between test and assignment.
        if self._pool is None:
            self._pool = httpcore2.AsyncConnectionPool(
                ssl_context=self._ssl_context or ssl.create_default_context(),
                max_connections=self._limits.connections_max,
                max_keepalive_connections=self._limits.connections_max // 2,
                keepalive_expiry=30,
                network_backend=self._backend,
            )
        return self._pool


def _forbidden(message: str) -> ProviderError:
    return ProviderError(
        FailureKind.EGRESS_DENIED,
        f"{message} The operator can allow it with COGNI_CONNECTIONS_EGRESS_ALLOW.",
    )


def _unreachable(how: str, *, maybe_done: bool) -> ProviderError:
    return ProviderError(FailureKind.UNAVAILABLE, f"The provider {how}.", maybe_done=maybe_done)
