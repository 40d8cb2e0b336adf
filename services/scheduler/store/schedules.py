"""The rows of schedules: kept, listed, claimed when due, moved on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.scheduler.schedules import (
    CatchUpMode,
    NextFiring,
    Schedule,
    ScheduleState,
    Settings,
    StateReason,
)
from services.scheduler.store import run_templates
from services.scheduler.store.rows import schedule_of, spec_json

_COLUMNS = """
    s.schedule_id, s.tenant_id, s.display_name, s.description,
    CAST(s.labels AS text) AS labels, CAST(s.spec AS text) AS spec,
    CAST(t.template AS text) AS template,
    s.overlap_policy, s.catch_up_mode, s.catch_up_window, s.catch_up_max_count, s.catch_up_once,
    s.remaining_actions, s.pause_on_failure, s.state, s.state_reason, s.state_note, s.state_time,
    s.position_time, s.next_slot_time, s.next_fire_time, s.last_slot_time, s.pause_time,
    s.unpause_time, s.tzdata_version, s.started_count, s.skipped_count, s.missed_count,
    s.failed_count, s.buffered_count, s.creator, s.create_time, s.update_time, s.revision
"""
_FROM = (
    "FROM schedules s JOIN run_templates t ON t.tenant_id = s.tenant_id AND t.digest = s.run_digest"
)
_SELECT = f"SELECT {_COLUMNS} {_FROM}"

_GET = text(f"{_SELECT} WHERE s.schedule_id = :schedule_id")
_BY_IDS = "schedule_id = ANY (CAST(:ids AS uuid[])) ORDER BY schedule_id"
_GET_ALL = text(f"{_SELECT} WHERE s.{_BY_IDS}")
_LOCK = text(f"SELECT FROM schedules WHERE {_BY_IDS} FOR UPDATE")
_INSERT = text("""
INSERT INTO schedules (
    schedule_id, tenant_id, request_id, content_hash, display_name, description, labels, spec,
    run_digest, graph_id, grant_id, overlap_policy, catch_up_mode, catch_up_window,
    catch_up_max_count, remaining_actions, pause_on_failure, state, state_reason, state_note,
    state_time, position_time, next_slot_time, next_fire_time, pause_time, tzdata_version,
    creator, create_time, update_time, revision
) VALUES (
    :schedule_id, :tenant_id, :request_id, :content_hash, :display_name, :description,
    CAST(:labels AS jsonb), CAST(:spec AS json), :run_digest, :graph_id, :grant_id,
    :overlap_policy, :catch_up_mode, :catch_up_window, :catch_up_max_count,
    CAST(:remaining_actions AS bigint), :pause_on_failure, :state, :state_reason, :state_note,
    :now, :now, CAST(:next_slot_time AS timestamptz), CAST(:next_fire_time AS timestamptz),
    CAST(:pause_time AS timestamptz), :tzdata_version, :creator, :now, :now, 1
) ON CONFLICT (tenant_id, request_id) DO NOTHING
""")
_UPDATE = text("""
UPDATE schedules SET
    display_name = :display_name, description = :description, labels = CAST(:labels AS jsonb),
    spec = CAST(:spec AS json), run_digest = :run_digest, graph_id = :graph_id,
    grant_id = :grant_id, overlap_policy = :overlap_policy, catch_up_mode = :catch_up_mode,
    catch_up_window = :catch_up_window, catch_up_max_count = :catch_up_max_count,
    remaining_actions = CAST(:remaining_actions AS bigint), pause_on_failure = :pause_on_failure,
    update_time = cogni_now(), revision = revision + 1
WHERE schedule_id = :schedule_id
""")
_SET_STATE = text("""
UPDATE schedules SET
    state = :state, state_reason = :state_reason, state_note = :state_note,
    state_time = cogni_now(), revision = revision + 1,
    next_slot_time = CAST(:next_slot_time AS timestamptz),
    next_fire_time = CAST(:next_fire_time AS timestamptz),
    pause_time = CASE WHEN :state = 'PAUSED' AND state <> 'PAUSED'
        THEN cogni_now() ELSE pause_time END,
    unpause_time = CASE WHEN :state = 'PAUSED' THEN CASE WHEN state = 'PAUSED'
        THEN unpause_time END WHEN state = 'PAUSED' THEN cogni_now() ELSE unpause_time END,
    catch_up_once = CAST(:catch_up_once AS text)
