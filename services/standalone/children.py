"""The kinds of process the stack runs: a program of ours, PostgreSQL, Redis."""

import enum
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from services.standalone import launch
from services.standalone.logs import BoundedLog
from services.standalone.postgres import EmbeddedPostgres
from services.standalone.redis import EmbeddedRedis

STOP_SECONDS: Final = 15.0
#: Ten times what an idle machine with two cores needs.
START_SECONDS: Final = 120.0


class Stage(enum.IntEnum):
    """The order of stopping: who brings work in goes first, what all stand on goes last."""

    INTAKE = 0
    RUNNERS = 1
    SERVERS = 2
    BROKER = 3
    DATABASE = 4


class Child(Protocol):
    """One supervised process: how to start it, tell that it serves, and ask it to stop."""

    @property
    def name(self) -> str:
        """What the person at the terminal knows it by."""

    @property
    def stage(self) -> Stage:
        """When it stops."""

    @property
    def log(self) -> BoundedLog:
        """Where its output goes."""

    @property
    def stop_signal(self) -> signal.Signals:
        """What asks it to stop cleanly."""

    def launch(self) -> subprocess.Popen[bytes]:
        """Starts it without waiting; its process group is its own."""

    async def is_ready(self) -> bool:
        """Whether it serves by now; called again and again until it does."""


Probe = Callable[["Program"], Awaitable[bool]]


@dataclass
class Program:
    """A program that logs to its own file; ready when its probe says so."""

    name: str
    stage: Stage
    command: Sequence[str]
    environment: Mapping[str, str]
    log: BoundedLog
    probe: Probe
    stop_signal: signal.Signals = signal.SIGTERM
    log_start: int = field(default=0, init=False)

    def launch(self) -> subprocess.Popen[bytes]:
        """Starts the program; it gets a termination signal if this process dies."""
        with self.log.open() as output:
            self.log_start = output.tell()
            return subprocess.Popen(  # noqa: S603
                [
                    *(sys.executable, "-I", "-S", launch.__file__),
                    *(str(os.getpid()), str(int(signal.SIGTERM)), "-1", "-1"),
                    *self.command,
                ],
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )

    async def is_ready(self) -> bool:
        """Asks the probe."""
        return await self.probe(self)


@dataclass
class PostgresChild:
    """The embedded PostgreSQL under supervision."""

    server: EmbeddedPostgres
    log: BoundedLog
    name: str = "postgres"
    stage: Stage = Stage.DATABASE
    # SIGINT is PostgreSQL's fast shutdown; on SIGTERM it would wait for its clients.
    stop_signal: signal.Signals = signal.SIGINT

    def launch(self) -> subprocess.Popen[bytes]:
        """Starts the server on its initialised cluster."""
        with self.log.open() as output:
            return self.server.launch(output)

    async def is_ready(self) -> bool:
        """Whether it accepts connections."""
        return self.server.is_ready()


@dataclass
class RedisChild:
    """The embedded Redis under supervision."""

    server: EmbeddedRedis
    log: BoundedLog
    name: str = "redis"
    stage: Stage = Stage.BROKER
    stop_signal: signal.Signals = signal.SIGTERM

    def launch(self) -> subprocess.Popen[bytes]:
        """Starts the server on its data."""
        with self.log.open() as output:
            return self.server.launch(output)

    async def is_ready(self) -> bool:
        """Whether it answers commands."""
        return self.server.is_ready()


def log_says(phrase: str) -> Probe:
    """A probe for programs without a port: ready once `phrase` is in what they logged."""

    async def probe(program: Program) -> bool:
        return phrase in program.log.since(program.log_start)

    return probe


def logs_in(directory: Path, name: str) -> BoundedLog:
    """The log of the process `name`."""
    return BoundedLog(directory / f"{name}.log")
