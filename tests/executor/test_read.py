"""Runs, graphs, audit records and changes are read page by page and stream by stream."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from cogni.executor.v1 import executor_service_pb2 as pb
from cogni.executor.v1 import run_pb2
from cogni.executor.v1.audit_record_pb2 import (
    AUDIT_DECISION_ALLOWED,
    AUDIT_KIND_DECISION,
    AUDIT_KIND_EVENT,
    AUDIT_KIND_OUTCOME,
)
from services.executor.graphs import Graph, Tool, ToolEffect
from services.executor.runs import RunState
from services.executor.store import changes
from services.executor.store.changes import RunChangeFilter
from services.runtime import cursor
from services.runtime.ids import new_id
from tests.databases import all_is_final
from tests.executor.conftest import GRAPH, World, publish
from tests.plugins.calls import refused

DEADLINE_SECONDS = 60


async def test_runs_are_listed_newest_first_page_by_page_without_big_fields(
    world: World,
) -> None:
    grant_id = await world.grant()
    made = [(await world.start(grant_id, input={"n": n})).run_id for n in range(5)]
    stub = world.executor()

    first = await stub.ListRuns(pb.ListRunsRequest(page_size=3))
    rest = await stub.ListRuns(pb.ListRunsRequest(page_size=3, page_token=first.next_page_token))

    listed = [run for page in (first, rest) for run in page.runs]
    assert [run.run_id for run in listed] == made[::-1]
    assert not any(run.HasField("input") for run in listed)
    assert rest.next_page_token == ""


async def test_every_filter_of_a_list_of_runs_binds(world: World) -> None:
    other_graph = "other"
    await publish(world.database, Graph(other_graph, "r1"))
    grant_id = await world.grant(graphs=[f"graph:execute:{g}" for g in (GRAPH, other_graph)])
    plain = await world.start(grant_id)
    marked = await world.start(grant_id, labels={"team": "a", "env": "x"}, graph_id=other_graph)
    origin = run_pb2.RunOrigin(schedule=run_pb2.ScheduleOrigin(schedule_id="s1"))
    scheduled_call = world.scheduler("acme", "alice").StartRun(
        pb.StartRunRequest(request_id=new_id(), graph_id=GRAPH, grant_id=grant_id, origin=origin)
    )
    scheduled = (await scheduled_call).run
    await world.executor().CancelRun(pb.CancelRunRequest(run_id=plain.run_id))

    async def listed(**filters: Any) -> set[str]:
        page = await world.executor().ListRuns(pb.ListRunsRequest(**filters))
        return {run.run_id for run in page.runs}

    everything = {plain.run_id, marked.run_id, scheduled.run_id}
    assert await listed(grant_id=grant_id) == everything
    assert await listed(grant_id=new_id()) == set()
    assert await listed(graph_id=other_graph) == {marked.run_id}
    assert await listed(labels={"team": "a"}) == {marked.run_id}
    assert await listed(labels={"team": "a", "env": "y"}) == set()
    assert await listed(states=[run_pb2.RUN_STATE_CANCELLED]) == {plain.run_id}
    assert await listed(thread_id=marked.thread_id) == {marked.run_id}
    assert await listed(schedule_id="s1") == {scheduled.run_id}
    assert await listed(min_create_time=marked.create_time) == everything - {plain.run_id}
    assert await listed(max_create_time=marked.create_time) == {plain.run_id}


async def test_a_page_token_of_another_list_is_refused(world: World) -> None:
    grant_id = await world.grant()
    for _ in range(2):
        await world.start(grant_id)
    token = (await world.executor().ListRuns(pb.ListRunsRequest(page_size=1))).next_page_token

    wrong = [
        await refused(world.executor().ListRuns(request))
        for request in (
            pb.ListRunsRequest(page_size=1, page_token=token, graph_id=GRAPH),
            pb.ListRunsRequest(page_token=token[:-2] + "xx"),
        )
    ]
    theirs = await refused(world.executor("other").ListRuns(pb.ListRunsRequest(page_token=token)))

    assert {refusal.reason for refusal in (*wrong, theirs)} == {"PAGE_TOKEN_INVALID"}


async def test_another_tenant_lists_and_reads_nothing(world: World) -> None:
    run = await world.start(await world.grant())
    stranger = world.executor("other", "mallory")

    assert not (await stranger.ListRuns(pb.ListRunsRequest())).runs
    assert not (await stranger.ListAuditRecords(pb.ListAuditRecordsRequest())).audit_records
    refusal = await refused(stranger.GetRun(pb.GetRunRequest(run_id=run.run_id)))
    assert refusal.code == grpc.StatusCode.NOT_FOUND


async def test_graphs_are_listed_by_name_and_read_whole(world: World) -> None:
    tool = Tool("post", "Posts.", {"type": "object"}, ToolEffect.OUTWARD, "bluesky/app_password")
    await publish(
        world.database,
        Graph("zeta", "r1", description="Old."),
        Graph("alpha", "r1", input_schema={"type": "object"}, tools=(tool,), nodes=("a", "b")),
    )
    await publish(world.database, Graph("zeta", "r2", description="New."))
    await publish(world.database, Graph("secret", "r1"), tenant_id="other")

    listed = (await world.executor().ListGraphs(pb.ListGraphsRequest())).graphs
    alpha = (await world.executor().GetGraph(pb.GetGraphRequest(graph_id="alpha"))).graph
    old = (
        await world.executor().GetGraph(pb.GetGraphRequest(graph_id="zeta", revision="r1"))
    ).graph
    hidden = await refused(world.executor().GetGraph(pb.GetGraphRequest(graph_id="secret")))

    assert [(graph.graph_id, graph.revision) for graph in listed] == [
        ("alpha", "r1"),
        (GRAPH, "r1"),
        ("zeta", "r2"),
    ]
    assert alpha.input_schema["type"] == "object"
    assert (alpha.tools[0].tool, alpha.tools[0].provider) == ("post", "bluesky/app_password")
    assert old.description == "Old."
    assert hidden.reason == "NOT_FOUND"


async def test_the_audit_chain_of_a_run_leads_from_its_cause_to_its_outcome(
    world: World,
) -> None:
    run = await world.start(await world.grant())
    await world.executor().CancelRun(pb.CancelRunRequest(run_id=run.run_id))

    page = await world.executor().ListAuditRecords(pb.ListAuditRecordsRequest(run_id=run.run_id))

    outcome, cancel, decision, cause = page.audit_records
    assert (cause.kind, cause.action, cause.actor) == (AUDIT_KIND_EVENT, "run.start", "alice")
    assert decision.kind == AUDIT_KIND_DECISION
    assert decision.decision == AUDIT_DECISION_ALLOWED
    assert decision.cause_audit_record_id == cause.audit_record_id
    assert (cancel.kind, cancel.action) == (AUDIT_KIND_EVENT, "run.cancel")
    assert (outcome.kind, outcome.action, outcome.event_seq) == (
        AUDIT_KIND_OUTCOME,
        "run.finish",
        3,
    )


async def test_changes_of_runs_stream_in_order_resume_and_miss_nothing(world: World) -> None:
    grant_id = await world.grant()
    run = await world.start(grant_id)
    stub = world.executor()
    first = stub.WatchRuns(pb.WatchRunsRequest())
    seen, cursor = await _changes(first, 1)
    first.cancel()

    attempt = await world.claim(run.run_id)
    assert await attempt.succeed()
    await world.start(grant_id)
    second = stub.WatchRuns(pb.WatchRunsRequest(cursor=cursor))
    more, _ = await _changes(second, 3)
    second.cancel()

    states = [(change.run_id == run.run_id, change.state) for change in (*seen, *more)]
    assert states == [
        (True, run_pb2.RUN_STATE_QUEUED),
        (True, run_pb2.RUN_STATE_RUNNING),
        (True, run_pb2.RUN_STATE_SUCCEEDED),
        (False, run_pb2.RUN_STATE_QUEUED),
    ]


async def test_a_change_that_commits_late_is_not_skipped(world: World) -> None:
    """A transaction that is older than one already delivered comes before what follows it."""
    grant_id = await world.grant()
    first, second = await world.start(grant_id), await world.start(grant_id)
    stub = world.executor()
    start = stub.WatchRuns(pb.WatchRunsRequest())
    _, cursor = await _changes(start, 2)
    start.cancel()

    watching = stub.WatchRuns(pb.WatchRunsRequest(cursor=cursor))
    async with world.database.raw_tenant("acme") as slow:
        await slow.execute(
            "UPDATE runs SET state = 'RUNNING', attempt = 1, start_time = cogni_now()"
            " WHERE run_id = $1",
            first.run_id,
        )
        await world.executor().CancelRun(pb.CancelRunRequest(run_id=second.run_id))
        heartbeat = await _batch(watching)
        assert not heartbeat.changes
    changes, _ = await _changes(watching, 2)
    watching.cancel()

    assert [change.run_id for change in changes] == [first.run_id, second.run_id]


async def test_a_watermark_vouches_for_nothing_that_was_held_back_from_its_batch(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when what held it back ends between the reading of the rows and of the watermark."""
    run = await world.start(await world.grant())
    slow = world.database.raw_tenant("acme")
    tx = await slow.__aenter__()
    await tx.execute("SELECT pg_current_xact_id()")
    await world.executor().CancelRun(pb.CancelRunRequest(run_id=run.run_id))

    async def read_then_end(*args: Any, **kwargs: Any) -> Any:
        batch = await cursor.read_after(*args, **kwargs)
        await slow.__aexit__(None, None, None)
        return batch

    monkeypatch.setattr(changes, "read_after", read_then_end)
    async with world.database.tenant("acme") as reading:
        found = await changes.read_runs(reading, RunChangeFilter(), cursor.BEGINNING, 10)

    assert RunState.CANCELLED not in [change.state for change in found.changes]
    assert found.watermark_time is None


