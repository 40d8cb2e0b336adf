"""A schedule's spec between protobuf and the domain, with every default filled in."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from cogni.scheduler.v1 import spec_pb2 as pb
from services.scheduler.convert.wire import (
    enum_member,
    enum_value,
    from_duration,
    from_timestamp,
    to_duration,
    to_timestamp,
)
from services.scheduler.specs import (
    EPOCH,
    AnyRecurrence,
    CalendarRecurrence,
    CalendarRule,
    CronRecurrence,
    Exclusion,
    IntervalRecurrence,
    IntRange,
    RruleRecurrence,
    Spec,
    TimeWindow,
    WeekdayRule,
    default_dst_policy,
)
from services.scheduler.wall import DstPolicy, FoldPolicy, GapPolicy
from services.scheduler.zones import UTC_NAME


def spec_from_proto(message: pb.ScheduleSpec) -> Spec:
    """The domain's spec of a message that the rules have passed."""
    recurrence = _recurrence(message)
    return Spec(
        recurrence=recurrence,
        dst_policy=_dst_policy(message.dst_policy, recurrence),
        time_zone=message.time_zone or UTC_NAME,
        exclusions=tuple(_exclusion(each) for each in message.exclusions),
        jitter=from_duration(message.jitter) if message.HasField("jitter") else timedelta(0),
        start_time=(from_timestamp(message.start_time) if message.HasField("start_time") else None),
        end_time=from_timestamp(message.end_time) if message.HasField("end_time") else None,
    )


def spec_to_proto(spec: Spec) -> pb.ScheduleSpec:
    """The message of a spec; nothing in it is left to a default."""
    message = pb.ScheduleSpec(
        exclusions=[_exclusion_to_proto(each) for each in spec.exclusions],
        time_zone=spec.time_zone,
        dst_policy=pb.DstPolicy(
            gap=enum_value(pb.GapPolicy, "GAP_POLICY", spec.dst_policy.gap),
            fold=enum_value(pb.FoldPolicy, "FOLD_POLICY", spec.dst_policy.fold),
        ),
        jitter=to_duration(spec.jitter) if spec.jitter else None,
        start_time=to_timestamp(spec.start_time),
        end_time=to_timestamp(spec.end_time),
    )
    _set_recurrence(message, spec.recurrence)
    return message


def rule_from_proto(message: pb.CalendarRule) -> CalendarRule:
    """One calendar rule."""
    return CalendarRule(
        years=_ranges(message.years),
        months=_ranges(message.months),
        days_of_month=_ranges(message.days_of_month),
        weekdays=tuple(WeekdayRule(each.weekday, each.nth) for each in message.weekdays),
        hours=_ranges(message.hours),
        minutes=_ranges(message.minutes),
        seconds=_ranges(message.seconds),
        comment=message.comment,
    )


def window_from_proto(message: pb.TimeWindow) -> TimeWindow:
    """A span of time."""
    return TimeWindow(from_timestamp(message.start_time), from_timestamp(message.end_time))


def _recurrence(message: pb.ScheduleSpec) -> AnyRecurrence:
    match message.WhichOneof("recurrence"):
        case "interval":
            interval = message.interval
            anchored = interval.HasField("anchor_time")
            anchor = from_timestamp(interval.anchor_time) if anchored else EPOCH
            return IntervalRecurrence(from_duration(interval.every), anchor)
        case "calendar":
            return CalendarRecurrence(tuple(rule_from_proto(r) for r in message.calendar.rules))
        case "rrule":
            return RruleRecurrence(message.rrule.rule)
        case _:
            return CronRecurrence(tuple(message.cron.expressions))


def _set_recurrence(message: pb.ScheduleSpec, recurrence: AnyRecurrence) -> None:
    match recurrence:
        case IntervalRecurrence():
            message.interval.every.FromTimedelta(recurrence.every)
            message.interval.anchor_time.FromDatetime(recurrence.anchor_time)
        case CalendarRecurrence():
            message.calendar.rules.extend(_rule_to_proto(each) for each in recurrence.rules)
        case RruleRecurrence():
            message.rrule.rule = recurrence.rule
        case CronRecurrence():
            message.cron.expressions.extend(recurrence.expressions)


def _dst_policy(message: pb.DstPolicy, recurrence: AnyRecurrence) -> DstPolicy:
    default = default_dst_policy(recurrence)
    return DstPolicy(
        enum_member(pb.GapPolicy, "GAP_POLICY", message.gap, GapPolicy) or default.gap,
        enum_member(pb.FoldPolicy, "FOLD_POLICY", message.fold, FoldPolicy) or default.fold,
    )


def _exclusion(message: pb.Exclusion) -> Exclusion:
    if message.WhichOneof("excluded") == "window":
        return Exclusion(window=window_from_proto(message.window))
    return Exclusion(rule=rule_from_proto(message.rule))


def _exclusion_to_proto(exclusion: Exclusion) -> pb.Exclusion:
    if exclusion.window is not None:
        window = exclusion.window
        return pb.Exclusion(
            window=pb.TimeWindow(
                start_time=to_timestamp(window.start_time), end_time=to_timestamp(window.end_time)
            )
        )
    assert exclusion.rule is not None
    return pb.Exclusion(rule=_rule_to_proto(exclusion.rule))


def _rule_to_proto(rule: CalendarRule) -> pb.CalendarRule:
    return pb.CalendarRule(
        years=_ranges_to_proto(rule.years),
        months=_ranges_to_proto(rule.months),
        days_of_month=_ranges_to_proto(rule.days_of_month),
        weekdays=[
            pb.WeekdayRule(weekday=pb.Weekday.ValueType(each.weekday), nth=each.nth)
            for each in rule.weekdays
        ],
        hours=_ranges_to_proto(rule.hours),
        minutes=_ranges_to_proto(rule.minutes),
        seconds=_ranges_to_proto(rule.seconds),
        comment=rule.comment,
    )


def _ranges(messages: Iterable[pb.IntRange]) -> tuple[IntRange, ...]:
    return tuple(
        IntRange(
            each.start,
            each.end if each.HasField("end") else each.start,
            each.step if each.HasField("step") else 1,
        )
        for each in messages
    )


def _ranges_to_proto(ranges: tuple[IntRange, ...]) -> list[pb.IntRange]:
    return [pb.IntRange(start=each.start, end=each.end, step=each.step) for each in ranges]
