"""The gRPC servicers: translate and delegate, nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from cogni.scheduler.v1 import scheduler_service_pb2 as pb
from cogni.scheduler.v1 import scheduler_service_pb2_grpc as stubs
from cogni.scheduler.v1 import slot_pb2, trigger_service_pb2_grpc
from services.runtime.caller import current_caller
from services.runtime.drain import stream_drained
from services.runtime.paging import decode_page_token, encode_page_token, page_limit
from services.scheduler.convert import schedule as schedules
from services.scheduler.convert import slot as slots
from services.scheduler.convert.backfill import backfill_to_proto, order_from_proto
from services.scheduler.convert.explanation import explanation_to_proto
from services.scheduler.convert.simulation import outages_from_proto, simulation_to_proto
from services.scheduler.convert.spec import spec_from_proto, spec_to_proto
from services.scheduler.convert.wire import from_duration, from_timestamp, to_timestamp
from services.scheduler.schedules import OverlapPolicy, Settings
from services.scheduler.slots import Slots
from services.scheduler.use_cases.backfilling import Backfills
from services.scheduler.use_cases.foretelling import Foretelling
from services.scheduler.use_cases.schedules import Schedules
from services.scheduler.use_cases.slot_reading import SlotReading
from services.scheduler.use_cases.triggering import ManualTriggers
from services.scheduler.zones import tzdata_version


@dataclass(frozen=True, slots=True)
class UseCases:
    """What the servicer delegates to."""

    schedules: Schedules
    triggers: ManualTriggers
    foretelling: Foretelling
    slots: SlotReading
    backfills: Backfills


class SchedulerServicer(stubs.SchedulerServiceServicer):
    """cogni.scheduler.v1.SchedulerService."""

    def __init__(self, use_cases: UseCases) -> None:
        self._use_cases = use_cases

    async def CreateSchedule(
        self, request: pb.CreateScheduleRequest, context: Any
    ) -> pb.CreateScheduleResponse:
        """Create a schedule."""
        settings = schedules.settings_from_proto(request.schedule)
        created = await self._use_cases.schedules.create(
            current_caller(), request.request_id, settings, paused=request.paused
        )
        return pb.CreateScheduleResponse(schedule=schedules.schedule_to_proto(created))

    async def GetSchedule(
        self, request: pb.GetScheduleRequest, context: Any
    ) -> pb.GetScheduleResponse:
        """Read one schedule."""
        found = await self._use_cases.schedules.get(current_caller(), request.schedule_id)
        return pb.GetScheduleResponse(schedule=schedules.schedule_to_proto(found))

    async def ListSchedules(
        self, request: pb.ListSchedulesRequest, context: Any
    ) -> pb.ListSchedulesResponse:
        """Read a page of schedules."""
        caller = current_caller()
        labels = dict(request.labels)
        filters = [list(request.states), request.graph_id, request.grant_id, labels]
        bound_to = ["ListSchedules", caller.tenant_id, *filters]
        after = decode_page_token(request.page_token, bound_to=bound_to)
        size = page_limit(request.page_size)
        found = await self._use_cases.schedules.list_page(
            caller,
            states=schedules.states_from_proto(request.states),
            graph_id=request.graph_id,
            grant_id=request.grant_id,
            labels=labels,
            before=after[0] if after else None,
            limit=size + 1,
        )
        token = ""
        if len(found) > size:
            token = encode_page_token([found[size - 1].schedule_id], bound_to=bound_to)
        return pb.ListSchedulesResponse(
            schedules=[schedules.schedule_to_proto(each) for each in found[:size]],
            next_page_token=token,
        )

    async def UpdateSchedule(
        self, request: pb.UpdateScheduleRequest, context: Any
    ) -> pb.UpdateScheduleResponse:
        """Change a schedule."""
        message, paths = request.schedule, list(request.update_mask.paths)
        updated = await self._use_cases.schedules.update(
            current_caller(),
            message.schedule_id,
            message.etag,
            lambda old: schedules.updated_settings(old, message, paths),
        )
        return pb.UpdateScheduleResponse(schedule=schedules.schedule_to_proto(updated))

    async def DeleteSchedule(
        self, request: pb.DeleteScheduleRequest, context: Any
    ) -> pb.DeleteScheduleResponse:
        """Delete a schedule."""
        deleted = await self._use_cases.schedules.delete(
            current_caller(), request.schedule_id, request.etag
        )
        return pb.DeleteScheduleResponse(schedule=schedules.schedule_to_proto(deleted))

    async def PauseSchedule(
        self, request: pb.PauseScheduleRequest, context: Any
    ) -> pb.PauseScheduleResponse:
        """Pause a schedule."""
        paused = await self._use_cases.schedules.pause(
            current_caller(), request.schedule_id, request.note
        )
        return pb.PauseScheduleResponse(schedule=schedules.schedule_to_proto(paused))

    async def UnpauseSchedule(
        self, request: pb.UnpauseScheduleRequest, context: Any
    ) -> pb.UnpauseScheduleResponse:
        """Unpause a schedule."""
        once = schedules.catch_up_mode_from_proto(request.catch_up_mode)
        unpaused = await self._use_cases.schedules.unpause(
            current_caller(), request.schedule_id, request.note, once
        )
        return pb.UnpauseScheduleResponse(schedule=schedules.schedule_to_proto(unpaused))

    async def TriggerSchedule(
        self, request: pb.TriggerScheduleRequest, context: Any
    ) -> pb.TriggerScheduleResponse:
        """Start a run by hand."""
        policy = schedules.overlap_from_proto(request.overlap_policy) or OverlapPolicy.ALLOW_ALL
        slot = await self._use_cases.triggers.trigger(
            current_caller(), request.request_id, request.schedule_id, policy
        )
        return pb.TriggerScheduleResponse(slot=slots.slot_to_proto(slot))

    async def PreviewSchedule(
        self, request: pb.PreviewScheduleRequest, context: Any
    ) -> pb.PreviewScheduleResponse:
        """Say when it will fire."""
        start = _optional(request, "start_time", request.start_time)
        end = _optional(request, "end_time", request.end_time)
        foretelling, caller = self._use_cases.foretelling, current_caller()
        if request.WhichOneof("target") == "schedule_id":
            preview = await foretelling.preview_schedule(
                caller, request.schedule_id, start, end, request.max_slots
            )
        else:
            preview = await foretelling.preview_spec(
                caller, spec_from_proto(request.spec), start, end, request.max_slots
            )
        engine = Slots(preview.spec)
        return pb.PreviewScheduleResponse(
            slots=[slots.planned_to_proto(slot, fire, engine) for slot, fire in preview.slots],
            more=preview.more,
            spec=spec_to_proto(preview.spec),
            tzdata_version=tzdata_version(),
        )

    async def SimulateSchedule(
        self, request: pb.SimulateScheduleRequest, context: Any
    ) -> pb.SimulateScheduleResponse:
        """Play a schedule through a span of time."""
        target: str | Settings = request.schedule_id
        if request.WhichOneof("target") == "schedule":
            target = schedules.settings_from_proto(request.schedule)
        start = _optional(request, "start_time", request.start_time)
        lasts = request.HasField("run_duration")
        scenario, simulation = await self._use_cases.foretelling.simulate(
            current_caller(),
            target,
            start,
            from_timestamp(request.end_time),
            from_duration(request.run_duration) if lasts else None,
            outages_from_proto(request),
        )
        return simulation_to_proto(scenario, simulation, request)

    async def BackfillSchedule(
        self, request: pb.BackfillScheduleRequest, context: Any
    ) -> pb.BackfillScheduleResponse:
        """Fill slots of the past."""
        started = await self._use_cases.backfills.start(
            current_caller(), request.request_id, order_from_proto(request)
        )
        return pb.BackfillScheduleResponse(backfill=backfill_to_proto(started))

    async def GetBackfill(
        self, request: pb.GetBackfillRequest, context: Any
    ) -> pb.GetBackfillResponse:
        """Read one backfill."""
        found = await self._use_cases.backfills.get(current_caller(), request.backfill_id)
        return pb.GetBackfillResponse(backfill=backfill_to_proto(found))

    async def CancelBackfill(
        self, request: pb.CancelBackfillRequest, context: Any
    ) -> pb.CancelBackfillResponse:
        """Stop a backfill."""
        cancelled = await self._use_cases.backfills.cancel(current_caller(), request.backfill_id)
        return pb.CancelBackfillResponse(backfill=backfill_to_proto(cancelled))

    async def ExplainSlot(
        self, request: pb.ExplainSlotRequest, context: Any
    ) -> pb.ExplainSlotResponse:
        """Say why it did or did not fire."""
        schedule, explanation = await self._use_cases.foretelling.explain(
            current_caller(), request.schedule_id, from_timestamp(request.scheduled_time)
        )
        return pb.ExplainSlotResponse(explanation=explanation_to_proto(schedule, explanation))

    async def ListSlots(self, request: pb.ListSlotsRequest, context: Any) -> pb.ListSlotsResponse:
        """Read a page of slots."""
        caller = current_caller()
        start = _optional(request, "start_time", request.start_time)
        end = _optional(request, "end_time", request.end_time)
        bound_to = [
            "ListSlots",
            caller.tenant_id,
            request.schedule_id,
            list(request.states),
            list(request.origins),
            start.isoformat() if start else None,
            end.isoformat() if end else None,
        ]
        after = decode_page_token(request.page_token, bound_to=bound_to)
        size = page_limit(request.page_size)
        found = await self._use_cases.slots.list_page(
            caller,
            request.schedule_id,
            states=slots.states_from_proto(request.states),
            origins=slots.origins_from_proto(request.origins),
            start_time=start,
            end_time=end,
            before=slots.place_from_text(after[0]) if after else None,
            limit=size + 1,
        )
        token = ""
        if len(found) > size:
            place = slots.place_to_text(found[size - 1])
            token = encode_page_token([place], bound_to=bound_to)
        return pb.ListSlotsResponse(
            slots=[slots.slot_to_proto(each) for each in found[:size]], next_page_token=token
        )

    async def WatchSlots(
        self, request: pb.WatchSlotsRequest, context: Any
    ) -> AsyncIterator[pb.WatchSlotsResponse]:
        """Stream what changes."""
        batches = self._use_cases.slots.watch(
            current_caller(),
            list(request.schedule_ids),
            request.cursor,
            from_now=request.from_now,
        )
        async with aclosing(batches) as watched:  # type: ignore[type-var]
            async for batch in watched:
                yield pb.WatchSlotsResponse(
                    changes=[
                        slot_pb2.SlotChange(
                            slot=slots.slot_to_proto(each.slot),
                            change_time=to_timestamp(each.change_time),
                        )
                        for each in batch.changes
                    ],
                    cursor=batch.cursor,
                    resume=batch.resume,
                )
        raise stream_drained()


class TriggerServicer(trigger_service_pb2_grpc.TriggerServiceServicer):
    """cogni.scheduler.v1.TriggerService: part of the contract, every RPC answers UNIMPLEMENTED."""


def _optional(request: Any, field: str, stamp: Timestamp) -> Any:
    return from_timestamp(stamp) if request.HasField(field) else None
