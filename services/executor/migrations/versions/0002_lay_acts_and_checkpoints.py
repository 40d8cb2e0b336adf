"""Lays the tables of what attempts do: invocations, usage, audit records, checkpoints."""

from alembic import op

from services.runtime.migrations import enable_tenant_rls, grant_app, grant_jobs

revision = "0002"
down_revision = "0001"

_ACTS_AND_FACTS = """
CREATE TABLE invocations (
    invocation_id uuid PRIMARY KEY,
    tenant_id text NOT NULL,
    run_id uuid NOT NULL REFERENCES runs ON DELETE CASCADE,
    attempt integer NOT NULL CHECK (attempt > 0),
    task_id text NOT NULL,
    tool_call_id text,
    tool text NOT NULL,
    node text NOT NULL,
    effect text NOT NULL CHECK (effect IN ('NONE', 'IDEMPOTENT', 'OUTWARD')),
    arguments_digest bytea NOT NULL,
    connection_id text,
    decision text NOT NULL CHECK (decision IN ('ALLOWED', 'DENIED')),
    reason text,
    message text,
    state text NOT NULL CHECK (state IN ('REQUESTED', 'SENT', 'FINISHED', 'FAILED', 'UNKNOWN')),
    asked boolean NOT NULL DEFAULT false,
    result bytea,
    error_type text,
    error_message text,
    decision_audit_record_id uuid,
    create_time timestamptz NOT NULL,
    sent_time timestamptz,
    finish_time timestamptz,
    CHECK ((decision = 'DENIED') = (reason IS NOT NULL)),
    CHECK (decision = 'ALLOWED' OR state = 'REQUESTED'),
    CHECK (state = 'REQUESTED' OR sent_time IS NOT NULL OR effect = 'NONE'),
    CHECK ((state IN ('FINISHED', 'FAILED')) = (finish_time IS NOT NULL))
);
CREATE INDEX invocations_of_run ON invocations (run_id, tool);

CREATE TABLE usage_units (
    call_id uuid PRIMARY KEY,
    tenant_id text NOT NULL,
    run_id uuid NOT NULL,
    attempt integer NOT NULL CHECK (attempt > 0),
    grant_id uuid NOT NULL,
    account_id text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('LLM_CALL', 'TOOL_CALL', 'COMPUTE_TIME', 'CUSTOM')),
    node text NOT NULL,
    model text,
    provider text,
    provider_response_id text NOT NULL DEFAULT '',
    invocation_id uuid,
    state text NOT NULL CHECK (state IN ('PENDING', 'SETTLED')),
    estimate json NOT NULL,
    actual json,
    cost_asset text,
    cost_value numeric CHECK (cost_value >= 0),
    rework boolean NOT NULL DEFAULT false,
    estimated boolean NOT NULL DEFAULT false,
    record_problem text,
    record_due_time timestamptz NOT NULL DEFAULT cogni_now(),
    occur_time timestamptz NOT NULL,
    settle_time timestamptz,
    record_time timestamptz,
    CHECK ((state = 'SETTLED') = (settle_time IS NOT NULL)),
    CHECK ((state = 'SETTLED') = (actual IS NOT NULL)),
    CHECK (record_time IS NULL OR state = 'SETTLED'),
    CHECK ((cost_asset IS NULL) = (cost_value IS NULL))
);
CREATE INDEX usage_units_of_run ON usage_units (run_id);
CREATE INDEX usage_units_of_grant ON usage_units (grant_id);
CREATE INDEX usage_units_pending ON usage_units (occur_time) WHERE state = 'PENDING';
CREATE INDEX usage_units_to_record ON usage_units (record_due_time)
    WHERE state = 'SETTLED' AND record_time IS NULL;

CREATE TABLE audit_records (
    audit_record_id uuid PRIMARY KEY,
    tenant_id text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('EVENT', 'DECISION', 'OUTCOME')),
    action text NOT NULL,
    actor text NOT NULL,
    run_id uuid,
    attempt integer NOT NULL DEFAULT 0,
    grant_id uuid,
    invocation_id uuid,
    cause_audit_record_id uuid,
    decision text CHECK (decision IN ('ALLOWED', 'DENIED')),
    reason text,
    outcome text CHECK (outcome IN ('SUCCEEDED', 'FAILED', 'UNKNOWN')),
    event_seq bigint NOT NULL DEFAULT 0,
    details json NOT NULL,
    create_time timestamptz NOT NULL,
    trace_id text,
    CHECK ((kind = 'DECISION') = (decision IS NOT NULL)),
    CHECK ((kind = 'OUTCOME') = (outcome IS NOT NULL)),
    CHECK (decision IS DISTINCT FROM 'DENIED' OR reason IS NOT NULL)
);
CREATE INDEX audit_records_newest ON audit_records (tenant_id, audit_record_id DESC);
CREATE INDEX audit_records_of_run ON audit_records (run_id, audit_record_id DESC);
CREATE INDEX audit_records_of_grant ON audit_records (grant_id, audit_record_id DESC);
"""

