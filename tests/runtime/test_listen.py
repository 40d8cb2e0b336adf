"""The listener: notifications wake loops at once, polls wake them when none come."""

import asyncio
from contextlib import aclosing

import asyncpg
import pytest

from services.runtime.listen import Listener, Wakeup, notify

NEVER_SECONDS = 3600.0
DEADLINE_SECONDS = 60


@pytest.fixture
async def db(database):
    return await database("notes", "tests.runtime.migrated")


@pytest.fixture
async def listener(db):
    listener = Listener(db.url, application_name="tests")
    running = asyncio.create_task(listener.run())
    yield listener
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def soon(awaitable):
    async with asyncio.timeout(DEADLINE_SECONDS):
        return await awaitable


async def say(db, *payloads, channel="news"):
    async with db.tenant("t1") as tx:
        for payload in payloads:
            await notify(tx, channel, payload)


async def after_subscribing(wakeups):
    """Take the wakeups that come before the channel is listened to."""
    assert await soon(anext(wakeups)) == Wakeup(anything=True)
    assert await soon(anext(wakeups)) == Wakeup(anything=True)


async def test_a_notification_wakes_with_its_payload(db, listener):
    async with aclosing(listener.wakeups("news", poll_seconds=NEVER_SECONDS)) as wakeups:
        await after_subscribing(wakeups)

        await say(db, "run-1")

        assert await soon(anext(wakeups)) == Wakeup(frozenset({"run-1"}))


async def test_notifications_while_a_loop_works_are_one_wakeup(db, listener):
    async with (
        aclosing(listener.wakeups("news", poll_seconds=NEVER_SECONDS)) as wakeups,
        aclosing(listener.wakeups("other", poll_seconds=NEVER_SECONDS)) as others,
    ):
        await after_subscribing(wakeups)
        await after_subscribing(others)

        await say(db, "run-1", "run-2")
        await say(db, "run-1", "run-3")
        await say(db, "seen", channel="other")
        # One connection delivers in order: once the last is here, the others are.
        assert await soon(anext(others)) == Wakeup(frozenset({"seen"}))

        assert await soon(anext(wakeups)) == Wakeup(frozenset({"run-1", "run-2", "run-3"}))


async def test_every_loop_of_a_channel_is_woken(db, listener):
    async with (
        aclosing(listener.wakeups("news", poll_seconds=NEVER_SECONDS)) as first,
        aclosing(listener.wakeups("news", poll_seconds=NEVER_SECONDS)) as second,
    ):
        assert await soon(anext(first)) == Wakeup(anything=True)
        assert await soon(anext(second)) == Wakeup(anything=True)
        await asyncio.gather(soon(anext(first)), soon(anext(second)))

        await say(db, "run-1")

        for each in (first, second):
            assert await soon(anext(each)) == Wakeup(frozenset({"run-1"}))


async def test_without_any_notification_a_loop_is_woken_by_its_poll(db):
    deaf = Listener(db.url)
    async with aclosing(deaf.wakeups("news", poll_seconds=0.01)) as wakeups:
        for _ in range(3):
            assert await soon(anext(wakeups)) == Wakeup(anything=True)


async def test_a_lost_connection_is_replaced_and_its_loops_look_at_everything(
    db, listener, disconnect
):
    async with aclosing(listener.wakeups("news", poll_seconds=NEVER_SECONDS)) as wakeups:
        await after_subscribing(wakeups)

        await disconnect(db, "tests listener")

        assert await soon(anext(wakeups)) == Wakeup(anything=True)
        await say(db, "run-1")
        assert await soon(anext(wakeups)) == Wakeup(frozenset({"run-1"}))


async def test_more_payloads_than_are_kept_mean_that_anything_may_have_changed(db, listener):
    async with (
        aclosing(listener.wakeups("news", poll_seconds=NEVER_SECONDS)) as wakeups,
        aclosing(listener.wakeups("other", poll_seconds=NEVER_SECONDS)) as others,
    ):
        await after_subscribing(wakeups)
        await after_subscribing(others)

        async with db.raw_tenant("t1") as tx:
            await tx.execute("SELECT pg_notify('news', n::text) FROM generate_series(1, 10050) n")
        await say(db, "seen", channel="other")
        await soon(anext(others))

        wakeup = await soon(anext(wakeups))
        assert (len(wakeup.payloads), wakeup.anything) == (10_000, True)


async def test_a_server_killed_in_the_middle_of_an_answer_is_a_lost_connection(db, monkeypatch):
    """asyncpg then raises an error that is none of its other kinds."""
    connect, tries = asyncpg.connect, 0

    async def broken_once(*args, **kwargs):
        nonlocal tries
        tries += 1
        if tries == 1:
            raise asyncpg.InternalClientError("got result for unknown protocol state 3")
        return await connect(*args, **kwargs)

    monkeypatch.setattr(asyncpg, "connect", broken_once)
    listener = Listener(db.url, application_name="tests")
    running = asyncio.create_task(listener.run())
    listening = asyncio.create_task(listener.listening.wait())
    await soon(asyncio.wait({running, listening}, return_when=asyncio.FIRST_COMPLETED))

    assert listening.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
