"""The rows of backfills: kept, stepped, ended."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.scheduler.backfills import Backfill, BackfillOrder, BackfillState, CostCap
from services.scheduler.schedules import OverlapPolicy
from services.scheduler.slot_records import REDISPATCH_AFTER, SlotDraft, SlotKey
from services.scheduler.specs import Spec
from services.scheduler.store.rows import spec_from_json, spec_json

_SELECT = """
SELECT b.backfill_id, b.tenant_id, b.schedule_id, CAST(b.spec AS text) AS spec, b.run_digest,
    b.start_time, b.end_time, b.starts_per_minute, b.max_unfinished, b.overlap_policy,
    b.cost_cap_asset, b.cost_cap_value, b.state, b.state_note, b.total_count, b.done_count,
    b.present_count, b.position_time, b.creator, b.create_time, b.finish_time,
    tally.started, tally.failed, tally.unfinished, tally.cost
FROM backfills b CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE state = 'STARTED') AS started,
        count(*) FILTER (WHERE state IN ('REFUSED', 'CANCELLED', 'SKIPPED')) AS failed,
        count(*) FILTER (WHERE state IN ('PENDING', 'BUFFERED')
            OR (state = 'STARTED' AND NOT run_finished)) AS unfinished,
        coalesce(sum(run_cost), 0) AS cost
    FROM slots WHERE slots.backfill_id = b.backfill_id
) AS tally
"""
_INSERT = text("""
INSERT INTO backfills (backfill_id, tenant_id, request_id, content_hash, schedule_id, spec,
    run_digest, start_time, end_time, starts_per_minute, max_unfinished, overlap_policy,
    cost_cap_asset, cost_cap_value, state, state_note, total_count, step_time, creator, create_time)
VALUES (:backfill_id, :tenant_id, :request_id, :content_hash, :schedule_id,
    CAST(:spec AS json), :run_digest, :start_time, :end_time, :starts_per_minute, :max_unfinished,
    :overlap_policy, CAST(:cost_cap_asset AS text), CAST(:cost_cap_value AS numeric), 'RUNNING',
    '', :total_count, cogni_now(), :creator, cogni_now())
ON CONFLICT (tenant_id, request_id) DO NOTHING
""")
_REVIVE = text("""
UPDATE slots SET state = :state, reason = :reason, origin = 'BACKFILL', decided = :decided,
    overlap_policy = :policy, run_digest = :run_digest, backfill_id = :backfill_id,
    state_time = cogni_now(),
    dispatch_time = CASE WHEN :state = 'PENDING' THEN cogni_now() + :redispatch END
WHERE schedule_id = :schedule_id AND scheduled_time = :scheduled_time AND state = 'MISSED'
""")


async def insert(
    tx: AsyncConnection,
    *,
    backfill_id: str,
    tenant_id: str,
    request_id: str,
    content_hash: bytes,
    order: BackfillOrder,
    spec: Spec,
    run_digest: bytes,
    total_count: int,
    creator: str,
) -> bool:
    """Keep a new backfill; False when the request_id was used before."""
    result = await tx.execute(
        _INSERT,
        {
            "backfill_id": UUID(backfill_id),
            "tenant_id": tenant_id,
            "request_id": UUID(request_id),
            "content_hash": content_hash,
            "schedule_id": UUID(order.schedule_id),
            "spec": spec_json(spec),
            "run_digest": run_digest,
            "start_time": order.start_time,
            "end_time": order.end_time,
            "starts_per_minute": order.starts_per_minute,
            "max_unfinished": order.max_unfinished,
            "overlap_policy": order.overlap_policy.value,
            "cost_cap_asset": order.cost_cap.asset if order.cost_cap else None,
            "cost_cap_value": order.cost_cap.value if order.cost_cap else None,
            "total_count": total_count,
            "creator": creator,
        },
    )
    return result.rowcount == 1


async def get(tx: AsyncConnection, backfill_id: str, *, lock: bool = False) -> Backfill | None:
    """The backfill; with `lock`, its row is the transaction's until it ends."""
    suffix = " FOR UPDATE OF b" if lock else ""
    statement = text(f"{_SELECT} WHERE b.backfill_id = :backfill_id{suffix}")
    row = (await tx.execute(statement, {"backfill_id": UUID(backfill_id)})).mappings().first()
    return None if row is None else _backfill(dict(row))


async def find_request(tx: AsyncConnection, request_id: str) -> tuple[str, bytes] | None:
    """The backfill that a request_id made and the hash of its content, or None."""
    row = (
        await tx.execute(
            text("SELECT backfill_id, content_hash FROM backfills WHERE request_id = :request_id"),
            {"request_id": UUID(request_id)},
        )
    ).first()
    return None if row is None else (str(row.backfill_id), bytes(row.content_hash))


async def count_running(tx: AsyncConnection) -> int:
    """How many backfills of the tenant are running."""
    statement = text("SELECT count(*) FROM backfills WHERE state = 'RUNNING'")
    counted: int = (await tx.execute(statement)).scalar_one()
    return counted


async def due(tx: AsyncConnection, limit: int) -> list[tuple[str, str]]:
    """Backfills whose next step is due, with their schedules, the longest due first."""
    rows = await tx.execute(
        text(
            "SELECT backfill_id, schedule_id FROM backfills WHERE state = 'RUNNING' "
            "AND step_time <= cogni_now() ORDER BY step_time LIMIT :limit"
        ),
        {"limit": limit},
    )
    return [(str(row.backfill_id), str(row.schedule_id)) for row in rows]


