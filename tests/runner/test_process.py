"""The runner as a process of its own: kill -9, SIGSTOP, a blocked loop, and SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.executor.runs import Run
from tests.runner.fleet import Fleet

DEADLINE_SECONDS = 90.0

GRAPHS = """
import asyncio, operator, os, pathlib, sys, time
from typing import Annotated, TypedDict
from cogni.graph import tool
from langgraph.graph import END, START, StateGraph

NOTES = pathlib.Path(os.environ["NOTES"])

class Words(TypedDict):
    words: Annotated[list[str], operator.add]

def note(word):
    with NOTES.open("a") as file:
        file.write(word + "\\n")

def chain(*nodes):
    graph = StateGraph(Words)
    for node in nodes:
        graph.add_node(node.__name__, node)
    names = [node.__name__ for node in nodes]
    for before, after in zip([START, *names], [*names, END]):
        graph.add_edge(before, after)
    return graph

async def first(state):
    note("first")
    return {"words": ["first"]}

async def held(state):
    note("held")
    while not (NOTES.parent / "released").exists():
        await asyncio.sleep(0.05)
    return {"words": ["held"]}

@tool(effects="outward", idempotent=True)
async def mark():
    "Leave a mark."
    return (await held({}))["words"][0]

async def acts(state):
    return {"words": [await mark.ainvoke({})]}

async def blocks(state):
    note("blocks")
    if NOTES.read_text().count("blocks") == 1:
        time.sleep(60)
    return {"words": ["freed"]}

async def imported(state):
    return {"words": [name for name in ("litellm", "openai") if name in sys.modules]}

