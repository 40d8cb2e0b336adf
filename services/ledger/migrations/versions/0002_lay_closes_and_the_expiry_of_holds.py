"""Lays the closes of runs, and lets the jobs role see which holds are due."""

from alembic import op

from services.runtime.migrations import enable_tenant_rls, grant_app, grant_jobs

revision = "0002"
down_revision = "0001"

_RUN_CLOSES = """
CREATE TABLE run_closes (
    tenant_id text NOT NULL,
    run_id uuid NOT NULL,
    version integer NOT NULL CHECK (version > 0),
    unit_count bigint NOT NULL CHECK (unit_count >= 0),
    units_digest bytea NOT NULL CHECK (length(units_digest) = 32),
    close_time timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, run_id, version)
)
"""


def upgrade() -> None:
    """Create the table, its policies and grants."""
    op.execute(_RUN_CLOSES)
    enable_tenant_rls("run_closes")
    grant_app("run_closes", "SELECT, INSERT")
    grant_jobs("holds", "SELECT")