async def test_a_service_sees_the_changes_of_every_tenant_and_a_user_only_theirs(
    world: World,
) -> None:
    mine = await world.start(await world.grant())
    their_grant = await world.grant("other", "bob")
    theirs = await world.executor("other", "bob").StartRun(
        pb.StartRunRequest(request_id=new_id(), graph_id=GRAPH, grant_id=their_grant)
    )

    everything = world.scheduler("*").WatchRuns(pb.WatchRunsRequest())
    changes, cursor = await _changes(everything, 2)
    everything.cancel()
    own = world.executor().WatchRuns(pb.WatchRunsRequest())
    own_changes, _ = await _changes(own, 1)
    own.cancel()
    borrowed = await refused(world.executor().WatchRuns(pb.WatchRunsRequest(cursor=cursor)))

    assert {(change.tenant_id, change.run_id) for change in changes} == {
        ("acme", mine.run_id),
        ("other", theirs.run.run_id),
    }
    assert [change.run_id for change in own_changes] == [mine.run_id]
    assert borrowed.reason == "CURSOR_INVALID"


async def test_the_schedulers_stream_is_not_shut_out_by_those_of_a_tenant(world: World) -> None:
    calls = [world.executor().WatchRuns(pb.WatchRunsRequest()) for _ in range(5)]
    for call in calls:
        await call.read()

    sixth = await refused(world.executor().WatchRuns(pb.WatchRunsRequest()))

    calls.append(world.scheduler("*").WatchRuns(pb.WatchRunsRequest()))
    assert sixth.reason == "LIMIT_EXCEEDED"
    assert (await calls[-1].read()).cursor
    for call in calls:
        call.cancel()


