"""Sealed credentials: one row for what a person gave, one for what the provider gave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.connections.secret import SESSION
from services.connections.tables import credentials
from services.connections.vault import Binding, Envelope


@dataclass(frozen=True, slots=True)
class StoredCredential:
    """An envelope in its row. The binding is made of the row's own columns."""

    binding: Binding
    envelope: Envelope
    expire_time: datetime | None
    renew_time: datetime | None

    @property
    def generation(self) -> int:
        """How often it was replaced."""
        return self.binding.generation


@dataclass(frozen=True, slots=True)
class StoredCredentials:
    """What a connection has, and the database's time when it was read."""

    secret: StoredCredential | None
    session: StoredCredential | None
    now: datetime

    @property
    def session_generation(self) -> int:
        """The session's generation; 0 before there is one."""
        return self.session.generation if self.session else 0

    @property
    def generations(self) -> tuple[int, int]:
        """Secret's and session's: a renewal is overtaken when either changed meanwhile."""
        return (self.secret.generation if self.secret else 0, self.session_generation)


async def get(tx: AsyncConnection, tenant_id: str, connection_id: str) -> StoredCredentials:
    """What the connection has."""
    now = (await tx.execute(select(func.cogni_now()))).scalar_one()
    rows = await tx.execute(
        select(credentials).where(
            credentials.c.tenant_id == tenant_id, credentials.c.connection_id == connection_id
        )
    )
    found = {row["kind"]: stored_credential(row) for row in rows.mappings()}
    return StoredCredentials(found.get("secret"), found.get("session"), now)


async def put(
    tx: AsyncConnection,
    binding: Binding,
    envelope: Envelope,
    *,
    expire_time: datetime | None = None,
    renew_time: datetime | None = None,
) -> bool:
    """Store an envelope if the row's generation is the one before; False when another was first."""
    values = {
        "provider": binding.provider,
        "generation": binding.generation,
        "key_id": envelope.key_id,
        "wrapped_key": envelope.wrapped_key,
        "nonce": envelope.nonce,
        "ciphertext": envelope.ciphertext,
        "commitment": envelope.commitment,
        "expire_time": expire_time,
        "renew_time": renew_time,
    }
    if binding.generation > 1:
        # Never by insert: a row that is gone was taken away on purpose, with its generations.
        replaced = await tx.execute(
            update(credentials)
            .where(
                credentials.c.tenant_id == binding.tenant_id,
                credentials.c.connection_id == binding.connection_id,
                credentials.c.kind == binding.kind,
                credentials.c.generation == binding.generation - 1,
            )
            .values(**values, update_time=func.cogni_now())
            .returning(credentials.c.generation)
        )
        return replaced.one_or_none() is not None
    statement = upsert(credentials).values(
        tenant_id=binding.tenant_id,
        connection_id=binding.connection_id,
        kind=binding.kind,
        **values,
    )
    stored = await tx.execute(
        statement.on_conflict_do_nothing().returning(credentials.c.generation)
    )
    return stored.one_or_none() is not None


async def remove_session(tx: AsyncConnection, tenant_id: str, connection_id: str) -> None:
    """Erase what the provider gave, for example because it belongs to a replaced secret."""
    await tx.execute(
        delete(credentials).where(
            credentials.c.tenant_id == tenant_id,
            credentials.c.connection_id == connection_id,
            credentials.c.kind == SESSION,
        )
    )


def stored_credential(row: Mapping[Any, Any]) -> StoredCredential:
    """The credential of a row of the table."""
    return StoredCredential(
        Binding(
            row["tenant_id"],
            row["connection_id"],
            row["provider"],
            row["kind"],
            row["generation"],
        ),
        Envelope(
            row["key_id"],
            row["wrapped_key"],
            row["nonce"],
            row["ciphertext"],
            row["commitment"],
        ),
        row["expire_time"],
        row["renew_time"],
    )
