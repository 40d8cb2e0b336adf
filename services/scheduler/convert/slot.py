"""Slots and planned slots to protobuf."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from cogni.scheduler.v1 import slot_pb2 as pb
from services.scheduler.convert.schedule import overlap_to_proto
from services.scheduler.convert.wire import enum_member, enum_value, to_timestamp
from services.scheduler.slot_records import SlotOrigin, SlotRecord, SlotState
from services.scheduler.slots import Occurrence, Slots
from services.scheduler.wall import DstEffect


def slot_to_proto(slot: SlotRecord) -> pb.Slot:
    """The message of a recorded slot."""
    return pb.Slot(
        schedule_id=slot.key.schedule_id,
        scheduled_time=to_timestamp(slot.key.scheduled_time),
        fire_time=to_timestamp(slot.fire_time),
        state=enum_value(pb.SlotState, "SLOT_STATE", slot.state),
        reason=enum_value(pb.SlotReason, "SLOT_REASON", slot.reason),
        note=slot.note,
        origin=enum_value(pb.SlotOrigin, "SLOT_ORIGIN", slot.origin),
        run_id=slot.run_id or "",
        start_request_id=slot.key.start_request_id,
        run_state=slot.run_state or "",
        overlap_policy=overlap_to_proto(slot.overlap_policy),
        backfill_id=slot.backfill_id or "",
        create_time=to_timestamp(slot.create_time),
        start_time=to_timestamp(slot.start_time),
        state_time=to_timestamp(slot.state_time),
        attempts=slot.attempts,
    )


def planned_to_proto(found: Occurrence, fire_time: datetime, slots: Slots) -> pb.PlannedSlot:
    """The message of a slot that a spec gives."""
    effect = None if found.effect is DstEffect.NONE else found.effect
    return pb.PlannedSlot(
        scheduled_time=to_timestamp(found.time),
        fire_time=to_timestamp(fire_time),
        local_time=found.time.astimezone(slots.zone).isoformat(),
        dst_effect=enum_value(pb.DstEffect, "DST_EFFECT", effect),
    )


def states_from_proto(numbers: Iterable[int]) -> tuple[SlotState, ...]:
    """The states that a list asks for."""
    members = (enum_member(pb.SlotState, "SLOT_STATE", number, SlotState) for number in numbers)
    return tuple(member for member in members if member is not None)


def origins_from_proto(numbers: Iterable[int]) -> tuple[SlotOrigin, ...]:
    """The origins that a list asks for."""
    members = (enum_member(pb.SlotOrigin, "SLOT_ORIGIN", number, SlotOrigin) for number in numbers)
    return tuple(member for member in members if member is not None)


def place_to_text(slot: SlotRecord) -> str:
    """A slot's place in a list, as a page token holds it."""
    return slot.key.scheduled_time.isoformat()


def place_from_text(text: str) -> datetime:
    """The place inside a page token of ours."""
    return datetime.fromisoformat(text)
