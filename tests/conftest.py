"""Fixtures on real software: one PostgreSQL and one Redis per test session, a database per test."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from urllib.parse import urlsplit

import pytest
import redis
from hypothesis import settings

from services.runtime.database import Database
from services.runtime.pools import DatabaseLimits
from tests.databases import Clock, DatabaseFactory, Databases, terminate_connections
from tests.servers import Servers
from tests.tenant_wall import WallProof, prove_wall

pytest_plugins = ["tests.plugins.mcp_server", "tests.plugins.one_stack", "tests.plugins.serving"]

# Every short run searches the same examples, and none fails for a slow machine. Long ones explore.
settings.register_profile("long", settings.get_profile("ci"), derandomize=False)
settings.load_profile("long" if os.environ.get("LONG") else "ci")

_SERVERS = pytest.StashKey[Servers]()


def _servers(config: pytest.Config) -> Servers:
    """Return what this session's tests run on, whoever started it."""
    if _SERVERS not in config.stash:
        given = getattr(config, "workerinput", None)
        config.stash[_SERVERS] = Servers.given(given) if given else Servers()
    return config.stash[_SERVERS]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: object) -> None:
    """Start the servers in the controller of pytest-xdist, which outlives its workers."""
    node.workerinput.update(_servers(node.config).addresses())  # type: ignore[attr-defined]


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop what this process started, and delete its files."""
    if _SERVERS in config.stash:
        config.stash[_SERVERS].stop()


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> str:
    """The URL of the session's PostgreSQL, logged in as its superuser."""
    return _servers(request.config).postgres_url


@pytest.fixture(scope="session")
def _redis_server(request: pytest.FixtureRequest) -> str:
    return _servers(request.config).redis_url


@pytest.fixture
def redis_url(_redis_server: str, worker_id: str) -> Iterator[str]:
    """The URL of a Redis database of this worker alone, empty when the test begins."""
    number = 0 if worker_id == "master" else int(worker_id.removeprefix("gw")) + 1
    url = urlsplit(_redis_server)._replace(path=f"/{number}").geturl()
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        yield url
        client.flushdb()


@pytest.fixture(scope="session")
def databases(postgres: str) -> Databases:
    """Makes and drops the databases behind the other fixtures."""
    return Databases(postgres)


@pytest.fixture
async def database(databases: Databases) -> AsyncIterator[DatabaseFactory]:
    """`await database("ledger")` gives a Database of this test alone, cloned from a migrated one.

    Its login is no superuser. Asked twice for one schema, it gives two databases.
    """
    opened: list[Database] = []

    async def open_clone(
        schema: str, package: str | None = None, limits: DatabaseLimits | None = None
    ) -> Database:
        url = await databases.clone(schema, package or f"services.{schema}")
        opened.append(Database.open(url, schema, application_name="tests", limits=limits))
        return opened[-1]

    yield open_clone
    for each in opened:
        await each.close()
        await databases.give_back(each.url)


@pytest.fixture
def clock(databases: Databases) -> Clock:
    """`await clock.advance(db, timedelta(...))` shifts cogni_now() of one database."""
    return Clock(databases)


@pytest.fixture
async def empty_database(databases: Databases) -> AsyncIterator[str]:
    """The URL of a database without any schema, for a login that may migrate it."""
    url = await databases.empty()
    yield url
    await databases.drop(url)


@pytest.fixture
def prove_tenant_wall(databases: Databases) -> WallProof:
    """`await prove_tenant_wall(db, tenantless={"table": "why"})` walks every table of a clone.

    Proves that the app role without a binding sees and writes nothing. It strips the clone of
    its constraints, so nothing else can be done with it afterwards.
    """

    async def prove(database: Database, *, tenantless: Mapping[str, str] | None = None) -> None:
        await prove_wall(database, databases.admin_url(database.url), tenantless or {})

    return prove


@pytest.fixture
async def disconnect(postgres: str) -> Callable[[Database, str], Awaitable[None]]:
    """`await disconnect(db, "tests")` cuts its connections of that application name."""

    async def cut(database: Database, application_name: str) -> None:
        await terminate_connections(postgres, database, application_name)

    return cut
