"""Record the beginning and the end of a key rotation in the transactions that make them.

Revision ID: 0005
Revises: 0004
"""

from alembic import op

from services.runtime.ddl import grant_jobs

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Remember whose log tells of a pass, and let the role that rotates append to it."""
    # Empty for the passes of the release before, whose end nobody records.
    op.execute("ALTER TABLE key_rotations ADD COLUMN begun_in_tenant text NOT NULL DEFAULT ''")
    grant_jobs("access_heads", "SELECT, INSERT, UPDATE")
    grant_jobs("access_records", "SELECT, INSERT")
