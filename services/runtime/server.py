"""One gRPC server, composed: guarded RPCs, health, reflection, limits, loops, graceful drain."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.runtime.access import AccessTable, missing_entries, stale_entries
from services.runtime.drain import Drain
from services.runtime.errors import StartError
from services.runtime.health import OVERALL, Health
from services.runtime.interceptors import Deadlines, Gatekeeper, Observer, Pipeline
from services.runtime.loops import BackgroundLoop, Loops
from services.runtime.port import Listen, ListenError
from services.runtime.settings import ServerSettings
from services.runtime.streams import StreamShare
from services.runtime.telemetry import Telemetry
from services.runtime.tls import server_credentials
from services.runtime.tokens import TokenVerifier
from services.runtime.validation import RuleSet, RuleTable

_log = logging.getLogger(__name__)

#: How long a peer may take to answer a keepalive ping before its connection is dropped.
KEEPALIVE_TIMEOUT_SECONDS = 10
#: Objects that a process makes, beyond those it lets go, before the young ones are looked at.
GC_ALLOCATIONS_MIN = 20_000
#: Calls under way in one process, over all connections; more are refused at once.
CONCURRENT_CALLS_MAX = 10_000
#: Of these, the streams of one tenant, so that it cannot shut out the others.
TENANT_STREAMS_MAX = 2_000
#: Before the server stops it refuses new calls until none came for so long, within the second
#: bound. grpc.aio takes calls from its queue one at a time, and stopping answers whatever waits
#: there with a bare CANCELLED: 14 of 20 busy clients got it. Refused first, with a delay, they
#: are back only when the connection is closed.
QUIET_SECONDS = 0.1
QUIET_WAIT_SECONDS_MAX = 2.0


@dataclass(frozen=True, slots=True)
class Registration:
    """One servicer: the generated `add_…_to_server`, the object, and the service's full name."""

    add_to_server: Callable[[Any, grpc.aio.Server], None]
    servicer: object
    service: str

    def methods(self) -> list[str]:
        """Full method names, from the service's descriptor."""
        descriptor = descriptor_pool.Default().FindServiceByName(self.service)
        return [f"/{self.service}/{method.name}" for method in descriptor.methods]


@dataclass(frozen=True, slots=True)
class Application:
    """What one server serves. `hand_back` is awaited after the streams were told to end and
    before the server stops; it is cut off when the drain's time is over."""

    registrations: tuple[Registration, ...]
    access: AccessTable
    rules: RuleTable = field(default_factory=dict)
    loops: Mapping[str, BackgroundLoop] = field(default_factory=dict)
    hand_back: Callable[[], Awaitable[None]] | None = None

    def methods(self) -> list[str]:
        """Every RPC of every registered service."""
        return [method for each in self.registrations for method in each.methods()]

    def check(self) -> None:
        """Raises StartError unless the access table names exactly the registered RPCs."""
        methods = self.methods()
        problems = [
            *(f"{each} has no access entry." for each in missing_entries(methods, self.access)),
            *(f"{each} is no registered RPC." for each in stale_entries(methods, self.access)),
        ]
        if problems:
            raise StartError("The access table is wrong: " + " ".join(problems))


async def serve(
    application: Application,
    settings: ServerSettings,
    listen: Listen,
    *,
    verifier: TokenVerifier,
    telemetry: Telemetry,
    drain: Drain,
) -> None:
    """Serves until SIGTERM or SIGINT, then drains; a second signal stops at once.

    The application must be ready when this is called. Raises StartError when it cannot start.
    """
    server = Server(application, settings, verifier=verifier, telemetry=telemetry, drain=drain)
    await server.start(listen)
    _spare_the_collector()
    # Behind a supervising parent only its SIGTERM counts: Ctrl-C reaches every process of the
    # terminal, and counted twice it would cut the drain short.
    drain.begin_on((signal.SIGTERM,) if listen.shared else (signal.SIGTERM, signal.SIGINT))
    _log.info("listening on %s", listen)
    await drain.draining.wait()
    _log.info("draining for up to %g seconds", settings.drain_seconds)
    await server.stop(settings.drain_seconds)
    _log.info("stopped")


