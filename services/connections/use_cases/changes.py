"""Changes connections: their names, labels, settings, consents and secrets."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from cogni.egress_rules import EgressRules
from services.connections.access_log import Action, Decision
from services.connections.callers import entry_by
from services.connections.connection import (
    Connection,
    State,
    check_etag,
    check_may_change,
    check_may_share,
    check_not_revoked,
)
from services.connections.connection_requests import UpdateWanted
from services.connections.providers.catalogue import Catalogue
from services.connections.providers.failures import ProviderError
from services.connections.providers.http import Http
from services.connections.providers.provider import Material, Provider, ProviderSettings
from services.connections.renewal import renew_time
from services.connections.secret import SECRET, SESSION, AuthKind, Secret, Session
from services.connections.store import access_log, connections, credentials, refreshes
from services.connections.use_cases.sealed import Vault
from services.connections.vault import Binding
from services.runtime.caller import Caller
from services.runtime.database import Database
from services.runtime.errors import ErrorKind, ServiceError, Violation, invalid, not_found


class Changes:
    """UpdateConnection."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        catalogue: Catalogue,
        http: Http,
        egress_rules: EgressRules,
    ) -> None:
        self._database = database
        self._vault = vault
        self._catalogue = catalogue
        self._http = http
        self._egress_rules = egress_rules

    async def update(self, caller: Caller, wanted: UpdateWanted) -> Connection:
        """Check, try a new secret at the provider, then change everything at once.

        A secret that the provider refuses is put on record.
        """
        tenant_id = caller.tenant_id
        async with self._database.tenant(tenant_id) as tx:
            before = await _found(tx, tenant_id, wanted.connection_id)
            now = (await credentials.get(tx, tenant_id, wanted.connection_id)).now
        _check_allowed(caller, before, wanted)
        provider = self._catalogue.get(before.provider)
        settings = self._checked(provider, before, wanted)
        try:
            session = await self._tried(provider, settings, wanted, now)
        except ProviderError as failure:
            error = failure.to_service_error()
            await self._record_failure(caller, before, error.reason)
            raise error from failure
        async with self._database.tenant(tenant_id) as tx:
            head = await access_log.lock_head(tx, tenant_id)
            if wanted.secret is not None:
                await refreshes.lock(tx, tenant_id, wanted.connection_id)
            present = await _found(tx, tenant_id, wanted.connection_id, lock=True)
            _check_allowed(caller, present, wanted)
            # Decided again: another update may have moved the connection since it was read.
            checked = self._checked(provider, present, wanted)
            if wanted.secret is not None and checked != settings:
                raise _moved_meanwhile(present)
            await self._change(tx, present, wanted, checked)
            if wanted.secret is not None:
                await self._replace_secret(tx, present, wanted.secret, provider, session, now)
            entry = entry_by(caller, Action.UPDATE_CONNECTION, Decision.ALLOWED)
            names = sorted(wanted.fields | ({"secret"} if wanted.secret else set()))
            await access_log.append(
                tx,
                head,
                replace(
                    entry,
                    connection_id=present.connection_id,
                    provider=present.provider,
                    details={"changed": " ".join(names)},
                ),
            )
            return await _found(tx, tenant_id, wanted.connection_id)

    def _checked(
        self, provider: Provider, before: Connection, wanted: UpdateWanted
    ) -> ProviderSettings:
        violations = provider.secret_violations(wanted.secret) if wanted.secret else []
        values = wanted.settings if "settings" in wanted.fields else before.settings
        settings = provider.parse_settings(values)
        if not isinstance(settings, ProviderSettings):
            violations += [replace(each, field=f"connection.{each.field}") for each in settings]
            raise invalid(*violations)
        new, old = settings.model_dump(mode="json"), before.settings
        if wanted.secret is None:
            remedy = (
                "connect it anew"
                if AuthKind.GITHUB_APP in provider.auth_kinds
                else "give the secret again to change it"
            )
            violations += [
                Violation(f"connection.settings.{name}", f"decides where the secret goes: {remedy}")
                for name in sorted(settings.secret_bound)
                if new.get(name) != old.get(name)
            ]
        violations += provider.url_violations(settings, self._egress_rules)
        if violations:
            raise invalid(*violations)
        provider.check_tenant(before.tenant_id, settings)
        return settings

    async def _tried(
        self, provider: Provider, settings: ProviderSettings, wanted: UpdateWanted, now: datetime
    ) -> Session | None:
        if wanted.secret is None or provider.sessions is None:
            return None
        if wanted.skip_check and wanted.secret.kind is not AuthKind.OAUTH2:
            return None
        return await provider.sessions.begin(Material(settings, wanted.secret), self._http, now)

    async def _record_failure(self, caller: Caller, connection: Connection, reason: str) -> None:
        entry = replace(
            entry_by(caller, Action.UPDATE_CONNECTION, Decision.FAILED),
            connection_id=connection.connection_id,
            provider=connection.provider,
            reason=reason,
        )
        async with self._database.tenant(caller.tenant_id) as tx:
            await access_log.record(tx, caller.tenant_id, entry)

    async def _change(
        self,
        tx: AsyncConnection,
        present: Connection,
        wanted: UpdateWanted,
        settings: ProviderSettings,
    ) -> None:
        values: dict[str, Any] = {}
        if "display_name" in wanted.fields:
            values["display_name"] = wanted.display_name
        if "labels" in wanted.fields:
            values["labels"] = dict(wanted.labels)
        if "settings" in wanted.fields:
            values["settings"] = settings.model_dump(mode="json")
        if "consents" in wanted.fields:
            had = {each.subject for each in present.consents}
            tenant_id, connection_id = present.tenant_id, present.connection_id
            await connections.remove_consents(
                tx, tenant_id, connection_id, had - wanted.consent_subjects
            )
            await connections.add_consents(
                tx, tenant_id, connection_id, wanted.consent_subjects - had
            )
        await connections.change(tx, present.tenant_id, present.connection_id, values)

    async def _replace_secret(
        self,
        tx: AsyncConnection,
        present: Connection,
        secret: Secret,
        provider: Provider,
        session: Session | None,
        now: datetime,
    ) -> None:
        tenant_id, connection_id = present.tenant_id, present.connection_id
        stored = await credentials.get(tx, tenant_id, connection_id)
        secret_generation, session_generation = stored.generations
        binding = Binding(tenant_id, connection_id, present.provider, SECRET, secret_generation + 1)
        kept = provider.kept_secret(secret)
        if kept is not None:
            await credentials.put(tx, binding, await self._vault.seal_secret(binding, kept))
        if session is None:
            await credentials.remove_session(tx, tenant_id, connection_id)
        else:
            binding = replace(binding, kind=SESSION, generation=session_generation + 1)
            await credentials.put(
                tx,
                binding,
                await self._vault.seal_session(binding, session),
                expire_time=session.expire_time,
                renew_time=renew_time(provider, session, now),
            )
        await refreshes.finish(tx, tenant_id, connection_id)
        account = (
            {"account_id": session.account_id, "account_name": session.account_name}
            if session
            else {}
        )
        await connections.change_state(
            tx,
            tenant_id,
            connection_id,
            State.ACTIVE,
            values=account,
        )


async def _found(
    tx: AsyncConnection, tenant_id: str, connection_id: str, *, lock: bool = False
) -> Connection:
    found = await connections.get(tx, tenant_id, connection_id, lock=lock)
    if found is None:
        raise not_found("connection", connection_id)
    return found


def _moved_meanwhile(connection: Connection) -> ServiceError:
    """Stored now, the secret would go where nobody who gave it sent it."""
    return ServiceError(
        ErrorKind.ABORTED,
        "ETAG_MISMATCH",
        f"The settings of connection {connection.connection_id!r} changed while the secret was "
        "tried; nothing was changed. Read it again, then give secret and settings together.",
        metadata={"resource": "connection", "id": connection.connection_id},
    )


def _check_allowed(caller: Caller, connection: Connection, wanted: UpdateWanted) -> None:
    check_may_change(connection, caller.owner, caller.scopes)
    if "consents" in wanted.fields:
        check_may_share(connection, caller.owner)
    check_etag(connection, wanted.etag)
    check_not_revoked(connection)
