"""Lays the tables of grants, graphs and runs, their leases and event logs."""

from alembic import op

from services.runtime.migrations import (
    create_now_function,
    create_outbox,
    enable_tenant_rls,
    grant_app,
    grant_jobs,
)

revision = "0001"
down_revision = None

_GRANTS = """
CREATE TABLE grants (
    grant_id uuid PRIMARY KEY,
    tenant_id text NOT NULL,
    request_id uuid NOT NULL,
    content_hash bytea NOT NULL,
    owner text NOT NULL,
    display_name text NOT NULL,
    state text NOT NULL CHECK (state IN ('ACTIVE', 'REVOKED', 'EXPIRED')),
    graph_ids text[] NOT NULL CHECK (cardinality(graph_ids) > 0),
    tools json NOT NULL,
    connection_ids text[] NOT NULL,
    account_id text,
    budget_asset text,
    budget_value numeric CHECK (budget_value >= 0),
    expire_time timestamptz,
    labels jsonb NOT NULL,
    create_time timestamptz NOT NULL,
    revoke_time timestamptz,
    revoke_comment text,
    revoker text,
    UNIQUE (tenant_id, request_id),
    CHECK ((state = 'REVOKED') = (revoke_time IS NOT NULL)),
    CHECK ((revoke_time IS NULL) = (revoker IS NULL)),
    CHECK ((budget_asset IS NULL) = (budget_value IS NULL)),
    CHECK (state <> 'EXPIRED' OR expire_time IS NOT NULL)
);
CREATE INDEX grants_newest ON grants (tenant_id, grant_id DESC);
CREATE INDEX grants_expiry ON grants (expire_time) WHERE state = 'ACTIVE';

CREATE TABLE grant_changes (
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    id bigint GENERATED ALWAYS AS IDENTITY,
    tenant_id text NOT NULL,
    grant_id uuid NOT NULL,
    owner text NOT NULL,
    state text NOT NULL,
    expire_time timestamptz,
    change_time timestamptz NOT NULL,
    PRIMARY KEY (xid, id)
);
"""

# Written by a trigger and not by each statement: a change that one of them forgot to note would
# leave a schedule waiting for it for ever.
_GRANT_CHANGES_TRIGGER = """
CREATE FUNCTION note_grant_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO grant_changes (tenant_id, grant_id, owner, state, expire_time, change_time)
    VALUES (NEW.tenant_id, NEW.grant_id, NEW.owner, NEW.state, NEW.expire_time, cogni_now());
    RETURN NULL;
END $$;
CREATE TRIGGER note_change AFTER INSERT OR UPDATE OF state ON grants
    FOR EACH ROW EXECUTE FUNCTION note_grant_change();
"""

_GRAPHS = """
CREATE TABLE graphs (
    tenant_id text NOT NULL,
    graph_id text NOT NULL,
    revision text NOT NULL,
    state text NOT NULL CHECK (state IN ('AVAILABLE', 'BROKEN')),
    description text NOT NULL,
    error text,
    input_schema json NOT NULL,
    output_schema json NOT NULL,
    context_schema json NOT NULL,
    tools json NOT NULL,
    nodes text[] NOT NULL,
    publish_time timestamptz NOT NULL,
    seen_time timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, graph_id, revision),
    CHECK ((state = 'BROKEN') = (error IS NOT NULL))
);
"""

