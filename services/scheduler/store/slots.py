"""The rows of slots: recorded once, dispatched, started, ended, never deleted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.scheduler.overlap import OverlapView, Unfinished
from services.scheduler.schedules import RunTemplate
from services.scheduler.slot_records import (
    REDISPATCH_AFTER,
    SlotDraft,
    SlotKey,
    SlotOrigin,
    SlotReason,
    SlotRecord,
    SlotState,
)
from services.scheduler.store.rows import SLOT_COLUMNS, run_from_json, slot_of

# What stands in the way of a slot by the overlap policy; the index slots_unfinished serves it.
_UNFINISHED = "(state IN ('PENDING', 'BUFFERED') OR (state = 'STARTED' AND NOT run_finished))"
_KEY = "schedule_id = :schedule_id AND scheduled_time = :scheduled_time"

_INSERT = text("""
INSERT INTO slots (
    schedule_id, scheduled_time, tenant_id, fire_time, state, reason, note, origin,
    overlap_policy, decided, run_digest, backfill_id, dispatch_time, create_time, state_time
)
SELECT schedule_id, scheduled_time, tenant_id, fire_time, state, reason, note, origin,
    overlap_policy, decided, run_digest, backfill_id,
    CASE WHEN state = 'PENDING' THEN cogni_now() + :redispatch END, cogni_now(), cogni_now()
FROM unnest(CAST(:schedule_ids AS uuid[]), CAST(:scheduled_times AS timestamptz[]),
    CAST(:tenant_ids AS text[]), CAST(:fire_times AS timestamptz[]), CAST(:states AS text[]),
    CAST(:reasons AS text[]), CAST(:notes AS text[]), CAST(:origins AS text[]),
    CAST(:policies AS text[]), CAST(:decided AS boolean[]), CAST(:digests AS bytea[]),
    CAST(:backfill_ids AS uuid[]))
    AS draft (schedule_id, scheduled_time, tenant_id, fire_time, state, reason, note, origin,
              overlap_policy, decided, run_digest, backfill_id)
ON CONFLICT (schedule_id, scheduled_time) DO NOTHING
RETURNING schedule_id, scheduled_time
""")
_EXISTING = text("""
SELECT schedule_id, scheduled_time FROM slots
JOIN unnest(CAST(:schedule_ids AS uuid[]), CAST(:times AS timestamptz[]))
    AS asked (schedule_id, scheduled_time) USING (schedule_id, scheduled_time)
""")
_LIST = text(f"""
SELECT {SLOT_COLUMNS} FROM slots WHERE schedule_id = :schedule_id
    AND (CAST(:states AS text[]) IS NULL OR state = ANY (CAST(:states AS text[])))
    AND (CAST(:origins AS text[]) IS NULL OR origin = ANY (CAST(:origins AS text[])))
    AND (CAST(:start_time AS timestamptz) IS NULL OR scheduled_time >= :start_time)
    AND (CAST(:end_time AS timestamptz) IS NULL OR scheduled_time < :end_time)
    AND (CAST(:before AS timestamptz) IS NULL OR scheduled_time < :before)
ORDER BY scheduled_time DESC LIMIT :limit
""")
_CLAIM_UNSTARTED = text("""
WITH lost AS MATERIALIZED (
    SELECT schedule_id, scheduled_time FROM slots
    WHERE state = 'PENDING' AND dispatch_time <= cogni_now()
    ORDER BY dispatch_time LIMIT :limit FOR UPDATE SKIP LOCKED
)
UPDATE slots SET dispatch_time = cogni_now() + :redispatch FROM lost
WHERE slots.schedule_id = lost.schedule_id AND slots.scheduled_time = lost.scheduled_time
RETURNING slots.schedule_id, slots.scheduled_time, slots.tenant_id
""")
_END_RUN = text(f"""
UPDATE slots SET run_state = :run_state, run_finished = :finished,
    run_finish_time = CASE WHEN :finished THEN cogni_now() END
WHERE {_KEY} AND state = 'STARTED' AND NOT run_finished
""")
_STARTED = text(f"""
UPDATE slots SET state = 'STARTED', run_id = :run_id, start_time = cogni_now(),
    state_time = cogni_now(), dispatch_time = NULL, decided = true,
    reason = CASE WHEN reason = 'EXECUTOR_UNAVAILABLE' THEN :due_reason ELSE reason END, note = '',
    run_state = CAST(:run_state AS text)
