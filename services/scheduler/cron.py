"""Parses five-field cron expressions, as Debian's cron reads them, into wall patterns."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from services.scheduler.patterns import DayPattern, WallPattern

_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
EXPRESSION_LENGTH_MAX = 500


class CronError(ValueError):
    """Raised with a sentence that names the field and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class CronExpression:
    """A parsed expression. `elapsed` is true when its minute or hour field starts with "*"."""

    pattern: WallPattern
    elapsed: bool


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    least: int
    greatest: int
    names: tuple[str, ...] = ()
    first_name: int = 0

    def values(self, text: str) -> frozenset[int]:
        """The numbers that a comma-separated field stands for."""
        found: set[int] = set()
        for term in text.split(","):
            found.update(self.term(term))
        return frozenset(found)

    def term(self, text: str) -> range:
        """The numbers of one term: "*", "a", "a-b", each optionally with "/step"."""
        body, slash, step_text = text.partition("/")
        step = self._step(step_text) if slash else 1
        if body == "*":
            return range(self.least, self.greatest + 1, step)
        low_text, dash, high_text = body.partition("-")
        low = self.number(low_text)
        open_end = self.greatest if slash else low
        high = self.number(high_text) if dash else open_end
        if high < low:
            raise CronError(f"{self.name} {body!r} ends before it starts")
        return range(low, high + 1, step)

    def number(self, text: str) -> int:
        """One number or name, checked against the field's bounds."""
        if text in self.names:
            return self.names.index(text) + self.first_name
        if not (text.isascii() and text.isdigit() and len(text) <= 4):
            raise CronError(f"{self.name} {text!r} is not a number{self._or_name()}")
        value = int(text)
        if not self.least <= value <= self.greatest:
            raise CronError(f"{self.name} {value} is not within {self.least}-{self.greatest}")
        return value

    def _step(self, text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) <= 4) or int(text) == 0:
            raise CronError(f"{self.name} step {text!r} is not a positive number")
        return int(text)

    def _or_name(self) -> str:
        return f" or a name like {self.names[0]}" if self.names else ""


_MINUTE = _Field("minute", 0, 59)
_HOUR = _Field("hour", 0, 23)
_DAY = _Field("day of month", 1, 31)
_MONTH = _Field("month", 1, 12, _MONTHS, 1)
_WEEKDAY = _Field("day of week", 0, 7, _WEEKDAYS, 0)


@lru_cache(maxsize=8192)
def parse_cron(expression: str) -> CronExpression:
    """Parses "minute hour day-of-month month day-of-week"; raises CronError."""
    if len(expression) > EXPRESSION_LENGTH_MAX:
        raise CronError(f"the expression is longer than {EXPRESSION_LENGTH_MAX} characters")
    parts = expression.upper().split()
    if len(parts) != 5:
        raise CronError(
            f"expected 5 fields (minute hour day-of-month month day-of-week), got {len(parts)}"
        )
    minute, hour, day, month, weekday = parts
    month_days, last_workday = _month_days(day)
    pattern = WallPattern(
        days=DayPattern(
            months=_MONTH.values(month),
            month_days=month_days,
            last_workday=last_workday,
            weekdays=_weekdays(weekday),
            either=not day.startswith("*") and not weekday.startswith("*"),
        ),
        hours=tuple(sorted(_HOUR.values(hour))),
        minutes=tuple(sorted(_MINUTE.values(minute))),
    )
    return CronExpression(pattern, elapsed=minute.startswith("*") or hour.startswith("*"))


def _month_days(text: str) -> tuple[frozenset[int] | None, bool]:
    if text == "*":
        return None, False
    days: set[int] = set()
    last_workday = False
    for term in text.split(","):
        if term == "L":
            days.add(-1)
        elif term == "LW":
            last_workday = True
        else:
            days.update(_DAY.term(term))
    # An empty set, unlike None, restricts: "LW" alone matches nothing but the last working day.
    return frozenset(days), last_workday


def _weekdays(text: str) -> frozenset[tuple[int, int]] | None:
    if text == "*":
        return None
    days: set[tuple[int, int]] = set()
    for term in text.split(","):
        if "#" in term:
            day, _, nth = term.partition("#")
            if nth not in ("1", "2", "3", "4", "5"):
                raise CronError(f"day of week {term!r} counts beyond 1-5")
            days.add((_iso(_WEEKDAY.number(day)), int(nth)))
        elif term.endswith("L"):
            days.add((_iso(_WEEKDAY.number(term[:-1])), -1))
        else:
            days.update((_iso(day), 0) for day in _WEEKDAY.term(term))
    return frozenset(days)


def _iso(cron_weekday: int) -> int:
    return cron_weekday % 7 or 7
