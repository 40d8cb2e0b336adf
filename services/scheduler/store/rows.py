"""Turns database rows into schedules and slots, and values into what the columns hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from services.scheduler.schedules import (
    CatchUpMode,
    CatchUpPolicy,
    Counts,
    OverlapPolicy,
    RunTemplate,
    Schedule,
    ScheduleState,
    Settings,
    StateReason,
)
from services.scheduler.slot_records import (
    SlotKey,
    SlotOrigin,
    SlotReason,
    SlotRecord,
    SlotState,
)
from services.scheduler.specs import Spec

_SPEC = TypeAdapter(Spec)
_RUN = TypeAdapter(RunTemplate)

SLOT_COLUMNS = (
    "schedule_id, scheduled_time, tenant_id, fire_time, state, reason, note, origin, "
    "overlap_policy, decided, run_id, run_state, run_finished, backfill_id, attempts, "
    "create_time, start_time, state_time"
)


def spec_json(spec: Spec) -> str:
    """The spec as JSON text."""
    return _SPEC.dump_json(spec).decode()


def spec_from_json(text: str) -> Spec:
    """The spec of its JSON text."""
    return _SPEC.validate_json(text)


def run_json(run: RunTemplate) -> str:
    """The run template as JSON text, the same text for equal templates."""
    plain = _RUN.dump_python(run, mode="json")
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def run_from_json(text: str) -> RunTemplate:
    """The run template of its JSON text."""
    return _RUN.validate_json(text)


def settings_plain(settings: Settings) -> dict[str, Any]:
    """Settings as plain JSON values, for hashing a request's content."""
    return _settings().dump_python(settings, mode="json")  # type: ignore[no-any-return]


@cache
def _settings() -> TypeAdapter[Settings]:
    """Made when the first request is hashed and kept: making it takes longer than the request."""
    return TypeAdapter(Settings)


def schedule_of(row: Mapping[str, Any]) -> Schedule:
    """A schedule from a row of schedules joined with its template."""
    settings = Settings(
        display_name=row["display_name"],
        description=row["description"],
        labels=json.loads(row["labels"]),
        spec=spec_from_json(row["spec"]),
        run=run_from_json(row["template"]),
        overlap_policy=OverlapPolicy(row["overlap_policy"]),
        catch_up=CatchUpPolicy(
            CatchUpMode(row["catch_up_mode"]), row["catch_up_window"], row["catch_up_max_count"]
        ),
        remaining_actions=row["remaining_actions"],
        pause_on_failure=row["pause_on_failure"],
    )
    once = row["catch_up_once"]
    return Schedule(
        schedule_id=str(row["schedule_id"]),
        tenant_id=row["tenant_id"],
        settings=settings,
        state=ScheduleState(row["state"]),
        state_reason=StateReason(row["state_reason"]),
        state_note=row["state_note"],
        state_time=row["state_time"],
        position_time=row["position_time"],
        next_slot_time=row["next_slot_time"],
        next_fire_time=row["next_fire_time"],
        last_slot_time=row["last_slot_time"],
        pause_time=row["pause_time"],
        unpause_time=row["unpause_time"],
        catch_up_once=CatchUpMode(once) if once else None,
        tzdata_version=row["tzdata_version"],
        counts=Counts(
            row["started_count"],
            row["skipped_count"],
            row["missed_count"],
            row["failed_count"],
            row["buffered_count"],
        ),
        creator=row["creator"],
        create_time=row["create_time"],
        update_time=row["update_time"],
        revision=row["revision"],
    )


def slot_of(row: Mapping[str, Any]) -> SlotRecord:
    """A slot from a row of SLOT_COLUMNS, or from its snapshot in slot_changes."""
    return SlotRecord(
        key=SlotKey(str(row["schedule_id"]), _instant(row["scheduled_time"])),
        tenant_id=row["tenant_id"],
        fire_time=_instant(row["fire_time"]),
        state=SlotState(row["state"]),
        reason=SlotReason(row["reason"]),
        note=row["note"],
        origin=SlotOrigin(row["origin"]),
        overlap_policy=OverlapPolicy(row["overlap_policy"]),
        decided=row["decided"],
        run_id=str(row["run_id"]) if row["run_id"] else None,
        run_state=row["run_state"],
        run_finished=row["run_finished"],
        backfill_id=str(row["backfill_id"]) if row["backfill_id"] else None,
        attempts=row["attempts"],
        create_time=_instant(row["create_time"]),
        start_time=_instant(row["start_time"]) if row["start_time"] else None,
        state_time=_instant(row["state_time"]),
    )


def _instant(value: datetime | str) -> datetime:
    # A snapshot is JSON, whose times are texts.
    return datetime.fromisoformat(value) if isinstance(value, str) else value
