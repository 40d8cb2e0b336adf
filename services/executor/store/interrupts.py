"""Keeps the questions that runs wait with, and their answers."""

import json
from dataclasses import dataclass
from datetime import datetime

from services.executor.runs import Interrupt
from services.executor.store.events import Connection
from services.executor.store.rows import interrupt_of
from services.runtime.jsonvalues import Json

_GET = "SELECT * FROM interrupts WHERE run_id = $1 AND interrupt_id = $2"
_ANSWER = """
UPDATE interrupts SET answer = $3, answer_time = cogni_now(), answerer = $4
WHERE run_id = $1 AND interrupt_id = $2 AND answer_time IS NULL
"""
# Who asked stands in the question; one of an earlier release was asked by the invocation itself.
_VERDICTS = """
SELECT invocation_id, coalesce(payload->>'asked_by', invocation_id::text) AS asked_by, payload,
    create_time, answer
FROM interrupts
WHERE run_id = $1 AND reason = 'OUTCOME_UNKNOWN' AND answer_time IS NOT NULL
ORDER BY create_time, interrupt_id
"""
_OPEN = "SELECT count(*) FROM interrupts WHERE run_id = $1 AND answer_time IS NULL"


@dataclass(frozen=True)
class Asked:
    """A question and, once somebody has answered, what the answer was."""

    interrupt: Interrupt
    answered: bool
    answer: Json


@dataclass(frozen=True)
class Answered:
    """A question about an invocation in doubt, and what a person said."""

    invocation_id: str
    #: The invocation that could not go on without the answer: the same, or one made instead of it.
    asked_by: str
    payload: dict[str, Json]
    ask_time: datetime
    answer: Json


async def get(tx: Connection, run_id: str, interrupt_id: str) -> Asked | None:
    """Return the question, None when the run never asked it."""
    row = await tx.fetchrow(_GET, run_id, interrupt_id)
    if row is None:
        return None
    answered = row["answer_time"] is not None
    return Asked(interrupt_of(row), answered, json.loads(row["answer"]) if answered else None)


async def answer(
    tx: Connection, run_id: str, interrupt_id: str, value: Json, answerer: str
) -> None:
    """Store the answer to an open question; the run's lease is locked."""
    await tx.execute(_ANSWER, run_id, interrupt_id, json.dumps(value), answerer)


async def verdicts(tx: Connection, run_id: str) -> list[Answered]:
    """Return every verdict that people gave on the run's invocations, the oldest first."""
    return [
        Answered(
            invocation_id=str(row["invocation_id"]),
            asked_by=row["asked_by"],
            payload=json.loads(row["payload"]),
            ask_time=row["create_time"],
            answer=json.loads(row["answer"]),
        )
        for row in await tx.fetch(_VERDICTS, run_id)
    ]


async def open_count(tx: Connection, run_id: str) -> int:
    """Return how many questions of the run are open."""
    count: int = await tx.fetchval(_OPEN, run_id)
    return count
