"""`up` and `demo` as a person runs them: real services, real processes, nothing left behind."""

import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from cogni.client import Client, ClientSettings, Unavailable
from cogni.executor.v1.executor_service_pb2 import ListGraphsRequest
from cogni.executor.v1.grant_service_pb2 import CreateGrantRequest
from cogni.executor.v1.run_pb2 import RunState

# Whole stacks start here, some of them twice, beside whatever else the machine does.
pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[2]
READY = "Ctrl-C stops everything."
START_SECONDS = 150.0
STOP_SECONDS = 90.0
RECOVERY_SECONDS = 120.0

Answer = TypeVar("Answer")

#: Parts of the command lines of those who are killed: all that hold state, carry runs, or serve.
VICTIMS = (
    *("postgres -D", "redis-server", "services.executor.worker", "services.scheduler.worker"),
    *(f"-m services.{service} " for service in ("executor", "scheduler", "connections", "ledger")),
)


class Up:
    """One `up` in a process of its own."""

    def __init__(self, data_dir: Path, *arguments: str) -> None:
        self.data_dir = data_dir
        self.printed = ""
        self._ready = threading.Event()
        environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        self.process = subprocess.Popen(
            [*standalone("up"), "--data-dir", str(data_dir), *arguments],
            cwd=ROOT,
            env={**environment, "PYTHONPATH": f"{ROOT}:{ROOT / 'clients/python'}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.printed += line
            if READY in line:
                self._ready.set()
        self._ready.set()

    def await_ready(self) -> None:
        assert self._ready.wait(START_SECONDS), self.printed
        assert READY in self.printed, self.printed

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.finish()

    def finish(self) -> int:
        code = self.process.wait(STOP_SECONDS)
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def settings(self) -> ClientSettings:
        exported = subprocess.run(
            [*standalone("env"), "--data-dir", str(self.data_dir), "--tenant", "acme"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        return ClientSettings.from_environment(
            dict(re.findall(r"^export (\w+)='?([^'\n]+)'?$", exported, re.MULTILINE))
        )


def standalone(command: str) -> list[str]:
    return [sys.executable, "-m", "services.standalone", command]


def descendants(root: int) -> dict[int, str]:
    """Every process below `root` with its command line, while they run."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        parents.setdefault(parent, []).append(int(entry.name))
    found, waiting = {}, [root]
    while waiting:
        for child in parents.get(waiting.pop(), []):
            waiting.append(child)
            try:
                found[child] = Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
    return found


def finish_a_run(settings: ClientSettings) -> None:
    """Runs the graph that does nothing, through interruptions that a retry bridges."""
    grant = CreateGrantRequest(
        request_id=str(uuid.uuid4()), display_name="t", graphs=["graph:execute:noop"]
    )
    with Client(settings) as client:
        granted = insist(lambda: client.grants.CreateGrant(grant)).grant
        key = str(uuid.uuid4())
        run = insist(lambda: client.start_run("noop", granted.grant_id, request_id=key))
        events = list(client.watch_run(run.run_id))
    assert events[-1].finished.state == RunState.RUN_STATE_SUCCEEDED


def insist(call: Callable[[], Answer]) -> Answer:
    """Makes a call that is safe to repeat until whoever was killed serves again."""
    deadline = time.monotonic() + RECOVERY_SECONDS
    while True:
        try:
            return call()
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            threading.Event().wait(0.1)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    running = Up(tmp_path / "data")
    yield running
    if running.process.poll() is None:
        running.process.kill()
        running.finish()


def test_up_says_how_to_reach_it_keeps_its_directory_and_leaves_nothing_after_ctrl_c(
    up: Up, tmp_path: Path
) -> None:
    up.await_ready()
    settings = up.settings()
    with Client(settings) as client:
        graphs = client.executor.ListGraphs(ListGraphsRequest()).graphs
    finish_a_run(settings)
    second = Up(tmp_path / "data")
    refusal = second.finish()
    below = descendants(up.process.pid)
    handles = [os.pidfd_open(pid) for pid in below]

    code = up.stop()

    assert code == 0
    assert [
        line for line, handle in zip(below.values(), handles, strict=True) if not ended(handle)
    ] == []
    assert {graph.graph_id for graph in graphs} == {"approval", "digest", "noop", "reviewer"}
    assert settings.addresses["executor"] in up.printed
    assert "grpcurl -plaintext" in up.printed
    assert "export COGNI_TOKEN=" in up.printed
    assert "  !" not in up.printed
    assert refusal == 1
    assert f"is in use by the stack with pid {up.process.pid}" in second.printed
    assert "Traceback" not in second.printed


def test_runs_finish_after_kill_9_of_everything_at_once_and_of_the_stack_itself(
    up: Up, tmp_path: Path
) -> None:
    up.await_ready()
    below = descendants(up.process.pid)
    victims = [min(pid for pid, line in below.items() if v in f"{line} ") for v in VICTIMS]
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    finish_a_run(up.settings())
    handles = [os.pidfd_open(pid) for pid in descendants(up.process.pid)]

    up.process.kill()
    up.finish()

    assert all(ended(handle, seconds=40) for handle in handles)
    again = Up(tmp_path / "data")
    again.await_ready()
    finish_a_run(again.settings())
    assert again.stop(signal.SIGTERM) == 0


def test_the_demo_tells_the_whole_story(tmp_path: Path) -> None:
    done = subprocess.run(
        [*standalone("demo"), "--data-dir", str(tmp_path / "demo")],
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "PYTHONPATH": f"{ROOT}:{ROOT / 'clients/python'}",
        },
        capture_output=True,
        text=True,
        timeout=280,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "post_to_bluesky DENIED" in done.stdout
    assert "LiteLLM's mock response" in done.stdout
    assert "On the server: at://" in done.stdout
    assert "kill -9" in done.stdout
    assert "Posts of this run on the server: 1." in done.stdout
    assert "verified offline: the charge is in the signed log" in done.stdout
    assert "Model calls: 1, tool calls: 2; each is charged exactly once." in done.stdout
    assert "Read again from the beginning" in done.stdout


def ended(handle: int, seconds: float = 0) -> bool:
    """Whether the process behind a pidfd is gone, waiting up to `seconds`."""
    poller = select.poll()
    poller.register(handle, select.POLLIN)
    gone = bool(poller.poll(seconds * 1000))
    os.close(handle)
    return gone
