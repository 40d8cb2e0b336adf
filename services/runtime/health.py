"""The standard gRPC health service: what is served, and what is not, by name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.runtime.drain import Drain
from services.runtime.errors import not_found

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

#: The name under which a server as a whole is asked for.
OVERALL = ""


class Health(health_pb2_grpc.HealthServicer):
    """Answers Check and Watch for names set by the server; once draining, nothing is served.

    Not grpcio's own servicer: that one holds a lock while it writes to a watcher, so one stalled
    watcher keeps a server from ever saying NOT_SERVING, and its watches outlive the drain.
    """

    def __init__(self, drain: Drain) -> None:
        self._drain = drain
        self._serving: dict[str, bool] = {}
        self._changed = asyncio.Event()

    def set(self, name: str, serving: bool) -> None:
        """Sets one name's state and wakes its watchers."""
        self._serving[name] = serving
        self._wake()

    def _wake(self) -> None:
        # Every watcher holds the event it read the state under; a new one begins here.
        self._changed.set()
        self._changed = asyncio.Event()

    def state(self, name: str) -> int:
        """What Check would answer; SERVICE_UNKNOWN for names nobody set."""
        if name not in self._serving:
            return _UNKNOWN
        serving = self._serving[name] and not self._drain.draining.is_set()
        return _SERVING if serving else _NOT_SERVING

    async def Check(  # noqa: N802 the contract's name
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> health_pb2.HealthCheckResponse:
        """NOT_FOUND for unknown names, as the health protocol wants."""
        state = self.state(request.service)
        if state == _UNKNOWN:
            raise not_found("health service", request.service)
        return _response(state)

    async def Watch(  # noqa: N802 the contract's name
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Each change of state; ends when the server drains, so that nobody waits for it."""
        told: int | None = None
        while True:
            changed = self._changed
            state = self.state(request.service)
            if state != told:
                yield _response(state)
                told = state
            elif self._drain.draining.is_set():
                return
            else:
                await _either(changed, self._drain.draining)


async def _either(first: asyncio.Event, second: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(each.wait()) for each in (first, second)]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waits:
            each.cancel()


def _response(state: int) -> health_pb2.HealthCheckResponse:
    return health_pb2.HealthCheckResponse(
        status=health_pb2.HealthCheckResponse.ServingStatus.Name(state)
    )
