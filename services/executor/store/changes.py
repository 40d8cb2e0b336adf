"""Reads the streams of run changes and grant changes in the order of their commit."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, exists, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.executor.runs import RunState
from services.executor.tables import grant_changes, run_changes
from services.runtime.cursor import Position, horizon, read_after

_NOW = text("SELECT cogni_now()")


@dataclass(frozen=True)
class RunChangeFilter:
    """Which changes to stream; what is unset does not bind."""

    states: tuple[RunState, ...] = ()
    graph_id: str = ""
    grant_id: str = ""
    run_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Changes:
    """A batch of a stream: its rows, the place after them, and the watermark.

    Every change committed before `watermark_time` is in this batch or an earlier one; None when
    the batch can not tell, because more is to come.
    """

    rows: Sequence[dict[str, Any]]
    position: Position
    watermark_time: datetime | None


async def beginning_of_news(tx: AsyncConnection) -> Position:
    """Return the place from which a watcher sees only what changes from now on."""
    return await horizon(tx)


async def read_runs(
    tx: AsyncConnection, wanted: RunChangeFilter, position: Position, limit: int
) -> Changes:
    """Return the next changes of runs after `position`, at most `limit`."""
    statement = select(run_changes)
    if wanted.states:
        states = [str(state) for state in wanted.states]
        statement = statement.where(run_changes.c.state.in_(states))
    if wanted.graph_id:
        statement = statement.where(run_changes.c.graph_id == wanted.graph_id)
    if wanted.grant_id:
        statement = statement.where(run_changes.c.grant_id == wanted.grant_id)
    if wanted.run_ids:
        statement = statement.where(run_changes.c.run_id.in_(wanted.run_ids))
    return await _read(tx, statement, run_changes.c.xid, position, limit)


async def read_grants(tx: AsyncConnection, position: Position, limit: int) -> Changes:
    """Return the next changes of grants after `position`, at most `limit`."""
    return await _read(tx, select(grant_changes), grant_changes.c.xid, position, limit)


async def _read(
    tx: AsyncConnection, statement: Select[Any], xid: Any, position: Position, limit: int
) -> Changes:
    # The time is taken before the rows are read: what commits in between is not vouched for.
    now: datetime = (await tx.execute(_NOW)).scalar_one()
    batch = await read_after(tx, statement, position, limit=limit)
    rows = [dict(row._mapping) for row in batch.rows]
    if len(rows) == limit:
        return Changes(rows, batch.position)
    # A committed row above the horizon is held back by an older transaction that is still open.
    held_back = await tx.scalar(
        select(exists(select(xid).where(xid >= text("pg_snapshot_xmin(pg_current_snapshot())"))))
    )
    return Changes(rows, batch.position, None if held_back else now)