async def test_a_watcher_of_news_alone_is_not_told_what_was(world: World) -> None:
    grant_id = await world.grant()
    await world.start(grant_id)
    # A transaction of another test that is still open would keep the past from being past.
    await all_is_final(world.database)
    news = world.executor().WatchRuns(pb.WatchRunsRequest(from_now=True))
    assert not (await _batch(news)).changes

    late = await world.start(grant_id)
    changes, _ = await _changes(news, 1)
    news.cancel()

    assert [change.run_id for change in changes] == [late.run_id]


@pytest.mark.parametrize("states", [[run_pb2.RUN_STATE_CANCELLED], []])
async def test_a_stream_can_be_filtered_by_state(world: World, states: list[int]) -> None:
    run = await world.start(await world.grant())
    await world.executor().CancelRun(pb.CancelRunRequest(run_id=run.run_id))

    call = world.executor().WatchRuns(pb.WatchRunsRequest(states=states))
    [change, *_], _ = await _changes(call, 1 if states else 2)
    call.cancel()

    expected = run_pb2.RUN_STATE_CANCELLED if states else run_pb2.RUN_STATE_QUEUED
    assert change.state == expected


async def _batch(call: Any) -> Any:
    async with asyncio.timeout(DEADLINE_SECONDS):
        return await call.read()


async def _changes(call: Any, count: int) -> tuple[list[run_pb2.RunChange], str]:
    changes: list[run_pb2.RunChange] = []
    while len(changes) < count:
        batch = await _batch(call)
        changes += batch.changes
    return changes, batch.cursor
