"""Keeps the questions that runs wait with, and their answers."""

import json
from dataclasses import dataclass

from services.executor.runs import Interrupt
from services.executor.store.events import Connection
from services.executor.store.rows import interrupt_of
from services.runtime.jsonvalues import Json

_GET = "SELECT * FROM interrupts WHERE run_id = $1 AND interrupt_id = $2"
_ANSWER = """
UPDATE interrupts SET answer = $3, answer_time = cogni_now(), answerer = $4
WHERE run_id = $1 AND interrupt_id = $2 AND answer_time IS NULL
"""
_OPEN = "SELECT count(*) FROM interrupts WHERE run_id = $1 AND answer_time IS NULL"


@dataclass(frozen=True)
class Asked:
    """A question and, once somebody has answered, what the answer was."""

    interrupt: Interrupt
    answered: bool
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


async def open_count(tx: Connection, run_id: str) -> int:
    """Return how many questions of the run are open."""
    count: int = await tx.fetchval(_OPEN, run_id)
    return count
