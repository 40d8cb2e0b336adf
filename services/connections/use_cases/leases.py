"""Leases a credential to one invocation, and ends leases; each decision is recorded with it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta

from services.connections.access_log import Action, Decision
from services.connections.batching import Batches
from services.connections.callers import actor_of, entry_by
from services.connections.connection import Connection, check_usable
from services.connections.lease import EVERY_EPOCH, Lease, LeaseWanted, Target
from services.connections.providers.catalogue import Catalogue
from services.connections.store import access_log, lease_batches, leases
from services.connections.store.lease_batches import STALE, Asked, Decided
from services.connections.use_cases.known import Known, KnownConnections, version_of
from services.connections.use_cases.narrowing import Narrowing, Ready, check_scopes
from services.connections.use_cases.sealed import Vault
from services.connections.use_cases.sessions import Sessions
from services.runtime.caller import Caller
from services.runtime.database import Database
from services.runtime.errors import ErrorKind, ServiceError, denied, not_found
from services.runtime.lane import Lane

# A renewal may be overtaken by a change of the connection; more than a few are no coincidence.
_TRIES_MAX = 4
#: Connections for decisions, taken as they are needed and kept; reads need others of the pool.
LANES = 3


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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._vault = vault
        self._catalogue = catalogue
        self._sessions = sessions
        self._narrowing = narrowing
        self._keep_revocations = keep_revocations
        self._known = KnownConnections(clock)
        self._clock = clock
        self._reads = Batches(self._read)
        self._gifts = Batches(self._give)
        self._lanes: asyncio.LifoQueue[Lane] = asyncio.LifoQueue()
        for _ in range(LANES):
            self._lanes.put_nowait(database.lane())

    async def lease(self, caller: Caller, wanted: LeaseWanted) -> Lease:
        """Give a credential, or record the refusal and raise ServiceError."""
        tenant_id, connection_id = caller.tenant_id, wanted.connection_id
        for _ in range(_TRIES_MAX):
            try:
                _check_named(caller, connection_id)
                ready = await self._ready(caller, wanted)
                ready = await self._narrowing.narrowed(ready, wanted.wish)
                known = ready.known
                credential = known.provider.lend(ready.material, wanted.wish)
            except ServiceError as refusal:
                await self._record_refusal(caller, wanted, refusal)
                raise
            asked = _asked(caller, wanted, ready)
            try:
                # Recorded whatever comes of it, unless it is stale.
                decided = await self._gifts.submit(tenant_id, asked)
            except ServiceError as refusal:
                if refusal.reason == "LIMIT_EXCEEDED":
                    await self._record_refusal(caller, wanted, refusal)
                raise
            if decided.outcome == "":
                assert decided.expire_time is not None
                session = known.stored.session
                if session and session.renew_time and session.renew_time <= decided.now:
                    self._sessions.renew_soon(tenant_id, connection_id, session.generation)
                scopes = wanted.wish.scopes or known.connection.scopes
                provider = known.connection.provider
                return Lease(decided.lease_id, credential, decided.expire_time, scopes, provider)
            self._known.forget(tenant_id, connection_id)
            if decided.outcome != STALE:
                raise _refusal(decided.outcome, connection_id)
        overtaken = _keeps_changing()
        await self._record_refusal(caller, wanted, overtaken)
        raise overtaken

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

    async def close(self) -> None:
        """Let the batches under way end."""
        await self._reads.close()
        await self._gifts.close()

    async def _ready(self, caller: Caller, wanted: LeaseWanted) -> Ready:
        tenant_id, connection_id = caller.tenant_id, wanted.connection_id
        known = self._known.find(tenant_id, connection_id)
        if known is not None and self._suffices(caller, wanted, known):
            return await self._open(known)
        for _ in range(_TRIES_MAX):
            known = await self._reads.submit(tenant_id, connection_id)
            _check_provider(known.connection, wanted.providers)
            check_usable(known.connection)
            _check_consent(caller, known.connection)
            check_scopes(known.provider, known.connection, wanted.wish)
            if self._has_life(known):
                ready = await self._open(known)
                # Kept once it has been opened: what cannot be read may be mended by the next time.
                self._known.keep(known)
                return ready
            await self._sessions.renew(tenant_id, connection_id, known.stored.session_generation)
        raise _keeps_changing()

    def _suffices(self, caller: Caller, wanted: LeaseWanted, known: Known) -> bool:
        """Whether what is remembered speaks for the lease. What speaks against it is read anew:
        the caller may have been given consent, or the connection scopes, since. So is what a
        provider shall cut down: it mints nothing for a connection that was withdrawn since."""
        try:
            _check_provider(known.connection, wanted.providers)
            _check_consent(caller, known.connection)
            check_scopes(known.provider, known.connection, wanted.wish)
        except ServiceError:
            return False
        generation = known.stored.session_generation
        return self._has_life(known) and self._narrowing.asks_nobody(
            known.provider, known.connection, generation, wanted.wish
        )

    def _has_life(self, known: Known) -> bool:
        if known.provider.sessions is None:
            return True
        session = known.stored.session
        if session is None:
            return False
        needed = known.now(self._clock()) + known.provider.lease_before
        return session.expire_time is None or session.expire_time > needed

    async def _open(self, known: Known) -> Ready:
        session = known.stored.session
        material = await self._vault.material(known.settings, known.stored)
        return Ready(known, material, session.expire_time if session else None, self._clock())

    async def _read(self, tenant_id: str, connection_ids: Sequence[str]) -> list[Known | Exception]:
        async with self._database.raw_tenant(tenant_id) as tx:
            found = await lease_batches.read(tx, tenant_id, sorted(set(connection_ids)))
        read_at = self._clock()
        known: dict[str, Known] = {}
        for connection_id, (connection, stored) in found.items():
            provider = self._catalogue.get(connection.provider)
            settings = provider.settings.model_validate(connection.settings)
            version = version_of(connection, stored)
            known[connection_id] = Known(connection, stored, provider, settings, version, read_at)
        return [known.get(id) or not_found("connection", id) for id in connection_ids]

    async def _give(self, tenant_id: str, wanted: Sequence[Asked]) -> list[Decided | Exception]:
        lane = await self._lanes.get()
        try:
            return [*await lease_batches.give(lane, tenant_id, wanted)]
        finally:
            self._lanes.put_nowait(lane)

    async def _record_refusal(
        self, caller: Caller, wanted: LeaseWanted, refusal: ServiceError
    ) -> None:
        failed = refusal.kind is ErrorKind.UNAVAILABLE or refusal.reason.startswith(
            ("PROVIDER_", "CREDENTIAL_")
        )
        entry = replace(
            entry_by(
                caller, Action.LEASE_CREDENTIAL, Decision.FAILED if failed else Decision.DENIED
            ),
            connection_id=wanted.connection_id,
            invocation_id=wanted.invocation_id,
            tool=wanted.tool,
            reason=refusal.reason,
        )
        async with self._database.tenant(caller.tenant_id) as tx:
            await access_log.record(tx, caller.tenant_id, entry)


def _check_named(caller: Caller, connection_id: str) -> None:
    if caller.run is None or connection_id not in caller.run.connection_ids:
        raise denied(
            "CONNECTION_NOT_GRANTED",
            "The run's grant does not name this connection.",
            metadata={"id": connection_id},
        )


def _check_provider(connection: Connection, providers: tuple[str, ...]) -> None:
    if providers and connection.provider not in providers:
        raise ServiceError(
            ErrorKind.FAILED_PRECONDITION,
            "PROVIDER_MISMATCH",
            f"The tool can use a connection of {' or '.join(providers)}; this is another.",
            metadata={"id": connection.connection_id, "provider": connection.provider},
        )


def _check_consent(caller: Caller, connection: Connection) -> None:
    # A run token names its grant's creator when the Executor knows them.
    creator = caller.on_behalf_of
    if creator is not None and not connection.may_be_granted_by(creator):
        raise _no_consent(connection.connection_id)


def _refusal(outcome: str, connection_id: str) -> ServiceError:
    match outcome:
        case "GRANT_REVOKED":
            return denied(outcome, "The run's grant was revoked.")
        case "RUN_LEASES_REVOKED":
            return denied(outcome, "This attempt of the run is over.")
        case "CONSENT_WITHDRAWN":
            return _no_consent(connection_id)
        case "NOT_FOUND":
            return not_found("connection", connection_id)
        case _:
            return ServiceError(
                ErrorKind.FAILED_PRECONDITION,
                outcome,
                "The connection cannot be used any more.",
                metadata={"id": connection_id},
            )


def _no_consent(connection_id: str) -> ServiceError:
    return denied(
        "CONSENT_WITHDRAWN",
        "The grant's creator neither owns this connection nor has its owner's consent.",
        metadata={"id": connection_id},
    )


def _keeps_changing() -> ServiceError:
    return ServiceError(
        ErrorKind.UNAVAILABLE,
        "REFRESH_IN_PROGRESS",
        "The credential keeps changing; try again.",
        retry_after=timedelta(seconds=1),
    )


def _asked(caller: Caller, wanted: LeaseWanted, ready: Ready) -> Asked:
    assert caller.run is not None
    known = ready.known
    details = {"generation": str(known.stored.session_generation)}
    if wanted.wish.scopes:
        details["scopes"] = " ".join(wanted.wish.scopes)
    if wanted.wish.resources:
        details["resources"] = " ".join(wanted.wish.resources)
    return Asked(
        caller.run,
        wanted,
        end_by=ready.session_end,
        life=known.provider.lease_before if known.provider.sessions else None,
        version=known.version,
        actor=actor_of(caller),
        on_behalf_of=caller.on_behalf_of or "",
        details=details,
    )
