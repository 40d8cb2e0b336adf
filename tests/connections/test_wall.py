"""The tenant wall: no table of Connections shows a row to an unbound transaction."""

from __future__ import annotations

from tests.databases import DatabaseFactory
from tests.tenant_wall import WallProof


async def test_no_table_shows_another_tenants_rows(
    database: DatabaseFactory, prove_tenant_wall: WallProof
) -> None:
    await prove_tenant_wall(
        await database("connections"),
        tenantless={"key_rotations": "a rotation covers the whole deployment; jobs role only"},
    )
