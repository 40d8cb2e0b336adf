"""Leases a credential to one invocation, and ends leases; each decision is recorded with it."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from services.connections.access_log import Action, Decision, Entry
from services.connections.callers import entry_by
from services.connections.connection import Connection, State, check_usable
from services.connections.lease import EVERY_EPOCH, Lease, LeaseRequest, LeaseWanted, Target
from services.connections.providers.catalogue import Catalogue
from services.connections.providers.provider import LeaseWish, Provider
from services.connections.store import access_log, connections, credentials, leases
from services.connections.store.credentials import StoredCredentials
from services.connections.use_cases.narrowing import Narrowing, Ready, check_scopes
from services.connections.use_cases.sealed import Vault
from services.connections.use_cases.sessions import Sessions
from services.runtime.caller import Caller
from services.runtime.database import Database
from services.runtime.errors import ErrorKind, ServiceError, denied, not_found
from services.runtime.ids import new_id

# A renewal may be overtaken by a change of the connection; more than a few are no coincidence.
_TRIES_MAX = 3
_TOUCH_EVERY = timedelta(minutes=1)


class Leases:
    """LeaseCredential and RevokeLeases."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        catalogue: Catalogue,
        sessions: Sessions,
        narrowing: Narrowing,
        *,
        keep_revocations: timedelta = timedelta(days=7),
    ) -> None:
        self._database = database
        self._vault = vault
        self._catalogue = catalogue
        self._sessions = sessions
        self._narrowing = narrowing
        self._keep_revocations = keep_revocations

    async def lease(self, caller: Caller, wanted: LeaseWanted) -> Lease:
        """Give a credential, or record the refusal and raise ServiceError."""
        entry = replace(
            entry_by(caller, Action.LEASE_CREDENTIAL, Decision.ALLOWED),
            connection_id=wanted.connection_id,
            invocation_id=wanted.invocation_id,
            tool=wanted.tool,
        )
        try:
            _check_named(caller, wanted.connection_id)
            ready = await self._ready(caller, wanted)
            ready = await self._narrowing.narrowed(ready, wanted.wish)
            credential = ready.provider.lend(ready.material, wanted.wish)
            scopes = wanted.wish.scopes or ready.connection.scopes
        except ServiceError as refusal:
            await self._record_refusal(caller.tenant_id, entry, refusal)
            raise
        lease_id, expire_time = await self._give(caller, wanted, ready, entry)
        if ready.renewal_due:
            self._sessions.renew_soon(caller.tenant_id, wanted.connection_id, ready.generation)
        return Lease(lease_id, credential, expire_time, scopes, ready.connection.provider)

    async def revoke(self, caller: Caller, target: Target, comment: str) -> int:
        """End leases and refuse new ones; how many were live."""
        tenant_id = caller.tenant_id
        entry = replace(
            entry_by(caller, Action.REVOKE_LEASES, Decision.ALLOWED),
            grant_id=target.grant_id,
            run_id=target.run_id,
            epoch=target.up_to_epoch,
            connection_id=target.connection_id,
        )
        async with self._database.tenant(tenant_id) as tx:
            # Behind this lock no lease is half-way: each is counted here, or refused later.
            head = await access_log.lock_head(tx, tenant_id)
            keep_until = head.now + self._keep_revocations
            if target.grant_id:
                count = await leases.revoke_grant(tx, tenant_id, target.grant_id, keep_until)
            elif target.run_id:
                epoch = target.up_to_epoch or EVERY_EPOCH
                count = await leases.revoke_run(tx, tenant_id, target.run_id, epoch, keep_until)
            else:
                count = await leases.revoke_connection(tx, tenant_id, target.connection_id)
            details = {"revoked_leases": str(count)} | ({"comment": comment} if comment else {})
            await access_log.append(tx, head, replace(entry, details=details))
        return count

    async def sweep(self) -> int:
        """Delete leases over for a day and revocations that no token can live under."""
        async with self._database.jobs() as tx:
            return await leases.sweep(tx, keep_leases_seconds=86_400)

    async def _ready(self, caller: Caller, wanted: LeaseWanted) -> Ready:
        for _ in range(_TRIES_MAX):
            async with self._database.tenant(caller.tenant_id) as tx:
                connection = await connections.get(tx, caller.tenant_id, wanted.connection_id)
                if connection is None:
                    raise not_found("connection", wanted.connection_id)
                stored = await credentials.get(tx, caller.tenant_id, wanted.connection_id)
            check_usable(connection)
            _check_consent(caller, connection)
            provider = self._catalogue.get(connection.provider)
            check_scopes(provider, connection, wanted.wish)
            if _has_life(provider, stored):
                settings = provider.settings.model_validate(connection.settings)
                return Ready(
                    connection,
                    provider,
                    await self._vault.material(settings, stored),
                    stored.session.expire_time if stored.session else None,
                    _renewal_due(stored),
                    stored.session_generation,
                    stored.now,
                )
            await self._sessions.renew(
                caller.tenant_id, wanted.connection_id, stored.session_generation
            )
        raise ServiceError(
            ErrorKind.UNAVAILABLE,
            "REFRESH_IN_PROGRESS",
            "The credential keeps changing; try again.",
            retry_after=timedelta(seconds=1),
        )

    async def _give(
        self, caller: Caller, wanted: LeaseWanted, ready: Ready, entry: Entry
    ) -> tuple[str, datetime]:
        assert caller.run is not None
        tenant_id = caller.tenant_id
        request = LeaseRequest(
            wanted.connection_id,
            caller.run.run_id,
            caller.run.epoch,
            caller.run.grant_id,
            wanted.invocation_id,
            wanted.tool,
        )
        entry = replace(entry, provider=ready.connection.provider)
        async with self._database.tenant(tenant_id) as tx:
            head = await access_log.lock_head(tx, tenant_id)
            refusal = _refusal(await leases.standing(tx, tenant_id, request), wanted.connection_id)
            if refusal is None:
                ends = head.now + wanted.ttl
                ends = min(ends, ready.session_end) if ready.session_end else ends
                lease_id, expire_time = await leases.give(tx, tenant_id, new_id(), request, ends)
                given = {"generation": str(ready.generation)} | _asked(wanted.wish)
                await access_log.append(tx, head, replace(entry, lease_id=lease_id, details=given))
                if _long_ago(ready.connection.last_lease_time, head.now):
                    await connections.touch_lease_time(
                        tx, tenant_id, wanted.connection_id, head.now
                    )
                return lease_id, expire_time
            await access_log.append(
                tx, head, replace(entry, decision=Decision.DENIED, reason=refusal.reason)
            )
        raise refusal

    async def _record_refusal(self, tenant_id: str, entry: Entry, refusal: ServiceError) -> None:
        provider_failed = refusal.reason.startswith(("PROVIDER_", "CREDENTIAL_", "REFRESH_"))
        decision = Decision.FAILED if provider_failed else Decision.DENIED
        async with self._database.tenant(tenant_id) as tx:
            await access_log.record(
                tx, tenant_id, replace(entry, decision=decision, reason=refusal.reason)
            )


