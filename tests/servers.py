"""Starts the servers that tests run on, once per session, and stops them at its end."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from services.standalone.postgres import EmbeddedPostgres
from services.standalone.redis import EmbeddedRedis
from tests.scratch import Scratch

_POSTGRES = "postgres_url"
_REDIS = "redis_url"


class Servers:
    """The session's servers, started when first asked for.

    Under pytest-xdist the controller starts them, since they die with the process that did.
    """

    def __init__(self) -> None:
        self._postgres: EmbeddedPostgres | None = None
        self._redis: EmbeddedRedis | None = None
        self._scratch: Scratch | None = None

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
        self._postgres = EmbeddedPostgres(self._folder("postgres"), durable=False)
        return self._postgres.start()

    @cached_property
    def redis_url(self) -> str:
        """Redis's URL; starts the server."""
        self._redis = EmbeddedRedis(self._folder("redis"))
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
            self._redis = None
        if self._scratch is not None:
            self._scratch.remove()
            self._scratch = None

    def _folder(self, name: str) -> Path:
        if self._scratch is None:
            self._scratch = Scratch.make()
        return self._scratch.path / name
