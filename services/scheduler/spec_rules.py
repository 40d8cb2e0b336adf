"""What a schedule's spec must satisfy."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from cogni.scheduler.v1 import spec_pb2 as pb
from services.runtime.errors import Violation
from services.runtime.validation import (
    custom,
    duration,
    each,
    enum_known,
    enum_set,
    integer,
    items,
    nested,
    one_of_set,
    required,
    text,
    timestamp,
)
from services.scheduler.cron import CronError, parse_cron
from services.scheduler.rrule import RruleError, parse_rrule
from services.scheduler.zones import zone_names

EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
LATEST = datetime(2200, 1, 1, tzinfo=UTC)
_RANGES = {
    "years": (1970, 2200),
    "months": (1, 12),
    "days_of_month": (-31, 31),
    "hours": (0, 23),
    "minutes": (0, 59),
    "seconds": (0, 59),
}
_RANGES_MAX = 100


def _expressions(message: pb.CronRecurrence) -> Iterator[Violation]:
    for index, expression in enumerate(message.expressions):
        try:
            parse_cron(expression)
        except CronError as error:
            yield Violation(f"expressions[{index}]", str(error))


def _whole_seconds(message: pb.IntervalRecurrence) -> Iterator[Violation]:
    if message.every.nanos:
        yield Violation("every", "must be whole seconds")
    if message.anchor_time.nanos:
        yield Violation("anchor_time", "must be a whole second")


def _ranges(message: pb.CalendarRule) -> Iterator[Violation]:
    for field, (least, greatest) in _RANGES.items():
        ranges = getattr(message, field)
        if len(ranges) > _RANGES_MAX:
            yield Violation(field, f"must have at most {_RANGES_MAX} items, has {len(ranges)}")
        for index, each_range in enumerate(ranges[:_RANGES_MAX]):
            wrong = _wrong_range(each_range, least, greatest, zero=field != "days_of_month")
            if wrong is not None:
                yield Violation(f"{field}[{index}]", wrong)


def _wrong_range(message: pb.IntRange, least: int, greatest: int, *, zero: bool) -> str | None:
    end = message.end if message.HasField("end") else message.start
    if not (least <= message.start <= greatest and least <= end <= greatest):
        return f"must lie within {least} and {greatest}"
    if end < message.start:
        return "must not end before it starts"
    if not zero and message.start <= 0 <= end:
        return "must not contain 0: days count from 1, or from -1 backwards"
    if message.HasField("step") and message.step < 1:
        return "must have a step of at least 1"
    return None


def _zone(message: pb.ScheduleSpec) -> Iterator[Violation]:
    if message.time_zone and message.time_zone not in zone_names():
        yield Violation(
            "time_zone", "must be an IANA time zone such as Europe/Berlin (or empty for UTC)"
        )


def _bounds(message: pb.ScheduleSpec) -> Iterator[Violation]:
    if not (message.HasField("start_time") and message.HasField("end_time")):
        return
    start, end = message.start_time, message.end_time
    if (end.seconds, end.nanos) <= (start.seconds, start.nanos):
        yield Violation("end_time", "must be after start_time")


def _window(message: pb.TimeWindow) -> Iterator[Violation]:
    start, end = message.start_time, message.end_time
    if (end.seconds, end.nanos) <= (start.seconds, start.nanos):
        yield Violation("end_time", "must be after start_time")


def _rrule(message: pb.ScheduleSpec) -> Iterator[Violation]:
    if message.WhichOneof("recurrence") != "rrule":
        return
    if not message.HasField("start_time"):
        yield Violation("start_time", "is required with an rrule, which begins there")
    try:
        # Any beginning will do: what is wrong with a rule does not depend on it.
        parse_rrule(message.rrule.rule, datetime(2000, 1, 1))  # noqa: DTZ001 - a wall time
    except RruleError as error:
        yield Violation("rrule.rule", str(error))


_CALENDAR_RULE = (
    custom(_ranges),
    items("weekdays", max_items=50),
    each("weekdays", enum_set("weekday"), integer("nth", min=-5, max=5)),
    text("comment", max_length=200),
)
WINDOW = (
    required("start_time"),
    required("end_time"),
    timestamp("start_time", min=EARLIEST, max=LATEST),
    timestamp("end_time", min=EARLIEST, max=LATEST),
    custom(_window),
)
SPEC = (
    one_of_set("recurrence"),
    custom(_rrule),
    nested("cron", items("expressions", min_items=1, max_items=10), custom(_expressions)),
    nested(
        "interval",
        required("every"),
        duration("every", min=timedelta(seconds=1), max=timedelta(days=3660)),
        timestamp("anchor_time", min=EARLIEST, max=LATEST),
        custom(_whole_seconds),
    ),
    nested("calendar", items("rules", min_items=1, max_items=50), each("rules", *_CALENDAR_RULE)),
    items("exclusions", max_items=100),
    each(
        "exclusions",
        one_of_set("excluded"),
        nested("rule", *_CALENDAR_RULE),
        nested(
            "window",
            *WINDOW,
        ),
    ),
    custom(_zone),
    nested("dst_policy", enum_known("gap"), enum_known("fold")),
    duration("jitter", min=timedelta(0), max=timedelta(hours=24)),
    timestamp("start_time", min=EARLIEST, max=LATEST),
    timestamp("end_time", min=EARLIEST, max=LATEST),
    custom(_bounds),
)
