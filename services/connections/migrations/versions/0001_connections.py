"""Connections, their sealed credentials, leases, revocations and the access log.

Revision ID: 0001
Revises:
"""

from alembic import op

from services.runtime.ddl import grant_jobs
from services.runtime.migrations import create_now_function, enable_tenant_rls, grant_app

revision = "0001"
down_revision = None

_TABLES = """
CREATE TABLE connections (
    tenant_id text NOT NULL,
    connection_id uuid NOT NULL,
    provider text NOT NULL,
    auth_kind text NOT NULL,
    display_name text NOT NULL,
    labels jsonb NOT NULL,
    settings jsonb NOT NULL,
    owner text NOT NULL,
    account_id text NOT NULL DEFAULT '',
    account_name text NOT NULL DEFAULT '',
    scopes text[] NOT NULL DEFAULT '{}',
    state text NOT NULL CHECK (state IN ('ACTIVE', 'REFRESHING', 'NEEDS_REAUTH', 'REVOKED')),
    state_reason text NOT NULL DEFAULT '',
    state_message text NOT NULL DEFAULT '',
    state_change_time timestamptz NOT NULL DEFAULT cogni_now(),
    expire_time timestamptz,
    last_refresh_time timestamptz,
    last_lease_time timestamptz,
    create_time timestamptz NOT NULL DEFAULT cogni_now(),
    update_time timestamptz NOT NULL DEFAULT cogni_now(),
    revision bigint NOT NULL DEFAULT 1,
    authorization_id uuid,
    PRIMARY KEY (tenant_id, connection_id)
);

-- Outlives its connection: a late retry of a create must not make a second one.
CREATE TABLE connection_keys (
    tenant_id text NOT NULL,
    request_id uuid NOT NULL,
    request_hash bytea NOT NULL,
    connection_id uuid NOT NULL,
    PRIMARY KEY (tenant_id, request_id)
);

CREATE TABLE consents (
    tenant_id text NOT NULL,
    connection_id uuid NOT NULL,
    subject text NOT NULL,
    create_time timestamptz NOT NULL DEFAULT cogni_now(),
    PRIMARY KEY (tenant_id, connection_id, subject),
    FOREIGN KEY (tenant_id, connection_id) REFERENCES connections ON DELETE CASCADE
);

CREATE TABLE credentials (
    tenant_id text NOT NULL,
    connection_id uuid NOT NULL,
    kind text NOT NULL CHECK (kind IN ('secret', 'session')),
    provider text NOT NULL,
    generation bigint NOT NULL,
    key_id text NOT NULL,
    wrapped_key bytea NOT NULL,
    nonce bytea NOT NULL,
    ciphertext bytea NOT NULL,
    commitment bytea NOT NULL,
    expire_time timestamptz,
    renew_time timestamptz,
    update_time timestamptz NOT NULL DEFAULT cogni_now(),
    PRIMARY KEY (tenant_id, connection_id, kind),
    FOREIGN KEY (tenant_id, connection_id) REFERENCES connections ON DELETE CASCADE
);
CREATE INDEX credentials_to_renew ON credentials (renew_time) WHERE renew_time IS NOT NULL;
CREATE INDEX credentials_by_key ON credentials (key_id, tenant_id, connection_id, kind);

-- The journal of renewals: a claim is committed before the provider is called, and tells whoever
-- comes after a crash that the generation's refresh token may have been used.
CREATE TABLE refreshes (
    tenant_id text NOT NULL,
    connection_id uuid NOT NULL,
    generation bigint NOT NULL,
    claim_id uuid,
    claim_expire_time timestamptz,
    attempts integer NOT NULL DEFAULT 0,
    maybe_done boolean NOT NULL DEFAULT false,
    not_before timestamptz,
    reason text NOT NULL DEFAULT '',
    PRIMARY KEY (tenant_id, connection_id),
    FOREIGN KEY (tenant_id, connection_id) REFERENCES connections ON DELETE CASCADE
);

CREATE INDEX refreshes_claimed ON refreshes (claim_expire_time) WHERE claim_id IS NOT NULL;

CREATE TABLE leases (
    tenant_id text NOT NULL,
    lease_id uuid NOT NULL,
    connection_id uuid NOT NULL,
    run_id text NOT NULL,
    epoch bigint NOT NULL,
    grant_id text NOT NULL,
    invocation_id text NOT NULL,
    tool text NOT NULL,
    create_time timestamptz NOT NULL DEFAULT cogni_now(),
    expire_time timestamptz NOT NULL,
    revoke_time timestamptz,
    PRIMARY KEY (tenant_id, lease_id),
    UNIQUE (tenant_id, run_id, invocation_id, connection_id)
);
CREATE INDEX leases_live_by_grant ON leases (tenant_id, grant_id) WHERE revoke_time IS NULL;
CREATE INDEX leases_live_by_connection ON leases (tenant_id, connection_id)
    WHERE revoke_time IS NULL;
CREATE INDEX leases_by_expiry ON leases (expire_time);

CREATE TABLE revoked_grants (
    tenant_id text NOT NULL,
    grant_id text NOT NULL,
    revoke_time timestamptz NOT NULL DEFAULT cogni_now(),
    keep_until timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, grant_id)
);

CREATE TABLE revoked_runs (
    tenant_id text NOT NULL,
    run_id text NOT NULL,
    up_to_epoch bigint NOT NULL,
    revoke_time timestamptz NOT NULL DEFAULT cogni_now(),
    keep_until timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, run_id)
);

-- One row a tenant: its lock orders leases against revocations and numbers the access log.
CREATE TABLE access_heads (
    tenant_id text PRIMARY KEY,
    sequence bigint NOT NULL DEFAULT 0,
    hash bytea NOT NULL DEFAULT decode(repeat('00', 32), 'hex')
);

CREATE TABLE access_records (
    tenant_id text NOT NULL,
    sequence bigint NOT NULL,
    record_time timestamptz NOT NULL,
    action text NOT NULL,
    decision text NOT NULL,
    actor text NOT NULL,
    on_behalf_of text NOT NULL,
    connection_id text NOT NULL,
    provider text NOT NULL,
    run_id text NOT NULL,
    epoch bigint NOT NULL,
    grant_id text NOT NULL,
    invocation_id text NOT NULL,
    tool text NOT NULL,
    lease_id text NOT NULL,
    reason text NOT NULL,
    details jsonb NOT NULL,
    previous_hash bytea NOT NULL,
    hash bytea NOT NULL,
    PRIMARY KEY (tenant_id, sequence)
);
CREATE INDEX access_records_by_connection ON access_records (tenant_id, connection_id, sequence)
    WHERE connection_id <> '';
CREATE INDEX access_records_by_run ON access_records (tenant_id, run_id, sequence)
    WHERE run_id <> '';
CREATE INDEX access_records_by_grant ON access_records (tenant_id, grant_id, sequence)
    WHERE grant_id <> '';

CREATE TABLE authorizations (
    tenant_id text NOT NULL,
    authorization_id uuid NOT NULL,
    request_id uuid NOT NULL,
    request_hash bytea NOT NULL,
    subject text NOT NULL,
    provider text NOT NULL,
    connection_id uuid,
    state_hash bytea NOT NULL,
    issuer text NOT NULL,
    redirect_uri text NOT NULL,
    return_uri text NOT NULL,
    scopes text[] NOT NULL,
    plan jsonb NOT NULL,
    key_id text NOT NULL,
    wrapped_key bytea NOT NULL,
    nonce bytea NOT NULL,
    ciphertext bytea NOT NULL,
    commitment bytea NOT NULL,
    create_time timestamptz NOT NULL DEFAULT cogni_now(),
    expire_time timestamptz NOT NULL,
    use_time timestamptz,
    PRIMARY KEY (tenant_id, authorization_id),
    UNIQUE (tenant_id, request_id),
    UNIQUE (state_hash)
);
CREATE INDEX authorizations_by_expiry ON authorizations (expire_time);

CREATE TABLE connection_changes (
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    id bigint GENERATED ALWAYS AS IDENTITY,
    tenant_id text NOT NULL,
    connection_id uuid NOT NULL,
    provider text NOT NULL,
    deleted boolean NOT NULL DEFAULT false,
    change_time timestamptz NOT NULL DEFAULT cogni_now(),
    PRIMARY KEY (xid, id)
);
CREATE INDEX connection_changes_in_order ON connection_changes (tenant_id, xid, id);

CREATE TABLE key_rotations (
    rotation_id uuid PRIMARY KEY,
    request_id uuid NOT NULL UNIQUE,
    key_id text NOT NULL,
    state text NOT NULL CHECK (state IN ('RUNNING', 'SUCCEEDED', 'FAILED')),
    total_rows bigint NOT NULL,
    rotated_rows bigint NOT NULL DEFAULT 0,
    failed_rows bigint NOT NULL DEFAULT 0,
    after_tenant_id text NOT NULL DEFAULT '',
    after_connection_id uuid,
    after_kind text NOT NULL DEFAULT '',
    create_time timestamptz NOT NULL DEFAULT cogni_now(),
    update_time timestamptz NOT NULL DEFAULT cogni_now(),
    finish_time timestamptz
);
CREATE UNIQUE INDEX key_rotations_one_at_a_time ON key_rotations (state) WHERE state = 'RUNNING';
"""

