"""Starts the servers that tests run on, once per session, and stops them at its end."""

import shutil
import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from services.standalone.postgres import EmbeddedPostgres
from services.standalone.redis import EmbeddedRedis

_POSTGRES = "postgres_url"
_REDIS = "redis_url"


class Servers:
    """The session's servers, started when first asked for.

    Under pytest-xdist the controller starts them, since they die with the process that did.
    """

    def __init__(self) -> None:
        self._postgres: EmbeddedPostgres | None = None
        self._redis: EmbeddedRedis | None = None

    @classmethod
    def given(cls, addresses: Mapping[str, str]) -> "Servers":
        """Return the servers that another process runs at `addresses`."""
        servers = cls()
        servers.postgres_url = addresses[_POSTGRES]
        servers.redis_url = addresses[_REDIS]
        return servers

    @cached_property
    def postgres_url(self) -> str:
        """The superuser's URL; starts the server."""
        folder = Path(tempfile.mkdtemp(prefix="cogni-tests-"))
        self._postgres = EmbeddedPostgres(folder, durable=False)
        return self._postgres.start()

    @cached_property
    def redis_url(self) -> str:
        """Redis's URL; starts the server."""
        folder = Path(tempfile.mkdtemp(prefix="cogni-tests-"))
        self._redis = EmbeddedRedis(folder)
        return self._redis.start()

    def addresses(self) -> dict[str, str]:
        """Start everything and return what `given` takes."""
        return {_POSTGRES: self.postgres_url, _REDIS: self.redis_url}

    def stop(self) -> None:
        """Stop what this process started and delete its files."""
        if self._postgres is not None:
            self._postgres.destroy()
            self._postgres = None
        if self._redis is not None:
            self._redis.stop()
            shutil.rmtree(self._redis.data_dir, ignore_errors=True)
            self._redis = None
