"""Stand-in programs and a supervisor to run them."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from services.standalone.children import Program, Stage, log_says, logs_in
from services.standalone.processes import RestartPolicy, Supervisor

#: Says "ready", then waits; on SIGTERM writes its name to `stopped` and ends.
OBEDIENT = """
import os, signal, sys
def stop(*_):
    with open("stopped", "a") as file:
        file.write(sys.argv[1] + "\\n")
    os._exit(0)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
while True:
    signal.pause()
"""

QUICK = RestartPolicy(crashes_max=3, window_seconds=60, delay_seconds_first=0.01)


@dataclass
class Reports:
    """What the supervisor said, and a way to wait until it says something."""

    said: list[tuple[str, str]] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, kind: str, text: str) -> None:
        self.said.append((kind, text))
        self._changed.set()

    def of(self, kind: str) -> list[str]:
        return [text for said, text in self.said if said == kind]

    async def until(self, kind: str, count: int = 1) -> None:
        async with asyncio.timeout(30):
            while len(self.of(kind)) < count:
                self._changed.clear()
                await self._changed.wait()


@dataclass
class Supervised:
    """A supervisor, what it reports, and a maker of stand-ins."""

    supervisor: Supervisor
    reports: Reports
    directory: Path

    def program(self, name: str, script: str = OBEDIENT, stage: Stage = Stage.SERVERS) -> Program:
        command = (
            sys.executable,
            "-I",
            "-S",
            "-c",
            f"import os; os.chdir({str(self.directory)!r})\n{script}",
            name,
        )
        return Program(
            name=name,
            stage=stage,
            command=command,
            environment={"PATH": os.environ["PATH"]},
            log=logs_in(self.directory / "logs", name),
            probe=log_says("ready"),
        )


@pytest.fixture
async def supervise(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Supervised]]]:
    opened: list[Supervisor] = []

    async def open_one(**options: object) -> Supervised:
        reports = Reports()
        supervisor = Supervisor(reports, **{"policy": QUICK, "stop_seconds": 20.0, **options})  # type: ignore[arg-type]
        opened.append(supervisor)
        return Supervised(supervisor, reports, tmp_path)

    yield open_one
    for supervisor in opened:
        await supervisor.stop()