_APP = {
    "connections": "SELECT, INSERT, UPDATE, DELETE",
    "connection_keys": "SELECT, INSERT",
    "consents": "SELECT, INSERT, DELETE",
    "credentials": "SELECT, INSERT, UPDATE, DELETE",
    "refreshes": "SELECT, INSERT, UPDATE, DELETE",
    "leases": "SELECT, INSERT, UPDATE",
    "revoked_grants": "SELECT, INSERT, UPDATE",
    "revoked_runs": "SELECT, INSERT, UPDATE",
    "access_heads": "SELECT, INSERT, UPDATE",
    # Append-only for whoever serves: what was written can be read, never changed.
    "access_records": "SELECT, INSERT",
    "authorizations": "SELECT, INSERT, UPDATE",
    "connection_changes": "SELECT, INSERT",
}
_JOBS = {
    "connections": "SELECT",
    # Rotation changes the wrapping of a data key and nothing else.
    "credentials": "SELECT, UPDATE (key_id, wrapped_key)",
    "refreshes": "SELECT",
    "leases": "SELECT, DELETE",
    "revoked_grants": "SELECT, DELETE",
    "revoked_runs": "SELECT, DELETE",
    "authorizations": "SELECT, UPDATE (key_id, wrapped_key), DELETE",
    "connection_changes": "SELECT, DELETE",
    "key_rotations": "SELECT, INSERT, UPDATE",
}


def upgrade() -> None:
    """Create every table, its wall between tenants, and what each role may do."""
    create_now_function()
    for statement in _TABLES.split(";\n"):
        if statement.strip():
            op.execute(statement)
    for table, privileges in _APP.items():
        enable_tenant_rls(table)
        grant_app(table, privileges)
    for table, privileges in _JOBS.items():
        grant_jobs(table, privileges)
