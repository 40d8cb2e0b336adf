"""Create a table of tenants' notes and one that belongs to no tenant."""

from alembic import op

from services.runtime.migrations import (
    create_now_function,
    enable_tenant_rls,
    grant_app,
    grant_jobs,
)

revision = "0001"
down_revision = None


def upgrade() -> None:
    create_now_function()
    op.execute(
        """
        CREATE TABLE notes (
            tenant_id text NOT NULL,
            id bigint GENERATED ALWAYS AS IDENTITY,
            text text NOT NULL,
            write_time timestamptz NOT NULL DEFAULT cogni_now(),
            PRIMARY KEY (tenant_id, id)
        )
        """
    )
    enable_tenant_rls("notes")
    grant_app("notes", "SELECT, INSERT, UPDATE, DELETE")
    grant_jobs("notes", "SELECT, DELETE")
    op.execute("CREATE TABLE units (name text PRIMARY KEY)")
    grant_app("units", "SELECT")
