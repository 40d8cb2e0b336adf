"""Rotates the key-encryption keys: online, in small transactions, resumed by whichever server."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from services.connections.access_log import Action, Decision, Entry
from services.connections.callers import entry_by
from services.connections.key_rotation import KeyRotation, RotationState, RowKey
from services.connections.keyring import KeyEncryption
from services.connections.store import access_log, key_rotations
from services.connections.store.credentials import StoredCredential
from services.connections.store.key_rotations import Rewrapped
from services.connections.vault import UnreadableError, rewrap
from services.runtime.caller import Caller
from services.runtime.database import Database
from services.runtime.errors import (
    ErrorKind,
    ServiceError,
    denied,
    not_found,
    reused_request_id,
)
from services.runtime.ids import new_id

# Re-wrapping blocks the loop for some tens of microseconds a row; leases must get their turn.
_ROWS_BETWEEN_YIELDS = 20
# A key management service takes some 10 ms a row, and PostgreSQL ends a transaction that idles for
# five seconds.
BATCH_SECONDS_MAX = 1.0


class KeyRotations:
    """RotateKeys, GetKeyRotation, and the job that does the work."""

    def __init__(
        self,
        database: Database,
        keys: KeyEncryption,
        *,
        operator_tenant: str = "",
        actor: str = "service:connections",
    ) -> None:
        """An empty `operator_tenant` lets every tenant's administrators rotate."""
        self._database = database
        self._keys = keys
        self._operator_tenant = operator_tenant
        self._actor = actor

    async def begin(self, caller: Caller, request_id: str, key_id: str) -> KeyRotation:
        """Begin a pass, or find the one under way; a refusal is put on record."""
        active = self._keys.active_key_id
        try:
            self._check_operator(caller)
            _check_active(key_id, active)
        except ServiceError as refusal:
            await self._record_refusal(caller, key_id, refusal)
            raise
        tenant_id = caller.tenant_id
        async with self._database.jobs() as tx:
            head = await access_log.lock_head(tx, tenant_id)
            begun = await key_rotations.begun_by(tx, request_id)
            if begun is None:
                begun = await key_rotations.begin(tx, tenant_id, new_id(), request_id, active)
            elif key_id and key_id != begun.key_id:
                raise reused_request_id(request_id)
            entry = entry_by(caller, Action.ROTATE_KEYS, Decision.ALLOWED)
            await access_log.append(tx, head, replace(entry, details=_names(begun)))
        return begun

    async def get(self, caller: Caller, rotation_id: str) -> KeyRotation:
        """How far a pass is."""
        self._check_operator(caller)
        async with self._database.jobs() as tx:
            found = await key_rotations.get(tx, rotation_id)
        if found is None:
            if not rotation_id:
                raise ServiceError(ErrorKind.NOT_FOUND, "NOT_FOUND", "No keys were rotated yet.")
            raise not_found("key rotation", rotation_id)
        return found

    async def step(self) -> bool:
        """Do the next batch of the pass under way; False when there is nothing to do here."""
        async with self._database.jobs() as tx:
            rotation = await key_rotations.take_running(tx)
            # A server whose ring is older leaves the work to those that have the key.
            if rotation is None or rotation.key_id != self._keys.active_key_id:
                return False
            rows = await key_rotations.next_rows(tx, rotation.key_id, rotation.after)
            if rows:
                done, failed = await self._rewrap(rows)
                await key_rotations.rewrap(tx, rotation.key_id, done)
                last = rows[len(done) + failed - 1].binding
                await key_rotations.advance(
                    tx,
                    rotation.rotation_id,
                    after=RowKey(last.tenant_id, last.connection_id, last.kind),
                    rotated=len(done),
                    failed=rotation.failed_rows + failed,
                )
                return True
            left = await key_rotations.left(tx, rotation.key_id)
            if left > rotation.failed_rows:
                # Written behind the pass by a server with an older ring: go round again.
                await key_rotations.advance(
                    tx, rotation.rotation_id, after=None, rotated=0, failed=0
                )
                return True
            if left == 0 and await key_rotations.open_authorizations(tx, rotation.key_id):
                return False
        await self._end(rotation, RotationState.FAILED if left else RotationState.SUCCEEDED)
        return True

    async def _rewrap(self, rows: list[StoredCredential]) -> tuple[list[Rewrapped], int]:
        """Those of the first rows that could be wrapped anew, and how many could not."""
        done: list[Rewrapped] = []
        failed = 0
        end = time.monotonic() + BATCH_SECONDS_MAX
        for number, row in enumerate(rows):
            if number and time.monotonic() > end:
                break
            try:
                fresh = await rewrap(row.envelope, row.binding, self._keys)
                done.append(Rewrapped(row, fresh.wrapped_key))
            except UnreadableError:
                failed += 1
            if number % _ROWS_BETWEEN_YIELDS == 0:
                await asyncio.sleep(0)
        return done, failed

    async def _end(self, rotation: KeyRotation, state: RotationState) -> None:
        # A transaction of its own: one that records takes the head first.
        tenant_id = rotation.begun_in_tenant
        async with self._database.jobs() as tx:
            head = await access_log.lock_head(tx, tenant_id) if tenant_id else None
            if not await key_rotations.finish(tx, rotation.rotation_id, state) or head is None:
                return
            succeeded = state is RotationState.SUCCEEDED
            entry = Entry(
                Action.ROTATE_KEYS,
                Decision.ALLOWED if succeeded else Decision.FAILED,
                self._actor,
                details={
                    **_names(rotation),
                    "state": state.value,
                    "rotated": str(rotation.rotated_rows),
                    "failed": str(rotation.failed_rows),
                },
            )
            await access_log.append(tx, head, entry)

    async def _record_refusal(self, caller: Caller, key_id: str, refusal: ServiceError) -> None:
        entry = entry_by(caller, Action.ROTATE_KEYS, Decision.DENIED)
        entry = replace(entry, reason=refusal.reason, details={"key_id": key_id} if key_id else {})
        async with self._database.tenant(caller.tenant_id) as tx:
            await access_log.record(tx, caller.tenant_id, entry)

    def _check_operator(self, caller: Caller) -> None:
        if self._operator_tenant and caller.tenant_id != self._operator_tenant:
            raise denied("CALLER_NOT_ALLOWED", "Keys are rotated by the operator's tenant only.")


def _check_active(key_id: str, active: str) -> None:
    if key_id and key_id != active:
        raise ServiceError(
            ErrorKind.FAILED_PRECONDITION,
            "KEY_UNKNOWN",
            f"The active key of this server's ring is {active!r}, not {key_id!r}; put the new "
            "key into the ring of every server, make it active, restart them, then rotate.",
            metadata={"key_id": key_id},
        )


def _names(rotation: KeyRotation) -> dict[str, str]:
    return {"key_id": rotation.key_id, "rotation_id": rotation.rotation_id}
