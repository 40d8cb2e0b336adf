"""`cogni schedules`: when runs start by themselves."""

from __future__ import annotations

from typing import Annotated

import typer

from cogni.cli.arguments import (
    IdOption,
    JsonOption,
    LabelsOption,
    LimitOption,
    RequestIdOption,
    duration,
    enum_value,
    json_object,
    labels,
    moment,
    request_id,
)
from cogni.cli.output import (
    console,
    name_of,
    pages,
    print_json,
    show,
    show_all,
    show_created,
    time_of,
)
from cogni.client import Client
from cogni.scheduler.v1.schedule_pb2 import OverlapPolicy, RunTemplate, Schedule, ScheduleState
from cogni.scheduler.v1.scheduler_service_pb2 import (
    CreateScheduleRequest,
    DeleteScheduleRequest,
    ExplainSlotRequest,
    GetScheduleRequest,
    ListSchedulesRequest,
    ListSlotsRequest,
    PauseScheduleRequest,
    PreviewScheduleRequest,
    TriggerScheduleRequest,
    UnpauseScheduleRequest,
    WatchSlotsRequest,
)
from cogni.scheduler.v1.slot_pb2 import Slot, SlotReason, SlotState
from cogni.scheduler.v1.spec_pb2 import CronRecurrence, IntervalRecurrence, ScheduleSpec

app = typer.Typer(help="Schedules and their slots.", no_args_is_help=True)

ScheduleArgument = Annotated[str, typer.Argument(metavar="SCHEDULE_ID")]
CronOption = Annotated[
    list[str] | None, typer.Option("--cron", help="A cron expression, five fields.")
]
EveryOption = Annotated[str | None, typer.Option("--every", help="An interval, like 15m.")]
ZoneOption = Annotated[str, typer.Option("--time-zone", help="An IANA zone, for --cron.")]


def spec(cron: list[str] | None, every: str | None, time_zone: str) -> ScheduleSpec:
    if bool(cron) == bool(every):
        raise typer.BadParameter("say when: either --cron or --every")
    if cron:
        return ScheduleSpec(cron=CronRecurrence(expressions=cron), time_zone=time_zone)
    interval = IntervalRecurrence()
    interval.every.FromTimedelta(duration(every or ""))
    return ScheduleSpec(interval=interval, time_zone=time_zone)


def slot_row(slot: Slot) -> tuple[str, ...]:
    return (
        time_of(slot.scheduled_time),
        name_of(SlotState, "SLOT_STATE", slot.state),
        name_of(SlotReason, "SLOT_REASON", slot.reason) if slot.reason else "",
        slot.run_id,
        slot.run_state,
        time_of(slot.start_time),
    )


SLOT_COLUMNS = ("slot", "state", "reason", "run_id", "run", "started")


@app.command()
def create(
    graph: Annotated[str, typer.Argument(help="The graph to run.")],
    grant: Annotated[str, typer.Option(help="The grant that bounds its runs.")],
    cron: CronOption = None,
    every: EveryOption = None,
    time_zone: ZoneOption = "UTC",
    input: Annotated[str, typer.Option(help="A JSON object; @FILE or - as for runs.")] = "{}",
    name: Annotated[str, typer.Option(help="A name for people. Default: the graph's.")] = "",
    overlap: Annotated[
        str | None, typer.Option(help="When the previous run still runs: skip, allow_all, …")
    ] = None,
    paused: Annotated[bool, typer.Option("--paused", help="Create it paused.")] = False,
    label: LabelsOption = None,
    given_request_id: RequestIdOption = None,
    only_id: IdOption = False,
    as_json: JsonOption = False,
) -> None:
    """Create a schedule."""
    schedule = Schedule(
        display_name=name or graph,
        labels=labels(label),
        spec=spec(cron, every, time_zone),
        run=RunTemplate(graph_id=graph, grant_id=grant, input=json_object(input)),
    )
    if overlap is not None:
        schedule.overlap_policy = enum_value(OverlapPolicy, "OVERLAP_POLICY", overlap)
    request = CreateScheduleRequest(
        request_id=request_id(given_request_id), schedule=schedule, paused=paused
    )
    with Client() as client:
        created = client.scheduler.CreateSchedule(request).schedule
        show_created(created, "schedule_id", only_id, as_json)


@app.command()
def get(schedule: ScheduleArgument, as_json: JsonOption = False) -> None:
    """Show one schedule."""
    with Client() as client:
        request = GetScheduleRequest(schedule_id=schedule)
        show(client.scheduler.GetSchedule(request).schedule, as_json)


