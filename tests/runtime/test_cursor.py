"""The commit-ordered cursor: it never passes a row that becomes visible later."""

import asyncio

import pytest
from sqlalchemy import Column, MetaData, Table, Text, select, text

from services.runtime.cursor import (
    BEGINNING,
    Position,
    cursor_columns,
    decode_cursor,
    encode_cursor,
    horizon,
    read_after,
)
from services.runtime.errors import ErrorKind, ServiceError
from tests.databases import all_is_final

CHANGES = Table("note_changes", MetaData(), *cursor_columns(), Column("text", Text))
ROWS = select(CHANGES.c.xid, CHANGES.c.id, CHANGES.c.text)


@pytest.fixture
async def db(database):
    return await database("notes", "tests.runtime.migrated")


async def write(tx, *texts):
    for each in texts:
        await tx.execute(
            text("INSERT INTO note_changes (tenant_id, text) VALUES ('t1', :text)"), {"text": each}
        )


async def read(db, position, **options):
    async with db.tenant("t1") as tx:
        batch = await read_after(tx, ROWS, position, **options)
    return [row.text for row in batch.rows], batch.position


async def test_a_row_with_an_earlier_number_that_commits_late_is_not_skipped(db):
    async with db.tenant("t1") as late:
        await write(late, "first number, last commit")
        async with db.tenant("t1") as early:
            await write(early, "second number, first commit")

        seen, position = await read(db, BEGINNING)
        assert seen == []

    await all_is_final(db)
    seen, position = await read(db, position)
    assert seen == ["first number, last commit", "second number, first commit"]
    assert (await read(db, position))[0] == []


async def test_a_transaction_that_rolls_back_leaves_a_gap_and_holds_nothing_back(db):
    async def fail():
        async with db.tenant("t1") as tx:
            await write(tx, "never happened")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    async with db.tenant("t1") as tx:
        await write(tx, "happened")
    await all_is_final(db)

    seen, _ = await read(db, BEGINNING)
    assert seen == ["happened"]


async def test_pages_continue_inside_one_transaction_rows(db):
    async with db.tenant("t1") as tx:
        await write(tx, "a", "b", "c", "d", "e")
    await all_is_final(db)

    seen, position = await read(db, BEGINNING, limit=2)
    assert seen == ["a", "b"]
    seen, position = await read(db, position, limit=2)
    assert seen == ["c", "d"]
    seen, position = await read(db, position, limit=2)
    assert seen == ["e"]


async def test_an_empty_batch_moves_the_position_on_and_never_back(db):
    _, before = await read(db, BEGINNING)
    async with db.tenant("t2") as tx:
        await tx.execute(text("INSERT INTO note_changes (tenant_id, text) VALUES ('t2', 'x')"))
    await all_is_final(db)

    seen, after = await read(db, before)

    assert seen == []
    assert after > before
    far = Position(2**62, 0)
    assert await read(db, far) == ([], far)


async def test_the_horizon_shows_news_alone(db):
    async with db.tenant("t1") as tx:
        await write(tx, "old")
    await all_is_final(db)
    async with db.tenant("t1") as tx:
        start = await horizon(tx)
    async with db.tenant("t1") as tx:
        await write(tx, "new")
    await all_is_final(db)

    seen, _ = await read(db, start)
    assert seen == ["new"]


async def test_a_reader_racing_writers_sees_every_row_once_and_in_order(db):
    writers, rows_each = 6, 20
    written = asyncio.Event()

    async def write_all(writer):
        for each in range(rows_each):
            async with db.tenant("t1") as tx:
                await write(tx, f"{writer}:{each}")
                # The second statement keeps the transaction open while others commit.
                await tx.execute(text("SELECT pg_sleep(:s)"), {"s": (writer + each) % 3 / 1000})

    async def write_everything():
        await asyncio.gather(*(write_all(each) for each in range(writers)))
        await all_is_final(db)
        written.set()

    async def read_all():
        seen, position = [], BEGINNING
        while True:
            done = written.is_set()
            texts, position = await read(db, position, limit=7)
            seen += texts
            if done and not texts:
                return seen

    seen, _ = await asyncio.gather(read_all(), write_everything())

    assert len(seen) == len(set(seen)) == writers * rows_each
    for writer in range(writers):
        mine = [each for each in seen if each.startswith(f"{writer}:")]
        assert mine == [f"{writer}:{each}" for each in range(rows_each)]


def test_a_cursor_opens_for_its_stream_and_tenant_alone():
    cursor = encode_cursor(Position(2**60, 7), stream="runs", tenant_id="t1")

    assert decode_cursor(cursor, stream="runs", tenant_id="t1") == Position(2**60, 7)
    assert decode_cursor("", stream="runs", tenant_id="t1") is None
    for damaged, stream, tenant_id in (
        (cursor, "grants", "t1"),
        (cursor, "runs", "t2"),
        (cursor[:-4], "runs", "t1"),
        ("é", "runs", "t1"),
        ("A" * 5000, "runs", "t1"),
    ):
        with pytest.raises(ServiceError) as refusal:
            decode_cursor(damaged, stream=stream, tenant_id=tenant_id)
        assert (refusal.value.kind, refusal.value.reason) == (
            ErrorKind.OUT_OF_RANGE,
            "CURSOR_INVALID",
        )
