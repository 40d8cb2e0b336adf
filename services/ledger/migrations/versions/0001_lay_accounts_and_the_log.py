"""Lays accounts and balances, the permanent keys, the log of entries, price cards and holds."""

from alembic import op

from services.runtime.migrations import create_now_function, enable_tenant_rls, grant_app

revision = "0001"
down_revision = None

# One row per tenant, locked last by every transaction that appends to its log: whoever holds it
# hands out the next sequences, so the log's order is the order of commits.
_LOG_HEADS = """
CREATE TABLE log_heads (
    tenant_id text PRIMARY KEY,
    tree_size bigint NOT NULL DEFAULT 0 CHECK (tree_size >= 0),
    frontier bytea NOT NULL DEFAULT '',
    last_leaf_hash bytea NOT NULL DEFAULT '',
    last_record_time timestamptz,
    price_epoch bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);
"""

_ACCOUNTS = """
CREATE TABLE accounts (
    tenant_id text NOT NULL,
    account_id uuid NOT NULL,
    display_name text NOT NULL,
    asset text NOT NULL,
    kind smallint NOT NULL CHECK (kind BETWEEN 1 AND 5),
    owner text NOT NULL,
    credit_limit numeric(38, 0) NOT NULL CHECK (credit_limit >= 0),
    create_time timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, account_id)
);
CREATE INDEX accounts_by_age ON accounts (tenant_id, create_time, account_id);
"""

# balance is wider than one sum can be, so that no number of charges can overflow the system's
# accounts and fail a batch of strangers. Half-filled pages keep the updates of these rows HOT.
_BALANCES = """
CREATE TABLE balances (
    tenant_id text NOT NULL,
    account_id uuid NOT NULL,
    balance numeric(50, 0) NOT NULL DEFAULT 0,
    held numeric(50, 0) NOT NULL DEFAULT 0 CHECK (held >= 0),
    sequence bigint NOT NULL DEFAULT 0,
    update_time timestamptz,
    carried numeric NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant_id, account_id),
    FOREIGN KEY (tenant_id, account_id) REFERENCES accounts
) WITH (fillfactor = 50);
"""

# Never partitioned by time and never emptied: this is what makes a charge idempotent for ever.
# A key is written in the transaction that writes its entry, or with the refusal it met.
_KEYS = """
CREATE TABLE keys (
    tenant_id text NOT NULL,
    source_system text COLLATE "C" NOT NULL,
    source_reference text COLLATE "C" NOT NULL,
    payload_hash bytea NOT NULL CHECK (length(payload_hash) = 32),
    sequence bigint,
    subject_id uuid,
    refusal text,
    PRIMARY KEY (tenant_id, source_system, source_reference)
);
"""

# The leaf is the record; the columns beside it are what statements look for. Balances are null for
# the system's own accounts. No foreign keys: they would cost two look-ups per entry for what the
# writer has already locked.
_ENTRIES = """
CREATE TABLE entries (
    tenant_id text NOT NULL,
    sequence bigint NOT NULL CHECK (sequence > 0),
    kind smallint NOT NULL CHECK (kind BETWEEN 1 AND 6),
    flags smallint NOT NULL,
    debit_account_id uuid NOT NULL,
    credit_account_id uuid NOT NULL,
    asset text NOT NULL,
    amount numeric(38, 0) NOT NULL CHECK (amount >= 0),
    debit_balance numeric(50, 0),
    credit_balance numeric(50, 0),
    record_time timestamptz NOT NULL,
    occur_time timestamptz NOT NULL,
    source_system text COLLATE "C" NOT NULL,
    source_reference text COLLATE "C" NOT NULL,
    run_id uuid,
    attempt integer NOT NULL,
    hold_id uuid,
    corrects_sequence bigint,
    description text NOT NULL,
    leaf bytea NOT NULL,
    leaf_hash bytea NOT NULL,
    PRIMARY KEY (tenant_id, sequence),
    CHECK (debit_account_id <> credit_account_id)
);
CREATE INDEX entries_by_debit ON entries (tenant_id, debit_account_id, sequence);
CREATE INDEX entries_by_credit ON entries (tenant_id, credit_account_id, sequence);
CREATE INDEX entries_by_run ON entries (tenant_id, run_id, sequence) WHERE run_id IS NOT NULL;
CREATE INDEX entries_by_corrected ON entries (tenant_id, corrects_sequence)
    WHERE corrects_sequence IS NOT NULL;

CREATE TABLE log_nodes (
    tenant_id text NOT NULL,
    level smallint NOT NULL CHECK (level > 0 AND level % 8 = 0),
    index bigint NOT NULL,
    hash bytea NOT NULL,
    PRIMARY KEY (tenant_id, level, index)
);
"""

_PRICE_CARDS = """
CREATE TABLE price_cards (
    tenant_id text NOT NULL,
    price_card_id uuid NOT NULL,
    asset text NOT NULL,
    version integer NOT NULL CHECK (version > 0),
    display_name text NOT NULL,
    effective_time timestamptz NOT NULL,
    markup text NOT NULL,
    prices json NOT NULL,
    creator text NOT NULL,
    create_time timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, price_card_id),
    UNIQUE (tenant_id, asset, version)
);
"""

_HOLDS = """
CREATE TABLE holds (
    tenant_id text NOT NULL,
    hold_id uuid NOT NULL,
    account_id uuid NOT NULL,
    run_id uuid,
    epoch bigint NOT NULL,
    state smallint NOT NULL CHECK (state BETWEEN 1 AND 4),
    remaining numeric(38, 0) NOT NULL CHECK (remaining >= 0),
    spent numeric(38, 0) NOT NULL CHECK (spent >= 0),
    unsettled numeric(38, 0) NOT NULL CHECK (unsettled BETWEEN 0 AND remaining),
    expire_time timestamptz NOT NULL,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, hold_id),
    FOREIGN KEY (tenant_id, account_id) REFERENCES accounts,
    CHECK (run_id IS NULL OR run_id = hold_id)
) WITH (fillfactor = 50);
CREATE INDEX holds_by_expiry ON holds (expire_time) WHERE state = 1;
"""

# What the app role may do is also what it can't: entries, keys, nodes, accounts and price cards
# are append-only for everyone who serves.
_GRANTS = {
    "log_heads": "SELECT, INSERT, UPDATE",
    "accounts": "SELECT, INSERT",
    "balances": "SELECT, INSERT, UPDATE",
    "keys": "SELECT, INSERT",
    "entries": "SELECT, INSERT",
    "log_nodes": "SELECT, INSERT",
    "price_cards": "SELECT, INSERT",
    "holds": "SELECT, INSERT, UPDATE",
}


def upgrade() -> None:
    """Create the tables, their policies and grants."""
    create_now_function()
    for block in (_LOG_HEADS, _ACCOUNTS, _BALANCES, _KEYS, _ENTRIES, _PRICE_CARDS, _HOLDS):
        # asyncpg prepares statements, and a prepared one is a single one.
        for statement in filter(str.strip, block.split(";")):
            op.execute(statement)
    for table, privileges in _GRANTS.items():
        enable_tenant_rls(table)
        grant_app(table, privileges)
