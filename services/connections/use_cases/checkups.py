"""Tries connections out and renews them when a person asks."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta

from services.connections.access_log import Action, Decision
from services.connections.callers import entry_by
from services.connections.checkup import Check, Checkup
from services.connections.connection import (
    Connection,
    check_may_change,
    check_not_revoked,
    check_renewable,
    check_usable,
)
from services.connections.providers.catalogue import Catalogue
from services.connections.providers.failures import ProviderError
from services.connections.providers.http import Http
from services.connections.providers.provider import Probe, Provider
from services.connections.renewal import is_verdict
from services.connections.store import access_log, connections, credentials
from services.connections.store.credentials import StoredCredentials
from services.connections.use_cases.sealed import Vault
from services.connections.use_cases.sessions import Sessions
from services.runtime.caller import Caller
from services.runtime.database import Database
from services.runtime.errors import ErrorKind, ServiceError, not_found


class Checkups:
    """TestConnection and RefreshConnection."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        catalogue: Catalogue,
        http: Http,
        sessions: Sessions,
    ) -> None:
        self._database = database
        self._vault = vault
        self._catalogue = catalogue
        self._http = http
        self._sessions = sessions

    async def test(
        self, caller: Caller, connection_id: str, required_scopes: tuple[str, ...]
    ) -> Checkup:
        """Try what a lease would try, and then the provider itself."""
        connection, _ = await self._read(caller.tenant_id, connection_id)
        provider = self._catalogue.get(connection.provider)
        checks: list[Check] = []
        for name, attempt in (
            ("be usable", self._try_state),
            ("have a live session", self._try_session),
            ("read the stored credential", self._try_vault),
            ("be accepted by the provider", self._try_provider),
        ):
            begun = time.monotonic()
            try:
                check = Check(name, True, await attempt(caller.tenant_id, connection_id, provider))
            except ServiceError as error:
                check = Check(name, False, error.message, error.reason)
            took = timedelta(seconds=time.monotonic() - begun)
            checks.append(replace(check, duration=took))
            if not check.passed:
                break
        return await self._finish(caller, connection_id, tuple(checks), required_scopes)

    async def refresh(
        self, caller: Caller, connection_id: str, *, force: bool
    ) -> tuple[Connection, bool]:
        """Renew the session if it is due or forced; the connection, and whether it was renewed."""
        connection, stored = await self._read(caller.tenant_id, connection_id)
        check_may_change(connection, caller.owner, caller.scopes)
        check_not_revoked(connection)
        provider = self._catalogue.get(connection.provider)
        if provider.sessions is None:
            raise ServiceError(
                ErrorKind.FAILED_PRECONDITION,
                "REFRESH_NOT_SUPPORTED",
                "There is nothing to renew: this credential works until it is withdrawn.",
            )
        check_renewable(connection, by_itself=provider.renews_by_itself)
        if not force and not _due(stored):
            return connection, False
        await self._sessions.renew(caller.tenant_id, connection_id, stored.session_generation)
        return (await self._read(caller.tenant_id, connection_id))[0], True

    async def _read(
        self, tenant_id: str, connection_id: str
    ) -> tuple[Connection, StoredCredentials]:
        async with self._database.tenant(tenant_id) as tx:
            found = await connections.get(tx, tenant_id, connection_id)
            if found is None:
                raise not_found("connection", connection_id)
            return found, await credentials.get(tx, tenant_id, connection_id)

    async def _try_state(self, tenant_id: str, connection_id: str, provider: Provider) -> str:
        connection, _ = await self._read(tenant_id, connection_id)
        check_usable(connection)
        return "Agents can lease it."

    async def _try_session(self, tenant_id: str, connection_id: str, provider: Provider) -> str:
        if provider.sessions is None:
            return "It needs none: the stored secret itself is leased."
        _, stored = await self._read(tenant_id, connection_id)
        if stored.session is None or _due(stored):
            await self._sessions.renew(tenant_id, connection_id, stored.session_generation)
            return "A new one was made."
        return "It is fresh."

    async def _try_vault(self, tenant_id: str, connection_id: str, provider: Provider) -> str:
        connection, stored = await self._read(tenant_id, connection_id)
        settings = provider.settings.model_validate(connection.settings)
        await self._vault.material(settings, stored)
        return "It opens, and belongs to this connection."

    async def _try_provider(self, tenant_id: str, connection_id: str, provider: Provider) -> str:
        if provider.probe is None:
            return "The provider has no cheap way to tell; the first use will."
        try:
            return await self._probe(tenant_id, connection_id, provider, provider.probe)
        except ProviderError as failure:
            if not is_verdict(failure) or provider.sessions is None:
                raise failure.to_service_error() from failure
        # The session may have been withdrawn at the provider: the renewal knows, and declares it.
        _, stored = await self._read(tenant_id, connection_id)
        await self._sessions.renew(tenant_id, connection_id, stored.session_generation)
        try:
            return await self._probe(tenant_id, connection_id, provider, provider.probe)
        except ProviderError as failure:
            raise failure.to_service_error() from failure

    async def _probe(
        self, tenant_id: str, connection_id: str, provider: Provider, probe: Probe
    ) -> str:
        connection, stored = await self._read(tenant_id, connection_id)
        settings = provider.settings.model_validate(connection.settings)
        material = await self._vault.material(settings, stored)
        return await probe(material, self._http, stored.now)

    async def _finish(
        self,
        caller: Caller,
        connection_id: str,
        checks: tuple[Check, ...],
        required_scopes: tuple[str, ...],
    ) -> Checkup:
        tenant_id = caller.tenant_id
        failed = next((check for check in checks if not check.passed), None)
        async with self._database.tenant(tenant_id) as tx:
            head = await access_log.lock_head(tx, tenant_id)
            connection = await connections.get(tx, tenant_id, connection_id)
            if connection is None:
                raise not_found("connection", connection_id)
            entry = entry_by(
                caller, Action.TEST_CONNECTION, Decision.FAILED if failed else Decision.ALLOWED
            )
            await access_log.append(
                tx,
                head,
                replace(
                    entry,
                    connection_id=connection_id,
                    provider=connection.provider,
                    reason=failed.reason if failed else "",
                ),
            )
        missing_scopes = self._catalogue.get(connection.provider).missing_scopes
        if missing_scopes is None:
            return Checkup(checks, (), connection, unknown_scopes=required_scopes)
        missing = tuple(missing_scopes(connection.scopes, required_scopes))
        return Checkup(checks, missing, connection)


def _due(stored: StoredCredentials) -> bool:
    session = stored.session
    if session is None:
        return True
    return session.renew_time is not None and session.renew_time <= stored.now
