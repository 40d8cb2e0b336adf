"""Translates sums and times."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from cogni.type.v1.amount_pb2 import Amount
from services.ledger.assets import Asset
from services.ledger.money import format_minor


def amount(minor: int, asset: Asset) -> Amount:
    """Return minor units as the exact decimal sum they are."""
    return Amount(asset=asset.code, value=format_minor(minor, asset))


def timestamp(moment: datetime) -> Timestamp:
    """Return an aware time as a Timestamp."""
    message = Timestamp()
    message.FromDatetime(moment)
    return message


def moment_of(message: Timestamp) -> datetime:
    """Return a valid Timestamp as an aware time, cut to whole microseconds."""
    return message.ToDatetime(tzinfo=UTC)
