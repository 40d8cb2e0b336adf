"""Translates sums and times."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp

from cogni.type.v1.amount_pb2 import Amount
from services.ledger.assets import Asset
from services.ledger.money import format_minor

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def amount(minor: int, asset: Asset) -> Amount:
    """Return minor units as the exact decimal sum they are."""
    return Amount(asset=asset.code, value=format_minor(minor, asset))


def timestamp(moment: datetime) -> Timestamp:
    """Return an aware time as a Timestamp."""
    message = Timestamp()
    set_timestamp(message, moment)
    return message


def set_amount(message: Amount, minor: int, asset: Asset) -> None:
    """Make a message that is part of another the sum that minor units are.

    In place, as `set_timestamp`: a message that is made and then copied takes twice as long.
    """
    message.asset = asset.code
    message.value = format_minor(minor, asset)


def set_timestamp(message: Timestamp, moment: datetime) -> None:
    """Make a message that is part of another an aware time."""
    # By hand: the library's own conversions take five times as long.
    past = moment - _EPOCH
    message.seconds = past.days * 86_400 + past.seconds
    message.nanos = past.microseconds * 1000


def moment_of(message: Timestamp) -> datetime:
    """Return a valid Timestamp as an aware time, cut to whole microseconds."""
    return _EPOCH + timedelta(seconds=message.seconds, microseconds=message.nanos // 1000)
