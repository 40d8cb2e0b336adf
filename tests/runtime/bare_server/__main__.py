"""A process whose main is defined in its own __main__: `python -m tests.runtime.bare_server`."""

from __future__ import annotations

import asyncio
import sys

from services.runtime.port import Listen
from services.runtime.process import run_server


async def main(listen: Listen) -> None:
    sys.stderr.write(f"listening on {listen}\n")
    sys.stderr.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    sys.exit(run_server(main, listen="127.0.0.1:0", processes=2))