WHERE schedule_id = :schedule_id
""")
_MOVE = text("""
UPDATE schedules SET
    position_time = moved.position_time, next_slot_time = moved.next_slot_time,
    next_fire_time = moved.next_fire_time, last_slot_time = moved.last_slot_time,
    remaining_actions = moved.remaining_actions, catch_up_once = NULL,
    tzdata_version = :tzdata_version
FROM unnest(CAST(:ids AS uuid[]), CAST(:positions AS timestamptz[]),
    CAST(:next_slots AS timestamptz[]), CAST(:next_fires AS timestamptz[]),
    CAST(:last_slots AS timestamptz[]), CAST(:remaining AS bigint[]))
    AS moved (schedule_id, position_time, next_slot_time, next_fire_time, last_slot_time,
              remaining_actions)
WHERE schedules.schedule_id = moved.schedule_id
""")
_CLAIM_DUE = text(f"""
{_SELECT} WHERE s.state = 'ACTIVE' AND s.next_fire_time <= cogni_now()
ORDER BY s.next_fire_time LIMIT :limit FOR UPDATE OF s SKIP LOCKED
""")
_CLAIM_OUTDATED = text(f"""
{_SELECT} WHERE s.state = 'ACTIVE' AND s.tzdata_version <> :tzdata_version
    AND s.next_fire_time > cogni_now()
LIMIT :limit FOR UPDATE OF s SKIP LOCKED
""")
_NEXT_DUE = text("SELECT min(next_fire_time) - cogni_now() FROM schedules WHERE state = 'ACTIVE'")
_LIST = text(f"""
{_SELECT} WHERE s.state = ANY (CAST(:states AS text[]))
    AND (CAST(:graph_id AS text) IS NULL OR s.graph_id = :graph_id)
    AND (CAST(:grant_id AS uuid) IS NULL OR s.grant_id = CAST(:grant_id AS uuid))
    AND s.labels @> CAST(:labels AS jsonb)
    AND (CAST(:before AS uuid) IS NULL OR s.schedule_id < CAST(:before AS uuid))
ORDER BY s.schedule_id DESC LIMIT :limit
""")


@dataclass(frozen=True, slots=True)
class Moved:
    """Where a firing leaves a schedule that goes on."""

    schedule_id: str
    position_time: datetime
    following: NextFiring
    last_slot_time: datetime | None
    remaining_actions: int | None


@dataclass(frozen=True, slots=True)
class Ended:
    """Where a firing leaves a schedule that has no slot left."""

    schedule_id: str
    position_time: datetime
    last_slot_time: datetime | None
    remaining_actions: int | None


async def now(tx: AsyncConnection) -> datetime:
    """The database's time."""
    moment: datetime = (await tx.execute(text("SELECT cogni_now()"))).scalar_one()
    return moment


async def insert(
    tx: AsyncConnection,
    *,
    schedule_id: str,
    tenant_id: str,
    request_id: str,
    content_hash: bytes,
    settings: Settings,
    paused: bool,
    following: NextFiring,
    tzdata_version: str,
    creator: str,
    moment: datetime,
) -> bool:
    """Keep a new schedule; False when the request_id was used before."""
    digest = await run_templates.keep(tx, tenant_id, settings.run)
    result = await tx.execute(
        _INSERT,
        {
            **_settings_values(settings, digest),
            "schedule_id": UUID(schedule_id),
            "tenant_id": tenant_id,
            "request_id": UUID(request_id),
            "content_hash": content_hash,
            "state": (ScheduleState.PAUSED if paused else ScheduleState.ACTIVE).value,
            "state_reason": (StateReason.REQUESTED if paused else StateReason.CREATED).value,
            "state_note": "",
            "now": moment,
            "next_slot_time": None if paused else following.slot_time,
            "next_fire_time": None if paused else following.fire_time,
            "pause_time": moment if paused else None,
            "tzdata_version": tzdata_version,
            "creator": creator,
        },
    )
    return result.rowcount == 1


