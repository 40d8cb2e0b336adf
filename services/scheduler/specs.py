"""What a schedule's spec says, as plain values that survive a round trip through JSON."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from pydantic import Field

from services.scheduler.cron import parse_cron
from services.scheduler.patterns import ALL_MONTHS, DayPattern, WallPattern
from services.scheduler.wall import ELAPSED, ONCE_A_DAY, DstPolicy
from services.scheduler.zones import UTC_NAME

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class IntRange:
    """Numbers from start to end, both included, every step-th."""

    start: int
    end: int
    step: int = 1

    def values(self) -> range:
        """The numbers."""
        return range(self.start, self.end + 1, self.step)


@dataclass(frozen=True, slots=True)
class WeekdayRule:
    """An ISO weekday (1 is Monday); nth 0 is every one, negative counts from the month's end."""

    weekday: int
    nth: int = 0


@dataclass(frozen=True, slots=True)
class CalendarRule:
    """A structured rule; all the fields that are given must match."""

    years: tuple[IntRange, ...] = ()
    months: tuple[IntRange, ...] = ()
    days_of_month: tuple[IntRange, ...] = ()
    weekdays: tuple[WeekdayRule, ...] = ()
    hours: tuple[IntRange, ...] = ()
    minutes: tuple[IntRange, ...] = ()
    seconds: tuple[IntRange, ...] = ()
    comment: str = ""

    def day_pattern(self) -> DayPattern:
        """The days it matches."""
        return DayPattern(
            years=_numbers(self.years) if self.years else None,
            months=_numbers(self.months) if self.months else ALL_MONTHS,
            month_days=_numbers(self.days_of_month) if self.days_of_month else None,
            weekdays=frozenset((rule.weekday, rule.nth) for rule in self.weekdays) or None,
        )

    def recurring(self) -> WallPattern:
        """As a recurrence: empty times are midnight, the full hour, the full minute."""
        return WallPattern(
            self.day_pattern(),
            _sorted(self.hours, (0,)),
            _sorted(self.minutes, (0,)),
            _sorted(self.seconds, (0,)),
        )

    def excluding(self) -> WallPattern:
        """As an exclusion: empty times are every time."""
        return WallPattern(
            self.day_pattern(),
            _sorted(self.hours, tuple(range(24))),
            _sorted(self.minutes, tuple(range(60))),
            _sorted(self.seconds, tuple(range(60))),
        )

    @property
    def whole_days(self) -> bool:
        """Whether, as an exclusion, it removes whole days."""
        return self.excluding().times_per_day == 86_400


def _numbers(ranges: tuple[IntRange, ...]) -> frozenset[int]:
    return frozenset(number for each in ranges for number in each.values())


def _sorted(ranges: tuple[IntRange, ...], empty: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(_numbers(ranges))) if ranges else empty


@dataclass(frozen=True, slots=True)
class CronRecurrence:
    """The union of cron expressions."""

    expressions: tuple[str, ...]
    kind: Literal["cron"] = "cron"


@dataclass(frozen=True, slots=True)
class IntervalRecurrence:
    """Every so often, aligned to the anchor."""

    every: timedelta
    anchor_time: datetime = EPOCH
    kind: Literal["interval"] = "interval"


@dataclass(frozen=True, slots=True)
class CalendarRecurrence:
    """The union of calendar rules."""

    rules: tuple[CalendarRule, ...]
    kind: Literal["calendar"] = "calendar"


@dataclass(frozen=True, slots=True)
class RruleRecurrence:
    """An RFC 5545 rule that begins at the spec's start_time, which is then given."""

    rule: str
    kind: Literal["rrule"] = "rrule"


AnyRecurrence = CronRecurrence | IntervalRecurrence | CalendarRecurrence | RruleRecurrence
Recurrence = Annotated[
    AnyRecurrence,
    Field(discriminator="kind"),
]


@dataclass(frozen=True, slots=True)
class TimeWindow:
    """A half-open span of time."""

    start_time: datetime
    end_time: datetime


@dataclass(frozen=True, slots=True)
class Exclusion:
    """A rule or a window in which there are no slots; one of the two is given."""

    rule: CalendarRule | None = None
    window: TimeWindow | None = None


@dataclass(frozen=True, slots=True)
class Spec:
    """When a schedule fires. Complete: nothing is left to a default."""

    recurrence: Recurrence
    dst_policy: DstPolicy
    time_zone: str = UTC_NAME
    exclusions: tuple[Exclusion, ...] = ()
    jitter: timedelta = timedelta(0)
    start_time: datetime | None = None
    end_time: datetime | None = None


def default_dst_policy(recurrence: AnyRecurrence) -> DstPolicy:
    """ELAPSED for cron expressions that all say "every so often", else ONCE_A_DAY."""
    if isinstance(recurrence, CronRecurrence) and all(
        parse_cron(expression).elapsed for expression in recurrence.expressions
    ):
        return ELAPSED
    return ONCE_A_DAY
