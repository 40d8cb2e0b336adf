"""Reads a stream of rows in the order their transactions became final, missing none.

A sequence alone skips rows: a transaction that took an earlier number may commit later. So a row
of a stream carries (xid, id), and only rows below the oldest transaction still running are read:

    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    id bigint GENERATED ALWAYS AS IDENTITY,
    PRIMARY KEY (xid, id)

A transaction that writes anywhere in the cluster and stays open holds every stream back, for as
long as the transaction timeouts of `DatabaseLimits` let it. Transaction ids belong to a cluster:
base backups and pg_upgrade keep them, a dump restored elsewhere does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Identity,
    Row,
    Select,
    func,
    literal,
    text,
    tuple_,
)
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import UserDefinedType

from services.runtime.errors import ErrorKind, ServiceError
from services.runtime.opaque import seal, unseal

BATCH_ROWS_MAX = 1000


class Xid8(UserDefinedType[int]):
    """PostgreSQL's 64-bit transaction id, an int in Python."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Return the type's name in SQL."""
        return "xid8"


class Position(NamedTuple):
    """A place in a stream, after the row with this xid and id."""

    xid: int
    id: int


BEGINNING = Position(0, 0)


@dataclass(frozen=True)
class Batch:
    """Rows of a stream in order, and the place after them.

    `position` moves on also when no row matched, so that a heartbeat may carry it.
    """

    rows: Sequence[Row[Any]]
    position: Position


def cursor_columns() -> tuple[Column[int], Column[int]]:
    """Return the columns `xid` and `id` for the SQLAlchemy table of a stream."""
    return (
        Column("xid", Xid8(), server_default=func.pg_current_xact_id(), primary_key=True),
        Column("id", BigInteger(), Identity(always=True), primary_key=True),
    )


async def horizon(tx: AsyncConnection) -> Position:
    """Return the place before everything not yet final: where a watcher of news alone begins."""
    xmin = await tx.scalar(text("SELECT pg_snapshot_xmin(pg_current_snapshot())"))
    return Position(xmin, 0)


async def read_after(
    tx: AsyncConnection, rows: Select[Any], position: Position, *, limit: int = BATCH_ROWS_MAX
) -> Batch:
    """Return the next final rows of `rows`, at most `limit`, after `position`.

    `rows` selects from one stream table, columns `xid` and `id` among them, filtered as the
    caller likes but neither ordered nor limited.
    """
    # A statement of its own: everything below this horizon is final for the next one too, and
    # the answer is known when there are no rows.
    end = await horizon(tx)
    xid, id_ = rows.selected_columns.xid, rows.selected_columns.id
    place = tuple_(xid, id_)
    statement = (
        rows.where(place > _place(position), xid < literal(end.xid, Xid8()))
        .order_by(xid, id_)
        .limit(limit)
    )
    found = (await tx.execute(statement)).all()
    if len(found) == limit:
        return Batch(found, Position(found[-1].xid, found[-1].id))
    return Batch(found, max(position, end))


def _place(position: Position) -> ColumnElement[Any]:
    return tuple_(literal(position.xid, Xid8()), literal(position.id, BigInteger()))


def encode_cursor(position: Position, *, stream: str, tenant_id: str) -> str:
    """Return the opaque cursor of a place, valid for this stream and tenant alone."""
    return seal(list(position), bound_to=[stream, tenant_id])


def decode_cursor(text: str, *, stream: str, tenant_id: str) -> Position | None:
    """Return the place a cursor stands for, or None for the empty one.

    Raises ServiceError CURSOR_INVALID when it is damaged or of another stream or tenant.
    """
    if not text:
        return None
    key = unseal(text, bound_to=[stream, tenant_id])
    if key is None:
        raise cursor_invalid("is damaged or belongs to another stream or tenant")
    return Position(*key)


def cursor_invalid(why: str) -> ServiceError:
    """Return the refusal of a cursor; also for one that points before what is still kept."""
    return ServiceError(
        ErrorKind.OUT_OF_RANGE,
        "CURSOR_INVALID",
        f"The cursor {why}; start again without one.",
    )