@app.command("list")
def list_schedules(
    state: Annotated[list[str] | None, typer.Option(help="Only these states.")] = None,
    graph: Annotated[str, typer.Option(help="Only this graph.")] = "",
    limit: LimitOption = 50,
    as_json: JsonOption = False,
) -> None:
    """List schedules."""
    request = ListSchedulesRequest(
        states=[enum_value(ScheduleState, "SCHEDULE_STATE", word) for word in state or ()],
        graph_id=graph,
    )

    def row(schedule: Schedule) -> tuple[str, ...]:
        return (
            schedule.schedule_id,
            name_of(ScheduleState, "SCHEDULE_STATE", schedule.state),
            schedule.display_name,
            schedule.run.graph_id,
            time_of(schedule.next_slot_time),
            time_of(schedule.last_slot_time),
        )

    with Client() as client:
        show_all(
            pages(client.scheduler.ListSchedules, request, "schedules", limit),
            ("schedule_id", "state", "name", "graph", "next", "last"),
            row,
            as_json,
        )


@app.command()
def pause(
    schedule: ScheduleArgument,
    note: Annotated[str, typer.Option(help="Why, for the record.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Stop firing until unpaused."""
    with Client() as client:
        request = PauseScheduleRequest(schedule_id=schedule, note=note)
        show(client.scheduler.PauseSchedule(request).schedule, as_json)


@app.command()
def unpause(
    schedule: ScheduleArgument,
    note: Annotated[str, typer.Option(help="Why, for the record.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Fire again; what was missed follows the schedule's catch-up policy."""
    with Client() as client:
        request = UnpauseScheduleRequest(schedule_id=schedule, note=note)
        show(client.scheduler.UnpauseSchedule(request).schedule, as_json)


@app.command()
def trigger(
    schedule: ScheduleArgument,
    given_request_id: RequestIdOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start a run of it now, beside its slots."""
    with Client() as client:
        request = TriggerScheduleRequest(
            request_id=request_id(given_request_id), schedule_id=schedule
        )
        show(client.scheduler.TriggerSchedule(request).slot, as_json)


@app.command()
def delete(schedule: ScheduleArgument, as_json: JsonOption = False) -> None:
    """Delete a schedule. Its slots stay on record, and no time of it ever fires again."""
    with Client() as client:
        request = DeleteScheduleRequest(schedule_id=schedule)
        show(client.scheduler.DeleteSchedule(request), as_json)


@app.command()
def preview(
    cron: CronOption = None,
    every: EveryOption = None,
    time_zone: ZoneOption = "UTC",
    count: Annotated[int, typer.Option(min=1, max=1000, help="How many slots.")] = 10,
    as_json: JsonOption = False,
) -> None:
    """Show when a recurrence would fire, without creating anything."""
    request = PreviewScheduleRequest(spec=spec(cron, every, time_zone), max_slots=count)
    with Client() as client:
        response = client.scheduler.PreviewSchedule(request)
    show_all(
        response.slots,
        ("slot", "fires"),
        lambda slot: (time_of(slot.scheduled_time), time_of(slot.fire_time)),
        as_json,
    )


@app.command()
def slots(
    schedule: ScheduleArgument,
    state: Annotated[list[str] | None, typer.Option(help="Only these states.")] = None,
    limit: LimitOption = 50,
    as_json: JsonOption = False,
) -> None:
    """List a schedule's slots, newest first."""
    request = ListSlotsRequest(
        schedule_id=schedule,
        states=[enum_value(SlotState, "SLOT_STATE", word) for word in state or ()],
    )
    with Client() as client:
        show_all(
            pages(client.scheduler.ListSlots, request, "slots", limit),
            SLOT_COLUMNS,
            slot_row,
            as_json,
        )


@app.command()
def explain(
    schedule: ScheduleArgument,
    time: Annotated[str, typer.Argument(help="The slot's time, like 2026-11-22T08:00:00Z.")],
    as_json: JsonOption = False,
) -> None:
    """Say why a slot fired, was skipped, or will fire."""
    request = ExplainSlotRequest(schedule_id=schedule, scheduled_time=moment(time))
    with Client() as client:
        show(client.scheduler.ExplainSlot(request).explanation, as_json)


@app.command()
def watch(
    schedule: Annotated[list[str] | None, typer.Option(help="Only this schedule.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Follow slots as they are made, started and finished, until Ctrl-C."""
    request = WatchSlotsRequest(schedule_ids=schedule or (), from_now=True)
    terminal = console()
    with Client() as client:
        for message in client.watch(client.scheduler.WatchSlots, request):
            for change in message.changes:
                if as_json:
                    print_json(change)
                else:
                    terminal.print("  ".join(part for part in slot_row(change.slot) if part))