def _check_named(caller: Caller, connection_id: str) -> None:
    if caller.run is None or connection_id not in caller.run.connection_ids:
        raise denied(
            "CONNECTION_NOT_GRANTED",
            "The run's grant does not name this connection.",
            metadata={"id": connection_id},
        )


def _check_consent(caller: Caller, connection: Connection) -> None:
    # A run token names its grant's creator when the Executor knows them.
    creator = caller.on_behalf_of
    if creator is not None and not connection.may_be_granted_by(creator):
        raise denied(
            "CONSENT_WITHDRAWN",
            "The grant's creator neither owns this connection nor has its owner's consent.",
            metadata={"id": connection.connection_id},
        )


def _has_life(provider: Provider, stored: StoredCredentials) -> bool:
    if provider.sessions is None:
        return True
    session = stored.session
    if session is None:
        return False
    return session.expire_time is None or session.expire_time > stored.now + provider.lease_before


def _renewal_due(stored: StoredCredentials) -> bool:
    session = stored.session
    return (
        session is not None
        and session.renew_time is not None
        and (session.renew_time <= stored.now)
    )


def _refusal(standing: leases.Standing, connection_id: str) -> ServiceError | None:
    if standing.grant_revoked:
        return denied("GRANT_REVOKED", "The run's grant was revoked.")
    if standing.attempt_over:
        return denied("RUN_LEASES_REVOKED", "This attempt of the run is over.")
    match standing.connection_state:
        case "":
            return not_found("connection", connection_id)
        case State.NEEDS_REAUTH | State.REVOKED:
            return ServiceError(
                ErrorKind.FAILED_PRECONDITION,
                f"CONNECTION_{standing.connection_state}",
                "The connection cannot be used any more.",
                metadata={"id": connection_id},
            )
        case _:
            return None


def _asked(wish: LeaseWish) -> dict[str, str]:
    named = {"scopes": " ".join(wish.scopes), "resources": " ".join(wish.resources)}
    return {name: value for name, value in named.items() if value}


def _long_ago(moment: datetime | None, now: datetime) -> bool:
    return moment is None or now - moment > _TOUCH_EVERY
