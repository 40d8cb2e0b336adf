"""Writes down what came of a renewal: its answer, its failure, or the end of the connection.

Each is stored by compare-and-set on the generation, and recorded in the same transaction.
"""

from __future__ import annotations

from services.connections.access_log import Action, Decision, Entry
from services.connections.connection import STATE_MESSAGES, State
from services.connections.providers.failures import ProviderError
from services.connections.renewal import BACKOFF_MAX, put_off_for, renew_time, state_reason
from services.connections.secret import SESSION, Session
from services.connections.store import access_log, connections, credentials, refreshes
from services.connections.use_cases.renewal_claims import Claimed
from services.connections.use_cases.sealed import UNREADABLE, Vault
from services.connections.vault import Binding
from services.runtime.database import Database


class Outcomes:
    """Stores the outcomes of claimed renewals."""

    def __init__(self, database: Database, vault: Vault, actor: str) -> None:
        self._database = database
        self._vault = vault
        self._actor = actor

    async def store(
        self, claimed: Claimed, session: Session, failure: ProviderError | None = None
    ) -> None:
        """Put the answer in the place of what it was given for, unless that is gone.

        With a failure, the session is what it left to keep: it is stored, the next renewal put off,
        and the failure raised.

        When the claim was overtaken, somebody else may have presented the same token. If that ends
        the grant, the new session is due at once: the next answer tells, and names the loss.
        """
        connection = claimed.connection
        binding = Binding(
            connection.tenant_id,
            connection.connection_id,
            connection.provider,
            SESSION,
            claimed.generation + 1,
        )
        envelope = await self._vault.seal_session(binding, session)
        async with self._database.tenant(connection.tenant_id) as tx:
            head = await access_log.lock_head(tx, connection.tenant_id)
            before = await credentials.get(tx, connection.tenant_id, connection.connection_id)
            if before.generations != claimed.generations:
                return
            journal = await refreshes.lock(tx, connection.tenant_id, connection.connection_id)
            overtaken = journal.claim_id != claimed.claim_id
            doubted = overtaken and claimed.single_use
            stored = await credentials.put(
                tx,
                binding,
                envelope,
                expire_time=session.expire_time,
                renew_time=journal.now
                if doubted
                else renew_time(claimed.provider, session, claimed.now),
            )
            if not stored:
                return
            if failure is None:
                await refreshes.finish(
                    tx, connection.tenant_id, connection.connection_id, maybe_done=doubted
                )
            else:
                await refreshes.put_off(
                    tx,
                    connection.tenant_id,
                    connection.connection_id,
                    until=journal.now + put_off_for(failure, claimed.attempts),
                    maybe_done=doubted,
                    reason=failure.kind.value,
                )
            # Also out of NEEDS_REAUTH: whoever declared it dead did not know this answer.
            await connections.change_state(
                tx,
                connection.tenant_id,
                connection.connection_id,
                State.ACTIVE,
                values={
                    **({} if failure else {"last_refresh_time": claimed.now}),
                    "account_id": session.account_id or connection.account_id,
                    "account_name": session.account_name or connection.account_name,
                    "scopes": list(session.scopes or connection.scopes),
                },
            )
            entry = self._entry(
                claimed,
                Decision.FAILED if failure else Decision.ALLOWED,
                generation=claimed.generation + 1,
                reason=failure.kind.value if failure else "",
                overtaken=overtaken,
            )
            await access_log.append(tx, head, entry)
        if failure is not None:
            raise failure.to_service_error() from failure

    async def declare_dead(self, claimed: Claimed, failure: ProviderError) -> None:
        """End the connection after a verdict, and raise it.

        When somebody else's answer arrived first, ours was refused because of it, and nothing is
        dead; but our use of the token may have ended a strict grant, so its session is due at once.
        """
        tenant_id = claimed.connection.tenant_id
        connection_id = claimed.connection.connection_id
        reason = state_reason(
            failure, claimed.provider.policy(claimed.material.settings), claimed.maybe_done
        )
        async with self._database.tenant(tenant_id) as tx:
            head = await access_log.lock_head(tx, tenant_id)
            await refreshes.lock(tx, tenant_id, connection_id)
            stored = await credentials.get(tx, tenant_id, connection_id)
            if stored.generations != claimed.generations:
                if claimed.single_use:
                    await refreshes.doubt(tx, tenant_id, connection_id)
                entry = self._entry(
                    claimed,
                    Decision.FAILED,
                    generation=claimed.generation,
                    reason=failure.kind.value,
                    overtaken=True,
                )
                await access_log.append(tx, head, entry)
                return
            await refreshes.finish(tx, tenant_id, connection_id)
            await connections.change_state(
                tx,
                tenant_id,
                connection_id,
                State.REVOKED if failure.for_good else State.NEEDS_REAUTH,
                reason=reason,
                message=STATE_MESSAGES.get(reason, ""),
            )
            await access_log.append(
                tx,
                head,
                self._entry(
                    claimed,
                    Decision.FAILED,
                    generation=claimed.generation,
                    reason=failure.kind.value,
                    state_reason=reason.value,
                ),
            )
        raise failure.to_service_error() from failure

    async def put_off(self, claimed: Claimed, failure: ProviderError) -> None:
        """Let nobody try again for a while, and raise the failure."""
        tenant_id = claimed.connection.tenant_id
        connection_id = claimed.connection.connection_id
        wait = put_off_for(failure, claimed.attempts)
        async with self._database.tenant(tenant_id) as tx:
            head = await access_log.lock_head(tx, tenant_id)
            journal = await refreshes.lock(tx, tenant_id, connection_id)
            stored = await credentials.get(tx, tenant_id, connection_id)
            if stored.generations != claimed.generations:
                return
            await refreshes.put_off(
                tx,
                tenant_id,
                connection_id,
                until=journal.now + wait,
                maybe_done=claimed.maybe_done or failure.maybe_done,
                reason=failure.kind.value,
            )
            if claimed.connection.state is State.ACTIVE and claimed.generation > 0:
                await connections.change_state(tx, tenant_id, connection_id, State.ACTIVE)
            await access_log.append(
                tx,
                head,
                self._entry(
                    claimed,
                    Decision.FAILED,
                    generation=claimed.generation,
                    reason=failure.kind.value,
                ),
            )
        raise failure.to_service_error() from failure

    async def set_aside(self, tenant_id: str, connection_id: str) -> None:
        """Leave what cannot be read alone for a while; its connection lives, since the operator
        may only have forgotten a key."""
        async with self._database.tenant(tenant_id) as tx:
            head = await access_log.lock_head(tx, tenant_id)
            connection = await connections.get(tx, tenant_id, connection_id)
            if connection is None:
                return
            journal = await refreshes.lock(tx, tenant_id, connection_id)
            await refreshes.put_off(
                tx,
                tenant_id,
                connection_id,
                until=journal.now + BACKOFF_MAX,
                maybe_done=journal.maybe_done or journal.abandoned,
                reason=UNREADABLE,
            )
            if journal.reason != UNREADABLE:
                entry = Entry(
                    Action.REFRESH_CREDENTIAL,
                    Decision.FAILED,
                    self._actor,
                    connection_id=connection_id,
                    provider=connection.provider,
                    reason=UNREADABLE,
                )
                await access_log.append(tx, head, entry)

    def _entry(
        self,
        claimed: Claimed,
        decision: Decision,
        *,
        generation: int,
        reason: str = "",
        state_reason: str = "",
        overtaken: bool = False,
    ) -> Entry:
        details = {"generation": str(generation), "attempt": str(claimed.attempts)}
        if overtaken:
            details["overtaken"] = "yes"
        if state_reason:
            details["state_reason"] = state_reason
        return Entry(
            Action.REFRESH_CREDENTIAL,
            decision,
            self._actor,
            connection_id=claimed.connection.connection_id,
            provider=claimed.connection.provider,
            reason=reason,
            details=details,
        )
