"""Maps wall-clock times to instants by a chosen policy for gaps and folds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

_SECOND = timedelta(seconds=1)
_ZERO = timedelta(0)


class GapPolicy(StrEnum):
    """What to do with a wall time that a clock change jumps over."""

    SKIP = "SKIP"
    SHIFT = "SHIFT"
    GAP_END = "GAP_END"


class FoldPolicy(StrEnum):
    """What to do with a wall time that a clock change repeats."""

    FIRST = "FIRST"
    LAST = "LAST"
    BOTH = "BOTH"


class DstEffect(StrEnum):
    """What a clock change did to a slot."""

    NONE = "NONE"
    SHIFTED = "SHIFTED"
    MOVED_TO_GAP_END = "MOVED_TO_GAP_END"
    FIRST_OF_TWO = "FIRST_OF_TWO"
    SECOND_OF_TWO = "SECOND_OF_TWO"


@dataclass(frozen=True, slots=True)
class DstPolicy:
    """A complete answer to both kinds of clock change."""

    gap: GapPolicy
    fold: FoldPolicy


# As Debian's cron: "every so often" follows elapsed time, "at this time" happens once a day.
ELAPSED = DstPolicy(GapPolicy.SKIP, FoldPolicy.BOTH)
ONCE_A_DAY = DstPolicy(GapPolicy.GAP_END, FoldPolicy.FIRST)

Mapped = tuple[tuple[datetime, DstEffect], ...]


def instants(wall: datetime, zone: ZoneInfo, policy: DstPolicy) -> Mapped:
    """The instants (UTC) that a naive wall time stands for: none, one, or two in order."""
    early = wall.replace(tzinfo=zone).utcoffset()
    late = wall.replace(tzinfo=zone, fold=1).utcoffset()
    assert early is not None
    assert late is not None
    if early == late:
        return ((_at(wall, early), DstEffect.NONE),)
    if early < late:
        return _in_gap(wall, early, late, zone, policy.gap)
    return _in_fold(wall, early, late, policy.fold)


def _at(wall: datetime, offset: timedelta) -> datetime:
    return (wall - offset).replace(tzinfo=UTC)


def _in_gap(
    wall: datetime, before: timedelta, after: timedelta, zone: ZoneInfo, policy: GapPolicy
) -> Mapped:
    if policy is GapPolicy.SKIP:
        return ()
    if policy is GapPolicy.SHIFT:
        return ((_at(wall, before), DstEffect.SHIFTED),)
    end = _transition(_at(wall, after), _at(wall, before), zone)
    return ((end, DstEffect.MOVED_TO_GAP_END),)


def _in_fold(wall: datetime, first: timedelta, last: timedelta, policy: FoldPolicy) -> Mapped:
    earlier = (_at(wall, first), DstEffect.FIRST_OF_TWO)
    later = (_at(wall, last), DstEffect.SECOND_OF_TWO)
    if policy is FoldPolicy.FIRST:
        return (earlier,)
    if policy is FoldPolicy.LAST:
        return (later,)
    return (earlier, later)


def _transition(low: datetime, high: datetime, zone: ZoneInfo) -> datetime:
    """The first instant in (low, high] with the offset of `high`, to the second."""
    target = high.astimezone(zone).utcoffset()
    while high - low > _SECOND:
        middle = low + timedelta(seconds=(high - low) // _SECOND // 2)
        if middle.astimezone(zone).utcoffset() == target:
            high = middle
        else:
            low = middle
    return high


def offsets_around(start: datetime, end: datetime, zone: ZoneInfo) -> tuple[timedelta, timedelta]:
    """The least and the greatest UTC offset in force from a day before `start` to `end`.

    A wall time that maps into [start, end) lies between start plus the least and end plus the
    greatest: the day before counts because a gap (a whole day in Apia in 2011) shifts times by
    its length. Half-day samples find every offset, as no zone ever kept one for less.
    """
    least = greatest = _offset(end, zone)
    sample = start - timedelta(hours=25)
    while sample < end:
        offset = _offset(sample, zone)
        least, greatest = min(least, offset), max(greatest, offset)
        sample += timedelta(hours=12)
    return least, greatest


def _offset(instant: datetime, zone: ZoneInfo) -> timedelta:
    return instant.astimezone(zone).utcoffset() or _ZERO
