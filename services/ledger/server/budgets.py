"""RPCs of budgets."""

from __future__ import annotations

from collections.abc import AsyncIterator

from cogni.ledger.v1 import ledger_service_pb2 as pb
from services.ledger.convert import budgets as budget_messages
from services.ledger.server.parts import Context, Parts, tenant_and_id
from services.runtime.caller import current_caller
from services.runtime.paging import decode_page_token, encode_page_token, page_limit


class BudgetRpcs:
    """SetBudget, GetBudget, ListBudgets, WatchBudgets."""

    _parts: Parts

    async def SetBudget(
        self, request: pb.SetBudgetRequest, context: Context
    ) -> pb.SetBudgetResponse:
        terms = budget_messages.terms(request)
        budget = await self._parts.budgeting.set(current_caller(), terms)
        return pb.SetBudgetResponse(budget=budget_messages.budget(budget))

    async def GetBudget(
        self, request: pb.GetBudgetRequest, context: Context
    ) -> pb.GetBudgetResponse:
        budget = await self._parts.budgeting.read(current_caller().tenant_id, request.account_id)
        return pb.GetBudgetResponse(budget=budget_messages.budget(budget))

    async def ListBudgets(
        self, request: pb.ListBudgetsRequest, context: Context
    ) -> pb.ListBudgetsResponse:
        tenant_id = current_caller().tenant_id
        bound_to = ["budgets", tenant_id, request.state]
        after = tenant_and_id(decode_page_token(request.page_token, bound_to=bound_to))
        found, last = await self._parts.budgeting.list_page(
            tenant_id,
            request.state,
            after,
            page_limit(request.page_size),
        )
        return pb.ListBudgetsResponse(
            budgets=[budget_messages.budget(each) for each in found],
            next_page_token="" if last is None else encode_page_token([*last], bound_to=bound_to),
        )

    async def WatchBudgets(
        self, request: pb.WatchBudgetsRequest, context: Context
    ) -> AsyncIterator[pb.WatchBudgetsResponse]:
        tenant_id = current_caller().tenant_id
        async for news in self._parts.budgeting.watch(tenant_id, request.cursor):
            yield pb.WatchBudgetsResponse(
                changes=[budget_messages.change(each) for each in news.changes],
                cursor=news.cursor,
                resume=news.resume,
            )
