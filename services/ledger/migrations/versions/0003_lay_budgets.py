"""Lays budgets, and the stream of their changes."""

from alembic import op

from services.runtime.migrations import enable_tenant_rls, grant_app, grant_jobs

revision = "0003"
down_revision = "0002"

# Says of a locked balance whether there is a budget to look up: most accounts have none, and
# charges should not pay for looking.
_FLAG = "ALTER TABLE balances ADD COLUMN has_budget boolean NOT NULL DEFAULT false"

_BUDGETS = """
CREATE TABLE budgets (
    tenant_id text NOT NULL,
    account_id uuid NOT NULL,
    asset text NOT NULL,
    period smallint NOT NULL CHECK (period BETWEEN 1 AND 4),
    limit_minor numeric(38, 0) NOT NULL CHECK (limit_minor >= 0),
    thresholds integer[] NOT NULL,
    spent numeric(50, 0) NOT NULL,
    period_start_time timestamptz NOT NULL,
    period_end_time timestamptz,
    version bigint NOT NULL,
    PRIMARY KEY (tenant_id, account_id),
    FOREIGN KEY (tenant_id, account_id) REFERENCES accounts
) WITH (fillfactor = 50)
"""

_BUDGETS_BY_END = """
CREATE INDEX budgets_by_end ON budgets (period_end_time) WHERE period_end_time IS NOT NULL
"""

# Each change is kept as the budget was after it: a watcher that comes late reads history.
_BUDGET_CHANGES = """
CREATE TABLE budget_changes (
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    id bigint GENERATED ALWAYS AS IDENTITY,
    tenant_id text NOT NULL,
    budget json NOT NULL,
    change_time timestamptz NOT NULL DEFAULT cogni_now(),
    PRIMARY KEY (xid, id)
)
"""


def upgrade() -> None:
    """Create the tables, their policies and grants."""
    for statement in (_FLAG, _BUDGETS, _BUDGETS_BY_END, _BUDGET_CHANGES):
        op.execute(statement)
    enable_tenant_rls("budgets")
    enable_tenant_rls("budget_changes")
    grant_app("budgets", "SELECT, INSERT, UPDATE")
    grant_app("budget_changes", "SELECT, INSERT")
    grant_jobs("budgets", "SELECT")
    grant_jobs("budget_changes", "SELECT")
