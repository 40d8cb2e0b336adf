"""Leases credentials from Connections, under the run token, one invocation each."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import grpc

from cogni.connections.v1.connections_service_pb2 import (
    LeaseCredentialRequest,
    LeaseCredentialResponse,
)
from cogni.connections.v1.connections_service_pb2_grpc import ConnectionsServiceStub
from cogni.connections.v1.credential_pb2 import Credential as CredentialMessage
from cogni.graph.guarding import ToolDenied
from cogni.graph.invocation import Credential
from services.executor.runner.guard import Lease
from services.executor.runner.journal import Holding, LeaseLostError
from services.executor.runner.needs import Need
from services.executor.runner.threads import in_thread
from services.executor.runner.tokens import RunTokens
from services.runtime.errors import ErrorKind, PeerError

#: Fields that say where a credential goes rather than being one.
_PUBLIC = frozenset(
    {"base_url", "did", "handle", "header_name", "header_prefix", "query_name", "server_url"}
    | {"service_url"}
)
_THREADS = 4
#: How long nobody may answer before the tool is refused its credential; a restart takes seconds.
_PATIENCE_SECONDS = 60.0
_PAUSE_SECONDS_FIRST = 0.2
_PAUSE_SECONDS_MAX = 2.0
_UNANSWERED = frozenset({ErrorKind.UNAVAILABLE, ErrorKind.DEADLINE_EXCEEDED})


class LeasedCredentials:
    """Knows which connection is which provider's from the leases it has got."""

    def __init__(
        self,
        channel: Callable[[], grpc.Channel],
        tokens: RunTokens,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._channel = channel
        self._clock = clock
        self._tokens = tokens
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="credentials")
        self._stub: ConnectionsServiceStub | None = None
        self._providers: dict[str, str] = {}

    async def lease(
        self,
        holding: Holding,
        connection_ids: Sequence[str],
        need: Need,
        tool: str,
        invocation_id: str,
    ) -> Lease:
        """Lease from the connection whose provider the tool prefers, the first of several.

        Raises ToolDenied when there is none or the lease is refused, LeaseLostError.
        """
        for provider in need.providers:
            likely = [each for each in connection_ids if self._providers.get(each) == provider]
            unknown = [each for each in connection_ids if each not in self._providers]
            only = replace(need, providers=(provider,))
            for connection_id in likely + unknown:
                response = await self._lease(holding, connection_id, only, tool, invocation_id)
                if response is not None:
                    return _lease(connection_id, response.credential)
        raise ToolDenied(f"Denied: the grant names no connection of {need}.")

    def close(self) -> None:
        """Lease no more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _lease(
        self, holding: Holding, connection_id: str, need: Need, tool: str, invocation_id: str
    ) -> LeaseCredentialResponse | None:
        """None when the connection turns out to be another provider's: it is known from then."""
        request = LeaseCredentialRequest(
            connection_id=connection_id,
            invocation_id=invocation_id,
            tool=tool,
            scopes=need.scopes,
            resources=need.resources,
            providers=need.providers,
        )
        try:
            response = await self._answered(holding, request)
            self._providers[connection_id] = response.provider
            # A server of an earlier release leases whatever the connection is.
            return response if response.provider in need.providers else None
        except PeerError as error:
            if error.reason == "PROVIDER_MISMATCH":
                self._providers[connection_id] = error.metadata.get("provider", "")
                return None
            if error.reason in ("LEASE_LOST", "RUN_LEASES_REVOKED"):
                raise LeaseLostError(holding.run_id) from None
            raise ToolDenied(
                f"No credential for {tool!r}: {error.message} ({error.reason or error.kind})"
            ) from None

    async def _answered(
        self, holding: Holding, request: LeaseCredentialRequest
    ) -> LeaseCredentialResponse:
        """Ask until somebody answers: a server that restarts denies nothing.

        Repeating is safe, since a lease belongs to its invocation. Raises PeerError.
        """
        began = self._clock()
        pause = _PAUSE_SECONDS_FIRST
        while True:
            try:
                token = await self._tokens.token(holding)
                return await in_thread(self._threads, self._call, request, token)
            except PeerError as error:
                if error.kind not in _UNANSWERED or self._clock() - began > _PATIENCE_SECONDS:
                    raise
            await asyncio.sleep(pause)
            pause = min(pause * 2, _PAUSE_SECONDS_MAX)

    def _call(self, request: LeaseCredentialRequest, token: str) -> LeaseCredentialResponse:
        if self._stub is None:
            self._stub = ConnectionsServiceStub(self._channel())
        response: LeaseCredentialResponse = self._stub.LeaseCredential(
            request, metadata=(("authorization", f"Bearer {token}"),)
        )
        return response


def _lease(connection_id: str, leased: CredentialMessage) -> Lease:
    kind = leased.WhichOneof("kind") or ""
    message = getattr(leased, kind)
    fields: dict[str, str] = {}
    for field, value in message.ListFields():
        if isinstance(value, str):
            fields[field.name] = value
        elif field.name == "headers":
            fields |= {f"headers.{name}": each for name, each in value.items()}
        else:
            fields[field.name] = " ".join(value)
    public = _PUBLIC | {"allowed_origins"}
    secrets = tuple(value for name, value in fields.items() if name not in public)
    return Lease(connection_id, Credential(kind, fields), secrets)
