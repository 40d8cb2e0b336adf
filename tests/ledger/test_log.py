"""The log as people read it: pages, statements, and watches that miss nothing."""

from __future__ import annotations

import asyncio
import itertools
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from cogni.ledger.v1 import entry_pb2
from cogni.ledger.v1 import ledger_service_pb2 as pb
from services.runtime.ids import new_id
from tests.ledger.conftest import Ledger, StartLedger, record, unit
from tests.plugins.calls import refused


async def test_entries_are_paged_newest_first_by_account_run_and_kind(ledger: Ledger) -> None:
    account_id, run_id = await ledger.account("1"), new_id()
    await record(ledger.executor(), *(unit(account_id, run_id=run_id) for _ in range(5)))

    found, token = [], ""
    while True:
        request = pb.ListEntriesRequest(
            page_size=2,
            page_token=token,
            account_id=account_id,
            run_id=run_id,
            kind=entry_pb2.ENTRY_KIND_CHARGE,
        )
        page = await ledger.stub().ListEntries(request)
        found += [each.sequence for each in page.entries]
        token = page.next_page_token
        if not token:
            break

    assert found == [6, 5, 4, 3, 2]


async def test_an_accounts_statement_opens_adds_up_and_closes(ledger: Ledger) -> None:
    account_id = await ledger.account("10")
    first = (await record(ledger.executor(), unit(account_id, "1")))[0].charge
    second = (await record(ledger.executor(), unit(account_id, "2")))[0].charge
    third = (await record(ledger.executor(), unit(account_id, "4")))[0].charge

    answer = await ledger.stub().GetStatement(
        pb.GetStatementRequest(
            account_id=account_id, start_time=second.record_time, end_time=third.record_time
        )
    )
    whole = await ledger.stub().GetStatement(
        pb.GetStatementRequest(account_id=account_id, start_time=Timestamp(seconds=1), page_size=2)
    )
    rest = await ledger.stub().GetStatement(
        pb.GetStatementRequest(
            account_id=account_id,
            start_time=Timestamp(seconds=1),
            page_size=2,
            page_token=whole.next_page_token,
        )
    )

    statement = answer.statement
    assert (statement.opening_balance.value, statement.closing_balance.value) == ("9", "7")
    assert [each.sequence for each in statement.entries] == [second.sequence]
    assert whole.statement.closing_balance.value == "3"
    assert [(each.kind, each.debits.value) for each in whole.statement.lines] == [
        (entry_pb2.ENTRY_KIND_TRANSFER, "0"),
        (entry_pb2.ENTRY_KIND_CHARGE, "7"),
    ]
    seen = [each.sequence for each in (*whole.statement.entries, *rest.statement.entries)]
    assert seen == [1, first.sequence, second.sequence, third.sequence]


async def test_a_statement_of_a_period_that_ends_before_it_begins_is_refused(
    ledger: Ledger,
) -> None:
    account_id = await ledger.account()
    request = pb.GetStatementRequest(
        account_id=account_id, start_time=Timestamp(seconds=2), end_time=Timestamp(seconds=2)
    )

    assert (await refused(ledger.stub().GetStatement(request))).reason == "INVALID_REQUEST"


async def test_a_watch_sees_every_entry_once_whichever_server_wrote_it(
    start_ledger: StartLedger,
) -> None:
    one, two = await start_ledger(), await start_ledger()
    account_id = await one.account("10")
    seen: list[int] = []
    complete = asyncio.Event()

    async def watch() -> None:
        async for news in one.stub().WatchEntries(pb.WatchEntriesRequest()):
            seen.extend(each.sequence for each in news.entries)
            if len(seen) >= 101:
                complete.set()

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(record(each.executor(), unit(account_id)) for each in (one, two) * 50))
    async with asyncio.timeout(60):
        await complete.wait()
    watching.cancel()

    assert seen == list(range(1, 102))


async def test_a_watch_resumes_after_any_sequence_and_follows_one_run(ledger: Ledger) -> None:
    account_id, run_id = await ledger.account("10"), new_id()
    for _ in range(3):
        await record(ledger.executor(), unit(account_id, run_id=run_id), unit(account_id))

    watching = ledger.stub().WatchEntries(pb.WatchEntriesRequest(after_sequence=3, run_id=run_id))
    news = await watching.read()
    watching.cancel()

    assert [each.sequence for each in news.entries] == [4, 6]
    assert news.sequence == 7


