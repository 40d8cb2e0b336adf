"""Converts between Timestamp and aware datetimes, Amount and ours."""

from datetime import UTC, datetime
from decimal import Decimal

from google.protobuf.timestamp_pb2 import Timestamp

from cogni.type.v1 import amount_pb2
from services.executor.amounts import Amount


def timestamp(time: datetime | None) -> Timestamp | None:
    """Return the Timestamp of an aware time; None stays unset."""
    if time is None:
        return None
    converted = Timestamp()
    converted.FromDatetime(time)
    return converted


def time_of(sent: Timestamp) -> datetime:
    """Return the aware UTC time of a validated Timestamp."""
    return sent.ToDatetime(tzinfo=UTC)


def amount(value: Amount | None) -> amount_pb2.Amount | None:
    """Return the contract's Amount; None stays unset."""
    return None if value is None else amount_pb2.Amount(asset=value.asset, value=value.plain)


def amount_of(sent: amount_pb2.Amount) -> Amount:
    """Return the amount of a validated Amount."""
    return Amount(sent.asset, Decimal(sent.value))
