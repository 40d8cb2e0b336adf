"""The stream of slot changes, read in the order of their commit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import DateTime, MetaData, String, Table, Uuid, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.schema import Column

from services.runtime.cursor import Position, cursor_columns, read_after
from services.scheduler.slot_records import SlotRecord
from services.scheduler.store.rows import slot_of

SLOTS_CHANNEL = "scheduler_slots"
DUE_CHANNEL = "scheduler_due"
BATCH_MAX = 500

_changes = Table(
    "slot_changes",
    MetaData(),
    *cursor_columns(),
    Column("tenant_id", String),
    Column("schedule_id", Uuid),
    Column("slot", JSONB),
    Column("change_time", DateTime(timezone=True)),
)


@dataclass(frozen=True, slots=True)
class SlotChange:
    """A slot after a change."""

    slot: SlotRecord
    change_time: datetime


async def read(
    tx: AsyncConnection, schedule_ids: Sequence[str], position: Position
) -> tuple[list[SlotChange], Position]:
    """The next changes after a position (of all schedules when none is named), and the place."""
    rows = select(_changes)
    if schedule_ids:
        rows = rows.where(_changes.c.schedule_id.in_([UUID(each) for each in schedule_ids]))
    batch = await read_after(tx, rows, position, limit=BATCH_MAX)
    changes = [SlotChange(slot_of(_plain(row.slot)), row.change_time) for row in batch.rows]
    return changes, batch.position


def _plain(document: object) -> dict[str, object]:
    return json.loads(document) if isinstance(document, str) else document  # type: ignore[return-value]
