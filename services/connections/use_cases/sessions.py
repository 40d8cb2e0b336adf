"""Keeps sessions alive: each generation is renewed once, whoever asks, whatever dies.

Nobody holds a database connection while a provider is asked: a claim is committed first, which is
lock and journal in one (the anchor page's row lock over the call would keep a connection for each
waiter, and would end with the idle timeout anyway). The answer is stored by compare-and-set on the
generation, so that a late answer is kept when nobody was faster, and dropped when somebody was.
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import timedelta

from services.connections.connection import Connection, State, check_renewable
from services.connections.providers.catalogue import Catalogue
from services.connections.providers.failures import FailureKind, ProviderError
from services.connections.providers.http import Http
from services.connections.providers.provider import Material, Provider
from services.connections.renewal import RenewalLimits, is_verdict
from services.connections.secret import Session
from services.connections.store import connections, credentials, refreshes
from services.connections.store.credentials import StoredCredentials
from services.connections.use_cases.renewal_claims import Claimed, Turn, in_progress, put_off
from services.connections.use_cases.renewal_outcomes import Outcomes
from services.connections.use_cases.sealed import UNREADABLE, Vault
from services.runtime.database import Database
from services.runtime.errors import ErrorKind, ServiceError, not_found
from services.runtime.ids import new_id

_log = logging.getLogger(__name__)

#: Renewals that nobody waits for run side by side, so that a slow provider keeps few others back.
DUE_AT_ONCE = 16


class Sessions:
    """Renews sessions, at most one at a time for a connection in this process and elsewhere."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        catalogue: Catalogue,
        http: Http,
        *,
        limits: RenewalLimits | None = None,
        actor: str = "service:connections",
    ) -> None:
        self._database = database
        self._vault = vault
        self._catalogue = catalogue
        self._http = http
        self._limits = limits or RenewalLimits()
        self._outcomes = Outcomes(database, vault, actor)
        self._running: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def renew(self, tenant_id: str, connection_id: str, generation: int) -> None:
        """Return when the session is of a later generation than `generation`.

        Callers share one renewal; one that gives up (deadline, disconnect) does not end it, since
        half a renewal of a rotating token is a lost one. Raises ServiceError.
        """
        await asyncio.shield(self._start(tenant_id, connection_id, generation))

    def renew_soon(self, tenant_id: str, connection_id: str, generation: int) -> None:
        """Begin a renewal that nobody waits for, unless one is running."""
        self._start(tenant_id, connection_id, generation)

    async def renew_due(self) -> int:
        """Renew every session whose time has come, a bounded batch; how many were tried."""
        async with self._database.jobs() as tx:
            due = await refreshes.due(tx)
        gate = asyncio.Semaphore(DUE_AT_ONCE)
        await asyncio.gather(*(self._renew_due(gate, *each) for each in due))
        return len(due)

    async def _renew_due(self, gate: asyncio.Semaphore, tenant_id: str, connection_id: str) -> None:
        try:
            async with gate:
                async with self._database.tenant(tenant_id) as tx:
                    stored = await credentials.get(tx, tenant_id, connection_id)
                await self.renew(tenant_id, connection_id, stored.session_generation)
        except ServiceError as error:
            _log.info("renewal of connection %s put off: %s", connection_id, error.reason)
        except Exception:
            # One connection that meets a defect of ours must not hold up everybody else's.
            _log.exception("renewal of connection %s failed", connection_id)

    async def close(self) -> None:
        """Wait for the renewals under way: each is bounded by its limits."""
        if self._running:
            await asyncio.wait(list(self._running.values()))

    def _start(self, tenant_id: str, connection_id: str, generation: int) -> asyncio.Task[None]:
        key = (tenant_id, connection_id)
        task = self._running.get(key)
        if task is None:
            task = asyncio.create_task(self._renew(tenant_id, connection_id, generation))
            self._running[key] = task
            task.add_done_callback(lambda done: self._finished(key, done))
        return task

    def _finished(self, key: tuple[str, str], task: asyncio.Task[None]) -> None:
        del self._running[key]
        _forget(task)

    async def _renew(self, tenant_id: str, connection_id: str, generation: int) -> None:
        deadline = time.monotonic() + self._limits.claim.total_seconds() * 2
        pause = self._limits.poll
        while True:
            try:
                claimed = await self._claim(tenant_id, connection_id, generation)
            except ServiceError as error:
                if error.reason == UNREADABLE:
                    await self._outcomes.set_aside(tenant_id, connection_id)
                raise
            if claimed.turn is Turn.DONE:
                return None
            if claimed.turn is Turn.MINE:
                return await self._ask(claimed)
            if time.monotonic() > deadline:
                raise in_progress()
            await asyncio.sleep(pause.total_seconds())
            # Most calls are over at once; the claim of a process that died is waited for longer.
            pause = min(pause * 2, self._limits.poll_max)

    async def _claim(self, tenant_id: str, connection_id: str, generation: int) -> Claimed:
        async with self._database.tenant(tenant_id) as tx:
            connection = await connections.get(tx, tenant_id, connection_id)
            if connection is None:
                raise not_found("connection", connection_id)
            journal = await refreshes.lock(tx, tenant_id, connection_id)
            stored = await credentials.get(tx, tenant_id, connection_id)
            # Read again behind the lock: what was seen before waiting for it may be over.
            connection = await connections.get(tx, tenant_id, connection_id)
            if connection is None:
                raise not_found("connection", connection_id)
            provider = self._catalogue.get(connection.provider)

            def claimed(turn: Turn, material: Material, attempts: int, maybe: bool) -> Claimed:
                return Claimed(
                    turn,
                    connection,
                    provider,
                    material,
                    stored.generations,
                    claim_id,
                    attempts,
                    maybe,
                    journal.now,
                    time.monotonic(),
                )

            claim_id = new_id()
            nothing = Material(None, None)
            if stored.session_generation != generation:
                return claimed(Turn.DONE, nothing, 0, False)
            check_renewable(connection, by_itself=provider.renews_by_itself)
            if journal.claimed:
                return claimed(Turn.BUSY, nothing, 0, False)
            # Opened first: that it cannot be read is a better answer than to wait.
            material = await self._material(connection, provider, stored)
            if journal.not_before is not None and journal.not_before > journal.now:
                raise put_off(journal.reason, journal.not_before - journal.now)
            maybe_done = journal.maybe_done or journal.abandoned
            attempts = journal.attempts + 1
            await refreshes.claim(
                tx,
                tenant_id,
                connection_id,
                claim_id=claim_id,
                generation=generation,
                lasts=self._limits.claim,
                attempts=attempts,
                maybe_done=maybe_done,
            )
            if connection.state is State.ACTIVE and generation > 0:
                await connections.change_state(tx, tenant_id, connection_id, State.REFRESHING)
            return claimed(Turn.MINE, material, attempts, maybe_done)

    async def _material(
        self, connection: Connection, provider: Provider, stored: StoredCredentials
    ) -> Material:
        settings = provider.settings.model_validate(connection.settings)
        return await self._vault.material(settings, stored)

    async def _ask(self, claimed: Claimed) -> None:
        try:
            session = await self._ask_provider(claimed)
        except ProviderError as failure:
            if failure.rotated is not None:
                await self._keep(claimed, failure.rotated, failure)
            elif is_verdict(failure):
                await self._outcomes.declare_dead(claimed, failure)
            else:
                await self._outcomes.put_off(claimed, failure)
            return
        await self._keep(claimed, session)

    async def _ask_provider(self, claimed: Claimed) -> Session:
        sessions = claimed.provider.sessions
        assert sessions is not None
        renewing = claimed.material.session is not None
        self._check_in_time(claimed, single_use=renewing)
        try:
            async with asyncio.timeout(self._limits.provider_call.total_seconds()):
                if renewing:
                    return await sessions.renew(claimed.material, self._http, claimed.now)
                return await sessions.begin(claimed.material, self._http, claimed.now)
        except TimeoutError:
            raise ProviderError(
                FailureKind.UNAVAILABLE, "The provider did not answer in time.", maybe_done=True
            ) from None
        except ProviderError as failure:
            if not (renewing and is_verdict(failure) and claimed.provider.restarts):
                raise
        self._check_in_time(claimed, single_use=False)
        return await sessions.begin(claimed.material, self._http, claimed.now)

    def _check_in_time(self, claimed: Claimed, *, single_use: bool) -> None:
        # A process that was stopped after its claim must not send what another sends by now.
        held = timedelta(seconds=time.monotonic() - claimed.claimed_at)
        if not self._limits.may_send(held, single_use=single_use):
            raise ProviderError(FailureKind.UNAVAILABLE, "This process was held up.")

    async def _keep(
        self, claimed: Claimed, session: Session, failure: ProviderError | None = None
    ) -> None:
        # The provider has forgotten the old token by now, and nobody else has the new one: a
        # database that is away or busy for a moment must not cost the grant.
        deadline = time.monotonic() + self._limits.keep.total_seconds()
        while True:
            try:
                return await self._outcomes.store(claimed, session, failure)
            except ServiceError as error:
                if error.kind is not ErrorKind.UNAVAILABLE or time.monotonic() > deadline:
                    raise
                _log.warning(
                    "a renewed session of connection %s could not be stored yet: %s",
                    claimed.connection.connection_id,
                    error.reason,
                )
            await asyncio.sleep(self._limits.poll.total_seconds())


def _forget(task: asyncio.Task[None]) -> None:
    # A failure belongs to whoever waits; where nobody does, the journal and the log have it.
    if not task.cancelled():
        task.exception()
