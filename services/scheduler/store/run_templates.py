"""The rows of run templates: frozen, named by their digest, shared, never changed."""

from __future__ import annotations

import hashlib

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.scheduler.schedules import RunTemplate
from services.scheduler.store.rows import run_from_json, run_json


def digest_of(run: RunTemplate) -> bytes:
    """What names a frozen run template."""
    return hashlib.sha256(run_json(run).encode()).digest()


async def keep(tx: AsyncConnection, tenant_id: str, run: RunTemplate) -> bytes:
    """Keep a run template under its digest, for ever, and return the digest."""
    digest = digest_of(run)
    await tx.execute(
        text(
            "INSERT INTO run_templates (tenant_id, digest, template) "
            "VALUES (:tenant_id, :digest, CAST(:template AS json)) ON CONFLICT DO NOTHING"
        ),
        {"tenant_id": tenant_id, "digest": digest, "template": run_json(run)},
    )
    return digest


async def get(tx: AsyncConnection, tenant_id: str, digest: bytes) -> RunTemplate:
    """The run template that a digest names; it was kept before, and is kept for ever."""
    document = await tx.scalar(
        text(
            "SELECT CAST(template AS text) FROM run_templates "
            "WHERE tenant_id = :tenant_id AND digest = :digest"
        ),
        {"tenant_id": tenant_id, "digest": digest},
    )
    return run_from_json(document)
