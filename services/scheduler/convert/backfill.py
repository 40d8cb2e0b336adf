"""Backfills between protobuf and the domain."""

from __future__ import annotations

from decimal import Decimal

from cogni.scheduler.v1 import backfill_pb2 as pb
from cogni.scheduler.v1 import scheduler_service_pb2
from cogni.type.v1.amount_pb2 import Amount
from services.scheduler.backfills import (
    STARTS_PER_MINUTE_DEFAULT,
    Backfill,
    BackfillOrder,
    CostCap,
)
from services.scheduler.convert.schedule import overlap_from_proto, overlap_to_proto
from services.scheduler.convert.wire import enum_value, from_timestamp, to_timestamp
from services.scheduler.schedules import OverlapPolicy


def order_from_proto(request: scheduler_service_pb2.BackfillScheduleRequest) -> BackfillOrder:
    """What a request that the rules have passed asks for."""
    cap = None
    if request.HasField("cost_cap"):
        cap = CostCap(request.cost_cap.asset, Decimal(request.cost_cap.value))
    return BackfillOrder(
        schedule_id=request.schedule_id,
        start_time=from_timestamp(request.start_time),
        end_time=from_timestamp(request.end_time),
        starts_per_minute=request.starts_per_minute or STARTS_PER_MINUTE_DEFAULT,
        max_unfinished=request.max_unfinished,
        overlap_policy=overlap_from_proto(request.overlap_policy) or OverlapPolicy.ALLOW_ALL,
        cost_cap=cap,
    )


def backfill_to_proto(backfill: Backfill) -> pb.Backfill:
    """The message of a backfill."""
    order, cap = backfill.order, backfill.order.cost_cap
    return pb.Backfill(
        backfill_id=backfill.backfill_id,
        schedule_id=order.schedule_id,
        start_time=to_timestamp(order.start_time),
        end_time=to_timestamp(order.end_time),
        starts_per_minute=order.starts_per_minute,
        max_unfinished=order.max_unfinished,
        overlap_policy=overlap_to_proto(order.overlap_policy),
        cost_cap=Amount(asset=cap.asset, value=f"{cap.value:f}") if cap else None,
        cost=Amount(asset=cap.asset, value=f"{backfill.cost:f}") if cap else None,
        state=enum_value(pb.BackfillState, "BACKFILL_STATE", backfill.state),
        state_note=backfill.state_note,
        total_slots=backfill.total_count,
        done_slots=backfill.done_count,
        started_slots=backfill.started_count,
        present_slots=backfill.present_count,
        failed_slots=backfill.failed_count,
        position_time=to_timestamp(backfill.position_time),
        creator=backfill.creator,
        create_time=to_timestamp(backfill.create_time),
        finish_time=to_timestamp(backfill.finish_time),
    )