async def test_a_watch_beyond_the_log_is_refused(ledger: Ledger) -> None:
    refusal = await refused(ledger.stub().WatchEntries(pb.WatchEntriesRequest(after_sequence=5)))

    assert refusal.code is grpc.StatusCode.OUT_OF_RANGE
    assert refusal.reason == "CURSOR_INVALID"


async def test_a_draining_server_tells_watchers_where_to_resume(ledger: Ledger) -> None:
    account_id = await ledger.account("10")
    await record(ledger.executor(), unit(account_id))
    watching = ledger.stub().WatchEntries(pb.WatchEntriesRequest())
    first: Any = await watching.read()

    ledger.served.drain.begin()
    last: Any = await watching.read()

    assert first.sequence == last.sequence == 2
    assert last.resume
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await watching.read()
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_record_times_never_decrease_even_when_the_clock_does(
    ledger: Ledger, clock: Any
) -> None:
    account_id = await ledger.account("10")
    first = (await record(ledger.executor(), unit(account_id)))[0].charge

    await clock.advance(ledger.database, timedelta(hours=-1))
    second = (await record(ledger.executor(), unit(account_id)))[0].charge

    assert second.record_time.ToDatetime(UTC) >= first.record_time.ToDatetime(UTC)
    assert first.record_time.ToDatetime(UTC) > datetime.now(UTC) - timedelta(minutes=1)


async def test_each_way_to_export_a_part_of_the_log_gives_just_that_part(ledger: Ledger) -> None:
    first, second, run_id = await ledger.account("10"), await ledger.account("0.03"), new_id()
    for account_id in (first, second, first, second):
        # The second's money ends: its overruns are of the run, and not of the account.
        await record(ledger.executor(), unit(account_id, "0.02", run_id=run_id), unit(account_id))
    answer = await ledger.stub().ListEntries(pb.ListEntriesRequest(page_size=1000))
    whole = list(reversed(answer.entries))
    third_last, found = whole[-3].record_time, 0

    for account_id, run, after, start, end in itertools.product(
        ("", second), ("", run_id), (0, 5), (None, third_last), (None, third_last)
    ):
        if start and end:
            continue
        wanted = pb.ExportEntriesRequest(
            format=pb.EXPORT_FORMAT_CSV,
            account_id=account_id,
            run_id=run,
            after_sequence=after,
            start_time=start,
            end_time=end,
        )
        parts = [part async for part in ledger.stub().ExportEntries(wanted)]

        lines = b"".join(part.chunk for part in parts).decode().splitlines()[1:]
        expected = [
            each.sequence
            for each in whole
            if each.sequence > after
            and account_id in ("", each.debit_account_id, each.credit_account_id)
            and run in ("", each.run_id)
            and (start is None or each.record_time.ToNanoseconds() >= start.ToNanoseconds())
            and (end is None or each.record_time.ToNanoseconds() < end.ToNanoseconds())
        ]
        assert [int(line.split(",")[0]) for line in lines] == expected
        assert parts[-1].exported_count == parts[-1].total_count == len(expected)
        found += len(expected)
    assert found > len(whole)


async def test_every_leaf_has_a_nonce_that_no_other_has(start_ledger: StartLedger) -> None:
    one, another = await start_ledger(), await start_ledger()
    account_id = await one.account("1")
    for each in (one, another, one):
        await record(each.executor(), *(unit(account_id) for _ in range(3)))

    listed = await one.stub().ListEntries(pb.ListEntriesRequest(page_size=100))

    nonces = [bytes.fromhex(json.loads(each.leaf)["nonce"]) for each in listed.entries]
    assert len(nonces) == 1 + 3 * 3
    assert {len(each) for each in nonces} == {16}
    # Not one half of a nonce comes twice: a counter or a short nonce that is repeated would show.
    halves = [half for each in nonces for half in (each[:8], each[8:])]
    assert len(set(halves)) == len(halves)