async def is_due(tx: AsyncConnection, backfill_id: str) -> bool:
    """Whether a locked backfill's step is still due: another process may have done it."""
    statement = text(
        "SELECT state = 'RUNNING' AND step_time <= cogni_now() FROM backfills "
        "WHERE backfill_id = :backfill_id"
    )
    found = (await tx.execute(statement, {"backfill_id": UUID(backfill_id)})).scalar_one()
    return bool(found)


async def advance(
    tx: AsyncConnection,
    backfill_id: str,
    *,
    done: int,
    present: int,
    position: datetime | None,
    pause: timedelta,
) -> None:
    """Count what a step dealt with and set when the next one is due."""
    await tx.execute(
        text(
            "UPDATE backfills SET done_count = done_count + :done, present_count = present_count "
            "+ :present, position_time = coalesce(CAST(:position AS timestamptz), position_time), "
            "step_time = cogni_now() + :pause WHERE backfill_id = :backfill_id"
        ),
        {
            "backfill_id": UUID(backfill_id),
            "done": done,
            "present": present,
            "position": position,
            "pause": pause,
        },
    )


async def end(tx: AsyncConnection, backfill_id: str, state: BackfillState, note: str = "") -> None:
    """Bring a locked backfill to its end, unless it is there; its slots are left alone."""
    await tx.execute(
        text(
            "UPDATE backfills SET state = :state, state_note = :note, step_time = NULL, "
            "finish_time = cogni_now() WHERE backfill_id = :backfill_id AND state = 'RUNNING'"
        ),
        {"backfill_id": UUID(backfill_id), "state": state.value, "note": note},
    )


async def cancel_waiting(tx: AsyncConnection, backfill_id: str) -> None:
    """Cancel slots of a backfill that wait and whose start nobody has attempted."""
    await tx.execute(
        text(
            "UPDATE slots SET state = 'CANCELLED', reason = 'BACKFILL_STOPPED', decided = true, "
            "state_time = cogni_now(), dispatch_time = NULL WHERE backfill_id = :backfill_id "
            "AND state IN ('PENDING', 'BUFFERED') AND attempts = 0"
        ),
        {"backfill_id": UUID(backfill_id)},
    )


async def present(
    tx: AsyncConnection, schedule_id: str, times: list[datetime]
) -> dict[datetime, bool]:
    """Which of the times have a slot, and whether that one is MISSED."""
    rows = await tx.execute(
        text(
            "SELECT scheduled_time, state = 'MISSED' AS missed FROM slots "
            "WHERE schedule_id = :schedule_id "
            "AND scheduled_time = ANY (CAST(:times AS timestamptz[]))"
        ),
        {"schedule_id": UUID(schedule_id), "times": times},
    )
    return {row.scheduled_time: row.missed for row in rows}


async def revive(tx: AsyncConnection, draft: SlotDraft) -> bool:
    """Let a MISSED slot start after all; False when it is not MISSED any more."""
    assert draft.backfill_id is not None
    result = await tx.execute(
        _REVIVE,
        {
            "schedule_id": UUID(draft.key.schedule_id),
            "scheduled_time": draft.key.scheduled_time,
            "state": draft.state.value,
            "reason": draft.reason.value,
            "decided": draft.decided,
            "policy": draft.overlap_policy.value,
            "run_digest": draft.run_digest,
            "backfill_id": UUID(draft.backfill_id),
            "redispatch": REDISPATCH_AFTER,
        },
    )
    return result.rowcount == 1


async def uncosted(
    tx: AsyncConnection, backfill_id: str, limit: int
) -> list[tuple[SlotKey, str, str]]:
    """Finished runs of a backfill whose cost is not noted: slot, tenant and run."""
    rows = await tx.execute(
        text(
            "SELECT schedule_id, scheduled_time, tenant_id, run_id FROM slots "
            "WHERE backfill_id = :backfill_id AND run_finished AND run_cost IS NULL "
            "ORDER BY scheduled_time LIMIT :limit"
        ),
        {"backfill_id": UUID(backfill_id), "limit": limit},
    )
    return [
        (SlotKey(str(r.schedule_id), r.scheduled_time), r.tenant_id, str(r.run_id)) for r in rows
    ]


async def note_cost(tx: AsyncConnection, key: SlotKey, cost: Decimal) -> None:
    """Note what a slot's run has cost."""
    await tx.execute(
        text(
            "UPDATE slots SET run_cost = :cost "
            "WHERE schedule_id = :schedule_id AND scheduled_time = :scheduled_time"
        ),
        {
            "schedule_id": UUID(key.schedule_id),
            "scheduled_time": key.scheduled_time,
            "cost": cost,
        },
    )


def _backfill(row: Mapping[str, Any]) -> Backfill:
    cap = None
    if row["cost_cap_asset"] is not None:
        cap = CostCap(row["cost_cap_asset"], row["cost_cap_value"])
    return Backfill(
        backfill_id=str(row["backfill_id"]),
        tenant_id=row["tenant_id"],
        order=BackfillOrder(
            str(row["schedule_id"]),
            row["start_time"],
            row["end_time"],
            row["starts_per_minute"],
            row["max_unfinished"],
            OverlapPolicy(row["overlap_policy"]),
            cap,
        ),
        spec=spec_from_json(row["spec"]),
        run_digest=bytes(row["run_digest"]),
        state=BackfillState(row["state"]),
        state_note=row["state_note"],
        total_count=row["total_count"],
        done_count=row["done_count"],
        present_count=row["present_count"],
        started_count=row["started"],
        failed_count=row["failed"],
        unfinished_count=row["unfinished"],
        cost=row["cost"],
        position_time=row["position_time"],
        creator=row["creator"],
        create_time=row["create_time"],
        finish_time=row["finish_time"],
    )
