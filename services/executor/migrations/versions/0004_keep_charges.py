"""Keeps with a usage unit what the Ledger charged for it."""

from alembic import op

revision = "0004"
down_revision = "0003"

# Both NULL while the Ledger does not have the unit, and where it could not price it. No CHECK says
# so: it would be proven by reading every unit while nobody can write one.
_STATEMENTS = (
    "ALTER TABLE usage_units ADD COLUMN charge_asset text",
    "ALTER TABLE usage_units ADD COLUMN charge_value numeric",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("a schema only moves forward; restore a backup to go back")
