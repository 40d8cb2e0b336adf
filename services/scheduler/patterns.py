"""Patterns of wall-clock times: which days match, and which times of those days."""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import lru_cache

ALL_MONTHS = frozenset(range(1, 13))
LAST_YEAR = 9000
_SIXTY = 60


@dataclass(frozen=True, slots=True)
class DayPattern:
    """Which days match. None means that a field does not restrict.

    `month_days` counts from the month's end when negative (-1 is the last day). `weekdays` are
    (ISO weekday, nth) with nth 0 for every one, 1..5 from the start, -1..-5 from the end.
    `either` is Vixie cron's rule: a day matches by its day of month or by its weekday.
    """

    years: frozenset[int] | None = None
    months: frozenset[int] = ALL_MONTHS
    month_days: frozenset[int] | None = None
    last_workday: bool = False
    weekdays: frozenset[tuple[int, int]] | None = None
    either: bool = False

    def matches(self, day: date) -> bool:
        """Whether the day matches."""
        return day.day in days_of(self, day.year, day.month)


@lru_cache(maxsize=65536)
def days_of(pattern: DayPattern, year: int, month: int) -> tuple[int, ...]:
    """The matching days of a month, in order."""
    if month not in pattern.months or (pattern.years is not None and year not in pattern.years):
        return ()
    first_weekday, length = monthrange(year, month)
    return tuple(
        day
        for day in range(1, length + 1)
        if _day_matches(pattern, day, length, (first_weekday + day - 1) % 7 + 1)
    )


def _day_matches(pattern: DayPattern, day: int, length: int, weekday: int) -> bool:
    by_weekday = pattern.weekdays is None or _weekday_matches(
        pattern.weekdays, day, length, weekday
    )
    by_day = _month_day_matches(pattern, day, length, weekday)
    return (by_day or by_weekday) if pattern.either else (by_day and by_weekday)


def _month_day_matches(pattern: DayPattern, day: int, length: int, weekday: int) -> bool:
    if pattern.last_workday and _is_last_workday(day, length, weekday):
        return True
    if pattern.month_days is None:
        return not pattern.last_workday
    return day in pattern.month_days or day - length - 1 in pattern.month_days


def _is_last_workday(day: int, length: int, weekday: int) -> bool:
    left = length - day
    return (weekday <= 5 and left == 0) or (weekday == 5 and left <= 2)


def _weekday_matches(
    weekdays: frozenset[tuple[int, int]], day: int, length: int, weekday: int
) -> bool:
    from_start = (day + 6) // 7
    from_end = -((length - day) // 7 + 1)
    return not weekdays.isdisjoint(((weekday, 0), (weekday, from_start), (weekday, from_end)))


@lru_cache(maxsize=4096)
def _run_end(numbers: tuple[int, ...], number: int) -> int:
    """The first number after `number` that is missing."""
    while number in numbers:
        number += 1
    return number


@dataclass(frozen=True, slots=True)
class WallPattern:
    """Matching days, and the times at which each of them matches."""

    days: DayPattern
    hours: tuple[int, ...]
    minutes: tuple[int, ...]
    seconds: tuple[int, ...] = (0,)

    @property
    def times_per_day(self) -> int:
        """How many times a matching day has."""
        return len(self.hours) * len(self.minutes) * len(self.seconds)

    def matches(self, wall: datetime) -> bool:
        """Whether a wall time matches, to the second."""
        return (
            wall.hour in self.hours
            and wall.minute in self.minutes
            and wall.second in self.seconds
            and self.days.matches(wall.date())
        )

    def run_end(self, wall: datetime) -> datetime:
        """An end, in its day, of the matching times around a matching wall time.

        Whole hours, else whole minutes, are passed over at once; a run of seconds is not.
        """
        if len(self.seconds) < _SIXTY:
            return wall
        hour = wall.replace(minute=0, second=0, microsecond=0)
        if len(self.minutes) < _SIXTY:
            return hour + timedelta(minutes=_run_end(self.minutes, wall.minute))
        return hour + timedelta(hours=_run_end(self.hours, wall.hour) - wall.hour)

    def between(self, first: datetime, last: datetime) -> Iterator[datetime]:
        """The matching wall times from first to last, both included, in order."""
        day = self.next_day(first.date(), last.date())
        while day is not None:
            midnight = datetime(day.year, day.month, day.day)  # noqa: DTZ001 - wall times are naive
            low = max(0, -((midnight - first) // timedelta(seconds=1)))
            high = min(86399, (last - midnight) // timedelta(seconds=1))
            for second in self._seconds_of_day(low, high):
                yield midnight + timedelta(seconds=second)
            day = self.next_day(day + timedelta(days=1), last.date())

    def next_wall(self, first: datetime, last: datetime) -> datetime | None:
        """The first matching wall time from first to last, both included."""
        return next(self.between(first, last), None)

    def next_day(self, day: date, last: date) -> date | None:
        """The first matching day from `day` to `last`, both included."""
        year, month, least = day.year, day.month, day.day
        while (year, month) <= (last.year, last.month):
            for candidate in days_of(self.days, year, month):
                if candidate >= least:
                    found = date(year, month, candidate)
                    return found if found <= last else None
            year, month, least = (year, month + 1, 1) if month < 12 else (year + 1, 1, 1)
        return None

    def _seconds_of_day(self, low: int, high: int) -> Iterator[int]:
        for hour in self.hours:
            if hour * 3600 + 3599 < low:
                continue
            if hour * 3600 > high:
                return
            for minute in self.minutes:
                base = hour * 3600 + minute * 60
                if base + 59 < low:
                    continue
                if base > high:
                    return
                for second in self.seconds:
                    if low <= base + second <= high:
                        yield base + second
