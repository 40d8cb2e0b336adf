"""Hints through a real RabbitMQ: what the embedded Redis does in the tests, it does as well."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import dramatiq
import pytest

from services.runtime.broker import check_broker, count_dead_letters, make_broker
from services.runtime.hints import HintSender
from services.standalone.ports import free_port
from tools.peers import debian_package

# The package's own script changes to a system user; this one runs where it is told to.
SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
START_SECONDS_MAX = 60
HEARD_SECONDS_MAX = 20


@pytest.fixture(scope="module")
def amqp_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a RabbitMQ node of these tests alone, on ports and in a folder of its own."""
    debian_package("rabbitmq-server", SERVER)
    folder = tmp_path_factory.mktemp("rabbitmq")
    port, distribution, mapper = free_port(), free_port(), free_port()
    environment = {
        **os.environ,
        "HOME": str(folder),
        "RABBITMQ_NODENAME": f"cogni{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(distribution),
        "ERL_EPMD_PORT": str(mapper),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
    }
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            [SERVER], env=environment, stdout=output, stderr=output, start_new_session=True
        )
    url = f"amqp://guest:guest@127.0.0.1:{port}"
    try:
        _await_served(url, process, folder / "output")
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        # The node's port mapper made itself a daemon; only it can be told to stop.
        subprocess.run(["epmd", "-kill"], env=environment, check=False, capture_output=True)


def _await_served(url: str, process: subprocess.Popen[bytes], output: Path) -> None:
    deadline = time.monotonic() + START_SECONDS_MAX
    while True:
        try:
            check_broker(make_broker(url))
            return
        except Exception:
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.2)


@contextlib.contextmanager
def working(broker: dramatiq.Broker) -> Iterator[None]:
    worker = dramatiq.Worker(broker, worker_timeout=10, worker_threads=1)
    worker.start()
    try:
        yield
    finally:
        worker.stop()
        broker.close()


async def test_a_hint_reaches_the_actor_whose_module_the_sender_never_imported(
    amqp_url: str,
) -> None:
    heard = threading.Event()
    sender = HintSender(make_broker(amqp_url))
    await sender.send("runs", "wake", "run-1")
    sender.close()
    broker = make_broker(amqp_url)

    @dramatiq.actor(broker=broker, queue_name="runs", actor_name="wake")
    def wake(run_id: str) -> None:
        if run_id == "run-1":
            heard.set()

    with working(broker):
        assert await asyncio.to_thread(heard.wait, HEARD_SECONDS_MAX)


async def test_a_hint_sent_while_no_worker_ran_waits_for_one(amqp_url: str) -> None:
    sender = HintSender(make_broker(amqp_url))
    for number in range(20):
        await sender.send("waiting", "wake", number)
    sender.close()
    broker = make_broker(amqp_url)
    seen: set[int] = set()
    everything = threading.Event()

    @dramatiq.actor(broker=broker, queue_name="waiting", actor_name="wake")
    def wake(number: int) -> None:
        seen.add(number)
        if len(seen) == 20:
            everything.set()

    with working(broker):
        assert await asyncio.to_thread(everything.wait, HEARD_SECONDS_MAX)


async def test_a_failing_actor_runs_once_and_its_message_is_kept(amqp_url: str) -> None:
    runs: list[int] = []
    ran = threading.Event()
    broker = make_broker(amqp_url)

    @dramatiq.actor(broker=broker, queue_name="failing", actor_name="wake")
    def wake() -> None:
        runs.append(1)
        ran.set()
        raise ConnectionError

    sender = HintSender(make_broker(amqp_url))
    await sender.send("failing", "wake")
    sender.close()
    with working(broker):
        assert await asyncio.to_thread(ran.wait, HEARD_SECONDS_MAX)
        deadline = time.monotonic() + HEARD_SECONDS_MAX
        while count_dead_letters(broker, "failing") == 0:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)

    assert runs == [1]
