"""Lists runs page by page."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.executor.runs import Run, RunState
from services.executor.store.rows import run_of
from services.executor.tables import run_leases
from services.executor.tables import runs as table

# A page of a thousand runs must not carry a thousand inputs of a megabyte.
_BIG = ("input", "context", "output")


@dataclass(frozen=True)
class RunFilter:
    """Which runs to list; what is unset does not bind."""

    states: tuple[RunState, ...] = ()
    graph_id: str = ""
    grant_id: str = ""
    thread_id: str = ""
    schedule_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    min_create_time: datetime | None = None
    max_create_time: datetime | None = None


async def page(
    tx: AsyncConnection, wanted: RunFilter, before_id: str | None, limit: int
) -> list[Run]:
    """Return at most `limit` runs older than `before_id`, newest first, without big columns."""
    columns = [column for column in table.c if column.name not in _BIG]
    statement = (
        select(*columns, (run_leases.c.next_seq - 1).label("last_seq"))
        .join(run_leases, run_leases.c.run_id == table.c.run_id)
        .order_by(table.c.run_id.desc())
        .limit(limit)
    )
    if before_id is not None:
        statement = statement.where(table.c.run_id < before_id)
    for column in ("graph_id", "grant_id", "thread_id", "schedule_id"):
        if value := getattr(wanted, column):
            statement = statement.where(table.c[column] == value)
    if wanted.states:
        statement = statement.where(table.c.state.in_([str(state) for state in wanted.states]))
    if wanted.labels:
        statement = statement.where(table.c.labels.contains(dict(wanted.labels)))
    if wanted.min_create_time:
        statement = statement.where(table.c.create_time >= wanted.min_create_time)
    if wanted.max_create_time:
        statement = statement.where(table.c.create_time < wanted.max_create_time)
    rows = (await tx.execute(statement)).mappings()
    return [run_of(dict(row), whole=False) for row in rows]
