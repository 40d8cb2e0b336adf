"""RFC 5545 recurrence rules as sources of wall times, without a walk from their beginning."""

from __future__ import annotations

from bisect import bisect_left
from calendar import monthrange
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from itertools import islice

_DAY = timedelta(days=1)
_SECOND = timedelta(seconds=1)
RULE_LENGTH_MAX = 1000
COUNT_MAX = 10_000
INTERVAL_MAX = 1000
# Years without an occurrence after which COUNT takes the rule to have ended.
_EMPTY_YEARS_MAX = 100
# COUNT is not followed further: nobody can ask for a slot after the year 2300.
_COUNTED_YEAR_MAX = 2310
_WEEKDAYS = {"MO": 1, "TU": 2, "WE": 3, "TH": 4, "FR": 5, "SA": 6, "SU": 7}
_NUMBERS = {
    "BYMONTH": (1, 12),
    "BYMONTHDAY": (-31, 31),
    "BYYEARDAY": (-366, 366),
    "BYHOUR": (0, 23),
    "BYMINUTE": (0, 59),
    "BYSECOND": (0, 59),
    "BYSETPOS": (-366, 366),
}
_SIGNED = ("BYMONTHDAY", "BYYEARDAY", "BYSETPOS")


class RruleError(ValueError):
    """Raised with a sentence that names the part and what is wrong with it."""


class Frequency(StrEnum):
    """The length of a rule's period."""

    YEARLY = "YEARLY"
    MONTHLY = "MONTHLY"
    WEEKLY = "WEEKLY"
    DAILY = "DAILY"


@dataclass(frozen=True, slots=True)
class Rrule:
    """A parsed rule, its gaps filled from the wall time at which it begins."""

    start: datetime
    frequency: Frequency
    interval: int
    count: int | None
    week_start: int
    months: frozenset[int]
    month_days: frozenset[int]
    year_days: frozenset[int]
    weekdays: frozenset[tuple[int, int]]
    positions: tuple[int, ...]
    hours: tuple[int, ...]
    minutes: tuple[int, ...]
    seconds: tuple[int, ...]

    @property
    def times_per_day(self) -> int:
        """How many times a matching day has, at most."""
        return len(self.hours) * len(self.minutes) * len(self.seconds)

    def between(self, first: datetime, last: datetime) -> Iterator[datetime]:
        """The wall times from first to last, both included, in order."""
        end = min(last, last_wall(self)) if self.count is not None else last
        for period in self._periods(first.date()):
            if self._first_day(period) > end.date():
                return
            for wall in self._walls(days_of(self, period), first):
                if wall > end:
                    return
                yield wall

    def next_wall(self, first: datetime, last: datetime) -> datetime | None:
        """The first wall time from first to last, both included."""
        return next(self.between(first, last), None)

    def all(self) -> Iterator[datetime]:
        """Every wall time from the beginning, COUNT aside; ends when nothing comes any more."""
        year = self.start.year
        for period in self._periods(self.start.date()):
            for wall in self._walls(tuple(self.days(period)), self.start):
                year = wall.year
                yield wall
            reached = self._first_day(period).year
            if reached > year + _EMPTY_YEARS_MAX or reached > _COUNTED_YEAR_MAX:
                return

    def _walls(self, days: tuple[date, ...], first: datetime) -> Iterator[datetime]:
        """The wall times on a period's days, none before `first` or before the rule begins.

        Places in the period are counted instead of its times: a year can have 31 million.
        """
        first = max(first, self.start)
        place = bisect_left(days, first.date())
        low = place * self.times_per_day
        if place < len(days) and days[place] == first.date():
            low += self._times_before(first)
        total = len(days) * self.times_per_day
        places: Iterable[int] = range(low, total)
        if self.positions:
            chosen = {n - 1 if n > 0 else total + n for n in self.positions}
            places = sorted(place for place in chosen if low <= place < total)
        for each in places:
            day, time = divmod(each, self.times_per_day)
            time, second = divmod(time, len(self.seconds))
            hour, minute = divmod(time, len(self.minutes))
            on = days[day]
            yield datetime(  # noqa: DTZ001 - wall times are naive
                on.year,
                on.month,
                on.day,
                self.hours[hour],
                self.minutes[minute],
                self.seconds[second],
            )

    def _times_before(self, wall: datetime) -> int:
        """How many times of a day come before a wall time's."""
        hours = bisect_left(self.hours, wall.hour)
        minutes = seconds = 0
        if wall.hour in self.hours:
            minutes = bisect_left(self.minutes, wall.minute)
            if wall.minute in self.minutes:
                seconds = bisect_left(self.seconds, wall.second + (wall.microsecond > 0))
        return (hours * len(self.minutes) + minutes) * len(self.seconds) + seconds

    def _periods(self, day: date) -> Iterator[int]:
        """The numbers of the rule's periods from the one with `day` on; 0 is the first."""
        number = max(0, self._number(day))
        number += -number % self.interval
        while self._first_day_or_none(number) is not None:
            yield number
            number += self.interval

    def _number(self, day: date) -> int:
        match self.frequency:
            case Frequency.YEARLY:
                return day.year - self.start.year
            case Frequency.MONTHLY:
                return (day.year - self.start.year) * 12 + day.month - self.start.month
            case Frequency.WEEKLY:
                return (day - self._week_of(self.start.date())).days // 7
            case Frequency.DAILY:
                return (day - self.start.date()).days

    def _first_day(self, period: int) -> date:
        match self.frequency:
            case Frequency.YEARLY:
                return date(self.start.year + period, 1, 1)
            case Frequency.MONTHLY:
                years, month = divmod(self.start.month - 1 + period, 12)
                return date(self.start.year + years, month + 1, 1)
            case Frequency.WEEKLY:
                return self._week_of(self.start.date()) + period * 7 * _DAY
            case Frequency.DAILY:
                return self.start.date() + period * _DAY

    def _first_day_or_none(self, period: int) -> date | None:
        try:
            return self._first_day(period)
        except (OverflowError, ValueError):
            # Beyond the year 9999.
            return None

    def _week_of(self, day: date) -> date:
        return day - ((day.isoweekday() - self.week_start) % 7) * _DAY

    def days(self, period: int) -> list[date]:
        """The matching days of a period."""
        first = self._first_day(period)
        length = {Frequency.WEEKLY: 7, Frequency.DAILY: 1}.get(self.frequency, 0)
        if self.frequency is Frequency.YEARLY:
            length = (date(first.year, 12, 31) - first).days + 1
        elif self.frequency is Frequency.MONTHLY:
            length = monthrange(first.year, first.month)[1]
        return [day for day in (first + n * _DAY for n in range(length)) if self._matches(day)]

    def _matches(self, day: date) -> bool:
        if self.months and day.month not in self.months:
            return False
        length = monthrange(day.year, day.month)[1]
        if self.month_days and self.month_days.isdisjoint((day.day, day.day - length - 1)):
            return False
        year_day = day.timetuple().tm_yday
        year_length = 366 if monthrange(day.year, 2)[1] == 29 else 365
        if self.year_days and self.year_days.isdisjoint((year_day, year_day - year_length - 1)):
            return False
        return not self.weekdays or self._weekday_matches(
            day, (day.day, length) if self._within_month else (year_day, year_length)
        )

    @property
    def _within_month(self) -> bool:
        """Whether "the second Friday" is that of the month, and not of the year."""
        return self.frequency is Frequency.MONTHLY or bool(self.months)

    def _weekday_matches(self, day: date, place: tuple[int, int]) -> bool:
        number, length = place
        weekday = day.isoweekday()
        from_start, from_end = (number + 6) // 7, -((length - number) // 7 + 1)
        return not self.weekdays.isdisjoint(
            ((weekday, 0), (weekday, from_start), (weekday, from_end))
        )


