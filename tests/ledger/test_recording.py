"""RecordUsage: each unit charged once for ever, each bad one named, nobody else affected."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from cogni.ledger.v1 import entry_pb2, usage_pb2
from cogni.ledger.v1 import ledger_service_pb2 as pb
from services.ledger.accounts import AccountKind, system_account_id
from services.runtime.ids import new_id
from tests.ledger.conftest import Ledger, StartLedger, record, unit, usd
from tests.plugins.calls import refused

CREATED = usage_pb2.USAGE_RESULT_CREATED
EXISTS = usage_pb2.USAGE_RESULT_EXISTS
CONFLICT = usage_pb2.USAGE_RESULT_CONFLICT
REJECTED = usage_pb2.USAGE_RESULT_REJECTED


async def entries_of(ledger: Ledger, account_id: str) -> list[entry_pb2.Entry]:
    answer = await ledger.stub().ListEntries(
        pb.ListEntriesRequest(account_id=account_id, page_size=1000)
    )
    return list(answer.entries)


async def test_a_unit_sent_again_exists_and_is_not_charged_again(ledger: Ledger) -> None:
    account_id = await ledger.account("1")
    sent = unit(account_id, "0.25")

    first = await record(ledger.executor(), sent)
    again = await record(ledger.executor(), sent)

    assert [first[0].result, again[0].result] == [CREATED, EXISTS]
    assert again[0].charge == first[0].charge
    assert (await ledger.balance(account_id)).balance.value == "0.75"


async def test_the_same_content_in_another_spelling_exists(ledger: Ledger) -> None:
    account_id = await ledger.account("1")
    sent = unit(account_id, "0.5")
    spelt = usage_pb2.UsageUnit()
    spelt.CopyFrom(sent)
    spelt.cost.value = "0.50"
    spelt.llm_call.token_counts.reverse()

    await record(ledger.executor(), sent)
    again = await record(ledger.executor(), spelt)

    assert again[0].result == EXISTS


@pytest.mark.parametrize(
    "change",
    [
        {"cost": usd("0.26")},
        {"attempt": 2},
        {"rework": True},
        {"estimated": True},
        {"run_id": "0197a000-0000-7000-8000-000000000000"},
        {"tool_call": usage_pb2.ToolCall(tool="search")},
    ],
)
async def test_the_same_key_with_other_content_is_a_conflict_and_changes_nothing(
    ledger: Ledger, change: dict[str, Any]
) -> None:
    account_id = await ledger.account("1")
    sent = unit(account_id, "0.25")
    other = usage_pb2.UsageUnit()
    other.CopyFrom(sent)
    other.MergeFrom(usage_pb2.UsageUnit(**change))

    await record(ledger.executor(), sent)
    again = await record(ledger.executor(), other)

    assert again[0].result == CONFLICT
    assert not again[0].HasField("charge")
    assert (await ledger.balance(account_id)).balance.value == "0.75"


async def test_duplicates_inside_one_request_are_judged_one_by_one(ledger: Ledger) -> None:
    account_id = await ledger.account("1")
    sent = unit(account_id, "0.1")
    other = usage_pb2.UsageUnit()
    other.CopyFrom(sent)
    other.attempt = 9
    bad = unit(account_id, "-1")

    outcomes = await record(ledger.executor(), sent, sent, other, bad, unit(account_id, "0.1"))

    results = [each.result for each in outcomes]
    assert results == [CREATED, EXISTS, CONFLICT, REJECTED, CREATED]
    assert (await ledger.balance(account_id)).balance.value == "0.8"


async def test_two_writers_with_the_same_keys_in_opposite_order_charge_each_once(
    start_ledger: StartLedger,
) -> None:
    one, two = await start_ledger(), await start_ledger()
    accounts = [await one.account("100") for _ in range(3)]
    for _ in range(5):
        units = [unit(accounts[i % 3], "0.01") for i in range(60)]
        answers = await asyncio.gather(
            *(record(one.executor(), *units[i : i + 20]) for i in range(0, 60, 20)),
            *(record(two.executor(), *units[::-1][i : i + 20]) for i in range(0, 60, 20)),
        )
        results = [outcome.result for answer in answers for outcome in answer]
        assert results.count(CREATED) == 60
        assert results.count(EXISTS) == 60
    for account_id in accounts:
        assert (await one.balance(account_id)).balance.value == "99"


async def test_usage_is_posted_past_the_limit_and_its_excess_goes_to_the_overrun_account(
    ledger: Ledger,
) -> None:
    account_id = await ledger.account("1", credit_limit="0.5")
    run_id = new_id()

    outcomes = await record(ledger.executor(), unit(account_id, "2", run_id=run_id))

    assert outcomes[0].charge.amount.value == "2"
    assert outcomes[0].charge.overrun.value == "0.5"
    balance = await ledger.balance(account_id)
    assert (balance.balance.value, balance.available.value) == ("-0.5", "0")
    overrun = system_account_id("acme", "USD", AccountKind.OVERRUN)
    assert (await ledger.balance(overrun)).balance.value == "-0.5"
    statement = await ledger.stub().GetRunStatement(pb.GetRunStatementRequest(run_id=run_id))
    assert statement.statement.totals[0].overrun.value == "0.5"
    assert statement.statement.totals[0].charged.value == "2"


async def test_an_unpriceable_unit_is_recorded_flagged_and_free(ledger: Ledger) -> None:
    account_id = await ledger.account("1")
    run_id = new_id()

    unpriced = await record(ledger.executor(), unit(account_id, None, run_id=run_id))
    free = await record(ledger.executor(), unit(account_id, "0", run_id=run_id))

    assert unpriced[0].charge.price_source == usage_pb2.PRICE_SOURCE_UNPRICED
    assert free[0].charge.price_source == usage_pb2.PRICE_SOURCE_CALLER_COST
    answer = await ledger.stub().GetRunStatement(pb.GetRunStatementRequest(run_id=run_id))
    assert answer.statement.unit_count == 2
    assert answer.statement.unpriced_unit_count == 1


async def test_an_actual_replaces_its_estimate(ledger: Ledger) -> None:
    account_id = await ledger.account("10")
    run_id = new_id()
    estimate = unit(account_id, "3", run_id=run_id, estimated=True)
    actual = unit(
        account_id, "2", run_id=run_id, corrects_source_reference=estimate.source_reference
    )
    late = unit(account_id, "1", run_id=run_id, corrects_source_reference=estimate.source_reference)

    await record(ledger.executor(), estimate)
    first = await record(ledger.executor(), actual)
    second = await record(ledger.executor(), late)

    assert (first[0].result, second[0].result) == (CREATED, REJECTED)
    assert second[0].violations[0].field == "units[0].corrects_source_reference"
    assert (await ledger.balance(account_id)).balance.value == "8"
    answer = await ledger.stub().GetRunStatement(pb.GetRunStatementRequest(run_id=run_id))
    statement = answer.statement
    assert statement.totals[0].charged.value == "2"
    assert statement.estimated_unit_count == 0
    assert statement.unit_count == 2
    assert statement.charges[0].corrected_by_sequence == statement.charges[1].sequence - 1


async def test_an_actual_may_come_in_the_same_request_as_its_estimate(ledger: Ledger) -> None:
    account_id = await ledger.account("10")
    estimate = unit(account_id, "3", estimated=True)
    actual = unit(account_id, "2", corrects_source_reference=estimate.source_reference)

    outcomes = await record(ledger.executor(), estimate, actual)

    assert [each.result for each in outcomes] == [CREATED, CREATED]
    assert (await ledger.balance(account_id)).balance.value == "8"


async def test_all_kinds_of_usage_come_back_as_they_were_sent(ledger: Ledger) -> None:
    account_id = await ledger.account("10")
    run_id = new_id()
    call = usage_pb2.LlmCall(
        model="m",
        provider="p",
        provider_response_id="r1",
        provider_cost=usd("0.00000000000000012"),
        token_counts=[usage_pb2.TokenCount(kind=usage_pb2.TOKEN_KIND_CACHE_READ, count=0)],
    )
    sent = [
        unit(account_id, "0.1", run_id=run_id, llm_call=call, rework=True),
        unit(account_id, "0.1", run_id=run_id, tool_call=usage_pb2.ToolCall(tool="search")),
        unit(
            account_id,
            "0.1",
            run_id=run_id,
            compute_time=usage_pb2.ComputeTime(
                resource="runner", duration=Duration(seconds=90, nanos=500_000_000)
            ),
        ),
        unit(
            account_id,
            None,
            run_id=run_id,
            custom_units=usage_pb2.CustomUnits(unit="page", quantity="2.5"),
        ),
    ]

    await record(ledger.executor(), *sent)

    answer = await ledger.stub().GetRunStatement(pb.GetRunStatementRequest(run_id=run_id))
    for one in sent:
        one.occur_time.nanos -= one.occur_time.nanos % 1000
    assert [each.unit for each in answer.statement.charges] == sent


async def test_rounding_happens_once_and_what_it_leaves_over_is_carried(ledger: Ledger) -> None:
    account_id = await ledger.account("1")
    # Each is a third of the smallest unit too much: three of them make a whole one.
    cost = "0.0000000000014"
    sent = [unit(account_id, cost) for _ in range(10)]

    outcomes = await record(ledger.executor(), *sent)

    assert {each.charge.amount.value for each in outcomes} == {"0.000000000001"}
    assert outcomes[0].charge.unrounded == cost
    usage = system_account_id("acme", "USD", AccountKind.USAGE)
    rounding = system_account_id("acme", "USD", AccountKind.ROUNDING)
    exact = Decimal(cost) * 10
    assert Decimal((await ledger.balance(usage)).balance.value) == exact
    assert (await ledger.balance(rounding)).balance.value == "-0.000000000004"


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("account_id", {"account_id": "nobody"}),
        ("account_id", {"account_id": "0197a000-0000-7000-8000-000000000000"}),
        ("source_reference", {"source_reference": ""}),
        ("source_reference", {"source_reference": "x" * 201}),
        ("source_reference", {"source_reference": "a\x00b"}),
        ("run_id", {"run_id": "RUN"}),
        ("attempt", {"attempt": 0}),
        ("cost.value", {"cost": usd("NaN")}),
        ("cost.value", {"cost": usd("-1")}),
        ("cost.value", {"cost": usd("1e9")}),
        ("cost.value", {"cost": usd("0." + "1" * 31)}),
        ("cost.value", {"cost": usd("9" * 39)}),
        ("cost.asset", {"cost": {"asset": "DOGE", "value": "1"}}),
        ("llm_call.model", {"llm_call": usage_pb2.LlmCall()}),
        ("llm_call.token_counts", {"llm_call": {"model": "m", "token_counts": [{"kind": 0}]}}),
        (
            "llm_call.token_counts",
            {"llm_call": {"model": "m", "token_counts": [{"kind": 1, "count": -1}]}},
        ),
        ("custom_units.quantity", {"custom_units": {"unit": "page", "quantity": "-1"}}),
        ("compute_time.duration", {"compute_time": {"resource": "r", "duration": {"seconds": -1}}}),
        ("corrects_source_reference", {"corrects_source_reference": "no such unit"}),
        ("kind", {"cost": usd("9" * 38)}),
    ],
)
async def test_a_bad_unit_is_named_and_the_others_are_recorded(
    ledger: Ledger, field: str, changes: dict[str, Any]
) -> None:
    account_id = await ledger.account("1")
    bad = unit(account_id, None)
    bad.MergeFrom(usage_pb2.UsageUnit(**changes))
    for name in changes:
        if name in ("source_reference", "attempt"):
            setattr(bad, name, changes[name])
        if name == "llm_call":
            bad.llm_call.CopyFrom(usage_pb2.UsageUnit(llm_call=changes[name]).llm_call)

    outcomes = await record(ledger.executor(), unit(account_id), bad, unit(account_id))

    assert [each.result for each in outcomes] == [CREATED, REJECTED, CREATED]
    assert [each.field for each in outcomes[1].violations] == [f"units[1].{field}"]


async def test_a_unit_from_the_future_is_rejected(ledger: Ledger) -> None:
    account_id = await ledger.account("1")
    early = unit(account_id)
    early.occur_time.FromDatetime(datetime.now(UTC) + timedelta(hours=1))

    outcomes = await record(ledger.executor(), early)

    assert outcomes[0].violations[0].field == "units[0].occur_time"


async def test_a_unit_that_says_nothing_is_told_everything_at_once(ledger: Ledger) -> None:
    outcomes = await record(ledger.executor(), usage_pb2.UsageUnit(source_system="executor"))

    fields = {each.field.removeprefix("units[0].") for each in outcomes[0].violations}
    assert fields == {"source_reference", "account_id", "occur_time", "kind"}


async def test_ten_thousand_units_with_one_bad_one_charge_the_rest(ledger: Ledger) -> None:
    account_id = await ledger.account("1000")
    run_id = new_id()
    units = [unit(account_id, "0.001", run_id=run_id) for _ in range(10_000)]
    units[7_777].attempt = 0

    outcomes = await record(ledger.executor(), *units)

    assert [i for i, each in enumerate(outcomes) if each.result != CREATED] == [7_777]
    assert (await ledger.balance(account_id)).balance.value == "990.001"


async def test_a_request_without_units_or_with_too_many_is_refused(ledger: Ledger) -> None:
    for count in (0, 10_001):
        request = pb.RecordUsageRequest(units=[usage_pb2.UsageUnit()] * count)
        refusal = await refused(ledger.executor().RecordUsage(request))
        assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_only_the_executor_reports_as_the_executor(ledger: Ledger) -> None:
    account_id = await ledger.account("1")
    forged = pb.RecordUsageRequest(units=[unit(account_id)])
    own = unit(account_id, source_system="crm", run_id="", attempt=0)

    refusal = await refused(ledger.stub().RecordUsage(forged))
    recorded = await record(ledger.stub(), own)
    foreign = await refused(ledger.executor().RecordUsage(pb.RecordUsageRequest(units=[own])))

    assert refusal.reason == foreign.reason == "SOURCE_SYSTEM_RESERVED"
    assert recorded[0].result == CREATED


async def test_a_run_token_records_nothing(ledger: Ledger) -> None:
    account_id = await ledger.account("1")

    refusal = await refused(
        ledger.run().RecordUsage(pb.RecordUsageRequest(units=[unit(account_id)]))
    )

    assert refusal.reason == "CALLER_NOT_ALLOWED"


async def test_the_same_key_in_another_tenant_is_another_unit(ledger: Ledger) -> None:
    ours, theirs = await ledger.account("1"), await ledger.account("1", tenant="other")
    sent = unit(ours)
    same_key = unit(theirs, "0.9", source_reference=sent.source_reference)

    first = await record(ledger.executor(), sent)
    second = await record(ledger.executor("other"), same_key)

    assert (first[0].result, second[0].result) == (CREATED, CREATED)


async def test_another_tenants_account_looks_like_none(ledger: Ledger) -> None:
    theirs = await ledger.account("1", tenant="other")

    outcomes = await record(ledger.executor(), unit(theirs), unit(new_id()))

    assert outcomes[0].result == outcomes[1].result == REJECTED
    assert outcomes[0].violations[0].description == outcomes[1].violations[0].description
