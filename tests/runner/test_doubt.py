"""Outward effects in doubt: asked about once per execution, whatever left the doubt."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain_core.tools import BaseTool, ToolException
from pydantic import BaseModel, ValidationError

from cogni.graph import tool
from cogni.graph.egress import EgressError
from cogni.graph.invocation import Credential, Invocation, serving
from cogni.graph.mcp import GrantedTool, McpTool, OpenedTool
from cogni.graph.policy import Effect
from cogni.mcp.session import Session
from services.executor.runner.catalogue import Catalogue
from services.executor.runner.doubt import leaves_doubt
from tests.runner.fleet import Fleet
from tests.runner.running import DEADLINE_SECONDS, Running, running

HAPPENED = {"outcome": "happened", "output": "seen"}
DID_NOT_HAPPEN = {"outcome": "did_not_happen"}


class Person:
    """Answers the questions of one run, as they come."""

    def __init__(self, fleet: Fleet, runner: Running, run_id: str) -> None:
        self._fleet = fleet
        self._runner = runner
        self._run_id = run_id

    async def is_asked(self) -> Any:
        run = await self._runner.until(
            self._run_id, lambda run: run.final or run.state == "WAITING"
        )
        assert (run.state, run.waiting_reason) == ("WAITING", "OUTCOME_UNKNOWN")
        (row,) = await self._fleet.rows("SELECT * FROM interrupts WHERE answer_time IS NULL")
        return row

    async def says(self, answer: Any) -> None:
        row = await self.is_asked()
        await self._fleet.answer(self._run_id, row["interrupt_id"], answer)


@pytest.mark.parametrize("graph_id", ["retrying", "retrying_under_new_ids"])
@pytest.mark.parametrize(
    ("answer", "executions", "words"),
    [(HAPPENED, 1, ["seen"]), (DID_NOT_HAPPEN, 2, ["did x"])],
)
async def test_a_retry_of_the_node_asks_before_it_repeats_what_raised(
    fleet: Fleet,
    catalogue: Catalogue,
    graphs: Any,
    graph_id: str,
    answer: Any,
    executions: int,
    words: list[str],
) -> None:
    graphs.FAILURES.append(EgressError("The server did not answer in time.", maybe_done=True))
    run_id = await fleet.start(graph_id, await fleet.grant("flaky"))
    async with running(fleet, catalogue) as runner:
        person = Person(fleet, runner, run_id)
        asked = await person.is_asked()
        assert graphs.HAPPENED["flaky"] == 1
        assert (asked["tool"], "EgressError" in asked["payload"]) == ("flaky", True)
        await person.says(answer)
        run = await runner.finished(run_id)

    assert (run.state, run.output) == ("SUCCEEDED", {"words": words})
    assert graphs.HAPPENED["flaky"] == executions
    outcomes = await fleet.rows(
        "SELECT outcome FROM audit_records WHERE action = 'tool.invoke' AND kind = 'OUTCOME'"
        " ORDER BY audit_record_id"
    )
    assert [row["outcome"] for row in outcomes] == ["UNKNOWN", "SUCCEEDED"][:executions]


async def test_a_verdict_speaks_of_one_execution_and_the_next_failure_is_asked_about_anew(
    fleet: Fleet, catalogue: Catalogue, graphs: Any
) -> None:
    graphs.FAILURES.extend([RuntimeError("one"), RuntimeError("two")])
    run_id = await fleet.start("retrying", await fleet.grant("flaky"))
    async with running(fleet, catalogue) as runner:
        person = Person(fleet, runner, run_id)
        await person.says(DID_NOT_HAPPEN)
        await runner.until(run_id, lambda run: run.attempt == 2)
        await person.is_asked()
        assert graphs.HAPPENED["flaky"] == 2
        await person.says(HAPPENED)
        run = await runner.finished(run_id)

    assert (run.state, run.output) == ("SUCCEEDED", {"words": ["seen"]})
    assert graphs.HAPPENED["flaky"] == 2


async def test_a_verdict_on_one_crash_says_nothing_of_the_next(
    fleet: Fleet, catalogue: Catalogue, graphs: Any
) -> None:
    run_id = await fleet.start("post_and_hold", await fleet.grant("post"))
    async with running(fleet, catalogue) as runner:
        person = Person(fleet, runner, run_id)
        for _ in range(2):
            runner.loop.wake()
            await asyncio.wait_for(graphs.REACHED.wait(), DEADLINE_SECONDS)
            graphs.REACHED.clear()
            # As if the process had died before the tool's outcome was stored.
            await fleet.execute(
                "UPDATE invocations SET state = 'SENT', result = NULL, finish_time = NULL"
            )
            await fleet.kill(run_id)
            await person.says(DID_NOT_HAPPEN)
        graphs.RELEASED.set()
        run = await runner.finished(run_id)

    assert (run.state, graphs.HAPPENED["post"]) == ("SUCCEEDED", 3)


async def test_of_two_effects_in_doubt_each_gets_its_own_verdict(
    fleet: Fleet, catalogue: Catalogue, graphs: Any
) -> None:
    run_id = await fleet.start("two_at_once", await fleet.grant("post"))
    async with running(fleet, catalogue) as runner:
        runner.loop.wake()
        await asyncio.wait_for(graphs.REACHED.wait(), DEADLINE_SECONDS)
        await fleet.execute(
            "UPDATE invocations SET state = 'SENT', result = NULL, finish_time = NULL"
        )
        await fleet.kill(run_id)
        graphs.RELEASED.set()
        person = Person(fleet, runner, run_id)
        first = await person.is_asked()
        await person.says(HAPPENED)
        await runner.until(run_id, lambda run: run.attempt == 3)
        second = await person.is_asked()
        await person.says(DID_NOT_HAPPEN)
        run = await runner.finished(run_id)

    # Which one comes first, nobody says.
    assert first["invocation_id"] != second["invocation_id"]
    assert run.output in ({"words": ["posted b", "seen"]}, {"words": ["posted a", "seen"]})
    assert graphs.HAPPENED["post"] == 3


async def test_after_a_crash_what_had_raised_is_asked_about(
    fleet: Fleet, catalogue: Catalogue, graphs: Any
) -> None:
    graphs.FAILURES.append(RuntimeError("who knows"))
    run_id = await fleet.start("failing_and_held", await fleet.grant("flaky"))
    async with running(fleet, catalogue) as runner:
        runner.loop.wake()
        await asyncio.wait_for(graphs.REACHED.wait(), DEADLINE_SECONDS)
        await fleet.kill(run_id)
        graphs.RELEASED.set()
        await Person(fleet, runner, run_id).says(HAPPENED)
        run = await runner.finished(run_id)

    assert (run.state, run.output) == ("SUCCEEDED", {"words": ["seen"]})
    assert graphs.HAPPENED["flaky"] == 1


@pytest.mark.parametrize(
    ("words", "failure"),
    [
        ([], ToolException("it refused")),
        ([], EgressError("It cannot be reached.", maybe_done=False)),
        (["idempotent"], RuntimeError("who knows")),
    ],
)
async def test_what_may_be_repeated_is_repeated_without_a_question(
    fleet: Fleet, catalogue: Catalogue, graphs: Any, words: list[str], failure: Exception
) -> None:
    graphs.FAILURES.append(failure)
    grant_id = await fleet.grant("flaky", "flaky_put")
    run_id = await fleet.start("retrying", grant_id, input={"words": words})
    async with running(fleet, catalogue) as runner:
        run = await runner.finished(run_id)

    assert (run.state, run.attempt) == ("SUCCEEDED", 1)
    assert graphs.HAPPENED["flaky"] + graphs.HAPPENED["flaky_put"] == 2


async def test_nobody_is_asked_when_nobody_tries_again(
    fleet: Fleet, catalogue: Catalogue, graphs: Any
) -> None:
    graphs.FAILURES.append(RuntimeError("who knows"))
    graphs.RELEASED.set()
    run_id = await fleet.start("failing_and_held", await fleet.grant("flaky"))
    async with running(fleet, catalogue) as runner:
        run = await runner.finished(run_id)

    assert run.error is not None
    assert (run.state, run.error.reason, run.error.message) == (
        "FAILED",
        "GRAPH_FAILED",
        "who knows",
    )


async def test_an_error_that_a_tool_answers_is_an_outcome_and_is_not_repeated(
    fleet: Fleet, catalogue: Catalogue, graphs: Any
) -> None:
    run_id = await fleet.start("refused_and_held", await fleet.grant("refused"))
    async with running(fleet, catalogue) as runner:
        runner.loop.wake()
        await asyncio.wait_for(graphs.REACHED.wait(), DEADLINE_SECONDS)
        await fleet.kill(run_id)
        graphs.RELEASED.set()
        run = await runner.finished(run_id)

    assert (run.state, run.output) == ("SUCCEEDED", {"words": ["error", "refused x"]})
    assert graphs.HAPPENED["refused"] == 1


async def test_an_effect_whose_result_cannot_be_kept_has_happened_all_the_same(
    fleet: Fleet, catalogue: Catalogue, graphs: Any
) -> None:
    run_id = await fleet.start("handing_out_and_held", await fleet.grant("hand_out"))
    async with running(fleet, catalogue) as runner:
        runner.loop.wake()
        await asyncio.wait_for(graphs.REACHED.wait(), DEADLINE_SECONDS)
        (row,) = await fleet.rows("SELECT state, result FROM invocations")
        assert (row["state"], row["result"]) == ("FINISHED", None)
        (outcome,) = await fleet.rows("SELECT outcome FROM audit_records WHERE kind = 'OUTCOME'")
        assert outcome["outcome"] == "SUCCEEDED"
        await fleet.kill(run_id)
        graphs.RELEASED.set()
        await Person(fleet, runner, run_id).says(HAPPENED)
        run = await runner.finished(run_id)

    assert (run.state, run.output) == ("SUCCEEDED", {"words": ["str"]})
    assert graphs.HAPPENED["hand_out"] == 1
    assert (await fleet.kinds(run_id)).count("tool_finished") == 2


class _Answer(BaseModel):
    number: int


@tool(effects="outward")
def send(number: int) -> str:
    """Send a number."""
    return f"sent {number}"


def _failure(raising: Any) -> Exception:
    with pytest.raises(ValidationError) as caught:
        raising()
    return caught.value


def test_arguments_that_are_refused_leave_no_doubt_and_an_unreadable_answer_does() -> None:
    assert not leaves_doubt(send, _failure(lambda: send.invoke({"number": "no number"})))
    assert leaves_doubt(send, _failure(lambda: _Answer.model_validate({})))
    assert leaves_doubt(send, KeyError("uri"))


@pytest.mark.parametrize("effects", [Effect.OUTWARD, Effect.NONE])
async def test_an_mcp_call_of_unknown_outcome_is_no_answer_for_a_model_unless_it_only_reads(
    effects: Effect,
) -> None:
    class CutOff(Session):
        async def call(self, *_: Any) -> dict[str, Any]:
            raise EgressError("The server broke off the connection.", maybe_done=True)

    granted = GrantedTool("tickets__file", "mcp:tickets", "File it.", {"type": "object"}, effects)
    filing: BaseTool = McpTool(
        name=granted.tool, description="File it.", args_schema={"type": "object"}, granted=granted
    )
    opened = OpenedTool("file", None, CutOff(), Credential("mcp_server", {}))
    with serving(Invocation("1", prepared=opened)):
        if effects is Effect.OUTWARD:
            with pytest.raises(EgressError):
                await filing.ainvoke({})
        else:
            assert "broke off" in await filing.ainvoke({})
