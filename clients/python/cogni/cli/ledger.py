"""`cogni ledger`: accounts, transfers, and what runs cost."""

from __future__ import annotations

from typing import Annotated

import typer

from cogni.cli import price_cards, proofs, statements
from cogni.cli.arguments import (
    IdOption,
    JsonOption,
    LimitOption,
    RequestIdOption,
    amount,
    enum_value,
    moment,
    request_id,
)
from cogni.cli.output import (
    amount_of,
    name_of,
    pages,
    show,
    show_all,
    show_created,
    time_of,
)
from cogni.cli.reconcile import reconcile
from cogni.client import Client
from cogni.ledger.v1.account_pb2 import Account, AccountKind
from cogni.ledger.v1.entry_pb2 import Entry, EntryKind
from cogni.ledger.v1.ledger_service_pb2 import (
    CreateAccountRequest,
    GetAccountRequest,
    ListAccountsRequest,
    ListEntriesRequest,
    TransferRequest,
)

app = typer.Typer(help="The Ledger: accounts and charges.", no_args_is_help=True)
accounts = typer.Typer(help="Accounts.", no_args_is_help=True)
app.add_typer(accounts, name="accounts")
app.add_typer(price_cards.app, name="price-cards")
proofs.register(app)
statements.register(app)
app.command()(reconcile)


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
    account: Annotated[str, typer.Argument(metavar="ACCOUNT_ID")],
    at: Annotated[
        str, typer.Option(help="The balance as it was then, like 2026-12-01T00:00:00Z.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Show one account and its balance, now or at a time."""
    request = GetAccountRequest(account_id=account)
    if at:
        request.balance_time.CopyFrom(moment(at))
    with Client() as client:
        show(client.ledger.GetAccount(request).account, as_json)


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