_RUNS = """
CREATE TABLE run_keys (
    tenant_id text NOT NULL,
    request_id uuid NOT NULL,
    content_hash bytea NOT NULL,
    run_id uuid NOT NULL,
    create_time timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, request_id)
);

CREATE TABLE runs (
    run_id uuid PRIMARY KEY,
    tenant_id text NOT NULL,
    graph_id text NOT NULL,
    revision text NOT NULL,
    thread_id uuid NOT NULL,
    grant_id uuid NOT NULL REFERENCES grants,
    owner text NOT NULL,
    state text NOT NULL CHECK (state IN
        ('QUEUED', 'RUNNING', 'WAITING', 'SUCCEEDED', 'FAILED', 'CANCELLED', 'DENIED')),
    waiting_reason text CHECK (waiting_reason IN ('INTERRUPT', 'OUTCOME_UNKNOWN')),
    attempt integer NOT NULL DEFAULT 0 CHECK (attempt >= 0),
    input json NOT NULL,
    context json NOT NULL,
    output json,
    error_reason text,
    error_message text,
    error_node text,
    error_type text,
    replayed_run_id uuid,
    schedule_id text,
    scheduled_time timestamptz,
    slot_id text,
    trigger_id text,
    delivery_id text,
    max_attempts integer NOT NULL,
    timeout interval NOT NULL,
    max_steps integer NOT NULL,
    durability text NOT NULL CHECK (durability IN ('STEP', 'EXIT')),
    max_cost_asset text,
    max_cost_value numeric CHECK (max_cost_value >= 0),
    labels jsonb NOT NULL,
    traceparent text,
    create_time timestamptz NOT NULL,
    start_time timestamptz,
    finish_time timestamptz,
    update_time timestamptz NOT NULL,
    cancel_request_time timestamptz,
    cancel_reason text,
    cancel_comment text,
    canceller text,
    events_expire_time timestamptz,
    close_version integer NOT NULL DEFAULT 0,
    close_time timestamptz,
    CHECK ((state IN ('SUCCEEDED', 'FAILED', 'CANCELLED', 'DENIED')) = (finish_time IS NOT NULL)),
    CHECK ((state IN ('FAILED', 'CANCELLED', 'DENIED')) = (error_reason IS NOT NULL)),
    CHECK ((state = 'SUCCEEDED') = (output IS NOT NULL)),
    CHECK ((state = 'WAITING') = (waiting_reason IS NOT NULL)),
    CHECK ((attempt = 0) = (start_time IS NULL)),
    CHECK (state NOT IN ('RUNNING', 'WAITING', 'SUCCEEDED') OR attempt > 0),
    CHECK ((cancel_request_time IS NULL) = (cancel_reason IS NULL)),
    CHECK (close_time IS NULL OR finish_time IS NOT NULL)
);
CREATE INDEX runs_newest ON runs (tenant_id, run_id DESC);
CREATE INDEX runs_of_graph ON runs (tenant_id, graph_id, run_id DESC);
CREATE INDEX runs_of_schedule ON runs (tenant_id, schedule_id, run_id DESC)
    WHERE schedule_id IS NOT NULL;
CREATE INDEX runs_of_grant ON runs (grant_id, run_id DESC);
CREATE INDEX runs_by_label ON runs USING gin (labels jsonb_path_ops);
CREATE INDEX runs_of_thread ON runs (thread_id, run_id DESC);
CREATE UNIQUE INDEX runs_one_active_per_thread ON runs (thread_id)
    WHERE state IN ('QUEUED', 'RUNNING', 'WAITING');
CREATE INDEX runs_to_close ON runs (finish_time)
    WHERE finish_time IS NOT NULL AND close_time IS NULL;

CREATE TABLE run_changes (
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    id bigint GENERATED ALWAYS AS IDENTITY,
    tenant_id text NOT NULL,
    run_id uuid NOT NULL,
    graph_id text NOT NULL,
    grant_id uuid NOT NULL,
    thread_id uuid NOT NULL,
    state text NOT NULL,
    waiting_reason text,
    attempt integer NOT NULL,
    error_reason text,
    error_message text,
    schedule_id text,
    scheduled_time timestamptz,
    slot_id text,
    trigger_id text,
    delivery_id text,
    change_time timestamptz NOT NULL,
    PRIMARY KEY (xid, id)
);

CREATE TABLE interrupts (
    run_id uuid NOT NULL REFERENCES runs ON DELETE CASCADE,
    interrupt_id text NOT NULL,
    tenant_id text NOT NULL,
    reason text NOT NULL CHECK (reason IN ('INTERRUPT', 'OUTCOME_UNKNOWN')),
    node text NOT NULL,
    payload json NOT NULL,
    invocation_id uuid,
    tool text,
    create_time timestamptz NOT NULL,
    answer json,
    answer_time timestamptz,
    answerer text,
    PRIMARY KEY (run_id, interrupt_id),
    CHECK ((reason = 'OUTCOME_UNKNOWN') = (invocation_id IS NOT NULL)),
    CHECK ((answer IS NULL) = (answer_time IS NULL)),
    CHECK ((answer IS NULL) = (answerer IS NULL))
);
"""

_RUN_CHANGES_TRIGGER = """
CREATE FUNCTION note_run_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO run_changes (tenant_id, run_id, graph_id, grant_id, thread_id, state,
        waiting_reason, attempt, error_reason, error_message, schedule_id, scheduled_time,
        slot_id, trigger_id, delivery_id, change_time)
    VALUES (NEW.tenant_id, NEW.run_id, NEW.graph_id, NEW.grant_id, NEW.thread_id, NEW.state,
        NEW.waiting_reason, NEW.attempt, NEW.error_reason, NEW.error_message, NEW.schedule_id,
        NEW.scheduled_time, NEW.slot_id, NEW.trigger_id, NEW.delivery_id, cogni_now());
    RETURN NULL;
END $$;
CREATE TRIGGER note_creation AFTER INSERT ON runs
    FOR EACH ROW EXECUTE FUNCTION note_run_change();
CREATE TRIGGER note_change AFTER UPDATE OF state, waiting_reason, attempt ON runs
    FOR EACH ROW WHEN ((OLD.state, OLD.waiting_reason, OLD.attempt)
        IS DISTINCT FROM (NEW.state, NEW.waiting_reason, NEW.attempt))
    EXECUTE FUNCTION note_run_change();
"""

