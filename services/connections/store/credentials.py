"""Sealed credentials: one row for what a person gave, one for what the provider gave."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import RowMapping, func, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

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


async def get(tx: AsyncConnection, tenant_id: str, connection_id: str) -> StoredCredentials:
    """What the connection has."""
    now = (await tx.execute(select(func.cogni_now()))).scalar_one()
    rows = await tx.execute(
        select(credentials).where(
            credentials.c.tenant_id == tenant_id, credentials.c.connection_id == connection_id
        )
    )
    found = {row["kind"]: _stored(row) for row in rows.mappings()}
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
    statement = upsert(credentials).values(
        tenant_id=binding.tenant_id,
        connection_id=binding.connection_id,
        kind=binding.kind,
        **values,
    )
    statement = statement.on_conflict_do_update(
        index_elements=[
            credentials.c.tenant_id,
            credentials.c.connection_id,
            credentials.c.kind,
        ],
        set_={**values, "update_time": func.cogni_now()},
        where=credentials.c.generation == binding.generation - 1,
    )
    stored = await tx.execute(statement.returning(credentials.c.generation))
    return stored.one_or_none() is not None


def _stored(row: RowMapping) -> StoredCredential:
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
