"""Authorizations under way: found by the hash of their state, used once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import RowMapping, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.connections.authorization import LIFETIME, Authorization
from services.connections.tables import authorizations
from services.connections.vault import Envelope

OPEN_PER_TENANT_MAX = 1000


@dataclass(frozen=True, slots=True)
class NewAuthorization:
    """What an authorization begins with."""

    authorization_id: str
    request_id: str
    request_hash: bytes
    subject: str
    provider: str
    connection_id: str | None
    state_hash: bytes
    issuer: str
    redirect_uri: str
    return_uri: str
    scopes: tuple[str, ...]
    plan: Mapping[str, Any]
    envelope: Envelope


async def begin(tx: AsyncConnection, tenant_id: str, new: NewAuthorization) -> bool:
    """Store an authorization; False when its request made one before."""
    statement = upsert(authorizations).values(
        tenant_id=tenant_id,
        authorization_id=new.authorization_id,
        request_id=new.request_id,
        request_hash=new.request_hash,
        subject=new.subject,
        provider=new.provider,
        connection_id=new.connection_id,
        state_hash=new.state_hash,
        issuer=new.issuer,
        redirect_uri=new.redirect_uri,
        return_uri=new.return_uri,
        scopes=list(new.scopes),
        plan=dict(new.plan),
        key_id=new.envelope.key_id,
        wrapped_key=new.envelope.wrapped_key,
        nonce=new.envelope.nonce,
        ciphertext=new.envelope.ciphertext,
        commitment=new.envelope.commitment,
        expire_time=func.cogni_now() + LIFETIME,
    )
    made = await tx.execute(
        statement.on_conflict_do_nothing().returning(authorizations.c.authorization_id)
    )
    return made.one_or_none() is not None


async def count_open(tx: AsyncConnection, tenant_id: str) -> int:
    """How many can still be completed."""
    query = select(func.count()).where(
        authorizations.c.tenant_id == tenant_id,
        authorizations.c.use_time.is_(None),
        authorizations.c.expire_time > func.cogni_now(),
    )
    return int((await tx.execute(query)).scalar_one())


async def of_request(tx: AsyncConnection, tenant_id: str, request_id: str) -> Authorization | None:
    """What a request made."""
    query = select(authorizations).where(
        authorizations.c.tenant_id == tenant_id, authorizations.c.request_id == request_id
    )
    row = (await tx.execute(query)).mappings().one_or_none()
    return _authorization(row) if row else None


async def tenant_and_subject(tx: AsyncConnection, state_hash: bytes) -> tuple[str, str] | None:
    """Whose authorization it is, for the callback, which has no caller: jobs role."""
    query = select(authorizations.c.tenant_id, authorizations.c.subject).where(
        authorizations.c.state_hash == state_hash
    )
    row = (await tx.execute(query)).one_or_none()
    return (row.tenant_id, row.subject) if row else None


async def return_uri(tx: AsyncConnection, tenant_id: str, state_hash: bytes) -> str:
    """Where the person wants to be sent afterwards; "" for nowhere."""
    query = select(authorizations.c.return_uri).where(
        authorizations.c.tenant_id == tenant_id, authorizations.c.state_hash == state_hash
    )
    return (await tx.execute(query)).scalar_one_or_none() or ""


async def use(
    tx: AsyncConnection, tenant_id: str, subject: str, state_hash: bytes
) -> Authorization | None:
    """Take the authorization for good; None unless it is open and the subject's own."""
    taken = await tx.execute(
        update(authorizations)
        .where(
            authorizations.c.tenant_id == tenant_id,
            authorizations.c.subject == subject,
            authorizations.c.state_hash == state_hash,
            authorizations.c.use_time.is_(None),
            authorizations.c.expire_time > func.cogni_now(),
        )
        .values(use_time=func.cogni_now())
        .returning(authorizations)
    )
    row = taken.mappings().one_or_none()
    return _authorization(row) if row else None


async def sweep(tx: AsyncConnection) -> None:
    """Delete those that were over a day ago: their requests may still be retried until then."""
    aged = func.cogni_now() - func.make_interval(0, 0, 0, 1)
    await tx.execute(delete(authorizations).where(authorizations.c.expire_time < aged))


def _authorization(row: RowMapping) -> Authorization:
    return Authorization(
        tenant_id=row["tenant_id"],
        authorization_id=row["authorization_id"],
        request_hash=row["request_hash"],
        subject=row["subject"],
        provider=row["provider"],
        connection_id=row["connection_id"],
        issuer=row["issuer"],
        redirect_uri=row["redirect_uri"],
        return_uri=row["return_uri"],
        scopes=tuple(row["scopes"]),
        plan=row["plan"],
        envelope=Envelope(
            row["key_id"],
            row["wrapped_key"],
            row["nonce"],
            row["ciphertext"],
            row["commitment"],
        ),
        expire_time=row["expire_time"],
    )
