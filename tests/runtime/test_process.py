"""A service is run as people run it: its own processes, real signals, one port, exit codes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from services.runtime.database import Database
from tests.databases import DatabaseFactory
from tests.plugins.calls import feed, refusal_of, watch
from tests.plugins.identities import Identities
from tests.plugins.pets import FeedPetRequest

#: Each test starts up to five interpreters, which a busy machine takes its time for.
pytestmark = pytest.mark.timeout(400)

ROOT = Path(__file__).parents[2]
START_SECONDS = 90
STOP_SECONDS = 30


class Notes:
    """One started service of a test."""

    def __init__(self, process: Process, token: str) -> None:
        self.process = process
        self.token = token
        self.log = ""
        self.address = ""

    async def listening(self, processes: int = 1) -> None:
        """Waits until that many processes said where they listen."""
        async with asyncio.timeout(START_SECONDS):
            while processes > 0:
                found = re.search(r"listening on (\S+)", await self._line())
                if found:
                    self.address = found.group(1)
                    processes -= 1

    async def _line(self) -> str:
        assert self.process.stderr is not None
        line = (await self.process.stderr.readline()).decode()
        assert line, f"the server ended: {self.log}"
        self.log += line
        return line

    async def ended(self) -> int:
        """The exit code; collects what else it logged."""
        assert self.process.stderr is not None
        async with asyncio.timeout(START_SECONDS):
            self.log += (await self.process.stderr.read()).decode()
            return await self.process.wait()

    def channel(self, number: int = 0) -> grpc.aio.Channel:
        """Channels of different numbers are different connections."""
        options = [("grpc.channel_number", number), ("grpc.use_local_subchannel_pool", 1)]
        return grpc.aio.insecure_channel(self.address, options=options)

    @property
    def bearer(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.token}"),)

    async def pid(self, number: int) -> int:
        async with self.channel(number) as channel:
            answer = await feed(channel)(
                FeedPetRequest(), metadata=self.bearer, wait_for_ready=True, timeout=START_SECONDS
            )
            return int(answer.name)


class Starter:
    """Starts services with the settings of this test."""

    def __init__(self, identities: Identities, database: Database) -> None:
        self._identities = identities
        self._database = database
        self.started: list[Notes] = []

    async def __call__(
        self, *arguments: str, program: str = "notes_server", **changes: str
    ) -> Notes:
        environ = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{ROOT}:{ROOT / 'clients' / 'python'}",
            "COGNI_NOTES_LISTEN": "127.0.0.1:0",
            "COGNI_NOTES_DATABASE_URL": self._database.url,
            "COGNI_DRAIN_SECONDS": str(STOP_SECONDS),
            **self._identities.environ(),
            **changes,
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            f"tests.runtime.{program}",
            *arguments,
            env=environ,
            cwd=ROOT,
            stdout=PIPE,
            stderr=PIPE,
            start_new_session=True,
        )
        token = self._identities.user_token(scopes={"pets:read", "pets:write"})
        self.started.append(Notes(process, token))
        return self.started[-1]


@pytest.fixture
async def start(identities: Identities, database: DatabaseFactory) -> AsyncIterator[Starter]:
    starter = Starter(identities, await database("notes", "tests.runtime.migrated"))
    yield starter
    for each in starter.started:
        # The group, since a killed parent leaves children that hold its pipes open.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(each.process.pid, signal.SIGKILL)
        await each.process.communicate()


async def is_gone(pid: int) -> None:
    """Returns when the process has ended."""
    descriptor = os.pidfd_open(pid)
    loop, gone = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, gone.set)
    try:
        await asyncio.wait_for(gone.wait(), STOP_SECONDS)
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def test_a_stop_signal_ends_streams_with_a_resume_point_and_the_process_with_zero(
    start: Starter,
) -> None:
    notes = await start()
    await notes.listening()
    async with notes.channel() as channel:
        stream = watch(channel)(FeedPetRequest(), metadata=notes.bearer)
        await stream.read()

        notes.process.send_signal(signal.SIGTERM)

        assert (await stream.read()).name == "resume here"
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await stream.read()
        assert refusal_of(ended.value).code is grpc.StatusCode.UNAVAILABLE
    assert await notes.ended() == 0
    assert "Traceback" not in notes.log


async def test_a_second_stop_signal_does_not_wait_for_calls(start: Starter) -> None:
    notes = await start(COGNI_DRAIN_SECONDS="600")
    await notes.listening()
    async with notes.channel() as channel:
        stream = watch(channel)(FeedPetRequest(), metadata=notes.bearer)
        await stream.read()
        hanging = asyncio.ensure_future(
            feed(channel)(FeedPetRequest(name="hang"), metadata=notes.bearer)
        )
        notes.process.send_signal(signal.SIGTERM)
        await stream.read()

        notes.process.send_signal(signal.SIGTERM)

        assert await notes.ended() == 0
        with pytest.raises(grpc.aio.AioRpcError):
            await hanging


async def test_several_processes_share_one_port_and_one_ctrl_c_drains_them_all(
    start: Starter,
) -> None:
    notes = await start(COGNI_PROCESSES="2")
    await notes.listening(processes=2)

    pids: set[int] = set()
    for number in range(200):
        pids.add(await notes.pid(number))
        if len(pids) == 2:
            break
    assert len(pids) == 2

    async with notes.channel(-1) as channel:
        stream = watch(channel)(FeedPetRequest(name="late"), metadata=notes.bearer)
        await stream.read()
        # As a terminal does it: every process of the group gets the signal. Counted twice, the
        # one Ctrl-C would cut the stream before its resume point.
        os.killpg(notes.process.pid, signal.SIGINT)
        assert (await stream.read()).name == "resume here"
    assert await notes.ended() == 0
    assert "Traceback" not in notes.log


async def test_when_one_process_dies_the_rest_stop_and_the_exit_code_says_so(
    start: Starter,
) -> None:
    notes = await start(COGNI_PROCESSES="2")
    await notes.listening(processes=2)
    async with notes.channel() as channel:
        call = feed(channel)(FeedPetRequest(name="die"), metadata=notes.bearer, wait_for_ready=True)
        with pytest.raises(grpc.aio.AioRpcError):
            await call

    assert await notes.ended() == 1
    assert "ended with code 9; stopping the others" in notes.log
    assert "and is killed" not in notes.log


async def test_a_main_defined_in_the_program_itself_runs_in_spawned_processes(
    start: Starter,
) -> None:
    bare = await start(program="bare_server")
    await bare.listening(processes=2)

    bare.process.send_signal(signal.SIGTERM)

    assert await bare.ended() == 0
    assert "Traceback" not in bare.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_stop_signal_between_the_starts_of_two_processes_stops_both(
    start: Starter, number: signal.Signals
) -> None:
    # To the whole group, as a terminal and a container's stop do it.
    early = await start(number.name, program="early_server")

    assert await early.ended() == 0
    assert "Traceback" not in early.log
    assert "and is killed" not in early.log


async def test_children_end_when_their_parent_was_killed(start: Starter) -> None:
    notes = await start(COGNI_PROCESSES="2")
    await notes.listening(processes=2)
    pid = await notes.pid(0)

    notes.process.kill()

    await is_gone(pid)


async def test_what_keeps_a_server_from_starting_is_one_sentence(
    start: Starter, empty_database: str
) -> None:
    with socket.socket() as owner:
        owner.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        owner.bind(("127.0.0.1", 0))
        owner.listen(1)
        used = f"127.0.0.1:{owner.getsockname()[1]}"
        wrong = {
            f"Cannot listen on {used}": await start(COGNI_NOTES_LISTEN=used),
            "cannot be reached": await start(
                COGNI_NOTES_DATABASE_URL="postgresql://u:hunter2@127.0.0.1:1/x"
            ),
            "run python -m tests.runtime.migrated migrate first": await start(
                COGNI_NOTES_DATABASE_URL=empty_database
            ),
            "COGNI_NOTES_LISTNE is not a setting": await start(COGNI_NOTES_LISTNE="x"),
            "is not a JWKS": await start(COGNI_TRUSTED_KEYS_FILE=str(ROOT / "pyproject.toml")),
        }
        for sentence, notes in wrong.items():
            assert await notes.ended() == 2
            assert sentence in notes.log
            assert "Traceback" not in notes.log
            assert "hunter2" not in notes.log


async def test_a_service_migrates_and_prints_its_settings_by_command(
    start: Starter, empty_database: str
) -> None:
    migrating = await start("migrate", COGNI_NOTES_DATABASE_URL=empty_database)
    printing = await start("settings")

    said, _ = await migrating.process.communicate()
    table, _ = await printing.process.communicate()

    assert (migrating.process.returncode, printing.process.returncode) == (0, 0)
    assert b"The schema 'notes' is at revision" in said
    assert b"| `COGNI_NOTES_LISTEN` | required |" in table
