"""A waiting run goes on when its last question is answered, and each answer counts once."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from cogni.executor.v1 import executor_service_pb2 as pb
from cogni.executor.v1 import grant_service_pb2 as grant_pb
from cogni.executor.v1 import run_pb2
from cogni.executor.v1.run_event_pb2 import RunInterrupted
from services.executor.runs import Interrupt, WaitingReason
from services.executor.store import events, runs
from services.runtime.ids import new_id
from tests.executor.conftest import World
from tests.plugins.calls import refused

DEADLINE_SECONDS = 60


async def test_a_waiting_run_shows_its_questions_and_goes_on_after_the_last_answer(
    world: World,
) -> None:
    run_id = await _waiting(world, "a", "b")
    waiting = await world.run(run_id)
    await _hint(world, run_id)

    still = await _answer(world, run_id, "a", "yes")
    going_on = await _answer(world, run_id, "b", {"n": 1})

    assert waiting.state == run_pb2.RUN_STATE_WAITING
    assert [each.interrupt_id for each in waiting.interrupts] == ["a", "b"]
    assert waiting.interrupts[0].payload.string_value == "May I?"
    assert still.state == run_pb2.RUN_STATE_WAITING
    assert [each.interrupt_id for each in still.interrupts] == ["b"]
    assert going_on.state == run_pb2.RUN_STATE_QUEUED
    await _hint(world, run_id)
    assert (await _types(world, run_id))[-3:] == ["resumed", "resumed", "queued"]
    assert await _answers(world, run_id) == {"a": "yes", "b": {"n": 1}}


async def test_the_first_of_many_answers_counts(world: World) -> None:
    run_id = await _waiting(world, "a")

    answers = await asyncio.gather(
        *(_answer(world, run_id, "a", str(n % 2)) for n in range(10)), return_exceptions=True
    )

    accepted = [each for each in answers if isinstance(each, run_pb2.Run)]
    assert len(accepted) == 5
    assert (await _types(world, run_id)).count("resumed") == 1


async def test_another_answer_is_refused_and_the_same_one_repeated_for_ever(world: World) -> None:
    run_id = await _waiting(world, "a")
    await _answer(world, run_id, "a", "yes")

    other = await refused(_call(world, run_id, "a", "no"))
    again = await _answer(world, run_id, "a", "yes")
    assert await (await world.claim(run_id)).succeed()
    later = await _answer(world, run_id, "a", "yes")

    assert other.reason == "INTERRUPT_ANSWERED"
    assert again.state == run_pb2.RUN_STATE_QUEUED
    assert later.state == run_pb2.RUN_STATE_SUCCEEDED


async def test_unknown_questions_and_runs_are_refused(world: World) -> None:
    run_id = await _waiting(world, "a")

    refusals = [
        await refused(_call(world, run_id, "z", 1)),
        await refused(_call(world, new_id(), "a", 1)),
    ]

    assert [each.info.metadata["resource"] for each in refusals] == ["interrupt", "run"]


async def test_a_cancelled_run_takes_no_answer(world: World) -> None:
    run_id = await _waiting(world, "a")
    await world.executor().CancelRun(pb.CancelRunRequest(run_id=run_id))

    refusal = await refused(_call(world, run_id, "a", 1))

    assert (refusal.reason, refusal.info.metadata["state"]) == ("RUN_NOT_WAITING", "CANCELLED")


async def test_a_run_whose_grant_was_revoked_is_denied_and_takes_no_answer(world: World) -> None:
    run_id = await _waiting(world, "a")
    grant_id = (await world.run(run_id)).grant_id
    await world.grants().RevokeGrant(grant_pb.RevokeGrantRequest(grant_id=grant_id))

    refusal = await refused(_call(world, run_id, "a", 1))

    assert (await world.run(run_id)).state == run_pb2.RUN_STATE_DENIED
    assert refusal.reason == "RUN_NOT_WAITING"


@pytest.mark.parametrize(
    ("finding", "outcome"),
    [
        (pb.INVOCATION_FINDING_HAPPENED, "happened"),
        (pb.INVOCATION_FINDING_DID_NOT_HAPPEN, "did_not_happen"),
    ],
)
async def test_an_unknown_outcome_takes_a_verdict_and_nothing_else(
    world: World, finding: Any, outcome: str
) -> None:
    run_id = await _waiting(world, "a", reason=WaitingReason.OUTCOME_UNKNOWN)
    verdict = pb.InvocationVerdict(finding=finding)

    wrong = await refused(_call(world, run_id, "a", "yes"))
    answered = await world.executor().ResumeRun(
        pb.ResumeRunRequest(request_id=new_id(), run_id=run_id, interrupt_id="a", verdict=verdict)
    )

    assert wrong.reason == "INVALID_REQUEST"
    assert answered.run.state == run_pb2.RUN_STATE_QUEUED
    assert await _answers(world, run_id) == {"a": {"outcome": outcome, "output": None}}


async def _waiting(
    world: World, *questions: str, reason: WaitingReason = WaitingReason.INTERRUPT
) -> str:
    run = await world.start(await world.grant())
    attempt = await world.claim(run.run_id)
    unknown = reason is WaitingReason.OUTCOME_UNKNOWN
    asked = [
        Interrupt(
            question,
            reason,
            "node",
            "May I?",
            datetime.now(UTC),
            new_id() if unknown else None,
            "post" if unknown else None,
        )
        for question in questions
    ]
    async with world.database.raw_tenant("acme") as tx:
        await attempt.append_in(tx, RunInterrupted())
        assert await runs.wait(tx, run.run_id, "acme", reason, asked)
    run_id: str = run.run_id
    return run_id


def _call(world: World, run_id: str, interrupt_id: str, value: Any) -> Any:
    request = pb.ResumeRunRequest(request_id=new_id(), run_id=run_id, interrupt_id=interrupt_id)
    match value:
        case dict():
            request.value.struct_value.update(value)
        case str():
            request.value.string_value = value
        case _:
            request.value.number_value = value
    return world.executor().ResumeRun(request)


async def _answer(world: World, run_id: str, interrupt_id: str, value: Any) -> run_pb2.Run:
    return (await _call(world, run_id, interrupt_id, value)).run


async def _answers(world: World, run_id: str) -> dict[str, Any]:
    async with world.database.raw_tenant("acme") as tx:
        rows = await tx.fetch(
            "SELECT interrupt_id, answer FROM interrupts WHERE run_id = $1", run_id
        )
    return {row["interrupt_id"]: json.loads(row["answer"]) for row in rows}


async def _hint(world: World, run_id: str) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        assert await world.hints.get() == run_id


async def _types(world: World, run_id: str) -> list[str]:
    async with world.database.raw_tenant("acme") as tx:
        return [event.type for event in await events.read(tx, run_id, 0, 1000)]
