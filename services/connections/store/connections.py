"""Connections, their consents, and the requests that made them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, delete, exists, func, insert, or_, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.connections.connection import Connection, Consent, State, StateReason
from services.connections.connection_requests import ConnectionFilter
from services.connections.secret import AuthKind
from services.connections.store import changes
from services.connections.tables import (
    connection_keys,
    connections,
    consents,
)


@dataclass(frozen=True, slots=True)
class NewConnection:
    """What a connection begins with."""

    connection_id: str
    provider: str
    auth_kind: AuthKind
    display_name: str
    labels: Mapping[str, str]
    settings: Mapping[str, Any]
    owner: str
    account_id: str = ""
    account_name: str = ""
    scopes: tuple[str, ...] = ()
    consent_subjects: tuple[str, ...] = ()
    authorization_id: str | None = None


async def claim_request(
    tx: AsyncConnection, tenant_id: str, request_id: str, request_hash: bytes, connection_id: str
) -> tuple[str, bytes] | None:
    """Bind the request to `connection_id`; None when it is new, else what it was bound to before.

    A concurrent claim of the same request waits here until the other transaction ends.
    """
    statement = upsert(connection_keys).values(
        tenant_id=tenant_id,
        request_id=request_id,
        request_hash=request_hash,
        connection_id=connection_id,
    )
    made = await tx.execute(
        statement.on_conflict_do_nothing().returning(connection_keys.c.connection_id)
    )
    if made.one_or_none() is not None:
        return None
    return await find_request(tx, tenant_id, request_id)


async def find_request(
    tx: AsyncConnection, tenant_id: str, request_id: str
) -> tuple[str, bytes] | None:
    """The connection a request made, and the request's hash; None when there was none."""
    row = (
        await tx.execute(
            select(connection_keys.c.connection_id, connection_keys.c.request_hash).where(
                connection_keys.c.tenant_id == tenant_id,
                connection_keys.c.request_id == request_id,
            )
        )
    ).one_or_none()
    return (row.connection_id, row.request_hash) if row else None


async def create(tx: AsyncConnection, tenant_id: str, new: NewConnection) -> Connection:
    """Insert an ACTIVE connection with its consents."""
    await tx.execute(
        insert(connections).values(
            tenant_id=tenant_id,
            connection_id=new.connection_id,
            provider=new.provider,
            auth_kind=new.auth_kind.value,
            display_name=new.display_name,
            labels=dict(new.labels),
            settings=dict(new.settings),
            owner=new.owner,
            account_id=new.account_id,
            account_name=new.account_name,
            scopes=list(new.scopes),
            state=State.ACTIVE.value,
            authorization_id=new.authorization_id,
        )
    )
    await add_consents(tx, tenant_id, new.connection_id, new.consent_subjects)
    await changes.note(tx, tenant_id, new.connection_id, new.provider)
    created = await get(tx, tenant_id, new.connection_id)
    assert created is not None
    return created


async def get(
    tx: AsyncConnection, tenant_id: str, connection_id: str, *, lock: bool = False
) -> Connection | None:
    """One connection with its consents, or None; `lock` holds its row until the end."""
    query = select(connections).where(
        connections.c.tenant_id == tenant_id, connections.c.connection_id == connection_id
    )
    if lock:
        query = query.with_for_update()
    row = (await tx.execute(query)).mappings().one_or_none()
    if row is None:
        return None
    given = await _consents(tx, tenant_id, [connection_id])
    return connection_of(row, given.get(connection_id, ()))


async def count(tx: AsyncConnection, tenant_id: str) -> int:
    """How many connections the tenant has."""
    query = select(func.count()).where(connections.c.tenant_id == tenant_id)
    return int((await tx.execute(query)).scalar_one())


async def list_newest_first(
    tx: AsyncConnection,
    tenant_id: str,
    wanted: ConnectionFilter,
    *,
    before_id: str | None,
    limit: int,
) -> list[Connection]:
    """Up to `limit` connections older than `before_id`. Ids are time-ordered."""
    query = _filtered(select(connections), tenant_id, wanted)
    if before_id is not None:
        query = query.where(connections.c.connection_id < before_id)
    query = query.order_by(connections.c.connection_id.desc()).limit(limit)
    rows = (await tx.execute(query)).mappings().all()
    given = await _consents(tx, tenant_id, [row["connection_id"] for row in rows])
    return [connection_of(row, given.get(row["connection_id"], ())) for row in rows]


async def by_setting(
    tx: AsyncConnection, tenant_id: str, provider: str, name: str, values: Sequence[str]
) -> list[Connection]:
    """The provider's connections of which one setting has one of these values, oldest first."""
    query = _filtered(select(connections), tenant_id, ConnectionFilter(provider=provider))
    query = query.where(connections.c.settings[name].astext.in_(values))
    rows = (await tx.execute(query.order_by(connections.c.connection_id))).mappings().all()
    return [connection_of(row, ()) for row in rows]


