"""A whole embedded stack for one benchmark: its own data directory and ports, gone afterwards."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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

    def settings(self, tenant: str = "bench") -> ClientSettings:
        """Client settings with a token of this tenant and every scope."""
        printed = subprocess.run(
            [*_standalone("env"), "--data-dir", str(self.data_dir), "--tenant", tenant],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        found = dict(re.findall(r"export (\w+)='?([^'\n]+)'?", printed))
        return ClientSettings.from_environment(found)


def _standalone(command: str) -> list[str]:
    return [sys.executable, "-m", "services.standalone", command]


@contextmanager
def embedded(graphs: Path = GRAPHS) -> Iterator[Embedded]:
    """Starts a stack, yields it when it is ready, stops it and deletes its data.

    Raises RuntimeError with the stack's own words when it does not become ready.
    """
    data_dir = Path(tempfile.mkdtemp(prefix="cogni-bench-"))
    output = data_dir / "output"
    started = time.monotonic()
    with output.open("wb") as sink:
        process = subprocess.Popen(
            [*_standalone("up"), "--data-dir", str(data_dir / "data"), "--graphs", str(graphs)],
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**os.environ, "COLUMNS": "200"},
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
