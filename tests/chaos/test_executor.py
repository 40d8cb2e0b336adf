"""Runners that stop and come back, lost messages, a dead database, poison: no run is lost by it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import redis.asyncio

from bench.embedded import Embedded, embedded
from cogni.client import AsyncClient, CogniError, Unavailable, from_json_message, to_struct
from cogni.executor.v1.executor_service_pb2 import StartRunRequest
from cogni.executor.v1.grant_service_pb2 import CreateGrantRequest
from cogni.executor.v1.run_event_pb2 import RunEvent
from cogni.executor.v1.run_pb2 import RunOptions, RunState
from cogni.type.v1.error_reason_pb2 import ErrorReason

LONG = bool(os.environ.get("LONG"))
SEED = int(os.environ.get("SEED") or random.SystemRandom().randrange(2**32))
RUNS = 60 if LONG else 8
ROUNDS = 5 if LONG else 1
DEADLINE_SECONDS = 240
RUNNER = "services.executor.worker"
STEPS = 40
STANDSTILL = (
    "SELECT * FROM executor.run_leases WHERE holder IS NOT NULL OR ready_time IS NOT NULL",
    """
    SELECT pid, application_name, state, wait_event_type, wait_event, pg_blocking_pids(pid),
        clock_timestamp() - xact_start AS age, left(query, 100) AS query
    FROM pg_stat_activity WHERE datname = current_database()
    """,
)
#: Tables with what an attempt writes; a zombie's row in any of them would be a broken fence.
FENCED = (
    "runs",
    "run_events",
    "run_leases",
    "checkpoints",
    "checkpoint_blobs",
    "checkpoint_writes",
    "invocations",
    "usage_units",
)
#: The transaction of a stopped runner that holds the right to write to a run.
IN_TRANSACTION = """
SELECT pid FROM pg_stat_activity JOIN pg_locks USING (pid)
WHERE application_name = 'runner' AND state LIKE 'idle in transaction%'
    AND relation = 'executor.run_leases'::regclass AND mode = 'RowExclusiveLock'
