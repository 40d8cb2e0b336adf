"""Leases a credential to one invocation, and ends leases; each decision is recorded with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from services.connections.access_log import Action, Decision, Entry
from services.connections.batching import Batches
from services.connections.callers import entry_by
from services.connections.connection import Connection, State, check_usable
from services.connections.lease import EVERY_EPOCH, Lease, LeaseRequest, LeaseWanted, Target
from services.connections.providers.catalogue import Catalogue
from services.connections.providers.provider import LeaseWish, Provider
from services.connections.store import access_log, lease_batches, leases
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


@dataclass(frozen=True, slots=True)
class _Gift:
    """A lease about to be given, with what the log will say of it."""

    request: LeaseRequest
    ttl: timedelta
    session_end: datetime | None
    last_lease_time: datetime | None
    entry: Entry

    def end(self, now: datetime) -> datetime:
        """When the lease ends: never after its session."""
        end = now + self.ttl
        return min(end, self.session_end) if self.session_end else end

    def touches(self, now: datetime) -> bool:
        """Whether the connection's last_lease_time is worth a write."""
        return self.last_lease_time is None or now - self.last_lease_time > _TOUCH_EVERY


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
        self._reads = Batches(self._read, key=_never_the_same)
        self._gifts = Batches(self._give, key=_key)

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
        gift = _gift(caller, wanted, ready, entry)
        lease_id, expire_time = await self._gifts.submit(caller.tenant_id, gift)
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

    async def close(self) -> None:
        """Let the batches under way end."""
        await self._reads.close()
        await self._gifts.close()

    async def _ready(self, caller: Caller, wanted: LeaseWanted) -> Ready:
        for _ in range(_TRIES_MAX):
            connection, stored = await self._reads.submit(caller.tenant_id, wanted.connection_id)
            _check_provider(connection, wanted.providers)
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

    async def _read(
        self, tenant_id: str, connection_ids: Sequence[str]
    ) -> list[tuple[Connection, StoredCredentials] | Exception]:
        async with self._database.raw_tenant(tenant_id) as tx:
            found = await lease_batches.read(tx, tenant_id, sorted(set(connection_ids)))
        return [found.get(id) or not_found("connection", id) for id in connection_ids]

    async def _give(
        self, tenant_id: str, wanted: Sequence[_Gift]
    ) -> list[tuple[str, datetime] | Exception]:
        """Decide about many leases behind the head's lock, and record every decision with them."""
        async with self._database.raw_tenant(tenant_id) as tx:
            head = await lease_batches.lock_head(tx, tenant_id)
            requests = [each.request for each in wanted]
            standings = await lease_batches.standings(tx, tenant_id, requests)
            refusals = [
                _refusal(standing, each.request.connection_id)
                for standing, each in zip(standings, wanted, strict=True)
            ]
            good = [each for each, no in zip(wanted, refusals, strict=True) if no is None]
            leased = [(new_id(), each.request, each.end(head.now)) for each in good]
            given = iter(await lease_batches.give(tx, tenant_id, leased) if leased else [])
            entries: list[Entry] = []
            results: list[tuple[str, datetime] | Exception] = []
            for each, refusal in zip(wanted, refusals, strict=True):
                if refusal is not None:
                    entries.append(
                        replace(each.entry, decision=Decision.DENIED, reason=refusal.reason)
                    )
                    results.append(refusal)
                    continue
                lease = next(given)
                entries.append(replace(each.entry, lease_id=lease.lease_id))
                results.append((lease.lease_id, lease.expire_time))
            await lease_batches.record(tx, head, entries)
            quiet = {each.request.connection_id for each in good if each.touches(head.now)}
            if quiet:
                await lease_batches.touch(tx, tenant_id, sorted(quiet))
        return results

    async def _record_refusal(self, tenant_id: str, entry: Entry, refusal: ServiceError) -> None:
        failed = refusal.kind is ErrorKind.UNAVAILABLE or refusal.reason.startswith(
            ("PROVIDER_", "CREDENTIAL_")
        )
        decision = Decision.FAILED if failed else Decision.DENIED
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


def _gift(caller: Caller, wanted: LeaseWanted, ready: Ready, entry: Entry) -> _Gift:
    assert caller.run is not None
    request = LeaseRequest(
        wanted.connection_id,
        caller.run.run_id,
        caller.run.epoch,
        caller.run.grant_id,
        wanted.invocation_id,
        wanted.tool,
    )
    details = {"generation": str(ready.generation)} | _asked(wanted.wish)
    return _Gift(
        request,
        wanted.ttl,
        ready.session_end,
        ready.connection.last_lease_time,
        replace(entry, provider=ready.connection.provider, details=details),
    )


def _key(gift: _Gift) -> tuple[str, str, str]:
    return gift.request.key


def _never_the_same(connection_id: str) -> object:
    return object()
