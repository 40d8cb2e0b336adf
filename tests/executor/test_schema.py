"""The schema keeps the promises that no code path may break."""

from __future__ import annotations

from services.executor.tables import metadata
from tests.conftest import WallProof
from tests.databases import DatabaseFactory


async def test_the_app_role_sees_nothing_of_a_tenant_it_is_not_bound_to(
    database: DatabaseFactory, prove_tenant_wall: WallProof
) -> None:
    await prove_tenant_wall(await database("executor"))


async def test_the_tables_of_the_code_are_the_tables_of_the_migrations(
    database: DatabaseFactory,
) -> None:
    db = await database("executor")

    async with db.raw_jobs() as tx:
        rows = await tx.fetch(
            "SELECT table_name, column_name FROM information_schema.columns"
            " WHERE table_schema = 'executor'"
        )

    columns: dict[str, set[str]] = {}
    for row in rows:
        columns.setdefault(row["table_name"], set()).add(row["column_name"])
    for table in metadata.tables.values():
        assert {column.name for column in table.c} <= columns[table.name], table.name
