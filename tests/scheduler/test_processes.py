"""The real processes: clock, Dramatiq starters and broker, killed while they work."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.runtime.listen import Listener
from services.scheduler.store.changes import SLOTS_CHANNEL
from tests.scheduler.world import ALICE

ROOT = Path(__file__).resolve().parents[2]
CLOCK = ("-m", "services.scheduler", "clock")
STARTER = (
    *("-m", "dramatiq", "services.scheduler.worker"),
    *("--use-spawn", "--processes", "1", "--threads", "2"),
)


class Process:
    """One of our processes, in a session of its own, so that all of it can be killed."""

    def __init__(self, arguments: tuple[str, ...], environ: dict[str, str], log: Path) -> None:
        self._arguments = arguments
        self._environ = environ
        self._log = log
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *self._arguments,
                cwd=ROOT,
                env=self._environ,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def kill(self) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()

    async def stop(self) -> int:
        assert self._process is not None
        self._process.terminate()
        return await asyncio.wait_for(self._process.wait(), 60)


@pytest.fixture
def environ(world: Any, executor: Any, identities: Any, redis_url: str) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("COGNI_")},
        **identities.environ(),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'clients' / 'python'}",
        "COGNI_SERVICE_KEY_FILE": str(identities.folder / "scheduler.pem"),
        "COGNI_SCHEDULER_DATABASE_URL": world.db.url,
        "COGNI_EXECUTOR_ADDRESS": executor.address,
        "COGNI_BROKER_URL": redis_url,
    }


@pytest.fixture
def run(environ: dict[str, str], tmp_path: Path) -> Callable[..., Any]:
    @asynccontextmanager
    async def running(*arguments: str) -> AsyncIterator[Process]:
        process = Process(arguments, environ, tmp_path / f"{arguments[1]}.log")
        await process.start()
        try:
            yield process
        finally:
            if process._process is not None and process._process.returncode is None:
                await process.kill()

    return running


@pytest.fixture
async def until(world: Any) -> AsyncIterator[Callable[..., Any]]:
    """`await until(condition)` waits for it, looking again whenever slots have changed."""
    listener = Listener(world.db.url)
    listening = asyncio.create_task(listener.run())

    async def wait(condition: Callable[[], Any], seconds: float = 120.0) -> None:
        async with (
            asyncio.timeout(seconds),
            aclosing(listener.wakeups(SLOTS_CHANNEL, poll_seconds=0.5)) as wakeups,
        ):
            async for _ in wakeups:
                if await condition():
                    return

    yield wait
    listening.cancel()


@pytest.mark.timeout(600)
async def test_slots_start_through_the_clock_the_broker_and_a_starter(
    world: Any, run: Any, until: Any
) -> None:
    schedule = await world.create(
        {"interval": {"every": "1s"}},
        remaining_actions="3",
        catch_up={"mode": "CATCH_UP_MODE_ALL"},
        overlap_policy="OVERLAP_POLICY_ALLOW_ALL",
    )
    async with run(*STARTER), run(*CLOCK) as clock:

        async def three_started() -> bool:
            return await world.states(schedule) == ["STARTED"] * 3

        await until(three_started)
        slots = await world.slots(schedule)

        async def heard() -> bool:
            return all(slot.run_finished for slot in await world.slots(schedule))

        for slot in slots:
            await world.executor.end(slot.run_id)
        await until(heard)
        assert await clock.stop() == 0
    assert len(world.executor.runs) == 3


@pytest.mark.timeout(600)
async def test_killing_clocks_and_starters_loses_no_slot_and_starts_none_twice(
    world: Any, run: Any, until: Any
) -> None:
    schedules = [
        await world.create(
            {"interval": {"every": "1s"}},
            overlap_policy="OVERLAP_POLICY_ALLOW_ALL",
            catch_up={"mode": "CATCH_UP_MODE_ALL", "max_count": 1000},
        )
        for _ in range(3)
    ]
    # A fixed seed makes a failure repeatable.
    chance = random.Random(7)
    async with run(*STARTER) as starter, run(*CLOCK) as one, run(*CLOCK) as another:

        async def some_started() -> bool:
            return "STARTED" in await world.states(schedules[0])

        await until(some_started)
        for _ in range(6):
            victim = chance.choice((starter, one, another))
            await victim.kill()
            await asyncio.sleep(chance.random())
            await victim.start()
        for schedule in schedules:
            await world.schedules.pause(ALICE, schedule.schedule_id, "enough")

        async def all_started() -> bool:
            kept = [await world.states(schedule) for schedule in schedules]
            return all(set(states) == {"STARTED"} for states in kept)

        await until(all_started, 240)

    total = 0
    for schedule in schedules:
        times = [int(slot.key.scheduled_time.timestamp()) for slot in await world.slots(schedule)]
        assert times == list(range(times[0], times[0] + len(times)))
        total += len(times)
    assert len(world.executor.runs) == total
    assert len({request.request_id for request in world.executor.requests}) == total
