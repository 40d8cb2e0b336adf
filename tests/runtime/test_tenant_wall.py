"""The proof of the tenant wall passes a good schema and finds each kind of hole."""

import asyncpg
import pytest

TENANTLESS = {"units": "names of units are the same for everybody"}


@pytest.fixture
async def db(database):
    return await database("notes", "tests.runtime.migrated")


async def test_the_wall_of_a_good_schema_stands(db, prove_tenant_wall):
    await prove_tenant_wall(db, tenantless=TENANTLESS)


@pytest.mark.parametrize(
    ("hole", "found"),
    [
        ("ALTER TABLE notes NO FORCE ROW LEVEL SECURITY", "notes does not force"),
        ("ALTER TABLE notes DISABLE ROW LEVEL SECURITY", "notes does not force"),
        ("CREATE POLICY hole ON notes TO cogni_notes_app USING (true)", "reads notes"),
        (
            "CREATE POLICY hole ON notes FOR INSERT TO cogni_notes_app WITH CHECK (true)",
            "inserts into notes",
        ),
        ("CREATE POLICY hole ON notes FOR SELECT USING (tenant_id <> 'x')", "reads notes"),
        (
            """REVOKE SELECT ON notes FROM cogni_notes_app;
            CREATE POLICY hole ON notes FOR DELETE TO cogni_notes_app USING (true)""",
            "deletes from notes",
        ),
        ("DROP POLICY tenants ON notes", "notes hides a tenant's rows"),
        ("CREATE TABLE more (name text)", "more has no tenant_id"),
        ("CREATE VIEW all_notes AS SELECT * FROM notes", "view all_notes"),
        (
            """CREATE FUNCTION spy() RETURNS bigint LANGUAGE sql SECURITY DEFINER
            AS 'SELECT count(*) FROM notes.notes'""",
            "security definer function spy",
        ),
    ],
)
async def test_a_hole_is_found(db, prove_tenant_wall, databases, hole, found):
    admin = await asyncpg.connect(databases.admin_url(db.url))
    try:
        await admin.execute("SET ROLE cogni_notes_owner; SET search_path = notes; " + hole)
    finally:
        await admin.close()

    with pytest.raises(AssertionError, match=found):
        await prove_tenant_wall(db, tenantless=TENANTLESS)


async def test_an_excepted_table_needs_a_reason_and_no_tenant(db, prove_tenant_wall):
    with pytest.raises(AssertionError, match="say why units"):
        await prove_tenant_wall(db, tenantless={"units": " "})
    with pytest.raises(AssertionError, match="notes has a tenant_id"):
        await prove_tenant_wall(db, tenantless={**TENANTLESS, "notes": "a lie"})
    with pytest.raises(AssertionError, match="no such tables"):
        await prove_tenant_wall(db, tenantless={**TENANTLESS, "gone": "it was here"})
