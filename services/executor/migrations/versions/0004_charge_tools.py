"""Keeps with a usage unit the tool it is of, and what the Ledger charged for it."""

from alembic import op

revision = "0004"
down_revision = "0003"

# The charge is NULL while the Ledger does not have the unit, and where it could not price it. No
# CHECK says so: it would be proven by reading every unit while nobody can write one.
_STATEMENTS = (
    "ALTER TABLE usage_units ADD COLUMN tool text",
    "ALTER TABLE usage_units ADD COLUMN charge_asset text",
    "ALTER TABLE usage_units ADD COLUMN charge_value numeric",
    # What a tool was charged last, found before each invocation under a budget.
    (
        "CREATE INDEX usage_units_of_tool ON usage_units (grant_id, tool, occur_time)"
        " WHERE tool IS NOT NULL"
    ),
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("a schema only moves forward; restore a backup to go back")
