"""The outbox and its relay: what is owed is sent, once when nothing fails."""

import asyncio
import json
from collections import Counter
from datetime import timedelta

import pytest
from opentelemetry import context, propagate
from sqlalchemy import text

from services.runtime.errors import denied
from services.runtime.outbox import STUCK_ATTEMPTS, enqueue, enqueue_many, owed
from services.runtime.relay import Relay, RelayLimits

AT_ONCE = RelayLimits(pause_first=timedelta(0))
DEADLINE_SECONDS = 60


@pytest.fixture
async def db(database):
    return await database("notes", "tests.runtime.migrated")


async def owe(db, *numbers, topic="greet"):
    async with db.tenant("t1") as tx:
        await enqueue_many(tx, topic, [("t1", {"n": each}) for each in numbers])


async def owed_now(db):
    async with db.jobs() as tx:
        return list(await owed(tx))


class Recorder:
    """A handler that remembers its calls and fails for chosen numbers."""

    def __init__(self, *failing, error=ConnectionError):
        self.failing = set(failing)
        self.error = error
        self.calls = []
        self.called = asyncio.Event()

    async def __call__(self, entries):
        numbers = [entry.payload["n"] for entry in entries]
        self.calls.append(numbers)
        self.called.set()
        if self.failing & set(numbers):
            raise self.error


async def test_what_was_owed_is_sent_and_forgotten(db):
    await owe(db, 1, 2, 3)
    greet = Recorder()

    assert await Relay(db, {"greet": greet}).send_due() == 3

    assert greet.calls == [[1, 2, 3]]
    assert await owed_now(db) == []


async def test_nothing_is_owed_when_the_transaction_rolls_back(db):
    async def fail():
        async with db.tenant("t1") as tx:
            await enqueue(tx, "greet", {"n": 1}, "t1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()

    assert await Relay(db, {"greet": Recorder()}).send_due() == 0


async def test_a_tenant_cannot_owe_in_the_name_of_another(db):
    with pytest.raises(Exception, match="row-level security"):
        async with db.tenant("t1") as tx:
            await enqueue(tx, "greet", {"n": 1}, "t2")


async def test_a_bad_entry_does_not_hold_its_neighbours_back(db):
    await owe(db, 1, 2, 3)
    greet = Recorder(2)
    relay = Relay(db, {"greet": greet}, limits=AT_ONCE)

    await relay.send_due()
    await relay.send_due()

    assert greet.calls == [[1, 2, 3], [1], [2], [3]]
    (left,) = await owed_now(db)
    assert (left.topic, left.entries, left.stuck) == ("greet", 1, 0)


async def test_a_failed_entry_rests_longer_each_time(db, clock):
    await owe(db, 1)
    greet = Recorder(1)
    relay = Relay(db, {"greet": greet})

    await relay.send_due()
    assert await relay.send_due() == 0
    await clock.advance(db, timedelta(seconds=1.6))
    assert await relay.send_due() == 1
    await clock.advance(db, timedelta(seconds=1.6))
    assert await relay.send_due() == 0
    await clock.advance(db, timedelta(seconds=1.6))
    assert await relay.send_due() == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionError("redis://:secret@host"), "ConnectionError"),
        (denied("GRANT_REVOKED", "The grant is revoked."), "GRANT_REVOKED: The grant is revoked."),
    ],
)
async def test_a_stuck_entry_is_visible_and_its_error_tells_no_secret(db, error, said):
    await owe(db, 1)
    relay = Relay(db, {"greet": Recorder(1, error=error)}, limits=AT_ONCE)

    for _ in range(STUCK_ATTEMPTS):
        await relay.send_due()

    (left,) = await owed_now(db)
    assert (left.entries, left.stuck, left.stuck_error) == (1, 1, said)


async def test_a_relay_leaves_topics_it_has_no_handler_for(db):
    await owe(db, 1, topic="part")
    greet = Recorder()

    assert await Relay(db, {"greet": greet}).send_due() == 0

    (left,) = await owed_now(db)
    assert left.topic == "part"


