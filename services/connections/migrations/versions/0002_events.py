"""Events of connections for webhooks: written with the change, kept until sent or given up.

Revision ID: 0002
Revises: 0001
"""

from alembic import op

from services.runtime.ddl import create_outbox, enable_tenant_rls, grant_jobs
from services.runtime.roles import Roles

revision = "0002"
down_revision = "0001"

# A trigger, so that no statement that changes a connection can forget its event. REFRESHING counts
# as ACTIVE: it passes by itself every few hours, and nobody has to act on it. The number is taken
# while the connection's row is locked, so one connection's events are numbered in commit order.
_EVENTS = """
CREATE SEQUENCE connection_event_numbers;

CREATE FUNCTION note_connection_event() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    subject connections%ROWTYPE;
    kind text := TG_ARGV[0];
    before text := '';
BEGIN
    IF TG_OP = 'DELETE' THEN
        subject := OLD;
    ELSE
        subject := NEW;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        before := replace(OLD.state, 'REFRESHING', 'ACTIVE');
    END IF;
    INSERT INTO outbox (tenant_id, topic, payload) VALUES (subject.tenant_id, 'connection-event',
        jsonb_build_object(
            'event_id', 'evt_' || gen_random_uuid(),
            'type', kind,
            'timestamp',
            to_char(cogni_now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
            'data', jsonb_build_object(
                'sequence', nextval('connection_event_numbers'),
                'tenant_id', subject.tenant_id,
                'connection_id', subject.connection_id,
                'provider', subject.provider,
                'display_name', subject.display_name,
                'owner', subject.owner,
                'state', replace(subject.state, 'REFRESHING', 'ACTIVE'),
                'previous_state', before,
                'state_reason', subject.state_reason,
                'state_message', subject.state_message)));
    RETURN NULL;
END $$;

CREATE TRIGGER note_creation AFTER INSERT ON connections
    FOR EACH ROW EXECUTE FUNCTION note_connection_event('connection.created');

CREATE TRIGGER note_update AFTER UPDATE OF revision ON connections
    FOR EACH ROW WHEN (OLD.revision <> NEW.revision)
    EXECUTE FUNCTION note_connection_event('connection.updated');

CREATE TRIGGER note_state AFTER UPDATE OF state, state_reason ON connections
    FOR EACH ROW WHEN (
        (replace(OLD.state, 'REFRESHING', 'ACTIVE'), OLD.state_reason)
        IS DISTINCT FROM (replace(NEW.state, 'REFRESHING', 'ACTIVE'), NEW.state_reason))
    EXECUTE FUNCTION note_connection_event('connection.state_changed');

CREATE TRIGGER note_deletion AFTER DELETE ON connections
    FOR EACH ROW EXECUTE FUNCTION note_connection_event('connection.deleted');
"""

_UNDELIVERED = """
CREATE TABLE undelivered_events (
    tenant_id text NOT NULL,
    event_id text NOT NULL,
    payload jsonb NOT NULL,
    attempts integer NOT NULL,
    last_error text NOT NULL,
    enqueue_time timestamptz NOT NULL,
    give_up_time timestamptz NOT NULL DEFAULT cogni_now(),
    PRIMARY KEY (tenant_id, event_id)
)
"""


def upgrade() -> None:
    """Create the outbox, the triggers that fill it, and where events end that nobody took."""
    create_outbox()
    for statement in _EVENTS.split(";\n\n"):
        op.execute(statement)
    op.execute(_UNDELIVERED)
    enable_tenant_rls("undelivered_events")
    grant_jobs("undelivered_events", "SELECT, INSERT, UPDATE, DELETE")
    schema = op.get_context().version_table_schema
    assert schema, "migrate() names the schema"
    op.execute(f'GRANT USAGE ON SEQUENCE connection_event_numbers TO "{Roles.of(schema).app}"')
