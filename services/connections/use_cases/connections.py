"""Creates, reads, lists and deletes connections."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from cogni.egress_rules import EgressRules
from services.connections.access_log import Action, Decision
from services.connections.callers import entry_by
from services.connections.connection import Connection, check_etag, check_may_change
from services.connections.connection_requests import ConnectionFilter, CreateWanted
from services.connections.providers.catalogue import Catalogue
from services.connections.providers.failures import ProviderError
from services.connections.providers.http import Http
from services.connections.providers.provider import (
    Material,
    Provider,
    ProviderSettings,
)
from services.connections.renewal import renew_time
from services.connections.secret import SECRET, SESSION, AuthKind, Session
from services.connections.store import access_log, connections, credentials, leases
from services.connections.store.connections import NewConnection
from services.connections.use_cases.sealed import Vault
from services.connections.vault import Binding
from services.runtime.caller import Caller
from services.runtime.database import Database
from services.runtime.errors import (
    ServiceError,
    Violation,
    invalid,
    limit,
    not_found,
    reused_request_id,
)
from services.runtime.ids import new_id
from services.runtime.paging import decode_page_token, encode_page_token, page_limit

CONNECTIONS_PER_TENANT_MAX = 10_000
DISPLAY_NAME_LENGTH_MAX = 200


class Connections:
    """The plain life of connections."""

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

    async def create(self, caller: Caller, wanted: CreateWanted) -> Connection:
        """Check, seal and store; the same connection for a repeated request."""
        provider = self._catalogue.get(wanted.provider)
        provider.check_configured()
        settings = self._checked(provider, wanted)
        try:
            provider.check_tenant(caller.tenant_id, settings)
        except ServiceError as refusal:
            await self._record(caller, wanted, Decision.DENIED, refusal.reason)
            raise
        repeated = await self._repeated(caller, wanted)
        if repeated is not None:
            return repeated
        async with self._database.tenant(caller.tenant_id) as tx:
            now = (await credentials.get(tx, caller.tenant_id, new_id())).now
        try:
            session = await self._first_session(provider, settings, wanted, now)
        except ProviderError as failure:
            error = failure.to_service_error()
            await self._record(caller, wanted, Decision.FAILED, error.reason)
            raise error from failure
        try:
            return await self._store(caller, wanted, provider, settings, session, now)
        except _RaceLostError:
            found = await self._repeated(caller, wanted)
            if found is None:
                raise not_found("connection", wanted.request_id) from None
            return found

    async def get(self, caller: Caller, connection_id: str) -> Connection:
        """One connection of the caller's tenant."""
        async with self._database.tenant(caller.tenant_id) as tx:
            found = await connections.get(tx, caller.tenant_id, connection_id)
        if found is None:
            raise not_found("connection", connection_id)
        return found

    async def list(
        self, caller: Caller, wanted: ConnectionFilter, *, page_size: int, page_token: str
    ) -> tuple[list[Connection], str]:
        """A page, newest first, and the token of the next."""
        bound_to = ["ListConnections", caller.tenant_id, repr(wanted)]
        key = decode_page_token(page_token, bound_to=bound_to)
        size = page_limit(page_size)
        async with self._database.tenant(caller.tenant_id) as tx:
            found = await connections.list_newest_first(
                tx, caller.tenant_id, wanted, before_id=key[0] if key else None, limit=size + 1
            )
        if len(found) <= size:
            return found, ""
        page = found[:size]
        return page, encode_page_token([page[-1].connection_id], bound_to=bound_to)

    async def delete(
        self, caller: Caller, connection_id: str, *, etag: str, allow_missing: bool
    ) -> int:
        """Delete for good, ending its leases; how many were live."""
        tenant_id = caller.tenant_id
        async with self._database.tenant(tenant_id) as tx:
            head = await access_log.lock_head(tx, tenant_id)
            found = await connections.get(tx, tenant_id, connection_id, lock=True)
            if found is None:
                if allow_missing:
                    return 0
                raise not_found("connection", connection_id)
            check_may_change(found, caller.owner, caller.scopes)
            check_etag(found, etag)
            ended = await leases.revoke_connection(tx, tenant_id, connection_id)
            await connections.remove(tx, found)
            entry = entry_by(caller, Action.DELETE_CONNECTION, Decision.ALLOWED)
            await access_log.append(
                tx,
                head,
                replace(
                    entry,
                    connection_id=connection_id,
                    provider=found.provider,
                    details={"revoked_leases": str(ended)},
                ),
            )
        return ended

    def _checked(self, provider: Provider, wanted: CreateWanted) -> ProviderSettings:
        violations = provider.secret_violations(wanted.secret)
        kind = wanted.secret.kind if wanted.secret else provider.auth_kinds[0]
        if wanted.auth_kind not in (None, kind):
            violations.append(Violation("auth_kind", "does not go with the secret that was given"))
        settings = provider.parse_settings(wanted.settings)
        if not isinstance(settings, ProviderSettings):
            raise invalid(*violations, *settings)
        violations += provider.url_violations(settings, self._egress_rules)
        if violations:
            raise invalid(*violations)
        return settings

    async def _record(
        self, caller: Caller, wanted: CreateWanted, decision: Decision, reason: str
    ) -> None:
        entry = entry_by(caller, Action.CREATE_CONNECTION, decision)
        async with self._database.tenant(caller.tenant_id) as tx:
            await access_log.record(
                tx, caller.tenant_id, replace(entry, provider=wanted.provider, reason=reason)
            )

    async def _repeated(self, caller: Caller, wanted: CreateWanted) -> Connection | None:
        """What this request made before; raises REQUEST_ID_REUSED when it asked otherwise."""
        tenant_id = caller.tenant_id
        async with self._database.tenant(tenant_id) as tx:
            made = await connections.find_request(tx, tenant_id, wanted.request_id)
            if made is None:
                return None
            connection_id, request_hash = made
            found = await connections.get(tx, tenant_id, connection_id)
            stored = await credentials.get(tx, tenant_id, connection_id)
        if request_hash != wanted.hash():
            raise reused_request_id(wanted.request_id)
        if found is None:
            raise not_found("connection", connection_id)
        if stored.secret is not None and stored.secret.generation == 1:
            material = await self._vault.material(ProviderSettings(), stored)
            given = self._catalogue.get(wanted.provider).kept_secret(wanted.secret)
            if (
                material.secret is None
                or given is None
                or material.secret.to_bytes() != given.to_bytes()
            ):
                raise reused_request_id(wanted.request_id)
        return found

    async def _first_session(
        self, provider: Provider, settings: ProviderSettings, wanted: CreateWanted, now: datetime
    ) -> Session | None:
        imported = wanted.secret is not None and wanted.secret.kind is AuthKind.OAUTH2
        skip = wanted.skip_check and not imported
        needless = wanted.secret is None and AuthKind.GITHUB_APP not in provider.auth_kinds
        if provider.sessions is None or skip or needless:
            return None
        return await provider.sessions.begin(Material(settings, wanted.secret), self._http, now)

    async def _store(
        self,
        caller: Caller,
        wanted: CreateWanted,
        provider: Provider,
        settings: ProviderSettings,
        session: Session | None,
        now: datetime,
    ) -> Connection:
        tenant_id, connection_id = caller.tenant_id, new_id()
        kind = wanted.secret.kind if wanted.secret else provider.auth_kinds[0]
        account_name = session.account_name if session else ""
        new = NewConnection(
            connection_id=connection_id,
            provider=wanted.provider,
            auth_kind=kind,
            display_name=wanted.display_name
            or account_name[:DISPLAY_NAME_LENGTH_MAX]
            or provider.display_name,
            labels=wanted.labels,
            settings=settings.model_dump(mode="json"),
            owner=caller.owner,
            account_id=session.account_id if session else "",
            account_name=account_name,
            scopes=session.scopes if session else (),
            consent_subjects=wanted.consent_subjects,
        )
        secret_binding = Binding(tenant_id, connection_id, wanted.provider, SECRET, 1)
        session_binding = replace(secret_binding, kind=SESSION)
        entry = entry_by(caller, Action.CREATE_CONNECTION, Decision.ALLOWED)
        async with self._database.tenant(tenant_id) as tx:
            head = await access_log.lock_head(tx, tenant_id)
            made = await connections.claim_request(
                tx, tenant_id, wanted.request_id, wanted.hash(), connection_id
            )
            if made is not None:
                raise _RaceLostError
            if await connections.count(tx, tenant_id) >= CONNECTIONS_PER_TENANT_MAX:
                raise limit(
                    f"tenant:{tenant_id}",
                    f"a tenant has at most {CONNECTIONS_PER_TENANT_MAX} connections",
                )
            created = await connections.create(tx, tenant_id, new)
            kept = provider.kept_secret(wanted.secret)
            if kept is not None:
                envelope = await self._vault.seal_secret(secret_binding, kept)
                await credentials.put(tx, secret_binding, envelope)
            if session is not None:
                await credentials.put(
                    tx,
                    session_binding,
                    await self._vault.seal_session(session_binding, session),
                    expire_time=session.expire_time,
                    renew_time=renew_time(provider, session, now),
                )
            await access_log.append(
                tx, head, replace(entry, connection_id=connection_id, provider=wanted.provider)
            )
        return created


class _RaceLostError(Exception):
    """Another call with the same request_id was faster."""