async def find_request(tx: AsyncConnection, request_id: str) -> tuple[str, bytes] | None:
    """The schedule that a request_id made and the hash of its content, or None."""
    row = (
        await tx.execute(
            text("SELECT schedule_id, content_hash FROM schedules WHERE request_id = :request_id"),
            {"request_id": UUID(request_id)},
        )
    ).first()
    return None if row is None else (str(row.schedule_id), bytes(row.content_hash))


async def get(tx: AsyncConnection, schedule_id: str, *, lock: bool = False) -> Schedule | None:
    """The schedule; with `lock`, its row is the transaction's until it ends."""
    if lock:
        found = await lock_all(tx, [schedule_id])
        return found[0] if found else None
    row = (await tx.execute(_GET, {"schedule_id": UUID(schedule_id)})).mappings().first()
    return None if row is None else schedule_of(dict(row))


async def lock_all(tx: AsyncConnection, schedule_ids: Sequence[str]) -> list[Schedule]:
    """Lock several schedules in the order of their ids, so that two callers never deadlock."""
    ids = {"ids": [UUID(each) for each in schedule_ids]}
    # Read by a statement of its own: one that waited for the lock would look for the new version's
    # template among those of its old snapshot, and find no schedule at all.
    await tx.execute(_LOCK, ids)
    rows = await tx.execute(_GET_ALL, ids)
    return [schedule_of(dict(row)) for row in rows.mappings()]


async def list_page(
    tx: AsyncConnection,
    *,
    states: Sequence[ScheduleState],
    graph_id: str | None,
    grant_id: str | None,
    labels: dict[str, str],
    before: str | None,
    limit: int,
) -> list[Schedule]:
    """Schedules, newest first, that match every filter given."""
    rows = await tx.execute(
        _LIST,
        {
            "states": [state.value for state in states],
            "graph_id": graph_id,
            "grant_id": UUID(grant_id) if grant_id else None,
            "labels": json.dumps(labels),
            "before": UUID(before) if before else None,
            "limit": limit,
        },
    )
    return [schedule_of(dict(row)) for row in rows.mappings()]


async def update_settings(tx: AsyncConnection, schedule: Schedule, settings: Settings) -> None:
    """Replace what a person decided about a locked schedule, and change its etag."""
    digest = await run_templates.keep(tx, schedule.tenant_id, settings.run)
    await tx.execute(
        _UPDATE,
        {
            **_settings_values(settings, digest),
            "schedule_id": UUID(schedule.schedule_id),
        },
    )


async def reschedule(
    tx: AsyncConnection,
    schedule_id: str,
    position: datetime,
    following: NextFiring | None,
    tzdata_version: str,
) -> None:
    """Begin a locked schedule anew at a position, never behind its old one."""
    await tx.execute(
        text(
            "UPDATE schedules SET position_time = greatest(position_time, :position), "
            "next_slot_time = CAST(:next_slot AS timestamptz), "
            "next_fire_time = CAST(:next_fire AS timestamptz), tzdata_version = :version "
            "WHERE schedule_id = :schedule_id"
        ),
        {
            "schedule_id": UUID(schedule_id),
            "position": position,
            "next_slot": following.slot_time if following else None,
            "next_fire": following.fire_time if following else None,
            "version": tzdata_version,
        },
    )


async def count_kept(tx: AsyncConnection, limit: int) -> int:
    """How many schedules the tenant has that are not deleted, counted up to a limit."""
    statement = text(
        "SELECT count(*) FROM (SELECT 1 FROM schedules WHERE state <> 'DELETED' LIMIT :limit) AS s"
    )
    counted: int = (await tx.execute(statement, {"limit": limit})).scalar_one()
    return counted


