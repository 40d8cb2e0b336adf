"""Lays the tables of schedules, their permanent slots, and the streams that feed overlap."""

import re

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

_SCHEDULES = """
CREATE TABLE run_templates (
    tenant_id text NOT NULL,
    digest bytea NOT NULL,
    template json NOT NULL,
    PRIMARY KEY (tenant_id, digest)
);

CREATE TABLE schedules (
    schedule_id uuid PRIMARY KEY,
    tenant_id text NOT NULL,
    request_id uuid NOT NULL,
    content_hash bytea NOT NULL,
    display_name text NOT NULL,
    description text NOT NULL,
    labels jsonb NOT NULL,
    spec json NOT NULL,
    run_digest bytea NOT NULL,
    graph_id text NOT NULL,
    grant_id uuid NOT NULL,
    overlap_policy text NOT NULL,
    catch_up_mode text NOT NULL,
    catch_up_window interval NOT NULL,
    catch_up_max_count integer NOT NULL,
    catch_up_once text,
    remaining_actions bigint CHECK (remaining_actions >= 0),
    pause_on_failure boolean NOT NULL,
    state text NOT NULL CHECK (state IN ('ACTIVE', 'PAUSED', 'COMPLETED', 'DELETED')),
    state_reason text NOT NULL,
    state_note text NOT NULL,
    state_time timestamptz NOT NULL,
    position_time timestamptz NOT NULL,
    next_slot_time timestamptz,
    next_fire_time timestamptz,
    last_slot_time timestamptz,
    pause_time timestamptz,
    unpause_time timestamptz,
    tzdata_version text NOT NULL,
    started_count bigint NOT NULL DEFAULT 0,
    skipped_count bigint NOT NULL DEFAULT 0,
    missed_count bigint NOT NULL DEFAULT 0,
    failed_count bigint NOT NULL DEFAULT 0,
    buffered_count bigint NOT NULL DEFAULT 0,
    creator text NOT NULL,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,
    revision bigint NOT NULL,
    UNIQUE (tenant_id, request_id),
    FOREIGN KEY (tenant_id, run_digest) REFERENCES run_templates,
    CHECK ((next_slot_time IS NULL) = (next_fire_time IS NULL)),
    CHECK ((state = 'ACTIVE') = (next_slot_time IS NOT NULL)),
    CHECK (next_fire_time >= next_slot_time),
    CHECK (next_slot_time > position_time)
);
CREATE INDEX schedules_due ON schedules (next_fire_time) WHERE state = 'ACTIVE';
CREATE INDEX schedules_newest ON schedules (tenant_id, schedule_id DESC);
CREATE INDEX schedules_of_grant ON schedules (grant_id) WHERE state <> 'DELETED';
"""

# No role may delete a slot or change its key: one slot per schedule and nominal time, for ever.
_SLOTS = """
CREATE TABLE slots (
    schedule_id uuid NOT NULL REFERENCES schedules,
    scheduled_time timestamptz NOT NULL,
    tenant_id text NOT NULL,
    fire_time timestamptz NOT NULL,
    state text NOT NULL CHECK (state IN
        ('PENDING', 'BUFFERED', 'STARTED', 'SKIPPED', 'MISSED', 'REFUSED', 'CANCELLED')),
    reason text NOT NULL,
    note text NOT NULL,
    origin text NOT NULL CHECK (origin IN ('SCHEDULE', 'MANUAL', 'BACKFILL')),
    overlap_policy text NOT NULL,
    decided boolean NOT NULL,
    run_digest bytea NOT NULL,
    run_id uuid,
    run_state text,
    run_finished boolean NOT NULL DEFAULT false,
    cancel_requested boolean NOT NULL DEFAULT false,
    backfill_id uuid,
    attempts integer NOT NULL DEFAULT 0,
    dispatch_time timestamptz,
    create_time timestamptz NOT NULL,
    start_time timestamptz,
    state_time timestamptz NOT NULL,
    PRIMARY KEY (schedule_id, scheduled_time),
    FOREIGN KEY (tenant_id, run_digest) REFERENCES run_templates,
    CHECK ((state = 'STARTED') = (run_id IS NOT NULL)),
    CHECK ((state = 'STARTED') = (start_time IS NOT NULL)),
    CHECK ((state = 'PENDING') = (dispatch_time IS NOT NULL)),
    CHECK (decided OR state = 'PENDING'),
    CHECK (NOT run_finished OR state = 'STARTED')
) WITH (fillfactor = 85);
CREATE INDEX slots_unfinished ON slots (schedule_id, scheduled_time)
    WHERE state IN ('PENDING', 'BUFFERED') OR (state = 'STARTED' AND NOT run_finished);
CREATE INDEX slots_to_dispatch ON slots (dispatch_time) WHERE state = 'PENDING';
CREATE INDEX slots_of_backfill ON slots (backfill_id, scheduled_time)
    WHERE backfill_id IS NOT NULL;

CREATE TABLE manual_keys (
    tenant_id text NOT NULL,
    request_id uuid NOT NULL,
    content_hash bytea NOT NULL,
    schedule_id uuid NOT NULL,
    scheduled_time timestamptz NOT NULL,
    create_time timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, request_id),
    FOREIGN KEY (schedule_id, scheduled_time) REFERENCES slots
);

CREATE TABLE slot_changes (
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    id bigint GENERATED ALWAYS AS IDENTITY,
    tenant_id text NOT NULL,
    schedule_id uuid NOT NULL,
    slot jsonb NOT NULL,
    change_time timestamptz NOT NULL,
    PRIMARY KEY (xid, id)
);
"""

