"""What tests of Connections share: keys, a scripted provider, use cases, a server, a database."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cogni.connections.v1 import connection_pb2, credential_pb2
from cogni.connections.v1 import connections_service_pb2 as messages
from cogni.connections.v1 import connections_service_pb2_grpc as stubs
from cogni.egress_rules import EgressRules
from services.connections.composition import Choices, compose
from services.connections.connection import Connection
from services.connections.connection_requests import CreateWanted
from services.connections.credential import BearerCredential
from services.connections.keyring import KeyRing
from services.connections.lease import DEFAULT_TTL, LeaseWanted
from services.connections.providers.catalogue import Catalogue, built_in
from services.connections.providers.http import Http
from services.connections.providers.provider import (
    LeaseWish,
    Material,
    Provider,
    ProviderSettings,
    RefreshPolicy,
)
from services.connections.renewal import RenewalLimits
from services.connections.secret import AuthKind, Secret, Session
from services.connections.use_cases.connections import Connections
from services.connections.use_cases.leases import Leases
from services.connections.use_cases.narrowing import Narrowing
from services.connections.use_cases.sealed import Vault
from services.connections.use_cases.sessions import Sessions
from services.runtime.caller import Caller, CallerKind, RunClaims
from services.runtime.database import Database
from services.runtime.drain import Drain
from services.runtime.ids import new_id
from services.runtime.server import Application
from services.standalone import pds
from tests.databases import DatabaseFactory
from tests.plugins.identities import Identities
from tests.plugins.serving import Served, ServeService

CANARY = "CANARY-5d1f-secret"
PASSWORD = f"{CANARY}-app-password"
ADMIN = ("connections:read", "connections:write", "connections:admin")

Script = Callable[[Material], Session | Exception]


@dataclass
class ScriptedSessions:
    """A provider whose answers a test decides; counts what it was asked."""

    lasts: timedelta = timedelta(hours=2)
    scopes: tuple[str, ...] = ()
    begun: int = 0
    renewed: int = 0
    next_failure: Exception | None = None
    gate: asyncio.Event | None = None
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    presented: list[str] = field(default_factory=list)

    async def begin(self, material: Material, http: Http, now: datetime) -> Session:
        self.begun += 1
        return await self._answer("begin", now)

    async def renew(self, material: Material, http: Http, now: datetime) -> Session:
        assert material.session is not None
        self.renewed += 1
        self.presented.append(material.session.values["refresh_token"])
        return await self._answer("renew", now)

    async def _answer(self, what: str, now: datetime) -> Session:
        self.asked.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.next_failure is not None:
            failure, self.next_failure = self.next_failure, None
            raise failure
        number = self.begun + self.renewed
        return Session(
            values={
                "access_token": f"{CANARY}-access-{number}",
                "refresh_token": f"{CANARY}-refresh-{number}",
            },
            expire_time=now + self.lasts,
            scopes=self.scopes,
            account_id="acct-1",
            account_name="ann",
        )


def scripted_provider(sessions: ScriptedSessions, **changes: Any) -> Provider:
    """A provider of app passwords with scripted sessions."""

    def lend(material: Material, wish: LeaseWish) -> BearerCredential:
        assert material.session is not None
        return BearerCredential(material.session.values["access_token"], "https://api.test")

    provider = Provider(
        id="scripted",
        display_name="Scripted",
        description="A provider for tests.",
        documentation_uri="https://example.com",
        auth_kinds=(AuthKind.APP_PASSWORD,),
        settings=ProviderSettings,
        lend=lend,
        refresh_policy=RefreshPolicy.STRICT,
        sessions=sessions,
    )
    return replace(provider, **changes)


class NoHttp:
    """The network of a test that must not use it."""

    async def send(self, request: object) -> Any:
        raise AssertionError(f"nothing may be sent here: {request}")


@dataclass
class World:
    """The use cases of one process on a test's own database."""

    database: Database
    vault: Vault
    sessions: ScriptedSessions
    renewals: Sessions
    connections: Connections
    leases: Leases

    async def connect(self, caller: Caller, **changes: Any) -> Connection:
        """A connection to the scripted provider."""
        return await self.connections.create(caller, create_wanted(**changes))


def user(
    subject: str = "ann", tenant_id: str = "t1", scopes: tuple[str, ...] = ("connections:write",)
) -> Caller:
    """A person."""
    return Caller(CallerKind.USER, subject, tenant_id, frozenset(scopes))


def runner(
    *connection_ids: str,
    run_id: str = "run-1",
    epoch: int = 1,
    grant_id: str = "grant-1",
    tenant_id: str = "t1",
) -> Caller:
    """One attempt of a run."""
    claims = RunClaims(run_id, epoch, tenant_id, grant_id, connection_ids, "acc", datetime.now(UTC))
    return Caller(CallerKind.RUN, f"run:{run_id}", tenant_id, run=claims)


def executor(tenant_id: str = "t1") -> Caller:
    """The Executor's server."""
    return Caller(CallerKind.SERVICE, "service:executor", tenant_id, service="executor")