@lru_cache(maxsize=4096)
def days_of(rule: Rrule, period: int) -> tuple[date, ...]:
    """The matching days of one period, in order."""
    return tuple(rule.days(period))


@lru_cache(maxsize=1024)
def last_wall(rule: Rrule) -> datetime:
    """The wall time of the last of COUNT occurrences; the beginning when there is none."""
    assert rule.count is not None
    last = rule.start - _DAY
    for last in islice(rule.all(), rule.count):  # noqa: B007 - the loop's last value is the answer
        pass
    return last


@lru_cache(maxsize=1024)
def parse_rrule(rule: str, start: datetime) -> Rrule:
    """Parses the value of an RRULE that begins at a naive wall time; raises RruleError."""
    parts = _parts(rule)
    frequency = _frequency(parts.pop("FREQ", None))
    interval = _number("INTERVAL", parts.pop("INTERVAL", "1"), 1, INTERVAL_MAX)
    count = parts.pop("COUNT", None)
    week_start = parts.pop("WKST", "MO")
    if week_start not in _WEEKDAYS:
        raise RruleError(f"WKST {week_start!r} is not a weekday such as MO")
    weekdays = _by_day(parts.pop("BYDAY", None), frequency)
    numbers = {name: _numbers(name, text) for name, text in parts.items()}
    _check_combination(numbers, weekdays, frequency)
    start = _whole_second(start)
    by_days = _filled_days(numbers, weekdays, frequency, start)
    return Rrule(
        start=start,
        frequency=frequency,
        interval=interval,
        count=None if count is None else _number("COUNT", count, 1, COUNT_MAX),
        week_start=_WEEKDAYS[week_start],
        months=by_days["BYMONTH"],
        month_days=by_days["BYMONTHDAY"],
        year_days=numbers.get("BYYEARDAY", frozenset()),
        weekdays=weekdays or frozenset((day, 0) for day in by_days["WEEKDAY"]),
        positions=tuple(sorted(numbers.get("BYSETPOS", ()))),
        hours=_given(numbers, "BYHOUR", start.hour),
        minutes=_given(numbers, "BYMINUTE", start.minute),
        seconds=_given(numbers, "BYSECOND", start.second),
    )


