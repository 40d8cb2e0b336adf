"""What slots owe to others once their transaction commits: starts and cancellations."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime.outbox import enqueue_many
from services.scheduler.overlap import next_turn
from services.scheduler.slot_records import SlotKey, SlotReason, SlotState
from services.scheduler.store import slots

START_TOPIC = "start-slots"
CANCEL_TOPIC = "cancel-runs"
START_QUEUE = "scheduled-runs"
START_ACTOR = "start_slot"


async def owe_starts(tx: AsyncConnection, keys: Iterable[tuple[str, SlotKey]]) -> None:
    """Owe a starter the word that these slots (each with its tenant) are to start."""
    await enqueue_many(tx, START_TOPIC, [(tenant, payload_of(key)) for tenant, key in keys])


async def owe_cancellations(tx: AsyncConnection, keys: Iterable[tuple[str, SlotKey]]) -> None:
    """Owe the Executor the cancellation of these slots' runs."""
    await enqueue_many(tx, CANCEL_TOPIC, [(tenant, payload_of(key)) for tenant, key in keys])


async def give_turn(tx: AsyncConnection, tenant_id: str, schedule_id: str) -> bool:
    """Let the oldest waiting slot of a locked schedule start when nothing runs any more."""
    view = (await slots.overlap_views(tx, [schedule_id]))[schedule_id]
    turn = next_turn(view)
    if turn is None:
        return False
    key = SlotKey(schedule_id, turn)
    await slots.settle(tx, [key], SlotState.PENDING, SlotReason.TURN_CAME)
    await owe_starts(tx, [(tenant_id, key)])
    return True


def payload_of(key: SlotKey) -> dict[str, Any]:
    """A slot's key as the outbox and the message carry it."""
    return {"schedule_id": key.schedule_id, "scheduled_for": key.scheduled_time.isoformat()}


def key_of(schedule_id: str, scheduled_for: str) -> SlotKey:
    """The key of a message; raises ValueError for what we never send."""
    return SlotKey(schedule_id, datetime.fromisoformat(scheduled_for))