# Triggers and not each statement: a change that one of them forgot to note or to count would
# leave a watcher waiting and a count wrong for ever. They run once per statement, not per row.
_NOTE_CHANGES = """
CREATE FUNCTION note_new_slots() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO slot_changes (tenant_id, schedule_id, slot, change_time)
    SELECT tenant_id, schedule_id, to_jsonb(fresh) - 'run_digest', cogni_now()
    FROM fresh ORDER BY schedule_id, scheduled_time;
    UPDATE schedules SET
        skipped_count = skipped_count + tally.skipped,
        missed_count = missed_count + tally.missed,
        buffered_count = buffered_count + tally.buffered
    FROM (
        SELECT schedule_id,
            count(*) FILTER (WHERE state = 'SKIPPED') AS skipped,
            count(*) FILTER (WHERE state = 'MISSED') AS missed,
            count(*) FILTER (WHERE state = 'BUFFERED') AS buffered
        FROM fresh WHERE state IN ('SKIPPED', 'MISSED', 'BUFFERED') GROUP BY schedule_id
    ) AS tally
    WHERE schedules.schedule_id = tally.schedule_id;
    RETURN NULL;
END $$;
CREATE TRIGGER note_new AFTER INSERT ON slots REFERENCING NEW TABLE AS fresh
    FOR EACH STATEMENT EXECUTE FUNCTION note_new_slots();

CREATE FUNCTION note_changed_slots() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO slot_changes (tenant_id, schedule_id, slot, change_time)
    SELECT fresh.tenant_id, fresh.schedule_id, to_jsonb(fresh) - 'run_digest', cogni_now()
    FROM fresh JOIN stale USING (schedule_id, scheduled_time)
    WHERE (fresh.state, fresh.reason, fresh.run_id, fresh.run_state)
        IS DISTINCT FROM (stale.state, stale.reason, stale.run_id, stale.run_state)
    ORDER BY fresh.schedule_id, fresh.scheduled_time;
    UPDATE schedules SET
        started_count = started_count + tally.started,
        skipped_count = skipped_count + tally.skipped,
        missed_count = missed_count + tally.missed,
        failed_count = failed_count + tally.failed,
        buffered_count = buffered_count + tally.buffered
    FROM (
        SELECT schedule_id,
            sum((fresh.state = 'STARTED')::int - (stale.state = 'STARTED')::int) AS started,
            sum((fresh.state = 'SKIPPED')::int - (stale.state = 'SKIPPED')::int) AS skipped,
            sum((fresh.state = 'MISSED')::int - (stale.state = 'MISSED')::int) AS missed,
            sum((fresh.state IN ('REFUSED', 'CANCELLED'))::int
                - (stale.state IN ('REFUSED', 'CANCELLED'))::int) AS failed,
            sum((fresh.state = 'BUFFERED')::int - (stale.state = 'BUFFERED')::int) AS buffered
        FROM fresh JOIN stale USING (schedule_id, scheduled_time)
        WHERE fresh.state <> stale.state GROUP BY schedule_id
    ) AS tally
    WHERE schedules.schedule_id = tally.schedule_id;
    RETURN NULL;
END $$;
CREATE TRIGGER note_changed AFTER UPDATE ON slots
    REFERENCING OLD TABLE AS stale NEW TABLE AS fresh
    FOR EACH STATEMENT EXECUTE FUNCTION note_changed_slots();
"""

# A stream that the Scheduler follows: where it is, and which process follows it for now. It
# belongs to no tenant, so the app role has no business with it.
_STREAMS = """
CREATE TABLE streams (
    name text PRIMARY KEY,
    cursor text NOT NULL,
    watermark_time timestamptz,
    holder uuid,
    lease_expire_time timestamptz
);

CREATE TABLE watched_grants (
    grant_id uuid PRIMARY KEY,
    tenant_id text NOT NULL,
    state text NOT NULL,
    expire_time timestamptz,
    change_time timestamptz NOT NULL
);
"""


def upgrade() -> None:
    """Create everything."""
    create_now_function()
    for script in (_SCHEDULES, _SLOTS, _NOTE_CHANGES, _STREAMS):
        # The driver takes one statement at a time.
        for statement in re.split(r";\s*(?=CREATE)", script):
            op.execute(statement)
    create_outbox()
    for table, privileges in (
        ("run_templates", "SELECT, INSERT"),
        ("schedules", "SELECT, INSERT, UPDATE"),
        ("slots", "SELECT, INSERT, UPDATE"),
        ("manual_keys", "SELECT, INSERT"),
        ("slot_changes", "SELECT, INSERT"),
        ("watched_grants", "SELECT, INSERT, UPDATE"),
    ):
        enable_tenant_rls(table)
        grant_app(table, privileges)
        grant_jobs(table, privileges)
    grant_jobs("streams", "SELECT, INSERT, UPDATE")
