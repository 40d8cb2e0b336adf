"""Key rotations and the credentials they pass over, all tenants' alike: for the jobs role."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import RowMapping, Uuid, func, literal, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.connections.key_rotation import KeyRotation, RotationState, RowKey
from services.connections.store.credentials import StoredCredential, stored_credential
from services.connections.tables import authorizations, credentials, key_rotations

BATCH_ROWS = 500

_REWRAP = text(
    "UPDATE credentials SET key_id = :key_id, wrapped_key = fresh.wrapped_key "
    "FROM unnest(CAST(:tenants AS text[]), CAST(:connections AS uuid[]), CAST(:kinds AS text[]), "
    "CAST(:generations AS bigint[]), CAST(:old_keys AS text[]), CAST(:wrapped AS bytea[])) "
    "AS fresh(tenant_id, connection_id, kind, generation, old_key, wrapped_key) "
    "WHERE credentials.tenant_id = fresh.tenant_id "
    "AND credentials.connection_id = fresh.connection_id AND credentials.kind = fresh.kind "
    # A row that was replaced or re-wrapped meanwhile is left alone.
    "AND credentials.generation = fresh.generation AND credentials.key_id = fresh.old_key"
)


@dataclass(frozen=True, slots=True)
class Rewrapped:
    """A row and its data key wrapped anew."""

    row: StoredCredential
    wrapped_key: bytes


async def begin(
    tx: AsyncConnection, tenant_id: str, rotation_id: str, request_id: str, key_id: str
) -> KeyRotation:
    """Begin a pass, or find the one that runs."""
    running = await _find(tx, key_rotations.c.state == RotationState.RUNNING.value)
    if running is not None:
        return running
    total = await left(tx, key_id)
    await tx.execute(
        upsert(key_rotations)
        .values(
            rotation_id=rotation_id,
            request_id=request_id,
            key_id=key_id,
            state=RotationState.RUNNING.value,
            begun_in_tenant=tenant_id,
            total_rows=total,
        )
        # Another call began at this moment: its pass is found below.
        .on_conflict_do_nothing()
    )
    begun = await begun_by(tx, request_id)
    begun = begun or await _find(tx, key_rotations.c.state == RotationState.RUNNING.value)
    assert begun is not None
    return begun


async def begun_by(tx: AsyncConnection, request_id: str) -> KeyRotation | None:
    """The pass that this request began before, under whatever key."""
    return await _find(tx, key_rotations.c.request_id == request_id)


async def get(tx: AsyncConnection, rotation_id: str) -> KeyRotation | None:
    """One pass; the latest for an empty id."""
    if rotation_id:
        return await _find(tx, key_rotations.c.rotation_id == rotation_id)
    query = select(key_rotations).order_by(key_rotations.c.rotation_id.desc()).limit(1)
    row = (await tx.execute(query)).mappings().one_or_none()
    return _rotation(row) if row else None


async def take_running(tx: AsyncConnection) -> KeyRotation | None:
    """The pass under way, held until the transaction ends; None while another process has it."""
    query = (
        select(key_rotations)
        .where(key_rotations.c.state == RotationState.RUNNING.value)
        .with_for_update(skip_locked=True)
    )
    row = (await tx.execute(query)).mappings().one_or_none()
    return _rotation(row) if row else None


async def next_rows(
    tx: AsyncConnection, key_id: str, after: RowKey | None
) -> list[StoredCredential]:
    """The next credentials under other keys, in the pass's order."""
    place = (credentials.c.tenant_id, credentials.c.connection_id, credentials.c.kind)
    query = select(credentials).where(credentials.c.key_id != key_id)
    if after is not None:
        connection_id = literal(after.connection_id, Uuid(as_uuid=False))
        beyond = tuple_(literal(after.tenant_id), connection_id, literal(after.kind))
        query = query.where(tuple_(*place) > beyond)
    rows = await tx.execute(query.order_by(*place).limit(BATCH_ROWS))
    return [stored_credential(row) for row in rows.mappings()]


async def rewrap(tx: AsyncConnection, key_id: str, rows: Sequence[Rewrapped]) -> None:
    """Store data keys wrapped anew."""
    bindings = [each.row.binding for each in rows]
    await tx.execute(
        _REWRAP,
        {
            "key_id": key_id,
            "tenants": [binding.tenant_id for binding in bindings],
            "connections": [binding.connection_id for binding in bindings],
            "kinds": [binding.kind for binding in bindings],
            "generations": [binding.generation for binding in bindings],
            "old_keys": [each.row.envelope.key_id for each in rows],
            "wrapped": [each.wrapped_key for each in rows],
        },
    )


async def advance(
    tx: AsyncConnection, rotation_id: str, *, after: RowKey | None, rotated: int, failed: int
) -> None:
    """Move the pass on; without `after` it begins at the first row again."""
    await tx.execute(
        update(key_rotations)
        .where(key_rotations.c.rotation_id == rotation_id)
        .values(
            after_tenant_id=after.tenant_id if after else "",
            after_connection_id=after.connection_id if after else None,
            after_kind=after.kind if after else "",
            rotated_rows=key_rotations.c.rotated_rows + rotated,
            failed_rows=failed,
            update_time=func.cogni_now(),
        )
    )


async def finish(tx: AsyncConnection, rotation_id: str, state: RotationState) -> bool:
    """End the pass; False when another process has ended it."""
    ended = await tx.execute(
        update(key_rotations)
        .where(
            key_rotations.c.rotation_id == rotation_id,
            key_rotations.c.state == RotationState.RUNNING.value,
        )
        .values(state=state.value, update_time=func.cogni_now(), finish_time=func.cogni_now())
    )
    return ended.rowcount == 1


async def left(tx: AsyncConnection, key_id: str) -> int:
    """How many credentials are under other keys."""
    query = select(func.count()).where(credentials.c.key_id != key_id)
    return int((await tx.execute(query)).scalar_one())


async def open_authorizations(tx: AsyncConnection, key_id: str) -> int:
    """How many authorizations under other keys can still be completed; they end by themselves."""
    query = select(func.count()).where(
        authorizations.c.key_id != key_id,
        authorizations.c.expire_time > func.cogni_now(),
        authorizations.c.use_time.is_(None),
    )
    return int((await tx.execute(query)).scalar_one())


async def _find(tx: AsyncConnection, condition: object) -> KeyRotation | None:
    query = select(key_rotations).where(condition)  # type: ignore[arg-type]
    row = (await tx.execute(query)).mappings().one_or_none()
    return _rotation(row) if row else None


def _rotation(row: RowMapping) -> KeyRotation:
    connection_id = row["after_connection_id"]
    after = (
        RowKey(row["after_tenant_id"], connection_id, row["after_kind"]) if connection_id else None
    )
    return KeyRotation(
        rotation_id=row["rotation_id"],
        key_id=row["key_id"],
        state=RotationState(row["state"]),
        begun_in_tenant=row["begun_in_tenant"],
        total_rows=row["total_rows"],
        rotated_rows=row["rotated_rows"],
        failed_rows=row["failed_rows"],
        after=after,
        create_time=row["create_time"],
        update_time=row["update_time"],
        finish_time=row["finish_time"],
    )
