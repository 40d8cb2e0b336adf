"""The explanation of a slot to protobuf."""

from __future__ import annotations

from cogni.scheduler.v1 import slot_pb2 as pb
from services.scheduler.convert.slot import planned_to_proto, slot_to_proto
from services.scheduler.convert.wire import enum_value, to_duration
from services.scheduler.explanation import Explanation
from services.scheduler.schedules import Schedule
from services.scheduler.slots import Occurrence, Slots, fire_time


def explanation_to_proto(schedule: Schedule, explanation: Explanation) -> pb.SlotExplanation:
    """The message of an explanation."""
    engine = Slots(schedule.settings.spec)

    def planned(found: Occurrence | None) -> pb.PlannedSlot | None:
        if found is None:
            return None
        following = engine.after(found.time)
        later = following.time if following else None
        fire = fire_time(found.time, later, schedule.settings.spec, schedule.jitter_share)
        return planned_to_proto(found, fire, engine)

    return pb.SlotExplanation(
        verdict=enum_value(pb.SlotVerdict, "SLOT_VERDICT", explanation.verdict),
        slot=slot_to_proto(explanation.slot) if explanation.slot else None,
        record_delay=to_duration(explanation.record_delay),
        start_delay=to_duration(explanation.start_delay),
        steps=explanation.steps,
        previous=planned(explanation.previous),
        next=planned(explanation.following),
    )
