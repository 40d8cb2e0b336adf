"""The rows of followed streams: one follower at a time, cursor and effects in one commit."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection


async def take(tx: AsyncConnection, name: str, holder: str, lease: timedelta) -> str | None:
    """Become or stay the stream's follower and return its cursor; None while another follows."""
    row = (
        await tx.execute(
            text(
                "INSERT INTO streams AS s (name, cursor, holder, lease_expire_time) "
                "VALUES (:name, '', :holder, cogni_now() + :lease) "
                "ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, "
                "lease_expire_time = excluded.lease_expire_time "
                "WHERE s.holder = excluded.holder OR s.lease_expire_time IS NULL "
                "OR s.lease_expire_time <= cogni_now() RETURNING cursor"
            ),
            {"name": name, "holder": UUID(holder), "lease": lease},
        )
    ).first()
    return None if row is None else str(row.cursor)


async def advance(
    tx: AsyncConnection,
    name: str,
    holder: str,
    cursor: str,
    watermark: datetime | None,
    lease: timedelta,
) -> bool:
    """Move the cursor in the transaction of its effects; False when another follows by now."""
    result = await tx.execute(
        text(
            "UPDATE streams SET cursor = :cursor, watermark_time = greatest(watermark_time, "
            "CAST(:watermark AS timestamptz)), lease_expire_time = cogni_now() + :lease "
            "WHERE name = :name AND holder = :holder"
        ),
        {
            "name": name,
            "holder": UUID(holder),
            "cursor": cursor,
            "watermark": watermark,
            "lease": lease,
        },
    )
    return result.rowcount == 1


async def release(tx: AsyncConnection, name: str, holder: str) -> None:
    """Let another follow at once."""
    await tx.execute(
        text(
            "UPDATE streams SET holder = NULL, lease_expire_time = NULL "
            "WHERE name = :name AND holder = :holder"
        ),
        {"name": name, "holder": UUID(holder)},
    )


async def note_grant(
    tx: AsyncConnection,
    grant_id: str,
    tenant_id: str,
    state: str,
    expire_time: datetime | None,
    change_time: datetime,
) -> None:
    """Keep what was last told of a grant."""
    await tx.execute(
        text(
            "INSERT INTO watched_grants (grant_id, tenant_id, state, expire_time, change_time) "
            "VALUES (:grant_id, :tenant_id, :state, CAST(:expire_time AS timestamptz), "
            ":change_time) ON CONFLICT (grant_id) DO UPDATE SET state = excluded.state, "
            "expire_time = excluded.expire_time, change_time = excluded.change_time"
        ),
        {
            "grant_id": UUID(grant_id),
            "tenant_id": tenant_id,
            "state": state,
            "expire_time": expire_time,
            "change_time": change_time,
        },
    )


async def ended_grant(tx: AsyncConnection, grant_id: str) -> str | None:
    """The final state of a grant that is known to have ended, or None."""
    state: str | None = (
        await tx.execute(
            text(
                "SELECT state FROM watched_grants WHERE grant_id = :grant_id AND state <> 'ACTIVE'"
            ),
            {"grant_id": UUID(grant_id)},
        )
    ).scalar_one_or_none()
    return state