async def test_relays_side_by_side_send_each_entry_once(db):
    await owe(db, *range(300))
    sent = Counter()

    async def greet(entries):
        await asyncio.sleep(0)
        sent.update(entry.payload["n"] for entry in entries)

    async def drain():
        relay = Relay(db, {"greet": greet}, limits=RelayLimits(batch_entries=7))
        while await relay.send_due():
            pass

    await asyncio.gather(*(drain() for _ in range(4)))

    assert sent == Counter(range(300))
    assert await owed_now(db) == []


async def test_an_entry_whose_relay_died_is_sent_again_after_its_lease(db, clock):
    await owe(db, 1)
    holds = asyncio.Event()

    async def hang(_):
        holds.set()
        await asyncio.Event().wait()

    dying = asyncio.create_task(Relay(db, {"greet": hang}).send_due())
    await holds.wait()
    dying.cancel()
    greet = Recorder()
    successor = Relay(db, {"greet": greet})

    assert await successor.send_due() == 0
    await clock.advance(db, RelayLimits().lease)
    assert await successor.send_due() == 1
    assert greet.calls == [[1]]


async def test_a_claimant_that_lost_its_lease_does_not_postpone_its_successors_entry(db, clock):
    await owe(db, 1)
    holds, go_on = asyncio.Event(), asyncio.Event()

    async def fail_late(_):
        holds.set()
        await go_on.wait()
        raise ConnectionError

    slow = asyncio.create_task(Relay(db, {"greet": fail_late}, limits=AT_ONCE).send_due())
    await holds.wait()
    await clock.advance(db, RelayLimits().lease)
    async with db.raw_jobs() as tx:
        await tx.execute("UPDATE outbox SET attempts = attempts + 1")
    go_on.set()
    await slow

    async with db.jobs() as tx:
        assert await tx.scalar(text("SELECT last_error FROM outbox")) is None


async def test_a_handler_that_hangs_is_given_up(db):
    await owe(db, 1)

    async def hang(_):
        await asyncio.Event().wait()

    limits = RelayLimits(handler=timedelta(milliseconds=20))

    assert await Relay(db, {"greet": hang}, limits=limits).send_due() == 1
    (left,) = await owed_now(db)
    assert left.entries == 1


async def test_a_call_cancelled_under_a_handler_is_a_failure_and_not_the_relays_end(db):
    await owe(db, 1)

    assert await Relay(db, {"greet": Recorder(1, error=asyncio.CancelledError)}).send_due() == 1
    (left,) = await owed_now(db)
    assert left.entries == 1


async def test_a_kick_sends_at_once_and_a_sweep_what_was_never_kicked(db):
    greet = Recorder()
    kicked = Relay(db, {"greet": greet}, limits=RelayLimits(sweep=timedelta(hours=1)))
    swept = Relay(db, {"sweep": greet}, limits=RelayLimits(sweep=timedelta(milliseconds=20)))
    loops = [asyncio.create_task(each.run()) for each in (kicked, swept)]
    try:
        await owe(db, 1)
        kicked.kick()
        async with asyncio.timeout(DEADLINE_SECONDS):
            await greet.called.wait()
        assert greet.calls == [[1]]

        greet.called.clear()
        await owe(db, 2, topic="sweep")
        async with asyncio.timeout(DEADLINE_SECONDS):
            await greet.called.wait()
        assert greet.calls == [[1], [2]]
    finally:
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)


async def test_the_trace_of_the_cause_travels_with_the_entry(db):
    carrier = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    token = context.attach(propagate.extract(carrier))
    try:
        await owe(db, 1)
    finally:
        context.detach(token)

    async with db.jobs() as tx:
        stored = await tx.scalar(text("SELECT trace_context::text FROM outbox"))
    assert json.loads(stored) == carrier
