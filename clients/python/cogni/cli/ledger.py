"""`cogni ledger`: accounts, transfers, and what runs cost."""

from __future__ import annotations

from typing import Annotated

import typer

from cogni.cli import proofs
from cogni.cli.arguments import (
    IdOption,
    JsonOption,
    LimitOption,
    RequestIdOption,
    amount,
    enum_value,
    request_id,
)
from cogni.cli.output import (
    amount_of,
    console,
    name_of,
    pages,
    print_json,
    show,
    show_all,
    show_created,
    time_of,
)
from cogni.client import Client
from cogni.ledger.v1.account_pb2 import Account, AccountKind
from cogni.ledger.v1.entry_pb2 import Entry, EntryKind
from cogni.ledger.v1.ledger_service_pb2 import (
    CreateAccountRequest,
    GetAccountRequest,
    GetRunStatementRequest,
    ListAccountsRequest,
    ListEntriesRequest,
    ListPriceCardsRequest,
    TransferRequest,
)
from cogni.ledger.v1.price_card_pb2 import PriceCard
from cogni.ledger.v1.statement_pb2 import RunStatement
from cogni.ledger.v1.usage_pb2 import Charge

app = typer.Typer(help="The Ledger: accounts and charges.", no_args_is_help=True)
accounts = typer.Typer(help="Accounts.", no_args_is_help=True)
app.add_typer(accounts, name="accounts")
proofs.register(app)


@accounts.command("create")
def create_account(
    name: Annotated[str, typer.Option(help="A name for people.")],
    asset: Annotated[str, typer.Option(help="What it holds.")] = "USD",
    kind: Annotated[str, typer.Option(help="spending or funding.")] = "spending",
    credit_limit: Annotated[
        str | None, typer.Option(help="How far below zero it may go, like '10 USD'.")
    ] = None,
    given_request_id: RequestIdOption = None,
    only_id: IdOption = False,
    as_json: JsonOption = False,
) -> None:
    """Create an account."""
    request = CreateAccountRequest(
        request_id=request_id(given_request_id),
        display_name=name,
        asset=asset,
        kind=enum_value(AccountKind, "ACCOUNT_KIND", kind),
        credit_limit=amount(credit_limit) if credit_limit else None,
    )
    with Client() as client:
        created = client.ledger.CreateAccount(request).account
        show_created(created, "account_id", only_id, as_json)


@accounts.command("get")
def get_account(
    account: Annotated[str, typer.Argument(metavar="ACCOUNT_ID")], as_json: JsonOption = False
) -> None:
    """Show one account and its balance."""
    with Client() as client:
        show(client.ledger.GetAccount(GetAccountRequest(account_id=account)).account, as_json)


@accounts.command("list")
def list_accounts(limit: LimitOption = 50, as_json: JsonOption = False) -> None:
    """List accounts."""

    def row(account: Account) -> tuple[str, ...]:
        return (
            account.account_id,
            name_of(AccountKind, "ACCOUNT_KIND", account.kind),
            account.display_name,
            amount_of(account.balance.balance),
            amount_of(account.balance.available),
            account.owner,
        )

    with Client() as client:
        show_all(
            pages(client.ledger.ListAccounts, ListAccountsRequest(), "accounts", limit),
            ("account_id", "kind", "name", "balance", "available", "owner"),
            row,
            as_json,
        )


@app.command()
def transfer(
    sum: Annotated[str, typer.Argument(help="How much, like '5 USD'.")],
    debit: Annotated[str, typer.Option(help="The account the money leaves.")],
    credit: Annotated[str, typer.Option(help="The account it goes to.")],
    description: Annotated[str, typer.Option(help="What for.")] = "",
    given_request_id: RequestIdOption = None,
    as_json: JsonOption = False,
) -> None:
    """Move money between two accounts."""
    request = TransferRequest(
        request_id=request_id(given_request_id),
        debit_account_id=debit,
        credit_account_id=credit,
        amount=amount(sum),
        description=description,
    )
    with Client() as client:
        show(client.ledger.Transfer(request).entry, as_json)


@app.command()
def statement(
    run: Annotated[str, typer.Argument(metavar="RUN_ID")], as_json: JsonOption = False
) -> None:
    """Show what a run cost, charge by charge."""
    with Client() as client:
        response = client.ledger.GetRunStatement(GetRunStatementRequest(run_id=run))
    if as_json:
        print_json(response.statement)
        return
    print_statement(response.statement)


def print_statement(found: RunStatement) -> None:
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


@app.command()
def entries(
    account: Annotated[str, typer.Option(help="Only this account.")] = "",
    run: Annotated[str, typer.Option(help="Only this run.")] = "",
    limit: LimitOption = 50,
    as_json: JsonOption = False,
) -> None:
    """List entries, newest first."""

    def row(entry: Entry) -> tuple[str, ...]:
        return (
            str(entry.sequence),
            time_of(entry.record_time),
            name_of(EntryKind, "ENTRY_KIND", entry.kind),
            amount_of(entry.amount),
            entry.debit_account_id,
            entry.credit_account_id,
            entry.run_id or entry.description,
        )

    request = ListEntriesRequest(account_id=account, run_id=run)
    with Client() as client:
        show_all(
            pages(client.ledger.ListEntries, request, "entries", limit),
            ("sequence", "time", "kind", "amount", "debit", "credit", "for"),
            row,
            as_json,
        )


@app.command("price-cards")
def price_cards(limit: LimitOption = 50, as_json: JsonOption = False) -> None:
    """List price cards."""

    def row(card: PriceCard) -> tuple[str, ...]:
        return (
            card.price_card_id,
            str(card.version),
            card.display_name,
            card.asset,
            str(len(card.model_prices)),
            time_of(card.effective_time),
        )

    with Client() as client:
        show_all(
            pages(client.ledger.ListPriceCards, ListPriceCardsRequest(), "price_cards", limit),
            ("price_card_id", "version", "name", "asset", "models", "effective"),
            row,
            as_json,
        )
