"""The LedgerService's servicer: translates and delegates, nothing else."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import grpc.aio

from cogni.ledger.v1 import ledger_service_pb2 as pb
from cogni.ledger.v1 import ledger_service_pb2_grpc
from services.ledger.accounts import AccountKind
from services.ledger.assets import asset_of
from services.ledger.convert import accounts as account_messages
from services.ledger.convert import entries as entry_messages
from services.ledger.convert import price_cards as card_messages
from services.ledger.convert import usage as usage_messages
from services.ledger.convert.scalars import moment_of
from services.ledger.directory import Directory, NewAccount
from services.ledger.price_list import PriceList, prices_of
from services.ledger.recording import Recording
from services.ledger.statements import Statements
from services.ledger.transferring import Transferring, Wish, parse_sum
from services.runtime.caller import Caller, CallerKind, current_caller
from services.runtime.errors import denied
from services.runtime.paging import decode_page_token, encode_page_token, page_limit

_Context = grpc.aio.ServicerContext[Any, Any]


class LedgerServicer(ledger_service_pb2_grpc.LedgerServiceServicer):
    """Serves the contract; RPCs it does not override answer NOT_IMPLEMENTED."""

    def __init__(
        self,
        directory: Directory,
        transferring: Transferring,
        recording: Recording,
        statements: Statements,
        price_list: PriceList,
    ) -> None:
        self._directory = directory
        self._transferring = transferring
        self._recording = recording
        self._statements = statements
        self._price_list = price_list

    async def CreateAccount(
        self, request: pb.CreateAccountRequest, context: _Context
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
        account, balance = await self._directory.create(current_caller(), wanted)
        return pb.CreateAccountResponse(account=account_messages.account(account, balance))

    async def GetAccount(
        self, request: pb.GetAccountRequest, context: _Context
    ) -> pb.GetAccountResponse:
        moment = moment_of(request.balance_time) if request.HasField("balance_time") else None
        account, balance = await self._directory.read(
            current_caller().tenant_id, request.account_id, moment
        )
        return pb.GetAccountResponse(account=account_messages.account(account, balance))

    async def ListAccounts(
        self, request: pb.ListAccountsRequest, context: _Context
    ) -> pb.ListAccountsResponse:
        tenant_id = current_caller().tenant_id
        bound_to = ["accounts", tenant_id, request.asset, request.kind, request.owner]
        after = _time_and_id(decode_page_token(request.page_token, bound_to=bound_to))
        limit = page_limit(request.page_size)
        found = await self._directory.list_page(
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

    async def Transfer(self, request: pb.TransferRequest, context: _Context) -> pb.TransferResponse:
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
        entry = await self._transferring.transfer(current_caller(), wish)
        return pb.TransferResponse(entry=entry_messages.entry(entry))

    async def RecordUsage(
        self, request: pb.RecordUsageRequest, context: _Context
    ) -> pb.RecordUsageResponse:
        caller = current_caller()
        units = [usage_messages.unit(each, caller.tenant_id) for each in request.units]
        outcomes = await self._recording.record(caller, units)
        return pb.RecordUsageResponse(
            outcomes=[entry_messages.outcome(each, index) for index, each in enumerate(outcomes)]
        )

    async def GetRunStatement(
        self, request: pb.GetRunStatementRequest, context: _Context
    ) -> pb.GetRunStatementResponse:
        caller = current_caller()
        _check_own_run(caller, request.run_id)
        bound_to = ["run", caller.tenant_id, request.run_id]
        after = decode_page_token(request.page_token, bound_to=bound_to) or [0]
        limit = page_limit(request.page_size)
        statement = await self._statements.of_run(
            caller.tenant_id, request.run_id, after=after[0], limit=limit + 1
        )
        token = ""
        if len(statement.charges) > limit:
            del statement.charges[limit:]
            token = encode_page_token([statement.charges[-1].entry.sequence], bound_to=bound_to)
        return pb.GetRunStatementResponse(
            statement=entry_messages.run_statement(statement), next_page_token=token
        )

    async def ListEntries(
        self, request: pb.ListEntriesRequest, context: _Context
    ) -> pb.ListEntriesResponse:
        tenant_id = current_caller().tenant_id
        bound_to = ["entries", tenant_id, request.account_id, request.run_id, request.kind]
        before = decode_page_token(request.page_token, bound_to=bound_to) or [None]
        limit = page_limit(request.page_size)
        found = await self._statements.list_entries(
            tenant_id,
            kind=request.kind,
            account_id=request.account_id,
            run_id=request.run_id,
            before=before[0],
            limit=limit + 1,
        )
        response = pb.ListEntriesResponse(
            entries=[entry_messages.entry(each) for each in found[:limit]]
        )
        if len(found) > limit:
            key = [found[limit - 1].sequence]
            response.next_page_token = encode_page_token(key, bound_to=bound_to)
        return response

    async def CreatePriceCard(
        self, request: pb.CreatePriceCardRequest, context: _Context
    ) -> pb.CreatePriceCardResponse:
        wanted = card_messages.new_card(request)
        card = await self._price_list.create(current_caller(), wanted)
        return pb.CreatePriceCardResponse(
            price_card=card_messages.card_message(card, prices_of(card))
        )

    async def GetPriceCard(
        self, request: pb.GetPriceCardRequest, context: _Context
    ) -> pb.GetPriceCardResponse:
        card = await self._price_list.read(current_caller().tenant_id, request.price_card_id)
        return pb.GetPriceCardResponse(price_card=card_messages.card_message(card, prices_of(card)))

    async def ListPriceCards(
        self, request: pb.ListPriceCardsRequest, context: _Context
    ) -> pb.ListPriceCardsResponse:
        tenant_id = current_caller().tenant_id
        bound_to = ["price_cards", tenant_id, request.asset]
        before = _time_and_id(decode_page_token(request.page_token, bound_to=bound_to))
        limit = page_limit(request.page_size)
        found = await self._price_list.list_page(
            tenant_id, asset=request.asset, before=before, limit=limit + 1
        )
        response = pb.ListPriceCardsResponse(
            price_cards=[card_messages.card_message(each, {}) for each in found[:limit]]
        )
        if len(found) > limit:
            last = found[limit - 1]
            key = [last.create_time.isoformat(), last.price_card_id]
            response.next_page_token = encode_page_token(key, bound_to=bound_to)
        return response


def _time_and_id(key: list[str] | None) -> tuple[datetime, str] | None:
    return None if key is None else (datetime.fromisoformat(key[0]), key[1])


def _check_own_run(caller: Caller, run_id: str) -> None:
    if caller.kind is CallerKind.RUN and (caller.run is None or caller.run.run_id != run_id):
        raise denied("CALLER_NOT_ALLOWED", "A run token reads its own run's statement alone.")
