"""What tests of Connections share: keys, a scripted provider, use cases on a real database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import hypothesis
import pytest

from cogni.egress_rules import EgressRules
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
from services.runtime.ids import new_id
from tests.databases import DatabaseFactory

# A busy machine is no defect: pytest's own timeout bounds each test.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")

CANARY = "CANARY-5d1f-secret"

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
