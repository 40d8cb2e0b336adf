"""Translates accounts and balances."""

from __future__ import annotations

from cogni.ledger.v1 import account_pb2
from services.ledger.accounts import Account, Balance, available
from services.ledger.convert.scalars import amount, timestamp


def account(account: Account, balance: Balance) -> account_pb2.Account:
    """Return the message of an account with what it has at some moment."""
    return account_pb2.Account(
        account_id=account.account_id,
        display_name=account.display_name,
        asset=account.asset.code,
        kind=account_pb2.AccountKind.ValueType(account.kind),
        owner=account.owner,
        credit_limit=amount(account.credit_limit, account.asset),
        balance=_balance(account, balance),
        create_time=timestamp(account.create_time),
    )


def _balance(account: Account, balance: Balance) -> account_pb2.Balance:
    message = account_pb2.Balance(
        balance=amount(balance.balance, account.asset), sequence=balance.sequence
    )
    if balance.update_time is not None:
        message.update_time.CopyFrom(timestamp(balance.update_time))
    if balance.held is not None:
        message.held.CopyFrom(amount(balance.held, account.asset))
        left = available(account, balance.balance, balance.held)
        message.available.CopyFrom(amount(left, account.asset))
    return message
