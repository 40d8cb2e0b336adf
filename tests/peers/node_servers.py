"""Runs a script of tests/peers/servers with Node, inside the npm project it needs."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tools.peers import need, npm_project

SCRIPTS = Path(__file__).parent / "servers"
START_SECONDS_MAX = 120.0


def free_port() -> int:
    """A port nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def node_server(
    name: str, dependencies: Mapping[str, str], script: str, *arguments: str
) -> Iterator[None]:
    """The script, from when it says "serving" until the end of the block.

    Raises RuntimeError with its last words when it does not come so far.
    """
    folder = npm_project(name, dependencies)
    # Node finds packages from where the script is.
    shutil.copy(SCRIPTS / script, folder / script)
    process = subprocess.Popen(
        [need("node"), script, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said: list[str] = []
    ready = threading.Event()

    def listen() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if line.strip() == "serving":
                ready.set()

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        deadline = time.monotonic() + START_SECONDS_MAX
        while not ready.wait(0.1):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{script} did not start:\n{''.join(said[-20:])}")
        yield
    finally:
        process.kill()
        process.wait()
        listener.join()
        assert process.stdout is not None
        process.stdout.close()