"""

Stop = Callable[[int, str], Awaitable[None]]


@dataclass(frozen=True)
class World:
    """One stack, and a grant for its graph."""

    stack: Embedded
    database_url: str
    broker_url: str


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    sys.stdout.write(f"seed {SEED}\n")
    graphs = tmp_path_factory.mktemp("chaos") / "langgraph.json"
    source = Path(__file__).parent / "graphs" / "trials.py"
    graphs.write_text(json.dumps({"dependencies": ["."], "graphs": {"steps": f"{source}:steps"}}))
    settings = {
        "COGNI_RUNNER_LEASE_SECONDS": "4",
        "COGNI_RUNNER_PROBATION_SECONDS": "1",
        "COGNI_RUNNER_PATIENCE_SECONDS": "5",
        # A runner that was stopped for long must come back as a zombie, not end itself.
        "COGNI_RUNNER_LOOP_STALL_SECONDS": "600",
    }
    with embedded(graphs, settings) as stack:
        yield World(stack, stack.database_url, stack.broker_url)


@pytest.fixture
async def client(world: World) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(world.stack.settings("chaos")) as client:
        yield client


@pytest.fixture
async def grant_id(client: AsyncClient) -> str:
    request = CreateGrantRequest(request_id=str(uuid.uuid4()), graphs=["graph:execute:steps"])
    return (await client.grants.CreateGrant(request)).grant.grant_id


@pytest.fixture
def second_runner(world: World, tmp_path: Path) -> Iterator[Path]:
    """Another runner beside the stack's; what it logs."""
    log = tmp_path / "runner.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "dramatiq", RUNNER),
                *("--use-spawn", "--processes", "1", "--threads", "1"),
            ],
            env=world.stack.environment_of(RUNNER),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        _await_text(log, "the graphs are published")
        yield log
    finally:
        os.killpg(process.pid, signal.SIGCONT)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _await_text(path: Path, *phrases: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not any(phrase in path.read_text(errors="replace") for phrase in phrases):
        assert time.monotonic() < deadline, path.read_text(errors="replace")[-2000:]
        time.sleep(0.1)


async def _start(client: AsyncClient, grant_id: str, max_attempts: int = 5, **given: Any) -> str:
    """Starts a run, repeating what was not answered."""
    request = StartRunRequest(
        request_id=str(uuid.uuid4()),
        graph_id="steps",
        grant_id=grant_id,
        input=to_struct(given),
        options=RunOptions(max_attempts=max_attempts, max_steps=1000),
    )
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        try:
            return (await client.executor.StartRun(request)).run.run_id
        except CogniError as error:
            if not isinstance(error, Unavailable) and error.reason != "DEADLINE_EXCEEDED":
                raise
            assert time.monotonic() < deadline
            await asyncio.sleep(0.2)


async def _logs(client: AsyncClient, run_ids: list[str]) -> list[list[RunEvent]]:
    async def log(run_id: str) -> list[RunEvent]:
        return [event async for event in client.watch_run(run_id)]

    async with asyncio.timeout(DEADLINE_SECONDS):
        return await asyncio.gather(*(log(run_id) for run_id in run_ids))


def _check_logs(logs: list[list[RunEvent]], steps: int) -> None:
    for events in logs:
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert [e.seq for e in events if e.HasField("finished")] == [events[-1].seq]
        finished = events[-1].finished
        assert finished.state == RunState.RUN_STATE_SUCCEEDED, finished.error
        assert from_json_message(finished.output)["done"] == steps


async def _attempt(client: AsyncClient, run_id: str, number: int) -> str:
    """Waits for the run's attempt; returns its runner, as host:pid."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        async for event in client.watch_run(run_id):
            if event.HasField("attempt_started") and event.attempt >= number:
                return event.attempt_started.runner
    raise AssertionError(f"run {run_id} ended before attempt {number}")


async def _rows(url: str, run_ids: list[str]) -> dict[str, list[str]]:
    """Every row of the runs in the tables that attempts write."""
    connection = await asyncpg.connect(url)
    try:
        found = {}
        for table in FENCED:
            statement = (
                # Closing a run's bill is the server's, and comes when it comes.
                f"SELECT (to_jsonb({table}) - 'close_time' - 'close_version')::text AS row "
                f"FROM executor.{table} "
                "WHERE run_id = ANY ($1::uuid[]) ORDER BY 1"
            )
            found[table] = [row["row"] for row in await connection.fetch(statement, run_ids)]
        return found
    finally:
        await connection.close()


async def _state(world: World, second_log: Path) -> str:
    """What whoever looks for the reason of a standstill wants to see."""
    connection = await asyncpg.connect(world.database_url)
    try:
        rows = [str(dict(row)) for query in STANDSTILL for row in await connection.fetch(query)]
    finally:
        await connection.close()
    logs = [
        f"{path}:\n{path.read_text(errors='replace')[-4000:]}"
        for path in (world.stack.logs / "runner.log", second_log)
    ]
    return "\n".join([*rows, *logs])


async def _stop_anywhere(group: int, url: str) -> None:
    os.killpg(group, signal.SIGSTOP)


async def _stop_in_transaction(group: int, url: str) -> None:
    """Stops the group again and again, until it stands in a transaction that may write to a run."""
    dice = random.Random(SEED)
    connection = await asyncpg.connect(url)
    try:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < deadline:
            os.killpg(group, signal.SIGSTOP)
            held = {row["pid"] for row in await connection.fetch(IN_TRANSACTION)}
            # The other runner's transactions go on: what is there a moment later is stopped.
            for _ in range(3):
                held &= {row["pid"] for row in await connection.fetch(IN_TRANSACTION)}
            if held:
                return
            os.killpg(group, signal.SIGCONT)
            await asyncio.sleep(dice.uniform(0, 0.02))
        pytest.fail("the runner was never met inside a transaction")
    finally:
        await connection.close()


@dataclass(frozen=True)
class Zombie:
    """A stopped runner, the runs it carried, and where it logs."""

    group: int
    run_ids: list[str]
    log: Path
    said: int

    async def resume(self, run_id: str) -> None:
        """Lets it go on, and waits until it has noticed that it lost this run."""
        os.killpg(self.group, signal.SIGCONT)
        deadline = time.monotonic() + DEADLINE_SECONDS
        # The second when the database had ended the transaction it stood in.
        words = (f"the lease of run {run_id} is lost", f"run {run_id} could not be stored")
        while not any(each in self._newly_said() for each in words):
            assert time.monotonic() < deadline, f"the zombie only said: {self._newly_said()}"
            await asyncio.sleep(0.1)

    def _newly_said(self) -> str:
        return self.log.read_text(errors="replace")[self.said :]


async def _stopped_runner(
    world: World, client: AsyncClient, run_ids: list[str], other_log: Path, stop: Stop
) -> Zombie:
    """Stops the runner that carries the first of the runs."""
    holders = [await _attempt(client, run_id, 1) for run_id in run_ids]
    group = os.getpgid(int(holders[0].rpartition(":")[2]))
    own = group in {os.getpgid(each) for each in world.stack.pids(RUNNER)}
    log = world.stack.logs / "runner.log" if own else other_log
    said = len(log.read_text(errors="replace"))
    await stop(group, world.database_url)
    carried = [r for r, h in zip(run_ids, holders, strict=True) if h == holders[0]]
    return Zombie(group, carried, log, said)


@pytest.mark.parametrize("stop", [_stop_anywhere, _stop_in_transaction])
@pytest.mark.parametrize("ended", [False, True], ids=["while it goes on", "after it ended"])
async def test_a_runner_that_was_stopped_past_its_lease_comes_back_and_writes_nothing(
    world: World,
    client: AsyncClient,
    grant_id: str,
    second_runner: Path,
    stop: Stop,
    ended: bool,
) -> None:
    run_ids = [await _start(client, grant_id, steps=STEPS) for _ in range(RUNS // 2)]
    zombie = await _stopped_runner(world, client, run_ids, second_runner, stop)
    try:
        try:
            await _attempt(client, zombie.run_ids[0], 2)
        except TimeoutError:
            pytest.fail(f"nobody took the run over\n{await _state(world, second_runner)}")
        if ended:
            await _logs(client, run_ids)
        before = await _rows(world.database_url, run_ids) if ended else None
    finally:
        await zombie.resume(zombie.run_ids[0])
    logs = await _logs(client, run_ids)
    # The zombie is a good runner again.
    await _logs(client, [await _start(client, grant_id, steps=1)])

    _check_logs(logs, STEPS)
    for events in logs:
        attempts = [event.attempt for event in events if event.attempt]
        assert attempts == sorted(attempts), "an attempt wrote after the next had begun"
    if ended:
        assert await _rows(world.database_url, run_ids) == before
    again = await _logs(client, run_ids)
    assert [[e.SerializeToString() for e in log] for log in again] == [
        [e.SerializeToString() for e in log] for log in logs
    ]


async def test_no_run_is_lost_with_its_message(
    world: World, client: AsyncClient, grant_id: str
) -> None:
    async with redis.asyncio.from_url(world.broker_url) as broker:
        run_ids = []
        for _ in range(RUNS * 3):
            run_ids.append(await _start(client, grant_id, steps=2))
            await broker.flushdb()
        logs = await _logs(client, run_ids)

    _check_logs(logs, 2)


async def test_no_run_is_lost_when_the_database_is_killed_under_load(
    world: World, client: AsyncClient, grant_id: str
) -> None:
    run_ids = []
    for round_number in range(ROUNDS + 1):
        run_ids += [await _start(client, grant_id, steps=15) for _ in range(RUNS)]
        await _attempt(client, run_ids[round_number * RUNS], 1)
        # The supervisor gives up on a process that crashes more than five times a minute.
        assert world.stack.kill("bin/postgres")

    logs = await _logs(client, run_ids)

    _check_logs(logs, 15)


async def test_poison_fails_alone_and_its_neighbours_succeed(
    client: AsyncClient, grant_id: str
) -> None:
    neighbours = [await _start(client, grant_id, steps=10) for _ in range(4)]
    poison = await _start(client, grant_id, steps=10, poison=True, max_attempts=1)

    logs = await _logs(client, neighbours)
    [poisoned] = await _logs(client, [poison])

    _check_logs(logs, 10)
    finished = poisoned[-1].finished
    assert finished.state == RunState.RUN_STATE_FAILED
    assert finished.error.reason == ErrorReason.ERROR_REASON_ATTEMPTS_EXHAUSTED