_CHECKPOINTS = """
CREATE TABLE checkpoints (
    thread_id text NOT NULL,
    checkpoint_ns text NOT NULL,
    checkpoint_id text NOT NULL,
    tenant_id text NOT NULL,
    run_id uuid NOT NULL REFERENCES runs ON DELETE CASCADE,
    attempt integer NOT NULL,
    parent_checkpoint_id text,
    type text NOT NULL,
    checkpoint bytea NOT NULL,
    metadata json NOT NULL,
    step integer NOT NULL,
    source text NOT NULL,
    create_time timestamptz NOT NULL,
    PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id)
);
CREATE INDEX checkpoints_of_run ON checkpoints (run_id, checkpoint_id DESC);

CREATE TABLE checkpoint_blobs (
    thread_id text NOT NULL,
    checkpoint_ns text NOT NULL,
    channel text NOT NULL,
    version text NOT NULL,
    tenant_id text NOT NULL,
    run_id uuid NOT NULL REFERENCES runs ON DELETE CASCADE,
    type text NOT NULL,
    blob bytea,
    PRIMARY KEY (thread_id, checkpoint_ns, channel, version)
);
CREATE INDEX checkpoint_blobs_of_run ON checkpoint_blobs (run_id);

CREATE TABLE checkpoint_writes (
    thread_id text NOT NULL,
    checkpoint_ns text NOT NULL,
    checkpoint_id text NOT NULL,
    task_id text NOT NULL,
    idx integer NOT NULL,
    tenant_id text NOT NULL,
    run_id uuid NOT NULL REFERENCES runs ON DELETE CASCADE,
    task_path text NOT NULL,
    channel text NOT NULL,
    type text NOT NULL,
    blob bytea NOT NULL,
    PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id, task_id, idx)
);
CREATE INDEX checkpoint_writes_of_run ON checkpoint_writes (run_id);
"""

# What is written once and never changed has no UPDATE: the database keeps that promise too.
_PRIVILEGES = {
    "invocations": "SELECT, INSERT, UPDATE, DELETE",
    "usage_units": "SELECT, INSERT, UPDATE",
    "audit_records": "SELECT, INSERT",
    "checkpoints": "SELECT, INSERT, UPDATE, DELETE",
    "checkpoint_blobs": "SELECT, INSERT, UPDATE, DELETE",
    "checkpoint_writes": "SELECT, INSERT, UPDATE, DELETE",
}


def upgrade() -> None:
    for statements in (_ACTS_AND_FACTS, _CHECKPOINTS):
        for statement in statements.split(";"):
            if statement.strip():
                op.execute(statement)
    for table, privileges in _PRIVILEGES.items():
        enable_tenant_rls(table)
        grant_app(table, privileges)
        grant_jobs(table, privileges)


def downgrade() -> None:
    raise NotImplementedError("a schema only moves forward; restore a backup to go back")
