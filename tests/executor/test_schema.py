"""The schema keeps the promises that no code path may break."""

from tests.conftest import DatabaseFactory


async def test_every_table_with_a_tenant_hides_its_rows_from_an_unbound_app(
    database: DatabaseFactory,
) -> None:
    db = await database("executor")

    async with db.raw_jobs() as tx:
        rows = await tx.fetch(
            "SELECT relname, relrowsecurity, relforcerowsecurity FROM pg_class"
            " WHERE relnamespace = 'executor'::regnamespace AND relkind = 'r'"
            " AND relname <> 'schema_revision'"
        )

    assert len(rows) >= 15
    unguarded = [
        r["relname"] for r in rows if not (r["relrowsecurity"] and r["relforcerowsecurity"])
    ]
    assert unguarded == []
