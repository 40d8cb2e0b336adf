"""Tools in runs: decided at the moment of use, never repeated blindly, credentials kept in."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cogni.type.v1.error_reason_pb2 import ErrorReason
from services.executor.constraints import ArgumentConstraint, MaxLength
from services.executor.grants import ToolPermission
from services.executor.runner.catalogue import Catalogue
from tests.runner.fleet import Fleet
from tests.runner.running import CANARY, DEADLINE_SECONDS, running


def _asking(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


async def _said(fleet: Fleet, run_id: str) -> str:
    output: Any = (await fleet.run(run_id)).output
    return str(output["messages"][-1]["content"])


@pytest.mark.parametrize(("graph_id", "tool"), [("posting", "post"), ("plain_agent", "plain")])
async def test_a_tool_runs_only_if_the_grant_names_it(
    fleet: Fleet, catalogue: Catalogue, graphs: Any, graph_id: str, tool: str
) -> None:
    async with running(fleet, catalogue) as runner:
        denied = await fleet.start(graph_id, await fleet.grant(), input=_asking("hi"))
        await runner.finished(denied)
        assert graphs.HAPPENED[tool] == 0
        allowed = await fleet.start(graph_id, await fleet.grant(tool), input=_asking("hi"))
        await runner.finished(allowed)

    assert graphs.HAPPENED[tool] == 1
    assert "does not name the tool" in await _said(fleet, denied)
    log = await fleet.kinds(denied)
    assert [kind for kind in log if kind.startswith("tool")] == ["tool_invoked", "tool_denied"]
    log = await fleet.kinds(allowed)
    assert [kind for kind in log if kind.startswith("tool")] == [
        "tool_invoked",
        "tool_allowed",
        "tool_finished",
    ]
    records = await fleet.rows(
        "SELECT kind, decision, outcome, reason FROM audit_records"
        " WHERE action = 'tool.invoke' ORDER BY audit_record_id"
    )
    assert [tuple(row) for row in records] == [
        ("DECISION", "DENIED", None, "TOOL_NOT_GRANTED"),
        ("DECISION", "ALLOWED", None, None),
        ("OUTCOME", None, "SUCCEEDED", None),
    ]


async def test_arguments_beyond_the_grant_are_denied(
    fleet: Fleet, catalogue: Catalogue, graphs: Any
) -> None:
    short = ToolPermission("post", (ArgumentConstraint("text", rule=MaxLength(3)),))
    run_id = await fleet.start("posting", await fleet.grant(short), input=_asking("too long"))
    async with running(fleet, catalogue) as runner:
        await runner.finished(run_id)

    assert graphs.HAPPENED["post"] == 0
    (denied,) = [e.tool_denied for e in await fleet.events(run_id) if e.HasField("tool_denied")]
    assert "'text'" in denied.message
    assert "too long" not in denied.message


async def test_a_revocation_between_two_invocations_denies_the_second(
    fleet: Fleet, catalogue: Catalogue, graphs: Any
) -> None:
    grant_id = await fleet.grant("post")
    run_id = await fleet.start("two_posts", grant_id)
    async with running(fleet, catalogue) as runner:
        runner.loop.wake()
        await asyncio.wait_for(graphs.REACHED.wait(), DEADLINE_SECONDS)
        await fleet.revoke(grant_id)
        graphs.RELEASED.set()
        run = await runner.finished(run_id)

    assert graphs.HAPPENED["post"] == 1
    log = await fleet.events(run_id)
    denied = [event.tool_denied for event in log if event.HasField("tool_denied")]
    # The runner may have stopped the run before it came to ask again.
    assert run.state == "DENIED" or ErrorReason.Name(denied[0].reason).endswith("GRANT_REVOKED")


async def test_a_credential_reaches_the_tool_and_nothing_else(
    fleet: Fleet, catalogue: Catalogue, graphs: Any, caplog: pytest.LogCaptureFixture
) -> None:
    grant_id = await fleet.grant("leaky", connection_ids=("c1",))
    told = await fleet.start("leaking", grant_id, input=_asking("tell"))
    raised = await fleet.start("leaking", grant_id, input=_asking("raise"))
    with caplog.at_level("DEBUG"):
        async with running(fleet, catalogue) as runner:
            first = await runner.finished(told)
            second = await runner.finished(raised)

    assert graphs.HAPPENED["leaky"] == 2
    assert "done with [credential]" in await _said(fleet, told)
    assert (first.state, second.state) == ("SUCCEEDED", "FAILED")
    assert second.error is not None
    assert "refused for [credential]" in second.error.message
    assert CANARY not in caplog.text
    for row in await fleet.rows(
        "SELECT tablename FROM pg_tables WHERE schemaname = 'executor' ORDER BY 1"
    ):
        table = row["tablename"]
        found = await fleet.rows(
            f"SELECT count(*) FROM {table} AS t WHERE t::text LIKE '%{CANARY}%'"
            f" OR t::text LIKE '%' || encode('{CANARY}', 'hex') || '%'"
        )
        assert found[0][0] == 0, table


async def test_what_a_tool_declares_not_to_be_shown_is_in_no_event_and_no_record(
    fleet: Fleet, catalogue: Catalogue, graphs: Any
) -> None:
    run_id = await fleet.start("confiding", await fleet.grant("confide"), input=_asking("go"))
    async with running(fleet, catalogue) as runner:
        run = await runner.finished(run_id)

    secret = graphs.CONFIDED
    assert graphs.HAPPENED[f"confided {secret} to bea"] == 1, "the tool gets what was meant for it"
    log = await fleet.events(run_id)
    (invoked,) = [event.tool_invoked for event in log if event.HasField("tool_invoked")]
    (finished,) = [event.tool_finished for event in log if event.HasField("tool_finished")]
    assert dict(invoked.arguments) == {"secret": "[redacted]", "to": "bea"}
    assert finished.output.string_value == "[redacted]"
    assert run.state == "SUCCEEDED"
    # What the graph itself keeps, it needs: its checkpoints, and the outcome for a repetition.
    for table in ("run_events", "audit_records", "runs", "interrupts", "grants"):
        found = await fleet.rows(
            f"SELECT count(*) FROM {table} AS t WHERE t::text LIKE '%{secret}%'"
            f" OR t::text LIKE '%' || encode('{secret}', 'hex') || '%'"
        )
        assert found[0][0] == 0, table


async def test_without_a_connection_in_the_grant_nothing_is_leased(
    fleet: Fleet, catalogue: Catalogue, graphs: Any
) -> None:
    run_id = await fleet.start("leaking", await fleet.grant("leaky"), input=_asking("tell"))
    async with running(fleet, catalogue) as runner:
        await runner.finished(run_id)
        assert runner.connections.leases == []

    assert graphs.HAPPENED["leaky"] == 0
    assert "connection" in await _said(fleet, run_id)


async def test_an_outcome_that_is_known_is_taken_over_by_the_next_attempt(
    fleet: Fleet, catalogue: Catalogue, graphs: Any
) -> None:
    run_id = await fleet.start("post_and_hold", await fleet.grant("post"))
    async with running(fleet, catalogue) as runner:
        runner.loop.wake()
        await asyncio.wait_for(graphs.REACHED.wait(), DEADLINE_SECONDS)
        await fleet.kill(run_id)
        graphs.RELEASED.set()
        run = await runner.finished(run_id)

    assert graphs.HAPPENED["post"] == 1
    assert (run.state, run.output) == ("SUCCEEDED", {"words": ["posted x"]})
    finished = [e.tool_finished for e in await fleet.events(run_id) if e.HasField("tool_finished")]
    assert [each.reused for each in finished] == [False, True]


@pytest.mark.parametrize(
    ("answer", "posts", "words"),
    [
        ({"outcome": "happened", "output": "seen"}, 1, ["seen"]),
        ({"outcome": "did_not_happen"}, 2, ["posted x"]),
    ],
)
async def test_an_effect_in_doubt_is_not_repeated_before_a_person_has_said(
    fleet: Fleet,
    catalogue: Catalogue,
    graphs: Any,
    answer: dict[str, Any],
    posts: int,
    words: list[str],
) -> None:
    run_id = await fleet.start("post_and_hold", await fleet.grant("post"))
    async with running(fleet, catalogue) as runner:
        runner.loop.wake()
        await asyncio.wait_for(graphs.REACHED.wait(), DEADLINE_SECONDS)
        # As if the process had died before the tool's outcome was stored.
        await fleet.execute(
            "UPDATE invocations SET state = 'SENT', result = NULL, finish_time = NULL"
        )
        await fleet.kill(run_id)
        graphs.RELEASED.set()
        run = await runner.in_state(run_id, "WAITING")
        assert run.waiting_reason == "OUTCOME_UNKNOWN"
        assert graphs.HAPPENED["post"] == 1
        (row,) = await fleet.rows("SELECT * FROM interrupts")
        assert row["tool"] == "post"
        await fleet.answer(run_id, row["interrupt_id"], answer)
        run = await runner.finished(run_id)

    assert (run.state, run.output) == ("SUCCEEDED", {"words": words})
    assert graphs.HAPPENED["post"] == posts
    # What was sent is charged, whatever became of it; the question and the answer are not.
    units = await fleet.rows("SELECT rework FROM usage_units ORDER BY occur_time")
    assert [unit["rework"] for unit in units] == [False, True][:posts]
