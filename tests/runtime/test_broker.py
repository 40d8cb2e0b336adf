"""The broker: messages reach actors by name, and failures are kept, not repeated."""

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from datetime import timedelta

import dramatiq
import pytest
import redis
from opentelemetry import context, propagate

from services.runtime.broker import (
    BrokerUnusableError,
    check_broker,
    count_dead_letters,
    make_broker,
)
from services.runtime.errors import ErrorKind, ServiceError
from services.runtime.hints import HintSender
from services.runtime.outbox import enqueue
from services.runtime.relay import Relay
from services.standalone.ports import free_port

TRACE = "0af7651916cd43dd8448eb211c80319c"
CARRIER = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
DEADLINE_SECONDS = 20


@pytest.fixture
def broker(redis_url):
    broker = make_broker(redis_url)
    yield broker
    broker.client.close()


@contextlib.contextmanager
def working(broker):
    worker = dramatiq.Worker(broker, worker_timeout=10, worker_threads=2)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()


@contextlib.contextmanager
def sending(broker):
    sender = HintSender(broker)
    try:
        yield sender
    finally:
        sender.close()


def until(condition):
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


async def test_a_hint_reaches_the_actor_whose_module_the_sender_never_imported(broker, redis_url):
    heard = threading.Event()
    with sending(make_broker(redis_url)) as sender:
        await sender.send("runs", "wake", "run-1", 7)

    @dramatiq.actor(broker=broker, queue_name="runs", actor_name="wake")
    def wake(run_id, epoch):
        assert (run_id, epoch) == ("run-1", 7)
        heard.set()

    with working(broker):
        assert await asyncio.to_thread(heard.wait, DEADLINE_SECONDS)


async def test_a_failing_actor_runs_once_and_its_message_is_kept(broker):
    runs = []

    @dramatiq.actor(broker=broker, queue_name="runs", actor_name="wake")
    def wake():
        runs.append(1)
        raise ConnectionError

    with sending(make_broker_like(broker)) as sender:
        await sender.send("runs", "wake")
    with working(broker):
        await asyncio.to_thread(until, lambda: count_dead_letters(broker, "runs") == 1)

    assert runs == [1]


async def test_a_hint_too_old_to_matter_is_kept_and_not_worked_on(redis_url):
    broker = make_broker(redis_url, age_max=timedelta(milliseconds=1))
    runs = []

    @dramatiq.actor(broker=broker, queue_name="runs", actor_name="wake")
    def wake():
        runs.append(1)

    message = wake.message()
    broker.enqueue(message.copy(message_timestamp=message.message_timestamp - 60_000))
    with working(broker):
        await asyncio.to_thread(until, lambda: count_dead_letters(broker, "runs") == 1)

    assert runs == []
    broker.client.close()


async def test_an_actor_is_interrupted_when_its_time_is_up(redis_url):
    broker = make_broker(redis_url, work_max=timedelta(milliseconds=1))

    @dramatiq.actor(broker=broker, queue_name="runs", actor_name="wake")
    async def wake():
        await asyncio.Event().wait()

    wake.send()
    with working(broker):
        # A worker's process boot starts the watch over the limits.
        broker.emit_after("process_boot")
        await asyncio.to_thread(until, lambda: count_dead_letters(broker, "runs") == 1)
    broker.client.close()


async def test_the_outbox_reaches_an_actor_in_its_cause_s_trace(database, broker):
    db = await database("notes", "tests.runtime.migrated")
    token = context.attach(propagate.extract(CARRIER))
    try:
        async with db.tenant("t1") as tx:
            await enqueue(tx, "wake", {"run_id": "run-1"}, "t1")
    finally:
        context.detach(token)
    heard = []

    @dramatiq.actor(broker=broker, queue_name="runs", actor_name="wake")
    async def wake(run_id):
        carried = {}
        propagate.inject(carried)
        heard.append((run_id, carried["traceparent"].split("-")[1]))

    with sending(make_broker_like(broker)) as sender:
        handler = sender.handler("runs", "wake", lambda entry: [entry.payload["run_id"]])
        assert await Relay(db, {"wake": handler}).send_due() == 1
    with working(broker):
        await asyncio.to_thread(until, lambda: heard)

    assert heard == [("run-1", TRACE)]


async def test_workers_started_by_spawn_work(redis_url):
    token = context.attach(propagate.extract(CARRIER))
    try:
        with sending(make_broker(redis_url)) as sender:
            await sender.send("echo", "echo", "hello")
    finally:
        context.detach(token)
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "dramatiq", "tests.runtime.echo_worker", "--use-spawn"),
        *("--processes", "1", "--threads", "1"),
        env={**os.environ, "COGNI_BROKER_URL": redis_url},
    )
    try:
        with redis.Redis.from_url(redis_url) as client:
            echoed = await asyncio.to_thread(client.blpop, ["echoes"], DEADLINE_SECONDS)
    finally:
        worker.send_signal(signal.SIGTERM)
        await worker.wait()

    assert echoed == (b"echoes", f"hello {TRACE}".encode())


def test_an_unreachable_broker_is_named_without_its_password():
    port = free_port()
    for url in (f"redis://:secret@127.0.0.1:{port}/0", f"amqp://me:secret@127.0.0.1:{port}"):
        with pytest.raises(BrokerUnusableError, match=f"127.0.0.1:{port} cannot be") as refusal:
            check_broker(make_broker(url))
        assert "secret" not in str(refusal.value)


def test_a_wrong_password_is_said(redis_url):
    url = redis_url.replace("redis://:", "redis://:not-")
    with pytest.raises(BrokerUnusableError, match="refused the password"):
        check_broker(make_broker(url))


def test_a_reachable_broker_passes(broker):
    check_broker(broker)


def test_another_kind_of_broker_is_refused():
    with pytest.raises(BrokerUnusableError, match="redis:// or amqp://"):
        make_broker("kafka://localhost")


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
async def test_sending_to_a_broker_that_is_away_is_unavailable(scheme):
    with (
        sending(make_broker(f"{scheme}://127.0.0.1:{free_port()}")) as sender,
        pytest.raises(ServiceError) as refusal,
    ):
        await sender.send("runs", "wake", "run-1")
    assert refusal.value.kind == ErrorKind.UNAVAILABLE


def make_broker_like(broker):
    """Another process's view of the same broker, which declares no actors."""
    options = broker.client.connection_pool.connection_kwargs
    return make_broker(
        f"redis://:{options['password']}@{options['host']}:{options['port']}/{options['db']}"
    )
