"""Whole runs: real graphs over a real database, from the claim to the one terminal event."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from services.executor.runner import attempt, ending
from services.executor.runner.catalogue import Catalogue
from services.executor.runs import Cancellation, CancelReason
from services.executor.store import events, runs
from services.runtime.jsonvalues import from_value
from tests.runner.fleet import TENANT, Fleet
from tests.runner.running import DEADLINE_SECONDS, brief, kinds, running


async def test_a_run_is_carried_to_its_one_terminal_event(
    fleet: Fleet, catalogue: Catalogue
) -> None:
    run_id = await fleet.start("noop", input={"words": ["in"]})
    async with running(fleet, catalogue) as runner:
        run = await runner.finished(run_id)

    assert (run.state, run.output) == ("SUCCEEDED", {"words": ["in", "first", "second"]})
    log = await fleet.events(run_id)
    assert (
        kinds(log)
        == [
            "queued",
            "attempt_started",
            "node_started",
            "node_finished",
            "state_updated",
            "node_started",
            "node_finished",
            "state_updated",
            "finished",
        ]
        or kinds(log).count("finished") == 1
    )
    assert from_value(log[-1].finished.output) == run.output
    assert {event.attempt for event in log[1:]} == {1}


async def test_many_runs_share_one_process(fleet: Fleet, catalogue: Catalogue) -> None:
    grant_id = await fleet.grant()
    run_ids = [await fleet.start("noop", grant_id) for _ in range(40)]
    async with running(fleet, catalogue, slots=10) as runner:
        for run_id in run_ids:
            assert (await runner.finished(run_id)).state == "SUCCEEDED"

    for run_id in run_ids:
        assert (await fleet.kinds(run_id)).count("finished") == 1


async def test_an_exception_fails_the_run_and_says_where(
    fleet: Fleet, catalogue: Catalogue
) -> None:
    run_id = await fleet.start("fails")
    async with running(fleet, catalogue) as runner:
        run = await runner.finished(run_id)

    assert run.error is not None
    assert (run.state, run.error.reason) == ("FAILED", "GRAPH_FAILED")
    assert (run.error.node, run.error.type, run.error.message) == (
        "broken",
        "ValueError",
        "it broke",
    )


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        ("timeout", "TimeoutError"),
        ("refused", "ConnectionRefusedError"),
        ("cancelled", "NodeCancelledError"),
    ],
)
async def test_what_fails_outside_is_the_graphs_failure_and_no_reason_to_carry_it_again(
    fleet: Fleet, catalogue: Catalogue, graphs: Any, what: str, kind: str
) -> None:
    run_id = await fleet.start("unlucky", input={"words": [what]})
    async with running(fleet, catalogue, times=brief(lease=timedelta(seconds=2))) as runner:
        run = await runner.finished(run_id)

    assert run.error is not None
    assert (run.error.reason, run.error.type, run.attempt) == ("GRAPH_FAILED", kind, 1)
    assert graphs.HAPPENED["fails_outside"] == 1


async def test_a_graph_that_never_ends_is_stopped_by_its_steps_or_its_time(
    fleet: Fleet, catalogue: Catalogue
) -> None:
    steps = await fleet.start("looping", max_steps=5)
    slow = await fleet.start("hold", timeout=timedelta(seconds=0.3))
    async with running(fleet, catalogue) as runner:
        first = await runner.finished(steps)
        second = await runner.finished(slow)

    assert first.error is not None
    assert second.error is not None
    assert (first.state, first.error.reason) == ("FAILED", "STEPS_EXHAUSTED")
    assert (second.state, second.error.reason) == ("FAILED", "RUN_TIMEOUT")


async def test_an_unknown_graph_fails_with_a_sentence(fleet: Fleet, catalogue: Catalogue) -> None:
    run_id = await fleet.start("nowhere")
    async with running(fleet, catalogue) as runner:
        run = await runner.finished(run_id)

    assert run.error is not None
    assert (run.error.reason, "nowhere" in run.error.message) == ("GRAPH_BROKEN", True)


async def test_a_cancelled_run_stops_and_keeps_what_it_said(
    fleet: Fleet, catalogue: Catalogue, graphs: Any
) -> None:
    run_id = await fleet.start("hold")
    async with running(fleet, catalogue) as runner:
        runner.loop.wake()
        await asyncio.wait_for(graphs.REACHED.wait(), DEADLINE_SECONDS)
        async with fleet.database.raw_tenant(TENANT) as tx:
            cancellation = Cancellation(CancelReason.USER_REQUEST, "enough", "alice")
            await runs.request_cancel(tx, run_id, cancellation)
            await events.notify_runner(tx, [run_id])
        run = await runner.finished(run_id)

    assert run.error is not None
    assert (run.state, run.error.reason) == ("CANCELLED", "RUN_CANCELLED")
    log = await fleet.kinds(run_id)
    assert "state_updated" in log
    assert log[-1] == "finished"
    assert log.count("finished") == 1


async def test_the_end_of_its_grant_ends_a_run_even_if_nobody_is_told(
    fleet: Fleet, catalogue: Catalogue, graphs: Any
) -> None:
    grant_id = await fleet.grant()
    run_id = await fleet.start("hold", grant_id)
    async with running(fleet, catalogue) as runner:
        runner.loop.wake()
        await asyncio.wait_for(graphs.REACHED.wait(), DEADLINE_SECONDS)
        await fleet.revoke(grant_id)
        run = await runner.finished(run_id)

    assert run.error is not None
    assert (run.state, run.error.reason) == ("DENIED", "GRANT_REVOKED")


async def test_a_run_waits_for_its_answers_one_after_the_other(
    fleet: Fleet, catalogue: Catalogue
) -> None:
    run_id = await fleet.start("questions")
    async with running(fleet, catalogue) as runner:
        for number, answer in enumerate(["1", "2"]):
            await runner.in_state(run_id, "WAITING")
            (row,) = await fleet.rows(
                "SELECT * FROM interrupts WHERE run_id = $1 AND answer_time IS NULL", run_id
            )
            assert ("one?", "two?")[number] in row["payload"]
            await _answer(fleet, run_id, row["interrupt_id"], answer)
            runner.loop.wake()
        run = await runner.finished(run_id)

    assert (run.state, run.output, run.attempt) == ("SUCCEEDED", {"words": ["1", "2"]}, 3)
    log = await fleet.kinds(run_id)
    assert log.count("interrupted") == 2
    assert log.count("finished") == 1


async def test_an_attempt_that_ends_late_leaves_the_next_one_in_the_process_alone(
    fleet: Fleet, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_may_end, second_may_end, second_ends = (asyncio.Event() for _ in range(3))

    async def slow_end(*args: Any) -> None:
        if args[2].attempt == 1:
            await ending.end(*args)
            # As when the answer to its COMMIT was lost, and it tries again.
            await first_may_end.wait()
        else:
            second_ends.set()
            await second_may_end.wait()
            await ending.end(*args)

    monkeypatch.setattr(attempt, "end", slow_end)
    run_id = await fleet.start("questions")
    async with running(fleet, catalogue) as runner:
        await runner.in_state(run_id, "WAITING")
        (row,) = await fleet.rows("SELECT * FROM interrupts WHERE run_id = $1", run_id)
        await _answer(fleet, run_id, row["interrupt_id"], "1")
        runner.loop.wake()
        await asyncio.wait_for(second_ends.wait(), DEADLINE_SECONDS)
        first_may_end.set()
        await asyncio.wait_for(_one_attempt_left(run_id), DEADLINE_SECONDS)

        assert runner.loop.carried == 1
        second_may_end.set()
        await runner.idle()


async def test_a_process_that_ends_hands_its_runs_over_and_the_next_goes_on(
    fleet: Fleet, catalogue: Catalogue, graphs: Any
) -> None:
    run_id = await fleet.start("hold")
    async with running(fleet, catalogue, holder="one") as runner:
        runner.loop.wake()
        await asyncio.wait_for(graphs.REACHED.wait(), DEADLINE_SECONDS)
    assert (await fleet.run(run_id)).state == "QUEUED"

    graphs.RELEASED.set()
    async with running(fleet, catalogue, holder="two") as runner:
        run = await runner.finished(run_id)

    assert (run.state, run.output) == ("SUCCEEDED", {"words": ["first", "held", "second"]})
    assert graphs.HAPPENED["first"] == 1, "a finished step is not done again"
    assert graphs.HAPPENED["held"] == 2
    assert (await fleet.kinds(run_id)).count("finished") == 1


async def test_a_run_whose_lease_was_taken_over_writes_nothing_more(
    fleet: Fleet, catalogue: Catalogue, graphs: Any
) -> None:
    run_id = await fleet.start("hold")
    async with running(fleet, catalogue) as runner:
        runner.loop.wake()
        await asyncio.wait_for(graphs.REACHED.wait(), DEADLINE_SECONDS)
        # Another runner takes the run, as it would after the lease's end.
        await fleet.execute(
            "UPDATE run_leases SET epoch = epoch + 1, holder = 'other' WHERE run_id = $1", run_id
        )
        before = await fleet.kinds(run_id)
        graphs.RELEASED.set()
        await runner.idle()

    assert await fleet.kinds(run_id) == before
    assert (await fleet.run(run_id)).state == "RUNNING"


async def test_a_run_that_kills_its_process_again_and_again_is_given_up(
    fleet: Fleet, catalogue: Catalogue
) -> None:
    run_id = await fleet.start("noop", max_attempts=2)
    await fleet.execute(
        "UPDATE run_leases SET epoch = 3, holder = 'dead', alone = true, suspicions = 2,"
        " deaths = 1, ready_time = NULL, expire_time = cogni_now() - interval '1 hour'"
    )
    await fleet.execute("UPDATE runs SET state = 'RUNNING', attempt = 3, start_time = cogni_now()")
    async with running(fleet, catalogue) as runner:
        run = await runner.finished(run_id)

    assert run.error is not None
    assert (run.state, run.error.reason) == ("FAILED", "ATTEMPTS_EXHAUSTED")
    assert (await fleet.kinds(run_id))[-1] == "finished"


async def test_a_suspect_runs_alone_until_its_probation_is_over(
    fleet: Fleet, catalogue: Catalogue, graphs: Any
) -> None:
    suspect = await fleet.start("hold")
    await fleet.execute(
        "UPDATE run_leases SET epoch = 1, holder = 'dead', ready_time = NULL,"
        " expire_time = cogni_now() - interval '1 hour'"
    )
    await fleet.execute("UPDATE runs SET state = 'RUNNING', attempt = 1, start_time = cogni_now()")
    times = brief(patience=timedelta(hours=9))
    async with running(fleet, catalogue, times=times) as runner:
        runner.loop.wake()
        await asyncio.wait_for(graphs.REACHED.wait(), DEADLINE_SECONDS)
        other = await fleet.start("noop")
        assert (await runner.finished(other)).state == "SUCCEEDED"
        (lease,) = await fleet.rows("SELECT alone FROM run_leases WHERE run_id = $1", suspect)
        graphs.RELEASED.set()
        run = await runner.finished(suspect)

    assert not lease["alone"]
    assert (run.state, run.attempt) == ("SUCCEEDED", 2)


async def test_a_second_run_of_a_thread_sees_the_first_ones_state(
    fleet: Fleet, catalogue: Catalogue
) -> None:
    first = await fleet.start("noop")
    async with running(fleet, catalogue) as runner:
        thread_id = (await runner.finished(first)).thread_id
        second = await fleet.start("noop", thread_id=thread_id, input={"words": ["more"]})
        run = await runner.finished(second)

    assert run.output == {"words": ["first", "second", "more", "first", "second"]}


async def _answer(fleet: Fleet, run_id: str, interrupt_id: str, answer: str) -> None:
    async with fleet.database.raw_tenant(TENANT) as tx:
        await tx.execute(
            "UPDATE interrupts SET answer = $3, answer_time = cogni_now(), answerer = 'alice'"
            " WHERE run_id = $1 AND interrupt_id = $2",
            run_id,
            interrupt_id,
            f'"{answer}"',
        )
        await runs.queue(tx, run_id, "RESUMED")


async def _one_attempt_left(run_id: str) -> None:
    while True:
        names = [task.get_name() for task in asyncio.all_tasks()]
        if names.count(f"attempt {run_id}") == 1:
            # Once more round, for what the end of the other one called back.
            await asyncio.sleep(0)
            return
        await asyncio.sleep(0.01)


async def test_blocking_nodes_leave_threads_for_what_they_wait_for(
    fleet: Fleet, catalogue: Catalogue
) -> None:
    run_id = await fleet.start("crowding", input={"words": []})
    async with running(fleet, catalogue) as runner:
        run = await runner.finished(run_id)

    assert run.output == {"words": ["found"] * 80}
