"""Puts the server's parts together: the one place where Connections' objects are made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial

import typer

from cogni.connections.v1 import connections_service_pb2_grpc as stubs
from cogni.egress_rules import EgressRules
from services.connections.access import ACCESS
from services.connections.adapters.aws_kms import open_aws_kms
from services.connections.adapters.callback_pages import serve_pages
from services.connections.adapters.egress import Egress, EgressLimits
from services.connections.callback import Callback
from services.connections.key_chain import KeyChain
from services.connections.keyring import KeyEncryption
from services.connections.providers.catalogue import Catalogue, built_in
from services.connections.renewal import RenewalLimits
from services.connections.rules import RULES
from services.connections.server import ConnectionsServicer, UseCases
from services.connections.settings import (
    ConnectionsSettings,
    github_keys,
    key_ring,
    oauth_clients,
    redirects,
    webhooks,
)
from services.connections.store import authorizations, changes, events
from services.connections.use_cases.authorizations import Authorizations, Redirects
from services.connections.use_cases.changes import Changes
from services.connections.use_cases.checkups import Checkups
from services.connections.use_cases.connections import Connections
from services.connections.use_cases.installations import Installations
from services.connections.use_cases.key_rotation import KeyRotations
from services.connections.use_cases.leases import LANES, Leases
from services.connections.use_cases.narrowing import Narrowing
from services.connections.use_cases.sealed import Vault
from services.connections.use_cases.sessions import Sessions
from services.connections.use_cases.tools import Tools
from services.connections.use_cases.watching import Watching
from services.connections.use_cases.webhooks import SEND_TIMEOUT, Webhooks, describe
from services.connections.webhook import Endpoint
from services.runtime.command import Process
from services.runtime.database import Database
from services.runtime.drain import Drain
from services.runtime.errors import StartError
from services.runtime.listen import Listener
from services.runtime.pools import DatabaseLimits
from services.runtime.server import Application, Registration

SERVICE = "cogni.connections.v1.ConnectionsService"
RENEW_EVERY_SECONDS = 5.0
SWEEP_EVERY_SECONDS = 60.0
ROTATE_EVERY_SECONDS = 2.0
UNDELIVERED_MAX = 1000


@dataclass(frozen=True, slots=True)
class Parts:
    """What lives as long as the process."""

    application: Application
    egress: Egress
    webhook_egress: Egress
    sessions: Sessions
    leases: Leases

    async def close(self) -> None:
        """Let leases and renewals under way end, then close the way out."""
        await self.leases.close()
        await self.sessions.close()
        await self.egress.close()
        await self.webhook_egress.close()


@dataclass(frozen=True, slots=True)
class Choices:
    """What the operator decides."""

    egress_rules: EgressRules = field(default_factory=EgressRules)
    provider_timeout: timedelta = timedelta(seconds=10)
    operator_tenant: str = ""
    redirects: Redirects = field(default_factory=Redirects)
    webhooks: Mapping[str, Endpoint] = field(default_factory=dict)


def compose(
    database: Database,
    keys: KeyEncryption,
    choices: Choices,
    drain: Drain,
    *,
    catalogue: Catalogue | None = None,
) -> Parts:
    """The application of one server process."""
    catalogue = catalogue or Catalogue()
    rules = choices.egress_rules
    vault = Vault(keys)
    egress = Egress(rules, limits=EgressLimits(total=choices.provider_timeout))
    # A pool of its own: receivers that are slow must not keep providers waiting.
    webhook_egress = Egress(rules, limits=EgressLimits(total=SEND_TIMEOUT))
    limits = RenewalLimits(
        provider_call=choices.provider_timeout, claim=choices.provider_timeout * 2
    )
    sessions = Sessions(database, vault, catalogue, egress, limits=limits)
    listener = Listener(database.url, application_name="cogni-connections")
    does = UseCases(
        database=database,
        catalogue=catalogue,
        connections=Connections(database, vault, catalogue, egress, rules),
        authorizations=Authorizations(database, vault, catalogue, egress, rules, choices.redirects),
        changes=Changes(database, vault, catalogue, egress, rules),
        checkups=Checkups(database, vault, catalogue, egress, sessions),
        installations=Installations(database, catalogue, egress, rules),
        leases=Leases(database, vault, catalogue, sessions, Narrowing(egress)),
        key_rotations=KeyRotations(database, keys, operator_tenant=choices.operator_tenant),
        watching=Watching(database, listener, drain),
        tools=Tools(database, vault, catalogue, egress),
    )
    servicer = ConnectionsServicer(does)
    application = Application(
        registrations=(
            Registration(stubs.add_ConnectionsServiceServicer_to_server, servicer, SERVICE),
        ),
        access=ACCESS,
        rules=RULES,
        loops={
            "listener": listener.run,
            "renew": partial(_every, RENEW_EVERY_SECONDS, sessions.renew_due),
            "sweep": partial(_every, SWEEP_EVERY_SECONDS, partial(_sweep, database, does.leases)),
            "rotate": partial(_every, ROTATE_EVERY_SECONDS, partial(_rotate, does.key_rotations)),
            "webhooks": Webhooks(database, webhook_egress, choices.webhooks).relay().run,
        },
        hand_back=sessions.close,
    )
    return Parts(application, egress, webhook_egress, sessions, does.leases)


async def _every(seconds: float, work: Callable[[], Awaitable[object]]) -> None:
    while True:
        await work()
        await asyncio.sleep(seconds)


async def _sweep(database: Database, leases: Leases) -> None:
    await leases.sweep()
    async with database.jobs() as tx:
        await changes.sweep(tx)
        await authorizations.sweep(tx)
        await events.sweep(tx)


async def _rotate(rotations: KeyRotations) -> None:
    more = True
    while more:
        more = await rotations.step()


@asynccontextmanager
async def open_application(process: Process[ConnectionsSettings]) -> AsyncIterator[Application]:
    """What one server process serves, from its settings, closed at the end."""
    settings = process.settings
    database = _open_database(settings)
    parts = compose(
        database, _keys(settings), _choices(settings), process.drain, catalogue=_known(settings)
    )
    try:
        yield parts.application
    finally:
        await parts.close()
        await database.close()


async def serve_callback(process: Process[ConnectionsSettings]) -> None:
    """The callback process: completes authorizations until it is told to stop."""
    settings = process.settings
    choices = _choices(settings)
    database = _open_database(settings)
    egress = Egress(choices.egress_rules, limits=EgressLimits(total=choices.provider_timeout))
    completes = Authorizations(
        database,
        Vault(_keys(settings)),
        _known(settings),
        egress,
        choices.egress_rules,
        choices.redirects,
    )
    host, _, port = settings.callback_listen.rpartition(":")
    try:
        await database.check()
        await serve_pages(Callback(completes), host.strip("[]"), int(port), process.drain)
    finally:
        await egress.close()
        await database.close()


def _open_database(settings: ConnectionsSettings) -> Database:
    return Database.open(
        settings.database_url.get_secret_value(),
        settings.service,
        application_name="cogni-connections",
        limits=replace(DatabaseLimits.of(settings), raw_connections_max=2 * LANES),
    )


def _keys(settings: ConnectionsSettings) -> KeyEncryption:
    ring = key_ring(settings)
    if not settings.aws_kms_key:
        assert ring is not None, "the settings refuse neither"
        return ring
    try:
        kms = open_aws_kms(settings.aws_kms_key, endpoint_url=settings.aws_kms_endpoint or None)
    except RuntimeError as error:
        raise StartError(f"COGNI_CONNECTIONS_AWS_KMS_KEY is set: {error}.") from error
    return KeyChain(kms, ring)


def _choices(settings: ConnectionsSettings) -> Choices:
    return Choices(
        egress_rules=EgressRules.parse(settings.egress_allow),
        provider_timeout=timedelta(seconds=settings.provider_timeout_seconds),
        operator_tenant=settings.operator_tenant,
        redirects=redirects(settings),
        webhooks=webhooks(settings),
    )


def _known(settings: ConnectionsSettings) -> Catalogue:
    return Catalogue(built_in(oauth_clients(settings), github_keys(settings)))


async def list_undelivered(process: Process[ConnectionsSettings], *, send_again: bool) -> None:
    """Print the events that were given up; with `send_again` owe them once more."""
    database = _open_database(process.settings)
    try:
        await database.check()
        async with database.jobs() as tx:
            if send_again:
                typer.echo(f"{await events.send_again(tx, limit=UNDELIVERED_MAX)} are sent again.")
            for each in await events.undelivered(tx, limit=UNDELIVERED_MAX):
                typer.echo(describe(each))
    finally:
        await database.close()