# ready_time set: in the queue. holder set: an attempt is under way. Neither: waiting, or sealed.
_LEASES_AND_EVENTS = """
CREATE TABLE run_leases (
    run_id uuid PRIMARY KEY REFERENCES runs ON DELETE CASCADE,
    tenant_id text NOT NULL,
    epoch bigint NOT NULL DEFAULT 0 CHECK (epoch >= 0),
    next_seq bigint NOT NULL DEFAULT 1 CHECK (next_seq > 0),
    ready_time timestamptz,
    queued_cause text NOT NULL CHECK (queued_cause IN ('STARTED', 'RESUMED', 'HANDED_OVER')),
    holder text,
    expire_time timestamptz,
    token_expire_time timestamptz,
    sealed boolean NOT NULL DEFAULT false,
    alone boolean NOT NULL DEFAULT false,
    suspicions integer NOT NULL DEFAULT 0 CHECK (suspicions >= 0),
    deaths integer NOT NULL DEFAULT 0 CHECK (deaths >= 0),
    CHECK ((holder IS NULL) = (expire_time IS NULL)),
    CHECK (holder IS NULL OR ready_time IS NULL),
    CHECK (NOT sealed OR (holder IS NULL AND ready_time IS NULL))
) WITH (fillfactor = 70);
CREATE INDEX run_leases_ready ON run_leases (tenant_id, ready_time) WHERE ready_time IS NOT NULL;
CREATE INDEX run_leases_expiry ON run_leases (expire_time) WHERE holder IS NOT NULL;

CREATE TABLE run_events (
    run_id uuid NOT NULL REFERENCES runs ON DELETE CASCADE,
    seq bigint NOT NULL CHECK (seq > 0),
    tenant_id text NOT NULL,
    attempt integer NOT NULL CHECK (attempt >= 0),
    type text NOT NULL,
    payload bytea NOT NULL,
    PRIMARY KEY (run_id, seq)
);
CREATE UNIQUE INDEX run_events_one_terminal ON run_events (run_id) WHERE type = 'finished';
"""

# What is written once and never changed has no UPDATE: the database keeps that promise too.
_PRIVILEGES = {
    "grants": "SELECT, INSERT, UPDATE (state, revoke_time, revoke_comment, revoker)",
    "grant_changes": "SELECT, INSERT",
    "graphs": "SELECT",
    "run_keys": "SELECT, INSERT",
    "runs": "SELECT, INSERT, UPDATE, DELETE",
    "run_changes": "SELECT, INSERT",
    "interrupts": "SELECT, INSERT, UPDATE, DELETE",
    "run_leases": "SELECT, INSERT, UPDATE, DELETE",
    "run_events": "SELECT, INSERT, DELETE",
}


def upgrade() -> None:
    create_now_function()
    for statements in (
        _GRANTS,
        _GRANT_CHANGES_TRIGGER,
        _GRAPHS,
        _RUNS,
        _RUN_CHANGES_TRIGGER,
        _LEASES_AND_EVENTS,
    ):
        for statement in _split(statements):
            op.execute(statement)
    for table, privileges in _PRIVILEGES.items():
        enable_tenant_rls(table)
        grant_app(table, privileges)
        grant_jobs(table, "SELECT, INSERT, UPDATE, DELETE" if table == "graphs" else privileges)
    _show_everybodys_graphs()
    create_outbox()


def _show_everybodys_graphs() -> None:
    """Graphs published for tenant "*" can be run by every tenant, but not by nobody."""
    op.execute(
        "CREATE POLICY everybodys ON graphs FOR SELECT USING "
        "(tenant_id = '*' AND nullif(current_setting('cogni.tenants', true), '') IS NOT NULL)"
    )


def _split(statements: str) -> list[str]:
    """One statement each: asyncpg prepares what it executes, and prepares only one at a time."""
    if "$$" in statements:
        function, rest = statements.split("END $$;")
        return [f"{function}END $$", *_split(rest)]
    return [statement for statement in statements.split(";") if statement.strip()]


def downgrade() -> None:
    raise NotImplementedError("a schema only moves forward; restore a backup to go back")
