"""Reads the streams of run changes and grant changes in the order of their commit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from sqlalchemy import Select, exists, literal, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.executor.grants import GrantChange, GrantState
from services.executor.runs import RunChange, RunState, WaitingReason
from services.executor.store.rows import Row, error_of, origin_of
from services.executor.tables import grant_changes, run_changes
from services.runtime.cursor import Position, Xid8, horizon, read_after

_NOW = text("SELECT cogni_now()")

Change = TypeVar("Change")


@dataclass(frozen=True)
class RunChangeFilter:
    """Which changes to stream; what is unset does not bind."""

    states: tuple[RunState, ...] = ()
    graph_id: str = ""
    grant_id: str = ""
    run_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Changes(Generic[Change]):
    """A batch of a stream: its changes, the place after them, and the watermark.

    Every change committed before `watermark_time` is in this batch or an earlier one; None when
    the batch can not tell, because more is to come.
    """

    changes: Sequence[Change]
    position: Position
    watermark_time: datetime | None


async def beginning_of_news(tx: AsyncConnection) -> Position:
    """Return the place from which a watcher sees only what changes from now on."""
    return await horizon(tx)


async def read_runs(
    tx: AsyncConnection, wanted: RunChangeFilter, position: Position, limit: int
) -> Changes[RunChange]:
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
    return await _read(tx, statement, run_changes.c.xid, position, limit, _run_change)


async def read_grants(tx: AsyncConnection, position: Position, limit: int) -> Changes[GrantChange]:
    """Return the next changes of grants after `position`, at most `limit`."""
    statement = select(grant_changes)
    return await _read(tx, statement, grant_changes.c.xid, position, limit, _grant_change)


async def _read(
    tx: AsyncConnection,
    statement: Select[Any],
    xid: Any,
    position: Position,
    limit: int,
    change_of: Callable[[Row], Change],
) -> Changes[Change]:
    # The time is taken before the rows are read: what commits in between is not vouched for.
    now: datetime = (await tx.execute(_NOW)).scalar_one()
    batch = await read_after(tx, statement, position, limit=limit)
    changes = [change_of(dict(row._mapping)) for row in batch.rows]
    if len(changes) == limit:
        return Changes(changes, batch.position, None)
    # A committed row above the batch's horizon was held back by an older transaction; that one may
    # have ended by now, and the row is still in no batch.
    horizon_xid = literal(batch.position.xid, Xid8())
    held_back = await tx.scalar(select(exists(select(xid).where(xid >= horizon_xid))))
    return Changes(changes, batch.position, None if held_back else now)


def _run_change(row: Row) -> RunChange:
    reason = row["waiting_reason"]
    return RunChange(
        run_id=row["run_id"],
        tenant_id=row["tenant_id"],
        graph_id=row["graph_id"],
        grant_id=row["grant_id"],
        thread_id=row["thread_id"],
        state=RunState(row["state"]),
        waiting_reason=None if reason is None else WaitingReason(reason),
        attempt=row["attempt"],
        origin=origin_of(row),
        error=error_of(row),
        change_time=row["change_time"],
    )


def _grant_change(row: Row) -> GrantChange:
    return GrantChange(
        grant_id=row["grant_id"],
        tenant_id=row["tenant_id"],
        owner=row["owner"],
        state=GrantState(row["state"]),
        expire_time=row["expire_time"],
        change_time=row["change_time"],
    )
