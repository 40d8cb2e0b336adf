"""Independent answers to "when does this fire": brute force over minutes, and cronsim."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim

from services.scheduler.specs import CronRecurrence, Spec
from services.scheduler.wall import DstPolicy, FoldPolicy, GapPolicy

MINUTE = timedelta(minutes=1)
Minute = tuple[datetime, datetime]


def cron(expression: str, zone: str, gap: GapPolicy, fold: FoldPolicy) -> Spec:
    """A spec with nothing but one cron expression."""
    return Spec(CronRecurrence((expression,)), DstPolicy(gap, fold), zone)


def transitions(zone: ZoneInfo, start: datetime, end: datetime) -> Iterator[datetime]:
    """The instants at which the zone's offset changes, found by a half-day walk and bisection."""
    low = start
    while low < end:
        high = low + timedelta(hours=12)
        if low.astimezone(zone).utcoffset() != high.astimezone(zone).utcoffset():
            left, right = low, high
            while right - left > timedelta(seconds=1):
                middle = left + (right - left) / 2
                middle = middle.replace(microsecond=0)
                if middle.astimezone(zone).utcoffset() == left.astimezone(zone).utcoffset():
                    left = middle
                else:
                    right = middle
            yield right
        low = high


def local_minutes(zone: ZoneInfo, start: datetime, end: datetime) -> list[Minute]:
    """Every UTC minute of a span beside what the local clock shows."""
    minutes = []
    instant = start
    while instant < end:
        minutes.append((instant, instant.astimezone(zone)))
        instant += MINUTE
    return minutes


def literal(expression: str, minutes: list[Minute]) -> list[datetime]:
    """Every minute whose local clock matches: gaps are skipped, folds happen twice."""
    sim = CronSim(expression, datetime(2026, 1, 1, tzinfo=UTC))
    return [
        instant
        for instant, local in minutes
        if local.second == 0
        and local.minute in sim.minutes
        and local.hour in sim.hours
        and local.month in sim.months
        and sim.match_day(local.date())
    ]


def debian(expression: str, zone: ZoneInfo, start: datetime, end: datetime) -> list[datetime]:
    """What cronsim says, begun a day before so that no fold lies under its start."""
    found: list[datetime] = []
    for local in CronSim(expression, (start - timedelta(days=1)).astimezone(zone)):
        instant = local.astimezone(UTC)
        if instant >= end:
            return found
        if instant >= start and (not found or instant > found[-1]):
            found.append(instant)
    return found
