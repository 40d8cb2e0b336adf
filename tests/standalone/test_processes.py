"""The supervisor starts, restarts and stops processes, and leaves none behind."""

import asyncio
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from services.standalone.children import Stage
from services.standalone.errors import StandaloneError
from services.standalone.logs import BoundedLog
from services.standalone.processes import RestartPolicy

STUBBORN = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
while True:
    signal.pause()
"""

PARENT_OF_ONE = """
import signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import signal; signal.pause()"])
open("grandchild", "w").write(str(child.pid))
print("ready", flush=True)
signal.pause()
"""

SLOW_THE_SECOND_TIME = """
import os, signal, time
if os.path.exists("once"):
    time.sleep(0.5)
open("once", "w").close()
print("ready", flush=True)
signal.pause()
"""

CRASHING = 'print("it broke here", flush=True); raise SystemExit(3)'
CRASHING_WHEN_READY = 'print("ready", flush=True); raise SystemExit(3)'


def test_a_log_that_a_full_disc_cannot_keep_is_emptied(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "full.log", bytes_max=10)
    log.path.write_text("more than ten bytes")
    # Stands where the older part would be written, as /dev/full would refuse it.
    os.symlink("/dev/full", tmp_path / "full.log.1")

    log.rotate()

    assert log.path.read_text() == ""


def ended(descriptor: int, seconds: float = 30) -> bool:
    """Waits until the process behind a pidfd is gone."""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(seconds * 1000))


async def test_start_returns_when_every_process_is_ready(supervise) -> None:
    made = await supervise()

    await made.supervisor.start([made.program("one"), made.program("two")])

    assert sorted(text.split()[0] for text in made.reports.of("ready")) == ["one", "two"]


async def test_a_process_that_ends_while_starting_is_told_with_its_last_words(supervise) -> None:
    made = await supervise()

    with pytest.raises(
        StandaloneError, match=r"broken ended with code 3 while starting.*it broke here"
    ):
        await made.supervisor.start([made.program("broken", CRASHING)])


async def test_a_process_that_never_gets_ready_is_given_up(supervise) -> None:
    made = await supervise(start_seconds=0.3)

    with pytest.raises(StandaloneError, match="silent was not ready after 0 s"):
        await made.supervisor.start([made.program("silent", "import signal; signal.pause()")])


async def test_stopping_goes_stage_by_stage_from_intake_to_database(
    supervise, tmp_path: Path
) -> None:
    made = await supervise()
    order = [Stage.DATABASE, Stage.SERVERS, Stage.INTAKE, Stage.RUNNERS, Stage.BROKER]
    await made.supervisor.start([made.program(each.name, stage=each) for each in order])

    await made.supervisor.stop()

    stopped = (tmp_path / "stopped").read_text().split()
    assert stopped == ["INTAKE", "RUNNERS", "SERVERS", "BROKER", "DATABASE"]


async def test_a_process_killed_with_signal_9_is_reported_and_serves_again(supervise) -> None:
    made = await supervise()
    await made.supervisor.start([made.program("one")])
    watch = asyncio.create_task(made.supervisor.watch())
    first = made.supervisor.pid("one")

    os.kill(first, signal.SIGKILL)
    await made.reports.until("restarted")

    watch.cancel()
    assert "one was ended by SIGKILL; restarting in 0.0 s" in made.reports.of("crash")
    assert made.supervisor.pid("one") != first


async def test_what_a_killed_process_had_started_is_gone_before_it_is_restarted(
    supervise, tmp_path: Path
) -> None:
    made = await supervise()
    await made.supervisor.start([made.program("parent", PARENT_OF_ONE)])
    watch = asyncio.create_task(made.supervisor.watch())
    grandchild = os.pidfd_open(int((tmp_path / "grandchild").read_text()))

    os.kill(made.supervisor.pid("parent"), signal.SIGKILL)
    await made.reports.until("restarted")

    watch.cancel()
    assert ended(grandchild)


def kill_outright(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


async def test_a_server_is_not_restarted_before_the_database_below_it_serves(supervise) -> None:
    made = await supervise()
    server = made.program("server")
    database = made.program("database", SLOW_THE_SECOND_TIME, stage=Stage.DATABASE)
    await made.supervisor.start([server, database])
    watch = asyncio.create_task(made.supervisor.watch())

    # In this order: on a busy machine the database's end could be noticed after the server's.
    for name in ("database", "server"):
        kill_outright(made.supervisor.pid(name))
    await made.reports.until("restarted", 2)

    watch.cancel()
    assert [text.split()[0] for text in made.reports.of("restarted")] == ["database", "server"]


async def test_one_that_crashes_too_often_stops_the_stack_with_a_sentence(supervise) -> None:
    made = await supervise(policy=RestartPolicy(crashes_max=2, delay_seconds_first=0.01))
    await made.supervisor.start([made.program("hopeless", CRASHING_WHEN_READY)])

    async with asyncio.timeout(30):
        with pytest.raises(StandaloneError, match="hopeless ended with code 3 and crashed 3 times"):
            await made.supervisor.watch()

    assert len(made.reports.of("crash")) == 2


async def test_a_process_that_ignores_the_request_to_stop_is_killed(supervise) -> None:
    made = await supervise(stop_seconds=0.2)
    await made.supervisor.start([made.program("stubborn", STUBBORN)])
    descriptor = os.pidfd_open(made.supervisor.pid("stubborn"))

    await made.supervisor.stop()

    assert ended(descriptor, 0)
    assert made.reports.of("killed") == ["stubborn did not stop in time"]


def test_nothing_is_left_when_the_supervisor_itself_is_killed(tmp_path: Path) -> None:
    script = f"""
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from services.standalone.children import Program, Stage, log_says, logs_in
from services.standalone.processes import Supervisor

async def main():
    supervisor = Supervisor(lambda kind, text: None)
    command = [sys.executable, "-I", "-S", "-c",
               "import os; os.chdir({str(tmp_path)!r})" + chr(10) + {PARENT_OF_ONE!r}]
    await supervisor.start([Program("parent", Stage.SERVERS, command, {{}},
                                    logs_in(Path({str(tmp_path)!r}), "parent"), log_says("ready"))])
    print(supervisor.pid("parent"), flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""
    supervisor = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert supervisor.stdout is not None
    parent = os.pidfd_open(int(supervisor.stdout.readline()))
    grandchild = os.pidfd_open(int((tmp_path / "grandchild").read_text()))

    supervisor.kill()
    supervisor.wait()
    supervisor.stdout.close()

    assert ended(parent)
    assert ended(grandchild)
