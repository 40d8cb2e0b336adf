"""Statements that every migration needs: row-level security, grants, and the database clock.

They act on the schema that is being migrated.
"""

from alembic import op

from services.runtime.roles import Roles

_TENANTS = "string_to_array(current_setting('cogni.tenants', true), ',')"

_NOW_FUNCTION = """
CREATE FUNCTION cogni_now() RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE
RETURN statement_timestamp()
    + coalesce(nullif(current_setting('cogni.now_offset', true), ''), '0')::interval
"""

# Rows live for milliseconds. Vacuum by count: by share of the table it would come too late after
# an outage has grown it.
_OUTBOX = """
CREATE TABLE outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id text NOT NULL,
    topic text NOT NULL,
    payload jsonb NOT NULL,
    trace_context jsonb NOT NULL DEFAULT '{}',
    enqueue_time timestamptz NOT NULL DEFAULT cogni_now(),
    due_time timestamptz NOT NULL DEFAULT cogni_now(),
    attempts integer NOT NULL DEFAULT 0,
    last_error text
) WITH (
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 2000
)
"""


def create_now_function() -> None:
    """Create cogni_now(), the clock of every time the database writes or compares.

    It is the time the client's statement began, so one statement sees one time, a later
    statement of the same transaction a later one, and an index can answer `due <= cogni_now()`.
    clock_timestamp() would be volatile, which rules out the index. A statement that waits for a
    lock sees a time at most lock_timeout old. Tests shift it with
    ALTER DATABASE ... SET cogni.now_offset = '1 hour'; new connections see it.
    """
    roles = _roles()
    op.execute(_NOW_FUNCTION)
    op.execute(f'GRANT EXECUTE ON FUNCTION cogni_now() TO "{roles.app}", "{roles.jobs}"')


def enable_tenant_rls(table: str) -> None:
    """Let the app role meet only the rows whose tenant_id is bound to its transaction.

    The jobs role meets all of them. The owner meets none, since security is forced: a migration
    that moves data does so between NO FORCE and FORCE ROW LEVEL SECURITY.
    """
    roles = _roles()
    op.execute(f'ALTER TABLE "{table}" ENABLE ROW LEVEL SECURITY')
    op.execute(f'ALTER TABLE "{table}" FORCE ROW LEVEL SECURITY')
    op.execute(
        f'CREATE POLICY tenants ON "{table}" TO "{roles.app}" USING (tenant_id = ANY ({_TENANTS}))'
    )
    op.execute(f'CREATE POLICY jobs ON "{table}" TO "{roles.jobs}" USING (true)')


def grant_app(table: str, privileges: str) -> None:
    """Grant the app role e.g. "SELECT, INSERT, UPDATE (state)" on the table."""
    op.execute(f'GRANT {privileges} ON "{table}" TO "{_roles().app}"')


def grant_jobs(table: str, privileges: str) -> None:
    """Grant the jobs role e.g. "SELECT, DELETE" on the table."""
    op.execute(f'GRANT {privileges} ON "{table}" TO "{_roles().jobs}"')


def create_outbox() -> None:
    """Create the table `outbox` of what is owed to others; see `services.runtime.outbox`."""
    op.execute(_OUTBOX)
    op.execute("CREATE INDEX outbox_due ON outbox (due_time, id)")
    enable_tenant_rls("outbox")
    grant_app("outbox", "INSERT")
    grant_jobs("outbox", "SELECT, INSERT, UPDATE, DELETE")


def _roles() -> Roles:
    schema = op.get_context().version_table_schema
    assert schema, "migrate() names the schema"
    return Roles.of(schema)
