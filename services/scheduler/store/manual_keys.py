"""The rows that make manual triggers idempotent for ever."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.scheduler.slot_records import SlotKey


async def find(tx: AsyncConnection, request_id: str) -> tuple[SlotKey, bytes] | None:
    """The slot that a request_id made and the hash of its content, or None."""
    row = (
        await tx.execute(
            text(
                "SELECT schedule_id, scheduled_time, content_hash FROM manual_keys "
                "WHERE request_id = :request_id"
            ),
            {"request_id": UUID(request_id)},
        )
    ).first()
    if row is None:
        return None
    return SlotKey(str(row.schedule_id), row.scheduled_time), bytes(row.content_hash)


async def insert(
    tx: AsyncConnection, tenant_id: str, request_id: str, content_hash: bytes, key: SlotKey
) -> bool:
    """Bind a request_id to its slot; False when it is bound already."""
    result = await tx.execute(
        text(
            "INSERT INTO manual_keys (tenant_id, request_id, content_hash, schedule_id, "
            "scheduled_time, create_time) VALUES (:tenant_id, :request_id, :content_hash, "
            ":schedule_id, :scheduled_time, cogni_now()) ON CONFLICT DO NOTHING"
        ),
        {
            "tenant_id": tenant_id,
            "request_id": UUID(request_id),
            "content_hash": content_hash,
            "schedule_id": UUID(key.schedule_id),
            "scheduled_time": key.scheduled_time,
        },
    )
    return result.rowcount == 1
