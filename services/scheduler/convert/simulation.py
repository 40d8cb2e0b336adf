"""Simulations to protobuf."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from cogni.scheduler.v1 import scheduler_service_pb2 as pb
from cogni.scheduler.v1 import slot_pb2
from cogni.type.v1.amount_pb2 import Amount
from services.scheduler.convert.spec import window_from_proto
from services.scheduler.convert.wire import enum_value, to_duration, to_timestamp
from services.scheduler.simulation import Scenario, SimulatedSlot, Simulation
from services.scheduler.slot_records import SlotState
from services.scheduler.slots import Slots
from services.scheduler.specs import TimeWindow


def outages_from_proto(request: pb.SimulateScheduleRequest) -> tuple[TimeWindow, ...]:
    """The spans in which nothing fires."""
    return tuple(window_from_proto(each) for each in request.outages)


def simulation_to_proto(
    scenario: Scenario, simulation: Simulation, request: pb.SimulateScheduleRequest
) -> pb.SimulateScheduleResponse:
    """The answer of SimulateSchedule."""
    engine = Slots(scenario.spec)
    started = simulation.count(SlotState.STARTED)
    cost = None
    if request.HasField("run_cost"):
        total = Decimal(request.run_cost.value) * started
        cost = Amount(asset=request.run_cost.asset, value=f"{total:f}")
    return pb.SimulateScheduleResponse(
        slots=[_slot(each, engine) for each in simulation.slots[: request.max_slots]],
        total_slots=len(simulation.slots),
        started_slots=started,
        skipped_slots=simulation.count(SlotState.SKIPPED),
        missed_slots=simulation.count(SlotState.MISSED),
        buffered_slots=simulation.buffered_count,
        cancelled_runs=simulation.cancelled_runs,
        concurrent_runs_max=simulation.concurrent_runs_max,
        cost=cost,
        run_duration=to_duration(scenario.run_duration),
    )


def _slot(slot: SimulatedSlot, engine: Slots) -> pb.SimulatedSlot:
    return pb.SimulatedSlot(
        slot=slot_pb2.PlannedSlot(
            scheduled_time=to_timestamp(slot.scheduled_time),
            fire_time=to_timestamp(slot.fire_time),
            local_time=_local(slot.scheduled_time, engine),
        ),
        state=enum_value(slot_pb2.SlotState, "SLOT_STATE", slot.state),
        reason=enum_value(slot_pb2.SlotReason, "SLOT_REASON", slot.reason),
        start_time=to_timestamp(slot.start_time),
        end_time=to_timestamp(slot.end_time),
    )


def _local(time: datetime, engine: Slots) -> str:
    return time.astimezone(engine.zone).isoformat()
