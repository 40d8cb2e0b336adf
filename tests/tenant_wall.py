"""Proves, table by table, that row-level security stands behind a service's own queries."""

from collections.abc import Awaitable, Mapping
from typing import Protocol

import asyncpg

from services.runtime.database import Database
from services.runtime.migrations import REVISION_TABLE
from services.runtime.roles import Roles

_OTHER, _MINE = "tenant-other", "tenant-mine"
_ALLOWED = {REVISION_TABLE: "names the schema's revision"}

_TABLES = """
SELECT c.oid, c.relname AS name, c.relkind = 'p' AS partitioned, c.relispartition AS partition,
       c.relrowsecurity AND c.relforcerowsecurity AS forced,
       EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'tenant_id'
               AND NOT a.attisdropped) AS has_tenant,
       pg_get_userbyid(c.relowner) AS owner
FROM pg_class c WHERE c.relnamespace = $1::regnamespace AND c.relkind IN ('r', 'p')
ORDER BY c.relispartition, c.relname
"""
_OPEN_DOORS = """
SELECT 'view ' || relname FROM pg_class
WHERE relnamespace = $1::regnamespace AND relkind IN ('v', 'm')
  AND NOT coalesce('security_invoker=true' = ANY (reloptions), false)
UNION ALL
SELECT 'security definer function ' || proname FROM pg_proc
WHERE pronamespace = $1::regnamespace AND prosecdef
UNION ALL
SELECT 'role ' || rolname FROM pg_roles
WHERE rolname = $2 AND (rolsuper OR rolbypassrls OR pg_has_role(oid, $3, 'MEMBER')
                        OR pg_has_role(oid, $4, 'MEMBER'))
"""
_PRIVILEGES = ("SELECT", "INSERT", "UPDATE", "DELETE")


class WallProof(Protocol):
    """What the fixture `prove_tenant_wall` is."""

    def __call__(
        self, database: Database, *, tenantless: Mapping[str, str] | None = None
    ) -> Awaitable[None]:
        """Raise AssertionError that names the first table with a hole."""


async def prove_wall(database: Database, admin_url: str, tenantless: Mapping[str, str]) -> None:
    """Put a row of one tenant into every table and try to reach it as the app role.

    `tenantless` names the tables that carry no tenant_id, each with the reason.
    """
    roles = Roles.of(database.schema)
    admin = await asyncpg.connect(admin_url)
    try:
        await admin.execute(f'SET search_path = "{database.schema}"')
        await admin.execute("SET session_replication_role = replica")
        doors = await admin.fetch(_OPEN_DOORS, database.schema, roles.app, roles.owner, roles.jobs)
        assert not doors, f"a way around row-level security: {[door[0] for door in doors]}"
        allowed = {**_ALLOWED, **tenantless}
        tables = await admin.fetch(_TABLES, database.schema)
        missing = allowed.keys() - {table["name"] for table in tables}
        assert not missing, f"no such tables: {missing}"
        for table in tables:
            await _prove_table(admin, roles, table, allowed)
    finally:
        await admin.close()


async def _prove_table(
    admin: asyncpg.Connection, roles: Roles, table: asyncpg.Record, allowed: Mapping[str, str]
) -> None:
    name = table["name"]
    assert table["owner"] == roles.owner, f"{name} belongs to {table['owner']}"
    granted = [each for each in _PRIVILEGES if await _has(admin, roles.app, name, each)]
    if table["partition"]:
        assert not granted, f"the partition {name} can be reached past its parent's security"
        return
    if name in allowed:
        assert allowed[name].strip(), f"say why {name} carries no tenant_id"
        assert not table["has_tenant"], f"{name} has a tenant_id: do not except it"
        return
    assert table["has_tenant"], f"{name} has no tenant_id; except it with a reason"
    assert table["forced"], f"{name} does not force row-level security"
    await _put_row(admin, table)
    for bound in ("", _MINE):
        await _cannot_reach(admin, roles.app, name, granted, bound)
    if "SELECT" in granted:
        seen = await _as_app(admin, roles.app, _OTHER, f'SELECT count(*) AS n FROM "{name}"')
        assert seen > 0, f"{name} hides a tenant's rows from the tenant"