def _parts(rule: str) -> dict[str, str]:
    if len(rule) > RULE_LENGTH_MAX:
        raise RruleError(f"the rule is longer than {RULE_LENGTH_MAX} characters")
    parts: dict[str, str] = {}
    for part in rule.upper().removeprefix("RRULE:").split(";"):
        name, equals, value = part.partition("=")
        if not equals or not value:
            raise RruleError(f"{part!r} is not of the form NAME=VALUE")
        if name in parts:
            raise RruleError(f"{name} is given twice")
        if name == "UNTIL":
            raise RruleError("UNTIL belongs into the spec's end_time")
        if name not in _NUMBERS and name not in ("FREQ", "INTERVAL", "COUNT", "WKST", "BYDAY"):
            raise RruleError(f"{name} is not supported")
        parts[name] = value
    return parts


def _whole_second(start: datetime) -> datetime:
    """The first whole second from `start` on: one before it would not belong to the rule."""
    second = start.replace(microsecond=0)
    try:
        return second + _SECOND if start.microsecond else second
    except OverflowError:
        return second  # The last second there is.


def _frequency(text: str | None) -> Frequency:
    if text is None:
        raise RruleError("FREQ is required")
    if text not in Frequency.__members__:
        raise RruleError(f"FREQ {text!r} is not one of {', '.join(Frequency)}")
    return Frequency(text)


def _number(name: str, text: str, least: int, greatest: int) -> int:
    digits = text.removeprefix("+").removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 6):
        raise RruleError(f"{name} {text!r} is not a number")
    value = int(text)
    if not least <= value <= greatest or (value == 0 and name in _SIGNED):
        raise RruleError(f"{name} {value} is not within {least} to {greatest}, 0 aside")
    return value


def _numbers(name: str, text: str) -> frozenset[int]:
    least, greatest = _NUMBERS[name]
    return frozenset(_number(name, each, least, greatest) for each in text.split(","))


def _by_day(text: str | None, frequency: Frequency) -> frozenset[tuple[int, int]]:
    days = set()
    for each in text.split(",") if text else ():
        name, nth_text = each[-2:], each[:-2]
        if name not in _WEEKDAYS:
            raise RruleError(f"BYDAY {each!r} does not end in a weekday such as MO")
        nth = _number("BYDAY", nth_text, -53, 53) if nth_text else 0
        if nth_text and (nth == 0 or frequency not in (Frequency.YEARLY, Frequency.MONTHLY)):
            raise RruleError(f"BYDAY {each!r} may be numbered in MONTHLY and YEARLY only, from 1")
        days.add((_WEEKDAYS[name], nth))
    return frozenset(days)


def _check_combination(
    numbers: dict[str, frozenset[int]],
    weekdays: frozenset[tuple[int, int]],
    frequency: Frequency,
) -> None:
    if "BYYEARDAY" in numbers and frequency is not Frequency.YEARLY:
        raise RruleError("BYYEARDAY goes with FREQ=YEARLY only")
    if "BYMONTHDAY" in numbers and frequency is Frequency.WEEKLY:
        raise RruleError("BYMONTHDAY does not go with FREQ=WEEKLY")
    if set(numbers) == {"BYSETPOS"} and not weekdays:
        raise RruleError("BYSETPOS needs another BY part to choose from")


def _filled_days(
    numbers: dict[str, frozenset[int]],
    weekdays: frozenset[tuple[int, int]],
    frequency: Frequency,
    start: datetime,
) -> dict[str, frozenset[int]]:
    """The days that a rule names, or that its beginning stands for when it names none."""
    months = numbers.get("BYMONTH", frozenset())
    month_days = numbers.get("BYMONTHDAY", frozenset())
    weekday: frozenset[int] = frozenset()
    if not (month_days or weekdays or "BYYEARDAY" in numbers):
        if frequency is Frequency.YEARLY:
            months = months or frozenset({start.month})
        if frequency in (Frequency.YEARLY, Frequency.MONTHLY):
            month_days = frozenset({start.day})
        if frequency is Frequency.WEEKLY:
            weekday = frozenset({start.isoweekday()})
    return {"BYMONTH": months, "BYMONTHDAY": month_days, "WEEKDAY": weekday}


def _given(numbers: dict[str, frozenset[int]], name: str, own: int) -> tuple[int, ...]:
    return tuple(sorted(numbers.get(name) or {own}))