WHERE {_KEY} AND state = 'PENDING'
""")


@dataclass(frozen=True, slots=True)
class Dispatch:
    """A slot whose start somebody must be told of."""

    key: SlotKey
    tenant_id: str


async def insert(tx: AsyncConnection, drafts: Sequence[SlotDraft]) -> set[SlotKey]:
    """Record slots and return the keys that were new; a slot that exists is left as it is."""
    if not drafts:
        return set()
    values: dict[str, Any] = {
        "schedule_ids": [UUID(each.key.schedule_id) for each in drafts],
        "scheduled_times": [each.key.scheduled_time for each in drafts],
        "tenant_ids": [each.tenant_id for each in drafts],
        "fire_times": [each.fire_time for each in drafts],
        "states": [each.state.value for each in drafts],
        "reasons": [each.reason.value for each in drafts],
        "notes": [each.note for each in drafts],
        "origins": [each.origin.value for each in drafts],
        "policies": [each.overlap_policy.value for each in drafts],
        "decided": [each.decided for each in drafts],
        "digests": [each.run_digest for each in drafts],
        "backfill_ids": [UUID(d.backfill_id) if d.backfill_id else None for d in drafts],
        "redispatch": REDISPATCH_AFTER,
    }
    rows = await tx.execute(_INSERT, values)
    return {SlotKey(str(row.schedule_id), row.scheduled_time) for row in rows}


async def existing(tx: AsyncConnection, keys: Sequence[SlotKey]) -> set[SlotKey]:
    """Those of the keys that have a slot. Of locked schedules, no other can come meanwhile."""
    if not keys:
        return set()
    rows = await tx.execute(
        _EXISTING,
        {
            "schedule_ids": [UUID(key.schedule_id) for key in keys],
            "times": [key.scheduled_time for key in keys],
        },
    )
    return {SlotKey(str(row.schedule_id), row.scheduled_time) for row in rows}


async def get(tx: AsyncConnection, key: SlotKey) -> SlotRecord | None:
    """The slot, or None."""
    row = (
        (await tx.execute(text(f"SELECT {SLOT_COLUMNS} FROM slots WHERE {_KEY}"), _key(key)))
        .mappings()
        .first()
    )
    return None if row is None else slot_of(dict(row))


async def template_of(tx: AsyncConnection, key: SlotKey) -> RunTemplate:
    """The run template that was frozen into the slot."""
    document = (
        await tx.execute(
            text(
                "SELECT CAST(t.template AS text) FROM slots s JOIN run_templates t "
                "ON t.tenant_id = s.tenant_id AND t.digest = s.run_digest "
                "WHERE s.schedule_id = :schedule_id AND s.scheduled_time = :scheduled_time"
            ),
            _key(key),
        )
    ).scalar_one()
    return run_from_json(document)


async def list_page(
    tx: AsyncConnection,
    schedule_id: str,
    *,
    states: Sequence[SlotState] = (),
    origins: Sequence[SlotOrigin] = (),
    start_time: datetime | None = None,
    end_time: datetime | None = None,
    before: datetime | None = None,
    limit: int,
) -> list[SlotRecord]:
    """Slots of a schedule, latest first, that match every filter given."""
    rows = await tx.execute(
        _LIST,
        {
            "schedule_id": UUID(schedule_id),
            "states": [state.value for state in states] or None,
            "origins": [origin.value for origin in origins] or None,
            "start_time": start_time,
            "end_time": end_time,
            "before": before,
            "limit": limit,
        },
    )
    return [slot_of(dict(row)) for row in rows.mappings()]


async def overlap_views(
    tx: AsyncConnection, schedule_ids: Sequence[str], *, besides: SlotKey | None = None
) -> dict[str, OverlapView]:
    """What each schedule has under way, without the slot that is being decided about."""
    rows = await tx.execute(
        text(
            "SELECT schedule_id, scheduled_time, state FROM slots "
            f"WHERE schedule_id = ANY (CAST(:ids AS uuid[])) AND {_UNFINISHED} "
            "ORDER BY schedule_id, scheduled_time"
        ),
        {"ids": [UUID(each) for each in schedule_ids]},
    )
    found: dict[str, list[Unfinished]] = {each: [] for each in schedule_ids}
    for row in rows:
        if SlotKey(str(row.schedule_id), row.scheduled_time) != besides:
            unfinished = Unfinished(row.scheduled_time, SlotState(row.state))
            found[str(row.schedule_id)].append(unfinished)
    return {schedule_id: OverlapView(tuple(each)) for schedule_id, each in found.items()}


async def running(tx: AsyncConnection, schedule_id: str, limit: int) -> list[SlotRecord]:
    """Started slots of a schedule whose runs are not known to have ended, oldest first."""
    rows = await tx.execute(
        text(
            f"SELECT {SLOT_COLUMNS} FROM slots WHERE schedule_id = :schedule_id "
            "AND state = 'STARTED' AND NOT run_finished ORDER BY scheduled_time LIMIT :limit"
        ),
        {"schedule_id": UUID(schedule_id), "limit": limit},
    )
    return [slot_of(dict(row)) for row in rows.mappings()]


async def average_run(tx: AsyncConnection, schedule_id: str, latest: int) -> timedelta | None:
    """How long the latest runs of a schedule took on average; None when none has ended."""
    average: timedelta | None = (
        await tx.execute(
            text(
                "SELECT avg(run_finish_time - start_time) FROM (SELECT run_finish_time, start_time "
                "FROM slots WHERE schedule_id = :schedule_id AND run_finish_time IS NOT NULL "
                "ORDER BY scheduled_time DESC LIMIT :latest) AS latest"
            ),
            {"schedule_id": UUID(schedule_id), "latest": latest},
        )
    ).scalar_one()
    return average


async def count_attempt(tx: AsyncConnection, key: SlotKey) -> bool:
    """Count a start that is about to be attempted; False when the slot no longer waits for one."""
    result = await tx.execute(
        text(f"UPDATE slots SET attempts = attempts + 1 WHERE {_KEY} AND state = 'PENDING'"),
        _key(key),
    )
    return result.rowcount == 1


async def mark_started(
    tx: AsyncConnection,
    key: SlotKey,
    run_id: str,
    run_state: str | None,
    due_reason: SlotReason,
) -> bool:
    """Name the run of a PENDING slot; False when it was not PENDING any more."""
    result = await tx.execute(
        _STARTED,
        {
            **_key(key),
            "run_id": UUID(run_id),
            "run_state": run_state,
            "due_reason": due_reason.value,
        },
    )
    return result.rowcount == 1


async def note_run(tx: AsyncConnection, key: SlotKey, run_state: str, *, finished: bool) -> bool:
    """Note how a started slot's run stands; False when it had ended before or never started."""
    result = await tx.execute(_END_RUN, {**_key(key), "run_state": run_state, "finished": finished})
    return result.rowcount == 1


