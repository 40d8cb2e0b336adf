"""Brings the schemas of all four services up to date, in one process.

Run as `python -m services.standalone.migrating`, with COGNI_<SERVICE>_DATABASE_URL set. One
process instead of four, because importing Alembic and SQLAlchemy takes longer than migrating.
"""

import os
import sys

from services.runtime.migrations import migrate
from services.standalone.programs import SERVICES


def main() -> None:
    """Migrates each service in turn; a failure ends the process with its own words."""
    for service in SERVICES:
        migrate(os.environ[f"COGNI_{service.upper()}_DATABASE_URL"], service, f"services.{service}")
        sys.stdout.write(f"{service} is migrated\n")


if __name__ == "__main__":
    main()
