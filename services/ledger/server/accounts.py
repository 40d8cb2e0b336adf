"""RPCs of accounts, transfers and corrections."""

from __future__ import annotations

from cogni.ledger.v1 import ledger_service_pb2 as pb
from services.ledger.accounts import AccountKind
from services.ledger.assets import asset_of
from services.ledger.convert import accounts as account_messages
from services.ledger.convert import entries as entry_messages
from services.ledger.convert.scalars import moment_of
from services.ledger.directory import NewAccount
from services.ledger.server.parts import Context, Parts, time_and_id
from services.ledger.transferring import Wish, parse_sum
from services.runtime.caller import current_caller
from services.runtime.paging import decode_page_token, encode_page_token, page_limit


class AccountRpcs:
    """CreateAccount, GetAccount, ListAccounts, Transfer, CorrectEntry."""

    _parts: Parts

    async def CreateAccount(
        self, request: pb.CreateAccountRequest, context: Context
    ) -> pb.CreateAccountResponse:
        asset = asset_of(request.asset)
        credit_limit = 0
        if request.HasField("credit_limit"):
            limit = request.credit_limit
            credit_limit = parse_sum(asset, limit.asset, limit.value, "credit_limit")
        wanted = NewAccount(
            request.request_id,
            request.display_name,
            asset,
            AccountKind(request.kind or AccountKind.SPENDING),
            request.owner,
            credit_limit,
        )
        account, balance = await self._parts.directory.create(current_caller(), wanted)
        return pb.CreateAccountResponse(account=account_messages.account(account, balance))

    async def GetAccount(
        self, request: pb.GetAccountRequest, context: Context
    ) -> pb.GetAccountResponse:
        moment = moment_of(request.balance_time) if request.HasField("balance_time") else None
        account, balance = await self._parts.directory.read(
            current_caller().tenant_id, request.account_id, moment
        )
        return pb.GetAccountResponse(account=account_messages.account(account, balance))

    async def ListAccounts(
        self, request: pb.ListAccountsRequest, context: Context
    ) -> pb.ListAccountsResponse:
        tenant_id = current_caller().tenant_id
        bound_to = ["accounts", tenant_id, request.asset, request.kind, request.owner]
        after = time_and_id(decode_page_token(request.page_token, bound_to=bound_to))
        limit = page_limit(request.page_size)
        found = await self._parts.directory.list_page(
            tenant_id,
            asset=request.asset,
            kind=request.kind,
            owner=request.owner,
            after=after,
            limit=limit + 1,
        )
        response = pb.ListAccountsResponse(
            accounts=[account_messages.account(*each) for each in found[:limit]]
        )
        if len(found) > limit:
            last, _ = found[limit - 1]
            key = [last.create_time.isoformat(), last.account_id]
            response.next_page_token = encode_page_token(key, bound_to=bound_to)
        return response

    async def Transfer(self, request: pb.TransferRequest, context: Context) -> pb.TransferResponse:
        wish = Wish(
            request.request_id,
            request.source_system,
            request.source_reference,
            request.debit_account_id,
            request.credit_account_id,
            request.amount.asset,
            request.amount.value,
            request.description,
            moment_of(request.occur_time) if request.HasField("occur_time") else None,
        )
        entry = await self._parts.transferring.transfer(current_caller(), wish)
        return pb.TransferResponse(entry=entry_messages.entry(entry))

    async def CorrectEntry(
        self, request: pb.CorrectEntryRequest, context: Context
    ) -> pb.CorrectEntryResponse:
        amount = None
        if request.HasField("amount"):
            amount = (request.amount.asset, request.amount.value)
        entry = await self._parts.correcting.correct(
            current_caller(), request.request_id, request.sequence, amount, request.description
        )
        return pb.CorrectEntryResponse(entry=entry_messages.entry(entry))
