"""Adds backfills, and to slots when their runs ended and what these cost."""

from alembic import op

from services.runtime.migrations import enable_tenant_rls, grant_app, grant_jobs

revision = "0002"
down_revision = "0001"

# Nullable and without a default, so that the previous release goes on inserting.
_SLOTS = """
ALTER TABLE slots
    ADD COLUMN run_finish_time timestamptz,
    ADD COLUMN run_cost numeric
"""
_BACKFILLS = """
CREATE TABLE backfills (
    backfill_id uuid PRIMARY KEY,
    tenant_id text NOT NULL,
    request_id uuid NOT NULL,
    content_hash bytea NOT NULL,
    schedule_id uuid NOT NULL REFERENCES schedules,
    spec json NOT NULL,
    run_digest bytea NOT NULL,
    start_time timestamptz NOT NULL,
    end_time timestamptz NOT NULL,
    starts_per_minute integer NOT NULL CHECK (starts_per_minute > 0),
    max_unfinished integer NOT NULL CHECK (max_unfinished >= 0),
    overlap_policy text NOT NULL,
    cost_cap_asset text,
    cost_cap_value numeric CHECK (cost_cap_value >= 0),
    state text NOT NULL
        CHECK (state IN ('RUNNING', 'COMPLETED', 'CANCELLED', 'CAPPED', 'FAILED')),
    state_note text NOT NULL,
    total_count bigint NOT NULL,
    done_count bigint NOT NULL DEFAULT 0,
    present_count bigint NOT NULL DEFAULT 0,
    position_time timestamptz,
    step_time timestamptz,
    creator text NOT NULL,
    create_time timestamptz NOT NULL,
    finish_time timestamptz,
    UNIQUE (tenant_id, request_id),
    FOREIGN KEY (tenant_id, run_digest) REFERENCES run_templates,
    CHECK (start_time < end_time),
    CHECK (done_count <= total_count AND present_count <= done_count),
    CHECK ((cost_cap_asset IS NULL) = (cost_cap_value IS NULL)),
    CHECK ((state = 'RUNNING') = (step_time IS NOT NULL)),
    CHECK ((state = 'RUNNING') = (finish_time IS NULL))
)
"""


def upgrade() -> None:
    """Create the table and the columns."""
    op.execute(_SLOTS)
    op.execute(_BACKFILLS)
    op.execute("CREATE INDEX backfills_to_step ON backfills (step_time) WHERE state = 'RUNNING'")
    op.execute("CREATE INDEX backfills_of_schedule ON backfills (schedule_id, backfill_id)")
    enable_tenant_rls("backfills")
    grant_app("backfills", "SELECT, INSERT, UPDATE")
    grant_jobs("backfills", "SELECT, INSERT, UPDATE")
