"""Lets an estimated usage unit be corrected by another, once."""

from alembic import op

revision = "0003"
down_revision = "0002"

_STATEMENTS = (
    "ALTER TABLE usage_units ADD COLUMN corrects_call_id uuid REFERENCES usage_units",
    # Beside the reference, so that whoever adds up costs needs no look-up per unit.
    "ALTER TABLE usage_units ADD COLUMN corrected boolean NOT NULL DEFAULT false",
    (
        "CREATE UNIQUE INDEX usage_units_corrections ON usage_units (corrects_call_id)"
        " WHERE corrects_call_id IS NOT NULL"
    ),
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("a schema only moves forward; restore a backup to go back")