async def change(
    tx: AsyncConnection, tenant_id: str, connection_id: str, values: Mapping[str, Any]
) -> None:
    """Set columns that callers can change; a new revision, and so a new etag."""
    await _update(tx, tenant_id, connection_id, {**values, "revision": connections.c.revision + 1})


async def change_state(
    tx: AsyncConnection,
    tenant_id: str,
    connection_id: str,
    state: State,
    *,
    reason: StateReason = StateReason.NONE,
    message: str = "",
    values: Mapping[str, Any] | None = None,
) -> None:
    """Put the connection into a state; the etag stays, since no caller's change is undone."""
    await _update(
        tx,
        tenant_id,
        connection_id,
        {
            "state": state.value,
            "state_reason": reason.value,
            "state_message": message,
            "state_change_time": func.cogni_now(),
            **(values or {}),
        },
    )


async def remove(tx: AsyncConnection, connection: Connection) -> None:
    """Delete the connection with its credentials and consents, and tell watchers."""
    await tx.execute(
        delete(connections).where(
            connections.c.tenant_id == connection.tenant_id,
            connections.c.connection_id == connection.connection_id,
        )
    )
    await changes.note(
        tx, connection.tenant_id, connection.connection_id, connection.provider, deleted=True
    )


async def add_consents(
    tx: AsyncConnection, tenant_id: str, connection_id: str, subjects: Iterable[str]
) -> None:
    """Record consents; those that exist keep their time."""
    rows = [
        {"tenant_id": tenant_id, "connection_id": connection_id, "subject": subject}
        for subject in sorted(set(subjects))
    ]
    if rows:
        await tx.execute(upsert(consents).on_conflict_do_nothing(), rows)


async def remove_consents(
    tx: AsyncConnection, tenant_id: str, connection_id: str, subjects: Iterable[str]
) -> None:
    """Withdraw consents."""
    await tx.execute(
        delete(consents).where(
            consents.c.tenant_id == tenant_id,
            consents.c.connection_id == connection_id,
            consents.c.subject.in_(sorted(subjects)),
        )
    )


async def _update(
    tx: AsyncConnection, tenant_id: str, connection_id: str, values: Mapping[str, Any]
) -> None:
    provider = (
        await tx.execute(
            update(connections)
            .where(
                connections.c.tenant_id == tenant_id, connections.c.connection_id == connection_id
            )
            .values(**values, update_time=func.cogni_now())
            .returning(connections.c.provider)
        )
    ).scalar_one()
    await changes.note(tx, tenant_id, connection_id, provider)


def _filtered(query: Select[Any], tenant_id: str, wanted: ConnectionFilter) -> Select[Any]:
    query = query.where(connections.c.tenant_id == tenant_id)
    for name in ("provider", "state", "owner", "authorization_id"):
        value = getattr(wanted, name)
        if value:
            query = query.where(connections.c[name] == value)
    if wanted.labels:
        query = query.where(connections.c.labels.contains(dict(wanted.labels)))
    if wanted.grantable_by:
        given = exists().where(
            consents.c.tenant_id == connections.c.tenant_id,
            consents.c.connection_id == connections.c.connection_id,
            consents.c.subject == wanted.grantable_by,
        )
        query = query.where(or_(connections.c.owner == wanted.grantable_by, given))
    return query


async def _consents(
    tx: AsyncConnection, tenant_id: str, connection_ids: list[str]
) -> dict[str, tuple[Consent, ...]]:
    if not connection_ids:
        return {}
    rows = await tx.execute(
        select(consents)
        .where(consents.c.tenant_id == tenant_id, consents.c.connection_id.in_(connection_ids))
        .order_by(consents.c.subject)
    )
    found: dict[str, tuple[Consent, ...]] = {}
    for row in rows:
        consent = Consent(row.subject, row.create_time)
        found[row.connection_id] = (*found.get(row.connection_id, ()), consent)
    return found


def connection_of(row: Mapping[Any, Any], given: tuple[Consent, ...]) -> Connection:
    """The connection of a row of the table."""
    return Connection(
        tenant_id=row["tenant_id"],
        connection_id=row["connection_id"],
        provider=row["provider"],
        auth_kind=AuthKind(row["auth_kind"]),
        display_name=row["display_name"],
        labels=row["labels"],
        settings=row["settings"],
        owner=row["owner"],
        account_id=row["account_id"],
        account_name=row["account_name"],
        scopes=tuple(row["scopes"]),
        state=State(row["state"]),
        state_reason=StateReason(row["state_reason"]),
        state_message=row["state_message"],
        state_change_time=row["state_change_time"],
        expire_time=row["expire_time"],
        last_refresh_time=row["last_refresh_time"],
        last_lease_time=row["last_lease_time"],
        create_time=row["create_time"],
        update_time=row["update_time"],
        revision=row["revision"],
        consents=given,
    )