hold = chain(first, held)
acting = chain(first, acts)
blocking = chain(first, blocks)
light = chain(imported)
"""


@dataclass
class Worker:
    """One `dramatiq` command: its parent, and the process that carries runs."""

    parent: subprocess.Popen[bytes]
    log: Path

    @property
    def carrier(self) -> psutil.Process:
        """The child that has the runner's thread; the resource tracker is another child."""
        children = psutil.Process(self.parent.pid).children()
        return max(children, key=lambda child: child.num_threads())

    def kill(self) -> None:
        for process in [*psutil.Process(self.parent.pid).children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.parent.kill()
        self.parent.wait()


@dataclass
class Works:
    """Starts workers over one database and broker, and waits for what runs become."""

    fleet: Fleet
    environment: dict[str, str]
    folder: Path
    workers: list[Worker]

    def start(self, **settings: str) -> Worker:
        log = self.folder / f"worker-{len(self.workers)}.log"
        command = [sys.executable, "-m", "dramatiq", "services.executor.worker", "--use-spawn"]
        with log.open("wb") as file:
            parent = subprocess.Popen(
                [*command, "--processes", "1", "--threads", "1"],
                env={**self.environment, **settings},
                stdout=file,
                stderr=file,
            )
        self.workers.append(Worker(parent, log))
        return self.workers[-1]

    def notes(self) -> list[str]:
        file = self.folder / "notes"
        return file.read_text().split() if file.exists() else []

    def release(self) -> None:
        (self.folder / "released").touch()

    async def noted(self, word: str, times: int = 1) -> None:
        await self._until(lambda: self.notes().count(word) >= times)

    async def finished(self, run_id: str) -> Run:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                run = await self.fleet.run(run_id)
                if run.final:
                    return run
                await asyncio.sleep(0.1)

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                if condition():
                    return
                await asyncio.sleep(0.05)


@pytest.fixture
async def works(fleet: Fleet, redis_url: str, tmp_path: Path) -> AsyncIterator[Works]:
    key = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (tmp_path / "key").write_bytes(key)
    (tmp_path / "graphs.py").write_text(GRAPHS)
    names = ("hold", "acting", "blocking", "light")
    named = ", ".join(f'"{name}": "./graphs.py:{name}"' for name in names)
    (tmp_path / "langgraph.json").write_text(f'{{"graphs": {{{named}}}}}')
    environment = {
        **os.environ,
        "NOTES": str(tmp_path / "notes"),
        "COGNI_EXECUTOR_DATABASE_URL": fleet.database.url,
        "COGNI_EXECUTOR_ADDRESS": "127.0.0.1:1",
        "COGNI_CONNECTIONS_ADDRESS": "127.0.0.1:1",
        "COGNI_LEDGER_ADDRESS": "127.0.0.1:1",
        "COGNI_BROKER_URL": redis_url,
        "COGNI_SERVICE_KEY_FILE": str(tmp_path / "key"),
        "COGNI_GRAPHS_FILE": str(tmp_path / "langgraph.json"),
        "COGNI_RUNNER_LEASE_SECONDS": "6",
        "COGNI_RUNNER_CLOCK_SKEW_SECONDS": "0.5",
        "COGNI_RUNNER_DRAIN_SECONDS": "0",
    }
    made = Works(fleet, environment, tmp_path, [])
    yield made
    for worker in made.workers:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.kill()


async def test_kill_9_in_a_tool_repeats_no_finished_step_and_charges_both_executions(
    works: Works,
) -> None:
    run_id = await works.fleet.start("acting", await works.fleet.grant("mark"))
    worker = works.start()
    await works.noted("held")
    worker.kill()
    works.release()
    works.start()

    run = await works.finished(run_id)

    assert (run.state, run.output) == ("SUCCEEDED", {"words": ["first", "held"]})
    assert run.attempt >= 2
    assert works.notes().count("first") == 1
    log = await works.fleet.events(run_id)
    assert [event.WhichOneof("event") for event in log].count("finished") == 1
    assert [event.attempt for event in log] == sorted(event.attempt for event in log)
    units = await works.fleet.rows("SELECT * FROM usage_units ORDER BY occur_time")
    assert [(unit["state"], unit["rework"]) for unit in units] == [
        ("SETTLED", False),
        ("SETTLED", True),
    ]
    assert len({unit["invocation_id"] for unit in units}) == 1
    assert units[0]["attempt"] < units[1]["attempt"] == run.attempt


async def test_a_process_frozen_past_its_lease_writes_nothing_when_it_wakes(works: Works) -> None:
    run_id = await works.fleet.start("hold")
    zombie = works.start()
    await works.noted("held")
    carrier = zombie.carrier
    carrier.suspend()
    works.release()
    works.start()
    run = await works.finished(run_id)
    before = await _rows(works.fleet)

    carrier.resume()
    other = await works.fleet.start("light")
    # By the time it has carried another run, the woken process has long tried to write.
    await works.finished(other)
    await _idle_for_a_renewal(zombie)

    after = await _rows(works.fleet, without=other)
    assert after == before
    assert run.state == "SUCCEEDED"
    assert run.attempt >= 2


async def test_a_graph_that_blocks_the_loop_ends_its_process_and_goes_on_in_another(
    works: Works,
) -> None:
    run_id = await works.fleet.start("blocking")
    first = works.start(COGNI_RUNNER_LOOP_STALL_SECONDS="5")
    await works.noted("blocks")
    await asyncio.to_thread(first.parent.wait, DEADLINE_SECONDS)
    works.start()

    run = await works.finished(run_id)

    assert (run.state, run.output) == ("SUCCEEDED", {"words": ["first", "freed"]})
    assert "has not ticked" in first.log.read_text()


async def test_a_worker_told_to_end_hands_its_runs_over_at_once(works: Works) -> None:
    run_id = await works.fleet.start("hold")
    worker = works.start(COGNI_RUNNER_LEASE_SECONDS="600")
    await works.noted("held")
    worker.parent.send_signal(signal.SIGTERM)
    await asyncio.to_thread(worker.parent.wait, DEADLINE_SECONDS)

    assert (await works.fleet.run(run_id)).state == "QUEUED"
    assert (await works.fleet.kinds(run_id))[-1] == "queued"
    assert "Traceback" not in worker.log.read_text()


async def test_a_run_that_calls_no_model_never_imports_litellm(works: Works) -> None:
    run_id = await works.fleet.start("light")
    works.start()

    assert (await works.finished(run_id)).output == {"words": []}


async def test_a_langgraph_json_that_cannot_be_used_ends_the_worker_with_a_sentence(
    works: Works,
) -> None:
    (works.folder / "langgraph.json").write_text('{"graphs": {}}')
    worker = works.start()
    await asyncio.to_thread(worker.parent.wait, DEADLINE_SECONDS)

    log = worker.log.read_text()
    assert "names no graphs" in log
    assert "Traceback" not in log


async def _rows(fleet: Fleet, without: str = "") -> dict[str, Any]:
    """Everything that is stored about runs, but for one of them."""
    tables = ("run_events", "checkpoints", "checkpoint_blobs", "checkpoint_writes", "runs")
    found = {}
    for table in tables:
        rows = await fleet.rows(f"SELECT t::text AS row, run_id FROM {table} AS t ORDER BY 1")
        found[table] = [row["row"] for row in rows if str(row["run_id"]) != without]
    return found


async def _idle_for_a_renewal(worker: Worker) -> None:
    """Return when the worker has noticed that its lease is gone."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            if "is lost" in worker.log.read_text():
                return
            await asyncio.sleep(0.1)
