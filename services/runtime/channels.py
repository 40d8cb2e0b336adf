"""Channels to other Cogni services: who calls, for which tenant, in which trace, until when."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import grpc
import grpc.aio

from services.runtime.peers import peer_error
from services.runtime.telemetry import inject
from services.runtime.tokens import ServiceTokens

#: A unary call to a peer without a deadline of its own gets this one.
DEFAULT_DEADLINE = timedelta(seconds=10)
#: At least twice the ping interval that servers permit, or they hang up on us.
KEEPALIVE_SECONDS = 30
KEEPALIVE_TIMEOUT_SECONDS = 10
_MESSAGE_BYTES_MAX = 4 * 1024 * 1024
_AUTHORIZATION = "authorization"

#: Four tries within about two seconds; only for methods that repeat without harm.
_RETRY_POLICY = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 3,
    # CANCELLED is what a stopping server answers to calls it never began.
    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
}


@dataclass(frozen=True, slots=True)
class _Acting:
    tenant_id: str
    on_behalf_of: str | None


_acting: ContextVar[_Acting] = ContextVar("cogni_acting_for")


@contextmanager
def acting_for(tenant_id: str, on_behalf_of: str | None = None) -> Iterator[None]:
    """Calls to peers inside the block carry this service's token for that tenant.

    `on_behalf_of` is the subject of the person for whom it acts; tenant "*" is for watch streams
    across tenants.
    """
    token = _acting.set(_Acting(tenant_id, on_behalf_of))
    try:
        yield
    finally:
        _acting.reset(token)


def service_channel(
    address: str,
    audience: str,
    tokens: ServiceTokens,
    tls: grpc.ChannelCredentials | None = None,
    *,
    safe_methods: Iterable[str] = (),
    default_deadline: timedelta = DEFAULT_DEADLINE,
) -> grpc.aio.Channel:
    """A channel to the service named `audience` at `address` (host:port).

    Make it inside the process and event loop that use it, never before a fork or spawn. A call
    brings its own `authorization` metadata (a run token) or is made inside `acting_for`. A unary
    call fails as PeerError; `safe_methods` (full names) are repeated by gRPC on UNAVAILABLE.
    """
    outgoing = _Outgoing(audience, tokens, default_deadline)
    interceptors: list[grpc.aio.ClientInterceptor] = [_AioUnary(outgoing), _AioStream(outgoing)]
    options = _options(safe_methods)
    if tls is None:
        return grpc.aio.insecure_channel(address, options=options, interceptors=interceptors)
    return grpc.aio.secure_channel(address, tls, options=options, interceptors=interceptors)


def sync_service_channel(
    address: str,
    audience: str,
    tokens: ServiceTokens,
    tls: grpc.ChannelCredentials | None = None,
    *,
    safe_methods: Iterable[str] = (),
    default_deadline: timedelta = DEFAULT_DEADLINE,
) -> grpc.Channel:
    """`service_channel` for a thread without an event loop; unary calls only."""
    options = _options(safe_methods)
    if tls is None:
        channel = grpc.insecure_channel(address, options=options)
    else:
        channel = grpc.secure_channel(address, tls, options=options)
    return grpc.intercept_channel(
        channel, _SyncUnary(_Outgoing(audience, tokens, default_deadline))
    )


def _options(safe_methods: Iterable[str]) -> list[tuple[str, Any]]:
    names = [method.strip("/").split("/") for method in safe_methods]
    retried = [{"service": service, "method": method} for service, method in names]
    config = {"methodConfig": [{"name": retried, "retryPolicy": _RETRY_POLICY}] if retried else []}
    timeout_ms = int(KEEPALIVE_TIMEOUT_SECONDS * 1000)
    return [
        ("grpc.service_config", json.dumps(config)),
        ("grpc.enable_retries", 1),
        ("grpc.keepalive_time_ms", int(KEEPALIVE_SECONDS * 1000)),
        # The second is for a peer that takes the ping and does not answer, as a stopped one does.
        ("grpc.keepalive_timeout_ms", timeout_ms),
        ("grpc.http2.ping_timeout_ms", timeout_ms),
        ("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX),
        ("grpc.max_send_message_length", _MESSAGE_BYTES_MAX),
        # A peer that restarts is back within a second or two; gRPC would wait up to two minutes.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5000),
    ]


@dataclass(frozen=True, slots=True)
class _Outgoing:
    """What is added to every call of one channel."""

    service: str
    tokens: ServiceTokens
    default_deadline: timedelta

    def metadata(self, given: Iterable[tuple[str, Any]] | None) -> list[tuple[str, Any]]:
        """The call's own metadata, with a token unless it has one, and the trace context."""
        metadata = list(given or ())
        if not any(key == _AUTHORIZATION for key, _ in metadata):
            metadata.append((_AUTHORIZATION, f"Bearer {self._token()}"))
        metadata.extend(inject().items())
        return metadata

    def seconds(self, given: float | None) -> float:
        """The call's own deadline, or the channel's."""
        return self.default_deadline.total_seconds() if given is None else given

    def _token(self) -> str:
        acting = _acting.get(None)
        if acting is None:
            raise RuntimeError(
                f"a call to {self.service} names no tenant: make it inside acting_for(tenant_id)"
            )
        return self.tokens.token(self.service, acting.tenant_id, acting.on_behalf_of)