async def settle(
    tx: AsyncConnection,
    keys: Sequence[SlotKey],
    state: SlotState,
    reason: SlotReason,
    note: str = "",
) -> None:
    """Bring waiting slots (PENDING, BUFFERED) into a state; others are left alone."""
    if not keys:
        return
    await tx.execute(
        text(
            "UPDATE slots SET state = :state, reason = :reason, note = :note, decided = true, "
            "state_time = cogni_now(), dispatch_time = "
            "CASE WHEN :state = 'PENDING' THEN cogni_now() + :redispatch END "
            "FROM unnest(CAST(:schedule_ids AS uuid[]), CAST(:times AS timestamptz[])) "
            "AS chosen (schedule_id, scheduled_time) "
            "WHERE slots.schedule_id = chosen.schedule_id "
            "AND slots.scheduled_time = chosen.scheduled_time "
            "AND slots.state IN ('PENDING', 'BUFFERED')"
        ),
        {
            "state": state.value,
            "reason": reason.value,
            "note": note,
            "schedule_ids": [UUID(key.schedule_id) for key in keys],
            "times": [key.scheduled_time for key in keys],
            "redispatch": REDISPATCH_AFTER,
        },
    )


async def cancel_unstarted(
    tx: AsyncConnection, schedule_ids: Sequence[str], reason: SlotReason, note: str = ""
) -> None:
    """Cancel the slots of locked schedules that wait and whose start nobody has attempted."""
    await tx.execute(
        text(
            "UPDATE slots SET state = 'CANCELLED', reason = :reason, note = :note, "
            "decided = true, state_time = cogni_now(), dispatch_time = NULL "
            "WHERE schedule_id = ANY (CAST(:ids AS uuid[])) "
            "AND state IN ('PENDING', 'BUFFERED') AND attempts = 0"
        ),
        {"ids": [UUID(each) for each in schedule_ids], "reason": reason.value, "note": note},
    )


async def postpone(tx: AsyncConnection, key: SlotKey, pause: timedelta, note: str) -> None:
    """Let a PENDING slot rest until its start is attempted again."""
    await tx.execute(
        text(
            "UPDATE slots SET dispatch_time = cogni_now() + :pause, note = :note, "
            f"reason = 'EXECUTOR_UNAVAILABLE' WHERE {_KEY} AND state = 'PENDING'"
        ),
        {**_key(key), "pause": pause, "note": note},
    )


async def claim_unstarted(tx: AsyncConnection, limit: int) -> list[Dispatch]:
    """Take PENDING slots whose start is overdue: their message was lost or their starter died."""
    rows = await tx.execute(_CLAIM_UNSTARTED, {"limit": limit, "redispatch": REDISPATCH_AFTER})
    return [Dispatch(SlotKey(str(r.schedule_id), r.scheduled_time), r.tenant_id) for r in rows]


def _key(key: SlotKey) -> dict[str, Any]:
    return {"schedule_id": UUID(key.schedule_id), "scheduled_time": key.scheduled_time}
