"""Puts the server's parts together: the one place where Connections' objects are made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

from cogni.connections.v1 import connections_service_pb2_grpc as stubs
from services.connections.access import ACCESS
from services.connections.adapters.egress import Egress, EgressLimits
from services.connections.egress_rules import EgressRules
from services.connections.keyring import KeyEncryption
from services.connections.providers.catalogue import Catalogue
from services.connections.renewal import RenewalLimits
from services.connections.rules import RULES
from services.connections.server import ConnectionsServicer
from services.connections.settings import ConnectionsSettings, database_limits, key_ring
from services.connections.use_cases.connections import Connections
from services.connections.use_cases.leases import Leases
from services.connections.use_cases.sealed import Vault
from services.connections.use_cases.sessions import Sessions
from services.runtime.command import Process
from services.runtime.database import Database
from services.runtime.server import Application, Registration

SERVICE = "cogni.connections.v1.ConnectionsService"
RENEW_EVERY_SECONDS = 5.0
SWEEP_EVERY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Parts:
    """What lives as long as the process."""

    application: Application
    egress: Egress
    sessions: Sessions

    async def close(self) -> None:
        """Let renewals under way end, then close the way out."""
        await self.sessions.close()
        await self.egress.close()


def compose(
    database: Database,
    keys: KeyEncryption,
    egress_rules: EgressRules,
    *,
    catalogue: Catalogue | None = None,
    provider_timeout: timedelta = timedelta(seconds=10),
) -> Parts:
    """The application of one server process."""
    catalogue = catalogue or Catalogue()
    vault = Vault(keys)
    egress = Egress(egress_rules, limits=EgressLimits(total=provider_timeout))
    limits = RenewalLimits(provider_call=provider_timeout, claim=provider_timeout * 1.5)
    sessions = Sessions(database, vault, catalogue, egress, limits=limits)
    connections = Connections(database, vault, catalogue, egress, egress_rules)
    leases = Leases(database, vault, catalogue, sessions)

    async def renew_due() -> None:
        while True:
            await sessions.renew_due()
            await asyncio.sleep(RENEW_EVERY_SECONDS)

    async def sweep() -> None:
        while True:
            await leases.sweep()
            await asyncio.sleep(SWEEP_EVERY_SECONDS)

    servicer = ConnectionsServicer(  # type: ignore[abstract]  # the runtime answers the rest
        database, catalogue, connections, leases
    )
    application = Application(
        registrations=(
            Registration(stubs.add_ConnectionsServiceServicer_to_server, servicer, SERVICE),
        ),
        access=ACCESS,
        rules=RULES,
        loops={"renew": renew_due, "sweep": sweep},
        hand_back=sessions.close,
    )
    return Parts(application, egress, sessions)


@asynccontextmanager
async def open_application(process: Process[ConnectionsSettings]) -> AsyncIterator[Application]:
    """What one server process serves, from its settings, closed at the end."""
    settings = process.settings
    database = Database.open(
        settings.database_url.get_secret_value(),
        ConnectionsSettings.service,
        application_name="cogni-connections",
        limits=database_limits(settings),
    )
    parts = compose(
        database,
        key_ring(settings),
        EgressRules.parse(settings.egress_allow),
        provider_timeout=timedelta(seconds=settings.provider_timeout_seconds),
    )
    try:
        yield parts.application
    finally:
        await parts.close()
        await database.close()
