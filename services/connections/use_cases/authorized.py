"""Stores what a completed authorization brought: a new connection, or an old one made good."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from services.connections.access_log import Action, Decision
from services.connections.authorization import Authorization
from services.connections.callers import entry_by
from services.connections.connection import Connection, State, check_not_revoked
from services.connections.providers.provider import Provider, ProviderSettings
from services.connections.renewal import renew_time
from services.connections.secret import SECRET, SESSION, AuthKind, Secret, Session
from services.connections.store import access_log, connections, credentials, refreshes
from services.connections.store.connections import NewConnection
from services.connections.use_cases.sealed import Vault
from services.connections.vault import Binding
from services.runtime.caller import Caller
from services.runtime.database import Database
from services.runtime.errors import not_found
from services.runtime.ids import new_id


@dataclass(frozen=True, slots=True)
class Brought:
    """What an authorization brought, and when (the database's time)."""

    stored: Authorization
    provider: Provider
    settings: ProviderSettings
    secret: Secret | None
    session: Session
    now: datetime


class Authorized:
    """Keeps what authorizations bring."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault

    async def keep(self, caller: Caller, brought: Brought) -> Connection:
        """Make the connection, or put the new session into the existing one."""
        stored = brought.stored
        tenant_id = stored.tenant_id
        connection_id = stored.connection_id or new_id()
        entry = replace(
            entry_by(caller, Action.COMPLETE_AUTHORIZATION, Decision.ALLOWED),
            provider=stored.provider,
            connection_id=connection_id,
            details={"authorization_id": stored.authorization_id},
        )
        async with self._database.tenant(tenant_id) as tx:
            head = await access_log.lock_head(tx, tenant_id)
            if stored.connection_id is None:
                await connections.create(tx, tenant_id, _planned(brought, connection_id))
                await self._put_secret(tx, brought, connection_id)
                await self._put_session(tx, brought, connection_id, 1)
            else:
                await self._make_good(tx, brought, connection_id)
            await access_log.append(tx, head, entry)
            kept = await connections.get(tx, tenant_id, connection_id)
        assert kept is not None
        return kept

    async def _make_good(self, tx: AsyncConnection, brought: Brought, connection_id: str) -> None:
        tenant_id = brought.stored.tenant_id
        if await connections.get(tx, tenant_id, connection_id) is None:
            raise not_found("connection", connection_id)
        await refreshes.lock(tx, tenant_id, connection_id)
        found = await connections.get(tx, tenant_id, connection_id, lock=True)
        if found is None:
            raise not_found("connection", connection_id)
        check_not_revoked(found)
        has = await credentials.get(tx, tenant_id, connection_id)
        await self._put_session(tx, brought, connection_id, has.session_generation + 1)
        await refreshes.finish(tx, tenant_id, connection_id)
        values = {
            "scopes": list(brought.session.scopes),
            "authorization_id": brought.stored.authorization_id,
        }
        await connections.change_state(tx, tenant_id, connection_id, State.ACTIVE, values=values)

    async def _put_secret(self, tx: AsyncConnection, brought: Brought, connection_id: str) -> None:
        if brought.secret is not None:
            stored = brought.stored
            binding = Binding(stored.tenant_id, connection_id, stored.provider, SECRET, 1)
            envelope = await self._vault.seal_secret(binding, brought.secret)
            await credentials.put(tx, binding, envelope)

    async def _put_session(
        self, tx: AsyncConnection, brought: Brought, connection_id: str, generation: int
    ) -> None:
        stored, session = brought.stored, brought.session
        binding = Binding(stored.tenant_id, connection_id, stored.provider, SESSION, generation)
        await credentials.put(
            tx,
            binding,
            await self._vault.seal_session(binding, session),
            expire_time=session.expire_time,
            renew_time=renew_time(brought.provider, session, brought.now),
        )


def _planned(brought: Brought, connection_id: str) -> NewConnection:
    stored, session = brought.stored, brought.session
    plan = stored.plan
    return NewConnection(
        connection_id=connection_id,
        provider=stored.provider,
        auth_kind=AuthKind.OAUTH2,
        display_name=plan["display_name"] or session.account_name or brought.provider.display_name,
        labels=plan["labels"],
        settings=brought.settings.model_dump(mode="json"),
        owner=stored.subject,
        account_id=session.account_id,
        account_name=session.account_name,
        scopes=session.scopes,
        consent_subjects=tuple(plan["consent_subjects"]),
        authorization_id=stored.authorization_id,
    )
