"""A server that is told to stop while it starts its processes: `… early_server SIGTERM`."""

from __future__ import annotations

import os
import signal
import sys
from multiprocessing.context import SpawnProcess

from services.runtime.process import run_server
from tests.runtime.bare_server.__main__ import main

_start = SpawnProcess.start


def start(process: SpawnProcess) -> None:
    """Sends the signal once a first process is there and a second is not."""
    if process.name == "server-1":
        os.killpg(os.getpid(), signal.Signals[sys.argv[1]])
    _start(process)


if __name__ == "__main__":
    SpawnProcess.start = start  # type: ignore[method-assign]
    sys.exit(run_server(main, listen="127.0.0.1:0", processes=2))
