"""The shortest whole path: fund an account, charge a run, read what it cost."""

from __future__ import annotations

from cogni.ledger.v1 import ledger_service_pb2 as pb
from cogni.ledger.v1 import usage_pb2
from services.runtime.ids import new_id
from tests.ledger.conftest import Ledger, record, unit


async def test_a_funded_run_is_charged_exactly_and_its_statement_says_so(ledger: Ledger) -> None:
    account_id = await ledger.account("10")
    run_id = new_id()

    outcomes = await record(
        ledger.executor(),
        unit(account_id, "0.000000012345", run_id=run_id),
        unit(account_id, "1.5", run_id=run_id),
    )

    assert [each.result for each in outcomes] == [usage_pb2.USAGE_RESULT_CREATED] * 2
    assert (await ledger.balance(account_id)).balance.value == "8.499999987655"
    answer = await ledger.stub().GetRunStatement(pb.GetRunStatementRequest(run_id=run_id))
    statement = answer.statement
    assert statement.totals[0].charged.value == "1.500000012345"
    assert statement.unit_count == 2
    assert [each.amount.value for each in statement.charges] == ["0.000000012345", "1.5"]
    assert statement.charges[0].unit.llm_call.model == "gpt-5-mini"
