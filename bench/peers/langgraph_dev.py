"""`langgraph dev`, the peer's in-memory server, serving the same graph on a port of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tools.peers import python_environment

REQUIREMENTS = ("langgraph-cli[inmem]==0.4.40", "langgraph-api==0.16.7", "langgraph==1.2.22")
START_SECONDS_MAX = 90.0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def langgraph_dev(graphs: Path) -> Iterator[str]:
    """Serves the folder's langgraph.json and yields the server's URL."""
    python = python_environment("langgraph-dev", *REQUIREMENTS)
    port = _free_port()
    command = [
        *(str(python.parent / "langgraph"), "dev"),
        *("--config", str(graphs / "langgraph.json"), "--port", str(port)),
        *("--no-browser", "--no-reload", "--server-log-level", "ERROR"),
    ]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=graphs,
            env={**os.environ, "LANGSMITH_TRACING": "false"},
        )
        try:
            _wait(process, port)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError("langgraph dev ended before it served")
        try:
            httpx.get(f"http://127.0.0.1:{port}/ok").raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.2)
    raise RuntimeError("langgraph dev did not serve in time")
