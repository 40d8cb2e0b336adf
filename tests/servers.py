"""Starts the servers that tests run on, once per session, and stops them at its end."""

import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from services.standalone.postgres import EmbeddedPostgres

_POSTGRES = "postgres_url"


class Servers:
    """The session's servers, started when first asked for.

    Under pytest-xdist the controller starts them, since they die with the process that did.
    """

    def __init__(self) -> None:
        self._postgres: EmbeddedPostgres | None = None

    @classmethod
    def given(cls, addresses: Mapping[str, str]) -> "Servers":
        """Return the servers that another process runs at `addresses`."""
        servers = cls()
        servers.postgres_url = addresses[_POSTGRES]
        return servers

    @cached_property
    def postgres_url(self) -> str:
        """The superuser's URL; starts the server."""
        folder = Path(tempfile.mkdtemp(prefix="cogni-tests-"))
        self._postgres = EmbeddedPostgres(folder, durable=False)
        return self._postgres.start()

    def addresses(self) -> dict[str, str]:
        """Start everything and return what `given` takes."""
        return {_POSTGRES: self.postgres_url}

    def stop(self) -> None:
        """Stop what this process started and delete its files."""
        if self._postgres is not None:
            self._postgres.destroy()
            self._postgres = None
