"""Enums, times and durations between protobuf and Python."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

Known = TypeVar("Known", bound=StrEnum)


def enum_value(wrapper: Any, prefix: str, member: StrEnum | None) -> Any:
    """The number of a domain member; 0 for None."""
    return 0 if member is None else wrapper.Value(f"{prefix}_{member.value}")


def enum_member(wrapper: Any, prefix: str, number: int, kind: type[Known]) -> Known | None:
    """The domain member of a number; None for 0."""
    if number == 0:
        return None
    return kind(str(wrapper.Name(number)).removeprefix(f"{prefix}_"))


def to_timestamp(instant: datetime | None) -> Timestamp | None:
    """A Timestamp, or None, which protobuf takes for an absent field."""
    if instant is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(instant.astimezone(UTC))
    return stamp


def from_timestamp(stamp: Timestamp) -> datetime:
    """An aware datetime in UTC, to the microsecond."""
    return stamp.ToDatetime(tzinfo=UTC)


def to_duration(length: timedelta | None) -> Duration | None:
    """A Duration, or None."""
    if length is None:
        return None
    duration = Duration()
    duration.FromTimedelta(length)
    return duration


def from_duration(duration: Duration) -> timedelta:
    """A timedelta, to the microsecond."""
    return duration.ToTimedelta()