def create_wanted(**changes: Any) -> CreateWanted:
    """A request to connect to the scripted provider."""
    wanted = CreateWanted(
        request_id=new_id(),
        provider="scripted",
        auth_kind=None,
        display_name="",
        labels={},
        settings={},
        secret=Secret(AuthKind.APP_PASSWORD, {"identifier": "ann", "password": CANARY}),
        consent_subjects=(),
        skip_check=False,
    )
    return replace(wanted, **changes)


def lease_wanted(connection_id: str, **changes: Any) -> LeaseWanted:
    """A request of one invocation."""
    return replace(
        LeaseWanted(connection_id, "invocation-1", "post", LeaseWish(), DEFAULT_TTL), **changes
    )


@pytest.fixture
def key_ring() -> KeyRing:
    """A ring of one key."""
    return KeyRing("k1", {"k1": bytes(range(32))})


def make_world(
    database: Database,
    key_ring: KeyRing,
    sessions: ScriptedSessions | None = None,
    limits: RenewalLimits | None = None,
    **provider: Any,
) -> World:
    """One process's use cases; several on one database are several processes."""
    scripted = sessions or ScriptedSessions()
    catalogue = Catalogue([*built_in(), scripted_provider(scripted, **provider)])
    vault = Vault(key_ring)
    renewals = Sessions(database, vault, catalogue, NoHttp(), limits=limits)
    return World(
        database,
        vault,
        scripted,
        renewals,
        Connections(database, vault, catalogue, NoHttp(), EgressRules()),
        Leases(database, vault, catalogue, renewals, Narrowing(NoHttp())),
    )


@pytest.fixture
async def world(database: DatabaseFactory, key_ring: KeyRing) -> World:
    """One process on a database of its own."""
    return make_world(await database("connections"), key_ring)


@pytest.fixture
def at_server(tmp_path: Path) -> Iterator[str]:
    """host:port of an AT Protocol server with the account ann.test."""
    server = pds.serve(0, tmp_path / "pds.json", "ann.test", PASSWORD)
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@dataclass
class Service:
    """A running server, those who call it, and the one address that it may call."""

    served: Served
    application: Application
    database: Database
    identities: Identities
    outside: str

    def stub(self, token: str | None) -> stubs.ConnectionsServiceStub:
        return stubs.ConnectionsServiceStub(self.served.channel(token))

    def user(self, subject: str = "ann", tenant: str = "t1", scopes: Any = ADMIN) -> Any:
        return self.stub(self.identities.user_token(tenant, subject, scopes))

    def run(self, *connection_ids: str, **claims: Any) -> Any:
        made = self.identities.run_claims(
            claims.pop("tenant", "t1"), connection_ids=connection_ids, **claims
        )
        return self.stub(self.identities.run_token(made))

    def executor(self) -> Any:
        return self.stub(self.identities.service_token("executor", "connections", "t1"))

    def bluesky(self, **changes: Any) -> messages.CreateConnectionRequest:
        request = messages.CreateConnectionRequest(
            request_id=new_id(),
            provider="bluesky",
            secret=credential_pb2.ConnectionSecret(
                app_password=credential_pb2.AppPasswordSecret(
                    identifier="@ann.test", password=PASSWORD
                )
            ),
        )
        request.settings["service_url"] = f"http://{self.outside}"
        request.MergeFrom(messages.CreateConnectionRequest(**changes))
        return request


@pytest.fixture
def outside(at_server: str) -> str:
    """host:port that `service` may call; a module whose provider is another replaces this."""
    return at_server


@pytest.fixture
async def service(
    database: DatabaseFactory,
    serve_service: ServeService,
    identities: Identities,
    key_ring: KeyRing,
    outside: str,
) -> AsyncIterator[Service]:
    """A server of this test alone, which may call `outside`."""
    db = await database("connections")
    drain = Drain()
    parts = compose(db, key_ring, Choices(EgressRules.parse(outside)), drain)
    served = await serve_service("connections", parts.application, drain=drain)
    yield Service(served, parts.application, db, identities, outside)
    await parts.close()


@pytest.fixture
async def bluesky(service: Service) -> connection_pb2.Connection:
    """A connection of ann's, signed in."""
    made = await service.user().CreateConnection(service.bluesky())
    return made.connection  # type: ignore[no-any-return]


def lease_request(connection_id: str, **changes: Any) -> messages.LeaseCredentialRequest:
    """What one invocation asks for; keyword arguments replace its fields."""
    request = messages.LeaseCredentialRequest(
        connection_id=connection_id, invocation_id="inv-1", tool="post_to_bluesky"
    )
    request.MergeFrom(messages.LeaseCredentialRequest(**changes))
    return request


def update_request(made: connection_pb2.Connection, *paths: str, **changes: Any) -> Any:
    """A change of a connection; without paths it has no mask."""
    request = messages.UpdateConnectionRequest()
    request.connection.connection_id = made.connection_id
    request.connection.MergeFrom(connection_pb2.Connection(**changes))
    if paths:
        request.update_mask.paths.extend(paths)
    return request
