"""Names, creates and checks the three database roles of a service's schema.

Roles belong to the whole cluster, while migrations are serialised per database only: several
databases may create the same role at the same moment.
"""

import asyncio
import re
from dataclasses import dataclass

import asyncpg

from services.runtime.failures import DatabaseUnusableError

_SCHEMA = re.compile(r"[a-z][a-z0-9_]{0,39}")
# A racing CREATE ROLE or GRANT loses with one of these; the winner's work is then ours too.
_LOST_RACES = (asyncpg.DuplicateObjectError, asyncpg.UniqueViolationError)
_ATTEMPTS_MAX = 10
_PAUSE_SECONDS = 0.05


@dataclass(frozen=True)
class Roles:
    """The roles of one schema: `owner` migrates, `app` serves one tenant's calls, `jobs` runs the
    few named jobs that cross tenants."""

    owner: str
    app: str
    jobs: str

    @classmethod
    def of(cls, schema: str) -> "Roles":
        """Return the role names of `schema`. Raises ValueError for a name unfit to be quoted."""
        if not _SCHEMA.fullmatch(schema):
            raise ValueError(f"{schema!r} is no schema name: lower case letters, digits and _")
        return cls(f"cogni_{schema}_owner", f"cogni_{schema}_app", f"cogni_{schema}_jobs")

    def all(self) -> tuple[str, str, str]:
        """Return owner, app and jobs."""
        return (self.owner, self.app, self.jobs)


async def ensure_roles(connection: asyncpg.Connection, schema: str) -> None:
    """Make the roles exist and the login able to become each of them.

    Does nothing when an administrator has done it; otherwise the login needs CREATEROLE. Raises
    DatabaseUnusableError with the statements to run when it has neither.
    """
    roles = Roles.of(schema)
    for attempt in range(1, _ATTEMPTS_MAX + 1):
        try:
            for role in roles.all():
                await _ensure_role(connection, role)
            return
        except asyncpg.InsufficientPrivilegeError as error:
            raise DatabaseUnusableError(await _instructions(connection, roles)) from error
        except _LOST_RACES:
            if attempt == _ATTEMPTS_MAX:
                raise
            await asyncio.sleep(_PAUSE_SECONDS * attempt)


async def _ensure_role(connection: asyncpg.Connection, role: str) -> None:
    known = await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", role)
    if not known:
        await connection.execute(f'CREATE ROLE "{role}" NOLOGIN NOBYPASSRLS NOINHERIT')
    if not await _may_become(connection, role):
        await connection.execute(f'GRANT "{role}" TO CURRENT_USER')


async def _may_become(connection: asyncpg.Connection, role: str) -> bool:
    # Since version 16 a member may lack SET; before, MEMBER meant it.
    privilege = "SET" if connection.get_server_version().major >= 16 else "MEMBER"
    return bool(await connection.fetchval("SELECT pg_has_role($1::name, $2)", role, privilege))


async def _instructions(connection: asyncpg.Connection, roles: Roles) -> str:
    login = await connection.fetchval("SELECT current_user")
    statements = " ".join(
        f'CREATE ROLE "{role}" NOLOGIN NOBYPASSRLS NOINHERIT; GRANT "{role}" TO "{login}";'
        for role in roles.all()
    )
    return (
        f"The database login {login!r} may neither create roles nor act as the service's roles. "
        f"Let an administrator run: {statements}"
    )
