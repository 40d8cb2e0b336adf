"""The whole system on one machine: starts it in order, watches it, stops it in order."""

import asyncio
import hashlib
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from services.executor.runner.project import ProjectError, read_project
from services.standalone.children import Child, PostgresChild, Program, RedisChild, logs_in
from services.standalone.datadir import Addresses, DataDir
from services.standalone.errors import StandaloneError
from services.standalone.ports import LOOPBACK, PortClaims
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
    #: Further COGNI_<SERVICE>_* and COGNI_RUNNER_* settings, for the processes they name.
    settings: Mapping[str, str] = field(default_factory=dict)


class Stack:
    """One running stack. Use on the main thread: its processes end with the thread."""

    def __init__(
        self,
        options: StackOptions,
        report: Report,
        *,
        companions: Sequence[Child] = (),
        compose: Callable[[Wiring, Path], Sequence[Child]] = programs,
        migration: Callable[[Wiring, Path], Program] = migration,
    ) -> None:
        """Describes the stack; `companions` are further processes to run beside it.

        `migration` makes the process that prepares the database, `compose` those that then
        stand on it.
        """
        self.options = options
        self.directory = DataDir(options.data_dir)
        self.report = report
        self._companions = companions
        self._compose = compose
        self._migration = migration
        self._supervisor: Supervisor | None = None
        self._claims = PortClaims()
        self._ports: dict[str, int] = {}
        self._wiring: Wiring | None = None

    @property
    def supervisor(self) -> Supervisor:
        """Who runs the processes."""
        assert self._supervisor is not None
        return self._supervisor

    @property
    def wiring(self) -> Wiring:
        """What the started processes know of each other."""
        assert self._wiring is not None
        return self._wiring

    def address(self, service: str) -> str:
        """host:port of one of the services."""
        return f"{LOOPBACK}:{self._ports[service]}"

    async def start(self) -> None:
        """Starts everything and returns when everything is healthy.

        Raises StandaloneError with a sentence; then nothing is left running.
        """
        try:
            await self._start()
        except OSError as error:
            # A full disc, a file that is gone or somebody else's: nothing a traceback explains.
            raise StandaloneError(
                f"The stack cannot start: {error}. Put that right, or choose another directory "
                f"with --data-dir."
            ) from error

    async def _start(self) -> None:
        if not self.options.graphs_file.is_file():
            there = "is no file" if self.options.graphs_file.exists() else "does not exist"
            raise StandaloneError(
                f"{self.options.graphs_file} {there}; name a langgraph.json with --graphs."
            )
        try:
            read_project(self.options.graphs_file)
        except ProjectError as error:
            raise StandaloneError(str(error)) from None
        self.directory.take()
        try:
            self._choose_ports()
            self._supervisor = Supervisor(self.report, keep_open=(self.directory.lock_descriptor,))
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
        self._claims.release()
        self.directory.release()

    def kill(self) -> None:
        """Kills every process at once; `stop` still has to be awaited."""
        if self._supervisor is not None:
            self._supervisor.kill()

    def _choose_ports(self) -> None:
        asked = self.options.ports
        self._ports = {name: self._claims.require(port, name) for name, port in asked.items()}
        for name, port in DEFAULT_PORTS.items():
            if name not in self._ports:
                self._ports[name] = self._claims.prefer(port)

    async def _start_all(self, supervisor: Supervisor) -> None:
        path = self.directory.path
        self.directory.keys.ensure()
        postgres = EmbeddedPostgres(path / "postgres", port=self._ports["postgres"])
        redis = EmbeddedRedis(path / "redis", port=self._ports["redis"])
        redis.initialise()
        if not postgres.cluster_dir.exists():
            self.report("note", "creating the database (the first start only)")
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
        self._wiring = wiring = Wiring(
            database_url=postgres.url(),
            broker_url=redis.url(),
            keys=self.directory.keys,
            ports=self._ports,
            graphs_file=self.options.graphs_file.resolve(),
            extra=self.options.settings,
        )
        await self._migrate(wiring, cluster=postgres.password)
        await supervisor.start(self._compose(wiring, logs))
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
        program = self._migration(wiring, self.directory.logs)
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
        self.report("ready", f"migrations {time.monotonic() - began:.1f} s")


def _migrations_digest(cluster: str) -> str:
    """Changes with the cluster and with every file that decides what the schemas become."""
    services = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256(cluster.encode())
    files = [*services.glob("*/migrations/**/*.py"), *services.glob("runtime/*.py")]
    for file in sorted(files):
        digest.update(str(file.relative_to(services)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
