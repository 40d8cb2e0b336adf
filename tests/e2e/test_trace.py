"""One trace from the client to the bill, and nothing in it that must not leave."""

from __future__ import annotations

import jwt
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from cogni.client import AsyncClient, to_struct
from cogni.executor.v1.executor_service_pb2 import GetRunRequest
from cogni.scheduler.v1.schedule_pb2 import RunTemplate, Schedule
from cogni.scheduler.v1.scheduler_service_pb2 import (
    CreateScheduleRequest,
    TriggerScheduleRequest,
)
from cogni.scheduler.v1.spec_pb2 import CronRecurrence, ScheduleSpec
from services.standalone.demo import tenant
from tests.e2e.collector import Seen
from tests.e2e.waiting import bill, run_of_slot, until, whole_log
from tests.e2e.world import PROMPT_CANARY, World

#: Every link of the chain, as (process, span); the message that starts a run and the one that
#: wakes a runner are among them.
CHAIN = {
    ("scheduler", "cogni.scheduler.v1.SchedulerService/TriggerSchedule"),
    ("scheduler", "process scheduled-runs"),
    ("executor", "cogni.executor.v1.ExecutorService/StartRun"),
    ("runner", "process runs"),
    ("runner", "run digest"),
    ("runner", "chat openai/gpt-5-mini"),
    ("runner", "execute_tool read_changes"),
    ("runner", "execute_tool post_to_bluesky"),
    ("connections", "cogni.connections.v1.ConnectionsService/LeaseCredential"),
    ("ledger", "cogni.ledger.v1.LedgerService/RecordUsage"),
}


def _roots(seen: list[Seen]) -> list[str]:
    ids = {each.span.span_id for each in seen}
    return [each.span.name for each in seen if each.span.parent_span_id not in ids]


async def _resting_schedule(world: World, client: AsyncClient, grant_id: str) -> str:
    """A schedule that fires by hand alone."""
    answer = await client.scheduler.CreateSchedule(
        CreateScheduleRequest(
            request_id=tenant.new_request_id(),
            schedule=Schedule(
                display_name="By hand",
                spec=ScheduleSpec(cron=CronRecurrence(expressions=["0 0 1 1 *"])),
                run=RunTemplate(
                    graph_id=tenant.GRAPH,
                    grant_id=grant_id,
                    input=to_struct({"source": str(world.feed)}),
                ),
            ),
        )
    )
    return answer.schedule.schedule_id


@pytest.fixture
async def traced(world: World, client: AsyncClient, grant_id: str) -> tuple[str, str, list[Seen]]:
    """The trace id of a client's span, the run it led to, and the spans of that trace."""
    schedule_id = await _resting_schedule(world, client, grant_id)
    with TracerProvider().get_tracer("client").start_as_current_span("client") as span:
        await client.scheduler.TriggerSchedule(
            TriggerScheduleRequest(request_id=tenant.new_request_id(), schedule_id=schedule_id)
        )
    trace_id = trace.format_trace_id(span.get_span_context().trace_id)
    run_id = await run_of_slot(client, schedule_id)
    await whole_log(client, run_id)
    await bill(client, run_id, units=1)

    async def complete() -> list[Seen] | None:
        seen = world.collector.trace(trace_id)
        # Processes send their spans in batches: a parent may come after its children.
        is_whole = {(each.service, each.span.name) for each in seen} >= CHAIN
        return seen if is_whole and len(_roots(seen)) == 1 else None

    try:
        return trace_id, run_id, await until("the chain of spans", complete)
    except AssertionError:
        seen = {(each.service, each.span.name) for each in world.collector.trace(trace_id)}
        roots = _roots(world.collector.trace(trace_id))
        pytest.fail(
            f"missing in the trace: {sorted(CHAIN - seen)}; roots: {roots}; there: {sorted(seen)}"
        )


async def test_one_trace_leads_from_the_client_to_the_bill(
    world: World, client: AsyncClient, traced: tuple[str, str, list[Seen]]
) -> None:
    trace_id, run_id, seen = traced

    run = (await client.executor.GetRun(GetRunRequest(run_id=run_id))).run
    [chat] = [each for each in seen if each.span.name.startswith("chat ")]

    assert run.trace_id == trace_id
    assert chat.attributes["gen_ai.operation.name"] == "chat"
    assert chat.attributes["gen_ai.request.model"] == "openai/gpt-5-mini"
    assert int(str(chat.attributes["gen_ai.usage.input_tokens"])) > 0
    assert int(str(chat.attributes["gen_ai.usage.output_tokens"])) > 0
    carried = next(each for each in seen if each.span.name == "run digest")
    assert carried.attributes["cogni.run_id"] == run_id
    # Every span has its parent in the trace, but for the client's, which is not exported.
    assert _roots(seen) == ["cogni.scheduler.v1.SchedulerService/TriggerSchedule"]


async def test_no_prompt_token_or_credential_is_in_any_span(
    world: World, traced: tuple[str, str, list[Seen]]
) -> None:
    _, run_id, _ = traced
    forbidden = {
        PROMPT_CANARY,
        world.bluesky.app_password,
        world.environment["COGNI_TOKEN"],
        *world.sessions,
    }
    # The head of every JWT: callers', services', runs' and sessions' alike.
    forbidden.add(jwt.encode({}, "x" * 32, algorithm="HS256")[:10])

    texts = [str(each.span) for each in world.collector.all()]

    assert any(run_id in text for text in texts)
    assert world.sessions
    assert [text for text in texts if any(each in text for each in forbidden)] == []
