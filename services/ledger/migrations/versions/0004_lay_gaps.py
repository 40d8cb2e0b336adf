"""Lays the gaps between what the Executor committed and what was recorded."""

from alembic import op

from services.runtime.migrations import enable_tenant_rls, grant_app, grant_jobs

revision = "0004"
down_revision = "0003"

_GAPS = """
CREATE TABLE gaps (
    tenant_id text NOT NULL,
    run_id uuid NOT NULL,
    kind smallint NOT NULL CHECK (kind BETWEEN 1 AND 4),
    committed_unit_count bigint NOT NULL,
    recorded_unit_count bigint NOT NULL,
    detect_time timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, run_id)
)
"""

# Up to which entry of a tenant's log its runs were compared.
_GAP_CHECKS = """
CREATE TABLE gap_checks (
    tenant_id text PRIMARY KEY,
    sequence bigint NOT NULL
)
"""


def upgrade() -> None:
    """Create the tables, their policies and grants."""
    op.execute(_GAPS)
    op.execute(_GAP_CHECKS)
    for table in ("gaps", "gap_checks"):
        enable_tenant_rls(table)
        grant_jobs(table, "SELECT")
    grant_jobs("log_heads", "SELECT")
    grant_app("gaps", "SELECT, INSERT, UPDATE, DELETE")
    grant_app("gap_checks", "SELECT, INSERT, UPDATE")
