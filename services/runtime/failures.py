"""Says in a sentence why the database, or a call to it, failed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from urllib.parse import urlsplit

import asyncpg
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from services.runtime.errors import StartError, unavailable

_RETRY_AFTER = timedelta(seconds=1)
_UNREACHABLE = "The database cannot be reached; retry."
_OVERLOADED = "The database is busy; retry."
_CONNECTION_LOST = ("08", "57P", "53300")
# The last are the whole class 53: a server that lacks disk or memory gets them back.
_BUSY = ("55P03", "57014", "40P01", "40001", "25P03", "53")


class DatabaseUnusableError(StartError):
    """Raised when a process cannot work with its database at all; the text says what to do."""


def describe_unreachable(url: str, error: BaseException) -> str:
    """Return a sentence about a failed connection that names the server, never the password."""
    parts = urlsplit(url)
    host = parts.hostname or "the local socket"
    where = f"{host}:{parts.port or 5432}, database {parts.path.lstrip('/') or 'postgres'!r}"
    while error.__cause__ is not None:
        error = error.__cause__
    match error:
        case asyncpg.InvalidPasswordError() | asyncpg.InvalidAuthorizationSpecificationError():
            return f"PostgreSQL at {where} refused the login; check the user and password."
        case asyncpg.InvalidCatalogNameError():
            return f"PostgreSQL at {where} has no such database; create it first."
        case asyncpg.InvalidParameterValueError() | asyncpg.InsufficientPrivilegeError():
            return (
                f"PostgreSQL at {where} does not let the login act as the service's role "
                f"({error}); run the service's migrate command first."
            )
        case asyncpg.PostgresError():
            return f"PostgreSQL at {where} refused the connection: {error}."
        case _:
            return f"PostgreSQL at {where} cannot be reached; check that it runs and the URL."


@contextmanager
def while_connecting() -> Iterator[None]:
    """Turn whatever keeps a connection from being had into ServiceError UNAVAILABLE."""
    try:
        yield
    except (
        OSError,
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
        # Of a PostgreSQL that shut down between the login and the first statement.
        asyncpg.InternalClientError,
        SQLAlchemyError,
    ) as error:
        # TimeoutError, also of a full pool, is an OSError.
        raise unavailable(_UNREACHABLE, retry_after=_RETRY_AFTER) from error


@contextmanager
def while_working(connection_is_lost: Callable[[], bool]) -> Iterator[None]:
    """Turn a lost connection, a deadlock, a full disk or memory, and a lock or statement that ran
    out of time into ServiceError UNAVAILABLE; let every other error pass."""
    try:
        yield
    except OSError as error:
        # TimeoutError: nothing came back within the command timeout, longer than the server's own.
        if isinstance(error, TimeoutError) or connection_is_lost():
            raise unavailable(_UNREACHABLE, retry_after=_RETRY_AFTER) from error
        raise
    except asyncpg.InternalClientError as error:
        # What asyncpg says when PostgreSQL was killed in the middle of its answer: the connection
        # still counts as open, and its protocol is in no state to go on.
        raise unavailable(_UNREACHABLE, retry_after=_RETRY_AFTER) from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError, DBAPIError) as error:
        sqlstate = _sqlstate(error)
        if connection_is_lost() or sqlstate.startswith(_CONNECTION_LOST):
            raise unavailable(_UNREACHABLE, retry_after=_RETRY_AFTER) from error
        if sqlstate.startswith(_BUSY):
            raise unavailable(_OVERLOADED, retry_after=_RETRY_AFTER) from error
        raise


def _sqlstate(error: BaseException) -> str:
    source = error.orig if isinstance(error, DBAPIError) else error
    return getattr(source, "sqlstate", None) or ""
