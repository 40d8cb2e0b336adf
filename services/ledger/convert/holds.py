"""Translates holds, and the requests about them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from cogni.ledger.v1 import hold_pb2
from cogni.ledger.v1 import ledger_service_pb2 as pb
from services.ledger.assets import Asset
from services.ledger.convert.scalars import amount, moment_of, timestamp
from services.ledger.holding import Request, Sum
from services.ledger.holds import Hold


def hold(hold: Hold, asset: Asset) -> hold_pb2.Hold:
    """Return the message of a stored hold."""
    message = hold_pb2.Hold(
        hold_id=hold.hold_id,
        account_id=hold.account_id,
        run_id=hold.run_id,
        epoch=hold.epoch,
        state=hold_pb2.HoldState.ValueType(hold.state),
        remaining=amount(hold.remaining, asset),
        spent=amount(hold.spent, asset),
        unsettled=amount(hold.unsettled, asset),
        expire_time=timestamp(hold.expire_time),
    )
    if hold.create_time is not None:
        message.create_time.CopyFrom(timestamp(hold.create_time))
    if hold.update_time is not None:
        message.update_time.CopyFrom(timestamp(hold.update_time))
    return message


def placement(request: pb.PlaceHoldRequest) -> Request:
    """Return what a PlaceHold asks for."""
    return Request(
        request.request_id,
        account_id=request.account_id,
        run_id=request.run_id,
        epoch=request.epoch,
        amount=_sum(request, "amount"),
        unsettled=_sum(request, "unsettled"),
        expire_time=_expire_time(request),
    )


def top_up(request: pb.TopUpHoldRequest) -> Request:
    """Return what a TopUpHold asks for."""
    return Request(
        request.request_id,
        request.hold_id,
        epoch=request.epoch,
        amount=_sum(request, "amount"),
        unsettled=_sum(request, "unsettled"),
        expire_time=_expire_time(request),
    )


def release(request: pb.ReleaseHoldRequest) -> Request:
    """Return what a ReleaseHold asks for."""
    return Request(
        request.request_id,
        request.hold_id,
        epoch=request.epoch,
        unsettled=_sum(request, "unsettled"),
    )


def settlement(request: pb.SettleHoldRequest) -> Request:
    """Return what a SettleHold asks for."""
    return Request(
        request.request_id,
        request.hold_id,
        amount=_sum(request, "amount"),
        credit_account_id=request.credit_account_id,
        description=request.description,
    )


def _sum(request: Any, field: str) -> Sum | None:
    if not request.HasField(field):
        return None
    message = getattr(request, field)
    return Sum(message.asset, message.value)


def _expire_time(request: Any) -> datetime | None:
    return moment_of(request.expire_time) if request.HasField("expire_time") else None