async def set_state(
    tx: AsyncConnection,
    schedule_id: str,
    state: ScheduleState,
    reason: StateReason,
    note: str = "",
    following: NextFiring | None = None,
    catch_up_once: CatchUpMode | None = None,
) -> None:
    """Move a locked schedule to a state; ACTIVE needs what follows, every other state has none."""
    await tx.execute(
        _SET_STATE,
        {
            "schedule_id": UUID(schedule_id),
            "state": state.value,
            "state_reason": reason.value,
            "state_note": note,
            "next_slot_time": following.slot_time if following else None,
            "next_fire_time": following.fire_time if following else None,
            "catch_up_once": catch_up_once.value if catch_up_once else None,
        },
    )


async def claim_due(tx: AsyncConnection, limit: int) -> list[Schedule]:
    """Lock due schedules that nobody else is firing, the longest due first."""
    rows = await tx.execute(_CLAIM_DUE, {"limit": limit})
    return [schedule_of(dict(row)) for row in rows.mappings()]


async def claim_outdated(tx: AsyncConnection, tzdata_version: str, limit: int) -> list[Schedule]:
    """Lock schedules whose next slot was computed with another release of the zones."""
    rows = await tx.execute(_CLAIM_OUTDATED, {"limit": limit, "tzdata_version": tzdata_version})
    return [schedule_of(dict(row)) for row in rows.mappings()]


async def next_due_in(tx: AsyncConnection) -> timedelta | None:
    """How long until some schedule is due; None when none will be."""
    wait: timedelta | None = (await tx.execute(_NEXT_DUE)).scalar_one()
    return wait


async def move_on(tx: AsyncConnection, moved: Sequence[Moved], tzdata_version: str) -> None:
    """Advance locked schedules behind the slots that were recorded."""
    if not moved:
        return
    await tx.execute(
        _MOVE,
        {
            "ids": [UUID(each.schedule_id) for each in moved],
            "positions": [each.position_time for each in moved],
            "next_slots": [each.following.slot_time for each in moved],
            "next_fires": [each.following.fire_time for each in moved],
            "last_slots": [each.last_slot_time for each in moved],
            "remaining": [each.remaining_actions for each in moved],
            "tzdata_version": tzdata_version,
        },
    )


async def note_end(tx: AsyncConnection, ended: Ended) -> None:
    """Note where a schedule ended; `set_state` to COMPLETED must have come before."""
    await tx.execute(
        text(
            "UPDATE schedules SET position_time = :position, remaining_actions = "
            "CAST(:left AS bigint), last_slot_time = CAST(:last AS timestamptz) "
            "WHERE schedule_id = :schedule_id"
        ),
        {
            "schedule_id": UUID(ended.schedule_id),
            "position": ended.position_time,
            "left": ended.remaining_actions,
            "last": ended.last_slot_time,
        },
    )


async def give_back_action(tx: AsyncConnection, schedule_id: str) -> None:
    """Leave a locked schedule the action that one of its slots took and did not need."""
    await tx.execute(
        text(
            "UPDATE schedules SET remaining_actions = remaining_actions + 1 "
            "WHERE schedule_id = :schedule_id"
        ),
        {"schedule_id": UUID(schedule_id)},
    )


async def of_grant(tx: AsyncConnection, grant_id: str) -> list[str]:
    """The ids of the schedules under a grant that are not deleted."""
    rows = await tx.execute(
        text("SELECT schedule_id FROM schedules WHERE grant_id = :grant_id AND state <> 'DELETED'"),
        {"grant_id": UUID(grant_id)},
    )
    return [str(row.schedule_id) for row in rows]


def _settings_values(settings: Settings, digest: bytes) -> dict[str, object]:
    return {
        "display_name": settings.display_name,
        "description": settings.description,
        "labels": json.dumps(dict(settings.labels)),
        "spec": spec_json(settings.spec),
        "run_digest": digest,
        "graph_id": settings.run.graph_id,
        "grant_id": UUID(settings.run.grant_id),
        "overlap_policy": settings.overlap_policy.value,
        "catch_up_mode": settings.catch_up.mode.value,
        "catch_up_window": settings.catch_up.window,
        "catch_up_max_count": settings.catch_up.max_count,
        "remaining_actions": settings.remaining_actions,
        "pause_on_failure": settings.pause_on_failure,
    }
