"""The whole system on one machine: starts it in order, watches it, stops it in order."""

import asyncio
import hashlib
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from services.standalone.children import Child, PostgresChild, RedisChild, logs_in
from services.standalone.datadir import Addresses, DataDir
from services.standalone.errors import StandaloneError
from services.standalone.ports import LOOPBACK, free_port, prefer_free, require_free
from services.standalone.postgres import EmbeddedPostgres
from services.standalone.processes import Report, Supervisor
from services.standalone.programs import SERVICES, Wiring, migration, programs
from services.standalone.redis import EmbeddedRedis

#: What clients assume when nobody says otherwise.
DEFAULT_PORTS: Final = {
    "executor": 7401,
    "scheduler": 7402,
    "connections": 7403,
    "ledger": 7404,
    "postgres": 7405,
    "redis": 7406,
}
MIGRATION_SECONDS: Final = 60.0


@dataclass(frozen=True)
class StackOptions:
    """What can be chosen about a stack."""

    data_dir: Path
    graphs_file: Path
    #: Ports asked for by name: taken or refused. The others are the usual ones, or free ones.
    ports: Mapping[str, int] = field(default_factory=dict)
    #: Further COGNI_* settings for the processes they belong to.
    settings: Mapping[str, str] = field(default_factory=dict)


class Stack:
    """One running stack. Use on the main thread: its processes end with the thread."""

    def __init__(
        self, options: StackOptions, report: Report, *, companions: Sequence[Child] = ()
    ) -> None:
        """Describes the stack; `companions` are further processes to run beside it."""
        self.options = options
        self.directory = DataDir(options.data_dir)
        self._report = report
        self._companions = companions
        self._supervisor: Supervisor | None = None
        self._ports: dict[str, int] = {}

    @property
    def supervisor(self) -> Supervisor:
        """Who runs the processes."""
        assert self._supervisor is not None
        return self._supervisor

    def address(self, service: str) -> str:
        """host:port of one of the services."""
        return f"{LOOPBACK}:{self._ports[service]}"

    async def start(self) -> None:
        """Starts everything and returns when everything is healthy.

        Raises StandaloneError with a sentence; then nothing is left running.
        """
        if not self.options.graphs_file.is_file():
            raise StandaloneError(
                f"{self.options.graphs_file} does not exist; name a langgraph.json with --graphs."
            )
        self.directory.take()
        try:
            self._ports = _choose_ports(self.options.ports)
            self._supervisor = Supervisor(self._report, keep_open=(self.directory.lock_descriptor,))
            await self._start_all(self._supervisor)
        except BaseException:
            await self.stop()
            raise

    async def watch(self) -> None:
        """Keeps everything running; StandaloneError when a process crashes too often."""
        await self.supervisor.watch()

    async def stop(self) -> None:
        """Stops everything in order and frees the data directory."""
        if self._supervisor is not None:
            await self._supervisor.stop()
            self._supervisor = None
        self.directory.release()

    def kill(self) -> None:
        """Kills every process at once; `stop` still has to be awaited."""
        if self._supervisor is not None:
            self._supervisor.kill()

    async def _start_all(self, supervisor: Supervisor) -> None:
        path = self.directory.path
        self.directory.keys.ensure()
        postgres = EmbeddedPostgres(path / "postgres", port=self._ports["postgres"])
        redis = EmbeddedRedis(path / "redis", port=self._ports["redis"])
        redis.initialise()
        if not postgres.cluster_dir.exists():
            self._report("note", "creating the database (the first start only)")
        await asyncio.to_thread(postgres.initialise)
        logs = self.directory.logs
        await supervisor.start(
            [
                PostgresChild(postgres, logs_in(logs, "postgres")),
                RedisChild(redis, logs_in(logs, "redis")),
                *self._companions,
            ]
        )
        await asyncio.to_thread(postgres.create_database)
        wiring = Wiring(
            database_url=postgres.url(),
            broker_url=redis.url(),
            keys=self.directory.keys,
            ports=self._ports,
            graphs_file=self.options.graphs_file.resolve(),
            extra=self.options.settings,
        )
        await self._migrate(wiring, cluster=postgres.password)
        await supervisor.start(programs(wiring, logs))
        self.directory.publish(
            Addresses(
                pid=supervisor.own_pid, **{service: self.address(service) for service in SERVICES}
            )
        )

    async def _migrate(self, wiring: Wiring, *, cluster: str) -> None:
        marker = self.directory.path / "migrated"
        # Asking the database takes a second of imports; the migrations' files and what is
        # random in each new cluster decide as well.
        digest = _migrations_digest(cluster)
        if marker.exists() and marker.read_text(encoding="ascii") == digest:
            return
        began = time.monotonic()
        program = migration(wiring, self.directory.logs)
        process = program.launch()
        try:
            code = await asyncio.to_thread(process.wait, MIGRATION_SECONDS)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            process.kill()
            process.wait()
        if code != 0:
            raise StandaloneError(
                f"The migrations failed. {program.log.last_words()} (all of it: {program.log.path})"
            )
        marker.write_text(digest, encoding="ascii")
        self._report("ready", f"migrations {time.monotonic() - began:.1f} s")


def _choose_ports(requested: Mapping[str, int]) -> dict[str, int]:
    chosen = {name: require_free(port, name) for name, port in requested.items()}
    for name, port in DEFAULT_PORTS.items():
        if name not in chosen:
            taken = set(chosen.values())
            candidate = prefer_free(port)
            while candidate in taken:
                candidate = free_port()
            chosen[name] = candidate
    return chosen


def _migrations_digest(cluster: str) -> str:
    """Changes with the cluster and with every file that decides what the schemas become."""
    services = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256(cluster.encode())
    files = [*services.glob("*/migrations/**/*.py"), *services.glob("runtime/*.py")]
    for file in sorted(files):
        digest.update(str(file.relative_to(services)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