def _spare_the_collector() -> None:
    """Keep the garbage collector from walking what stays for as long as the process does.

    Those walks were about a fifth of a bulk's cost at the Ledger: 96 to 101 µs a unit with, 71 to
    81 without, on a busy machine.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS_MIN, 20, 20)


class Server:
    """A grpc.aio server with everything around it. For one event loop."""

    def __init__(
        self,
        application: Application,
        settings: ServerSettings,
        *,
        verifier: TokenVerifier,
        telemetry: Telemetry,
        drain: Drain,
    ) -> None:
        """Raises StartError for a wrong access table, ValueError for a wrong rule."""
        application.check()
        self._application = application
        self._settings = settings
        self._drain = drain
        self._health = Health(drain)
        self._loops = Loops(application.loops, self._health, telemetry)
        gatekeeper = Gatekeeper(
            verifier, application.access, reflection_open=settings.reflection == "open"
        )
        self._pipeline = Pipeline(
            Observer(telemetry),
            gatekeeper,
            RuleSet(application.rules),
            Deadlines(settings.default_deadline_seconds, settings.max_deadline_seconds),
            StreamShare(TENANT_STREAMS_MAX),
            drain,
        )
        self._server: grpc.aio.Server | None = None

    async def start(self, listen: Listen) -> int:
        """Binds, serves, starts the loops, and only then says SERVING. Returns the port."""
        server = grpc.aio.server(
            interceptors=[self._pipeline],
            options=_options(self._settings, shared=listen.shared),
            maximum_concurrent_rpcs=CONCURRENT_CALLS_MAX,
        )
        self._register(server)
        port = self._bind(server, listen)
        await server.start()
        self._server = server
        self._loops.start()
        for name in (OVERALL, *(each.service for each in self._application.registrations)):
            self._health.set(name, serving=True)
        return port

    def _register(self, server: grpc.aio.Server) -> None:
        for each in self._application.registrations:
            each.add_to_server(each.servicer, server)
            self._health.set(each.service, serving=False)
        self._health.set(OVERALL, serving=False)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if self._settings.reflection != "off":
            names = [each.service for each in self._application.registrations]
            reflection.enable_server_reflection(
                [*names, "grpc.health.v1.Health", reflection.SERVICE_NAME], server
            )

    def _bind(self, server: grpc.aio.Server, listen: Listen) -> int:
        credentials = server_credentials(self._settings)
        try:
            if credentials is None:
                return server.add_insecure_port(str(listen))
            return server.add_secure_port(str(listen), credentials)
        except RuntimeError:
            raise ListenError(f"Cannot listen on {listen}; another process may use it.") from None

    async def stop(self, grace_seconds: float) -> None:
        """Drains: NOT_SERVING, streams end, leases go back, calls finish or are cut, loops end."""
        if self._server is None:
            return
        self._drain.draining.set()
        ending = asyncio.create_task(self._end(self._server, grace_seconds))
        hurrying = asyncio.create_task(self._drain.hurrying.wait())
        await asyncio.wait((ending, hurrying), return_when=asyncio.FIRST_COMPLETED)
        hurrying.cancel()
        if not ending.done():
            ending.cancel()
            await asyncio.gather(ending, return_exceptions=True)
            await self._server.stop(None)
        await self._loops.stop()

    async def _end(self, server: grpc.aio.Server, grace_seconds: float) -> None:
        clock = asyncio.get_running_loop().time
        end = clock() + grace_seconds
        if self._application.hand_back is not None:
            try:
                async with asyncio.timeout_at(end):
                    await self._application.hand_back()
            except Exception:
                _log.exception("handing back before the stop failed")
        await self._quiet(min(end, clock() + QUIET_WAIT_SECONDS_MAX))
        await server.stop(max(0.0, end - clock()))

    async def _quiet(self, end: float) -> None:
        clock = asyncio.get_running_loop().time
        seen = -1
        while seen != self._pipeline.refused_by_drain and clock() < end:
            seen = self._pipeline.refused_by_drain
            await asyncio.sleep(min(QUIET_SECONDS, max(0.0, end - clock())))


def _options(settings: ServerSettings, *, shared: bool) -> list[tuple[str, Any]]:
    keepalive_ms = int(settings.keepalive_seconds * 1000)
    timeout_ms = int(KEEPALIVE_TIMEOUT_SECONDS * 1000)
    return [
        ("grpc.so_reuseport", int(shared)),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.max_concurrent_streams", settings.max_concurrent_streams),
        ("grpc.keepalive_time_ms", keepalive_ms),
        # The first is for peers whose machine is gone (TCP's own user timeout), the second for
        # those that take the ping and do not answer, a stopped process: gRPC gives them a minute.
        ("grpc.keepalive_timeout_ms", timeout_ms),
        ("grpc.http2.ping_timeout_ms", timeout_ms),
        ("grpc.keepalive_permit_without_calls", 1),
        # Clients may ping half as often again as we do; gRPC's own limit of five minutes would
        # answer our SDK's keepalive with GOAWAY "too_many_pings".
        ("grpc.http2.min_ping_interval_without_data_ms", keepalive_ms // 2),
        ("grpc.max_connection_age_ms", int(settings.max_connection_age_seconds * 1000)),
        (
            "grpc.max_connection_age_grace_ms",
            int(settings.max_connection_age_grace_seconds * 1000),
        ),
    ]
