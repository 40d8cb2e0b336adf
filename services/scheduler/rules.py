"""What every request must satisfy before a use case sees it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from cogni.scheduler.v1 import schedule_pb2
from cogni.scheduler.v1 import scheduler_service_pb2 as pb
from services.runtime.errors import Violation
from services.runtime.validation import (
    Rule,
    RuleTable,
    amount,
    custom,
    duration,
    each,
    enum_known,
    integer,
    items,
    keys,
    mask,
    nested,
    one_of_set,
    page,
    required,
    struct,
    text,
    timestamp,
    uuid,
)
from services.scheduler.convert.schedule import UPDATABLE
from services.scheduler.schedules import CATCH_UP_COUNT_MAX
from services.scheduler.spec_rules import EARLIEST, LATEST, SPEC, WINDOW

NOTE_LENGTH_MAX = 500
INPUT_BYTES_MAX = 256 * 1024
CONTEXT_BYTES_MAX = 64 * 1024
PREVIEW_MAX = 1000
WATCHED_MAX = 100
STARTS_PER_MINUTE_MAX = 6000
_NAME = r"[^\x00-\x1f\x7f]*"
_GRAPH_ID = r"[A-Za-z0-9][A-Za-z0-9._-]*"


def _labels(most: int) -> tuple[Rule, ...]:
    return (
        items("labels", max_items=most),
        keys("labels", text(max_length=63, min_length=1, pattern=_NAME)),
        each("labels", text(max_length=255, pattern=_NAME)),
    )


_RUN: dict[str, tuple[Rule, ...]] = {
    "graph_id": (required("graph_id"), text("graph_id", max_length=200, pattern=_GRAPH_ID)),
    "grant_id": (required("grant_id"), uuid("grant_id")),
    "input": (struct("input", max_bytes=INPUT_BYTES_MAX),),
    "labels": _labels(64),
    "context": (struct("context", max_bytes=CONTEXT_BYTES_MAX),),
    "revision": (text("revision", max_length=200, pattern=_NAME),),
    "limits": (
        nested(
            "limits",
            integer("max_attempts", min=1, max=20),
            duration("timeout", min=timedelta(seconds=1), max=timedelta(hours=24)),
            integer("max_steps", min=1, max=1000),
            amount("max_cost", nonnegative=True),
        ),
    ),
}
_BINDING = ("graph_id", "grant_id")
_CATCH_UP = nested(
    "catch_up",
    enum_known("mode"),
    duration("window", min=timedelta(seconds=10), max=timedelta(days=365)),
    integer("max_count", min=0, max=CATCH_UP_COUNT_MAX),
)
_BY_FIELD: dict[str, tuple[Rule, ...]] = {
    "display_name": (
        required("display_name"),
        text("display_name", max_length=200, pattern=_NAME),
    ),
    "description": (text("description", max_length=2000),),
    "labels": _labels(32),
    "spec": (required("spec"), nested("spec", *SPEC)),
    "run": (required("run"), nested("run", *(r for rules in _RUN.values() for r in rules))),
    "overlap_policy": (enum_known("overlap_policy"),),
    "catch_up": (_CATCH_UP,),
    "remaining_actions": (integer("remaining_actions", min=1),),
    "pause_on_failure": (),
    **{f"run.{name}": (nested("run", *rules),) for name, rules in _RUN.items()},
}
_CHECKS = {
    path: [rule.bind(schedule_pb2.Schedule.DESCRIPTOR) for rule in rules]
    for path, rules in _BY_FIELD.items()
}
_CREATED = tuple(rule for name in _BY_FIELD if "." not in name for rule in _BY_FIELD[name])
# What of a schedule matters to a simulation. It starts no run, so it needs no graph and no grant;
# the rest of a run is read with the schedule and must therefore be readable.
_PLAYED = (
    *(
        rule
        for name in ("spec", "overlap_policy", "catch_up", "remaining_actions")
        for rule in _BY_FIELD[name]
    ),
    nested("run", *(r for name in _RUN if name not in _BINDING for r in _RUN[name])),
)
_BACKFILL_ID = (required("backfill_id"), uuid("backfill_id"))
_SCHEDULE_ID = (required("schedule_id"), uuid("schedule_id"))
_REQUEST_ID = (required("request_id"), uuid("request_id"))
_NOTE = text("note", max_length=NOTE_LENGTH_MAX)
_ETAG = text("etag", max_length=64)


def _changed_fields(message: pb.UpdateScheduleRequest) -> Iterator[Violation]:
    """Only what the mask names is judged: the rest of the schedule is not looked at."""
    for path in message.update_mask.paths:
        for check in _CHECKS.get(path, ()):
            yield from check(message.schedule, "schedule")


_Spanned = pb.PreviewScheduleRequest | pb.ListSlotsRequest | pb.BackfillScheduleRequest


def _ends_after_start(
    message: _Spanned,
) -> Iterator[Violation]:
    if not (message.HasField("start_time") and message.HasField("end_time")):
        return
    start, end = message.start_time, message.end_time
    if (end.seconds, end.nanos) <= (start.seconds, start.nanos):
        yield Violation("end_time", "must be after start_time")


def _span() -> tuple[Rule, ...]:
    return (
        timestamp("start_time", min=EARLIEST, max=LATEST),
        timestamp("end_time", min=EARLIEST, max=LATEST),
        custom(_ends_after_start),
    )


RULES: RuleTable = {
    pb.CreateScheduleRequest: (
        *_REQUEST_ID,
        required("schedule"),
        nested("schedule", *_CREATED),
    ),
    pb.GetScheduleRequest: _SCHEDULE_ID,
    pb.ListSchedulesRequest: (
        *page(),
        enum_known("states"),
        text("graph_id", max_length=200),
        uuid("grant_id"),
        *_labels(32),
    ),
    pb.UpdateScheduleRequest: (
        required("schedule"),
        nested("schedule", *_SCHEDULE_ID, _ETAG),
        required("update_mask"),
        mask("update_mask", UPDATABLE),
        custom(_changed_fields),
    ),
    pb.DeleteScheduleRequest: (*_SCHEDULE_ID, _ETAG),
    pb.PauseScheduleRequest: (*_SCHEDULE_ID, _NOTE),
    pb.UnpauseScheduleRequest: (*_SCHEDULE_ID, _NOTE, enum_known("catch_up_mode")),
    pb.TriggerScheduleRequest: (*_REQUEST_ID, *_SCHEDULE_ID, enum_known("overlap_policy")),
    pb.PreviewScheduleRequest: (
        one_of_set("target"),
        uuid("schedule_id"),
        nested("spec", *SPEC),
        *_span(),
        integer("max_slots", min=0, max=PREVIEW_MAX),
    ),
    pb.SimulateScheduleRequest: (
        one_of_set("target"),
        uuid("schedule_id"),
        nested("schedule", *_PLAYED),
        timestamp("start_time", min=EARLIEST, max=LATEST),
        required("end_time"),
        timestamp("end_time", min=EARLIEST, max=LATEST),
        duration("run_duration", min=timedelta(milliseconds=1), max=timedelta(days=30)),
        amount("run_cost", nonnegative=True),
        items("outages", max_items=100),
        each("outages", *WINDOW),
        integer("max_slots", min=0, max=PREVIEW_MAX),
    ),
    pb.BackfillScheduleRequest: (
        *_REQUEST_ID,
        *_SCHEDULE_ID,
        required("start_time"),
        required("end_time"),
        *_span(),
        integer("starts_per_minute", min=0, max=STARTS_PER_MINUTE_MAX),
        integer("max_unfinished", min=0, max=1000),
        enum_known("overlap_policy"),
        amount("cost_cap", nonnegative=True),
    ),
    pb.GetBackfillRequest: _BACKFILL_ID,
    pb.CancelBackfillRequest: _BACKFILL_ID,
    pb.ExplainSlotRequest: (
        *_SCHEDULE_ID,
        required("scheduled_time"),
        timestamp("scheduled_time", min=EARLIEST, max=datetime(2300, 1, 1, tzinfo=UTC)),
    ),
    pb.ListSlotsRequest: (
        *_SCHEDULE_ID,
        *page(),
        enum_known("states"),
        enum_known("origins"),
        *_span(),
    ),
    pb.WatchSlotsRequest: (
        items("schedule_ids", max_items=WATCHED_MAX),
        each("schedule_ids", uuid()),
        text("cursor", max_length=1024),
    ),
}
