"""The embedded stack as a whole: how soon it serves, and what it costs to have it idle."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.embedded import embedded
from bench.executor import create_grant
from bench.processes import descendants
from bench.report import Report
from cogni.client import AsyncClient, ClientSettings

AREA = "stack"
KIB_PER_MIB = 1024
# "Warm: all servers healthy and a first no-op run finished", as the foundation promises.
READY_SECONDS_PROMISED = 12.0
DEMO_SECONDS_PROMISED = 60.0
_DONE = re.compile(r"^Done in ([0-9]+) s", re.MULTILINE)


def measure(report: Report, long: bool) -> None:
    ready, first_run, memory = [], [], []
    for _ in range(3 if long else 2):
        with embedded() as stack:
            started = time.monotonic()
            asyncio.run(_one_run(stack.settings()))
            ready.append(stack.ready_seconds)
            first_run.append(stack.ready_seconds + time.monotonic() - started)
            memory.append(_tree_memory_mib(stack.process.pid))
    report.add(AREA, "all servers healthy", "s", ready)
    report.add(
        AREA,
        "all servers healthy and a first no-op run finished",
        "s",
        first_run,
        peer="promised at most",
        peer_values=[READY_SECONDS_PROMISED],
    )
    report.add(AREA, "memory of all its processes, idle (PSS)", "MiB", memory)
    report.add(
        AREA,
        "the demo, installed before",
        "s",
        [_demo_seconds()],
        peer="promised at most",
        peer_values=[DEMO_SECONDS_PROMISED],
    )


def _demo_seconds() -> float:
    with tempfile.TemporaryDirectory(prefix="cogni-bench-") as folder:
        printed = subprocess.run(
            [sys.executable, "-m", "services.standalone", "demo", "--data-dir", f"{folder}/demo"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    found = _DONE.search(printed)
    if found is None:
        raise RuntimeError(f"the demo did not say how long it took: {printed[-500:]}")
    return float(found.group(1))


async def _one_run(settings: ClientSettings) -> None:
    async with AsyncClient(settings) as client:
        run = await client.start_run("noop", await create_grant(client))
        async for _ in client.watch_run(run.run_id):
            pass


def _tree_memory_mib(root: int) -> float:
    """Proportional set size of a process and everything below it; shared pages counted once."""
    return sum(_pss_kib(pid) for pid in descendants(root)) / KIB_PER_MIB


def _pss_kib(pid: int) -> int:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next(
        (int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")), 0
    )
