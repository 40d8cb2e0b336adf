"""Add an outbox and a stream read by the commit-ordered cursor."""

from alembic import op

from services.runtime.migrations import create_outbox, enable_tenant_rls, grant_app, grant_jobs

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    create_outbox()
    op.execute(
        """
        CREATE TABLE note_changes (
            xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
            id bigint GENERATED ALWAYS AS IDENTITY,
            tenant_id text NOT NULL,
            text text NOT NULL,
            PRIMARY KEY (xid, id)
        )
        """
    )
    enable_tenant_rls("note_changes")
    grant_app("note_changes", "SELECT, INSERT")
    grant_jobs("note_changes", "SELECT")
