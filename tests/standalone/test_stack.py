"""A stack on real PostgreSQL and Redis, with stand-ins for the services above them."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import asyncpg
import pytest
import redis.asyncio

from services.standalone.children import Program, Stage, log_says, logs_in
from services.standalone.errors import DataDirInUseError, PortInUseError, StandaloneError
from services.standalone.programs import Wiring
from services.standalone.running import run_on
from services.standalone.stack import Stack, StackOptions
from tests.standalone.conftest import OBEDIENT, Reports

GRAPHS = Path(__file__).parents[2] / "examples" / "langgraph.json"

Maker = Callable[..., Stack]


def stand_ins(wiring: Wiring, logs: Path) -> Sequence[Program]:
    command = (sys.executable, "-I", "-S", "-c", f"import os; os.chdir({str(logs)!r})\n{OBEDIENT}")
    return [
        Program(name, stage, (*command, name), {}, logs_in(logs, name), log_says("ready"))
        for name, stage in (("server", Stage.SERVERS), ("runner", Stage.RUNNERS))
    ]


def migration(script: str = "") -> Callable[[Wiring, Path], Program]:
    def make(wiring: Wiring, logs: Path) -> Program:
        command = (sys.executable, "-I", "-S", "-c", script)
        return Program("migrations", Stage.SERVERS, command, {}, logs_in(logs, "m"), log_says(""))

    return make


@pytest.fixture
async def stack_on(tmp_path: Path) -> AsyncIterator[Maker]:
    made: list[Stack] = []

    def make(name: str = "data", migrating: str = "", **options: object) -> Stack:
        chosen = StackOptions(tmp_path / name, GRAPHS, **options)  # type: ignore[arg-type]
        stack = Stack(chosen, Reports(), compose=stand_ins, migration=migration(migrating))
        made.append(stack)
        return made[-1]

    yield make
    for stack in made:
        await stack.stop()


async def kept(url: str) -> list[int]:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("CREATE TABLE IF NOT EXISTS kept (value int)")
        await connection.execute("INSERT INTO kept VALUES (42)")
        return [row["value"] for row in await connection.fetch("SELECT value FROM kept")]
    finally:
        await connection.close()


def urls(stack: Stack) -> tuple[str, str]:
    return stack.wiring.database_url, stack.wiring.broker_url


async def test_data_survive_a_stop_and_a_new_start(stack_on: Maker) -> None:
    first = stack_on()
    await first.start()
    await kept(urls(first)[0])
    async with redis.asyncio.from_url(urls(first)[1]) as client:
        await client.set("kept", "42")
    await first.stop()

    second = stack_on()
    await second.start()

    assert await kept(urls(second)[0]) == [42, 42]
    async with redis.asyncio.from_url(urls(second)[1]) as client:
        assert await client.get("kept") == b"42"


@pytest.mark.parametrize("victim", ["postgres", "redis"])
async def test_after_kill_9_the_database_and_the_broker_are_back_on_the_same_port_with_all_data(
    stack_on: Maker, victim: str
) -> None:
    stack = stack_on()
    await stack.start()
    watch = asyncio.create_task(stack.watch())
    await kept(urls(stack)[0])
    reports: Reports = stack.report  # type: ignore[assignment]

    os.kill(stack.supervisor.pid(victim), signal.SIGKILL)
    await reports.until("restarted")

    assert await kept(urls(stack)[0]) == [42, 42]
    async with redis.asyncio.from_url(urls(stack)[1]) as client:
        assert await client.ping()
    watch.cancel()


async def test_two_stacks_run_side_by_side(stack_on: Maker) -> None:
    one, two = stack_on("one"), stack_on("two")

    await one.start()
    await two.start()

    assert set(urls(one)).isdisjoint(urls(two))
    addresses = {
        stack.address(service) for stack in (one, two) for service in ("executor", "ledger")
    }
    assert len(addresses) == 4


async def test_a_second_stack_on_the_same_directory_is_refused_with_the_pid(
    stack_on: Maker,
) -> None:
    first, second = stack_on(), stack_on()
    await first.start()

    with pytest.raises(DataDirInUseError, match=f"in use by the stack with pid {os.getpid()}"):
        await second.start()

    assert first.directory.addresses().pid == os.getpid()


async def test_a_requested_port_that_is_taken_is_refused_and_nothing_is_left(
    stack_on: Maker,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        stack = stack_on(ports={"ledger": port})

        with pytest.raises(PortInUseError, match=f"Port {port} for ledger is already in use"):
            await stack.start()

    again = stack_on()
    await again.start()


async def test_ctrl_c_while_a_failed_stack_stops_neither_cuts_that_short_nor_hides_why(
    stack_on: Maker,
) -> None:
    stack = stack_on()

    async def fail(_: Stack) -> None:
        raise StandaloneError("the reason")

    def interrupt(kind: str, text: str) -> None:
        told(kind, text)
        if told.of("stop") == [text] and kind == "stop":
            os.kill(os.getpid(), signal.SIGINT)

    told = Reports()
    stack.report = interrupt

    with pytest.raises(StandaloneError, match="the reason"):
        await run_on(stack, fail)

    assert told.of("stop")[-1] == "postgres"


async def test_a_file_that_is_gone_is_told_in_a_sentence(stack_on: Maker, tmp_path: Path) -> None:
    stack = stack_on()
    await stack.start()
    await stack.stop()
    (tmp_path / "data" / "postgres" / "postgres.password").unlink()

    with pytest.raises(StandaloneError, match=r"cannot start.*No such file.*postgres\.password"):
        await stack_on().start()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [(None, r"does not exist; name a langgraph\.json"), ("{", "is not JSON")],
)
async def test_a_langgraph_json_that_cannot_be_used_is_told_before_anything_starts(
    tmp_path: Path, text: str | None, sentence: str
) -> None:
    file = tmp_path / "langgraph.json"
    if text is not None:
        file.write_text(text)
    stack = Stack(StackOptions(tmp_path / "data", file), Reports())

    with pytest.raises(StandaloneError, match=sentence):
        await stack.start()

    assert not (tmp_path / "data").exists()


async def test_stopping_ends_runners_before_servers_and_the_database_last(
    stack_on: Maker,
) -> None:
    stack = stack_on()
    await stack.start()
    reports: Reports = stack.report  # type: ignore[assignment]

    await stack.stop()

    assert reports.of("stop") == ["runner", "server", "redis", "postgres"]


async def test_a_migration_that_fails_is_told_with_its_last_words_and_nothing_is_left(
    stack_on: Maker,
) -> None:
    stack = stack_on(migrating="raise SystemExit('no such column')")

    with pytest.raises(StandaloneError, match=r"The migrations failed.*no such column"):
        await stack.start()

    again = stack_on()
    await again.start()