async def _put_row(admin: asyncpg.Connection, table: asyncpg.Record) -> None:
    """Insert a row that says nothing but its tenant, having dropped every rule against that."""
    name = table["name"]
    for constraint in await admin.fetch(
        "SELECT conname FROM pg_constraint WHERE conrelid = $1 AND contype <> 'n' AND conislocal",
        table["oid"],
    ):
        await admin.execute(
            f'ALTER TABLE "{name}" DROP CONSTRAINT IF EXISTS "{constraint[0]}" CASCADE'
        )
    for column in await admin.fetch(
        "SELECT attname FROM pg_attribute WHERE attrelid = $1 AND attnum > 0 "
        "AND attnotnull AND attidentity = '' AND NOT attisdropped",
        table["oid"],
    ):
        await admin.execute(f'ALTER TABLE "{name}" ALTER "{column[0]}" DROP NOT NULL')
    insert = f"INSERT INTO \"{name}\" (tenant_id) VALUES ('{_OTHER}')"
    try:
        await admin.execute(insert)
    except asyncpg.CheckViolationError:
        assert table["partitioned"]
        await admin.execute(f'CREATE TABLE "{name}_rest" PARTITION OF "{name}" DEFAULT')
        await admin.execute(insert)


async def _cannot_reach(
    admin: asyncpg.Connection, app: str, name: str, granted: list[str], bound: str
) -> None:
    whom = f"bound to {bound}" if bound else "without a binding"
    if "SELECT" in granted:
        seen = await _as_app(admin, app, bound, f'SELECT count(*) AS n FROM "{name}"')
        assert seen == 0, f"the app role {whom} reads {name}"
    if "DELETE" in granted:
        done = await _as_app(admin, app, bound, f'DELETE FROM "{name}"')
        assert done == 0, f"the app role {whom} deletes from {name}"
    for column in await _updatable(admin, app, name):
        update = f'UPDATE "{name}" SET "{column}" = DEFAULT'
        done = await _as_app(admin, app, bound, update)
        assert done == 0, f"the app role {whom} updates {name}"
    if "INSERT" in granted:
        try:
            await _as_app(
                admin, app, bound, f"INSERT INTO \"{name}\" (tenant_id) VALUES ('{_OTHER}')"
            )
        except asyncpg.InsufficientPrivilegeError:
            return
        raise AssertionError(f"the app role {whom} inserts into {name} for another tenant")


async def _as_app(admin: asyncpg.Connection, app: str, bound: str, statement: str) -> int:
    """Run the statement as the app role and return the count it gives; changes nothing."""
    transaction = admin.transaction()
    await transaction.start()
    try:
        await admin.execute(f'SET LOCAL ROLE "{app}"')
        await admin.execute("SELECT set_config('cogni.tenants', $1, true)", bound)
        if statement.startswith("SELECT"):
            return int(await admin.fetchval(statement))
        return int((await admin.execute(statement)).split()[-1])
    finally:
        await transaction.rollback()


async def _has(admin: asyncpg.Connection, role: str, name: str, privilege: str) -> bool:
    # DELETE is a privilege of the table alone, the others of its columns too.
    asks = "has_table_privilege" if privilege == "DELETE" else "has_any_column_privilege"
    return bool(await admin.fetchval(f"SELECT {asks}($1, $2, $3)", role, f'"{name}"', privilege))


async def _updatable(admin: asyncpg.Connection, app: str, name: str) -> list[str]:
    rows = await admin.fetch(
        "SELECT attname FROM pg_attribute WHERE attrelid = $2::regclass AND attnum > 0 "
        "AND NOT attisdropped AND attidentity = '' AND attgenerated = '' "
        "AND has_column_privilege($1, $2::regclass, attname, 'UPDATE') LIMIT 1",
        app,
        f'"{name}"',
    )
    return [row[0] for row in rows]
