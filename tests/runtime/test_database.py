"""The transactions of Database: who they are, what they see, and how they end."""

from sqlalchemy import text


async def test_a_transaction_sees_the_rows_of_its_tenants_alone(database):
    db = await database("notes", "tests.runtime.migrated")
    for tenant in ("t1", "t2", "t3"):
        async with db.tenant(tenant) as tx:
            await tx.execute(
                text("INSERT INTO notes (tenant_id, text) VALUES (:t, 'x')"), {"t": tenant}
            )

    async with db.tenant("t1", "t3") as tx:
        seen = await tx.scalars(text("SELECT tenant_id FROM notes ORDER BY id"))
    assert seen.all() == ["t1", "t3"]
    async with db.raw_tenant("t2") as tx:
        assert await tx.fetchval("SELECT array_agg(tenant_id) FROM notes") == ["t2"]
    async with db.raw_jobs() as tx:
        assert await tx.fetchval("SELECT count(*) FROM notes") == 3
    async with db.jobs() as tx:
        assert await tx.scalar(text("SELECT count(*) FROM notes")) == 3
