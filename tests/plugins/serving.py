"""Real grpc.aio servers for tests: whole pipeline, real tokens, port 0, stopped at the end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from services.runtime.drain import Drain
from services.runtime.port import Listen
from services.runtime.server import Application, Server
from services.runtime.settings import ServerSettings, TelemetrySettings
from services.runtime.telemetry import start_telemetry
from tests.plugins.identities import Identities


class Served:
    """A running server of one test."""

    def __init__(self, server: Server, drain: Drain, port: int) -> None:
        self.server = server
        self.drain = drain
        self.address = f"127.0.0.1:{port}"
        self._channels: list[grpc.aio.Channel] = []

    def channel(self, token: str | None = None) -> grpc.aio.Channel:
        """A channel whose every call carries the token, if any; closed with the server."""
        interceptors: list[grpc.aio.ClientInterceptor] = []
        if token is not None:
            interceptors = [_BearerUnary(token), _BearerStream(token)]
        # Its own subchannel: tests that drop one connection must not disturb another.
        options = [("grpc.use_local_subchannel_pool", 1)]
        channel = grpc.aio.insecure_channel(
            self.address, options=options, interceptors=interceptors
        )
        self._channels.append(channel)
        return channel

    async def stop(self, grace_seconds: float = 0.0) -> None:
        for channel in self._channels:
            await channel.close()
        await self.server.stop(grace_seconds)


ServeService = Callable[..., Awaitable[Served]]


def server_settings(**changes: Any) -> ServerSettings:
    """Settings of a test's server; keyword arguments replace them."""
    values = {"listen": "127.0.0.1:0", "drain_seconds": 2.0, "auth_hs256_secret": "s" * 32}
    return ServerSettings.model_validate({**values, **changes})


@pytest.fixture(scope="session")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Identities:
    """Keys and tokens of one imaginary installation, the same for the whole session."""
    folder: Path = tmp_path_factory.mktemp("identities")
    return Identities.create(folder)


@pytest.fixture
async def serve_service(identities: Identities) -> AsyncIterator[ServeService]:
    """`await serve_service("ledger", application)` gives a running Served with real auth.

    Pass `drain=` the Drain that your streaming servicers were built with; further keyword
    arguments replace server settings, e.g. `max_deadline_seconds=1`.
    """
    running: list[Served] = []

    async def start(
        service: str, application: Application, *, drain: Drain | None = None, **settings: Any
    ) -> Served:
        drain = drain or Drain()
        server = Server(
            application,
            server_settings(**settings),
            verifier=identities.verifier(service),
            telemetry=start_telemetry(TelemetrySettings(), service),
            drain=drain,
        )
        port = await server.start(Listen("127.0.0.1", 0))
        running.append(Served(server, drain, port))
        return running[-1]

    yield start
    for each in running:
        await each.stop()


class _BearerUnary(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, token: str) -> None:
        self._token = token

    async def intercept_unary_unary(
        self, continuation: Any, client_call_details: Any, request: Any
    ) -> Any:
        return await continuation(_with_bearer(client_call_details, self._token), request)


class _BearerStream(grpc.aio.UnaryStreamClientInterceptor):
    def __init__(self, token: str) -> None:
        self._token = token

    async def intercept_unary_stream(
        self, continuation: Any, client_call_details: Any, request: Any
    ) -> Any:
        return await continuation(_with_bearer(client_call_details, self._token), request)


def _with_bearer(details: Any, token: str) -> grpc.aio.ClientCallDetails:
    metadata = [*(details.metadata or ()), ("authorization", f"Bearer {token}")]
    return grpc.aio.ClientCallDetails(
        details.method,
        details.timeout,
        grpc.aio.Metadata(*metadata),
        details.credentials,
        details.wait_for_ready,
    )
