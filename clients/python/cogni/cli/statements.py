"""`cogni ledger statement, gaps`: what runs cost, what happened on accounts, what is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer

from cogni.cli.arguments import JsonOption, LimitOption, moment, now
from cogni.cli.output import (
    PAGE_SIZE,
    amount_of,
    console,
    name_of,
    pages,
    print_json,
    show_all,
    time_of,
)
from cogni.client import Client
from cogni.ledger.v1.entry_pb2 import Entry, EntryKind
from cogni.ledger.v1.ledger_service_pb2 import (
    GetRunStatementRequest,
    GetStatementRequest,
    ListGapsRequest,
)
from cogni.ledger.v1.reconciliation_pb2 import Gap, GapKind
from cogni.ledger.v1.statement_pb2 import RunStatement, Statement
from cogni.ledger.v1.usage_pb2 import Charge


def register(app: typer.Typer) -> None:
    """Adds the commands to `cogni ledger`."""
    app.command()(statement)
    app.command()(gaps)


def statement(
    run: Annotated[str, typer.Argument(metavar="[RUN_ID]")] = "",
    account: Annotated[str, typer.Option(help="Of an account, from a moment on.")] = "",
    start: Annotated[str, typer.Option("--from", help="Begin of an account's period.")] = "",
    end: Annotated[str, typer.Option("--to", help="Its end; now when not given.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Show what a run cost, charge by charge, or what happened on an account in a period."""
    if bool(run) == bool(account):
        raise typer.BadParameter("name a RUN_ID, or an --account with --from")
    if run:
        found = _of_run(run)
        print_json(found) if as_json else _print_run(found)
        return
    if not start:
        raise typer.BadParameter("an account's statement begins somewhere: add --from")
    # Every page must tell of the same period, so one that is still open ends now.
    until = moment(end) if end else now()
    request = GetStatementRequest(account_id=account, start_time=moment(start), end_time=until)
    of_account = _of_account(request)
    print_json(of_account) if as_json else _print_account(of_account)


def _of_run(run: str) -> RunStatement:
    """The whole statement: sums and counts cover the run on every page."""
    whole = RunStatement()
    with Client() as client:
        request = GetRunStatementRequest(run_id=run, page_size=PAGE_SIZE)
        for page in _pages(client.ledger.GetRunStatement, request):
            charges = [*whole.charges, *page.statement.charges]
            whole.CopyFrom(page.statement)
            del whole.charges[:]
            whole.charges.extend(charges)
    return whole


def _of_account(request: GetStatementRequest) -> Statement:
    whole = Statement()
    request.page_size = PAGE_SIZE
    with Client() as client:
        for page in _pages(client.ledger.GetStatement, request):
            entries = [*whole.entries, *page.statement.entries]
            whole.CopyFrom(page.statement)
            del whole.entries[:]
            whole.entries.extend(entries)
    return whole


def _pages(call: Callable[[Any], Any], request: Any) -> Iterator[Any]:
    """Answer after answer until there is no further page."""
    while True:
        answer = call(request)
        yield answer
        if not answer.next_page_token:
            return
        request.page_token = answer.next_page_token


def _print_run(found: RunStatement) -> None:
    show_all(
        found.charges,
        ("what", "attempt", "tokens", "charge", "marks", "reference"),
        _charge_row,
        False,
    )
    for total in found.totals:
        console().print(f"total {amount_of(total.charged)}")


def _charge_row(charge: Charge) -> tuple[str, ...]:
    unit = charge.unit
    kind = unit.WhichOneof("kind") or ""
    what = {
        "llm_call": unit.llm_call.model,
        "tool_call": unit.tool_call.tool,
        "compute_time": unit.compute_time.resource,
        "custom_units": unit.custom_units.unit,
    }.get(kind, kind)
    marks = (("estimated", unit.estimated), ("rework", unit.rework))
    return (
        what,
        str(unit.attempt),
        str(sum(count.count for count in unit.llm_call.token_counts) or ""),
        amount_of(charge.amount),
        " ".join(word for word, on in marks if on),
        unit.source_reference,
    )


def _print_account(found: Statement) -> None:
    out = console()
    out.print(f"{time_of(found.start_time)} {amount_of(found.opening_balance)}")
    show_all(
        found.entries,
        ("sequence", "time", "kind", "left", "arrived", "for"),
        lambda entry: _entry_row(entry, found.account_id),
        False,
    )
    for line in found.lines:
        kind = name_of(EntryKind, "ENTRY_KIND", line.kind)
        out.print(
            f"{kind}: {line.entry_count} entries, left {amount_of(line.debits)}, "
            f"arrived {amount_of(line.credits)}"
        )
    out.print(f"{time_of(found.end_time)} {amount_of(found.closing_balance)}")


def _entry_row(entry: Entry, account: str) -> tuple[str, ...]:
    is_debit = entry.debit_account_id == account
    return (
        str(entry.sequence),
        time_of(entry.record_time),
        name_of(EntryKind, "ENTRY_KIND", entry.kind),
        amount_of(entry.amount) if is_debit else "",
        "" if is_debit else amount_of(entry.amount),
        entry.run_id or entry.description,
    )


def gaps(limit: LimitOption = 50, as_json: JsonOption = False) -> None:
    """List runs whose units are not those the Executor committed to."""

    def row(gap: Gap) -> tuple[str, ...]:
        return (
            gap.run_id,
            name_of(GapKind, "GAP_KIND", gap.kind),
            str(gap.committed_unit_count),
            str(gap.recorded_unit_count),
            time_of(gap.detect_time),
        )

    with Client() as client:
        show_all(
            pages(client.ledger.ListGaps, ListGapsRequest(), "gaps", limit),
            ("run", "kind", "committed", "recorded", "since"),
            row,
            as_json,
        )
