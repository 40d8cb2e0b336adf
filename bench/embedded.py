"""A whole embedded stack for one benchmark: its own data directory and ports, gone afterwards."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.processes import descendants
from cogni.client import ClientSettings
from services.standalone.postgres import EmbeddedPostgres

GRAPHS = Path(__file__).parent / "graphs" / "langgraph.json"
START_SECONDS_MAX = 120.0
STOP_SECONDS_MAX = 60.0


@dataclass(frozen=True)
class Embedded:
    """One running stack."""

    process: subprocess.Popen[bytes]
    data_dir: Path
    ready_seconds: float

    @property
    def logs(self) -> Path:
        """The folder with one log per process."""
        return self.data_dir / "logs"

    def settings(self, tenant: str = "bench") -> ClientSettings:
        """Client settings with a token of this tenant and every scope."""
        return ClientSettings.from_environment(self.environment(tenant))

    def environment(self, tenant: str = "bench") -> dict[str, str]:
        """What a client's environment holds: the addresses, and a token with every scope."""
        printed = subprocess.run(
            [*_standalone("env"), "--data-dir", str(self.data_dir), "--tenant", tenant],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        return dict(re.findall(r"export (\w+)='?([^'\n]+)'?", printed))

    def pids(self, words: str) -> list[int]:
        """The stack's processes, as they are now, with these words in their command line."""
        found = []
        for pid in descendants(self.process.pid):
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                if f"{words} " in f"{command} " and "launch.py" not in command:
                    found.append(pid)
        return found

    def environment_of(self, words: str) -> dict[str, str]:
        """What the first process with these words was started with."""
        raw = Path(f"/proc/{self.pids(words)[0]}/environ").read_text()
        return dict(pair.split("=", 1) for pair in raw.split("\0") if "=" in pair)

    @property
    def database_url(self) -> str:
        """The superuser's URL of the database of all services."""
        return self.environment_of("-m services.executor")["COGNI_EXECUTOR_DATABASE_URL"]

    @property
    def broker_url(self) -> str:
        """The URL of the broker."""
        return self.environment_of("-m services.executor")["COGNI_BROKER_URL"]

    def kill(self, words: str) -> list[int]:
        """kill -9 of each of them; returns which they were."""
        killed = self.pids(words)
        for pid in killed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return killed


def _standalone(command: str) -> list[str]:
    return [sys.executable, "-m", "services.standalone", command]


@contextmanager
def embedded(
    graphs: Path = GRAPHS,
    settings: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Embedded]:
    """Starts a stack, yields it when it is ready, stops it and deletes its data.

    `settings` are those of its services and runner, `environment` is what its shell has besides.

    Raises RuntimeError with the stack's own words when it does not become ready.
    """
    data_dir = Path(tempfile.mkdtemp(prefix="cogni-bench-"))
    output = data_dir / "output"
    started = time.monotonic()
    with output.open("wb") as sink:
        process = subprocess.Popen(
            [
                *(*_standalone("up"), "--data-dir", str(data_dir / "data")),
                *("--graphs", str(graphs)),
                *(f"--set={name}={value}" for name, value in (settings or {}).items()),
            ],
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**os.environ, "COLUMNS": "200", **(environment or {})},
        )
    try:
        _wait_until_ready(process, data_dir / "data", output, started)
        yield Embedded(process, data_dir / "data", time.monotonic() - started)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
        shutil.rmtree(data_dir, ignore_errors=True)


def _wait_until_ready(
    process: subprocess.Popen[bytes], data_dir: Path, output: Path, started: float
) -> None:
    # The stack publishes its addresses when everything is healthy.
    while not (data_dir / "stack.json").exists():
        if process.poll() is not None:
            raise RuntimeError(f"the stack did not start:\n{output.read_text()}")
        if time.monotonic() - started > START_SECONDS_MAX:
            raise RuntimeError(f"the stack was not ready in time:\n{output.read_text()}")
        time.sleep(0.05)


@contextmanager
def database() -> Iterator[str]:
    """The stack's PostgreSQL alone, as durable as there, for a peer that stores in one: its URL."""
    folder = Path(tempfile.mkdtemp(prefix="cogni-bench-"))
    postgres = EmbeddedPostgres(folder / "postgres")
    try:
        postgres.initialise()
        postgres.start()
        postgres.create_database()
        yield postgres.url()
    finally:
        postgres.destroy()
        shutil.rmtree(folder, ignore_errors=True)
