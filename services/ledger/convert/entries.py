"""Translates entries, and the charges and statements made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cogni.ledger.v1 import entry_pb2, statement_pb2, usage_pb2
from cogni.ledger.v1 import ledger_service_pb2 as pb
from services.ledger.commands import REQUEST_SYSTEM, Charge, UsageOutcome
from services.ledger.convert.scalars import amount, set_amount, set_timestamp, timestamp
from services.ledger.convert.usage import unit_message
from services.ledger.entries import Entry
from services.ledger.pricing import PriceSource
from services.ledger.run_close import RunClose
from services.ledger.statements import AccountStatement, RunStatement
from services.ledger.store.runs import RunTotal

#: By what a leaf says of its price.
_SOURCES = {
    source.value: usage_pb2.PriceSource.Value(f"PRICE_SOURCE_{source.value}")
    for source in PriceSource
}


def entry(entry: Entry) -> entry_pb2.Entry:
    """Return the message of a sealed entry."""
    message = entry_pb2.Entry(
        sequence=entry.sequence,
        kind=entry_pb2.EntryKind.ValueType(entry.kind),
        debit_account_id=entry.debit_account_id,
        credit_account_id=entry.credit_account_id,
        amount=amount(entry.amount, entry.asset),
        record_time=timestamp(entry.record_time),
        occur_time=timestamp(entry.occur_time),
        run_id=entry.run_id,
        attempt=entry.attempt,
        hold_id=entry.hold_id,
        corrects_sequence=entry.corrects_sequence,
        description=entry.description,
        leaf=entry.leaf,
    )
    if entry.debit_balance is not None:
        message.debit_balance.CopyFrom(amount(entry.debit_balance, entry.asset))
    if entry.credit_balance is not None:
        message.credit_balance.CopyFrom(amount(entry.credit_balance, entry.asset))
    if not entry.source_system.startswith(REQUEST_SYSTEM):
        message.source_system = entry.source_system
        message.source_reference = entry.source_reference
    return message


def outcomes(outcomes: Sequence[UsageOutcome]) -> pb.RecordUsageResponse:
    """Return the answer about the units of a request, in their order."""
    response = pb.RecordUsageResponse()
    for index, outcome in enumerate(outcomes):
        message = response.outcomes.add()
        message.result = usage_pb2.UsageResult.ValueType(outcome.result)
        if outcome.charge is not None:
            # Without the unit, which the caller has just sent.
            _set_charge(message.charge, outcome.charge)
        for violation in outcome.violations:
            message.violations.add(
                field=f"units[{index}].{violation.field}", description=violation.description
            )
    return response


def charge(charge: Charge) -> usage_pb2.Charge:
    """Return the message of a charge with its unit."""
    message = usage_pb2.Charge(unit=unit_message(charge.entry, charge.entry.facts()))
    _set_charge(message, charge)
    return message


def _set_charge(message: usage_pb2.Charge, charge: Charge) -> None:
    of = charge.entry
    price: dict[str, Any] = of.facts()["price"]
    set_amount(message.amount, charge.amount, of.asset)
    set_amount(message.overrun, charge.overrun.amount if charge.overrun else 0, of.asset)
    message.price_source = _SOURCES[price["source"]]
    if "card" in price:
        message.price_card_id = price["card"]
        message.price_card_version = price["version"]
    if "unrounded" in price:
        message.unrounded = price["unrounded"]
    message.sequence = of.sequence
    set_timestamp(message.record_time, of.record_time)
    if charge.corrected_by:
        message.corrected_by_sequence = charge.corrected_by


def run_statement(statement: RunStatement) -> statement_pb2.RunStatement:
    """Return the message of a run's statement."""
    counts = statement.counts
    return statement_pb2.RunStatement(
        close=None if statement.close is None else run_close(statement.close),
        run_id=statement.run_id,
        charges=[charge(each) for each in statement.charges],
        totals=[_total(each) for each in statement.totals],
        unit_count=counts.units,
        unpriced_unit_count=counts.unpriced,
        estimated_unit_count=counts.estimated,
        rework_unit_count=counts.rework,
        units_digest=counts.digest,
        tree_size=statement.tree_size,
    )


def account_statement(statement: AccountStatement) -> statement_pb2.Statement:
    """Return the message of an account's statement."""
    asset = statement.account.asset
    return statement_pb2.Statement(
        account_id=statement.account.account_id,
        start_time=timestamp(statement.start_time),
        end_time=timestamp(statement.end_time),
        opening_balance=amount(statement.opening.balance, asset),
        closing_balance=amount(statement.closing.balance, asset),
        lines=[
            statement_pb2.StatementLine(
                kind=entry_pb2.EntryKind.ValueType(line.kind),
                debits=amount(line.debits, asset),
                credits=amount(line.credits, asset),
                entry_count=line.entry_count,
            )
            for line in statement.lines
        ],
        entries=[entry(each) for each in statement.entries],
    )


def run_close(close: RunClose) -> statement_pb2.RunClose:
    """Return the message of a run's close."""
    return statement_pb2.RunClose(
        run_id=close.run_id,
        version=close.version,
        unit_count=close.unit_count,
        units_digest=close.units_digest,
        state=statement_pb2.RunCloseState.ValueType(close.state),
        close_time=timestamp(close.close_time),
    )


def _total(total: RunTotal) -> statement_pb2.RunTotal:
    return statement_pb2.RunTotal(
        charged=amount(total.charged, total.asset),
        overrun=amount(total.overrun, total.asset),
        rework=amount(total.rework, total.asset),
        estimated=amount(total.estimated, total.asset),
        token_counts=[
            usage_pb2.TokenCount(kind=usage_pb2.TokenKind.Value(f"TOKEN_KIND_{kind}"), count=count)
            for kind, count in sorted(total.tokens.items())
        ],
    )