def _aio_details(
    details: grpc.aio.ClientCallDetails, outgoing: _Outgoing, timeout: float | None
) -> grpc.aio.ClientCallDetails:
    return grpc.aio.ClientCallDetails(
        details.method,
        timeout,
        grpc.aio.Metadata(*outgoing.metadata(details.metadata)),
        details.credentials,
        details.wait_for_ready,
    )


# The OpenTelemetry contrib interceptors swallow CancelledError; these let it pass.
class _AioUnary(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, outgoing: _Outgoing) -> None:
        self._outgoing = outgoing

    async def intercept_unary_unary(
        self,
        continuation: Callable[..., Awaitable[Any]],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        timeout = self._outgoing.seconds(client_call_details.timeout)
        call = await continuation(
            _aio_details(client_call_details, self._outgoing, timeout), request
        )
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise peer_error(self._outgoing.service, error) from None


class _AioStream(grpc.aio.UnaryStreamClientInterceptor):
    def __init__(self, outgoing: _Outgoing) -> None:
        self._outgoing = outgoing

    async def intercept_unary_stream(
        self,
        continuation: Callable[..., Awaitable[Any]],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        # Streams live until they are cancelled: no deadline but the caller's.
        details = _aio_details(client_call_details, self._outgoing, client_call_details.timeout)
        return _responses(await continuation(details, request), self._outgoing.service)


async def _responses(call: Any, service: str) -> AsyncIterator[Any]:
    try:
        async for response in call:
            yield response
    except grpc.aio.AioRpcError as error:
        raise peer_error(service, error) from None
    finally:
        # An abandoned call is never collected by grpcio (#43462).
        call.cancel()


class _SyncDetails(grpc.ClientCallDetails):
    def __init__(self, details: Any, outgoing: _Outgoing) -> None:
        self.method = details.method
        self.timeout = outgoing.seconds(details.timeout)
        self.metadata = tuple(outgoing.metadata(details.metadata))
        self.credentials = details.credentials
        self.wait_for_ready = details.wait_for_ready
        self.compression = details.compression


class _SyncUnary(grpc.UnaryUnaryClientInterceptor):
    def __init__(self, outgoing: _Outgoing) -> None:
        self._outgoing = outgoing

    def intercept_unary_unary(
        self,
        continuation: Callable[..., Any],
        client_call_details: grpc.ClientCallDetails,
        request: Any,
    ) -> Any:
        call = continuation(_SyncDetails(client_call_details, self._outgoing), request)
        error = call.exception()
        if isinstance(error, grpc.RpcError):
            raise peer_error(self._outgoing.service, error) from None
        return call
