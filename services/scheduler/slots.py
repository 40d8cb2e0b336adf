"""The slot engine: the instants that a spec gives, a pure function of spec and zone rules."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Protocol
from zoneinfo import ZoneInfo

from services.runtime.errors import ServiceError, limit
from services.scheduler.cron import parse_cron
from services.scheduler.patterns import WallPattern
from services.scheduler.rrule import RruleError, parse_rrule
from services.scheduler.specs import (
    CalendarRecurrence,
    CronRecurrence,
    Exclusion,
    IntervalRecurrence,
    Spec,
)
from services.scheduler.wall import DstEffect, DstPolicy, instants, offsets_around
from services.scheduler.zones import load_zone

HORIZON = timedelta(days=366 * 100)
_DAY = timedelta(days=1)
_SECOND = timedelta(seconds=1)
# Around a wall time: more than the widest offset and the longest gap together.
_AROUND = timedelta(days=2)
_WINDOW_MAX = timedelta(days=7)
_WINDOW_SLOTS = 32
# How often exclusions are looked at for one slot before the schedule is given up as empty, and
# for all the slots of one search. Chosen so that a clock is not held up for long, not tuned.
_GAP_CHECKS_MAX = 50_000
_CHECKS_MAX = 200_000
_END_OF_TIME = datetime(9000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Occurrence:
    """One slot of a spec: its nominal time in UTC, and what a clock change did to it."""

    time: datetime
    effect: DstEffect = DstEffect.NONE


class WallTimes(Protocol):
    """A source of naive wall times."""

    @property
    def times_per_day(self) -> int:
        """About how many times a day has."""

    def between(self, first: datetime, last: datetime) -> Iterator[datetime]:
        """The wall times from first to last, both included."""

    def next_wall(self, first: datetime, last: datetime) -> datetime | None:
        """The first wall time from first to last, both included."""


class _Source(Protocol):
    def between(self, start: datetime, end: datetime) -> Iterator[Occurrence]: ...

    @property
    def spacing(self) -> timedelta: ...


class Slots:
    """The slots of one spec. Every answer is independent of where a search begins."""

    def __init__(self, spec: Spec) -> None:
        """Raises UnknownZoneError, CronError or RruleError for specs that no rule checked."""
        self._spec = spec
        self._zone = load_zone(spec.time_zone)
        self._source = _source(spec, self._zone)
        self._exclusions = tuple(_Excluder(each, self._zone) for each in spec.exclusions)

    @property
    def zone(self) -> ZoneInfo:
        """The zone whose wall clock the spec speaks of."""
        return self._zone

    def between(self, start: datetime, end: datetime) -> Iterator[Occurrence]:
        """The slots in [start, end), in order, lazily.

        Ends early where exclusions remove so much that the search for one more slot gives up,
        and raises LIMIT_EXCEEDED when all of the search would take too long.
        """
        low, high = self._bounded(start, end)
        checks, last = 0, 0
        while low < high:
            for found in self._source.between(low, high):
                checks += len(self._exclusions)
                until = self._excluded_until(found.time)
                if until is None:
                    last = checks
                    yield found
                    continue
                if checks - last > _GAP_CHECKS_MAX:
                    return
                if checks > _CHECKS_MAX:
                    raise _too_much_excluded()
                if until > found.time + self._source.spacing:
                    low = until
                    break
            else:
                return

    def after(self, instant: datetime, inclusive: bool = False) -> Occurrence | None:
        """The first slot after an instant, or None when there is none within HORIZON."""
        start = instant if inclusive else instant + timedelta(microseconds=1)
        return next(self.between(start, min(start + HORIZON, _END_OF_TIME)), None)

    def before(self, instant: datetime) -> Occurrence | None:
        """The last slot before an instant, or None when there is none within 40 years."""
        found = self.last(1, instant - timedelta(days=366 * 40), instant)
        return found[0] if found else None

    def last(self, count: int, start: datetime, end: datetime) -> list[Occurrence]:
        """The last `count` slots in [start, end), in order, in memory bounded by `count`.

        Fewer, the latest ones, where exclusions make the search for more too long.
        """
        found: deque[Occurrence] = deque()
        width = self._source.spacing * _WINDOW_SLOTS
        while True:
            low = max(start, end - width)
            try:
                found = deque(self.between(low, end), maxlen=count)
            except ServiceError:
                # The clock must not be held back by history; without any slot it must not go on.
                if not found:
                    raise
                return list(found)
            if len(found) == count or low <= start:
                return list(found)
            width *= 4

    def recurs_at(self, instant: datetime) -> bool:
        """Whether the bare recurrence has a time there, whatever excludes or bounds it."""
        return any(self._source.between(instant, instant + timedelta(microseconds=1)))

    def excludes(self, instant: datetime) -> bool:
        """Whether an exclusion covers the instant."""
        return self._excluded_until(instant) is not None

    def _bounded(self, start: datetime, end: datetime) -> tuple[datetime, datetime]:
        if self._spec.start_time is not None:
            start = max(start, self._spec.start_time)
        if self._spec.end_time is not None:
            end = min(end, self._spec.end_time)
        return start, end

    def _excluded_until(self, instant: datetime) -> datetime | None:
        latest = None
        for exclusion in self._exclusions:
            until = exclusion.until(instant)
            if until is not None and (latest is None or until > latest):
                latest = until
        return latest


def jitter_share(schedule_id: str) -> float:
    """A schedule's fixed share of its jitter, in [0, 1), spread evenly over schedules.

    It comes from the id alone, not from the slot: the runs of one schedule keep their distance.
    """
    digest = hashlib.sha256(schedule_id.encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


def fire_time(slot: datetime, following: datetime | None, spec: Spec, share: float) -> datetime:
    """When a slot fires: nominal time and the share of the jitter, before the next slot."""
    room = spec.jitter if following is None else min(spec.jitter, following - slot)
    return slot + timedelta(seconds=int(room.total_seconds() * share))


def _too_much_excluded() -> ServiceError:
    return limit(
        "spec.exclusions",
        f"one search looks at exclusions at most {_CHECKS_MAX} times; choose a shorter span, or "
        "say in the recurrence what the exclusions leave.",
    )


class _IntervalSource:
    def __init__(self, recurrence: IntervalRecurrence) -> None:
        self._recurrence = recurrence

    @property
    def spacing(self) -> timedelta:
        return self._recurrence.every

    def between(self, start: datetime, end: datetime) -> Iterator[Occurrence]:
        every, anchor = self._recurrence.every, self._recurrence.anchor_time
        current = anchor - ((anchor - start) // every) * every
        while current < end:
            yield Occurrence(current)
            current += every


class _WallSource:
    """Wall times mapped to instants, window by window."""

    def __init__(self, times: WallTimes, zone: ZoneInfo, policy: DstPolicy) -> None:
        self._times = times
        self._zone = zone
        self._policy = policy

    @property
    def spacing(self) -> timedelta:
        # Several parts may name the same second; no two slots are closer than one.
        return max(_SECOND, _DAY / max(1, self._times.times_per_day))

    def between(self, start: datetime, end: datetime) -> Iterator[Occurrence]:
        width = min(_WINDOW_MAX, self.spacing)
        while start < end:
            stop = min(start + width, end)
            found = self._window(start, stop)
            yield from found
            start = stop if found else self._skip(stop, end)
            width = min(_WINDOW_MAX, self.spacing * _WINDOW_SLOTS, width * 2)

    def _window(self, start: datetime, end: datetime) -> list[Occurrence]:
        least, greatest = offsets_around(start, end, self._zone)
        first = start.replace(tzinfo=None) + least
        last = end.replace(tzinfo=None) + greatest
        found: dict[datetime, DstEffect] = {}
        for wall in self._times.between(first, last):
            for instant, effect in instants(wall, self._zone, self._policy):
                # A time that is really on the clock wins over one that was moved onto it.
                if start <= instant < end and found.get(instant) is not DstEffect.NONE:
                    found[instant] = effect
        return [Occurrence(time, found[time]) for time in sorted(found)]

    def _skip(self, start: datetime, end: datetime) -> datetime:
        """Where to go on after an empty window: the earliest instant the next wall time may have.

        To the moment: a walk towards a dense day costs thousands of empty windows.
        """
        least, _ = offsets_around(start, start + _AROUND, self._zone)
        limit = min(end + _AROUND, _END_OF_TIME).replace(tzinfo=None)
        wall = self._times.next_wall(start.replace(tzinfo=None) + least, limit)
        if wall is None:
            return end
        near = wall.replace(tzinfo=UTC)
        _, greatest = offsets_around(near - _AROUND, near + _AROUND, self._zone)
        return max(start, near - greatest)


class _Union:
    """Several sources of wall times as one; order does not matter to the window."""

    def __init__(self, parts: tuple[WallTimes, ...]) -> None:
        self._parts = parts

    @property
    def times_per_day(self) -> int:
        return sum(part.times_per_day for part in self._parts)

    def between(self, first: datetime, last: datetime) -> Iterator[datetime]:
        for part in self._parts:
            yield from part.between(first, last)

    def next_wall(self, first: datetime, last: datetime) -> datetime | None:
        found = (part.next_wall(first, last) for part in self._parts)
        return min((wall for wall in found if wall is not None), default=None)


class _Excluder:
    def __init__(self, exclusion: Exclusion, zone: ZoneInfo) -> None:
        self._window = exclusion.window
        self._pattern = exclusion.rule.excluding() if exclusion.rule else None
        self._whole_days = exclusion.rule is not None and exclusion.rule.whole_days
        self._zone = zone

    def until(self, instant: datetime) -> datetime | None:
        """An instant up to which everything is excluded, or None when `instant` is not."""
        if self._window is not None:
            inside = self._window.start_time <= instant < self._window.end_time
            return self._window.end_time if inside else None
        assert self._pattern is not None
        wall = instant.astimezone(self._zone).replace(tzinfo=None)
        if not self._pattern.matches(wall):
            return None
        if not self._whole_days:
            # A clock change would tear the run apart; around one, slots are judged one by one.
            until = instant + (self._pattern.run_end(wall) - wall)
            straight = (
                until.astimezone(self._zone).utcoffset()
                == instant.astimezone(self._zone).utcoffset()
            )
            return until if straight else instant
        return self._next_midnight(wall.date() + _DAY)

    def _next_midnight(self, day: date) -> datetime:
        midnight = datetime(day.year, day.month, day.day, tzinfo=self._zone)
        return min(midnight.astimezone(UTC), midnight.replace(fold=1).astimezone(UTC))


def _source(spec: Spec, zone: ZoneInfo) -> _Source:
    recurrence = spec.recurrence
    if isinstance(recurrence, IntervalRecurrence):
        return _IntervalSource(recurrence)
    times: WallTimes
    if isinstance(recurrence, CronRecurrence):
        times = _union(tuple(parse_cron(each).pattern for each in recurrence.expressions))
    elif isinstance(recurrence, CalendarRecurrence):
        times = _union(tuple(rule.recurring() for rule in recurrence.rules))
    else:
        if spec.start_time is None:
            raise RruleError("an rrule begins at start_time, and there is none")
        times = parse_rrule(recurrence.rule, spec.start_time.astimezone(zone).replace(tzinfo=None))
    return _WallSource(times, zone, spec.dst_policy)


def _union(patterns: tuple[WallPattern, ...]) -> WallTimes:
    return patterns[0] if len(patterns) == 1 else _Union(patterns)
